from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig

from sysscan_langgraph.analysis.steps import Call, in_thread, node, together


async def _soon(value: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


def _call(value: Any) -> Call:
    def now() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return Call(now, lambda: _soon(value))


def steps(state: Any, config: RunnableConfig) -> Generator[Call, Any, Any]:
    first = yield _call(1)
    try:
        yield _call(ValueError("lost"))
    except ValueError as error:
        first += len(str(error))
    many = yield together([_call(2), _call(KeyError("k")), in_thread(threading.get_ident)])
    return [state, first, many[0], type(many[1]).__name__, many[2] != threading.get_ident()]


def test_a_step_runs_the_same_in_a_thread_and_in_an_event_loop() -> None:
    runnable = node(steps, "steps")
    assert runnable.invoke("s") == asyncio.run(runnable.ainvoke("s")) == ["s", 5, 2, "KeyError", True]
    assert runnable.get_name() == "steps"


def test_what_a_step_does_not_handle_is_raised_and_its_end_runs() -> None:
    ended = []

    def failing(state: Any, config: RunnableConfig) -> Generator[Call, Any, Any]:
        try:
            yield _call(ValueError("lost"))
        finally:
            ended.append(state)

    with pytest.raises(ValueError, match="lost"):
        node(failing, "f").invoke("sync")
    with pytest.raises(ValueError, match="lost"):
        asyncio.run(node(failing, "f").ainvoke("async"))
    assert ended == ["sync", "async"]


def test_a_cancelled_step_ends_properly() -> None:
    ended = []

    def waiting(state: Any, config: RunnableConfig) -> Generator[Call, Any, Any]:
        try:
            yield Call(lambda: None, lambda: asyncio.sleep(60))
        finally:
            ended.append(state)

    async def cancelled() -> None:
        task = asyncio.create_task(node(waiting, "w").ainvoke("s"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert ended == ["s"]
