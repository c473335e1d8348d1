"""What the generalist is told about the analyses, and the summary that stands where it says nothing.

Findings are told by alias, title, severity and the first sentence of their analysis, the most severe first, as many as there is
room for. Ids are never told, nor who a user is, by account or by a home in a path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sysscan_langgraph.analysis.records import Correlation, FindingAnalysis, LeftOut, Point
from sysscan_langgraph.analysis.schemas import POINTS
from sysscan_langgraph.analysis.selection import rank
from sysscan_models.prompts import redact
from sysscan_models.scan_report import SEVERITIES

MOST_TOLD, MOST_SHARED = 24, 5
"""Findings and correlations that a summary is made from."""
LINE = 200
"""Characters of a finding's line."""

_SENTENCE = re.compile(r"\s*(.+?(?:[.!?](?=\s|$)|$))", re.DOTALL)


@dataclass(frozen=True)
class Told:
    """The turn for the generalist, and the aliases of the findings in it."""

    text: str
    aliases: tuple[str, ...]


def finding_line(analysis: FindingAnalysis, alike: int = 0) -> str:
    """Return one finding in one line."""
    marks = analysis.severity if analysis.risk_score is None else f"{analysis.severity}, risk {analysis.risk_score}"
    more = f" (and {alike} alike)" if alike else ""
    line = f"{analysis.alias} [{marks}] {_short(analysis.title, 80)}{more}: {_first_sentence(analysis.analysis)}"
    return redact(_short(line.rstrip(": "), LINE))


def tell_findings(
    analyses: Sequence[FindingAnalysis],
    correlations: Sequence[Correlation],
    left_out: Sequence[LeftOut],
    fits: Callable[[str], bool],
) -> Told:
    """Return what the generalist is told; `fits` says whether a turn leaves room for the answer."""
    alike = Counter(analysis.same_as for analysis in analyses if analysis.same_as)
    ordered = [analysis for analysis in by_importance(analyses) if not analysis.same_as][:MOST_TOLD]
    shared = [_shared_line(group) for group in correlations if _telling(group)]
    while True:
        lines = [finding_line(analysis, alike[analysis.alias]) for analysis in ordered]
        text = "\n".join([*_head(analyses, left_out), *lines, *shared[:MOST_SHARED]])
        if len(ordered) <= 1 or fits(text):
            return Told(text, tuple(analysis.alias for analysis in ordered))
        ordered, shared = ordered[: len(ordered) * 3 // 4], shared[: len(shared) // 2]


def by_importance(analyses: Sequence[FindingAnalysis]) -> list[FindingAnalysis]:
    """Return analyses by what the specialist says, the most severe and risky first; else in their order."""
    return sorted(analyses, key=lambda analysis: (rank(analysis.severity), -(analysis.risk_score or 0)))


def counts(severities: Sequence[str]) -> str:
    """Return how many there are of each severity, in words; empty for none."""
    number = Counter(severities)
    return ", ".join(f"{number[severity]} {severity}" for severity in SEVERITIES if number[severity])


def plain_summary(analyses: Sequence[FindingAnalysis], left_out: Sequence[LeftOut], reason: str) -> str:
    """Return a summary that no model wrote, and that says so."""
    head = f"This summary was put together without the generalist ({reason})."
    if not analyses:
        return f"{head} No finding was analysed{f'; {len(left_out)} were left out' if left_out else ''}."
    told = f"{_many(len(analyses), 'finding')} analysed: {counts([analysis.severity for analysis in analyses])}."
    missing = f" {_many(len(left_out), 'finding')} left out." if left_out else ""
    top = ", ".join(f"{analysis.alias} {_short(analysis.title, 80)} ({analysis.severity})" for analysis in _top(analyses)[:3])
    return f"{head} {told}{missing} Most severe: {top}."


def plain_points(analyses: Sequence[FindingAnalysis]) -> tuple[list[Point], list[Point]]:
    """Return key findings and recommendations in the specialist's words."""
    top = _top(analyses)
    key = [_point(analysis, f"{_short(analysis.title, 80)}: {_first_sentence(analysis.analysis)}") for analysis in top]
    return key, [_point(analysis, analysis.remediation[0]) for analysis in top if analysis.remediation]


def _top(analyses: Sequence[FindingAnalysis]) -> list[FindingAnalysis]:
    return [analysis for analysis in by_importance(analyses) if not analysis.same_as][:POINTS]


def _point(analysis: FindingAnalysis, text: str) -> Point:
    return Point(text=text.rstrip(": "), finding_ids=(analysis.finding_id,), aliases=(analysis.alias,))


def _head(analyses: Sequence[FindingAnalysis], left_out: Sequence[LeftOut]) -> list[str]:
    missing: Mapping[str, int] = Counter(left.reason for left in left_out)
    head = ["Report on the scan of a Linux host", ""]
    head.append(f"{_many(len(analyses), 'finding')} analysed: {counts([analysis.severity for analysis in analyses])}.")
    head += [f"{_many(number, 'finding')} left out: {reason}." for reason, number in missing.items()]
    return [*head, "Begin each point with the findings it rests on, such as F1, F3: ...", ""]


def _many(number: int, what: str) -> str:
    return f"{number} {what} was" if number == 1 else f"{number} {what}s were"


def _shared_line(group: Correlation) -> str:
    title = f"{group.title.removesuffix(group.value)}[USER]" if group.kind == "user" else group.title
    return redact(f"{group.id}: {_short(title, LINE)}: {', '.join(group.aliases[:6])}")


def _telling(group: Correlation) -> bool:
    return group.kind != "scanner"


def _first_sentence(text: str) -> str:
    found = _SENTENCE.match(text)
    return _short(found[1], 140) if found else ""


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"
