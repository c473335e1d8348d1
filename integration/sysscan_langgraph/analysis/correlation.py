"""Findings that belong together: those that share a technique, a path, a user, a process, an address, a control or a kind.

Which ones belong together follows from the analyses and the report alone; a model is only asked why, by who calls this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sysscan_langgraph.analysis.compliance import controls_of
from sysscan_langgraph.analysis.records import Correlation, FindingAnalysis
from sysscan_langgraph.analysis.selection import rank
from sysscan_langgraph.analysis.summary import finding_line

MOST = 30
"""Correlations of one report."""
SHOWN = 8
"""Findings of a group that a question shows."""
_WORDS = {
    "process": "concern the process {}",
    "technique": "point to {}",
    "path": "concern {}",
    "user": "concern the user {}",
    "address": "concern the address {}",
    "control": "speak against {}",
    "scanner": "are of one kind ({})",
}
"""What findings may share, the most telling first, and how it is said."""
_KINDS = tuple(_WORDS)

Shares = Mapping[str, Sequence[Sequence[str]]]
"""Alias -> pairs of a kind and a value, as `selection.Entry` holds them."""


def correlate(analyses: Sequence[FindingAnalysis], shares: Shares) -> list[Correlation]:
    """Return the groups of two findings or more, the most severe first; of two groups of the same findings the more telling."""
    groups: dict[tuple[str, str], list[FindingAnalysis]] = {}
    for analysis in analyses:
        own = [("technique", technique) for technique in analysis.techniques]
        own += [("control", " ".join(control)) for control in controls_of(analysis.controls)]
        for kind, value in dict.fromkeys([*own, *((kind, value) for kind, value in shares.get(analysis.alias, ()))]):
            groups.setdefault((kind, value), []).append(analysis)
    told: dict[tuple[str, ...], tuple[str, str]] = {}
    for (kind, value), members in sorted(groups.items(), key=lambda group: (_KINDS.index(group[0][0]), group[0][1])):
        aliases = tuple(member.alias for member in members)
        if len(aliases) > 1 and aliases not in told:
            told[aliases] = (kind, value)
    ordered = sorted((groups[key] for key in told.values()), key=lambda members: rank(_worst(members).severity))
    named = {id(groups[key]): key for key in told.values()}
    return [_correlation(f"C{number}", *named[id(members)], members) for number, members in enumerate(ordered[:MOST], 1)]


def questions(groups: Sequence[Correlation], analyses: Sequence[FindingAnalysis]) -> list[str]:
    """Return the turns that ask why the findings of each group belong together; names and paths are not told again."""
    lines = {analysis.alias: finding_line(analysis) for analysis in analyses if not analysis.same_as}
    return [_question(group, [lines[alias] for alias in group.aliases if alias in lines]) for group in groups]


def worth_asking(groups: Sequence[Correlation], most: int) -> list[Correlation]:
    """Return the first few groups, as they are ordered, without those that only inform."""
    return [group for group in groups if group.severity != "info"][:most]


def _question(group: Correlation, lines: Sequence[str]) -> str:
    shared = (
        group.value
        if group.kind in ("technique", "control")
        else f"the same {'kind' if group.kind == 'scanner' else group.kind}"
    )
    return "\n".join([f"Findings of one host that share {shared}", "", *lines[:SHOWN]])


def _correlation(name: str, kind: str, value: str, members: Sequence[FindingAnalysis]) -> Correlation:
    return Correlation(
        id=name,
        kind=kind,
        value=value,
        title=f"{len(members)} findings {_WORDS[kind].format(value)}",
        severity=_worst(members).severity,
        finding_ids=tuple(member.finding_id for member in members),
        aliases=tuple(member.alias for member in members),
    )


def _worst(members: Sequence[FindingAnalysis]) -> FindingAnalysis:
    return min(members, key=lambda member: rank(member.severity))
