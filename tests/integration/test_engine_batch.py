"""Many requests at once: batching, sharing, cancelling, limits, failures."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import pytest
from engine_cases import FINDING, model_file, opened, request, said, texts

from sysscan_langgraph import llama_cpp_backend
from sysscan_langgraph.engine import scheduler as engine_scheduler
from sysscan_langgraph.engine.context import Context
from sysscan_langgraph.engine.scheduler import Scheduler
from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import SPECIALIST

QUESTIONS = ("What is a port?", "Count from 1 to 9.", "Name a colour.", "What does `ls` do?", "Who uses sshd?", "Why?")


@pytest.fixture(scope="module")
def session() -> Iterator[LlamaCppSession]:
    with opened(model_file(), n_parallel=4) as session:
        yield session


def asked(count: int, **options: Any) -> list[GenerationRequest]:
    """Return requests of different length, with the ids 0, 1, ..."""
    questions = (QUESTIONS[number % len(QUESTIONS)] + " Say more." * (number // len(QUESTIONS)) for number in range(count))
    return [dataclasses.replace(request(text, **options), id=str(number)) for number, text in enumerate(questions)]


def scheduler(session: LlamaCppSession) -> Scheduler:
    found = session._engine.scheduler
    assert found is not None
    return found


def busy(session: LlamaCppSession) -> int:
    return len(scheduler(session)._wide.answers)


def until_idle(session: LlamaCppSession) -> None:
    end = time.monotonic() + 30
    while not scheduler(session).idle or busy(session):
        assert time.monotonic() < end
        time.sleep(0.005)


def count_calls(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Any, ...]]:
    """Return what a method of the contexts is called with from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(Context, method)

    def counted(self: Context, *args: Any, **options: Any) -> Any:
        calls.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(Context, method, counted)
    return calls


# The same answers


def test_answers_in_a_batch_are_those_that_requests_get_alone(session: LlamaCppSession) -> None:
    requests = asked(12, max_tokens=10)
    together = texts(session.generate(requests))
    assert together == texts(session.generate(list(reversed(requests))))
    assert together == {one.id: said(session.generate([one])) for one in requests}
    assert len({*together.values()}) > 6


@pytest.mark.slow
def test_reproducible_steps_always_have_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model_file(), n_parallel=10, reproducible=True, n_ctx=128) as session:
        assert scheduler(session)._wide.context.streams == 16
        original, sizes = Context.step, []

        def step(self: Context, *args: Any, **options: Any) -> Any:
            streams, rows = original(self, *args, **options)
            sizes.append(len(streams))
            return streams, rows

        monkeypatch.setattr(Context, "step", step)
        alone = said(session.generate(asked(1)))
        assert {*sizes} == {8}
        together = texts(session.generate(asked(10)))
        assert {*sizes} == {8, 16}
        assert together["0"] == alone


def test_seeds_are_each_requests_own(session: LlamaCppSession) -> None:
    same = [dataclasses.replace(request("Tell me a story.", temperature=1.2, seed=seed), id=str(seed)) for seed in range(4)]
    together = texts(session.generate(same))
    assert len({*together.values()}) == 4
    assert together["2"] == said(session.generate([same[2]]))


def test_free_constrained_and_sampled_requests_share_a_batch(session: LlamaCppSession) -> None:
    free, sampled = asked(2, max_tokens=8)
    sampled = dataclasses.replace(sampled, temperature=1.5)
    bound = dataclasses.replace(free, id="bound", json_schema={"enum": ["yes", "no"]})
    spelt = dataclasses.replace(free, id="spelt", grammar='root ::= "port " [0-9] [0-9]')
    together = texts(session.generate([free, sampled, bound, spelt]))
    assert together["bound"] in ('"yes"', '"no"')
    assert together["spelt"][:5] == "port "
    assert together["spelt"][5:].isdigit()
    assert together["0"] == said(session.generate([free]))


def test_top_p_is_the_requests(session: LlamaCppSession) -> None:
    greedy = said(session.generate([request("Tell me a story.")]))
    assert said(session.generate([request("Tell me a story.", temperature=3.0, top_p=1e-6)])) == greedy
    assert said(session.generate([request("Tell me a story.", temperature=3.0, top_p=1.0)])) != greedy


# Shared beginnings


def test_the_system_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [tuple(conversation(SPECIALIST, finding_document({**FINDING, "title": title}))) for title in "abcdef"]
    with opened(model_file(), n_parallel=4) as session:
        reads = count_calls(monkeypatch, "read")
        requests = [GenerationRequest(str(number), messages, max_tokens=2) for number, messages in enumerate(prompts)]
        first = session.plan(requests[0]).segments[0]
        texts(session.generate(requests))
        assert len(first) > 80
        assert sum(tuple(ids) == first for _, ids in reads) == 1
        assert sum(len(ids) for _, ids in reads) == len(first) + sum(len(session.plan(r).segments[1]) for r in requests)


def test_a_chat_of_many_turns_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession) -> None:
    turns: list[dict[str, str]] = [{"role": "system", "content": "Be brief. " * 20}]
    reads, sizes = count_calls(monkeypatch, "read"), []
    for number in range(5):
        turns.append({"role": "user", "content": f"Question {number}: " + "what now? " * 10})
        reads.clear()
        answer = said(session.generate([GenerationRequest("c", tuple(turns), max_tokens=4)]))
        sizes.append(sum(len(ids) for _, ids in reads))
        turns.append({"role": "assistant", "content": answer})
    whole = session.count_tokens(turns[:-1])
    assert max(sizes[2:]) < whole / 2  # the last exchange and the new question
    with opened(model_file(), n_ctx=769) as fresh:  # another engine, which has read nothing
        assert said(fresh.generate([GenerationRequest("c", tuple(turns[:-1]), max_tokens=4)])) == turns[-1]["content"]


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model_file(), n_batch=32, n_parallel=2) as session:
        order: list[str] = []
        for name in ("read", "step"):
            original = getattr(Context, name)

            def noted(self: Context, *args: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
                order.append(_name)
                return _original(self, *args, **options)

            monkeypatch.setattr(Context, name, noted)
        events = session.generate([request(max_tokens=40)])
        next(events)
        order.clear()
        said(session.generate([request("word " * 200, max_tokens=1)]))
        said(events)
        reads = [place for place, name in enumerate(order) if name == "read"]
        assert len(reads) >= 7
        assert "step" in order[reads[0] : reads[-1]]


# Coming and going


def test_requests_join_and_leave_a_running_batch(session: LlamaCppSession) -> None:
    first = session.generate([request("Tell me a long story.", max_tokens=120)])
    next(first)
    assert said(session.generate(asked(1, max_tokens=3)))  # answered while the first one is being
    assert busy(session) == 1
    assert next(event for event in first if event.finish_reason).completion_tokens > 3


@pytest.mark.slow
def test_threads_share_a_session(session: LlamaCppSession) -> None:
    requests = asked(24, max_tokens=6)
    expected = texts(session.generate(requests))
    found: dict[str, str] = {}

    def ask(one: GenerationRequest) -> None:
        found[one.id] = said(session.generate([one]))

    threads = [threading.Thread(target=ask, args=(one,)) for one in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_closing_or_forgetting_an_iterator_frees_its_streams(session: LlamaCppSession) -> None:
    for end in ("close", "forget", "break"):
        events = session.generate(asked(8, max_tokens=400))
        next(events)
        if end == "close":
            events.close()  # type: ignore[attr-defined]
            assert list(events) == []
        elif end == "break":
            for _ in events:
                break
        del events
        gc.collect()
        until_idle(session)
        assert not scheduler(session)._queue


def test_the_places_are_free_within_a_step(monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession) -> None:
    steps = count_calls(monkeypatch, "step")
    events = session.generate(asked(4, max_tokens=400))
    next(events)
    events.close()  # type: ignore[attr-defined]
    before = len(steps)
    until_idle(session)
    assert len(steps) - before <= 1


@pytest.mark.slow
def test_a_queue_is_bounded_and_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model_file(), n_parallel=1, queue_size=2, n_ctx=128) as session:
        longest = 0
        original = Scheduler._starting

        def starting(self: Scheduler) -> Any:
            nonlocal longest
            longest = max(longest, len(self._queue))
            return original(self)

        monkeypatch.setattr(Scheduler, "_starting", starting)
        many = session.generate(asked(20, max_tokens=2))
        one = texts(session.generate([dataclasses.replace(request(max_tokens=2), id="one")]))
        assert one["one"]
        assert scheduler(session)._waiting  # the many have not been answered all before it
        assert len(texts(many)) == 20
        assert longest == 2


def test_a_long_conversation_has_a_stream_of_its_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_backend, "LANE", 64)
    with opened(model_file(), n_ctx=200, n_parallel=2) as session:
        assert scheduler(session)._long is None
        short, long = request(max_tokens=3), dataclasses.replace(request("word " * 70, max_tokens=3), id="long")
        answers = texts(session.generate([long, short]))
        assert answers.keys() == {"long", "r"}
        assert scheduler(session)._wide.context.size == 64
        lane = scheduler(session)._long
        assert lane is not None
        assert lane.context.size == 200
        assert answers["long"] == said(session.generate([long]))


def test_what_cannot_be_opened_on_the_way_is_the_error_of_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Scheduler) -> Any:
        raise UserError("no memory")

    monkeypatch.setattr(Scheduler, "_long_lane", fail)
    monkeypatch.setattr(llama_cpp_backend, "LANE", 64)
    with opened(model_file(), n_ctx=200, n_parallel=2) as session:
        long = dataclasses.replace(request("word " * 70, max_tokens=3), id="long")
        ended = {event.id: event for event in session.generate([long, request(max_tokens=3)]) if event.finish_reason}
        assert ended["long"].finish_reason == "error"
        assert str(ended["long"].error) == "no memory"
        assert ended["r"].finish_reason == "length"


# Time


def test_a_deadline_ends_an_answer_where_it_is(session: LlamaCppSession) -> None:
    events = list(session.generate([request("Tell me a very long story.", max_tokens=700, deadline=0.5)]))
    assert events[-1].finish_reason == "deadline"
    assert 0 < events[-1].completion_tokens < 700
    assert said(events)


def test_a_deadline_holds_in_the_queue(session: LlamaCppSession) -> None:
    running = session.generate(asked(4, max_tokens=100))
    next(running)
    waiting = [dataclasses.replace(one, deadline=0.01, max_tokens=5) for one in asked(6)]
    ended = [event for event in session.generate(waiting) if event.finish_reason]
    assert [event.finish_reason for event in ended] == ["deadline"] * 6
    assert [event.completion_tokens for event in ended] == [0] * 6
    running.close()  # type: ignore[attr-defined]
    assert list(session.generate([request(deadline=-1.0)]))[-1].finish_reason == "deadline"


# Failures


def failing(monkeypatch: pytest.MonkeyPatch, name: str, when: Any, outcome: int) -> None:
    original = getattr(llama_cpp, name)
    monkeypatch.setattr(llama_cpp, name, lambda context, batch: outcome if when(batch) else original(context, batch))


def test_a_native_failure_hits_the_requests_in_that_step_and_no_other(
    monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession
) -> None:
    fine, wrong = asked(2, max_tokens=6)
    length = session.plan(wrong).segments[-1].__len__()
    assert length != len(session.plan(fine).segments[-1])
    with monkeypatch.context() as patched:
        failing(patched, "llama_decode", lambda batch: batch.n_tokens == length, -3)
        ended = {event.id: event for event in session.generate([fine, wrong]) if event.finish_reason}
        assert ended["0"].finish_reason == "length"
        assert ended["1"].finish_reason == "error"
        assert isinstance(ended["1"].error, SysscanError)
        assert f"llama.cpp failed to decode {length} tokens (code -3)" in str(ended["1"].error)
        with pytest.raises(SysscanError, match="failed to decode"):  # alone, it is raised
            list(session.generate([wrong]))
        failing(patched, "llama_decode", lambda batch: batch.n_tokens == 2, 1)
        both = session.generate([fine, dataclasses.replace(fine, id="2")])
        assert [event.finish_reason for event in both if event.finish_reason] == ["error", "error"]
    assert len(texts(session.generate([fine, wrong]))) == 2


def test_logits_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession) -> None:
    original = Context.read

    def read(self: Context, stream: int, ids: Any) -> Any:
        return np.full_like(original(self, stream, ids), np.nan)

    with monkeypatch.context() as patched:
        patched.setattr(Context, "read", read)
        with pytest.raises(SysscanError, match="the model's logits are not finite"):
            list(session.generate([request()]))
    assert said(session.generate([request()]))


def test_a_grammar_that_leads_nowhere_is_an_error(session: LlamaCppSession) -> None:
    nowhere = request(grammar='root ::= "a" nothing\nnothing ::= [\\x00] "b"', max_tokens=5)
    fine = dataclasses.replace(request(max_tokens=3), id="fine")
    ended = {event.id: event for event in session.generate([nowhere, fine]) if event.finish_reason}
    assert ended["r"].finish_reason == "error"
    assert "the grammar allows none of the model's tokens here" in str(ended["r"].error)
    assert ended["fine"].finish_reason == "length"


def test_a_fault_of_the_worker_reaches_who_waits_and_the_engine_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Scheduler) -> None:
        raise ZeroDivisionError("of ours")

    with opened(model_file(), n_ctx=128) as session:
        with monkeypatch.context() as patched:
            patched.setattr(Scheduler, "_step", fail)
            with pytest.raises(SysscanError, match=r"the engine failed \(ZeroDivisionError: of ours\); open the model again"):
                list(session.generate([request()]))
        assert said(session.generate([request()]))


def test_scoring_works_beside_running_answers(session: LlamaCppSession) -> None:
    ids = session.encoder.prompt(request("What does the command `ls` do?").messages)
    expected, answer = session.score(ids), said(session.generate([request(max_tokens=60)]))
    events = session.generate([request(max_tokens=60)])
    next(events)
    assert np.array_equal(session.score(ids), expected)
    assert busy(session)
    rest = said(events)
    assert answer.endswith(rest)


def test_scores_of_several_threads_do_not_mix() -> None:
    with opened(model_file(), n_batch=8, n_ctx=128) as session:
        sequences = [[*range(start, start + 30)] for start in (100, 200, 300)]
        expected = [session.score(ids) for ids in sequences]
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda number=number: found.update({number: session.score(sequences[number])}))  # type: ignore[misc]
            for number in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(np.array_equal(found[number], expected[number]) for number in range(3))


# In an event loop


@pytest.mark.slow
def test_agenerate_streams_and_needs_no_thread_per_call(session: LlamaCppSession) -> None:
    requests = asked(20, max_tokens=6)
    expected = texts(session.generate(requests))

    async def ask(one: GenerationRequest) -> str:
        return "".join([event.text async for event in session.agenerate([one])])

    async def everything() -> tuple[list[str], int, list[GenerationEvent]]:
        answers = asyncio.gather(*map(ask, requests))
        most = 0
        while not answers.done():
            most = max(most, threading.active_count())
            await asyncio.sleep(0.01)
        return await answers, most, [event async for event in session.agenerate(requests)]

    before = threading.active_count()
    found, most, events = asyncio.run(everything())
    assert found == list(expected.values())
    assert texts(events) == expected
    assert most - before <= 4


@pytest.mark.slow
def test_the_loop_is_never_held_up(session: LlamaCppSession) -> None:
    async def longest_pause() -> float:
        longest, last, running = 0.0, time.monotonic(), True

        async def tick() -> None:
            nonlocal longest, last
            while running:
                await asyncio.sleep(0.001)
                now = time.monotonic()
                longest, last = max(longest, now - last), now

        ticking = asyncio.create_task(tick())
        async for _ in session.agenerate(asked(8, max_tokens=30)):
            pass
        running = False
        await ticking
        return longest

    step = time.monotonic()
    texts(session.generate(asked(8, max_tokens=30)))
    assert asyncio.run(longest_pause()) < max(0.5, (time.monotonic() - step) / 2)


def test_cancelling_a_task_cancels_its_requests(session: LlamaCppSession) -> None:
    async def cancelled() -> None:
        async def ask() -> None:
            async for _ in session.agenerate(asked(6, max_tokens=400)):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(ask())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    until_idle(session)


def test_cancelling_while_the_request_is_prepared_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession
) -> None:
    preparing, go_on = threading.Event(), threading.Event()
    original = LlamaCppSession._plans

    def plans(self: LlamaCppSession, *args: Any) -> Any:
        preparing.set()
        go_on.wait(10)
        return original(self, *args)

    monkeypatch.setattr(LlamaCppSession, "_plans", plans)

    async def cancelled() -> None:
        task = asyncio.create_task(anext(aiter(session.agenerate(asked(1)))))  # type: ignore[arg-type]
        await asyncio.to_thread(preparing.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(cancelled())
    end = time.monotonic() + 30
    while session._engine.entered:
        assert time.monotonic() < end
        time.sleep(0.005)
    until_idle(session)


def test_errors_reach_the_loop(monkeypatch: pytest.MonkeyPatch, session: LlamaCppSession) -> None:
    async def ask(one: GenerationRequest) -> list[GenerationEvent]:
        return [event async for event in session.agenerate([one])]

    with pytest.raises(UserError, match="expected 1 or more"):
        asyncio.run(ask(request(max_tokens=0)))
    with monkeypatch.context() as patched:
        failing(patched, "llama_decode", lambda batch: True, -3)
        with pytest.raises(SysscanError, match="failed to decode"):
            asyncio.run(ask(request()))
    assert asyncio.run(ask(request()))[-1].finish_reason
    assert asyncio.run(anything(session)) == []


async def anything(session: LlamaCppSession) -> list[GenerationEvent]:
    return [event async for event in session.agenerate([])]


# What does not fit


def test_a_prompt_that_is_too_long_is_shortened_at_its_end(session: LlamaCppSession) -> None:
    text = "Ünï😀 " + "finding after finding " * 2000
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text})
    plan = session.plan(GenerationRequest("s", messages, max_tokens=100, shorten=True))
    assert plan.max_tokens == 100
    assert 768 - 100 - 30 < plan.prompt_tokens <= 768 - 100
    ids = [token for segment in plan.segments for token in segment]
    spelt = b"".join(session.vocabulary._bytes(token, special=True) for token in ids).decode()
    assert spelt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nÜnï😀 finding after")
    kept, _, note = spelt.rpartition("\n[... ")
    assert note.endswith(" characters left out]<|im_end|>\n<|im_start|>assistant\n")
    shown = kept.split("<|im_start|>user\n")[1]
    assert text.startswith(shown)
    assert len(text.strip()) - int(note.split()[0]) - len(shown) in (0, 1)  # a space at the cut goes too
    assert list(session.generate([GenerationRequest("s", messages, max_tokens=3, shorten=True)]))[-1].finish_reason == "length"


def test_shortening_changes_nothing_that_fits_and_leaves_room_for_an_answer(session: LlamaCppSession) -> None:
    short = request(max_tokens=5000)
    assert session.plan(dataclasses.replace(short, shorten=True)).segments == session.plan(short).segments
    long = session.plan(request("word " * 3000, max_tokens=5000, shorten=True))
    assert long.max_tokens >= 768 // 4
    middle = session.plan(request("word " * 600, max_tokens=500, shorten=True))  # a quarter is left it, if not all it asked for
    assert 768 // 4 <= middle.max_tokens < 500


def test_instructions_that_do_not_fit_are_refused(session: LlamaCppSession) -> None:
    messages = ({"role": "system", "content": "Be brief. " * 400}, {"role": "user", "content": "Why?"})
    message = r"request 's' has \d+ prompt tokens without its last turn's text and the context has 768, 100 of them for"
    with pytest.raises(UserError, match=message):
        session.generate([GenerationRequest("s", messages, max_tokens=100, shorten=True)])


def test_tokens_are_counted_exactly(session: LlamaCppSession) -> None:
    one = request("What does the command `ls` do?", max_tokens=1)
    assert session.count_tokens(one.messages) == list(session.generate([one]))[-1].prompt_tokens


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": "x", "temperature": 1.0}, "seed 'x'; expected a whole number"),
        ({"seed": None}, "seed None; expected a whole number"),
        ({"max_tokens": 4.5}, r"max_tokens 4\.5; expected a whole number"),
        ({"temperature": "hot"}, "temperature 'hot'; expected a number"),
        ({"deadline": "1"}, "deadline '1'; expected a number"),
        ({"stop": (1,)}, r"stop \(1,\); expected a sequence of texts"),
        ({"stop": "end"}, "stop 'end'; expected a sequence of texts"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_before_anything_is_decoded(
    session: LlamaCppSession, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        session.generate([request(**wrong)])
    assert said(session.generate([request()]))


def test_a_fault_of_ours_fails_the_request_that_it_hit_and_no_other(
    session: LlamaCppSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine_scheduler.Answer

    def broken(tools: Any, plan: Any, *rest: Any) -> Any:
        if plan.id == "bad":
            raise TypeError("not all arguments converted")
        return whole(tools, plan, *rest)

    monkeypatch.setattr(engine_scheduler, "Answer", broken)
    events = list(session.generate([dataclasses.replace(request(), id=name) for name in ("good", "bad")]))
    last = {event.id: event for event in events if event.finish_reason}
    assert last["good"].finish_reason in ("stop", "length")
    assert last["bad"].finish_reason == "error"
    assert isinstance(last["bad"].error, SysscanError)
    with pytest.raises(SysscanError, match=r"the request failed \(TypeError: not all arguments"):
        list(session.generate([dataclasses.replace(request(), id="bad")]))
    assert said(session.generate([request()]))
