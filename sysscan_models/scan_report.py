"""Reading scan reports of Sys-Scan-Graph (schema v2): `{results: [{scanner, findings: [{id, title, severity, ...}]}]}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.documents import Document
from sysscan_models.errors import DataError, UserError
from sysscan_models.prompts import finding_document

SEVERITIES = ("critical", "high", "medium", "low", "info")


def read_report(path: Path) -> Any:
    """Return a report file's JSON; raise UserError when it cannot be read, DataError when it is not JSON."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"report {path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"report {path} is not JSON ({error}); expected a scan report, as `sys-scan --output` writes it"
        ) from error


def findings(report: Any) -> list[dict[str, Any]]:
    """Return a report's findings, the most severe first, each with the name of its scanner as `scanner`.

    Equally severe ones are ordered by their score, then as in the report. Raises DataError when it is no report in schema v2.
    """
    found = []
    for place, result in enumerate(_listed(report, "results", "the report")):
        where = f"results[{place}]"
        for number, finding in enumerate(_listed(result, "findings", where)):
            if not isinstance(finding, dict) or not isinstance(finding.get("title"), str):
                raise DataError(f"{where}.findings[{number}] is no finding; expected an object with `id`, `title`, `severity`")
            if not isinstance(finding.get("metadata") or {}, dict):
                raise DataError(f"{where}.findings[{number}].metadata is no object; expected names and values")
            found.append({**finding, "scanner": str(result.get("scanner", ""))})
    return sorted(found, key=_severity)


def document(finding: Mapping[str, Any]) -> Document:
    """Return a finding as the document that prompts are made from, its scanner as the source."""
    return replace(finding_document(finding), source=str(finding.get("scanner", "")))


def _listed(holder: Any, key: str, where: str) -> list[Any]:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(value, list):
        got = f"no list `{key}`" if isinstance(holder, Mapping) else f"{type(holder).__name__} instead of an object"
        raise DataError(f"{where} has {got}; expected a scan report in schema v2, as `sys-scan --output` writes it")
    return value


def _severity(finding: Mapping[str, Any]) -> tuple[int, float]:
    severity = finding.get("severity")
    rank = SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)
    try:
        return rank, -float(finding.get("base_severity_score", 0))
    except (TypeError, ValueError):
        return rank, 0.0
