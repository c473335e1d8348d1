"""One value of a record as text: typed, cleaned, or the record is set aside.

Nothing is raised but BadRecord, and nothing takes more than linear time. Which fields a record has is for `records`.
"""

from __future__ import annotations

import math
import re
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""What is not seen, or turns text around: with it text hides from people, from redaction and from the search for copies."""
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]+")
"""What Persian, Indic and emoji need, and what hides something only beside an ASCII character."""
_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


class BadRecord(Exception):
    """A record cannot be used; the reason is counted, the detail is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def clean(text: str) -> str:
    """Return text that holds what it shows: without control and hidden characters, lone surrogates, and blanks around it.

    Newlines and tabs stay. Joiners and variation selectors stay where scripts and emoji need them.
    """
    if text.replace("\n", " ").replace("\t", " ").isprintable():  # nearly always, and much faster than a search
        return text.strip()
    if CONTROL.search(text):
        text = CONTROL.sub(lambda match: "\ufffd" if "\ud800" <= match[0] <= "\udfff" else "", _NEWLINES.sub("\n", text))
    return text.strip() if text.isascii() else _JOINERS.sub(_joiner, HIDDEN.sub("", text)).strip()


def _joiner(match: re.Match[str]) -> str:
    around = match.string[max(match.start() - 1, 0) : match.start()] + match.string[match.end() : match.end() + 1]
    return "" if any("!" <= beside <= "~" for beside in around) else match[0]


def text_of(value: Any, field: str) -> str:
    """Return a value as text: numbers are written, lists of texts joined; anything else raises BadRecord."""
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean("\n".join(value))
    raise BadRecord("field of the wrong type", f"{field} is {kind_of(value)}, expected text")


def number_text(value: float) -> str:
    """Return a number as people write it; what is no number is empty."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def kind_of(value: Any) -> str:
    """Return what a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
