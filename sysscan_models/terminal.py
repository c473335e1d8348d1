"""What may reach a terminal: text of documents, models and archives without what would steer it.

Markup is not this module's matter; whoever prints with rich switches it off.
"""

from __future__ import annotations

import re

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x80-\x9f\n]*(?:\x07|\x1b\\|\x9c)"  # to the window: titles, links, the clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x80-\x9f\n]*(?:\x1b\\|\x9c)"  # strings for the device
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor, screen
    r"|\x1b[ -/]*[0-~]?"
)
"""Strings without an end are left but for their first characters, so that nothing can hide the rest of a text."""
_LINE_END = re.compile("\r\n|[\u2028\u2029\x85]")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    """Return text without escape sequences, control characters (but line ends and tabs) and changes of direction."""
    return _INVISIBLE.sub("", _LINE_END.sub("\n", _ESCAPE_SEQUENCE.sub("", text)))
