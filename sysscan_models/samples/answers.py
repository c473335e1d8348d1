"""Answers of a model, judged by its role's response model and made fit for a terminal.

What a model or a finding says is data: it passes through `terminal.printable`, and no markup in it is ever interpreted. Nothing
here knows which backend answers.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from sysscan_models.documents import Document
from sysscan_models.interfaces import GenerationRequest, Session
from sysscan_models.prompts import conversation
from sysscan_models.roles import ModelRole
from sysscan_models.terminal import printable


def one_line(text: str, longest: int = 200) -> str:
    """Return printable text as one line, cut to `longest` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "\u2026"


@dataclass(frozen=True)
class Answer:
    """What a model said about one document. `text` is as it came; `fields` is the JSON object in it, None if it is none."""

    document: Document
    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    seconds: float
    """Since it was asked for, beside the others of the same call."""
    fields: Mapping[str, Any] | None
    fault: str
    """Why it does not fit the role's response model; empty when it fits."""

    @property
    def stopped(self) -> bool:
        """Whether the model ended its answer by itself."""
        return self.finish_reason == "stop"

    @property
    def fits(self) -> bool:
        """Whether it is what the role's response model asks for."""
        return not self.fault

    def heading(self) -> str:
        """Return what was asked about: scanner, id and title of a finding, or the question."""
        document = self.document
        return one_line(f"{document.source} {document.id}: {document.title}" if document.source else document.title)

    def body(self, width: int = 100) -> str:
        """Return the answer for reading: field by field when it is a JSON object, else as it is; at most `width` columns."""
        if self.fields is None:
            return _wrapped(self.text.strip(), width) or "(nothing)"
        return "\n".join(_field(name, value, width) for name, value in self.fields.items()) or "{}"

    def verdict(self) -> str:
        """Return in one line what kind of answer it was and what it cost."""
        kind = "valid JSON" if self.fields is not None else "not valid JSON"
        kind += ", fits the response model" if self.fits else f", {one_line(self.fault)}" if self.fields is not None else ""
        end = "ended by itself" if self.stopped else f"not ended by itself ({self.finish_reason})"
        speed = f", {self.tokens / self.seconds:.0f} tokens/s" if self.seconds > 0 else ""
        return f"{kind}; {end}; {self.tokens} tokens in {self.seconds:.1f} s{speed}"


def answers(
    session: Session,
    role: ModelRole,
    documents: Sequence[Document],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    constrained: bool = False,
) -> Iterator[Answer]:
    """Ask a role about documents, as it was trained to be asked, and yield each answer when it is finished, in any order.

    Raises what went wrong with any of them.
    """
    schema = role.response_model.model_json_schema() if constrained else None
    requests = [
        GenerationRequest(str(number), tuple(conversation(role, document)), max_tokens, temperature, json_schema=schema)
        for number, document in enumerate(documents)
    ]
    texts = [""] * len(requests)
    asked = time.monotonic()
    for event in session.generate(requests):
        number = int(event.id)
        texts[number] += event.text
        if event.error:
            raise event.error
        if event.finish_reason:
            finished = time.monotonic()
            fields, fault = judge(role, texts[number])
            counts = (event.prompt_tokens, event.completion_tokens)
            yield Answer(documents[number], texts[number], event.finish_reason, *counts, finished - asked, fields, fault)


def judge(role: ModelRole, text: str) -> tuple[Mapping[str, Any] | None, str]:
    """Return the JSON object that an answer is (None if it is none), and why it does not fit the response model, if so."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return None, f"not JSON ({error})"
    if not isinstance(fields, dict):
        return None, f"JSON, but not an object ({type(fields).__name__})"
    if not fields:
        return fields, "says nothing"
    try:
        role.response_model.model_validate(fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)]
        return fields, f"does not fit the response model ({'; '.join(faults[:3])})"
    return fields, ""


def _field(name: str, value: Any, width: int) -> str:
    name = _wrapped(name, width).replace("\n", " ")
    if isinstance(value, str) and len(name) + len(value) + 2 > width:
        return f"{name}:\n{_wrapped(value, width, '  ')}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        line = f"{name}: {printable(', '.join(value))}"
        short = len(line) <= width and "\n" not in line and all(len(item) <= 16 for item in value)
        items = [_wrapped(item, width, "  - ", "    ") for item in value]
        return line if short else "\n".join([f"{name}:", *items])
    return _wrapped(f"{name}: {value if isinstance(value, str) else orjson.dumps(value).decode()}", width, after="  ")


def _wrapped(text: str, width: int, first: str = "", after: str | None = None) -> str:
    """Return printable text in lines of at most `width`; indents apply to each paragraph."""
    after = first if after is None else after
    lines: list[str] = []
    for line in printable(text).expandtabs(4).split("\n"):
        indent = after if lines else first
        lines += textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=after) or [""]
    return "\n".join(lines)
