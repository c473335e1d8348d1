"""The host's synthetic data sets as training data: findings by scanner and severity, with a rationale as the answer.

The layout is `{metadata, data: {findings: {SCANNER: {SEVERITY: [...]}}, correlations: [...]}}`; the flat layout without `data`,
lists without the level of the severity, `enriched_findings` of a ground truth, and the compressed form (hexadecimal gzip in
`data`) are read alike. Statistics and indexes say nothing of their own and are passed over.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from isal import isal_zlib

from sysscan_models.corpus.containers import ISAL_ERROR
from sysscan_models.corpus.fields import BadRecord
from sysscan_models.corpus.readers import family_key, parse, read_json, record_limit
from sysscan_models.corpus.reports import finding_record, scanner_name
from sysscan_models.corpus.transcoding import head_as_utf8, joined
from sysscan_models.documents import Document, SetAside
from sysscan_models.interfaces import Member, Reader

RATIONALES = ("rationale", "explanation", "reasoning", "analysis")
"""Keys of what explains a finding, in the order in which they are looked for."""
_LAYOUT = re.compile(rb'"findings"\s*:\s*\{|"enriched_findings"\s*:\s*\[')
_DATA_FIRST = re.compile(rb'\s*\{\s*"data"\s*:\s*\{')
_COMPRESSED = re.compile(rb'\s*\{[^{}\[\]]{0,400}"compression_method"\s*:')


class SyntheticReader(Reader):
    """Reads the host's synthetic data sets: a document for each finding and correlation."""

    name: ClassVar[str] = "synthetic"

    role: str = "specialist"
    """Role that findings go to; empty lets the router decide."""

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .json."""
        return name.lower().endswith(".json")

    def recognises(self, head: bytes) -> bool:
        """Say whether it begins as a synthetic data set does."""
        return bool(_LAYOUT.search(head) or _DATA_FIRST.match(head) or _COMPRESSED.match(head))

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each finding; what is no such data set after all is read as other JSON is."""
        limit = record_limit(member)
        data = member.stream.read(limit + 1)
        try:
            value = _opened(parse(head_as_utf8(data)), limit) if len(data) <= limit else None
        except BadRecord as bad:
            if bad.reason == "compressed data that cannot be read":
                yield SetAside(member.name, bad.reason, bad.detail)
                return
            value = None
        layout = _layout(value)
        if layout is None:
            yield from read_json(replace(member, stream=joined(data, member.stream)))
            return
        empty = True
        for scanner, severity, number, item in layout:
            empty = False
            place = ".".join(filter(None, (scanner_name(scanner), scanner_name(severity))))
            yield self._document(item, severity, f"{member.name}:{place}[{number}]", family_key(member))
        if empty:
            yield SetAside(member.name, "data set without findings")

    def _document(self, item: Any, severity: str, source: str, key: str) -> Document | SetAside:
        given = item if isinstance(item, dict) else {}
        said: dict[str, Any] = {"content": next((given[name] for name in RATIONALES if given.get(name)), None)}
        enrichment = given.get("_langchain_enrichment")
        if isinstance(enrichment, dict) and not given.get("remediation") and _texts(enrichment.get("mitigation_steps")):
            said["remediation"] = enrichment["mitigation_steps"]
        return finding_record(item, source, key=key, role=self.role, severity=severity.strip().lower(), says=said)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _opened(value: Any, limit: int) -> Any:
    """Return the data set of the compressed form, unpacked to no more than a record; anything else as it is."""
    if not isinstance(value, dict) or "compression_method" not in value or not isinstance(value.get("data"), str):
        return value
    try:
        unpacker = isal_zlib.decompressobj(wbits=31)
        data = unpacker.decompress(binascii.unhexlify(value["data"]), limit + 1)
    except (ValueError, ISAL_ERROR) as error:
        raise BadRecord("compressed data that cannot be read", str(error)) from None
    if len(data) > limit:
        raise BadRecord("compressed data that cannot be read", f"it unpacks to more than {limit:,} bytes")
    if not unpacker.eof:
        raise BadRecord("compressed data that cannot be read", "it is truncated")
    return parse(data)


def _layout(value: Any) -> Iterator[tuple[str, str, int, Any]] | None:
    """Return scanner, severity, number and finding of everything in a data set, or None when it is none."""
    inner = value.get("data") if isinstance(value, dict) and isinstance(value.get("data"), dict) else value
    if not isinstance(inner, dict):
        return None
    if isinstance(inner.get("findings"), dict):
        return _listed(inner["findings"], inner.get("correlations"))
    if isinstance(inner.get("enriched_findings"), list):
        return _listed({"enriched_findings": inner["enriched_findings"]}, inner.get("correlations"))
    return None


def _listed(findings: Mapping[str, Any], correlations: Any) -> Iterator[tuple[str, str, int, Any]]:
    for scanner, held in findings.items():
        levels = held if isinstance(held, dict) else {"": held}
        for severity, items in levels.items():
            for number, item in enumerate(items if isinstance(items, list) else [items]):
                yield scanner, severity, number, item
    for number, item in enumerate(correlations if isinstance(correlations, list) else ()):
        yield "correlations", "", number, item
