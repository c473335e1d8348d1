"""Models that Ctrl-C stops at once, whoever asks them.

A graph that is interrupted waits for the tasks that have begun, which may be hundreds of answers. So in
`Interruptible.stopped_by_signal` Ctrl-C also stops the sessions. Each call then ends with KeyboardInterrupt, which no node
takes for a failed finding, and a checkpointer keeps what was finished and nothing else.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any

from sysscan_langgraph.serving import Served
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session


class Interruptible(Served):
    """The models of another `Served`, to be stopped in the middle of their answers. Closing it closes the other's sessions."""

    def __init__(self, models: Served) -> None:
        super().__init__(models.models, models.backend, models.source)
        self._switch = _Switch()
        self._opened: dict[str, Session] = {}
        self._opening = threading.Lock()

    def session(self, role: str) -> Session:
        """Return the session of a role, the same one at each call."""
        self._switch.check()
        with self._opening:
            if role not in self._opened:
                self._opened[role] = _Interruptible(super().session(role), self._switch)
            return self._opened[role]

    @contextmanager
    def stopped_by_signal(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the models, and raise KeyboardInterrupt in the main thread as they always do."""

        def close_when_stopped() -> None:
            if self._switch.wait():
                self.close()

        def stop(*_: object) -> None:
            self._switch.stop()
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        threading.Thread(target=close_when_stopped, name="sysscan-stop", daemon=True).start()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            self._switch.dismiss()


class _Switch:
    """Tells threads to stop, from a signal handler: that runs in the middle of anything and must take no lock."""

    def __init__(self) -> None:
        self.stopped = False
        self._told: SimpleQueue[bool] = SimpleQueue()  # which handlers may put into, unlike an Event or a Queue

    def stop(self) -> None:
        self.stopped = True
        self._told.put(True)

    def dismiss(self) -> None:
        self._told.put(False)

    def wait(self) -> bool:
        """Wait for `stop` or `dismiss`, and say whether it was `stop`."""
        return self._told.get()

    def check(self) -> None:
        if self.stopped:
            raise KeyboardInterrupt


class _Interruptible(Session):
    """A session whose calls end with KeyboardInterrupt once it is stopped."""

    def __init__(self, session: Session, switch: _Switch) -> None:
        self._session, self._switch = session, switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Do what the session does, until it is stopped."""
        self._switch.check()
        return self._until_stopped(self._session.generate(requests))

    def _until_stopped(self, events: Iterator[GenerationEvent]) -> Iterator[GenerationEvent]:
        try:
            with closing(events) if isinstance(events, Generator) else nullcontext():
                for event in events:
                    self._switch.check()
                    yield event
        except Exception:  # of a session that was closed because we stop
            self._switch.check()
            raise

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int | None:
        """Return how many prompt tokens a conversation has; None when the backend cannot tell."""
        self._switch.check()
        return self._session.count_tokens(messages)

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._session.n_ctx

    def score(self, token_ids: Sequence[int]) -> Any:
        """Return the logits at every position."""
        return self._session.score(token_ids)

    def close(self) -> None:
        """Close the session."""
        self._session.close()
