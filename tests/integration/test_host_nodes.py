"""The four nodes inside a real LangGraph graph with the host's order, state and traps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from host_double import graph, llm_provider
from host_double.scripted import SPECIALIST_SAYS, USER, Scripted, ScriptedSession, assert_safe, hostile_findings, scripted
from langgraph.checkpoint.memory import InMemorySaver

from sysscan_langgraph.host import HostNodes, Installation, SysscanProvider, install
from sysscan_langgraph.host.analyst import WRITTEN_WITHOUT
from sysscan_langgraph.host.nodes import CACHE
from sysscan_models.errors import UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest

RAW = [
    {
        "id": "/home/alice/bin/x",
        "title": "SUID binary found",
        "severity": "high",
        "base_severity_score": "70",
        "metadata": {"suid": "1"},
    },
    {
        "id": "/usr/bin/y",
        "title": "SUID binary found",
        "severity": "medium",
        "base_severity_score": "50",
        "metadata": {"suid": "2"},
    },
    {"id": "/usr/bin/z", "title": "World-writable file", "severity": "low", "base_severity_score": "30", "metadata": {}},
    {"id": "note", "title": "Kernel loaded", "severity": "info", "base_severity_score": "1", "metadata": {}},
]
CORRELATIONS = [
    {
        "id": "c1",
        "title": "both",
        "rationale": "r",
        "related_finding_ids": ["/usr/bin/z", "/usr/bin/gone"],
        "risk_score_delta": 7,
    }
]
COUNTS = {"critical", "high", "medium", "low", "info", "unknown"}


def state() -> dict[str, Any]:
    return {"raw_findings": json.loads(json.dumps(RAW)), "correlations": json.loads(json.dumps(CORRELATIONS))}


@pytest.fixture
def host() -> Iterator[Callable[..., Any]]:
    """Return what installs our nodes on a scripted backend into the double; each is taken out at the end."""
    installed: list[Installation] = []

    def put(**options: Any) -> Any:
        models, backend = scripted(**options)
        installed.append(install(models, host="host_double"))
        return backend

    yield put
    for one in installed:
        one.uninstall()


def plainly(app: Any, given: dict[str, Any]) -> Any:
    return app.invoke(given)


def inside_a_loop(app: Any, given: dict[str, Any]) -> Any:
    async def run() -> Any:
        return app.invoke(given)

    return asyncio.run(run())


def by_ainvoke(app: Any, given: dict[str, Any]) -> Any:
    return asyncio.run(app.ainvoke(given))


WAYS = pytest.mark.parametrize("invoked", [plainly, inside_a_loop, by_ainvoke])


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("_duration", "latency_ms")
        return {key: timeless(item) for key, item in value.items() if not key.endswith(timed)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_the_doubles_own_nodes_lose_their_results_inside_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_provider, "_PROVIDER", SysscanProvider(scripted()[0], host="host_double"))
    assert "summary" in plainly(graph.app, {"raw_findings": RAW})
    assert "summary" not in inside_a_loop(graph.app, {"raw_findings": RAW})
    assert "risk_assessment" not in plainly(graph.app, state())  # correlations are dicts


@WAYS
def test_every_key_of_the_hosts_table_is_written(host: Callable[..., Any], invoked: Callable[..., Any]) -> None:
    backend = host()
    out = invoked(graph.app, state())
    assert set(out) <= set(graph.GraphState.__annotations__)
    assert out["warnings"] == []
    summary, metrics = out["summary"], out["metrics"]
    assert summary.keys() == {
        "executive_summary", "analyst", "consistency_findings", "triage_summary", "action_narrative", "metrics",
        "causal_hypotheses", "attack_coverage",
    }  # fmt: skip
    assert summary["executive_summary"] == "/home/alice/bin/x is the worst and /usr/bin/y follows; F99 is nobody."
    assert {"issue": "correlation_of_unknown_findings", "details": {"id": "c1", "finding_ids": ["/usr/bin/gone"]}} in summary[
        "consistency_findings"
    ]
    assert out["iteration_count"] == 1
    assert (metrics["tokens_prompt"], metrics["tokens_completion"]) == (400, 40)
    for name in ("summarize_calls", "rule_suggest_calls", "risk_analyzer_calls", "compliance_checker_calls"):
        assert metrics[name] == 1
        assert metrics[name.replace("_calls", "_duration")] >= 0
    assert metrics["rule_suggest_count"] == len(out["suggested_rules"]) == 1
    assert metrics["version"] == "1.0"
    assert (len(backend.asked("specialist")), len(backend.asked("generalist"))) == (3, 1)
    json.dumps(out)


@WAYS
def test_risk_and_compliance_have_the_hosts_shapes(host: Callable[..., Any], invoked: Callable[..., Any]) -> None:
    host()
    out = invoked(graph.app, state())
    risk, compliance = out["risk_assessment"], out["compliance_check"]
    assert risk["overall_risk_level"] == risk["overall_risk"] == risk["risk_level"] == "high"
    assert risk["counts"] == dict.fromkeys(COUNTS, 0) | {"high": 1, "medium": 1, "low": 1}
    assert (risk["total_risk_score"], risk["average_risk_score"], risk["finding_count"]) == (157, 50.0, 3)
    assert risk["top_findings"][0] == {
        "id": "/home/alice/bin/x", "title": "SUID binary found", "risk_score": 70, "severity": "high",
    }  # fmt: skip
    assert risk["risk_trends"] == {"high_priority_count": 0, "new_findings_count": 0, "trending_up": False}
    assert (risk["high_severity_count"], risk["correlation_count"]) == (1, 1)
    assert risk["risk_factors"][0] == "SUID binary found: It lets anyone become root."
    assert risk["recommendations"] == ["Remove the bit"]
    assert risk["confidence_score"] == pytest.approx(0.833)
    assert compliance["standards"].keys() == {"PCI DSS", "HIPAA", "ISO27001"}
    assert compliance["standards"]["PCI DSS"] == {"finding_ids": ["/home/alice/bin/x", "/usr/bin/y", "/usr/bin/z"], "count": 3}
    assert compliance["total_compliance_findings"] == sum(one["count"] for one in compliance["standards"].values())
    assert compliance["pci_dss_compliant"] is False
    assert "NIST SP 800-53 AC-6" in compliance["compliance_gaps"]
    assert compliance["remediation_priority"] == "medium"


def test_rules_have_the_hosts_shape(host: Callable[..., Any]) -> None:
    host()
    [rule] = graph.app.invoke(state())["suggested_rules"]
    assert rule == {
        "id": "gap_suid_binary_found",
        "title": "Recurring: suid binary found",
        "rationale": "2 findings that no correlation explains, the worst of them high"
        " | specialist: It lets anyone become root. Check who put it there.",
        "conditions": [{"field": "title", "contains": word} for word in ("suid", "binary", "found")],
        "logic": "all",
        "risk_score_delta": 10,
        "tags": ["auto_suggested", "gap_candidate", "refined", "attack:T1548.001"],
    }


def test_rules_come_from_words_that_different_titles_share() -> None:
    nodes = HostNodes(scripted()[0], host="host_double")
    titles = ("Suspicious process name", "Another anomalous process")
    found = [{"id": title, "title": title, "severity": "high", "risk_score": 70} for title in titles]
    [rule] = nodes.enhanced_suggest_rules({"enriched_findings": found})["suggested_rules"]
    assert rule["conditions"] == [{"field": "title", "contains": "process"}]


def test_the_same_state_gives_the_same_result_each_way(host: Callable[..., Any]) -> None:
    host()
    results = [timeless(invoked(graph.app, state())) for invoked in (plainly, inside_a_loop, by_ainvoke)]
    assert results[0] == results[1] == results[2]


def test_four_graphs_at_once(host: Callable[..., Any]) -> None:
    backend = host()

    async def run() -> list[Any]:
        return await asyncio.gather(*(graph.app.ainvoke(state()) for _ in range(4)))

    results = asyncio.run(run())
    assert all(timeless(out) == timeless(results[0]) for out in results)
    assert len(backend.asked("generalist")) == 4


class Patient(ScriptedSession):
    """Answers when the event loop has gone on."""

    gone_on = threading.Event()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        assert self.gone_on.wait(30)
        return super().generate(requests)


def test_the_event_loop_goes_on_while_a_node_asks(host: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "open", lambda self, model: Patient(self, model.role))
    host()

    async def run() -> Any:
        running = [asyncio.ensure_future(graph.app.ainvoke(state())), asyncio.ensure_future(graph.risk_analyzer(state()))]
        await asyncio.sleep(0)
        Patient.gone_on.set()
        return await asyncio.gather(*running)

    out, assessed = asyncio.run(run())
    assert out["summary"]["metrics"]["fallback"] is False
    assert assessed["risk_assessment"]["finding_count"] == 0


@WAYS
def test_nothing_hostile_reaches_a_prompt(host: Callable[..., Any], invoked: Callable[..., Any]) -> None:
    backend = host()
    found = hostile_findings()
    given = {
        "raw_findings": found,
        "correlations": [
            {"id": found[0]["id"], "title": found[0]["title"], "rationale": USER, "related_finding_ids": [found[0]["id"]]}
        ],
        "baseline_results": {found[0]["id"]: {"status": found[0]["title"]}},
    }
    out = invoked(graph.app, given)
    assert out["warnings"] == []
    assert len(backend.prompts) == 2 * 4
    assert_safe(backend.prompts)
    assert out["summary"]["triage_summary"]["top_findings"][0]["id"] == found[0]["id"]


def test_a_model_that_fails_is_warnings_and_a_summary_that_says_so(host: Callable[..., Any]) -> None:
    backend = host(fails=("specialist", "generalist"))
    out = graph.app.invoke(state())
    [warning] = out["warnings"]
    assert warning.keys() == {"module", "stage", "error", "hint"}
    assert (warning["module"], warning["stage"]) == ("graph", "enhanced_summarize")
    assert "session is closed" in warning["error"]
    assert "hf_abc" not in json.dumps(out)
    assert out["summary"]["executive_summary"].startswith(WRITTEN_WITHOUT)
    assert out["summary"]["metrics"]["fallback"] is True
    assert out["risk_assessment"]["counts"]["high"] == 1
    assert out["risk_assessment"]["confidence_score"] == 0.5
    assert out["risk_assessment"]["risk_factors"] == []
    assert out["compliance_check"]["standards"]["PCI DSS"]["count"] == 3
    assert len(backend.asked("specialist")) == 3 + 3  # together, then each alone; never again in this run


def test_answers_are_kept_in_the_state_and_failures_asked_again() -> None:
    models, backend = scripted(breaks=("specialist",))
    nodes = HostNodes(models, host="host_double")
    found = [{**one, "risk_score": 1} for one in RAW]
    once = nodes.enhanced_summarize_host_state({"enriched_findings": found})
    assert list(once["cache"][CACHE].values()) == [{}] * 4
    healthy, second = scripted()
    twice = HostNodes(healthy, host="host_double").enhanced_summarize_host_state(once)
    assert len(second.asked("specialist")) == len(backend.asked("specialist")) == 4
    assert once["cache"][CACHE].keys() == twice["cache"][CACHE].keys()
    assert twice["iteration_count"] == 2
    assert twice["metrics"]["summarize_calls"] == 2
    thrice = HostNodes(healthy, host="host_double").enhanced_summarize_host_state(twice)
    assert len(second.asked("specialist")) == 4
    assert thrice["metrics"]["tokens_prompt"] == 100
    assert thrice["summary"]["attack_coverage"]["techniques"] == ["T1548.001"]


def test_the_hosts_limit_of_iterations_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    models, backend = scripted()
    nodes = HostNodes(models, host="host_double")
    given = {"enriched_findings": RAW, "iteration_count": 3, "summary": {"executive_summary": "old"}}
    out = nodes.enhanced_summarize_host_state(given)
    assert out["summary"] == {"executive_summary": "old"}
    assert out["iteration_count"] == 3
    assert out["warnings"][0]["error"] == "iteration_limit_reached"
    assert not backend.prompts
    monkeypatch.setenv("AGENT_MAX_SUMMARY_ITERS", "4")
    assert nodes.enhanced_summarize_host_state(given)["iteration_count"] == 4


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"enriched_findings": None, "correlations": None, "metrics": None, "warnings": None, "cache": None},
        {"enriched_findings": "text", "correlations": 7, "metrics": [], "warnings": "w", "cache": [1], "baseline_results": 3},
        {"enriched_findings": [None, 5, {}, {"id": 3, "title": None, "severity": "HIGH", "risk_score": "many", "tags": "one"}]},
        {
            "enriched_findings": [
                {"id": "a", "title": "t", "metadata": [1], "correlation_refs": 3, "probability_actionable": "x"}
            ]
        },
        {"enriched_findings": [SimpleNamespace(id="a", title="t", severity="low")], "correlations": [SimpleNamespace(id="c")]},
        {"enriched_findings": RAW, "cache": {CACHE: {"k": "no answer"}}, "iteration_count": "x"},
    ],
)
def test_no_state_makes_a_node_raise(given: dict[str, Any]) -> None:
    nodes = HostNodes(scripted()[0], host="host_double")
    for name, node in nodes.nodes().items():
        out = node(given)
        assert given.keys() <= out.keys(), name
        assert not [warning for warning in out["warnings"] if isinstance(warning, dict)], name


def test_a_fault_of_ours_is_a_warning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of order; key hf_abcdefghijklmnopqrstuvwx")

    monkeypatch.setattr("sysscan_langgraph.host.nodes.risk_assessment", broken)
    out = HostNodes(scripted()[0], host="host_double").risk_analyzer({"enriched_findings": RAW, "risk_assessment": {"old": 1}})
    [warning] = out["warnings"]
    assert warning["error"] == "RuntimeError: out of order; key [HF_TOKEN]"
    assert warning["stage"] == "risk_analyzer"
    assert out["risk_assessment"] == {"old": 1}
    assert out["metrics"]["risk_analyzer_duration"] >= 0


def test_what_a_finding_states_counts_once_and_without_a_model() -> None:
    found = [
        {"id": "f1", "title": "Cardholder data", "severity": "high", "metadata": {"compliance_standard": "PCI"}},
        {"id": "f2", "title": "Record", "severity": "medium", "tags": ["hipaa"]},
        {"id": "f3", "title": "pci and PCI_DSS gap", "severity": "info", "tags": ["pci", "hipaa"]},
        {"id": "f3", "title": "the same again, HIPAA and ISO 27001", "severity": "low"},
    ]
    nodes = HostNodes(scripted(fails=("specialist",))[0], host="host_double", max_findings=0)
    standards = nodes.compliance_checker({"enriched_findings": found})["compliance_check"]["standards"]
    assert standards["PCI DSS"] == {"finding_ids": ["f1", "f3"], "count": 2}
    assert standards["HIPAA"] == {"finding_ids": ["f2", "f3"], "count": 2}
    assert standards["ISO27001"] == {"finding_ids": ["f3"], "count": 1}


@pytest.mark.parametrize(
    ("levels", "priority"), [("ccl", "immediate"), ("hhh", "high"), ("hhl", "medium"), ("ml", "low"), ("", "low")]
)
def test_remediation_priority(levels: str, priority: str) -> None:
    names = {"c": "critical", "h": "high", "m": "medium", "l": "low"}
    found = [{"id": level, "title": "t", "severity": names[level]} for level in levels]
    out = HostNodes(scripted()[0], host="host_double").compliance_checker({"enriched_findings": found})
    assert out["compliance_check"]["remediation_priority"] == priority


def test_a_disagreement_of_two_levels_is_told() -> None:
    models, _ = scripted(
        answers={"specialist": {**SPECIALIST_SAYS, "severity": "critical"}, "generalist": {"executive_summary": "x"}}
    )
    out = HostNodes(models, host="host_double").enhanced_summarize_host_state({"enriched_findings": RAW[1:2]})
    assert out["summary"]["consistency_findings"] == [
        {"issue": "severity_disagreement", "details": {"id": "/usr/bin/y", "reported": "medium", "specialist": "critical"}}
    ]


def test_the_most_severe_findings_are_asked_about_first() -> None:
    models, backend = scripted()
    HostNodes(models, host="host_double", max_findings=1).risk_analyzer({"enriched_findings": RAW[::-1]})
    [asked] = backend.asked("specialist")
    assert "suid: 1" in asked.messages[-1]["content"]


def test_the_state_can_be_checkpointed_and_gone_on_with(host: Callable[..., Any]) -> None:
    backend = host()
    app = graph.workflow.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    app.invoke(state(), config)
    assert app.get_state(config).values["summary"]["metrics"]["fallback"] is False
    out = app.invoke({}, config)
    assert out["iteration_count"] == 2
    assert len(backend.asked("specialist")) == 3
    assert len(backend.asked("generalist")) == 2


def test_wrong_numbers_are_refused() -> None:
    models, _ = scripted()
    with pytest.raises(UserError, match="max_findings is -1; expected 0 or more findings"):
        HostNodes(models, max_findings=-1)
    with pytest.raises(UserError, match="time_limit is 0; expected more than 0 seconds"):
        HostNodes(models, time_limit=0)
    with pytest.raises(UserError, match="max_findings is 'x'; expected 0 or more findings"):
        HostNodes(models, max_findings="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="time_limit is None; expected more than 0 seconds"):
        HostNodes(models, time_limit=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 5, []])
def test_what_is_no_state_is_refused(given: Any) -> None:
    for node in HostNodes(scripted()[0], host="host_double").nodes().values():
        with pytest.raises(UserError, match=f"was given {type(given).__name__}; expected a state of the host"):
            node(given)
