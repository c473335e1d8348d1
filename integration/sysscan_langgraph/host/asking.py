"""Asking the two models from inside the host: many conversations in one call, bounded in time, and never an exception.

Whatever goes wrong is an answer with an error, because the host drops what raises. Sessions do the work and batch what is asked
together; the answers are read field by field, so that one field out of place costs that field only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.exceptions import OutputParserException

from sysscan_langgraph.analysis.answers import read_answer
from sysscan_langgraph.analysis.schemas import answer_schema, report_schema
from sysscan_langgraph.host.shapes import listed
from sysscan_langgraph.serving import Served
from sysscan_models.documents import Document
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session, cancelled_at_end
from sysscan_models.prompts import Response, conversation, redact
from sysscan_models.scan_report import SEVERITIES
from sysscan_models.terminal import printable


@dataclass(frozen=True)
class Answer:
    """What a model said about one document; `values` is empty where it said nothing that could be read."""

    values: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    """Why there is nothing; redacted, one line."""

    def text(self, name: str) -> str:
        """Return a field as text; empty where it is none."""
        value = self.values.get(name)
        return printable(value).strip() if isinstance(value, str) else ""

    def texts(self, name: str) -> list[str]:
        """Return a field as texts, each once; empty where there are none."""
        texts = (printable(item).strip() for item in listed(self.values.get(name)) if isinstance(item, str))
        return list(dict.fromkeys(text for text in texts if text))

    @property
    def severity(self) -> str:
        """The severity that the specialist gave; empty where it gave none."""
        return severity if (severity := self.text("severity").lower()) in SEVERITIES else ""

    @property
    def risk_score(self) -> int | None:
        """The risk that the specialist gave, 0 to 100; None where it gave none."""
        value = self.values.get("risk_score")
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100 else None


def checked_number(name: str, value: Any, least: int, unit: str) -> int:
    """Return a whole number; raise UserError when it is none, or less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; expected {least} or more {unit}")
    return value


def checked_seconds(name: str, value: Any) -> float:
    """Return a time in seconds; raise UserError when it is no number, or not more than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{name} is {value!r}; expected more than 0 seconds")
    return value


class TimeLimit:
    """Seconds that a call may take, all its questions together."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; never negative."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> TimeLimit:
        """Return a share of what is left, for one of several questions."""
        return TimeLimit(self.left * share)


def ask(
    models: Served,
    role: str,
    documents: Sequence[Document],
    *,
    limit: TimeLimit,
    max_tokens: int,
    aliases: Sequence[str] = (),
) -> list[Answer]:
    """Ask a role about documents and return its answers in their order. Never raises.

    Documents with the same text are asked once, and cost tokens once. With `aliases`, each point of an answer begins with those
    that it rests on.
    """
    if not documents:
        return []
    keys = [(document.title, document.description) for document in documents]
    asked = dict(zip(reversed(keys), reversed(documents), strict=True))
    order = list(dict.fromkeys(keys))
    try:
        contract, session = models.role(role), models.session(role)
        model = contract.response_model
        schema = report_schema(model, max_tokens, aliases) if aliases else answer_schema(model, max_tokens)
        requests = [
            GenerationRequest(
                str(number),
                tuple(conversation(contract, asked[key])),
                max_tokens=max_tokens,
                json_schema=schema,
                deadline=max(limit.left, 0.001),
                shorten=True,
            )
            for number, key in enumerate(order)
        ]
        given = dict(zip(order, _answers(session, model, requests, limit), strict=True))
    except Exception as error:  # noqa: BLE001 - the host would drop whatever this call is for
        return [Answer(error=fault(error))] * len(documents)
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    return [
        given[key] if first[key] == place else Answer(given[key].values, given[key].finish_reason, error=given[key].error)
        for place, key in enumerate(keys)
    ]


def fault(error: BaseException) -> str:
    """Return an error as one line that may stand in a state or a log."""
    return " ".join(printable(redact(f"{type(error).__name__}: {error}")).split())[:300]


def _answers(session: Session, model: type[Response], requests: Sequence[GenerationRequest], limit: TimeLimit) -> list[Answer]:
    """Ask all requests at once; where one of them is refused before anything is decoded, ask each alone."""
    try:
        return _collected(session, model, requests, limit)
    except SysscanError as error:
        if len(requests) == 1:
            return [Answer(error=fault(error))]
    return [answer for request in requests for answer in _answers(session, model, [request], limit)]


def _collected(
    session: Session, model: type[Response], requests: Sequence[GenerationRequest], limit: TimeLimit
) -> list[Answer]:
    texts = {request.id: "" for request in requests}
    last: dict[str, GenerationEvent] = {}
    try:
        for event in _until(session.generate(requests), limit):
            texts[event.id] += event.text
            last[event.id] = event
    except Exception as error:
        if not last:
            raise
        broken = fault(error)
        return [_answer(model, texts[request.id], last.get(request.id), broken) for request in requests]
    return [_answer(model, texts[request.id], last.get(request.id)) for request in requests]


def _until(events: Iterator[GenerationEvent], limit: TimeLimit) -> Iterator[GenerationEvent]:
    """Yield events until the time is over, for sessions that know no deadline; closing them cancels what is left."""
    with cancelled_at_end(events):
        for event in events:
            yield event
            if not limit.left:
                return


def _answer(model: type[Response], text: str, event: GenerationEvent | None, broken: str = "") -> Answer:
    """Read an answer; `broken` is what ended the whole call, for an answer that was not finished then."""
    reason = (event.finish_reason if event else "") or ("error" if broken else "deadline")
    counts = (event.prompt_tokens, event.completion_tokens) if event else (0, 0)
    if reason == "error":
        return Answer({}, reason, *counts, fault(event.error) if event and event.error else broken or "the model failed")
    if not text.strip() and reason == "deadline":
        return Answer({}, reason, *counts, "the time limit ended before the answer")
    try:
        said = read_answer(text, model)
    except OutputParserException as error:
        return Answer({}, reason, *counts, fault(error))
    return Answer(said.model_dump(exclude_none=True), reason, *counts)
