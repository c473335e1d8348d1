from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import orjson
import pytest
from engine_cases import FINDING, HOSTILE, model_file, opened, request, said

from sysscan_langgraph import LlamaCpp
from sysscan_langgraph.engine.text import Text
from sysscan_langgraph.grammar import grammar_of
from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationRequest, ModelRef
from sysscan_models.plugins import plugin_manager
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import SPECIALIST, Sampling


@pytest.fixture(scope="module")
def session() -> Iterator[LlamaCppSession]:
    with opened(model_file()) as session:
        yield session


def test_it_is_registered_and_cheap_to_import() -> None:
    assert plugin_manager().get("backends", "llama_cpp") is LlamaCpp
    code = "import sys, sysscan_langgraph; sys.exit(bool({'llama_cpp', 'numpy', 'torch', 'langgraph'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Tokens and turns


def test_the_turns_are_those_of_llama_cpps_own_chat(session: LlamaCppSession) -> None:
    ids = session.encoder.prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    spelt = b"".join(session.vocabulary._bytes(token, special=True) for token in ids).decode()
    assert spelt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


# Answers


def test_an_answer_is_streamed_and_counted(session: LlamaCppSession) -> None:
    events = list(session.generate([request("What does the command `ls` do?", max_tokens=16)]))
    assert [event.finish_reason for event in events[:-1]] == [""] * (len(events) - 1)
    assert events[-1].finish_reason == "length"
    assert events[-1].completion_tokens == 16
    assert events[-1].prompt_tokens == len(session.encoder.prompt(request("What does the command `ls` do?").messages))
    assert len(events) > 8
    assert said(events).strip()


def test_many_requests_are_answered_in_order_each_ended_once(session: LlamaCppSession) -> None:
    requests = [GenerationRequest(str(number), request().messages, max_tokens=3) for number in range(3)]
    ended = [event.id for event in session.generate(requests) if event.finish_reason]
    assert ended == ["0", "1", "2"]
    assert list(session.generate([])) == []


def test_the_end_of_the_turn_stops_and_is_no_text(session: LlamaCppSession) -> None:
    events = list(session.generate([request("Answer with the single word yes.", max_tokens=200)]))
    assert events[-1].finish_reason == "stop"
    assert events[-1].completion_tokens < 200
    assert "<|im_end|>" not in said(events)


def test_a_greedy_answer_does_not_depend_on_what_was_asked_before(session: LlamaCppSession) -> None:
    messages = tuple(conversation(SPECIALIST, finding_document(FINDING)))
    ask = GenerationRequest("f", messages, max_tokens=12)
    first = said(session.generate([ask]))
    said(session.generate([request("Something else altogether"), dataclasses.replace(ask, id="g"), request("And more.")]))
    assert said(session.generate([ask])) == first
    with opened(model_file()) as fresh:
        assert said(fresh.generate([ask])) == first


def test_the_shared_prompt_ends_before_what_the_finding_says(session: LlamaCppSession) -> None:
    prompts = [
        conversation(SPECIALIST, finding_document({**FINDING, "title": title})) for title in ("one", "two", "\nuser", HOSTILE)
    ]
    ids = [session.encoder.prompt(messages) for messages in prompts]
    plans = [session.plan(GenerationRequest("r", tuple(messages))) for messages in prompts]
    assert [[token for segment in plan.segments for token in segment] for plan in plans] == ids
    shared = [len(plan.segments[0]) for plan in plans]
    assert len(set(shared)) == 1
    assert shared[0] > 80  # the system prompt is in it
    assert len({tuple(found[: shared[0]]) for found in ids}) == 1


def test_sampling_follows_seed_and_temperature(session: LlamaCppSession) -> None:
    def answers(**options: Any) -> str:
        return said(session.generate([request("Tell me a story.", max_tokens=8, **options)]))

    assert answers(temperature=1.2, seed=3) == answers(temperature=1.2, seed=3)
    assert len({answers(temperature=1.2, seed=seed) for seed in (0, 1, 2)}) > 1
    assert answers() == answers(temperature=0.0, seed=9)
    assert answers(temperature=1.0, seed=-1)
    assert answers(temperature=1.0, seed=2**40)


def test_the_roles_sampling_is_the_default() -> None:
    question = request("List the letter a ten times.", max_tokens=24)
    plain = dataclasses.replace(SPECIALIST, sampling=Sampling(max_tokens=5))
    with opened(model_file(), plain) as session:
        assert list(session.generate([request(max_tokens=None)]))[-1].completion_tokens == 5
        repeating = said(session.generate([question]))
    varied = dataclasses.replace(SPECIALIST, sampling=Sampling(repeat_penalty=1.8))
    with opened(model_file(), varied) as session:
        assert said(session.generate([question])) != repeating
    nucleus = dataclasses.replace(SPECIALIST, sampling=Sampling(temperature=5.0, top_p=1e-6))
    with opened(model_file(), nucleus) as session:
        assert said(session.generate([question])) == repeating  # nothing but the likeliest token is left


def test_a_stop_string_ends_the_answer_before_it(session: LlamaCppSession) -> None:
    whole = list(session.generate([request("Count from 1 to 9.", max_tokens=20)]))
    text = said(whole)
    events = list(session.generate([request("Count from 1 to 9.", max_tokens=20, stop=("", "never said", text[6:9]))]))
    assert said(events) == text[: text.index(text[6:9])]
    assert events[-1].finish_reason == "stop"
    held_back = list(session.generate([request("Count from 1 to 9.", max_tokens=20, stop=(text[-2:] + "\0",))]))
    assert said(held_back) == text
    assert held_back[-1].finish_reason == whole[-1].finish_reason


def test_pieces_of_characters_and_of_stop_strings_are_held_back() -> None:
    text = Text(("END",))
    data = "aé😀E".encode()
    assert [text.add(bytes([byte]))[0] for byte in data] == ["a", "", "é", "", "", "", "😀", ""]
    assert text.add(b"N") == ("", False)
    assert text.add(b"O") == ("ENO", False)
    assert text.add(b"xEND y") == ("x", True)
    text = Text(())
    assert text.add("😀".encode()[:2]) == ("", False)
    assert text.rest() == ""
    assert Text(()).add(b"\xff")[0] == "\ufffd"


def test_characters_of_several_tokens_arrive_whole(session: LlamaCppSession) -> None:
    schema = {"type": "string", "pattern": "^日本語😀ﷺ$"}
    events = list(session.generate([request(json_schema=schema, max_tokens=60)]))
    assert orjson.loads(said(events)) == "日本語😀ﷺ"
    assert events[-1].completion_tokens > len("日本語😀ﷺ") + 2
    assert events[-1].finish_reason == "stop"


# Grammar


def test_constrained_answers_follow_the_schema(session: LlamaCppSession) -> None:
    schema = {
        "type": "object",
        "properties": {
            "severity": {"enum": ["low", "high"]},
            "risk": {"type": "integer", "minimum": 0, "maximum": 100},
            "technique": {"type": "string", "pattern": r"^T\d{4}(\.\d{3})?$"},
            "note": {"type": "string", "maxLength": 8},
        },
        "required": ["severity", "risk", "technique", "note"],
        "additionalProperties": False,
    }
    asked = request("Assess it.", json_schema=schema, max_tokens=120)
    requests = [dataclasses.replace(asked, id=str(seed), temperature=2.0, seed=seed) for seed in range(2)]
    answers = dict.fromkeys(("r", "0", "1"), "")
    for event in session.generate([asked, *requests]):
        answers[event.id] += event.text
        assert event.finish_reason in ("", "stop")
    for answer in map(orjson.loads, answers.values()):
        assert answer.keys() == schema["properties"].keys()  # type: ignore[attr-defined]
        assert 0 <= answer["risk"] <= 100
        SPECIALIST.response_model.model_validate({"techniques": [answer["technique"]]})


def test_the_response_model_of_a_role_constrains(session: LlamaCppSession) -> None:
    messages = tuple(conversation(SPECIALIST, finding_document(FINDING)))
    schema = SPECIALIST.response_model.model_json_schema()
    events = list(session.generate([GenerationRequest("r", messages, 48, 1.0, 5, json_schema=schema)]))
    assert said(events).startswith("{")
    if events[-1].finish_reason == "stop":
        SPECIALIST.response_model.model_validate_json(said(events))


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({"type": "string", "pattern": r"^a\.b$"}, "[\\x2E]"),
        ({"type": "string", "pattern": r"^[\d\-]+(?:x|y)$"}, "[0-9\\x2D]"),
        ({"type": "integer", "minimum": 1, "maximum": 3}, '"1" | "2" | "3"'),
        ({"type": "integer", "minimum": 0, "maximum": 10**9}, "integral-part"),
        ({"type": "array", "items": {"type": "string"}}, r"[^\"\\\x7F\x00-\x1F]".replace(r"\"", '"')),
    ],
)
def test_what_the_converter_would_lose_is_kept(session: LlamaCppSession, schema: dict[str, Any], kept: str) -> None:
    assert kept in grammar_of(schema)
    list(session.generate([request(json_schema=schema, max_tokens=2)]))  # llama.cpp takes it


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"type": "string", "pattern": "unanchored"}, {"$ref": "#/$defs/no"}])
def test_a_schema_that_is_no_grammar_is_refused(session: LlamaCppSession, schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the JSON schema cannot be turned into a grammar"):
        session.generate([request(json_schema=schema)])


def test_a_grammar_that_llama_cpp_refuses_is_refused(session: LlamaCppSession) -> None:
    with pytest.raises(UserError, match=r"llama\.cpp refuses the grammar of the JSON schema: "):
        session.generate([request(json_schema={"type": "string", "pattern": r"^a\bc$"})])


# Limits


def test_a_request_that_cannot_fit_is_refused_before_any_is_answered(session: LlamaCppSession) -> None:
    with pytest.raises(UserError, match=r"request 'r' has \d+ prompt tokens and the context has 768"):
        session.generate([request(), request("word " * 800)])


def test_an_answer_ends_where_the_context_does() -> None:
    endless = {"type": "string", "pattern": f"^{'😀ﷺ' * 30}$"}
    with opened(model_file(), n_ctx=96, n_batch=16) as session:
        last = list(session.generate([request(json_schema=endless, max_tokens=10_000)]))[-1]
    assert last.finish_reason == "length"
    assert last.prompt_tokens + last.completion_tokens == 96


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request(max_tokens=0), "max_tokens 0; expected 1 or more"),
        (request(temperature=-1.0), r"temperature -1.0; expected 0 \(greedy\) or more"),
        (request(temperature=float("nan")), "temperature nan"),
        (request(top_p=0.0), "top_p 0.0; expected more than 0 and at most 1"),
        (request(deadline=float("nan")), "has the deadline nan; expected seconds"),
        (
            GenerationRequest("r", ({"role": "user"},)),
            "has a message that is no turn; expected a role and a content, both",
        ),
        (GenerationRequest("r", ()), "ends with no turn to answer"),
        (GenerationRequest("r", ({"role": "assistant", "content": "a"},)), "ends with no turn to answer"),
    ],
)
def test_a_malformed_request_is_refused(session: LlamaCppSession, wrong: GenerationRequest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        session.generate([wrong])


# One at a time


def test_closing_the_iterator_cancels(session: LlamaCppSession) -> None:
    expected = said(session.generate([request()]))
    events = session.generate([request("Tell me a story.", max_tokens=500)] * 3)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert said(session.generate([request()])) == expected


def test_a_closed_session_says_so() -> None:
    session = opened(model_file())
    events = session.generate([request(max_tokens=100)])
    next(events)
    session.close()
    with pytest.raises(SysscanError, match="the session is closed; open the model again"):
        list(events)
    with pytest.raises(SysscanError, match="the session is closed"):
        session.generate([request()])
    with pytest.raises(SysscanError, match="the session is closed"):
        session.score([1])
    session.close()


def test_a_session_that_nobody_holds_any_more_is_freed_at_once() -> None:
    session = opened(model_file(), n_ctx=64)
    finalizer = session._finalizer
    gc.disable()
    try:
        del session
        assert not finalizer.alive
    finally:
        gc.enable()


def test_closing_frees_the_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    with opened(model_file()) as session:
        said(session.generate([request()]))
    before = resident()
    for _ in range(4):
        with opened(model_file()) as session:
            said(session.generate([request(max_tokens=1)]))
    assert (resident() - before) * 4096 < 40e6  # one session holds more than 100 MB


# Scores


def test_scores_are_the_logits_at_every_position(session: LlamaCppSession) -> None:
    ids = session.encoder.prompt(request("What does the command `ls` do?").messages)
    scores = session.score(ids)
    assert scores.shape == (len(ids), 49152)
    assert scores.dtype == np.float32
    first = next(session.generate([request("What does the command `ls` do?")])).text
    assert session.vocabulary.piece(int(scores[-1].argmax())).decode() == first
    with opened(model_file(), n_batch=7) as other:
        pieces = other.score(ids)
    assert np.abs(pieces - scores).max() < 0.02 * np.abs(scores).max()
    assert np.array_equal(session.score(ids), scores)
    assert session.score([]).shape == (0, 49152)


def test_what_cannot_be_scored_is_refused(session: LlamaCppSession) -> None:
    with pytest.raises(UserError, match="769 tokens cannot be scored: the context has 768"):
        session.score([1] * 769)
    with pytest.raises(UserError, match="token id 49152 is not in the vocabulary of 49152 tokens"):
        session.score([1, 49152])


# Files


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is no model file"):
        opened(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("import this")
    with pytest.raises(UserError, match=r"llama.cpp cannot load .*text.gguf: .*invalid magic"):
        opened(tmp_path / "text.gguf")
    with model_file().open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(8_000_000))
    with pytest.raises(UserError, match=r"llama.cpp cannot load .*cut.gguf: .*Check that the file is a whole GGUF model"):
        opened(tmp_path / "cut.gguf")
    assert capfd.readouterr() == ("", "")


def test_llama_cpp_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(model_file()) as session:
        said(session.generate([request()]))
    assert capfd.readouterr() == ("", "")


def write_adapter(path: Path, scale: float) -> Path:
    """Write a LoRA adapter of rank 2 on the first layer's q_proj."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    random = np.random.default_rng(1)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", random.standard_normal((2, 576)).astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", (random.standard_normal((576, 2)) * scale).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_is_applied(session: LlamaCppSession, tmp_path: Path) -> None:
    ids = session.encoder.prompt(request().messages)
    base = session.score(ids)
    changes = []
    for scale in (0.0, 0.5):
        model = ModelRef(model_file(), SPECIALIST, write_adapter(tmp_path / f"{scale}.gguf", scale))
        with LlamaCpp(threads=1, n_ctx=768).open(model) as adapted:
            changes.append(np.abs(adapted.score(ids) - base).max())
    assert changes[0] < 1e-3
    assert changes[1] > 0.1


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no adapter file"):
        LlamaCpp().open(ModelRef(model_file(), SPECIALIST, tmp_path / "absent.gguf"))
    (tmp_path / "text.gguf").write_text("import this")
    with pytest.raises(UserError, match=r"llama.cpp cannot load the adapter .*Check that it belongs to this base model"):
        LlamaCpp().open(ModelRef(model_file(), SPECIALIST, tmp_path / "text.gguf"))


def test_what_llama_cpp_cannot_open_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = ModelRef(model_file(), SPECIALIST, write_adapter(tmp_path / "adapter.gguf", 0.5))
    with monkeypatch.context() as patched:
        patched.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
        with pytest.raises(UserError, match=r"cannot open a context of 16 x 640 tokens .*Lower n_ctx or n_parallel"):
            opened(model_file(), n_ctx=640)
    with monkeypatch.context() as patched:
        patched.setattr(llama_cpp, "llama_set_adapters_lora", lambda *_: 7)
        with pytest.raises(UserError, match=r"llama.cpp cannot apply the adapter \(code 7\)"):
            LlamaCpp(threads=1, n_ctx=640).open(model)
    with opened(model_file(), n_ctx=640) as session:
        assert said(session.generate([request(max_tokens=1)]))
