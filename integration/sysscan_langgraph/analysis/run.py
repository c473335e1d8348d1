"""The analysis of a report in one call, for who wants no graph: the command line and the host's provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from langchain_core.runnables import RunnableConfig

from sysscan_langgraph.analysis.graph import REPORT_TOKENS, SPECIALIST_TOKENS, create_analysis_graph
from sysscan_langgraph.analysis.records import AnalysisReport
from sysscan_langgraph.serving import Served
from sysscan_models.errors import UserError
from sysscan_models.prompts import Severity

Progress = Mapping[str, Any]
"""One step of progress: `stage` (select, specialist, correlate, compliance, report), `done`, `total`."""


def analyze(
    report: Mapping[str, Any],
    models: Served | Path | str,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    min_severity: Severity = "info",
    max_findings: int | None = None,
    time_budget: float | None = None,
    max_tokens: int = SPECIALIST_TOKENS,
    report_tokens: int = REPORT_TOKENS,
    checkpointer: Any = None,
    thread_id: str = "",
    **options: Any,
) -> AnalysisReport:
    """Analyse a scan report (schema v2), sync; safe from any thread, and inside a running event loop too (which it blocks).

    The keyword arguments are `create_analysis_graph`'s. With a `checkpointer` and a `thread_id` an analysis of the same report
    that was killed goes on with what is missing. Raises UserError for a wrong option or a report that is none; faults of single
    findings and of the models are warnings of the report.
    """
    if (checkpointer is None) != (not thread_id):
        raise UserError("a checkpointer and a thread_id belong together: give both to go on with an analysis, or neither")
    graph = create_analysis_graph(
        models,
        min_severity=min_severity,
        max_findings=max_findings,
        time_budget=time_budget,
        max_tokens=max_tokens,
        report_tokens=report_tokens,
        checkpointer=checkpointer,
        **options,
    )
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}} if thread_id else {}
    goes_on = bool(thread_id) and _is_under_way(graph, config, report)
    modes: list[Literal["custom", "values"]] = ["custom", "values"]
    last: dict[str, Any] = {}
    for mode, piece in graph.stream(None if goes_on else {"report": report}, config, stream_mode=cast(Any, modes)):
        if mode == "values":
            last = cast(dict[str, Any], piece)
        elif on_progress:
            on_progress(cast(Progress, piece))
    return AnalysisReport.model_validate(last["analysis"])


def _is_under_way(graph: Any, config: RunnableConfig, report: Mapping[str, Any]) -> bool:
    values = graph.get_state(config).values
    return not values.get("analysis") and values.get("report") == report
