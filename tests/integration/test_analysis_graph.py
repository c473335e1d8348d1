"""The analysis graph on a scripted backend: what it asks, what it makes of the answers, what it does when things go wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import random
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from scripted import ANALYSIS, REPORT, Reply, Scripted, ScriptedSession, backend_of, scan, scripted, usual

from sysscan_langgraph import AnalysisReport, create_analysis_graph
from sysscan_langgraph.analysis.run import analyze
from sysscan_langgraph.serving import Served
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.roles import GENERALIST, SPECIALIST


def asks_about(request: GenerationRequest) -> str:
    """Return `f1` of a question about the finding with that title."""
    return request.messages[-1]["content"].removeprefix("Finding ").partition(".")[0]


def test_a_report_in_and_an_analysis_out() -> None:
    models = scripted()
    report = analyze(scan("low", "critical", "low"), models)
    assert [(one.alias, one.finding_id, one.reported_severity, one.severity) for one in report.analyses] == [
        ("F1", "/home/alice/f2", "critical", "medium"),
        ("F2", "/home/alice/f1", "low", "medium"),
        ("F3", "/home/alice/f3", "low", "medium"),
    ]
    first = report.analyses[0]
    assert (first.analysis, first.techniques, first.finish_reason) == (ANALYSIS["analysis"], ("T1548.001",), "stop")
    assert first.evidence == ("Finding f2.", "text")
    assert (report.host, report.executive_summary) == ("host.example", REPORT["executive_summary"])
    assert [(point.text, point.finding_ids) for point in report.key_findings] == [("it is bad", ("/home/alice/f2",))]
    assert report.recommendations[0].aliases == ("F1", "F2")
    assert [(group.id, group.value, group.rationale) for group in report.correlations] == [
        ("C1", "T1548.001", ANALYSIS["analysis"])
    ]
    assert ("NIST SP 800-53", "AC-6") in {(gap.standard, gap.control) for gap in report.compliance_gaps}
    assert report.models == {"specialist": "specialist", "generalist": "generalist"}
    assert not report.warnings
    assert not report.left_out
    asked = [*backend_of(models).asked(), *backend_of(models).asked("generalist")]
    assert report.tokens_completion == 7 * len(asked) == 7 * 5
    assert report.tokens_prompt == sum(sum(len(turn["content"].split()) for turn in request.messages) for request in asked)


def test_no_prompt_holds_an_id_and_all_are_held_to_a_schema() -> None:
    models = scripted()
    analyze(scan("high", "low"), models)
    asked = [*backend_of(models).asked(), *backend_of(models).asked("generalist")]
    assert len(asked) == 4
    assert not any("alice" in turn["content"] for request in asked for turn in request.messages)
    assert all(request.json_schema for request in asked)
    assert all(request.messages[0]["content"] in (SPECIALIST.system_prompt, GENERALIST.system_prompt) for request in asked)
    pattern = backend_of(models).asked("generalist")[0].json_schema["properties"]["key_findings"]["items"]["pattern"]  # type: ignore[index]
    assert pattern.startswith("^(F1|F2)(, (F1|F2)){0,2}: ")


@pytest.mark.parametrize("way", ["sync", "async"])
def test_many_are_asked_at_once_and_never_too_many(way: str) -> None:
    models = scripted(seconds=0.02, n_parallel=3)
    graph = create_analysis_graph(models)
    given = {"report": scan(*["low"] * 60)}
    found = graph.invoke(given) if way == "sync" else asyncio.run(graph.ainvoke(given))
    assert len(found["analysis"]["analyses"]) == 60
    assert backend_of(models).most_at_once == 4 * 3


@pytest.mark.parametrize("way", ["sync", "async"])
def test_max_concurrency_bounds_what_is_under_way(way: str) -> None:
    models = scripted(seconds=0.005)
    graph, config = create_analysis_graph(models, rationales=1), {"max_concurrency": 2}
    given = {"report": scan(*["low"] * 30)}
    found = graph.invoke(given, config) if way == "sync" else asyncio.run(graph.ainvoke(given, config))  # type: ignore[call-overload]
    assert len(found["analysis"]["analyses"]) == 30
    assert backend_of(models).most_at_once == 2


def test_more_findings_than_a_wave() -> None:
    models = scripted(n_parallel=1)
    told: list[Any] = []
    report = analyze(scan(*["low"] * 100), models, on_progress=told.append)
    assert [one.alias for one in report.analyses] == [f"F{number}" for number in range(1, 101)]
    assert len(backend_of(models).asked()) == 101
    assert {"stage": "specialist", "done": 100, "total": 100} in told


def test_the_order_is_the_same_in_whatever_order_answers_come() -> None:
    def late(role: str, request: GenerationRequest) -> Reply:
        if role == "specialist" and asks_about(request).startswith("f"):
            time.sleep(0.01 * random())
            return {**ANALYSIS, "techniques": [f"T10{int(asks_about(request)[1:]) % 10:02}"]}
        return usual(role, request)

    reports = [analyze(scan(*["low"] * 20), scripted(late)) for _ in range(3)]
    plain = [report.model_copy(update={"seconds": 0}) for report in reports]
    assert plain[0] == plain[1] == plain[2]
    assert len(plain[0].correlations) == 10 + 1  # ten techniques, and the control that all share


# What goes wrong


@pytest.mark.parametrize(
    ("reply", "told", "times"),
    [
        (SysscanError("the decoder broke"), "the decoder broke", 2),
        (UserError("it does not fit the context"), "it does not fit the context", 1),
        (ValueError(), "ValueError", 1),
        ("nonsense", "the model's answer is no JSON object: 'nonsense'", 1),
        ("", "the model's answer is no JSON object: it is empty", 1),
        ('{"severity": "dire"}', 'the model\'s answer says nothing that can be used: \'{"severity": "dire"}\'', 1),
    ],
)
def test_one_failing_finding_costs_one_warning_and_is_left_out(reply: Reply, told: str, times: int) -> None:
    def script(role: str, request: GenerationRequest) -> Reply:
        return reply if role == "specialist" and asks_about(request) == "f2" else usual(role, request)

    models = scripted(script)
    report = analyze(scan("high", "high", "low"), models)
    assert [one.alias for one in report.analyses] == ["F1", "F3"]
    assert [(left.alias, left.finding_id, left.reason) for left in report.left_out] == [("F2", "/home/alice/f2", "failed")]
    assert [(warning.stage, warning.message, warning.finding_id) for warning in report.warnings] == [
        ("specialist", told, "/home/alice/f2")
    ]
    assert report.executive_summary == REPORT["executive_summary"]
    assert [asks_about(request) for request in backend_of(models).asked()].count("f2") == times


def test_a_failure_that_passes_is_asked_again() -> None:
    failed: list[str] = []

    def script(role: str, request: GenerationRequest) -> Reply:
        if role == "specialist" and asks_about(request) == "f1" and not failed:
            failed.append("f1")
            return SysscanError("once")
        return usual(role, request)

    report = analyze(scan("high", "low"), scripted(script))
    assert len(report.analyses) == 2
    assert not report.warnings


def test_unreadable_findings_of_the_report_are_left_out_too() -> None:
    report = scan("low", "low")
    report["results"][0]["findings"][0:1] = ["text", {"id": "x", "title": 5}]
    found = analyze(report, scripted())
    assert len(found.analyses) == 1
    assert [left.finding_id for left in found.left_out] == ["results[0].findings[0]", "x"]
    assert [warning.stage for warning in found.warnings] == ["select", "select"]


def test_when_everything_fails_the_warning_is_one_and_the_summary_says_so() -> None:
    report = analyze(scan("high", "low", "low"), scripted(lambda role, request: UserError("broken")))
    assert not report.analyses
    assert len(report.left_out) == 3
    assert [warning.message for warning in report.warnings] == [
        "broken (and 2 more)", "the generalist wrote no summary: there is no analysis to report on",
    ]  # fmt: skip
    assert report.executive_summary.endswith("No finding was analysed; 3 were left out.")


def test_a_report_without_findings_is_an_analysis_without_any() -> None:
    models = scripted()
    report = analyze({"results": []}, models)
    assert "No finding was analysed" in report.executive_summary
    assert not backend_of(models).asked()


@pytest.mark.parametrize("reply", [SysscanError("it broke"), "nonsense", {"key_findings": ["F1: x"]}])
def test_a_failing_generalist_leaves_a_summary_that_says_so(reply: Reply) -> None:
    report = analyze(scan("high", "low"), scripted(lambda role, request: reply if role == "generalist" else ANALYSIS))
    assert report.executive_summary.startswith("This summary was put together without the generalist (")
    assert "2 findings were analysed: 2 medium." in report.executive_summary
    assert report.key_findings[0].aliases == ("F1",)
    assert report.recommendations[0].text == "Remove the bit"
    assert [warning.stage for warning in report.warnings] == ["report"]


def test_a_package_without_a_generalist_and_one_without_a_specialist() -> None:
    report = analyze(scan("high"), scripted(roles=[SPECIALIST]))
    assert report.models == {"specialist": "specialist"}
    assert "(the package has none)" in report.executive_summary
    with pytest.raises(UserError, match="unknown role 'specialist'"):
        create_analysis_graph(scripted(roles=[GENERALIST]))


def test_points_without_findings_are_left_out_with_a_warning() -> None:
    written = {**REPORT, "key_findings": ["no reference", "F2: yes"], "recommendations": ["F99: nobody"]}
    report = analyze(scan("high", "low"), scripted(lambda role, request: written if role == "generalist" else ANALYSIS))
    assert [point.text for point in report.key_findings] == ["yes"]
    assert report.recommendations[0].text == "Remove the bit"
    assert [warning.message for warning in report.warnings] == [
        "2 of the generalist's points name no finding and were left out"
    ]


def test_a_rationale_that_fails_is_a_warning() -> None:
    def script(role: str, request: GenerationRequest) -> Reply:
        about_a_group = role == "specialist" and not request.messages[-1]["content"].startswith("Finding f")
        return SysscanError("no") if about_a_group else usual(role, request)

    report = analyze(scan("high", "low"), scripted(script))
    assert [group.rationale for group in report.correlations] == [""]
    assert [warning.message for warning in report.warnings] == ["C1 has no rationale: no"]


def test_a_cut_answer_is_used_and_its_end_is_told() -> None:
    cut = '{"analysis": "It is", "findings": ["one", "tw'
    report = analyze(scan("high"), scripted(lambda role, request: cut if role == "specialist" else REPORT))
    assert (report.analyses[0].findings, report.analyses[0].finish_reason) == (("one",), "length")
    assert report.analyses[0].severity == "high"
    assert report.analyses[0].risk_score is None


def test_ratings_of_a_cut_answer_are_not_its_own() -> None:
    cut = '{"analysis": "}", "findings": ["one"], "severity": "critical", "risk_score": 99, "controls": ["a'
    [analysis] = analyze(scan("low"), scripted(lambda role, request: cut if role == "specialist" else REPORT)).analyses
    assert (analysis.finish_reason, analysis.severity, analysis.risk_score) == ("length", "low", None)
    assert (analysis.analysis, analysis.findings) == ("", ("one",))  # a brace is no analysis


@pytest.mark.parametrize(
    ("said", "used"), [('{"analysis": "The', False), ('{"analysis": "Bad.", "severity": "low", "ri', True)]
)
def test_what_time_ended_counts_when_it_came_to_a_severity(said: str, used: bool) -> None:
    class Late(ScriptedSession):
        def _events(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
            yield GenerationEvent(request.id, said, "deadline", 1, 1)

    class LateBackend(Scripted):
        def open(self, model: ModelRef) -> Session:
            return Late(self, model.role)

    models = Served({SPECIALIST.name: ModelRef(Path("specialist.gguf"), SPECIALIST)}, LateBackend())
    report = analyze(scan("high"), models, time_budget=60)
    assert [one.severity for one in report.analyses] == (["low"] if used else [])
    assert [one.reason for one in report.left_out] == ([] if used else ["time budget"])


def test_alike_findings_cost_one_question() -> None:
    report = scan("low")
    report["results"][0]["findings"] = [{"id": f"/bin/{name}", "title": "SUID", "severity": "low"} for name in "abc"]
    models = scripted()
    found = analyze(report, models, rationales=0)
    assert len(backend_of(models).asked()) == 1
    assert [(one.same_as, one.finding_id, one.completion_tokens) for one in found.analyses] == [
        ("", "/bin/a", 7), ("F1", "/bin/b", 0), ("F1", "/bin/c", 0),
    ]  # fmt: skip


def test_alike_findings_that_fail_cost_one_warning() -> None:
    report = scan("low")
    report["results"][0]["findings"] = [{"id": f"/bin/{name}", "title": "SUID", "severity": "low"} for name in "abc"]
    found = analyze(report, scripted(lambda role, request: UserError("no")))
    assert len(found.left_out) == 3
    assert [warning.message for warning in found.warnings if warning.stage == "specialist"] == ["no"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_severity": "severe"}, "unknown severity 'severe'"),
        ({"max_findings": 0}, "max_findings is 0"),
        ({"time_budget": 0}, "time_budget is 0; expected seconds"),
        ({"time_budget": float("inf")}, "time_budget is inf; expected seconds"),
        ({"time_budget": float("nan")}, "time_budget is nan; expected seconds"),
        ({"time_budget": "5"}, "time_budget is '5'; expected seconds"),
        ({"max_tokens": "x"}, "max_tokens of the specialist is 'x'; expected 1 or more"),
        ({"max_tokens": 4096}, "max_tokens of the specialist is 4096; its context has 4096, question and answer together"),
        ({"rationales": -1}, "rationales is -1"),
        ({"max_tokens": 0}, "max_tokens of the specialist is 0"),
        ({"report_tokens": 0}, "max_tokens of the generalist is 0"),
        ({"thread_id": "t"}, "a checkpointer and a thread_id belong together"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        analyze(scan("low"), scripted(), **options)


def test_what_raises_is_a_report_that_is_none_and_a_model_that_cannot_be_loaded() -> None:
    with pytest.raises(DataError, match="expected a scan report in schema v2"):
        analyze({"no": "report"}, scripted())
    broken = scripted(fails_to_open=UserError("there is no model file"))
    with pytest.raises(UserError, match="there is no model file"):
        analyze(scan("low"), broken)
    with pytest.raises(UserError, match="there is no model file"):
        asyncio.run(create_analysis_graph(broken).ainvoke({"report": scan("low")}))


# Time


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_time_budget_gives_what_there_is_the_most_severe_first(way: str) -> None:
    models = scripted(seconds=0.05, n_parallel=1)
    graph = create_analysis_graph(models, time_budget=60, rationales=0)
    given = {"report": scan(*["low"] * 300, *["critical"] * 2), "time_budget": 1.5}
    found = graph.invoke(given) if way == "sync" else asyncio.run(graph.ainvoke(given))
    report = AnalysisReport.model_validate(found["analysis"])
    assert report.analyses
    assert report.analyses[0].reported_severity == "critical"
    assert {left.reason for left in report.left_out} == {"time budget"}
    assert len(report.analyses) + len(report.left_out) == 302
    last = int(report.analyses[-1].alias[1:])
    assert last <= len(report.analyses) + 4  # requests under way end in any order
    assert report.executive_summary == REPORT["executive_summary"]
    assert all(request.deadline is not None and 0 < request.deadline <= 1.5 * 0.7 for request in backend_of(models).asked())
    assert "left out: time budget" in backend_of(models).texts("generalist")[0]
    assert not report.warnings


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_time_budget_of_ages_is_one(way: str) -> None:
    graph = create_analysis_graph(scripted(n_parallel=1, seconds=0.02), time_budget=1e300)
    given = {"report": scan(*["low"] * 10)}
    found = graph.invoke(given) if way == "sync" else asyncio.run(graph.ainvoke(given))
    assert len(found["analysis"]["analyses"]) == 10


def test_without_time_for_the_generalist_the_summary_says_so() -> None:
    def slow(role: str, request: GenerationRequest) -> Reply:
        if not request.messages[-1]["content"].startswith("Finding f"):
            time.sleep(0.7)  # a rationale that does not keep its deadline
        return usual(role, request)

    report = analyze(scan("low", "low"), scripted(slow), time_budget=0.6)
    assert len(report.analyses) == 2
    assert "(the time budget was used up)" in report.executive_summary
    assert [warning.stage for warning in report.warnings] == ["report"]


# In LangGraph


@pytest.mark.parametrize("way", ["sync", "async"])
def test_progress_and_tokens_are_streamed(way: str) -> None:
    graph = create_analysis_graph(scripted())
    given = {"report": scan("high", "low")}
    modes: Any = ["custom", "messages"]

    async def streamed() -> list[Any]:
        return [piece async for piece in graph.astream(given, stream_mode=modes, subgraphs=True)]

    pieces = asyncio.run(streamed()) if way == "async" else list(graph.stream(given, stream_mode=modes, subgraphs=True))
    progress = [piece for _, mode, piece in pieces if mode == "custom"]
    assert [piece for piece in progress if piece["stage"] == "specialist"] == [
        {"stage": "specialist", "done": done, "total": 2} for done in range(3)
    ]
    assert list(dict.fromkeys(piece["stage"] for piece in progress)) == [
        "select", "specialist", "correlate", "compliance", "report",
    ]  # fmt: skip
    tokens: dict[str, str] = {}
    for _, mode, piece in pieces:
        if mode == "messages":
            tokens[piece[1]["langgraph_node"]] = tokens.get(piece[1]["langgraph_node"], "") + piece[0].content
    assert tokens["ask"].count('"severity"') == 2
    assert '"executive_summary"' in tokens["report"]


def test_progress_needs_no_subgraphs() -> None:
    graph = create_analysis_graph(scripted())
    told = list(graph.stream({"report": scan("high")}, stream_mode="custom"))
    assert {"stage": "specialist", "done": 1, "total": 1} in told


def test_state_is_plain_json() -> None:
    import json

    saver = InMemorySaver()
    graph = create_analysis_graph(scripted(), checkpointer=saver)
    graph.invoke({"report": scan("high", "low")}, {"configurable": {"thread_id": "t"}})
    saved = [checkpoint.checkpoint["channel_values"] for checkpoint in saver.list({"configurable": {"thread_id": "t"}})]
    named = [values for values in saved if "analysis" in values]
    assert named
    for values in saved:
        assert "started" not in values
        json.dumps({key: value for key, value in values.items() if not key.startswith(("__", "branch:"))})


def test_another_report_on_the_same_thread_begins_anew() -> None:
    graph = create_analysis_graph(scripted(), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    first = graph.invoke({"report": scan("high", "low", "low")}, config)["analysis"]
    second = graph.invoke({"report": scan("low")}, config)["analysis"]
    assert (len(first["analyses"]), len(second["analyses"])) == (3, 1)
    assert second["tokens_completion"] < first["tokens_completion"]


def test_it_is_a_node_of_another_graph() -> None:
    graph: Any = StateGraph(dict)
    graph.add_node("analyse", create_analysis_graph(scripted()))
    graph.add_edge(START, "analyse")
    graph.add_edge("analyse", END)
    found = graph.compile(checkpointer=InMemorySaver()).invoke({"report": scan("high")}, {"configurable": {"thread_id": "t"}})
    assert len(found["analysis"]["analyses"]) == 1


def test_a_hundred_analyses_at_once() -> None:
    models = scripted(seconds=0.001, n_parallel=16)
    graph = create_analysis_graph(models)

    async def all_of_them() -> list[Any]:
        severities = [["high"] * (1 + number % 5) for number in range(100)]
        return await asyncio.gather(*(graph.ainvoke({"report": scan(*names)}) for names in severities))

    found = [AnalysisReport.model_validate(one["analysis"]) for one in asyncio.run(all_of_them())]
    assert [len(report.analyses) for report in found] == [1 + number % 5 for number in range(100)]
    assert not any(report.warnings for report in found)
    assert backend_of(models).most_at_once <= 4 * 16 + 100  # reports and rationales pass no gate


def test_threads_share_a_graph() -> None:
    graph = create_analysis_graph(scripted(seconds=0.001))
    found: dict[int, Any] = {}

    def one(number: int) -> None:
        found[number] = graph.invoke({"report": scan(*["low"] * number)})["analysis"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: len(analysis["analyses"]) for number, analysis in found.items()} == {n: n for n in range(1, 9)}


def test_analyze_inside_a_running_event_loop() -> None:
    async def inside() -> AnalysisReport:
        return analyze(scan("low"), scripted())

    assert len(asyncio.run(inside()).analyses) == 1
