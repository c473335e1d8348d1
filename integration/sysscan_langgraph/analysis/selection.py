"""Which findings of a report are analysed, and what they are called: F1, F2, ..., the most severe first.

A finding becomes an entry, plain JSON: what the specialist is shown, and what findings may share (paths, users, processes). A
finding that cannot be read is told and left out; it never stops the others. Nothing here asks a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sysscan_langgraph.analysis.records import AnalysisWarning, LeftOut
from sysscan_models.errors import UserError, unknown_name
from sysscan_models.prompts import redact, redact_deep, user_turn
from sysscan_models.redaction import home_users
from sysscan_models.scan_report import SEVERITIES, document, readable_findings

Entry = dict[str, Any]
"""`alias`, `finding_id`, `scanner`, `title`, `severity` (as reported), `text` (the turn that asks about it), `same_as` (alias
of the entry whose text is the same, or empty), `shares` (pairs of a kind and a value)."""

_PATH = re.compile(r"/[^\s:'\"|;,]{1,250}")
_PROCESS_KEYS, _USER_KEYS, _ADDRESS_KEYS = ("pid", "ppid"), ("user", "username", "uid", "owner"), ("dst_ip", "rip", "ip")
_SHARED_BY_ALL = {"", "0", "1", "root", "0.0.0.0", "::", "127.0.0.1", "::1", "none", "unknown", "-"}  # noqa: S104


@dataclass(frozen=True)
class Selection:
    """The findings that are analysed, and all that are not."""

    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[AnalysisWarning, ...]


def checked_selection(min_severity: str, max_findings: int | None) -> None:
    """Raise UserError for a severity that does not exist or a number of findings that is none."""
    if min_severity not in SEVERITIES:
        raise UserError(unknown_name("severity", min_severity, SEVERITIES))
    if max_findings is not None and max_findings < 1:
        raise UserError(f"max_findings is {max_findings}; expected 1 or more, or None for all")


def select(report: Any, min_severity: str = "info", max_findings: int | None = None) -> Selection:
    """Choose the findings of a report (schema v2); raise DataError when it is none."""
    found, faults = readable_findings(report)
    left_out = [
        LeftOut(
            alias="",
            finding_id=_clean(fault.finding_id or fault.where),
            title=_clean(redact(fault.title)),
            severity=_clean(redact(fault.severity)),
            reason="failed",
        )
        for fault in faults
    ]
    warnings = [
        AnalysisWarning(stage="select", message=fault.message, finding_id=_clean(fault.finding_id or fault.where))
        for fault in faults
    ]
    entries: list[Entry] = []
    asked: dict[str, str] = {}
    lowest = SEVERITIES.index(min_severity)
    for number, finding in enumerate(found, 1):
        try:
            entry = _entry(f"F{number}", finding)
        except Exception as error:  # noqa: BLE001 - whatever a finding holds, it is one warning
            entry = {"alias": f"F{number}", "finding_id": _clean(str(finding.get("id", "")))}
            entry |= {key: _clean(redact(finding[key])) for key in ("title", "severity")}
            reason, told = "failed", f"the finding cannot be shown to a model ({type(error).__name__}: {error})"
            warnings.append(AnalysisWarning(stage="select", message=_clean(told), finding_id=entry["finding_id"]))
        else:
            reason = _passed_over(entry, lowest, min_severity, max_findings, len(entries))
        if reason:
            left_out.append(left(entry, reason))
        else:
            entry["same_as"] = asked.get(entry["text"], "")
            asked.setdefault(entry["text"], entry["alias"])
            entries.append(entry)
    return Selection(tuple(entries), tuple(left_out), tuple(warnings))


def left(entry: Entry, reason: str) -> LeftOut:
    """Return the record of an entry that was not analysed."""
    return LeftOut(**{name: entry[name] for name in ("alias", "finding_id", "title", "severity")}, reason=reason)


def rank(severity: str) -> int:
    """Return the place of a severity, 0 for critical; what is none counts as the least."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES) - 1


def _passed_over(entry: Entry, lowest: int, min_severity: str, max_findings: int | None, taken: int) -> str:
    if rank(entry["severity"]) > lowest:
        return f"less severe than {min_severity} (min_severity)"
    return f"beyond the {max_findings} most severe (max_findings)" if max_findings is not None and taken >= max_findings else ""


def _entry(alias: str, finding: Mapping[str, Any]) -> Entry:
    shown = document(finding)
    return {
        "alias": alias,
        "finding_id": _clean(shown.id),
        "scanner": _clean(shown.source),
        "title": _clean(redact(shown.title)),
        "severity": _clean(redact(finding["severity"])),
        "text": _clean(user_turn(shown.title, shown.description)),
        "same_as": "",
        "shares": [list(share) for share in dict.fromkeys(_shares(finding))],
    }


def _shares(finding: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a finding may have in common with others, as kinds and values: without secrets, each on one line.

    Users keep their names, by which findings are compared; whatever shows a value passes it through `redact` first.
    """
    metadata = {str(key).lower(): _flat(value) for key, value in (finding.get("metadata") or {}).items()}
    own_id = _flat(finding.get("id", ""))
    paths = list(dict.fromkeys(_paths([own_id, *metadata.values()])))
    yield from (("path", path) for path in paths)
    homes = (name for path in paths for name in home_users(path))
    names = [f"uid {metadata[key]}" if key == "uid" else metadata[key] for key in _USER_KEYS if _tells(metadata.get(key))]
    yield from (("user", name) for name in (*names, *homes))
    yield from (("process", f"pid {metadata[key]}") for key in _PROCESS_KEYS if _tells(metadata.get(key)))
    yield from (("address", metadata[key]) for key in _ADDRESS_KEYS if _tells(metadata.get(key)))
    kind = metadata.get("rule") or _pattern(_flat(finding["title"]), own_id)
    yield "scanner", f"{_flat(finding.get('scanner', ''))}: {kind}"[:160]


def _paths(texts: Iterable[str]) -> Iterator[str]:
    """Yield the paths that texts begin with; a bare slash is none."""
    for text in texts:
        found = _PATH.match(text)
        if found and len(found[0].rstrip("/")) > 1:
            yield found[0].rstrip("/")


def _tells(value: str | None) -> bool:
    return value is not None and value.lower() not in _SHARED_BY_ALL and len(value) <= 64


def _pattern(title: str, finding_id: str) -> str:
    """Return a title without what differs from one finding of its kind to the next."""
    without_id = title.replace(finding_id, "…") if finding_id else title
    return re.sub(r"\d+", "#", without_id)


def _flat(value: Any) -> str:
    """Return a value as one line without secrets; before anything of it is cut or replaced, as half a secret is not known."""
    return " ".join(_clean(str(redact_deep(value, people=False))).split())


def _clean(text: str) -> str:
    """Return text that every encoder takes: half characters, which JSON may hold, become question marks."""
    return text.encode("utf-8", "replace").decode()
