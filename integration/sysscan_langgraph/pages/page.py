"""The HTML page: one file with its style inside, which loads nothing and runs nothing.

jinja2 escapes every value, and what would be invisible is spelt out before. Should an escape ever fail, the page's own
Content-Security-Policy still forbids every script, request, form and style but this one stylesheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sysscan_langgraph.pages import figures, spelling
from sysscan_models.errors import MissingExtra
from sysscan_models.scan_report import SEVERITIES

if TYPE_CHECKING:
    from jinja2 import Environment

    from sysscan_langgraph.analysis.records import AnalysisReport

SHOWN_BARS = 10
"""Techniques and controls that are shown at once; the others are a click away."""
SHOWN_LINKS = 8
"""Findings that a line links to; more are counted."""
OPEN_FINDINGS = 5
"""Critical findings that are open at first, and as many high ones."""
FOLDED_FINDINGS = 25
"""More low or info findings than this are folded into one line; a link to one of them unfolds it."""
FILTERED_SCANNERS = 30
"""Scanners that can be chosen; a report made to be awkward could name thousands."""


def as_html(report: AnalysisReport) -> str:
    """Return the page; raise MissingExtra without jinja2."""
    if find_spec("jinja2") is None:
        raise MissingExtra("the HTML page", "jinja2", "langgraph")
    scanners = _scanners(report)
    environment = _environment()
    css = environment.get_template("report.css").render(scanners=len(scanners))
    return environment.get_template("report.html").render(
        report=report,
        css=css,
        policy=_policy(css),
        anchors=_anchors(report),
        counts=figures.severity_counts(report),
        groups=figures.groups(report),
        techniques=figures.by_technique(report),
        controls=figures.by_control(report),
        correlations=figures.correlations(report),
        standards=figures.gaps_by_standard(report),
        left_out=figures.left_out_by_reason(report),
        scanners=scanners,
        in_correlations=_in_correlations(report),
    )


def _scanners(report: AnalysisReport) -> dict[str, int]:
    """Return how many findings each scanner has, the busiest first."""
    return dict(Counter(analysis.scanner for analysis in report.analyses if analysis.scanner).most_common(FILTERED_SCANNERS))


def _anchors(report: AnalysisReport) -> dict[str, str]:
    """Return the id that each alias has on the page; what is not there cannot be linked to."""
    aliases = [analysis.alias for analysis in report.analyses] + [finding.alias for finding in report.left_out]
    return {alias: f"finding-{number}" for number, alias in enumerate(dict.fromkeys(aliases), 1) if alias}


def _in_correlations(report: AnalysisReport) -> dict[str, list[tuple[str, int]]]:
    """Return for each alias the correlations that name it, with their place on the page."""
    places: dict[str, list[tuple[str, int]]] = {}
    for number, (_, correlation) in enumerate(figures.correlations(report), 1):
        for alias in correlation.aliases:
            places.setdefault(alias, []).append((correlation.id, number))
    return places


def _policy(css: str) -> str:
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sysscan_langgraph.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_spelt,
    )
    environment.globals.update(
        severities=SEVERITIES,
        shown_bars=SHOWN_BARS,
        shown_links=SHOWN_LINKS,
        open_findings=OPEN_FINDINGS,
        folded_findings=FOLDED_FINDINGS,
    )
    environment.filters.update(
        cut=spelling.cut,
        one_line=spelling.one_line,
        counted=spelling.counted,
        duration=spelling.duration,
        paragraphs=_paragraphs,
        rating=figures.rating,
        groupby_severity=_by_severity,
        percent=_percent,
    )
    return environment


def _spelt(value: Any) -> Any:
    """Return what is about to be put out, with the invisible spelt; markup of our own templates is no plain string."""
    return spelling.visible(value) if type(value) is str else value


def _paragraphs(text: str) -> list[str]:
    return [line for line in spelling.cut(text, 6000).split("\n") if line.strip()]


def _by_severity(groups: Iterable[figures.Group]) -> list[tuple[str, list[figures.Group]]]:
    return [(severity, list(equal)) for severity, equal in groupby(groups, key=lambda group: group.severity)]


def _percent(count: int, counts: Iterable[int]) -> str:
    """Return a bar's length beside the longest one, as a percentage of which something can always be seen."""
    return f"{max(100 * count / max([*counts, 1]), 1.5 if count else 0):.1f}%"
