"""Models that Ctrl-C stops at once, whoever asks them.

A graph that is interrupted waits for the tasks that have begun, which may be hundreds of answers. So in
`Interruptible.stopped_by_signal` Ctrl-C also stops the sessions. Each call then ends with KeyboardInterrupt, which no node
takes for a failed finding, and a checkpointer keeps what was finished and nothing else.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sysscan_langgraph.serving import Served
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session, cancelled_at_end

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interruptible(Served):
    """The models of another `Served`, to be stopped in the middle of their answers. Closing it closes the other's sessions."""

    def __init__(self, models: Served) -> None:
        super().__init__(models.models, models.backend, models.source)
        self._stopped = threading.Event()
        self._opened: dict[str, Session] = {}
        self._opening = threading.Lock()

    def session(self, role: str) -> Session:
        """Return the session of a role, the same one at each call."""
        _check(self._stopped)
        with self._opening:
            if role not in self._opened:
                try:
                    self._opened[role] = _Interruptible(super().session(role), self._stopped)
                except Exception:  # closed because we stop
                    _check(self._stopped)
                    raise
            return self._opened[role]

    @contextmanager
    def stopped_by_signal(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the models, and raise KeyboardInterrupt in the main thread as they always do.

        One that is ignored stays so: a script's background job is not meant by the Ctrl-C that ends what is before it.
        A thread is told through a file descriptor: what Python calls a handler waits for the main thread, which may have begun
        to wait for an answer in the very moment when the signal came, and then would wait for all of it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ears, mouth = os.pipe()
        os.set_blocking(mouth, False)
        threading.Thread(target=self._listen, args=(ears,), name="sysscan-stop", daemon=True).start()
        heard_before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        heeded = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        handlers_before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
        try:
            yield
        finally:
            for number, handler in handlers_before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(heard_before)
            os.close(mouth)

    def _listen(self, ears: int) -> None:
        """Stop when a number of a signal comes that says so; end when nobody is left to write one."""
        with open(ears, "rb", buffering=0) as numbers:
            while came := numbers.read(16):
                if set(came) & set(_STOPPING):
                    self._stopped.set()
                    self.close()


class _Interruptible(Session):
    """A session whose calls end with KeyboardInterrupt once it is stopped."""

    def __init__(self, session: Session, stopped: threading.Event) -> None:
        self._session, self._stopped = session, stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Do what the session does, until it is stopped."""
        _check(self._stopped)
        return self._until_stopped(self._session.generate(requests))

    def _until_stopped(self, events: Iterator[GenerationEvent]) -> Iterator[GenerationEvent]:
        try:
            with cancelled_at_end(events):
                for event in events:
                    _check(self._stopped)
                    yield event
        except Exception:  # of a session that was closed because we stop
            _check(self._stopped)
            raise

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int | None:
        """Return how many prompt tokens a conversation has; None when the backend cannot tell."""
        _check(self._stopped)
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


def _check(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise KeyboardInterrupt
