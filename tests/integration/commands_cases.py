"""The command line with one more backend, `by_hand`, which answers what it is told to, as slowly as it is told to.

Run as a program it is `sysscan-models` with that backend; it needs no package, so every role can be asked.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from sysscan_models import hookimpl, plugins
from sysscan_models.cli import main
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session

ANSWERS = {
    "specialist": '{"analysis":"Look at it.","severity":"low","risk_score":20,"techniques":["T1548.001"]}',
    "generalist": '{"executive_summary":"The host needs care.","key_findings":["F1: bad"],"recommendations":["F1: mend"]}',
}


class ByHand(Backend):
    name: ClassVar[str] = "by_hand"
    serves_files: ClassVar[bool] = False

    answer: str = ""
    """Empty for a fitting one."""
    seconds: float = 0.0
    """Of a whole answer."""
    fails: bool = False
    n_ctx: int = 4096
    n_parallel: int = 2
    log: str = ""
    """File that each request is written to, as JSON."""

    def open(self, model: ModelRef) -> Session:
        return _Session(self, model.role.name)


class _Session(Session):
    def __init__(self, options: ByHand, role: str) -> None:
        self.options, self.role, self.closed = options, role, False

    @property
    def n_ctx(self) -> int:
        return self.options.n_ctx

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in requests:
            if self.count_tokens(request.messages) >= self.n_ctx:
                raise UserError(f"request {request.id!r} does not fit the context of {self.n_ctx} tokens. Send less text")
        return self._answers(requests)

    def _answers(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in requests:
            self._write(request)
            if self.options.fails:
                yield GenerationEvent(request.id, "", "error", error=SysscanError("the model is broken"))
                continue
            text = self.options.answer or ANSWERS[self.role]
            parts = text.split(" ")
            prompt = self.count_tokens(request.messages)
            for number, part in enumerate(parts, 1):
                self._rest(len(parts))
                last = number == len(parts)
                yield GenerationEvent(request.id, part + " " * (not last), "stop" if last else "", prompt, number)

    def _rest(self, parts: int) -> None:
        end = time.monotonic() + self.options.seconds / parts
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            if self.closed:
                raise SysscanError("the session was closed")

    def _write(self, request: GenerationRequest) -> None:
        if self.options.log:
            line: Any = {"role": self.role, "messages": request.messages, "schema": request.json_schema is not None}
            with Path(self.options.log).open("ab") as log:
                log.write(orjson.dumps(line) + b"\n")

    def close(self) -> None:
        self.closed = True


class Plugin:
    @hookimpl
    def sysscan_register_backends(self) -> Sequence[type[Backend]]:
        return [ByHand]


_manager = plugins.plugin_manager


def with_by_hand(*more: Any, **options: Any) -> plugins.Registry:
    return _manager(Plugin(), *more, **options)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process with the backend `by_hand`; return the exit code."""
    monkeypatch.setattr("sysscan_models.plugins.plugin_manager", with_by_hand)
    monkeypatch.setattr(sys, "argv", ["sysscan-models", *words])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


if __name__ == "__main__":
    plugins.plugin_manager = with_by_hand
    main()
