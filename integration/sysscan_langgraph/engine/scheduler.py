"""The scheduler of one engine: requests join and leave the running batch between steps.

One worker thread does everything that touches llama.cpp's contexts. A step reads what is left of new prompts, at most `n_batch`
tokens, and then decodes one token of every answer at once. Prompts whose beginning a stream still holds, its own or another's,
are read from there on.

A request has its cells from the start: a stream is as long as its prompt and answer may become, so the cache cannot run full
on the way. Most fit the many streams of the wide context; those that do not wait for one of the few long ones, which are
opened when they are first needed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sysscan_langgraph.engine.answer import Answer, Tuning
from sysscan_langgraph.engine.call import Call
from sysscan_langgraph.engine.context import Context
from sysscan_langgraph.engine.plan import Plan
from sysscan_langgraph.engine.sampling import Tools
from sysscan_langgraph.engine.weights import Weights
from sysscan_models.errors import SysscanError
from sysscan_models.interfaces import GenerationEvent

WORTH_COPYING = 32
"""Tokens that another stream must hold more than one's own for its cells to be copied: all of a stream's cells are."""
CLOSED = "the session is closed; open the model again"


class _Worker(threading.local):
    is_one = False


_worker = _Worker()


def in_worker() -> bool:
    """Say whether this is the worker thread of an engine, where a garbage collection may run anything."""
    return _worker.is_one


@dataclass(frozen=True)
class Settings:
    """What an engine is opened with; all of it in tokens and numbers."""

    n_ctx: int
    n_parallel: int
    queue_size: int
    n_batch: int
    threads: int
    lane: int
    """Tokens that a stream of the wide context holds."""
    reproducible: bool


@dataclass
class Lane:
    """A context, and what its streams hold and do."""

    context: Context
    answers: dict[int, Answer] = field(default_factory=dict)
    """By stream."""
    held: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    """Segments that each stream has read, from its beginning."""
    used: list[float] = field(default_factory=list)
    """When each stream was last given to a request."""
    limit: int = 0
    """Streams that may be busy at once."""

    def __post_init__(self) -> None:
        self.held = [()] * self.context.streams
        self.used = [0.0] * self.context.streams


class Scheduler:
    """Answers requests with one model. All methods but those of the worker may be called from any thread."""

    def __init__(self, weights: Weights, settings: Settings, adapter: Any, tuning: Tuning | None = None) -> None:
        self.weights, self.settings, self.tuning = weights, settings, tuning or Tuning()
        self._adapter = adapter
        self._tools = Tools(weights)
        self._changed = threading.Condition()
        self._queue: deque[tuple[Plan, Call]] = deque()
        self._waiting: deque[Call] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._cancelled: list[Call] = []
        self._stopped = self._silent = False
        self._pending = 0
        """Requests that were submitted and not answered."""
        self._calls: set[Call] = set()
        """Calls that have such requests."""
        self._outbox: dict[Call, list[GenerationEvent]] = {}
        self._scores: Context | None = None
        self._scoring = threading.Lock()
        self._wide = self._lane(settings.n_parallel, min(settings.lane, settings.n_ctx))
        self._long: Lane | None = None if settings.lane < settings.n_ctx else self._wide
        self._worker = threading.Thread(target=self._run, name="sysscan-engine", daemon=True)
        self._worker.start()

    # Any thread

    @property
    def memory(self) -> int:
        """Bytes that the caches take, nearly; not the weights."""
        lanes = [self._wide, *([self._long] if self._long and self._long is not self._wide else [])]
        contexts = [lane.context for lane in lanes] + ([self._scores] if self._scores else [])
        cells = sum(context.streams * context.size for context in contexts)
        return cells * self.weights.cell_size + len(contexts) * self.weights.vocabulary.size * 4 * self.settings.n_parallel

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return not self._stopped

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer. Takes no lock: the pool asks while it holds its own."""
        return not self._pending

    def submit(self, call: Call) -> None:
        """Let a call's requests in, as far as there are places; the others follow in turn with those of other calls."""
        with self._changed:
            if self._stopped:
                raise SysscanError(CLOSED)
            self._pending += call.left
            self._calls.add(call)
            self._waiting.append(call)
            self._admit()
            self._changed.notify_all()

    def cancel(self, call: Call, error: SysscanError | None = None) -> None:
        """Forget a call, and say why if somebody still reads it; its streams are free before the next step."""
        with self._changed:
            if error and call.left and not call.cancelled:
                call.deliver(error)
            call.cancelled = True
            self._cancelled.append(call)  # nothing else: a garbage collection may call this in the middle of the worker's work
            self._changed.notify_all()

    def score(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the logits after each token, [T, V]; computed between steps, a batch at a time."""
        with self._scoring:  # one after the other, for all use one context
            return self._score(ids)

    def _score(self, ids: list[int]) -> NDArray[np.float32]:
        outcome: Future[NDArray[np.float32]] = Future()
        scores = np.empty((len(ids), self.weights.vocabulary.size), dtype=np.float32)

        def score(start: int) -> None:
            try:
                context = self._score_context()
                if not start:
                    context.keep(0, 0)
                end = min(start + context.n_batch, len(ids))
                if start < end:
                    scores[start:end] = context.score(ids[start:end])
            except BaseException as error:  # noqa: BLE001 - it is raised where the scores are awaited
                outcome.set_exception(error)
                return
            if end < len(ids):
                with self._changed:
                    self._jobs.append(lambda: score(end))
            else:
                outcome.set_result(scores)

        with self._changed:
            if self._stopped:
                raise SysscanError(CLOSED)
            self._jobs.append(lambda: score(0))
            self._changed.notify_all()
        while True:
            try:
                return outcome.result(timeout=0.2)
            except NotYet:
                if not self._worker.is_alive() and not outcome.done():
                    raise SysscanError(CLOSED) from None

    def stop(self, *, silently: bool = False) -> None:
        """End the worker after the step that it is in, and free the contexts; who waits gets SysscanError, or for ever."""
        with self._changed:
            self._stopped, self._silent = True, silently
            self._changed.notify_all()
        self._worker.join()

    def _admit(self) -> None:
        """Give places in the queue to the calls that wait, in turn."""
        while self._waiting and len(self._queue) < self.settings.queue_size:
            call = self._waiting.popleft()
            if call.waiting:
                self._queue.append((call.waiting.popleft(), call))
            if call.waiting:
                self._waiting.append(call)

    # The worker

    def _run(self) -> None:
        _worker.is_one = True
        error = SysscanError(CLOSED)
        try:
            while self._prepare():
                self._step()
                self._post()
        except BaseException as fault:  # noqa: BLE001 - a fault of ours; who waits must not wait for ever
            error = SysscanError(f"the engine failed ({type(fault).__name__}: {fault}); open the model again")
            error.__cause__ = fault
        finally:
            self._end(error)

    def _prepare(self) -> bool:
        """Wait for work and take it on; return whether to go on."""
        with self._changed:
            while not (self._stopped or self._pending or self._jobs or self._cancelled):
                self._changed.wait()
            if self._stopped:
                return False
            cancelled, self._cancelled = self._cancelled, []
            for call in cancelled:
                self._drop(call)
            self._expire()
            started = self._starting()
        for lane, plan, call in started:
            self._start(lane, plan, call)
        return True

    def _lanes(self) -> Iterable[Lane]:
        return (self._wide,) if self._long is None or self._long is self._wide else (self._wide, self._long)

    def _lane(self, streams: int, size: int) -> Lane:
        settings = self.settings
        context = Context(
            self.weights, streams, size, n_batch=settings.n_batch, threads=settings.threads, adapter=self._adapter
        )
        return Lane(context, limit=streams)

    def _long_lane(self) -> Lane:
        if self._long is None:
            settings = self.settings
            streams = max(1, settings.n_parallel * settings.lane // settings.n_ctx)
            self._long = self._lane(streams, settings.n_ctx)
        return self._long

    def _score_context(self) -> Context:
        if self._scores is None:
            settings = self.settings
            self._scores = Context(
                self.weights, 1, settings.n_ctx, n_batch=settings.n_batch, threads=settings.threads,
                adapter=self._adapter, scores=True,
            )  # fmt: skip
        return self._scores

    def _drop(self, call: Call) -> None:
        """Forget a call that was cancelled."""
        self._pending -= call.left
        self._calls.discard(call)
        call.left = 0
        call.waiting.clear()
        self._queue = deque(entry for entry in self._queue if entry[1] is not call)
        self._waiting = deque(other for other in self._waiting if other is not call)
        for lane in self._lanes():
            for answer in [answer for answer in lane.answers.values() if answer.call is call]:
                self._leave(lane, answer)
        self._outbox.pop(call, None)
        self._admit()

    def _expire(self) -> None:
        """End the requests in the queue whose time is up."""
        now = time.monotonic()
        late = [entry for entry in self._queue if entry[0].deadline <= now]
        late += [(plan, call) for call in self._waiting for plan in call.waiting if plan.deadline <= now]
        if not late:
            return
        gone = {id(plan) for plan, _ in late}
        self._queue = deque(entry for entry in self._queue if id(entry[0]) not in gone)
        for call in self._waiting:
            call.waiting = deque(plan for plan in call.waiting if id(plan) not in gone)
        for plan, call in late:
            self._tell(call, GenerationEvent(plan.id, "", "deadline", plan.prompt_tokens, 0))
        self._admit()

    def _starting(self) -> list[tuple[Lane, Plan, Call]]:
        """Take requests from the queue for which there is a stream, in their order."""
        started: list[tuple[Lane, Plan, Call]] = []
        room = {True: self._wide.limit - len(self._wide.answers)}
        if self._long is not None and self._long is not self._wide:
            room[False] = self._long.limit - len(self._long.answers)
        left: deque[tuple[Plan, Call]] = deque()
        while self._queue and any(room.get(kind, 1) > 0 for kind in (True, False)):
            plan, call = self._queue.popleft()
            wide = plan.room <= self._wide.context.size
            if not wide and False not in room:
                try:
                    room[False] = self._long_lane().limit
                except SysscanError as error:
                    self._tell(call, GenerationEvent(plan.id, "", "error", plan.prompt_tokens, 0, error))
                    continue
            if room[wide] > 0:
                room[wide] -= 1
                started.append((self._wide if wide else self._long_lane(), plan, call))
            else:
                left.append((plan, call))
        self._queue.extendleft(reversed(left))
        self._admit()
        return started

    def _start(self, lane: Lane, plan: Plan, call: Call) -> None:
        """Give a request its stream: one that holds the most of its prompt, or was used the longest ago."""
        context = lane.context
        free = [stream for stream in range(context.streams) if stream not in lane.answers]
        groups = {stream // context.group for stream in lane.answers}
        known = partial(self._known, lane, plan.segments)
        stream = max(free, key=lambda at: (known(at), at // context.group in groups, -lane.used[at], -at))
        lane.used[stream] = time.monotonic()
        try:
            lane.answers[stream] = answer = Answer(self._tools, plan, call, stream, self.tuning)
        except Exception as fault:  # noqa: BLE001 - one request's, and no reason to fail the others
            self._tell(call, GenerationEvent(plan.id, "", "error", plan.prompt_tokens, 0, _in_words(fault)))
            return
        if answer.finish:  # the grammar leaves nothing to choose
            self._finish(lane, answer, answer.finish)

    def _known(self, lane: Lane, segments: Sequence[tuple[int, ...]], stream: int) -> int:
        """Return how many segments a stream holds that a prompt begins with; the last one is always read."""
        if not (self.tuning.shared_prefix and lane.context.lengths[stream]):
            return 0
        pairs = zip(segments[:-1], lane.held[stream], strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(segments) - 1, len(lane.held[stream])))

    def _inherit(self, lane: Lane, answer: Answer) -> None:
        """Keep what the stream holds of a prompt's beginning, or take it from a stream that holds more."""
        context, stream, segments = lane.context, answer.stream, answer.plan.segments
        known = partial(self._known, lane, segments)
        source = max(range(context.streams), key=lambda at: (known(at), at == stream))
        gained = sum(map(len, segments[known(stream) : known(source)]))
        count = known(source) if gained > WORTH_COPYING else known(stream)
        tokens = sum(map(len, segments[:count]))
        kept = context.keep(stream, tokens) if count == known(stream) else context.copy(source, stream, tokens)
        count = count if kept else 0
        lane.held[stream] = segments[:count]
        answer.inherit(count)

    def _step(self) -> None:
        """Read prompts, decode a token of every answer, and do what else was asked for."""
        now = time.monotonic()
        for lane in self._lanes():
            for answer in list(lane.answers.values()):
                if answer.plan.deadline <= now:
                    self._finish(lane, answer, "deadline")
        room = self.settings.n_batch
        for lane in self._lanes():
            for answer in [answer for answer in lane.answers.values() if answer.unread]:
                if room > 0:
                    room -= self._read(lane, answer, room)
            self._decode(lane)
        if self._jobs:
            self._jobs.popleft()()

    def _read(self, lane: Lane, answer: Answer, room: int) -> int:
        """Read segments of a prompt, in its own division; return the tokens read."""
        context, count = lane.context, 0
        if not answer.inherited:
            self._inherit(lane, answer)
        try:
            while answer.unread and count < room:
                segment = answer.unread[0]
                done = context.lengths[answer.stream] - sum(map(len, lane.held[answer.stream]))
                piece = segment[done : done + context.n_batch]
                logits = context.read(answer.stream, piece)
                count += len(piece)
                if done + len(piece) == len(segment):
                    lane.held[answer.stream] = (*lane.held[answer.stream], answer.unread.popleft())
            if not answer.unread:
                self._go_on(lane, answer, logits, int(logits.argmax()))
        except Exception as fault:  # noqa: BLE001 - one request's, and no reason to fail the others
            self._fail(lane, answer, fault)
        return count

    def _decode(self, lane: Lane) -> None:
        """Decode one token of every answer of a context."""
        answers = {stream: answer for stream, answer in lane.answers.items() if not answer.unread}
        if not answers:
            return
        tokens = {stream: answer.undecoded.popleft() for stream, answer in answers.items()}
        try:
            streams, rows = lane.context.step(tokens, whole_groups=self.settings.reproducible)
        except SysscanError as error:
            for stream in {*answers}:
                self._fail(lane, answers[stream], error)
            return
        best = rows.argmax(axis=1)
        for place, stream in enumerate(streams):
            if stream in answers and not answers[stream].undecoded:
                try:
                    self._go_on(lane, answers[stream], rows[place], int(best[place]))
                except Exception as fault:  # noqa: BLE001 - one request's, and no reason to fail the others
                    self._fail(lane, answers[stream], fault)

    def _go_on(self, lane: Lane, answer: Answer, logits: NDArray[np.float32], best: int) -> None:
        """Let an answer take its next tokens, and say what is certain of its text."""
        answer.go_on(logits, best)
        if answer.finish:
            self._finish(lane, answer, answer.finish)
        elif answer.said:
            self._tell(
                answer.call, GenerationEvent(answer.plan.id, answer.take(), "", answer.plan.prompt_tokens, answer.tokens)
            )

    def _finish(self, lane: Lane, answer: Answer, reason: str, error: SysscanError | None = None) -> None:
        plan, text = answer.plan, answer.take(everything=True)
        self._leave(lane, answer)
        self._tell(answer.call, GenerationEvent(plan.id, text, reason, plan.prompt_tokens, answer.tokens, error))

    def _fail(self, lane: Lane, answer: Answer, fault: Exception) -> None:
        self._finish(lane, answer, "error", _in_words(fault))

    def _leave(self, lane: Lane, answer: Answer) -> None:
        """Free a stream; what it has read of the prompt stays for the next one, what it has said does not."""
        answer.close()
        lane.context.keep(answer.stream, sum(map(len, lane.held[answer.stream])))
        if not lane.context.lengths[answer.stream]:
            lane.held[answer.stream] = ()
        del lane.answers[answer.stream]

    def _tell(self, call: Call, event: GenerationEvent) -> None:
        self._outbox.setdefault(call, []).append(event)

    def _post(self) -> None:
        """Deliver the events of a step."""
        outbox, self._outbox = self._outbox, {}
        for call, events in outbox.items():
            with self._changed:
                ended = min(call.left, sum(bool(event.finish_reason) for event in events))
                call.left -= ended
                self._pending -= ended
                if not call.left:
                    self._calls.discard(call)
            call.deliver(events)

    def _end(self, error: SysscanError) -> None:
        """Tell everybody who waits, and free what the worker holds."""
        with self._changed:
            self._stopped = True
            calls = [*self._calls]
            self._calls.clear()
            self._queue.clear()
            self._waiting.clear()
            self._jobs.clear()
        for lane in self._lanes():
            for answer in lane.answers.values():
                answer.close()
            lane.answers.clear()
            lane.context.close()
        if self._scores:
            self._scores.close()
        for call in calls:
            if not (call.cancelled or self._silent):
                call.deliver(error)


def _in_words(fault: Exception) -> SysscanError:
    """Return what a caller is told: the error itself, or what a fault of ours was."""
    if isinstance(fault, SysscanError):
        return fault
    error = SysscanError(f"the request failed ({type(fault).__name__}: {fault})")
    error.__cause__ = fault
    return error
