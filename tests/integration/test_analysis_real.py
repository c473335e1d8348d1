"""Nodes and graph on a real small model: the grammar of every schema is one that llama.cpp takes, and answers keep to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from engine_cases import model_file

from sysscan_langgraph import AnalysisReport, LlamaCpp, Served, create_analysis_graph, create_generalist_node
from sysscan_langgraph.analysis.run import analyze
from sysscan_langgraph.nodes import create_specialist_node
from sysscan_models.interfaces import ModelRef
from sysscan_models.prompts import SpecialistResponse
from sysscan_models.roles import GENERALIST, SPECIALIST
from sysscan_models.samples import sample_report

FEW: Any = {"max_tokens": 64, "report_tokens": 80, "rationales": 0}


@pytest.fixture(scope="module")
def models() -> Iterator[Served]:
    path = model_file()
    backend = LlamaCpp(threads=1, n_ctx=1024, n_parallel=4)
    with Served({role.name: ModelRef(path, role) for role in (SPECIALIST, GENERALIST)}, backend) as served:
        yield served


def test_a_report_is_analysed(models: Served) -> None:
    told: list[Any] = []
    report = analyze(sample_report(), models, max_findings=3, on_progress=told.append, **FEW)
    assert len(report.analyses) + sum(left.reason == "failed" for left in report.left_out) == 3
    assert report.analyses
    for one in report.analyses:
        assert one.analysis or one.findings
        assert 0 < one.completion_tokens <= 64
        assert one.finish_reason in ("stop", "length")
    assert report.executive_summary
    assert report.tokens_completion > sum(one.completion_tokens for one in report.analyses)
    assert report.models == dict.fromkeys(("specialist", "generalist"), "SmolLM2-135M-Instruct.Q4_1")
    known = {one.alias for one in report.analyses}
    assert all(set(point.aliases) <= known and point.aliases for point in (*report.key_findings, *report.recommendations))
    assert told[-1] == {"stage": "report", "done": 1, "total": 1}


@pytest.mark.slow
def test_several_analyses_at_once(models: Served) -> None:
    graph = create_analysis_graph(models, max_findings=1, **FEW)

    async def several() -> list[Any]:
        return await asyncio.gather(*(graph.ainvoke({"report": sample_report()}) for _ in range(3)))

    for found in asyncio.run(several()):
        report = AnalysisReport.model_validate(found["analysis"])
        assert [one.alias for one in report.analyses] == ["F1"]
        assert report.executive_summary
        assert not [warning for warning in report.warnings if warning.stage == "specialist"]


def test_nodes_answer_in_the_response_models_shape(models: Served) -> None:
    finding = {"id": "x", "title": "SUID binary", "description": "Binary has SUID bit set", "metadata": {"mode": "4755"}}
    found = create_specialist_node(models, max_tokens=80).invoke({"finding": finding})["analysis"]
    fields = {name: value for name, value in found.items() if name in SpecialistResponse.model_fields}
    assert SpecialistResponse.model_validate(fields).analysis
    report = create_generalist_node(models, max_tokens=100).invoke({"findings": [{**finding, "analysis": found}]})["report"]
    assert report["executive_summary"]
    assert all(point["finding_ids"] == ["x"] for point in report["key_findings"] or [])
