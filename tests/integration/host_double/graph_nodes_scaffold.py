"""The double's own nodes, async as the host's are. They are weak on purpose: a test that passes with them proves nothing."""

from __future__ import annotations

import re
from typing import Any

from host_double import llm_provider, models

State = dict[str, Any]


def enrich_findings(state: State) -> State:
    """Keep what is more than information; the scanner's score becomes a number."""
    state["enriched_findings"] = [
        {**finding, "risk_score": int(float(finding.get("risk_score") or finding.get("base_severity_score") or 0))}
        for finding in state.get("raw_findings") or []
        if finding.get("severity") != "info"
    ]
    return state


async def enhanced_summarize_host_state(state: State) -> State:
    """Ask the provider. Traps: its metadata is thrown away, and its exception is one warning and no summary."""
    try:
        reductions = reduced(state.get("correlated_findings") or state.get("enriched_findings") or [])
        correlations = [models.Correlation(**given) for given in state.get("correlations") or []]
        summaries, _ = llm_provider.get_llm_provider().summarize(
            reductions, correlations, [], baseline_context=state.get("baseline_results") or {}
        )
        state["summary"] = summaries.model_dump()
        state["iteration_count"] = (state.get("iteration_count") or 0) + 1
        kept = {name: value for name, value in summaries.metrics.items() if name in ("tokens_prompt", "tokens_completion")}
        state["metrics"] = {**(state.get("metrics") or {}), **kept}
    except Exception as error:  # noqa: BLE001 - the host swallows all of them too
        warning = {"module": "graph", "stage": "enhanced_summarize", "error": str(error), "hint": None}
        state["warnings"] = [*(state.get("warnings") or []), warning]
    return state


async def enhanced_suggest_rules(state: State) -> State:
    """Have the provider refine one rule. Trap: what is no list, such as the protocol's tuple, is thrown away."""
    suggestions = [{"id": "gap_1", "title": "t", "rationale": "r", "conditions": [], "logic": "all", "tags": []}]
    refined = llm_provider.get_llm_provider().refine_rules(suggestions, examples=None)
    state["suggested_rules"] = refined if isinstance(refined, list) else suggestions
    return state


async def risk_analyzer(state: State) -> State:
    """Add up. Trap: correlations are objects here and dicts in the state, so any of them ends this node."""
    bonus = sum(correlation.risk_score_delta for correlation in state.get("correlations") or [])
    state["risk_assessment"] = {"overall_risk": "unknown", "total_risk_score": bonus}
    return state


async def compliance_checker(state: State) -> State:
    """Find nothing."""
    state["compliance_check"] = {"standards": {}}
    return state


def reduced(findings: list[dict[str, Any]]) -> models.Reductions:
    """Reduce findings to the riskiest. Trap: only titles are redacted; ids keep what they hold."""
    riskiest = sorted(findings, key=lambda finding: -int(finding["risk_score"]))[:10]
    tops = [
        {
            "id": finding["id"],
            "title": re.sub(r"/home/[A-Za-z0-9_.-]+", "/home/<user>", finding["title"]),
            "severity": finding["severity"],
            "risk_score": finding["risk_score"],
            "tags": finding.get("tags", []),
        }
        for finding in riskiest
    ]
    paths = [finding["metadata"]["path"] for finding in findings if (finding.get("metadata") or {}).get("path")]
    return models.Reductions(top_findings=tops, top_risks=tops, suid_summary={"unexpected_suid": paths} if paths else None)
