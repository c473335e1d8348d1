"""Scan reports of the host as training data: each finding a document, what the scanner says of it as its labels.

A report is `{meta, summary, results: [{scanner, findings: [...]}], ...}` (schema v2). The scanner's severity and score are what
a specialist is asked for, so they are labels and never part of the text. Other JSON is left to the reader of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from sysscan_models.corpus.fields import BadRecord, clean
from sysscan_models.corpus.readers import family_key, parse, read_json, record_limit
from sysscan_models.corpus.records import document
from sysscan_models.corpus.transcoding import head_as_utf8, joined, marked_encoding
from sysscan_models.documents import Document, SetAside
from sysscan_models.interfaces import Member, Reader
from sysscan_models.prompts import finding_document
from sysscan_models.scan_report import SEVERITIES, readable_findings, severity_of

JUDGEMENTS = frozenset(
    {"severity", "risk", "risk_level", "risk_score", "risk_total", "base_severity_score", "severity_source", "priority"}
)
"""Keys of a finding's metadata that are left out of its text: they are the answer."""
_BEGINS = re.compile(rb'\s*\{\s*"(meta|summary|summary_extension|results|collection_warnings|scanner_errors)"\s*:')
_SCANNER = re.compile(rb'"scanner"\s*:|"findings"\s*:\s*\[')


class ReportReader(Reader):
    """Reads scan reports of the host, schema v2: a document for each finding."""

    name: ClassVar[str] = "scan-report"

    role: str = "specialist"
    """Role that findings go to; empty lets the router decide."""

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .json."""
        return name.lower().endswith(".json")

    def recognises(self, head: bytes) -> bool:
        """Say whether it begins as a report does; its list of warnings alone may be longer than what is seen."""
        begins = _BEGINS.match(head)
        return bool(begins and (begins[1] == b"collection_warnings" or _SCANNER.search(head)))

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each finding; what is no report after all is read as other JSON is."""
        limit = record_limit(member)
        data = member.stream.read(limit + 1)
        try:
            report = _parsed(data, limit)
        except BadRecord:
            report = None
        if not _is_report(report):
            yield from read_json(replace(member, stream=joined(data, member.stream)))
            return
        found = False
        for place, result in enumerate(report["results"]):
            for entry in self._findings(result, f"{member.name}:results[{place}]", family_key(member)):
                found = True
                yield entry
        if not found:
            yield SetAside(member.name, "report without findings")

    def _findings(self, result: Any, where: str, key: str) -> Iterator[Document | SetAside]:
        listed = result.get("findings") if isinstance(result, dict) else None
        if not isinstance(listed, list):
            yield SetAside(where, "not a finding", "expected an object with `scanner` and a list `findings`")
            return
        scanner = result.get("scanner")
        for number, finding in enumerate(listed):
            source = f"{where}.findings[{number}] {scanner_name(scanner)}".rstrip()
            yield finding_record(finding, source, key=key, role=self.role)


def scanner_name(scanner: Any) -> str:
    """Return a scanner's name as sources show it, empty for what is none."""
    return " ".join(clean(scanner).split())[:80] if isinstance(scanner, str) else ""


def finding_record(
    finding: Any, source: str, *, key: str, role: str, severity: str = "", says: Mapping[str, Any] | None = None
) -> Document | SetAside:
    """Return a scanner's finding as a document, or why it cannot be used.

    `severity` goes before the finding's own; `says` are further fields of the record, such as its content; `key` is the one
    that names its family.
    """
    found, faults = readable_findings({"results": [{"scanner": "", "findings": [finding]}]})
    if faults:
        return SetAside(source, "not a finding", faults[0].message.partition(" ")[2])
    evidence = {name: value for name, value in (found[0].get("metadata") or {}).items() if name.lower() not in JUDGEMENTS}
    try:
        shown = finding_document({**found[0], "metadata": _encodable(evidence)})
    except (TypeError, ValueError) as error:  # what JSON cannot hold
        return SetAside(source, "not a finding", f"metadata: {error}")
    given = found[0]
    own = severity_of(given.get("severity"))
    score = given.get("risk_score") if given.get("risk_score") is not None else given.get("base_severity_score")
    record = {
        **{name: given.get(name) for name in ("techniques", "controls", "remediation")},
        **(says or {}),
        **({key: given[key]} if key in given else {}),
        "id": given.get("id"),
        "title": given["title"],
        "description": shown.description,
        "severity": severity if severity in SEVERITIES else own,
        "risk_score": score,
        "role": role,
    }
    return document(record, source, key)


def _parsed(data: bytes, limit: int) -> Any:
    if len(data) > limit:
        raise BadRecord("record too large")
    data = head_as_utf8(data) if marked_encoding(data) else data
    try:
        return parse(data)
    except BadRecord as bad:
        if bad.reason != "not UTF-8 text":
            raise
        return parse(data.decode("utf-8", "replace").encode())  # the scanner copies names of files as they are


def _is_report(value: Any) -> bool:
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list):
        return False
    known = {"scanner", "findings"}
    return any(isinstance(item, dict) and known <= item.keys() for item in results) or (not results and "meta" in value)


def _encodable(value: Any) -> Any:
    """Return metadata without lone surrogates, which cannot be written; `readable_findings` bounds its depth."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value
