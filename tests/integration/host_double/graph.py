"""The double's graph: the host's order of nodes, a state without reducers, and sync wrappers around async nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from host_double.graph_nodes_scaffold import (
    compliance_checker,
    enhanced_suggest_rules,
    enhanced_summarize_host_state,
    enrich_findings,
    risk_analyzer,
)


class GraphState(TypedDict, total=False):
    """Trap: what is not named here is dropped without a word, and nothing is merged."""

    raw_findings: list[dict[str, Any]]
    enriched_findings: list[dict[str, Any]]
    correlated_findings: list[dict[str, Any]]
    suggested_rules: list[dict[str, Any]]
    summary: dict[str, Any]
    warnings: list[Any]
    correlations: list[dict[str, Any]]
    baseline_results: dict[str, Any]
    iteration_count: int
    metrics: dict[str, Any]
    cache: dict[str, Any]
    risk_assessment: dict[str, Any]
    compliance_check: dict[str, Any]
    final_metrics: dict[str, Any]
    memory: dict[str, Any]
    reflection: dict[str, Any]
    baseline_cycle_done: bool


def memory_manager(state: GraphState) -> GraphState:
    return {**state, "memory": {"iterations": state.get("iteration_count", 0)}}


def _same(state: GraphState) -> GraphState:
    return state


def _finished(node: Callable[[Any], Coroutine[Any, Any, Any]], state: GraphState) -> Any:
    """Run an async node to its end. Trap: inside a running event loop it is not, and its result is lost without a word."""
    work = node(state)
    try:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()
    except Exception:  # noqa: BLE001 - the host swallows all of them too
        work.close()
        return state


def summarize_host_state(state: GraphState) -> Any:
    return _finished(enhanced_summarize_host_state, state)


def suggest_rules(state: GraphState) -> Any:
    return _finished(enhanced_suggest_rules, state)


def risk_analyzer_sync(state: GraphState) -> Any:
    return _finished(risk_analyzer, state)


def compliance_checker_sync(state: GraphState) -> Any:
    return _finished(compliance_checker, state)


def metrics_collector_sync(state: GraphState) -> GraphState:
    return {**state, "final_metrics": {"findings_processed": len(state.get("enriched_findings") or [])}}


def build_workflow(enhanced: bool | None = None) -> tuple[Any, Any]:
    """Return the graph and what it compiles to, from whatever this module's names stand for now."""
    nodes: list[tuple[str, Any]] = [
        ("enrich", enrich_findings),
        ("memory_manager", memory_manager),
        ("reflection_engine", _same),
        ("summarize", summarize_host_state),
        ("suggest_rules", suggest_rules),
        ("tool_coordinator", _same),
        ("plan_baseline", _same),
        ("baseline_tools", _same),
        ("integrate_baseline", _same),
        ("risk_analysis", risk_analyzer_sync),
        ("compliance_checker_node", compliance_checker_sync),
        ("metrics_collection", metrics_collector_sync),
    ]
    graph = StateGraph(GraphState)
    before = START
    for name, node in nodes:
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return graph, graph.compile()


workflow, app = build_workflow()
BaselineQueryGraph = app
