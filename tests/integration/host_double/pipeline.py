"""The host's other way to a summary: no graph, and the provider is asked even where nothing is to be said."""

from __future__ import annotations

from typing import Any

from host_double import llm_provider, models
from host_double.graph_nodes_scaffold import reduced


def summarized(findings: list[dict[str, Any]], *, least_risk: int = 100) -> models.Summaries:
    """Ask for a summary. Trap: below `least_risk` it is `skip=True`, with an empty previous summary."""
    skip = sum(int(finding["risk_score"]) for finding in findings) < least_risk
    answered = llm_provider.get_llm_provider().summarize(
        reduced(findings),
        [],
        [],
        skip=skip,
        previous=models.Summaries(),
        skip_reason="low_risk_no_change" if skip else None,
        baseline_context=None,
    )
    summaries: models.Summaries = answered[0]
    return summaries
