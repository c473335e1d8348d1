"""A backend that works by script: any number of requests at once, answers from a function, everything asked in a log.

For behaviours that a small model is too weak or too slow to show: which requests come, in what order, how many at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import ConfigDict, Field, PrivateAttr

from sysscan_langgraph.serving import Served
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.roles import GENERALIST, SPECIALIST, ModelRole

ANALYSIS = {
    "analysis": "It can be abused. Look at it.",
    "findings": ["A fact"],
    "severity": "medium",
    "risk_score": 50,
    "techniques": ["T1548.001"],
    "controls": ["NIST SP 800-53 AC-6"],
    "remediation": ["Remove the bit"],
}
REPORT = {
    "executive_summary": "The host needs care.",
    "key_findings": ["F1: it is bad"],
    "recommendations": ["F1, F2: repair it"],
}
Reply = str | Mapping[str, Any] | Exception
Script = Callable[[str, GenerationRequest], Reply]
"""The role and the request in; the answer, an object that becomes one, or what goes wrong out."""


def usual(role: str, request: GenerationRequest) -> Reply:
    return ANALYSIS if role == "specialist" else REPORT


class Scripted(Backend):
    """Answers by script. `seconds` is what a request takes; a deadline that is shorter ends it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    name: ClassVar[str] = "scripted"

    script: Any = Field(usual, json_schema_extra={"affects_result": False})
    seconds: float = 0.0
    n_parallel: int = 4
    n_ctx: int = 4096
    log: Path | None = None
    fails_to_open: Any = Field(None, json_schema_extra={"affects_result": False})
    _asked: list[tuple[str, GenerationRequest]] = PrivateAttr(default_factory=list)
    _under_way: list[int] = PrivateAttr(default_factory=lambda: [0, 0])
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def open(self, model: ModelRef) -> Session:
        if self.fails_to_open is not None:
            raise self.fails_to_open
        return ScriptedSession(self, model.role)

    @property
    def most_at_once(self) -> int:
        return self._under_way[1]

    def asked(self, role: str = "specialist") -> list[GenerationRequest]:
        """What a role was asked, in the order of beginning."""
        return [request for name, request in self._asked if name == role]

    def texts(self, role: str = "specialist") -> list[str]:
        return [request.messages[-1]["content"] for request in self.asked(role)]


class ScriptedSession(Session):
    def __init__(self, backend: Scripted, role: ModelRole) -> None:
        self.backend, self.role = backend, role

    @property
    def n_ctx(self) -> int:
        return self.backend.n_ctx

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in requests:
            wait = self._begin(request)
            try:
                time.sleep(wait)
            finally:
                self._end()
            yield from self._events(request)

    async def agenerate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[GenerationEvent]:
        for request in requests:
            wait = self._begin(request)
            try:
                await asyncio.sleep(wait)
            finally:
                self._end()
            for event in self._events(request):
                yield event

    def _begin(self, request: GenerationRequest) -> float:
        backend = self.backend
        with backend._lock:
            backend._asked.append((self.role.name, request))
            backend._under_way[0] += 1
            backend._under_way[1] = max(backend._under_way)
            if backend.log:
                with backend.log.open("a") as log:
                    log.write(orjson.dumps([self.role.name, request.messages[-1]["content"]]).decode() + "\n")
                    log.flush()
                    os.fsync(log.fileno())
        return min(backend.seconds, request.deadline if request.deadline is not None else backend.seconds)

    def _end(self) -> None:
        with self.backend._lock:
            self.backend._under_way[0] -= 1

    def _events(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        prompt = self.count_tokens(request.messages)
        if request.deadline is not None and request.deadline < self.backend.seconds:
            yield GenerationEvent(request.id, "", "deadline", prompt, 0)
            return
        reply = self.backend.script(self.role.name, request)
        if isinstance(reply, Exception):
            yield GenerationEvent(request.id, "", "error", prompt, 0, error=reply)
            return
        text = reply if isinstance(reply, str) else orjson.dumps(reply).decode()
        reason = "stop" if text.endswith("}") else "length"
        middle = len(text) // 2
        yield GenerationEvent(request.id, text[:middle])
        yield GenerationEvent(request.id, text[middle:], reason, prompt, 7)

    def close(self) -> None:
        pass


def scripted(script: Script = usual, roles: Sequence[ModelRole] = (SPECIALIST, GENERALIST), **options: Any) -> Served:
    """Return served models that answer by script."""
    backend = Scripted(script=script, **options)
    return Served({role.name: ModelRef(Path(f"{role.name}.gguf"), role) for role in roles}, backend)


def backend_of(models: Served) -> Scripted:
    assert isinstance(models.backend, Scripted)
    return models.backend


def scan(*severities: str, **more: Any) -> dict[str, Any]:
    """Return a report with a finding of its own text for each severity, as `f1`, `f2`, ..."""
    findings = [
        {"id": f"/home/alice/f{number}", "title": f"Finding f{number}.", "severity": severity, "description": "text", **more}
        for number, severity in enumerate(severities, 1)
    ]
    return {"meta": {"hostname": "host.example"}, "results": [{"scanner": "suid", "findings": findings}]}
