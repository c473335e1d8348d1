"""Provider and nodes on a real small model: real constrained answers, real token counts, four graphs on one engine.

The model was never trained on our roles, so what it says is not judged; that it is said, counted and told apart is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from engine_cases import model_file
from host_double import graph, llm_provider, pipeline
from host_double.scripted import hostile_findings

from sysscan_langgraph import LlamaCpp, Served
from sysscan_langgraph.host import Installation, install
from sysscan_models.interfaces import ModelRef
from sysscan_models.roles import GENERALIST, SPECIALIST

FINDINGS: list[dict[str, Any]] = [
    {
        "id": "/home/alice/x",
        "title": "SUID binary",
        "severity": "high",
        "base_severity_score": "70",
        "metadata": {"path": "/x"},
    },
    {"id": "port", "title": "Port 23 is open", "severity": "medium", "base_severity_score": "50", "metadata": {"port": "23"}},
]


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    path = model_file()
    refs = {role.name: ModelRef(path, role) for role in (SPECIALIST, GENERALIST)}
    with (
        Served(refs, LlamaCpp(threads=1, n_ctx=1024, reproducible=True), "SmolLM2") as models,
        install(models, host="host_double", max_tokens=32, summary_tokens=48, time_limit=300) as installed,
    ):
        yield installed


def test_a_graph_of_the_host_gets_a_summary_that_the_model_wrote(installation: Installation) -> None:
    out = graph.app.invoke({"raw_findings": FINDINGS})
    summary = out["summary"]
    assert summary["metrics"]["fallback"] is False
    assert summary["executive_summary"]
    assert all(point["finding_ids"] for point in summary["analyst"]["key_findings"])
    assert out["metrics"]["tokens_prompt"] == summary["metrics"]["tokens_prompt"] > 300
    assert 0 < out["metrics"]["tokens_completion"] <= 2 * 32 + 48
    assert not [warning for warning in out["warnings"] if "cut short" not in warning["error"]]
    assert out["risk_assessment"]["risk_factors"]
    json.dumps(out)


@pytest.mark.slow
def test_four_graphs_at_once_on_one_engine_and_a_hostile_one_among_them(installation: Installation) -> None:
    async def run() -> list[Any]:
        inputs = (FINDINGS[1:], FINDINGS, FINDINGS[1:], hostile_findings()[:1])
        return await asyncio.gather(*(graph.app.ainvoke({"raw_findings": given}) for given in inputs))

    results = asyncio.run(run())
    assert all(out["summary"]["metrics"]["fallback"] is False for out in results)
    assert [len(out["enriched_findings"]) for out in results] == [1, 2, 1, 1]
    texts = [out["summary"]["executive_summary"] for out in results]
    assert texts[0] == texts[2]
    [triaged] = results[3]["summary"]["triage_summary"]["top_findings"]
    assert triaged["reported_severity"] == "critical"


@pytest.mark.slow
def test_the_pipeline_of_the_host_gets_a_summary_too(installation: Installation) -> None:
    assert llm_provider.get_llm_provider() is installation.provider
    summaries = pipeline.summarized([{**finding, "risk_score": 70} for finding in FINDINGS])
    assert summaries.metrics is not None
    assert summaries.metrics["fallback"] is False
    assert summaries.metrics["tokens_completion"] > 0
    rule = {"id": "r", "title": "Recurring: suid", "conditions": [{"field": "title", "contains": "suid"}]}
    _, metadata = installation.provider.refine_rules([rule])
    assert metadata.fallback is False
    assert "specialist: " in str(rule["rationale"])
