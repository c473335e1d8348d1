"""The same nodes under the names that another module of the host takes them by when it is imported."""

from __future__ import annotations

from typing import Any

from host_double.graph_nodes_scaffold import risk_analyzer as scaffold_risk_analyzer


async def risk_analyzer(state: dict[str, Any]) -> dict[str, Any]:
    return await scaffold_risk_analyzer(state)
