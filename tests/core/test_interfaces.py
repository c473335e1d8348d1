"""What the base classes of plugins do by themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from sysscan_models.errors import UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session


class Counting(Session):
    """Counts up to `until` for every request, and remembers that it was stopped."""

    def __init__(self, until: int, error: Exception | None = None) -> None:
        self.until, self.error = until, error
        self.closed = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.thread = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        self.thread = threading.get_ident()
        try:
            for number in range(self.until):
                assert self.go_on.wait(timeout=10)
                for request in requests:
                    yield GenerationEvent(request.id, str(number), "stop" if number == self.until - 1 else "")
            if self.error:
                raise self.error
        finally:
            self.closed.set()

    def close(self) -> None:
        pass


def request(name: str) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": "count"},))


def test_a_session_that_only_knows_generate_can_be_awaited() -> None:
    session = Counting(3)

    async def read() -> list[tuple[str, str]]:
        return [(event.id, event.text) async for event in session.agenerate([request("a"), request("b")])]

    assert asyncio.run(read()) == [(name, number) for number in "012" for name in "ab"]
    assert session.thread != threading.get_ident()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_answer_is_awaited() -> None:
    async def read() -> None:
        async for _ in Counting(1, UserError("no such thing")).agenerate([request("a")]):
            pass

    with pytest.raises(UserError, match="no such thing"):
        asyncio.run(read())


def test_an_answer_that_nobody_awaits_any_more_is_closed() -> None:
    session = Counting(1_000_000)

    async def read() -> str:
        answers = session.agenerate([request("a")])
        first = await anext(answers)
        await answers.aclose()
        return first.text

    assert asyncio.run(read()) == "0"
    assert session.closed.wait(timeout=10)


def test_the_event_loop_goes_on_while_an_answer_is_made() -> None:
    session = Counting(1)
    session.go_on.clear()

    async def read() -> list[str]:
        answers = asyncio.create_task(anext(session.agenerate([request("a")])))
        for _ in range(5):
            await asyncio.sleep(0)
        session.go_on.set()
        return [(await answers).text]

    assert asyncio.run(read()) == ["0"]


def test_a_session_need_not_know_tokens() -> None:
    session = Counting(1)
    assert session.count_tokens([{"role": "user", "content": "hi"}]) is None
    assert session.score([1]) is None
    assert session.n_ctx == 0
