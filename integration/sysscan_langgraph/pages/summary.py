"""The analysis for a terminal: counts, the summary, the worst findings with their evidence, what was left out.

What findings and models say is spelt by `spelling`, so that nothing in it steers the terminal; rich interprets no markup in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from sysscan_langgraph.pages import figures
from sysscan_langgraph.pages.spelling import counted, cut, duration, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sysscan_langgraph.analysis.records import AnalysisReport, Point

COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "blue", "info": "bright_black"}
BAR = 32
"""Columns of the longest bar."""
LINES_OF_EVIDENCE = 8
SHOWN_ALIASES = 8
SHOWN_ROWS = 10
"""Correlations, gaps and warnings that are shown; the others are counted."""


def as_text(report: AnalysisReport, *, width: int = 100, colour: bool = False, top: int = 5) -> str:
    """Return the report as text of at most `width` columns, with the `top` worst findings; `colour` is for terminals."""
    from rich.console import Console

    screen = Console(
        file=StringIO(), width=width, force_terminal=colour, color_system="standard" if colour else None, legacy_windows=False
    )
    with screen.capture() as captured:
        for part in _parts(report, top):
            screen.print(part, markup=False, highlight=False, emoji=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _parts(report: AnalysisReport, top: int) -> Iterator[RenderableType]:
    yield _title(f"Security analysis of {one_line(report.host, 80) or 'an unnamed host'}")
    if report.scanned:
        yield f"scanned: {one_line(report.scanned)}"
    yield f"{counted(len(report.analyses), 'finding')} analysed in {duration(report.seconds)}"
    yield ""
    yield _severities(report)
    yield from _section("Executive summary", [_prose(report.executive_summary or "The generalist wrote none.")])
    yield from _section("Key findings", _points(report.key_findings))
    yield from _section("Recommendations", _points(report.recommendations))
    yield from _findings(report, top)
    yield from _section("Correlations", _correlations(report))
    yield from _section("Compliance gaps", _gaps(report))
    yield from _section("Left out", _left_out(report))
    yield from _section("Warnings", _warnings(report))
    yield from _section("About", _about(report))


def _severities(report: AnalysisReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bright_black")
    for name in ("severity", "", "rated", "specialist", "scanner"):
        table.add_column(name, justify="left" if name in ("severity", "") else "right", no_wrap=True)
    counts = figures.severity_counts(report)
    longest = max([count.rated for count in counts] + [1])
    for count in counts:
        colour = COLOURS[count.severity]
        bar = "\u2588" * max(round(BAR * count.rated / longest), bool(count.rated))
        cells = (str(number) for number in (count.rated, count.specialist, count.scanner))
        table.add_row(Text(count.severity, colour), Text(bar.ljust(BAR), colour), *cells)
    return table


def _findings(report: AnalysisReport, top: int) -> Iterator[RenderableType]:
    groups = figures.groups(report)
    shown = groups[:top]
    if not shown:
        return
    yield ""
    yield _title("The finding" if len(groups) == 1 else f"The {len(shown)} worst of {len(groups)} different findings")
    for group in shown:
        yield from _finding(group)


def _finding(group: figures.Group) -> Iterator[RenderableType]:
    from rich.text import Text

    lead = group.lead
    yield ""
    yield Text.assemble((group.severity.upper(), COLOURS[group.severity]), f"  {lead.alias}  ", (one_line(lead.title), "bold"))
    facts = [one_line(lead.scanner, 40), one_line(lead.finding_id, 120)]
    facts += [f"risk {lead.risk_score}"] if lead.risk_score is not None else []
    facts += [one_line(text, 40) for text in (*lead.techniques, *lead.controls)]
    if lead.severity != lead.reported_severity:
        facts.append(f"specialist: {lead.severity}, scanner: {one_line(lead.reported_severity, 20) or 'nothing'}")
    if group.others:
        facts.append(f"the same: {_aliases([other.alias for other in group.others])}")
    if lead.finish_reason != "stop":
        facts.append(f"the answer is not finished ({one_line(lead.finish_reason, 40)})")
    yield _indented(" · ".join(fact for fact in facts if fact), style="bright_black")
    yield _indented(_prose(lead.analysis or "The specialist gave no analysis."))
    if lead.evidence:
        lines = [one_line(line, 300) for text in lead.evidence for line in text.splitlines() if line.strip()]
        more = [f"({len(lines) - LINES_OF_EVIDENCE} more lines)"] if len(lines) > LINES_OF_EVIDENCE else []
        yield _indented("evidence:", style="bright_black")
        yield _indented("\n".join(lines[:LINES_OF_EVIDENCE] + more), by=4)
    if lead.remediation:
        yield _indented("remediation:", style="bright_black")
        yield _indented("\n".join(f"{number}. {one_line(text, 400)}" for number, text in enumerate(lead.remediation, 1)), by=4)


def _points(points: Sequence[Point]) -> list[str]:
    return [f"{number}. {one_line(point.text, 600)}{_named(point.aliases)}" for number, point in enumerate(points, 1)]


def _correlations(report: AnalysisReport) -> list[str]:
    lines = []
    for severity, one in figures.correlations(report)[:SHOWN_ROWS]:
        shared = f"the same {one_line(one.kind, 40)}: {one_line(one.value, 80)}"
        lines.append(f"{one_line(one.id, 20)} {severity}: {one_line(one.title)} ({shared}){_named(one.aliases)}")
        lines += [f"   {one_line(one.rationale, 400)}"] if one.rationale else []
    return lines + _more(len(report.correlations), "correlation")


def _gaps(report: AnalysisReport) -> list[str]:
    gaps = [gap for _, gaps in figures.gaps_by_standard(report) for gap in gaps]
    lines = [
        f"{one_line(gap.standard, 60)} {one_line(gap.control, 80)}: {severity}{_named(gap.aliases)}"
        for severity, gap in gaps[:SHOWN_ROWS]
    ]
    return lines + _more(len(gaps), "gap")


def _left_out(report: AnalysisReport) -> list[str]:
    lines = []
    for reason, findings in figures.left_out_by_reason(report):
        named = _aliases([finding.alias or one_line(finding.finding_id, 60) for finding in findings])
        lines.append(f"{counted(len(findings), 'finding')}, {one_line(reason)}: {named}")
    return lines


def _warnings(report: AnalysisReport) -> list[str]:
    lines = [
        f"{one_line(one.stage, 40)}: {one_line(one.message, 400)}{_named([one.finding_id] if one.finding_id else [])}"
        for one in report.warnings[:SHOWN_ROWS]
    ]
    return lines + _more(len(report.warnings), "warning")


def _about(report: AnalysisReport) -> list[str]:
    models = [f"{one_line(role, 40)}: {one_line(name, 80)}" for role, name in report.models.items()]
    tokens = f"{report.tokens_prompt:,} tokens read, {report.tokens_completion:,} written"
    return [*models, tokens, "Written by language models, which can be wrong: check the evidence before you act on it."]


def _more(count: int, noun: str) -> list[str]:
    return [f"and {counted(count - SHOWN_ROWS, f'more {noun}')}"] if count > SHOWN_ROWS else []


def _section(title: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    if lines:
        yield ""
        yield _title(title)
        yield from (_indented(line) for line in lines)


def _title(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, "bold")


def _indented(text: str, *, by: int = 2, style: str = "") -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text, style), (0, 0, 0, by))


def _prose(text: str) -> str:
    return "\n".join(line for line in cut(text, 3000).expandtabs(4).split("\n") if line.strip())


def _named(aliases: Sequence[str]) -> str:
    return f"  [{_aliases(aliases)}]" if aliases else ""


def _aliases(aliases: Sequence[str]) -> str:
    more = f" and {len(aliases) - SHOWN_ALIASES} more" if len(aliases) > SHOWN_ALIASES else ""
    return ", ".join(one_line(alias, 60) for alias in aliases[:SHOWN_ALIASES]) + more
