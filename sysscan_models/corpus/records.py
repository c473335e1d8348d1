"""From a parsed record to a Document: fields are typed and cleaned, labels are told apart, or the record is set aside.

Data comes from anywhere: whatever a record holds, nothing is raised, and no control character of it reaches a terminal or a
prompt. Bytes are not parsed here, no secret is taken out, and what a document says is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sysscan_models.corpus import chats
from sysscan_models.corpus.fields import BadRecord, clean, kind_of, text_of
from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.redaction import redact

SAYS = ("title", "description", "content", "text", "findings", "messages")
_ID_LENGTH = 200


def document(record: Any, source: str, family_key: str = "family") -> Document | SetAside:
    """Return the document of one record, or why it cannot be used. Never raises, whatever the record is.

    Numbers become text, one text becomes a list of one, findings that are objects their title and description; a question with
    its answer (see `chats`) becomes messages; `text`, as many data sets call it, is the content where there is none. What a
    record says must be text, or it is set aside; an id, a family or a label that cannot be used is left out. Unknown keys are
    ignored.
    """
    if not isinstance(record, dict):
        return SetAside(source, "not an object", f"found {kind_of(record)}")
    try:
        made = Document(
            id=_shortened(_line(record, "id")),
            title=text_of(record.get("title"), "title"),
            description=text_of(record.get("description"), "description"),
            content=_content(record),
            findings=_findings(record.get("findings")),
            labels=_labels(record),
            messages=chats.messages(record),
            family=_line(record, family_key),
            source=source,
            role=redact(_line(record, "role")).lower(),
        )
    except BadRecord as bad:
        return SetAside(source, bad.reason, bad.detail)
    if not made.text.strip():
        keys = ", ".join(redact(clean(str(key)))[:40] for key in list(record)[:6]) or "none"
        return SetAside(source, "empty document", f"no text in {', '.join(SAYS)}; its keys: {keys}")
    return made if made.id else replace(made, id=content_hash(made)[:16])


def _content(record: Mapping[str, Any]) -> str:
    """Return a record's content; `text` is another name of it, but in a chat, where it holds all turns once more."""
    content = text_of(record.get("content"), "content")
    if content or record.get("text") is None or record.get("messages") or chats.is_chat(record):
        return content
    try:
        return text_of(record["text"], "text")
    except BadRecord:
        if any(record.get(key) for key in ("title", "description", "findings")):
            return ""  # the record says enough without it
        raise


def as_id(name: str) -> str:
    """Return an id as documents have it: on one line, without control characters and secrets, and not endless."""
    return redact(" ".join(clean(name).split()))[:_ID_LENGTH]


def _shortened(name: str) -> str:
    """Return an id that is not endless; a secret must not lose its shape by the cut."""
    return name if len(name) <= _ID_LENGTH else redact(name)[:_ID_LENGTH]


def _line(record: Mapping[str, Any], field: str) -> str:
    """Return a short field, such as an id, as one line; one that is neither text nor a number names nothing."""
    value = record.get(field)
    if isinstance(value, (list, dict, bool)):
        return ""
    return " ".join(text_of(value, field).split())


def _texts(value: Any, field: str, item_text: Callable[[Any, str], str]) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(text for text in (item_text(item, f"{field}[{index}]") for index, item in enumerate(items)) if text)


def _findings(value: Any) -> tuple[str, ...]:
    def finding(item: Any, field: str) -> str:
        if not isinstance(item, dict):
            return text_of(item, field)
        said = [text_of(item.get(key), f"{field}.{key}") for key in ("title", "description", "text")]
        if not any(said):
            raise BadRecord("field of the wrong type", f"{field} is an object without title, description or text")
        return ": ".join(text for text in said if text)

    return _texts(value, "findings", finding)


def _labels(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels that the role contracts know, typed as they expect them; what cannot be used is left out."""
    labels: dict[str, Any] = {}
    if severity := _line(record, "severity").lower():
        labels["severity"] = severity
    if (score := _risk_score(record.get("risk_score"))) is not None:
        labels["risk_score"] = score
    for field in ("techniques", "controls", "remediation"):
        if texts := _texts(record.get(field), field, _label):
            labels[field] = list(texts)
    return labels


def _label(value: Any, field: str) -> str:
    return "" if isinstance(value, (list, dict, bool)) else text_of(value, field)


def _risk_score(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return round(score) if 0 <= score <= 100 else None
