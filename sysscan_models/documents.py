"""What the archive holds: documents, and the records that had to be set aside.

A document is data. Nothing in it is ever executed, taken for an instruction or tokenized as a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson


@dataclass(frozen=True)
class Document:
    """One record of the dataset. Absent text is the empty string, absent lists are empty.

    ``labels`` holds the extra keys that the built-in role contracts know: severity, risk_score, techniques, controls,
    remediation; all other extra keys are ignored. ``messages`` is chat data, a tuple of ``{"role": ..., "content": ...}``, used
    as it is when present. ``family`` groups documents that splits must not divide. ``source`` is the archive member (and line)
    that the document came from.
    ``role`` is the role that the data itself names for this document, if it does.
    """

    id: str
    title: str = ""
    description: str = ""
    content: str = ""
    findings: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    family: str = ""
    source: str = ""
    role: str = ""

    @cached_property
    def compared(self) -> str:
        """What copies and held-out data are looked for in: the text without system turns, and labels that are lists."""
        turns = [message["content"] for message in self.messages if message["role"] != "system"]
        lists = [item for value in self.labels.values() if isinstance(value, (list, tuple)) for item in value]
        told = (self.title, self.description, self.content, *self.findings, *turns, *(str(item) for item in lists))
        return "\n".join(part for part in told if part)

    @cached_property
    def text(self) -> str:
        """Everything that the document says, as one plain text: title, description, content, findings, turns."""
        turns = (message["content"] for message in self.messages)
        return "\n".join(part for part in (self.title, self.description, self.content, *self.findings, *turns) if part)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A member or record that could not be used: where it was, and why in a few fixed words that can be counted."""

    source: str
    reason: str
    detail: str = ""


def content_hash(document: Document) -> str:
    """Return the SHA-256 of what the document says (not of where it came from, nor of its id or family)."""
    said = [
        document.title,
        document.description,
        document.content,
        list(document.findings),
        dict(document.labels),
        [dict(message) for message in document.messages],
    ]
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()
