"""From a parsed record to a Document: fields are typed and cleaned, labels are told apart, or the record is set aside.

Data comes from anywhere: whatever a record holds, nothing is raised, and no control character of it reaches a terminal or a
prompt. Bytes are not parsed here, no secret is taken out, and what a document says is not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sysscan_models.documents import Document, SetAside, content_hash

SAYS = ("title", "description", "content", "findings", "messages")
_CHAT_ROLES = ("system", "user", "assistant")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ID_LENGTH = 200


class BadRecord(Exception):
    """A record cannot be used; the reason is counted, the detail is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def document(record: Any, source: str) -> Document | SetAside:
    """Return the document of one record, or why it cannot be used. Never raises, whatever the record is.

    Numbers become text, one text becomes a list of one, findings that are objects their title and description. Any other
    wrong type sets the record aside; unknown keys are ignored.
    """
    if not isinstance(record, dict):
        return SetAside(source, "not an object", f"found {_kind(record)}")
    try:
        made = Document(
            id=_line(record, "id")[:_ID_LENGTH],
            title=_text(record.get("title"), "title"),
            description=_text(record.get("description"), "description"),
            content=_text(record.get("content"), "content"),
            findings=_findings(record.get("findings")),
            labels=_labels(record),
            messages=_messages(record.get("messages")),
            family=_line(record, "family"),
            source=source,
            role=_line(record, "role").lower(),
        )
    except BadRecord as bad:
        return SetAside(source, bad.reason, bad.detail)
    if not made.text.strip():
        keys = ", ".join(clean(str(key))[:40] for key in list(record)[:6]) or "none"
        return SetAside(source, "empty document", f"no text in {', '.join(SAYS)}; its keys: {keys}")
    return made if made.id else replace(made, id=content_hash(made)[:16])


def clean(text: str) -> str:
    """Return text without control characters (newlines and tabs stay) and lone surrogates, and without blanks around it."""
    if CONTROL.search(text):
        text = CONTROL.sub(lambda match: "\ufffd" if "\ud800" <= match[0] <= "\udfff" else "", _NEWLINES.sub("\n", text))
    return text.strip()


def _text(value: Any, field: str) -> str:
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean("\n".join(value))
    raise BadRecord("field of the wrong type", f"{field} is {_kind(value)}, expected text")


def _line(record: Mapping[str, Any], field: str) -> str:
    """Return a short field, such as an id, as one line."""
    value = record.get(field)
    if isinstance(value, list):
        raise BadRecord("field of the wrong type", f"{field} is a list, expected text")
    return " ".join(_text(value, field).split())


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def _texts(value: Any, field: str, item_text: Callable[[Any, str], str]) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(text for text in (item_text(item, f"{field}[{index}]") for index, item in enumerate(items)) if text)


def _findings(value: Any) -> tuple[str, ...]:
    def finding(item: Any, field: str) -> str:
        if not isinstance(item, dict):
            return _text(item, field)
        said = [_text(item.get(key), f"{field}.{key}") for key in ("title", "description", "text")]
        if not any(said):
            raise BadRecord("field of the wrong type", f"{field} is an object without title, description or text")
        return ": ".join(text for text in said if text)

    return _texts(value, "findings", finding)


def _labels(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels that the role contracts know, typed as they expect them; an unusable risk score is left out."""
    labels: dict[str, Any] = {}
    if severity := _line(record, "severity").lower():
        labels["severity"] = severity
    if (score := _risk_score(record.get("risk_score"))) is not None:
        labels["risk_score"] = score
    for field in ("techniques", "controls", "remediation"):
        if texts := _texts(record.get(field), field, _text):
            labels[field] = list(texts)
    return labels


def _risk_score(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, type(None))):
        raise BadRecord("field of the wrong type", f"risk_score is {_kind(value)}, expected a number from 0 to 100")
    try:
        score = float(value if value is not None else "nan")
    except (ValueError, OverflowError):
        return None
    return round(score) if 0 <= score <= 100 else None


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    if value in (None, []):
        return ()
    if not isinstance(value, list):
        raise BadRecord("field of the wrong type", f"messages is {_kind(value)}, expected a list")
    turns = tuple(_turn(item, index) for index, item in enumerate(value))
    if not any(turn["role"] == "assistant" and turn["content"] for turn in turns):
        raise BadRecord("chat without an answer", "no turn of the assistant says anything")
    return turns


def _turn(item: Any, index: int) -> Mapping[str, str]:
    if not isinstance(item, dict):
        raise BadRecord("field of the wrong type", f"messages[{index}] is {_kind(item)}, expected an object")
    role = item.get("role")
    if role not in _CHAT_ROLES:
        found = clean(role)[:40] if isinstance(role, str) else _kind(role)
        raise BadRecord("unknown chat role", f"messages[{index}].role is {found}; expected {', '.join(_CHAT_ROLES)}")
    return {"role": role, "content": _text(item.get("content"), f"messages[{index}].content")}


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
