"""Steps that wait for models, written once for threads and for event loops.

A step is a generator: it yields what it waits for, a `Call`, gets the result (or the exception) where it yielded, and returns
what it found out. `node` makes of it what LangGraph runs either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import get_executor_for_config


@dataclass(frozen=True)
class Call:
    """Something to wait for: `now` blocks the thread, `later` does not block the event loop."""

    now: Callable[[], Any]
    later: Callable[[], Awaitable[Any]]


Step = Callable[[Any, RunnableConfig], Generator[Call, Any, Any]]


def in_thread(function: Callable[..., Any], *args: Any) -> Call:
    """Return the call of a blocking function, which an event loop leaves to a thread."""
    return Call(partial(function, *args), partial(asyncio.to_thread, function, *args))


def together(calls: Sequence[Call]) -> Call:
    """Return the call of several at once; its result lists theirs, with an exception in the place of one that failed."""

    def now() -> list[Any]:
        with get_executor_for_config({"max_concurrency": max(1, len(calls))}) as executor:
            futures = [executor.submit(call.now) for call in calls]
            return [future.exception() or future.result() for future in futures]

    async def later() -> list[Any]:
        return await asyncio.gather(*(call.later() for call in calls), return_exceptions=True)

    return Call(now, later)


def node(step: Step, name: str) -> RunnableLambda[Any, Any]:
    """Return a step as a runnable of that name, for `invoke` and `ainvoke`."""

    def run(state: Any, config: RunnableConfig) -> Any:
        waiting = step(state, config)
        go_on: Callable[[], Call] = partial(next, waiting)
        try:
            while True:
                call = go_on()
                try:
                    go_on = partial(waiting.send, call.now())
                except BaseException as error:  # noqa: BLE001 - it is the step's to handle
                    go_on = partial(waiting.throw, error)
        except StopIteration as end:
            return end.value

    async def arun(state: Any, config: RunnableConfig) -> Any:
        waiting = step(state, config)
        go_on: Callable[[], Call] = partial(next, waiting)
        try:
            while True:
                call = go_on()
                try:
                    go_on = partial(waiting.send, await call.later())
                except BaseException as error:  # noqa: BLE001 - it is the step's to handle
                    go_on = partial(waiting.throw, error)
        except StopIteration as end:
            return end.value

    return RunnableLambda(run, afunc=arun, name=name)
