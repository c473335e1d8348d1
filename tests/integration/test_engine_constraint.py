"""Constrained answers: text that is put in without the model, and JSON that ends within max_tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from engine_cases import FINDING, model_file, opened, request, said

from sysscan_langgraph.engine.answer import Tuning
from sysscan_langgraph.engine.constraint import Constraint
from sysscan_langgraph.engine.sampling import Grammar, Sampler, Tools
from sysscan_langgraph.engine.weights import Weights
from sysscan_langgraph.grammar import grammar_of
from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_models.interfaces import GenerationRequest, ModelRef
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import SPECIALIST

STRICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "analysis": {"type": "string"},
        "severity": {"enum": ["info", "low", "medium", "high", "critical"]},
        "risk_score": {"type": "integer", "minimum": 0, "maximum": 100},
        "techniques": {"type": "array", "items": {"type": "string", "pattern": r"^T\d{4}$"}},
        "steps": {"type": "array", "items": {"type": "object", "properties": {"do": {"type": "string"}}, "required": ["do"]}},
        "sure": {"type": "boolean"},
    },
    "required": ["analysis", "severity", "risk_score", "techniques", "steps", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def session() -> Iterator[LlamaCppSession]:
    with opened(model_file(), n_parallel=8) as session:
        yield session


@pytest.fixture(scope="module")
def weights(session: LlamaCppSession) -> Weights:
    found = session._engine.weights
    assert found is not None
    return found


def look_ahead(weights: Weights, schema: dict[str, Any], written: str = "", *, is_json: bool = True) -> Constraint:
    tools = Tools(weights)
    grammar = Grammar.start(tools, grammar_of(schema))
    constraint = Constraint(tools, grammar, is_json=is_json)
    for token in weights.vocabulary.encode_text(written, "text")[0]:
        assert grammar.allows(token)
        grammar.accept(token)
        constraint.add(weights.vocabulary.piece(token))
    return constraint


def spelt(weights: Weights, tokens: tuple[int, ...]) -> str:
    return b"".join(map(weights.vocabulary.piece, tokens)).decode()


# Forced text


def test_text_without_an_alternative_is_known(weights: Weights) -> None:
    given = look_ahead(weights, STRICT).given(500)
    assert '{"analysis":"'.startswith(spelt(weights, given.tokens))
    assert len(given.tokens) == len(weights.vocabulary.encode_text('{"analysis":"', "text")[0]) - 1  # the last is the model's
    given = look_ahead(weights, STRICT, '{"analysis":"x"').given(500)
    assert spelt(weights, given.tokens).startswith(',"severity')
    assert look_ahead(weights, STRICT, '{"analysis":"x').given(500).tokens == ()
    const = look_ahead(weights, {"const": {"a": [1, "é"]}}).given(500)
    assert const.ended
    assert orjson.loads(spelt(weights, const.tokens)) == {"a": [1, "é"]}
    assert look_ahead(weights, {"type": "null"}, "null").given(500) == dataclasses.replace(const, tokens=())


def test_forced_text_is_the_text_that_the_model_would_be_held_to() -> None:
    messages = tuple(conversation(SPECIALIST, finding_document(FINDING)))
    asked = GenerationRequest("r", messages, max_tokens=60, json_schema=STRICT)
    answers = []
    for tuning in (Tuning(), Tuning(forced_text=False), Tuning(sample_first=False), Tuning(shared_prefix=False)):
        from sysscan_langgraph import LlamaCpp

        options = LlamaCpp(threads=1, n_ctx=768, n_parallel=1)
        with LlamaCppSession(ModelRef(model_file(), SPECIALIST), options, tuning) as session:
            answers.append(orjson.loads(said(session.generate([asked]))))
    assert answers[2:] == answers[:1] * 2
    assert all(answer.keys() == STRICT["properties"].keys() for answer in answers)


def test_an_answer_without_a_choice_asks_no_model(session: LlamaCppSession) -> None:
    (event,) = session.generate([request(json_schema={"const": [1, 2, 3]}, max_tokens=60)])
    assert (orjson.loads(event.text), event.finish_reason) == ([1, 2, 3], "stop")
    assert event.completion_tokens > 1
    (event,) = session.generate([request(json_schema={"const": [1, 2, 3]}, max_tokens=2)])
    assert (event.finish_reason, event.completion_tokens) == ("length", 2)


def test_the_end_of_a_grammar_ends_the_answer(session: LlamaCppSession) -> None:
    last = list(session.generate([request(json_schema={"type": "boolean"}, max_tokens=60)]))[-1]
    assert last.finish_reason == "stop"
    assert last.completion_tokens <= 2  # and no third one that would say so


def test_a_grammar_of_ones_own_may_be_any_text(session: LlamaCppSession) -> None:
    events = list(session.generate([request(grammar='root ::= "Severity: " ("low" | "high") "\\n"', max_tokens=60)]))
    assert said(events) in ("Severity: low\n", "Severity: high\n")
    assert events[-1].finish_reason == "stop"
    from sysscan_models.errors import UserError

    with pytest.raises(UserError, match=r"llama\.cpp refuses the grammar: "):
        session.generate([request(grammar="root ::= (")])
    with pytest.raises(UserError, match="has a json_schema and a grammar; expected one of them"):
        session.generate([request(grammar='root ::= "a"', json_schema={"type": "null"})])


def test_control_tokens_are_no_text_of_a_grammar(session: LlamaCppSession, weights: Weights) -> None:
    tools = Tools(weights)
    grammar = Grammar.start(tools, grammar_of({"type": "string"}))
    for token in weights.vocabulary.encode_text('"a', "text")[0]:
        grammar.accept(token)
    start, end = (weights.vocabulary.control_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert not grammar.allows(start)
    assert not grammar.allows(end)
    plan = session.plan(request(json_schema={"type": "string"}))
    for whole in (False, True):
        sampler = Sampler(tools, plan, sample_first=not whole)
        logits = np.zeros(weights.vocabulary.size, dtype=np.float32)
        logits[[start, end]] = 9.0
        chosen = sampler.choose(logits, int(logits.argmax()))
        assert weights.vocabulary.piece(chosen).startswith(b'"')
        sampler.close()


def test_the_shortlist_finds_what_the_whole_vocabulary_would(session: LlamaCppSession, weights: Weights) -> None:
    tools, plan = Tools(weights), session.plan(request(json_schema=STRICT))
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = random.standard_normal(weights.vocabulary.size).astype(np.float32)
        chosen = []
        for first in (True, False):
            sampler = Sampler(tools, plan, sample_first=first)
            chosen.append(sampler.choose(logits, int(logits.argmax())))
            sampler.close()
        assert chosen[0] == chosen[1]


# Closing in time


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [40, 48, 64, 90])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_that_runs_out_of_room_is_closed(session: LlamaCppSession, max_tokens: int, temperature: float) -> None:
    messages = tuple(conversation(SPECIALIST, finding_document(FINDING)))
    requests = [GenerationRequest(str(seed), messages, max_tokens, temperature, seed, json_schema=STRICT) for seed in range(4)]
    answers = dict.fromkeys(map(str, range(4)), "")
    for event in session.generate(requests):
        answers[event.id] += event.text
        assert event.completion_tokens <= max_tokens
        if event.finish_reason:
            assert event.finish_reason in ("length", "stop")
    for answer in map(orjson.loads, answers.values()):
        assert answer.keys() == STRICT["properties"].keys()


def test_what_is_cut_short_says_so(session: LlamaCppSession) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    reasons = set()
    for question in ("Tell me a very long story.", "What does the command `ls` do?", "Explain what sshd is for, in detail."):
        events = list(session.generate([request(question, json_schema=schema, max_tokens=16)]))
        assert orjson.loads(said(events)).keys() == {"text"}
        assert events[-1].completion_tokens <= 16
        assert (events[-1].finish_reason == "length") == (events[-1].completion_tokens > 13)
        reasons.add(events[-1].finish_reason)
    assert "length" in reasons


@pytest.mark.parametrize(
    ("written", "closed"),
    [
        ('{"analysis":"so', '{"analysis":"so","severity":'),
        ('{"analysis":"so\\', '{"analysis":"so\\'),
        ('{"analysis":"x","severity":"low","risk_score":7,"techniques":["T1059"', ',"techniques":["T1059"],"steps":[],"sure":'),
        ('{"analysis":"x","severity":"low","risk_score":7,"techniques":[],"steps":[{"do":"it', '"steps":[{"do":"it"}],"sure":'),
    ],
)
def test_strings_lists_and_objects_are_closed_at_the_first_place(weights: Weights, written: str, closed: str) -> None:
    constraint = look_ahead(weights, STRICT, written)
    constraint.given(10_000)
    need = constraint._need
    assert need > 0
    given = constraint.given(need + max(2, constraint._slack))
    assert (written + spelt(weights, given.tokens)).rstrip('"').endswith(closed)  # then the model chooses
    assert not given.ended
    last = constraint.given(need)
    assert last.ended
    assert len(last.tokens) == need
    answer = orjson.loads(written + spelt(weights, last.tokens))
    assert answer.keys() == STRICT["properties"].keys()
    assert constraint.shortened


def test_what_cannot_be_closed_goes_on_as_it_is(session: LlamaCppSession, weights: Weights) -> None:
    constraint = look_ahead(weights, STRICT, '{"analysis":"so')
    assert constraint.given(5).tokens == ()
    assert not constraint.shortened
    last = list(session.generate([request(json_schema=STRICT, max_tokens=8)]))[-1]
    assert (last.finish_reason, last.completion_tokens) == ("length", 8)


def test_an_optional_field_is_not_begun_when_there_is_no_room(session: LlamaCppSession) -> None:
    messages = tuple(conversation(SPECIALIST, finding_document(FINDING)))
    schema = SPECIALIST.response_model.model_json_schema()
    for max_tokens in (12, 24, 48):
        events = list(session.generate([GenerationRequest("r", messages, max_tokens, json_schema=schema)]))
        SPECIALIST.response_model.model_validate_json(said(events))
        assert events[-1].completion_tokens <= max_tokens
