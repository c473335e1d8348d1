"""How text of unknown origin is spelt on a page: what is invisible or steers becomes visible, what is endless is cut.

A file name that turns the direction of writing around is evidence; a page that drops such a character hides it. Escaping for
a format (HTML, Markdown) is that format's own matter.
"""

from __future__ import annotations

import re
import unicodedata

_LINE_END = re.compile("\r\n|[\r\u2028\u2029\x85]")
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)
"""Letters, marks and symbols that show nothing, or nothing of their own."""
_JOINERS = "\u200c\u200d"
"""They shape emoji, Persian and Indic words, and are left alone."""


def visible(text: str) -> str:
    """Return text with what is invisible or steers (but line ends and tabs) spelt as `\\x1b`, `\\u202e`."""
    text = _LINE_END.sub("\n", text)
    return text if text.isascii() and text.isprintable() else "".join(map(_spelt, text, f" {text}"))


def one_line(text: str, longest: int = 200) -> str:
    """Return visible text as one line of at most `longest` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "\u2026"


def cut(text: str, longest: int) -> str:
    """Return visible text of at most about `longest` characters, which says how much is missing."""
    text = visible(text)
    return text if len(text) <= longest else f"{text[:longest]}\u2026 ({len(text) - longest:,} more characters)"


def counted(number: int, noun: str) -> str:
    """Return `1 finding`, `2 findings`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _spelt(character: str, before: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    if character == "\ufe0f" and unicodedata.category(before) == "So" and not _BLANK.match(before):
        return character  # it makes an emoji of a symbol, such as a warning sign
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs") and not _BLANK.match(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
