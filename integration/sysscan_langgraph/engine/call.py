"""A call of `generate` or `agenerate`: requests that wait for a place in the queue, events that wait for the caller.

The worker delivers, the caller takes; a caller that goes away cancels what is left.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from queue import SimpleQueue

from sysscan_langgraph.engine.plan import Plan
from sysscan_models.errors import SysscanError
from sysscan_models.interfaces import GenerationEvent

FORKED = "the session was opened by another process, of which this one is a fork; open the model here"

Delivery = Sequence[GenerationEvent] | SysscanError
"""Events, or why no more will come."""


class Call:
    """Plans that are answered together. `put` takes deliveries in the worker's thread."""

    def __init__(self, plans: Sequence[Plan], put: Callable[[Delivery], None]) -> None:
        self.waiting = deque(plans)
        """Plans that have no place in the queue yet; the scheduler's."""
        self.left = len(plans)
        """Requests whose last event has not been delivered; the scheduler's."""
        self.alone = len(plans) == 1
        self.cancelled = False
        self.deliver = put


class Answers(Iterator[GenerationEvent]):
    """The events of a call, for a thread. `close` (or forgetting it) cancels what is left."""

    def __init__(
        self, plans: Sequence[Plan], submit: Callable[[Call], None], cancel: Callable[[Call], None], owner: object
    ) -> None:
        self._process = os.getpid()
        self._owner = owner  # a session lives as long as someone reads its answers
        self._inbox: SimpleQueue[Delivery] = SimpleQueue()
        self._events: deque[GenerationEvent] = deque()
        self._left, self._alone, self._cancel = len(plans), len(plans) == 1, cancel
        self._call = Call(plans, self._inbox.put)
        if plans:
            submit(self._call)

    def __iter__(self) -> Answers:
        return self

    def __next__(self) -> GenerationEvent:
        """Return the next event; raise the error of a request that is alone.

        Raises SysscanError when the session is closed, and in a process that was forked.
        """
        while not self._events:
            if not self._left:
                raise StopIteration
            if os.getpid() != self._process:  # nobody would ever deliver
                self._left = 0
                raise SysscanError(FORKED)
            delivery = self._inbox.get()
            if isinstance(delivery, SysscanError):
                self._left = 0
                raise delivery
            self._events.extend(delivery)
        event = self._events.popleft()
        self._left -= bool(event.finish_reason)
        if event.error and self._alone:
            raise event.error
        return event

    def close(self) -> None:
        """Cancel what is left."""
        if self._left:
            self._left = 0
            self._events.clear()
            if os.getpid() == self._process:
                self._cancel(self._call)

    def __del__(self) -> None:
        if getattr(self, "_left", 0):
            self.close()


async def stream(
    plans: Sequence[Plan], submit: Callable[[Call], None], cancel: Callable[[Call], None]
) -> AsyncGenerator[GenerationEvent, None]:
    """Yield the events of a call in an event loop, without a thread; ending early cancels what is left."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Delivery]()

    def put(delivery: Delivery) -> None:
        try:
            loop.call_soon_threadsafe(inbox.put_nowait, delivery)
        except RuntimeError:  # the loop is closed, and nobody listens
            cancel(call)

    call = Call(plans, put)
    left = len(plans)
    if left:
        submit(call)
    try:
        while left:
            delivery = await inbox.get()
            if isinstance(delivery, SysscanError):
                left = 0
                raise delivery
            for event in delivery:
                left -= bool(event.finish_reason)
                if event.error and call.alone:
                    raise event.error
                yield event
    finally:
        if left:
            cancel(call)
