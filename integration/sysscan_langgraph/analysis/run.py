"""The analysis of a report in one call, for who wants no graph: the command line and the host's provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast

from langchain_core.runnables import RunnableConfig

from sysscan_langgraph.analysis.graph import REPORT_TOKENS, SPECIALIST_TOKENS, AnalysisInput, create_analysis_graph
from sysscan_langgraph.analysis.records import AnalysisReport, AnalysisWarning
from sysscan_langgraph.chat_model import ChatSysscan
from sysscan_langgraph.serving import Served, served
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.prompts import Severity

Progress = Mapping[str, Any]
"""One step of progress: `stage` (select, specialist, correlate, compliance, report), `done`, `total`."""

_BEGUN_ANEW = "what was begun under this thread_id was asked of other models or with other options; it was begun anew"
_MATTERS_NOT = ("models", "time_budget", "checkpointer", "name")


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
    that was killed goes on with what is missing; one that was begun with other models or options is begun anew, and a warning
    says so. Raises UserError for a wrong option or a report that is none, SysscanError for one that the checkpointer cannot
    store; faults of single findings and of the models are warnings of the report.
    """
    if (checkpointer is None) != (not thread_id):
        raise UserError("a checkpointer and a thread_id belong together: give both to go on with an analysis, or neither")
    options |= {
        "min_severity": min_severity,
        "max_findings": max_findings,
        "max_tokens": max_tokens,
        "report_tokens": report_tokens,
    }
    models = served(models)
    graph = create_analysis_graph(models, time_budget=time_budget, checkpointer=checkpointer, **options)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}} if thread_id else {}
    given, before = AnalysisInput(report=report), ""
    if thread_id:
        _check_stored(checkpointer, report)
        given["identity"] = identity(report, models, **options)
        before = _under_way(graph, config, report)
    goes_on = bool(before) and before == given.get("identity")
    modes: list[Literal["custom", "values"]] = ["custom", "values"]
    last: dict[str, Any] = {}
    for mode, piece in graph.stream(None if goes_on else given, config, stream_mode=cast(Any, modes)):
        if mode == "values":
            last = cast(dict[str, Any], piece)
        elif on_progress:
            on_progress(cast(Progress, piece))
    found = AnalysisReport.model_validate(last["analysis"])
    if before and not goes_on:
        warning = AnalysisWarning(stage="select", message=_BEGUN_ANEW)
        found = found.model_copy(update={"warnings": (*found.warnings, warning)})
    return found


def identity(report: Any, models: Served, **options: Any) -> str:
    """Return a digest of what an analysis depends on: the report, the models, and `create_analysis_graph`'s options."""
    bound = signature(create_analysis_graph).bind(models, **options)
    bound.apply_defaults()
    matters = {name: value for name, value in bound.arguments.items() if name not in _MATTERS_NOT}
    asked = [ChatSysscan(models=models, role=role)._identifying_params for role in sorted(models.models)]
    try:
        return sha256(json.dumps([report, matters, asked], default=str).encode()).hexdigest()
    except (ValueError, TypeError, RecursionError) as error:
        raise SysscanError(f"the report cannot be told from others, as a checkpoint must ({error})") from error


def _check_stored(checkpointer: Any, report: Any) -> None:
    """Raise SysscanError when a checkpointer cannot store a report; LangGraph would find that out while the models work."""
    try:
        checkpointer.serde.dumps_typed(report)
    except SysscanError:
        raise
    except Exception as error:
        raise SysscanError(f"the checkpointer cannot store the report ({error}); analyse it without one") from error


def _under_way(graph: Any, config: RunnableConfig, report: Mapping[str, Any]) -> str:
    """Return the identity of the analysis of a report that a thread has not finished; empty when there is none."""
    try:
        values = graph.get_state(config).values
    except SysscanError:
        raise
    except Exception as error:  # LangGraph trusts what it once stored
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"what the checkpointer holds for this thread_id cannot be read ({reason}); begin with a new one"
        ) from error
    if values.get("analysis") or values.get("report") != report:
        return ""
    return values.get("identity") or "unknown"
