"""Several processes take in an archive: this one reads it, the others do the rest, and what became of it comes back in order.

A small archive is taken in by this process alone. The workers are forked, so that readers and routers need not be importable
by name; they ignore Ctrl-C, which this process answers, and end when it does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sysscan_models.corpus.portions import Part
from sysscan_models.errors import SysscanError
from sysscan_models.splits.intake import Intake, Settings, Taken

ALONE_BELOW = 8 * 2**20
"""Bytes of an archive below which processes cost more than they save."""
MOST_WORKERS = 64
"""More processes wait for the one that reads."""
_AHEAD = 3
"""Batches that are read ahead for each worker."""


def take_in(parts: Iterable[Part], settings: Settings, spool: Path, *, size: int) -> Iterator[Taken]:
    """Yield what became of each part, in their order. `size` is that of the archive in bytes."""
    workers = settings.options.workers or (0 if size < ALONE_BELOW else os.cpu_count() or 1)
    if workers <= 1:
        with Intake(settings, spool, 0) as intake:
            yield from map(intake.take, parts)
        return
    workers = min(workers, MOST_WORKERS)
    context = multiprocessing.get_context("fork")
    numbers = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(settings, spool, numbers))
    try:
        yield from _in_order(pool, parts, workers * _AHEAD)
    except BrokenProcessPool as error:
        raise SysscanError(
            "a process that prepares documents was killed, probably because memory ran out; set data.workers = 1, "
            "or lower data.max_record_bytes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, parts: Iterable[Part], ahead: int) -> Iterator[Taken]:
    waiting: deque[Future[Taken]] = deque()
    for part in parts:
        with _signals_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads, of which the workers use none
            waiting.append(pool.submit(_take, part))
        while len(waiting) > ahead or (waiting and waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C wait: what it raises while processes are forked would be lost in Python's own hooks, or reach a worker."""
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker ---------------------------------------------------------------------------------------------------------------

_intake: Intake | None = None


def _start(settings: Settings, spool: Path, numbers: Any) -> None:
    global _intake
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with numbers.get_lock():
        numbers.value += 1
        _intake = Intake(settings, spool, numbers.value)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _take(part: Part) -> Taken:
    if _intake is None:
        raise RuntimeError("a worker was not started")
    return _intake.take(part)
