"""The engines of this process: one for each model, adapter and set of options, shared by every session that asks for the same.

An engine is loaded when it is opened, unloaded when its last session is closed, and in between when a memory budget asks for it
and nobody waits for its answers; the next request loads it again. A process that was forked has a pool of its own: what the
parent loaded is the parent's.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sysscan_langgraph.engine import weights as loaded
from sysscan_langgraph.engine.answer import Tuning
from sysscan_langgraph.engine.scheduler import CLOSED, Scheduler, Settings, in_worker
from sysscan_langgraph.engine.weights import Weights
from sysscan_models.errors import SysscanError, UserError

_WORKSPACE = 64_000_000
"""Bytes that computing takes besides weights and caches, about."""
_LOOK = 0.02
"""Seconds between two looks at whether an engine that must make room has become idle."""


@dataclass(frozen=True)
class Model:
    """What an engine serves, and how. `n_ctx` 0 means as long as the model's, but at most `longest`."""

    base: Path
    adapter: Path | None
    stamps: tuple[int, ...]
    """When the files were changed: a new file under an old name is another model."""
    n_ctx: int
    longest: int
    n_gpu_layers: int
    settings: Settings
    """`settings.n_ctx` is filled in when the model is known."""
    tuning: Tuning


class Engine:
    """A model that can be asked, whether it is in memory or not."""

    def __init__(self, model: Model) -> None:
        self.model, self.holders = model, 0
        self.n_ctx = 0
        self.used = 0.0
        self.entered = 0
        """Calls that are using the scheduler right now, besides those it is busy with."""
        self.loading = False
        self.scheduler: Scheduler | None = None
        self.weights: Weights | None = None
        self.cost = 0
        """Bytes that it takes when it is loaded; known after the first time."""

    def load(self) -> None:
        """Open weights and contexts; raise UserError when that cannot be."""
        model = self.model
        self.weights = loaded.open_weights(model.base, model.n_gpu_layers)
        try:
            trained = self.weights.n_ctx_train
            self.n_ctx = model.n_ctx or min(model.longest, trained or model.longest)
            adapter = self.weights.adapter(model.adapter) if model.adapter else None
            fields = {**model.settings.__dict__, "n_ctx": self.n_ctx}
            self.scheduler = Scheduler(self.weights, Settings(**fields), adapter, model.tuning)
        except BaseException:
            self.weights.release()
            self.weights = None
            raise
        self.cost = self.weights.size + self.scheduler.memory + _WORKSPACE

    def detach(self, *, silently: bool = False) -> Callable[[], None]:
        """Be unloaded; return what frees the memory. Answers that are under way end with SysscanError, or `silently`."""
        scheduler, weights = self.scheduler, self.weights
        self.scheduler = self.weights = None

        def free() -> None:
            if scheduler:
                scheduler.stop(silently=silently)
            if weights:
                weights.release()

        return free

    @property
    def idle(self) -> bool:
        """Whether nobody waits for its answers."""
        return not self.entered and (self.scheduler is None or self.scheduler.idle)


class Pool:
    """The engines of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._engines: dict[Model, Engine] = {}
        self._hungry: list[Engine] = []
        """Engines that wait for memory, in turn."""
        self.helpers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sysscan-prepare")
        """Threads in which event loops have requests prepared."""

    def open(self, model: Model, budget: int) -> Engine:
        """Return the engine of a model, loaded; every `open` needs a `release`."""
        with self._changed:
            engine = self._engines.setdefault(model, Engine(model))
            engine.holders += 1
        try:
            self.enter(engine, budget)
            self.leave(engine)
        except BaseException:
            self.release(engine)
            raise
        return engine

    def release(self, engine: Engine) -> None:
        """Give an engine back; the last one unloads it."""
        with self._changed:
            engine.holders -= 1
            if engine.holders:
                return
            self._engines.pop(engine.model, None)
            free = engine.detach()
            self._changed.notify_all()
        if in_worker():  # which must not wait for another worker, nor for itself
            threading.Thread(target=free, name="sysscan-close").start()
        else:
            free()

    def enter(self, engine: Engine, budget: int) -> tuple[Scheduler, Weights]:
        """Keep an engine loaded until `leave`, loading it first if it is not; requests are planned and submitted within."""
        try:
            while True:
                with self._changed:
                    while not self._may_load(engine, budget):
                        if found := self._entered(engine):
                            return found
                        self._changed.wait(_LOOK if self._hungry else None)
                self._load(engine)
        finally:
            with self._changed:
                if engine in self._hungry:
                    self._hungry.remove(engine)
                    self._changed.notify_all()

    def _entered(self, engine: Engine) -> tuple[Scheduler, Weights] | None:
        if not (engine.scheduler and engine.weights and self._its_turn(engine)):
            return None
        engine.entered += 1
        engine.used = time.monotonic()
        return engine.scheduler, engine.weights

    def _may_load(self, engine: Engine, budget: int) -> bool:
        """Claim the loading of an engine, if it is needed and there is memory for it."""
        if not engine.holders:
            raise SysscanError(CLOSED)
        if (engine.scheduler and engine.scheduler.alive) or engine.loading or not self._its_turn(engine):
            return False
        if engine.scheduler:
            engine.detach()()  # its worker failed
        engine.loading = self._has_room(engine, budget)
        return engine.loading

    def leave(self, engine: Engine) -> None:
        """Let an engine be unloaded again when it is idle."""
        with self._changed:
            engine.entered -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Unload everything; the process ends, and daemon threads that wait for answers end with it."""
        with self._changed:
            engines = list(self._engines.values())
            self._engines.clear()
            for engine in engines:
                engine.holders = 0
            frees = [engine.detach(silently=True) for engine in engines]
            self._changed.notify_all()
        for free in frees:
            free()

    def _its_turn(self, engine: Engine) -> bool:
        """While an engine waits for memory, the others take no new calls, so that they become idle."""
        return not self._hungry or self._hungry[0] is engine

    def _load(self, engine: Engine) -> None:
        """Load an engine without holding up the others."""
        try:
            engine.load()
        finally:
            with self._changed:
                engine.loading = False
                free = None if engine.holders else engine.detach()  # closed meanwhile
                self._changed.notify_all()
            if free:
                free()

    def _has_room(self, engine: Engine, budget: int) -> bool:
        """Unload idle engines, the least recently used first, until the budget holds one more; say whether it does."""
        base = engine.model.base
        needed = engine.cost or (base.stat().st_size if base.is_file() else 0) + _WORKSPACE
        if not budget:
            return True
        if needed > budget:
            raise UserError(f"{base} needs about {needed // 10**6 + 1} MB and memory_budget_mb is {budget // 10**6}; raise it")
        while self._taken() + needed > budget:
            idle = [other for other in self._engines.values() if other.scheduler and other.idle]
            if not idle:
                if engine not in self._hungry:
                    self._hungry.append(engine)
                return False
            min(idle, key=lambda other: other.used).detach()()
        return True

    def _taken(self) -> int:
        """Return the bytes that loaded engines take, weights that they share counted once."""
        engines = [engine for engine in self._engines.values() if engine.scheduler and engine.weights]
        weights = {id(engine.weights): engine.weights.size for engine in engines if engine.weights}
        loading = sum(engine.cost or engine.model.base.stat().st_size for engine in self._engines.values() if engine.loading)
        return sum(weights.values()) + loading + sum(e.scheduler.memory + _WORKSPACE for e in engines if e.scheduler)


_pool = Pool()


def pool() -> Pool:
    """Return this process's pool."""
    return _pool


def _forget() -> None:
    global _pool
    _pool = Pool()
    loaded.forget_all()


atexit.register(lambda: _pool.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
