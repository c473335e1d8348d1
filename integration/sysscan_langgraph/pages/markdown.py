"""The analysis as Markdown (CommonMark with GitHub's tables), from which nothing that a finding or a model says breaks out.

Prose is escaped, so that it makes no heading, list, link, image, mathematics or HTML, and calls nobody where GitHub shows it;
evidence stands in a fence that is longer than any in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sysscan_langgraph.pages import figures, spelling

if TYPE_CHECKING:
    from sysscan_langgraph.analysis.records import AnalysisReport, Point

_ANYWHERE = re.compile(
    r"(@(?=\w)|(?<!&)#(?=\d)|\b[Gg][Hh]-(?=\d))"  # somebody's name or an issue's number
    r"|[\\`*\[\]<|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w)|:(?=//)|(?<=(?i:www))\."
)
_NOTHING = "&#8203;"
"""A space without width: GitHub looks for names and issues in what is shown, where a backslash is no more."""
_AT_START = re.compile(r"^(\s*)(?:([#=+>-])|(\d{1,9})([.)])(?=\s|$))")


def as_markdown(report: AnalysisReport) -> str:
    """Return the report as Markdown."""
    parts = [_head(report), _severities(report), *_points("Key findings", report.key_findings)]
    parts += _points("Recommendations", report.recommendations)
    parts += _bars("Findings by technique", figures.by_technique(report))
    parts += _bars("Findings by control", figures.by_control(report))
    parts += [
        *_correlations(report),
        *_gaps(report),
        *_findings(report),
        *_left_out(report),
        *_warnings(report),
        _about(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str, longest: int = 2000) -> str:
    """Return text as one line of Markdown that shows it as it is, cut to `longest` characters."""
    line = _ANYWHERE.sub(
        lambda match: f"{match[1]}{_NOTHING}" if match[1] else f"\\{match[0]}", spelling.one_line(text, longest)
    )
    return _AT_START.sub(lambda match: f"{match[1]}\\{match[2]}" if match[2] else f"{match[1]}{match[3]}\\{match[4]}", line)


def fenced(text: str) -> str:
    """Return text in a fence that nothing in it closes."""
    text = spelling.cut(text, 4000)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _prose(text: str) -> str:
    return "\n\n".join(escaped(line) for line in spelling.cut(text, 6000).split("\n") if line.strip())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _aliases(aliases: Sequence[str], shown: int = 12) -> str:
    more = f" and {len(aliases) - shown} more" if len(aliases) > shown else ""
    return ", ".join(escaped(alias, 20) for alias in aliases[:shown]) + more


def _head(report: AnalysisReport) -> str:
    host = escaped(report.host, 120) or "an unnamed host"
    scanned = f"Scanned: {escaped(report.scanned, 200)}\n\n" if report.scanned else ""
    summary = _prose(report.executive_summary) or "The generalist wrote none."
    return f"# Security analysis of {host}\n\n{scanned}## Executive summary\n\n{summary}"


def _severities(report: AnalysisReport) -> str:
    rows = [[c.severity, str(c.rated), str(c.specialist), str(c.scanner)] for c in figures.severity_counts(report)]
    table = _table(["Severity", "Rated", "Specialist", "Scanner"], rows)
    return f"## Findings by severity\n\nRated by the worse of what the specialist and the scanner say.\n\n{table}"


def _points(title: str, points: Sequence[Point]) -> list[str]:
    lines = [f"{n}. {escaped(point.text)}{_rests_on(point)}" for n, point in enumerate(points, 1)]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _rests_on(point: Point) -> str:
    return f" ({_aliases(point.aliases)})" if point.aliases else ""


def _bars(title: str, bars: Sequence[figures.Bar]) -> list[str]:
    rows = [[escaped(bar.label, 120), str(bar.count), bar.severity, _aliases(bar.aliases)] for bar in bars]
    return [f"## {title}", _table(["", "Findings", "Worst", "Which"], rows)] if rows else []


def _correlations(report: AnalysisReport) -> Iterator[str]:
    if report.correlations:
        yield "## Correlations"
    for severity, one in figures.correlations(report):
        yield f"### {escaped(one.id, 20)}: {escaped(one.title, 300)} ({severity})"
        yield f"The same {escaped(one.kind, 40)}: {escaped(one.value, 200)}. Findings: {_aliases(one.aliases)}."
        yield _prose(one.rationale)


def _gaps(report: AnalysisReport) -> Iterator[str]:
    if report.compliance_gaps:
        yield "## Compliance gaps"
    for standard, gaps in figures.gaps_by_standard(report):
        rows = [
            [
                escaped(gap.control, 120),
                severity,
                _aliases(gap.aliases),
                " ".join(escaped(text, 500) for text in gap.remediation),
            ]
            for severity, gap in gaps
        ]
        yield f"### {escaped(standard, 80)}"
        yield _table(["Control", "Severity", "Findings", "Remediation"], rows)


def _findings(report: AnalysisReport) -> Iterator[str]:
    yield "## Findings"
    if not report.analyses:
        yield "No finding was analysed."
    for group in figures.groups(report):
        yield from _finding(group)


def _finding(group: figures.Group) -> Iterator[str]:
    lead = group.lead
    risk = f", risk {lead.risk_score}" if lead.risk_score is not None else ""
    yield f"### {escaped(lead.alias, 20)}: {escaped(lead.title, 300) or 'no title'} ({group.severity}{risk})"
    said = f"Specialist: {lead.severity}, scanner: {escaped(lead.reported_severity, 20) or 'nothing'}."
    yield f"Id: {escaped(lead.finding_id, 400)}. Scanner: {escaped(lead.scanner, 60) or 'unknown'}. {said}"
    if lead.finish_reason != "stop":
        yield f"The specialist did not finish this answer ({escaped(lead.finish_reason, 40)})."
    yield _prose(lead.analysis) or "The specialist gave no analysis."
    yield "\n".join(f"- {escaped(text, 1000)}" for text in lead.findings)
    if lead.evidence:
        yield "Evidence:"
        yield fenced("\n".join(lead.evidence))
    if lead.remediation:
        yield "Remediation:"
        yield "\n".join(f"{number}. {escaped(text, 1000)}" for number, text in enumerate(lead.remediation, 1))
    if labels := [*lead.techniques, *lead.controls]:
        yield f"Techniques and controls: {'; '.join(escaped(text, 120) for text in labels)}."
    if group.others:
        others = [f"{escaped(other.alias, 20)} ({escaped(other.finding_id, 200)})" for other in group.others]
        yield f"The same evidence and answer: {'; '.join(others)}."


def _left_out(report: AnalysisReport) -> Iterator[str]:
    if report.left_out:
        yield "## Left out"
    for reason, findings in figures.left_out_by_reason(report):
        rows = [[escaped(one.alias, 20), escaped(one.severity, 20), escaped(one.title, 300)] for one in findings]
        yield f"{spelling.counted(len(findings), 'finding')}: {escaped(reason, 200)}."
        yield _table(["Finding", "Severity", "Title"], rows)


def _warnings(report: AnalysisReport) -> Iterator[str]:
    if report.warnings:
        yield "## Warnings"
        yield "\n".join(
            f"- {escaped(one.stage, 60)}: {escaped(one.message, 1000)} {escaped(one.finding_id, 200)}".rstrip()
            for one in report.warnings
        )


def _about(report: AnalysisReport) -> str:
    lines = [f"- {escaped(role, 60)}: {escaped(name, 200)}" for role, name in report.models.items()]
    lines.append(f"- tokens: {report.tokens_prompt:,} read, {report.tokens_completion:,} written")
    lines.append(f"- time: {spelling.duration(report.seconds)}")
    lines.append("- Written by language models. What they say can be wrong: check the evidence before you act on it.")
    return "\n".join(["## About this analysis", "", *lines])
