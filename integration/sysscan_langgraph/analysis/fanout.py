"""The specialist over many findings: a subgraph that asks about each in a task of its own, with `Send`.

LangGraph saves what a finished task wrote beside the last checkpoint, so an analysis that was killed asks only what is missing.
A habit of LangGraph shapes this module: it runs tasks and the checkpointer's writes in one pool of threads (sync) or behind
one semaphore (async, where `max_concurrency` is set), first come first served. With fewer threads than tasks, nothing would be
saved before the last task has begun. So findings come in waves, every task of a wave has a thread, and a gate of our own bounds
how many requests are under way. With `durability="exit"` LangGraph saves nothing before the end; such an analysis starts anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from langchain_core.exceptions import OutputParserException
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from sysscan_langgraph.analysis.answers import read_answer
from sysscan_langgraph.analysis.questions import Asked, Questioner, retry_on
from sysscan_langgraph.analysis.steps import Call, node
from sysscan_models.prompts import redact

UNDER_WAY = 4
"""Requests under way, as a multiple of those that the backend answers at once: it always has the next one at hand."""
WAVE = 16
"""Findings of one wave, as a multiple of the same; a wave ends when its last answer is there."""
LARGEST_WAVE = 256
TIME_BUDGET = "time budget"
"""Why a finding was left out that nobody asked about in time."""
FAILED = "failed"

ATTEMPTS = 2
"""How often a finding is asked about when the backend fails; an answer that cannot be read would be the same again."""

_OUT_OF_TIME: dict[str, Any] = {"error": "", "reason": TIME_BUDGET}
_RUN = "__sysscan_run"  # LangGraph neither saves nor traces configurable keys that begin so
_CHECKPOINT = "checkpoint_id"
_SPARE = 8  # tasks of LangGraph itself: what it saves, and its stream

Answers = dict[str, dict[str, Any]]
"""Alias -> `fields` of the answer and what it cost, or `error` and `reason`."""


def merged(left: Answers | None, right: Answers | None) -> Answers:
    """Return both; the same answer twice counts once."""
    return {**(left or {}), **(right or {})}


class FanoutState(TypedDict, total=False):
    """State of the subgraph: what to ask (alias and text), and the answers by alias."""

    questions: list[dict[str, str]]
    answers: Annotated[Answers, merged]


class Question(TypedDict):
    """What one task is given."""

    alias: str
    text: str


class Gate:
    """Lets a number of requests through at once; from threads, and from event loops, each with places of its own."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._lock = threading.Lock()
        self._threads = threading.Semaphore(places)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    def entering(self, seconds: float | None) -> Call:
        """Return the call that waits for a place, at most so long; it brings what leaves again, or None."""

        def now() -> Callable[[], None] | None:
            in_time = self._threads.acquire(timeout=None if seconds is None else max(0.0, seconds))
            return self._threads.release if in_time else None

        async def later() -> Callable[[], None] | None:
            with self._lock:
                places = self._loops.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.places))
            try:
                await asyncio.wait_for(places.acquire(), seconds)
            except asyncio.TimeoutError:
                return None
            return places.release

        return Call(now, later)


@dataclass
class Run:
    """What the tasks of one run share and no checkpoint holds: the clock, the gate, and who is told of progress."""

    gate: Gate
    tell: Callable[[int, int], None]
    ends: float | None = None
    """When asking ends, by the monotonic clock; None for never."""
    total: int = 0
    done: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> float | None:
        """Return the seconds that are left, or None for no end."""
        return None if self.ends is None else self.ends - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.ends is not None and time.monotonic() >= self.ends

    def begin(self, done: int) -> None:
        """Note how many findings were done before, in a run that was killed."""
        with self.lock:
            if done != self.done:
                self.done = done
                self.tell(done, self.total)

    def count(self) -> None:
        """Note one finding more."""
        with self.lock:
            self.done = max(0, self.done) + 1
            self.tell(self.done, self.total)


class Fanout:
    """The subgraph over one specialist, which answers the questions of a run."""

    def __init__(self, specialist: Questioner, schema: Mapping[str, Any]) -> None:
        parallel = max(1, int(getattr(specialist.models.backend, "n_parallel", 16)))
        self.specialist, self.schema = specialist, schema
        self.under_way = UNDER_WAY * parallel
        self.wave = min(LARGEST_WAVE, WAVE * parallel)
        self.gate = Gate(self.under_way)
        graph = StateGraph(FanoutState)
        graph.add_node("wave", RunnableLambda(self._begin, name="wave"))
        graph.add_node("ask", node(self._ask, "ask"))
        graph.add_edge(START, "wave")
        graph.add_conditional_edges("wave", RunnableLambda(self._next, name="next"), ["ask", END])
        graph.add_edge("ask", "wave")
        self.graph = graph.compile(name="findings")

    def asking(self, questions: Sequence[Mapping[str, str]], run: Run, config: RunnableConfig) -> Call:
        """Return the call that brings the answers; those that the time did not suffice for are missing."""

        def now() -> Answers:
            return merged(None, self.graph.invoke(*self._call(questions, run, config)).get("answers"))

        async def later() -> Answers:
            found = await self.graph.ainvoke(*self._call(questions, run, config))
            return merged(None, found.get("answers"))

        return Call(now, later)

    def _call(self, questions: Sequence[Mapping[str, str]], run: Run, config: RunnableConfig) -> tuple[Any, RunnableConfig]:
        """Return the subgraph's input and configuration; what the user said of concurrency bounds the gate, not the tasks."""
        if wanted := config.get("max_concurrency"):
            run.gate = Gate(min(wanted, self.under_way))
        run.total = len(questions)
        asked = [{"alias": question["alias"], "text": question["text"]} for question in questions]
        called = RunnableConfig(**config)
        inherited = dict(config.get("configurable", {}))
        if inherited.get(_CHECKPOINT) is None:  # LangGraph 0.6 takes the bare key for a fork and repeats what was done
            inherited.pop(_CHECKPOINT, None)
        called["configurable"] = {**inherited, _RUN: run}
        called["max_concurrency"] = self.wave + _SPARE
        called["recursion_limit"] = 2 * (len(asked) // self.wave + 2) + 1
        return {"questions": asked}, called

    def _begin(self, state: FanoutState, config: RunnableConfig) -> FanoutState:
        _run(config).begin(len(state.get("answers") or {}))
        return {}

    def _next(self, state: FanoutState, config: RunnableConfig) -> Sequence[Send] | str:
        answers = state.get("answers") or {}
        missing = [question for question in state["questions"] if question["alias"] not in answers]
        if not missing or _run(config).over:
            return END
        return [Send("ask", question) for question in missing[: self.wave]]

    def _ask(self, question: Question, config: RunnableConfig) -> Generator[Call, Any, FanoutState]:
        run, answer = _run(config), _OUT_OF_TIME
        leave = yield run.gate.entering(run.left())
        if leave:
            try:
                answer = yield from self._answered(question["text"], run, config)
            finally:
                leave()
        run.count()
        return {"answers": {question["alias"]: answer}}

    def _answered(self, text: str, run: Run, config: RunnableConfig) -> Generator[Call, Any, dict[str, Any]]:
        answer = _OUT_OF_TIME
        for _ in range(ATTEMPTS):
            if run.over:
                break
            try:
                return self._read((yield self.specialist.asking(text, self.schema, config, run.left())))
            except Exception as error:  # noqa: BLE001 - one finding's failure is told, and stops no other
                answer = failure(error)
                if not retry_on(error):
                    break
        return answer

    def _read(self, asked: Asked) -> dict[str, Any]:
        try:
            fields = read_answer(asked.text, self.specialist.response_model, self.schema)
        except OutputParserException as error:
            if asked.finish_reason == "deadline":
                return {**_OUT_OF_TIME, **asked.cost}
            return {**failure(error), **asked.cost}
        if asked.finish_reason == "deadline" and getattr(fields, "severity", None) is None:
            return {**_OUT_OF_TIME, **asked.cost}  # a few words are no analysis
        return {"fields": fields.model_dump(mode="json", exclude_none=True), **asked.cost}


def failure(error: BaseException) -> dict[str, Any]:
    """Return what stands for an answer that failed."""
    return {"error": redact(" ".join(f"{error}".split()) or type(error).__name__)[:300], "reason": FAILED}


def _run(config: RunnableConfig) -> Run:
    run: Run = config["configurable"][_RUN]
    return run
