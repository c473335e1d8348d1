"""Values as they are written: in quotes of any kind, behind backslashes, or bare; and whether one tells a secret.

Where a value begins is for those who know what announces it; nothing is searched for here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sysscan_models.redaction.spans import PLACEHOLDER
from sysscan_models.redaction.values import is_prose, is_strong, tells_nothing

_OPENING = re.compile(r"(?:[rbfuLN@]{1,2}(?=[\"']))?(\\{0,3})([\"'`])")
_DOUBLE = re.compile(r"[^\"\\\r\n]{0,4096}(?:\\.[^\"\\\r\n]{0,4096}){0,256}(?=\")")
_SINGLE = re.compile(r"[^'\r\n]{0,4096}(?:''[^'\r\n]{1,4096}){0,64}(?=')")
_TICKED = re.compile(r"[^`\r\n]{0,4096}(?=`)")
BARE = re.compile(  # a separator ends the value if another name, a quote or nothing follows it
    r"(?:[^\s\"'`,;&|<>\\]+|[,;&|](?!\s|[\"'`\\]|[\w.-]{1,40}[ \t]?[=:]|\Z)|\\(?![nrtu\"'\\]|\Z)|"
    r"[\"'](?!/>)(?=[^\s\"'`,;:&|<>)\]}\\]))+"
)
JUDGED = 512
"""Characters by which a value without quotes is judged; only one that is a secret is read to its end."""


class Value(NamedTuple):
    """What stands between quotes, or up to a separator."""

    start: int
    end: int
    text: str
    quoted: bool
    ticked: bool = False
    """Whether the quotes are backticks, as documents put around commands."""


def accepted(value: Value, always: int) -> bool:
    """Return whether a value tells a secret; under names such as `token` only one that looks like no word does."""
    if tells_nothing(value.text) or PLACEHOLDER.match(value.text):
        return False
    if value.quoted and any(map(str.isspace, value.text)) and (is_prose(value.text) or value.ticked):
        return False
    return bool(always) or is_strong(value.text)


def value_at(text: str, at: int) -> Value | None:
    """Return the value that begins at `at`, without its quotes; None where there is none."""
    if opening := _OPENING.match(text, at):
        start = opening.end()
        end = _closing(text, start, opening[1], opening[2])
        if end > start:
            return Value(start, end, text[start:end], True, opening[2] == "`")
        if end == start:
            return None
        at = start
    bare = BARE.match(text, at, at + JUDGED)
    if bare is None:
        return None
    kept = bare[0].rstrip(")]}.,:" if "(" not in bare[0] else ".,:")
    return Value(at, at + len(kept), kept, False) if kept else None


def _closing(text: str, start: int, slashes: str, quote: str) -> int:
    """Return where a quoted value ends, -1 where it does not in a few thousand characters of its line."""
    if not slashes:
        match = {'"': _DOUBLE, "'": _SINGLE, "`": _TICKED}[quote].match(text, start)
        return match.end() if match else -1
    end = text.find(slashes + quote, start, start + 4096)
    while end > start and text[end - 1] == "\\":  # a quote within the value has more backslashes before it
        end = text.find(slashes + quote, end + len(slashes) + 1, start + 4096)
    return end
