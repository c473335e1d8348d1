"""Reading scan reports of Sys-Scan-Graph (schema v2): `{results: [{scanner, findings: [{id, title, severity, ...}]}]}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.documents import Document
from sysscan_models.errors import DataError, UserError
from sysscan_models.progress import say
from sysscan_models.prompts import finding_document

SEVERITIES = ("critical", "high", "medium", "low", "info")
DEEPEST = 64
"""Levels of objects and lists in a finding; scanners write three or four."""

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""An escape in JSON; the group is half a character without its other half."""


def read_report(path: Path) -> Any:
    """Return a report file's JSON; raise UserError when it cannot be read, DataError when it is not JSON."""
    try:
        return parse_report(path.read_bytes(), f"report {path}")
    except OSError as error:
        raise UserError(f"report {path} cannot be read: {error.strerror}") from error


def parse_report(written: bytes, name: str) -> Any:
    """Return the JSON of a report that was read; `name` is what messages call it. Raises DataError when it is none.

    The scanner copies names of files as they are, which on Linux may be any bytes: what is no text becomes U+FFFD, and is told.
    """
    try:
        return orjson.loads(written)
    except orjson.JSONDecodeError:
        try:
            report = orjson.loads(_repaired(written))
        except orjson.JSONDecodeError as error:
            raise DataError(
                f"{name} is not JSON ({error}); expected a scan report, as `sys-scan --output` writes it"
            ) from error
    say(f"{name} holds characters that are no valid Unicode; they are shown as \ufffd")
    return report


@dataclass(frozen=True)
class FindingFault:
    """Something in a report that cannot be used: where, a message that says why, and what it says of itself, if anything."""

    where: str
    message: str
    finding_id: str = ""
    title: str = ""
    severity: str = ""


def findings(report: Any) -> list[dict[str, Any]]:
    """Return a report's findings, the most severe first, each with the name of its scanner as `scanner`.

    Severities are as `severity_of` spells them; equally severe ones are ordered by their score, then as in the report. Raises
    DataError when it is no report in schema v2.
    """
    found, faults = readable_findings(report)
    if faults:
        raise DataError(faults[0].message)
    return found


def readable_findings(report: Any) -> tuple[list[dict[str, Any]], list[FindingFault]]:
    """Return what `findings` does, of everything that can be read, and what cannot, in the report's order.

    Raises DataError only when the whole is no report in schema v2.
    """
    found, faults = [], []
    for place, result in enumerate(_listed(report, "results", "the report")):
        where = f"results[{place}]"
        try:
            listed = _listed(result, "findings", where)
        except DataError as error:
            faults.append(FindingFault(where, str(error)))
            continue
        for number, finding in enumerate(listed):
            if fault := _fault(f"{where}.findings[{number}]", finding):
                faults.append(fault)
            else:
                own = {"scanner": str(result.get("scanner") or ""), "severity": severity_of(finding.get("severity"))}
                found.append({**finding, **own})
    return sorted(found, key=_severity), faults


def _fault(where: str, finding: Any) -> FindingFault | None:
    said = finding if isinstance(finding, dict) else {}
    if not isinstance(said.get("title"), str):
        message = f"{where} is no finding; expected an object with `id`, `title`, `severity`"
    elif not isinstance(said.get("metadata") or {}, dict):
        message = f"{where}.metadata is no object; expected names and values"
    elif _nested_deeper(said, DEEPEST):
        message = f"{where} is nested more than {DEEPEST} levels deep; expected a finding as the scanner writes them"
    else:
        return None
    own = {key: said[key] if isinstance(said.get(key), str) else "" for key in ("id", "title")}
    return FindingFault(where, message, finding_id=own["id"], title=own["title"], severity=severity_of(said.get("severity")))


def severity_of(value: Any) -> str:
    """Return a severity as all code compares it: `" Critical "` is critical, what is no text is empty, other words stay."""
    return value.strip().lower() if isinstance(value, str) else ""


def document(finding: Mapping[str, Any]) -> Document:
    """Return a finding as the document that prompts are made from, its scanner as the source."""
    return replace(finding_document(finding), source=str(finding.get("scanner", "")))


def _listed(holder: Any, key: str, where: str) -> list[Any]:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(value, list):
        got = f"no list `{key}`" if isinstance(holder, Mapping) else f"{type(holder).__name__} instead of an object"
        raise DataError(f"{where} has {got}; expected a scan report in schema v2, as `sys-scan --output` writes it")
    return value


def _repaired(written: bytes) -> str:
    """Return JSON with U+FFFD for bytes that are no UTF-8 and for escapes of half a character."""
    text = written.decode("utf-8", "replace")
    return _ESCAPE.sub(lambda escape: "\\ufffd" if escape[1] else escape[0], text)


def _nested_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        held = (
            thing.values() if isinstance(thing, dict) else thing for thing in layer if isinstance(thing, (dict, list, tuple))
        )
        layer = list({id(inner): inner for inners in held for inner in inners}.values())
        if not layer:
            return False
    return True


def _severity(finding: Mapping[str, Any]) -> tuple[int, float]:
    severity = finding["severity"]
    rank = SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)
    try:
        score = float(finding.get("base_severity_score", 0))
    except (TypeError, ValueError, OverflowError):
        return rank, 0.0
    return rank, -score if isfinite(score) else 0.0
