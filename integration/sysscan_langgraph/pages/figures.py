"""What the formats count and order: ratings, bars by severity, technique and control, groups of equal findings.

A finding is rated by the worse of what the specialist and the scanner say, here and for exit codes: a weak model cannot hide
a finding, and a scanner's low severity does not hide what the specialist saw in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sysscan_models.prompts import Severity
from sysscan_models.scan_report import SEVERITIES

if TYPE_CHECKING:
    from sysscan_langgraph.analysis.records import AnalysisReport, ComplianceGap, Correlation, FindingAnalysis, LeftOut

UNKNOWN = len(SEVERITIES)
"""Rank of a severity that is none of the five."""


def rank(severity: str) -> int:
    """Return 0 for critical ... 4 for info, and `UNKNOWN` for anything else."""
    severity = severity.strip().lower()
    return SEVERITIES.index(severity) if severity in SEVERITIES else UNKNOWN


def rating(analysis: FindingAnalysis) -> Severity:
    """Return the worse of the specialist's and the scanner's severity."""
    return worst([analysis.severity, analysis.reported_severity])


def worst(severities: Iterable[str]) -> Severity:
    """Return the worst of some severities, info when none of them is one."""
    found = min(map(rank, severities), default=UNKNOWN)
    return cast("Severity", SEVERITIES[min(found, UNKNOWN - 1)])


def order(analysis: FindingAnalysis) -> tuple[int, int]:
    """Return the key that sorts the worst first: by rating, then by risk score."""
    return rank(rating(analysis)), -(analysis.risk_score if analysis.risk_score is not None else -1)


@dataclass(frozen=True)
class SeverityCount:
    """How many findings have a severity: by the rating, by the specialist alone and by the scanner alone."""

    severity: str
    rated: int
    specialist: int
    scanner: int


def severity_counts(report: AnalysisReport) -> list[SeverityCount]:
    """Return a count for each of the five severities, the worst first."""
    rated = Counter(rating(analysis) for analysis in report.analyses)
    said = Counter(analysis.severity for analysis in report.analyses)
    scanned = Counter(rank(analysis.reported_severity) for analysis in report.analyses)
    return [
        SeverityCount(name, rated[cast("Severity", name)], said[cast("Severity", name)], scanned[place])
        for place, name in enumerate(SEVERITIES)
    ]


@dataclass(frozen=True)
class Bar:
    """A thing that findings share, such as a technique. `severity` is the worst of theirs."""

    label: str
    aliases: tuple[str, ...]
    severity: Severity

    @property
    def count(self) -> int:
        """How many findings share it."""
        return len(self.aliases)


def by_technique(report: AnalysisReport) -> list[Bar]:
    """Return the techniques that the specialist named, the most frequent first."""
    return _bars(report, {analysis.alias: analysis.techniques for analysis in report.analyses})


def by_control(report: AnalysisReport) -> list[Bar]:
    """Return the controls that the specialist named, the most frequent first."""
    return _bars(report, {analysis.alias: analysis.controls for analysis in report.analyses})


def _bars(report: AnalysisReport, labels: Mapping[str, Sequence[str]]) -> list[Bar]:
    ratings = _ratings(report)
    holders: dict[str, list[str]] = defaultdict(list)
    for alias, named in labels.items():
        for label in dict.fromkeys(text for name in named if (text := " ".join(name.split()))):
            holders[label].append(alias)
    bars = [Bar(label, tuple(aliases), worst(ratings[alias] for alias in aliases)) for label, aliases in holders.items()]
    return sorted(bars, key=lambda bar: (-bar.count, rank(bar.severity), bar.label))


@dataclass(frozen=True)
class Group:
    """A finding that was asked about, and those with the same prompt, which share its answer."""

    lead: FindingAnalysis
    others: tuple[FindingAnalysis, ...]
    severity: Severity
    """The worst rating in the group."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """The lead's alias and the others'."""
        return (self.lead.alias, *(other.alias for other in self.others))


def groups(report: AnalysisReport) -> list[Group]:
    """Return the findings, equal ones together, the worst first."""
    members: dict[str, list[FindingAnalysis]] = defaultdict(list)
    for analysis in report.analyses:
        members[analysis.same_as or analysis.alias].append(analysis)
    found = []
    for alias, equal in members.items():
        lead = next((analysis for analysis in equal if analysis.alias == alias), equal[0])
        others = tuple(analysis for analysis in equal if analysis is not lead)
        found.append(Group(lead, others, worst(map(rating, equal))))
    return sorted(found, key=lambda group: (rank(group.severity), order(group.lead)))


def correlations(report: AnalysisReport) -> list[tuple[Severity, Correlation]]:
    """Return the correlations with their ratings, the worst first."""
    ratings = _ratings(report)
    rated = [(_rated(one, ratings), one) for one in report.correlations]
    return sorted(rated, key=lambda one: rank(one[0]))


def gaps_by_standard(report: AnalysisReport) -> list[tuple[str, list[tuple[Severity, ComplianceGap]]]]:
    """Return the compliance gaps of each standard with their ratings, the worst gap of each first."""
    ratings = _ratings(report)
    gaps: dict[str, list[tuple[Severity, ComplianceGap]]] = defaultdict(list)
    for gap in report.compliance_gaps:
        gaps[gap.standard].append((_rated(gap, ratings), gap))
    return [(standard, sorted(of_it, key=lambda one: rank(one[0]))) for standard, of_it in gaps.items()]


def _ratings(report: AnalysisReport) -> dict[str, Severity]:
    return {analysis.alias: rating(analysis) for analysis in report.analyses}


def _rated(held: Correlation | ComplianceGap, ratings: Mapping[str, Severity]) -> Severity:
    """Return the worst rating of the findings that something rests on; what it says itself where none of them is there."""
    known = [ratings[alias] for alias in held.aliases if alias in ratings]
    return worst(known) if known else held.severity


def left_out_by_reason(report: AnalysisReport) -> list[tuple[str, list[LeftOut]]]:
    """Return the findings that were not analysed, by reason."""
    reasons: dict[str, list[LeftOut]] = defaultdict(list)
    for finding in report.left_out:
        reasons[finding.reason].append(finding)
    return list(reasons.items())


def at_least(report: AnalysisReport, severity: str) -> list[tuple[str, str]]:
    """Return severity and title of the findings that are at least so severe, the worst first.

    Analysed ones go by their rating, others by the scanner's word: a finding that was left out counts, so that neither a time
    budget nor a failure lets one pass.
    """
    limit = rank(severity)
    rated: list[tuple[str, str]] = [(rating(analysis), analysis.title) for analysis in report.analyses]
    rated += [(finding.severity.strip().lower(), finding.title) for finding in report.left_out]
    return sorted(((found, title) for found, title in rated if rank(found) <= limit), key=lambda one: rank(one[0]))
