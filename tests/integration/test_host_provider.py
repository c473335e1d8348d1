"""The host's provider on our models: the protocol, the host's traps, and what leaves for a prompt."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from host_double import llm_provider, pipeline
from host_double import models as records
from host_double.graph_nodes_scaffold import reduced
from host_double.scripted import (
    GENERALIST_SAYS,
    SPECIALIST_SAYS,
    USER,
    assert_safe,
    hostile_findings,
    scripted,
)

from sysscan_langgraph import Served
from sysscan_langgraph.host import SysscanProvider
from sysscan_langgraph.host.analyst import WRITTEN_WITHOUT
from sysscan_langgraph.host.provider import UNCHANGED
from sysscan_langgraph.host.shapes import ProviderMetadata, Summaries
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.roles import GENERALIST, SPECIALIST

FINDINGS = [
    {"id": "/home/alice/bin/x", "title": "SUID binary x", "severity": "high", "risk_score": 70, "tags": ["suid"]},
    {"id": "/usr/bin/y", "title": "Port 23 open", "severity": "medium", "risk_score": 50, "tags": ["network"]},
]
CORRELATIONS = [
    records.Correlation(
        id="corr-1", title="Root for all", rationale="both", related_finding_ids=["/home/alice/bin/x", "/usr/bin/y"]
    ),
    records.Correlation(id="corr-2", title="Nothing", rationale="none", related_finding_ids=[]),
]
ACTIONS = [records.ActionItem(priority=1, action="Look at x", correlation_refs=["corr-1"])]


def made(**options: Any) -> tuple[SysscanProvider, Any]:
    models, backend = scripted(**options)
    return SysscanProvider(models, host="host_double"), backend


def summarized(provider: SysscanProvider, **options: Any) -> tuple[Any, Any]:
    return provider.summarize(reduced(FINDINGS), CORRELATIONS, ACTIONS, **options)


def test_a_summary_has_the_hosts_classes_and_every_field_of_its_shape() -> None:
    provider, _ = made()
    summaries, metadata = summarized(provider, baseline_context={"/usr/bin/y": {"status": "new"}})
    assert type(summaries) is records.Summaries
    assert type(metadata) is llm_provider.ProviderMetadata
    assert not isinstance(provider, llm_provider.NullLLMProvider)
    assert all(value is not None for value in summaries.model_dump().values())
    assert summaries.executive_summary == "/home/alice/bin/x is the worst and /usr/bin/y follows; F99 is nobody."
    assert summaries.analyst["key_findings"] == [
        {"text": "both give root away", "finding_ids": ["/home/alice/bin/x", "/usr/bin/y"]}
    ]
    assert summaries.consistency_findings == [{"issue": "empty_correlation", "details": {"id": "corr-2"}}]
    assert summaries.triage_summary["correlation_count"] == 2
    assert summaries.action_narrative == "1. Look at x (corr corr-1)\n2. take it off\n3. Remove the bit"
    assert summaries.attack_coverage["techniques"] == ["T1548.001"]
    assert summaries.attack_coverage["tag_hits"] == {"suid": ["T1548.001"], "network": ["T1548.001"]}
    [hypothesis] = summaries.causal_hypotheses
    assert hypothesis["speculative"] is True
    assert hypothesis["confidence"] == "low"


def test_tokens_of_all_questions_are_in_the_metrics_which_the_host_keeps() -> None:
    provider, backend = made()
    summaries, metadata = summarized(provider)
    asked = len(backend.asked("specialist")) + len(backend.asked("generalist"))
    assert asked == 3
    assert (summaries.metrics["tokens_prompt"], summaries.metrics["tokens_completion"]) == (100 * asked, 10 * asked)
    assert (metadata.tokens_prompt, metadata.tokens_completion) == (100 * asked, 10 * asked)
    assert (metadata.fallback, metadata.error_message, metadata.cached) == (False, None, False)
    assert metadata.model_name == "generalist_model_q4km"


def test_without_the_host_there_are_twins_of_its_classes() -> None:
    models, _ = scripted()
    summaries, metadata = SysscanProvider(models, host="no_such_host").summarize({"top_findings": FINDINGS}, [], [])
    assert type(summaries) is Summaries
    assert type(metadata) is ProviderMetadata
    assert Summaries.model_fields.keys() == records.Summaries.model_fields.keys()
    assert ProviderMetadata._fields == llm_provider.ProviderMetadata._fields
    assert ProviderMetadata._field_defaults == llm_provider.ProviderMetadata._field_defaults


def test_prompts_hold_no_id_and_answers_get_them_back() -> None:
    provider, backend = made()
    summarized(provider)
    assert not [prompt for prompt in backend.prompts if "alice" in prompt or "corr-1" in prompt]
    [asked] = backend.asked("generalist")
    assert "F1 [high, risk 70] SUID binary x" in asked.messages[-1]["content"]
    assert "C1 Root for all: both [F1, F2]" in asked.messages[-1]["content"]
    assert "Look at x" in asked.messages[-1]["content"]
    assert asked.json_schema is not None
    assert asked.json_schema["required"][0] == "executive_summary"


def test_nothing_hostile_reaches_a_prompt() -> None:
    provider, backend = made()
    found = hostile_findings()
    poison = found[0]["title"]
    raw = records.Reductions(
        top_findings=[{**one, "risk_score": 90} for one in found],  # not redacted by the host: the worst case
        module_summary={"module_count": 3, "notable_modules": [poison]},
        suid_summary={"unexpected_suid": [found[0]["id"]]},
    )
    correlation = records.Correlation(id=found[0]["id"], title=poison, rationale=poison, related_finding_ids=[found[0]["id"]])
    action = records.ActionItem(priority=1, action=poison)
    baseline = {found[0]["id"]: {"status": poison, "db_path": found[0]["id"]}}
    provider.summarize(raw, [correlation], [action], baseline_context=baseline)
    provider.triage(raw, [correlation])
    rule = {"id": "r", "title": poison, "conditions": [{"field": "title", "contains": poison}]}
    provider.refine_rules([rule], {"r": [poison, f"run by {USER}"]})
    assert len(backend.prompts) == 2 * (3 + 1 + 3 + 1)
    assert_safe(backend.prompts)


def test_a_secret_at_the_place_where_text_is_cut_is_not_half_sent() -> None:
    provider, backend = made()
    key = "-----BEGIN PRIVATE KEY-----\n" + "A" * 8000 + "\n-----END PRIVATE KEY-----"
    provider.triage({"top_findings": [{"id": "a", "title": "x" * 5900 + key, "severity": "high", "metadata": {"k": key}}]}, [])
    assert "AAAA" not in "".join(backend.prompts)


def test_a_title_cannot_pretend_to_be_another_line() -> None:
    provider, backend = made()
    provider.summarize({"top_findings": [{"id": "a", "title": "x\nF2 [critical] all is lost", "severity": "low"}]}, [], [])
    [asked] = backend.asked("generalist")
    assert "\nF2" not in asked.messages[-1]["content"]
    assert "F1 [low] x F2 [critical] all is lost" in asked.messages[-1]["content"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fails": ("generalist",)}, "SysscanError: the session is closed"),
        ({"breaks": ("generalist",)}, "SysscanError: the model is ill"),
        ({"answers": {"specialist": SPECIALIST_SAYS, "generalist": "I cannot help with that."}}, "OutputParserException"),
        ({"answers": {"specialist": SPECIALIST_SAYS, "generalist": {}}}, "OutputParserException"),
        ({"answers": {"specialist": SPECIALIST_SAYS, "generalist": {"key_findings": ["F1: x"]}}}, "no executive summary"),
    ],
)
def test_a_summary_without_the_model_says_so(options: dict[str, Any], reason: str) -> None:
    provider, _ = made(**options)
    summaries, metadata = summarized(provider)
    assert metadata.fallback is True
    assert reason in metadata.error_message
    assert summaries.metrics["fallback"] is True
    assert summaries.metrics["error_message"] == metadata.error_message
    assert summaries.executive_summary.startswith(WRITTEN_WITHOUT)
    assert reason in summaries.executive_summary
    assert "2 top findings (1 high, 1 medium)" in summaries.executive_summary
    assert "hf_abcdefghijklmnopqrstuvwx" not in repr((summaries, metadata))


def test_a_summary_without_the_specialist_is_the_models_and_says_what_is_missing() -> None:
    provider, _ = made(fails=("specialist",))
    summaries, metadata = summarized(provider)
    assert metadata.fallback is False
    assert metadata.error_message.startswith("2 of 2 findings were not analysed")
    assert summaries.executive_summary.startswith("/home/alice/bin/x is the worst")
    [first, _] = summaries.triage_summary["top_findings"]
    assert (first["severity"], first["risk_score"]) == ("high", 70)


def test_whatever_the_host_hands_over_there_is_a_summary() -> None:
    provider, _ = made()
    for reductions in (
        None,
        {},
        {"top_findings": "no list"},
        {"top_findings": [None, 7, {"id": None, "severity": 3}]},
        object(),
    ):
        summaries, _ = provider.summarize(reductions, None, None)
        assert summaries.executive_summary
        assert provider.triage(reductions, None)[0]["correlation_count"] == 0


def test_a_fault_of_ours_is_told_and_never_raised(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order; key hf_abcdefghijklmnopqrstuvwx")

    provider, _ = made()
    monkeypatch.setattr("sysscan_langgraph.host.provider.Scan.of_reductions", broken)
    monkeypatch.setattr("sysscan_langgraph.host.provider.rules.refine", broken)
    summaries, metadata = summarized(provider)
    assert summaries.executive_summary == (
        f"{WRITTEN_WITHOUT} (RuntimeError: out of order; key [HF_TOKEN]). The scan could not be read."
    )
    assert metadata.fallback is True
    triage, metadata = provider.triage(reduced(FINDINGS), CORRELATIONS)
    assert triage == {"top_findings": [], "correlation_count": 2}
    assert (metadata.fallback, metadata.error_message) == (True, "RuntimeError: out of order; key [HF_TOKEN]")
    refined, metadata = provider.refine_rules([{"id": "r"}])
    assert refined == [{"id": "r"}]
    assert metadata.fallback is True
    assert "hf_" not in caplog.text
    assert caplog.text.count("out of order") == 3


def test_reductions_that_cannot_be_read_at_all_are_told_and_not_raised() -> None:
    class Broken(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("out of order")

    summaries, metadata = made()[0].summarize(Broken(top_findings=[]), [], [])
    assert summaries.executive_summary == f"{WRITTEN_WITHOUT} (RuntimeError: out of order). The scan could not be read."
    assert metadata.fallback is True


def test_a_skipped_summary_with_an_empty_previous_one_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, backend = made()
    monkeypatch.setattr(llm_provider, "_PROVIDER", provider)
    summaries = pipeline.summarized([{**FINDINGS[1], "risk_score": 5}])
    assert summaries.executive_summary is not None
    assert summaries.executive_summary.startswith(UNCHANGED)
    assert "Port 23 open" in summaries.executive_summary
    assert summaries.metrics is not None
    assert summaries.metrics["skipped"] is True
    assert summaries.metrics["skip_reason"] == "low_risk_no_change"
    assert not backend.prompts
    assert (
        pipeline.summarized(FINDINGS).executive_summary
        == "/home/alice/bin/x is the worst and /usr/bin/y follows; F99 is nobody."
    )


def test_a_previous_summary_of_wrong_types_is_repeated_as_far_as_it_goes() -> None:
    summaries, metadata = summarized(made()[0], skip=True, previous={"executive_summary": "As before.", "metrics": 5})
    assert summaries.executive_summary == f"As before. | {UNCHANGED}"
    assert metadata.error_message is None


def test_a_skipped_summary_repeats_the_previous_one_however_often() -> None:
    provider, backend = made()
    previous = records.Summaries(executive_summary="All as before.", analyst={"n": 1}, metrics={"kept": 1})
    once, metadata = summarized(provider, skip=True, previous=previous)
    assert once.executive_summary == f"All as before. | {UNCHANGED}"
    assert metadata.cached is True
    assert metadata.fallback is False
    assert once.metrics["kept"] == 1
    assert once.analyst == {"n": 1}
    twice, _ = summarized(provider, skip=True, previous=once)
    assert twice.executive_summary == once.executive_summary
    assert previous.executive_summary == "All as before."
    assert not backend.prompts


def test_triage_has_the_hosts_shape_and_the_specialists_judgement() -> None:
    provider, _ = made()
    triage, metadata = provider.triage(reduced(FINDINGS), CORRELATIONS)
    assert triage["correlation_count"] == 2
    assert triage["top_findings"][1] == {
        "id": "/usr/bin/y",
        "title": "Port 23 open",
        "severity": "high",
        "risk_score": 88,
        "priority": "high",
        "reported_severity": "medium",
        "reported_risk_score": 50,
    }
    assert (metadata.tokens_prompt, metadata.fallback) == (200, False)


def test_the_specialist_can_raise_a_finding_and_never_hide_it() -> None:
    found = [{"id": "bad", "title": "t", "severity": "critical", "risk_score": 90}]
    found += [{"id": f"m{number}", "title": "u", "severity": "medium", "risk_score": 50} for number in range(6)]
    provider, _ = made(answers={"specialist": {**SPECIALIST_SAYS, "severity": "info", "risk_score": 0}, "generalist": {}})
    first, *_ = provider.triage(records.Reductions(top_findings=found), [])[0]["top_findings"]
    assert (first["id"], first["severity"], first["reported_severity"]) == ("bad", "info", "critical")
    assert (first["priority"], first["risk_score"], first["reported_risk_score"]) == ("immediate", 0, 90)


def test_triage_without_the_model_is_the_scanners_and_says_so() -> None:
    provider, _ = made(fails=("specialist",))
    triage, metadata = provider.triage(reduced(FINDINGS), [])
    assert [row["severity"] for row in triage["top_findings"]] == ["high", "medium"]
    assert metadata.fallback is True
    assert "session is closed" in metadata.error_message


def test_rules_are_refined_in_place_and_returned() -> None:
    provider, _ = made()
    rule: dict[str, Any] = {"id": "r1", "title": "Odd", "rationale": "seen twice", "conditions": [], "tags": ["x"]}
    suggestions = [rule, "no rule"]
    refined, metadata = provider.refine_rules(suggestions, {"r1": ["suid binary in /tmp", "suid program in /tmp"]})
    assert refined is suggestions
    assert rule["conditions"] == [{"field": "title", "contains": "suid"}]
    assert rule["rationale"].startswith("seen twice | all examples say: suid | specialist: It lets anyone become root.")
    assert rule["tags"] == ["x", "refined", "attack:T1548.001"]
    assert rule["logic"] == "all"
    assert metadata.fallback is False
    again, _ = provider.refine_rules(suggestions, {"r1": ["suid binary in /tmp", "suid program in /tmp"]})
    assert again[0]["conditions"] == [{"field": "title", "contains": "suid"}]
    assert again[0]["tags"] == ["x", "refined", "attack:T1548.001"]


def test_rules_without_the_model_are_refined_by_counting_and_say_so() -> None:
    provider, _ = made(fails=("specialist",))
    rule: dict[str, Any] = {"id": "r1", "title": "Odd", "rationale": "seen twice"}
    _, metadata = provider.refine_rules([rule])
    assert rule == {
        "id": "r1", "title": "Odd", "rationale": "seen twice", "conditions": [], "logic": "all", "tags": ["refined"],
    }  # fmt: skip
    assert metadata.fallback is True


def test_equal_questions_are_asked_and_counted_once() -> None:
    provider, backend = made()
    same = [{"id": f"/usr/bin/{name}", "title": "SUID binary", "severity": "low", "risk_score": 9} for name in "abcd"]
    triage, metadata = provider.triage(records.Reductions(top_findings=same), [])
    assert len(backend.asked("specialist")) == 1
    assert metadata.tokens_prompt == 100
    assert [row["risk_score"] for row in triage["top_findings"]] == [88] * 4


def test_one_refused_question_costs_no_other() -> None:
    provider, _ = made(refuses="Port 23")
    triage, metadata = provider.triage(reduced(FINDINGS), [])
    assert [row["risk_score"] for row in triage["top_findings"]] == [88, 50]
    assert metadata.fallback is False
    assert "a request holds 'Port 23'" in metadata.error_message


class Endless(Backend):
    """Talks for ever and knows no deadline."""

    name: ClassVar[str] = "endless"

    def open(self, model: ModelRef) -> Session:
        return EndlessSession()


class EndlessSession(Session):
    def generate(self, requests: Any) -> Iterator[GenerationEvent]:
        yield GenerationEvent(requests[0].id, '{"executive_summary": "It ')
        while True:
            time.sleep(0.001)
            yield GenerationEvent(requests[0].id, "goes on ")

    def close(self) -> None:
        pass


def test_the_time_limit_ends_what_would_not_end() -> None:
    refs = {role.name: ModelRef(Path("m.gguf"), role) for role in (SPECIALIST, GENERALIST)}
    provider = SysscanProvider(Served(refs, Endless()), host="host_double", time_limit=0.2)
    summaries, metadata = summarized(provider)
    assert metadata.fallback is False
    assert summaries.executive_summary.startswith("It")
    assert "the summary was cut short (deadline); 2 of 2 findings were not analysed" in metadata.error_message


def test_a_deadline_goes_with_every_request() -> None:
    models, backend = scripted()
    summarized(SysscanProvider(models, host="host_double", time_limit=30))
    requests: list[GenerationRequest] = [*backend.asked("specialist"), *backend.asked("generalist")]
    assert all(request.deadline is not None and 0 < request.deadline <= 30 for request in requests)
    assert all(request.shorten for request in requests)


def test_many_threads_get_each_their_own() -> None:
    provider, backend = made(answers={"specialist": SPECIALIST_SAYS, "generalist": {"executive_summary": "F1."}})
    barrier = threading.Barrier(8)

    def run(number: int) -> str:
        barrier.wait()
        finding = {"id": f"/srv/{number}", "title": f"t{number}", "severity": "low"}
        return str(provider.summarize({"top_findings": [finding]}, [], [])[0].executive_summary)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [f"/srv/{number}." for number in range(8)]
    assert len(backend.asked("generalist")) == 8


def test_the_async_sisters_leave_the_event_loop_free() -> None:
    provider, _ = made()

    async def run() -> tuple[Any, ...]:
        return await asyncio.gather(
            provider.asummarize(reduced(FINDINGS), [], []), provider.atriage(reduced(FINDINGS), []), provider.arefine_rules([])
        )

    (summaries, _), (triage, _), (rules, _) = asyncio.run(run())
    assert summaries.executive_summary
    assert len(triage["top_findings"]) == 2
    assert rules == []


def test_wrong_numbers_and_roles_are_refused() -> None:
    models, _ = scripted()
    for options, message in (
        ({"time_limit": 0}, "time_limit is 0; expected more than 0 seconds"),
        ({"time_limit": "5"}, "time_limit is '5'; expected more than 0 seconds"),
        ({"time_limit": None}, "time_limit is None; expected more than 0 seconds"),
        ({"triage_findings": "x"}, "triage_findings is 'x'; expected 0 or more findings"),
        ({"max_tokens": "x"}, "max_tokens is 'x'; expected 1 or more tokens"),
        ({"triage_findings": -1}, "triage_findings is -1; expected 0 or more findings"),
        ({"max_tokens": 0}, "max_tokens is 0; expected 1 or more tokens"),
        ({"summary_tokens": 0}, "summary_tokens is 0; expected 1 or more tokens"),
        ({"specialist": "specialst"}, "Did you mean 'specialist'"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            SysscanProvider(models, **options)  # type: ignore[arg-type]


def test_what_the_models_say_is_printable_and_json() -> None:
    says = {**GENERALIST_SAYS, "executive_summary": "F1 \x1b[31mred\u202e"}
    provider, _ = made(answers={"specialist": SPECIALIST_SAYS, "generalist": says})
    summaries, _ = summarized(provider)
    assert summaries.executive_summary == "/home/alice/bin/x red"
    json.dumps(summaries.model_dump())
    assert USER
