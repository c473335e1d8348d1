"""A GGUF model served by llama.cpp in this process: conversations in, streamed answers and logits out.

A session is a handle on an engine (`engine.pool`) that all sessions of the same model share, whatever thread or event loop they
are used from. llama.cpp's own functions do the work: tokenizing, decoding, sampling, grammars. The chat template is rendered by
`sysscan_models.encoding`, as in training, so the ids are those that the model was trained on, and what a document says never
becomes a control token.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sysscan_langgraph.engine.answer import Tuning
from sysscan_langgraph.engine.call import FORKED, Answers, Call, stream
from sysscan_langgraph.engine.plan import Plan, Planner
from sysscan_langgraph.engine.pool import Engine, Model, Pool, pool
from sysscan_langgraph.engine.scheduler import CLOSED, Scheduler, Settings
from sysscan_langgraph.engine.weights import Weights
from sysscan_langgraph.vocabulary import Vocabulary
from sysscan_models.encoding import ChatEncoder
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, ModelRef, Session

if TYPE_CHECKING:
    from sysscan_langgraph.backends import LlamaCpp

LANE = 1024
"""Tokens that prompt and answer may have to be among the `n_parallel`; longer conversations have fewer places."""


class LlamaCppSession(Session):
    """An open model, for any number of threads and event loops at once."""

    def __init__(self, model: ModelRef, options: LlamaCpp, tuning: Tuning | None = None) -> None:
        self.role = model.role
        self._budget = options.memory_budget_mb * 10**6
        self._process, self._pool = os.getpid(), pool()
        self._engine = self._pool.open(_model(model, options, tuning or Tuning()), self._budget)
        self._finalizer = weakref.finalize(self, _release, self._pool, self._engine, self._process)
        self._finalizer.atexit = False  # the pool ends with the process
        self._planner: Planner | None = None
        self._calls: weakref.WeakKeyDictionary[Call, Scheduler] = weakref.WeakKeyDictionary()
        self._guard = threading.RLock()

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._engine.n_ctx

    @property
    def encoder(self) -> ChatEncoder:
        """What turns conversations into ids; valid while the model is loaded."""
        with self._open() as (_, weights):
            return weights.encoder

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens; valid while the model is loaded."""
        with self._open() as (_, weights):
            return weights.vocabulary

    def plan(self, request: GenerationRequest) -> Plan:
        """Return how a request would be answered; raise UserError when it cannot be."""
        with self._open() as (_, weights):
            return self._plans(weights, [request])[0]

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Answer many requests at once; events of all of them come as they are made.

        Decoding begins with the call. Closing the iterator, or forgetting it, cancels what is left, and frees its places before
        the next step. While every place in the queue is taken, the rest waits here and follows in turn with other calls'.

        A greedy answer never depends on what was asked before. What is in the batch with it can change its text where fewer
        than eight sequences are decoded at once, or a number that four does not divide, unless `LlamaCpp.reproducible` is on.
        Measured with SmolLM2 Q4_K_M, answers of 48 tokens: of 60 findings asked in another order, 4 got another text (JSON: 7);
        of 20 asked one by one, 18 (JSON: 15); with `reproducible` none. Weights of Q8_0 and Q4_1 need it not.

        Raises UserError, before anything is decoded, when a request is malformed or does not fit the context. What goes wrong
        later is the event of its request (finish reason `error`); the error of a request that is alone in its call is raised.
        Raises SysscanError when the session is closed, also on the way.
        """
        with self._open() as (scheduler, weights):
            return Answers(self._plans(weights, requests), partial(self._submit, scheduler), scheduler.cancel, self)

    async def agenerate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[GenerationEvent]:
        """Do what `generate` does without blocking the event loop; cancelling the task, or closing the iterator, cancels.

        Prompts are encoded, and a model that was unloaded is loaded, in a thread of a small pool; answers need none.
        """
        if os.getpid() != self._process:
            raise SysscanError(FORKED)
        prepared = self._pool.helpers.submit(self._prepare, tuple(requests))
        try:
            scheduler, plans = await asyncio.wrap_future(prepared)
        except asyncio.CancelledError:
            prepared.add_done_callback(self._unprepare)
            raise

        def submit(call: Call) -> None:
            try:
                self._submit(scheduler, call)
            finally:
                self._pool.leave(self._engine)

        async with aclosing(stream(plans, submit, scheduler.cancel)) as events:
            async for event in events:
                yield event

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Return how many prompt tokens a conversation has, exactly."""
        with self._open() as (_, weights):
            return len(weights.encoder.prompt(messages))

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits at every position, [T, V] float32; raise UserError for more tokens than the context has.

        Computed in a context of its own, between the steps of the answers that are under way.
        """
        ids = list(token_ids)
        if len(ids) > self.n_ctx:
            raise UserError(f"{len(ids)} tokens cannot be scored: the context has {self.n_ctx}. Raise n_ctx or send fewer")
        with self._open() as (scheduler, weights):
            if wrong := [token for token in ids if not 0 <= token < weights.vocabulary.size]:
                raise UserError(f"token id {wrong[0]} is not in the vocabulary of {weights.vocabulary.size} tokens")
            return scheduler.score(ids)

    def close(self) -> None:
        """Give the model back, which frees it with its last session; answers of this one under way end with SysscanError."""
        if os.getpid() == self._process:
            with self._guard:
                calls = list(self._calls.items())
            for call, scheduler in calls:
                scheduler.cancel(call, SysscanError(CLOSED))
        self._finalizer()

    @contextmanager
    def _open(self) -> Iterator[tuple[Scheduler, Weights]]:
        """Keep the model in memory, loading it first if it was unloaded."""
        opened = self._enter()
        try:
            yield opened
        finally:
            self._pool.leave(self._engine)

    def _enter(self) -> tuple[Scheduler, Weights]:
        if os.getpid() != self._process:
            raise SysscanError(FORKED)
        if not self._finalizer.alive:
            raise SysscanError(CLOSED)
        return self._pool.enter(self._engine, self._budget)

    def _prepare(self, requests: Sequence[GenerationRequest]) -> tuple[Scheduler, list[Plan]]:
        """Plan requests, and keep the model loaded until they are submitted."""
        scheduler, weights = self._enter()
        try:
            return scheduler, self._plans(weights, requests)
        except BaseException:
            self._pool.leave(self._engine)
            raise

    def _unprepare(self, prepared: Future[tuple[Scheduler, list[Plan]]]) -> None:
        if not prepared.cancelled() and not prepared.exception():
            self._pool.leave(self._engine)

    def _submit(self, scheduler: Scheduler, call: Call) -> None:
        with self._guard:
            self._calls[call] = scheduler
        scheduler.submit(call)

    def _plans(self, weights: Weights, requests: Sequence[GenerationRequest]) -> list[Plan]:
        if self._planner is None or self._planner.weights is not weights:  # loaded again
            self._planner = Planner(weights, self.n_ctx, self.role.sampling)
        planner = self._planner
        return [planner.plan(request) for request in requests]


def _release(pool: Pool, engine: Engine, process: int) -> None:
    if os.getpid() == process:
        pool.release(engine)


def _model(model: ModelRef, options: LlamaCpp, tuning: Tuning) -> Model:
    """Return what an engine is opened with: what it shares with other sessions' engines, if they are the same."""
    settings = Settings(
        n_ctx=0,
        n_parallel=options.n_parallel,
        queue_size=options.queue_size,
        n_batch=options.n_batch,
        threads=options.threads or _cores(),
        lane=LANE,
        reproducible=options.reproducible,
    )
    files = [path for path in (model.base_gguf, model.adapter_gguf) if path and path.is_file()]
    return Model(
        base=model.base_gguf.resolve(),
        adapter=model.adapter_gguf and model.adapter_gguf.resolve(),
        stamps=tuple(path.stat().st_mtime_ns for path in files),
        n_ctx=options.n_ctx,
        longest=model.role.context_length,
        n_gpu_layers=options.n_gpu_layers,
        settings=settings,
        tuning=tuning,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
