"""An analysis made readable: text for a terminal, Markdown, JSON, and one HTML page that needs nothing from outside.

Everything in an `AnalysisReport` was written by a model or quotes a finding. It is redacted once more here, and each format
escapes it, so that it shows as text and never as markup. Nothing here opens a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from sysscan_models.prompts import redact_deep

if TYPE_CHECKING:
    from sysscan_langgraph.analysis.records import AnalysisReport

Format = Literal["text", "md", "json", "html"]
FORMATS: tuple[Format, ...] = ("text", "md", "json", "html")


def render(report: AnalysisReport, form: Format) -> str:
    """Return the report in one of the `FORMATS`; the text has no colours and at most 100 columns.

    Raises MissingExtra for html where jinja2 is not installed.
    """
    return _RENDERERS[form](redacted(report))


def redacted(report: AnalysisReport) -> AnalysisReport:
    """Return the report without secrets of known shapes, whoever made it."""
    return type(report).model_validate(redact_deep(report.model_dump(mode="json")))


def _text(report: AnalysisReport) -> str:
    from sysscan_langgraph.pages.summary import as_text

    return as_text(report)


def _md(report: AnalysisReport) -> str:
    from sysscan_langgraph.pages.markdown import as_markdown

    return as_markdown(report)


def _json(report: AnalysisReport) -> str:
    return report.model_dump_json(indent=2) + "\n"


def _html(report: AnalysisReport) -> str:
    from sysscan_langgraph.pages.page import as_html

    return as_html(report)


_RENDERERS: dict[Format, Callable[[AnalysisReport], str]] = {"text": _text, "md": _md, "json": _json, "html": _html}
