"""Whether a document is like something to be learnt from: long enough, text, no encoded blob, not one line again and again.

Letters of every script are text, and so are code, tables, logs, hex dumps and drawings of characters. What a document means,
whether it is true and in which language it is written are not looked at. Every test takes time linear in the text, and what is
plainly text is told by counting bytes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from sysscan_models.documents import Document

if TYPE_CHECKING:
    from sysscan_models.config import QualityOptions

TOO_SHORT = "too short"
TOO_LONG = "too long"
NOT_TEXT = "mostly not text"
ENCODED = "encoded blob"
REPEATED = "one repeated line"
REASONS = (TOO_SHORT, TOO_LONG, NOT_TEXT, ENCODED, REPEATED)

ENCODED_RUN = 48
"""Digits of base64 or hexadecimal in a row that may be encoded data; lines of PEM have 64, of MIME 76, of xxd 60."""
ENDLESS_RUN = 128
"""Letters and digits in a row that are no word of any language, whatever they are."""
HASH_LENGTHS = (64, 96, 128)
"""Hexadecimal digits of SHA-256, SHA-384 and SHA-512: they are no blob beside something else in their line, nor a few alone."""
FEW_HASHES = 512
"""Characters of such hashes, alone in their lines, that are taken for hashes; more are an encoded file."""
COPIES = 4
"""A line that comes less often than this is not repeated, as short documents say the same in title and description."""
SPOILT = 4
"""Characters that count as not text for each control or replacement character: where there is one, its neighbours are data."""

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \t\r\n"
_CONTROLS_AND_NOT_ASCII = bytes(code for code in (*range(32), *range(127, 256)) if code not in b"\t\n\v\f\r\x1b")
_RUN = re.compile(rf"[A-Za-z0-9+/=_-]{{{ENCODED_RUN},}}")
_SYMBOLS = re.compile(r"[!-/:-@\[-`{-~]{6,}")


def fault(document: Document, options: QualityOptions) -> tuple[str, str] | None:
    """Return why a document should not be learnt from, or None: a reason of REASONS, and a detail without the document's text.

    All that it says is judged together; each answer of a chat is also judged by itself, but not its length, as answers are
    what is learnt and a question may be long.
    """
    text = document.text
    found = _length_fault(text, options) or _content_fault(text, options)
    if found or not document.messages:
        return found
    for number, turn in enumerate(document.messages, 1):
        if turn["role"] == "assistant" and (found := _content_fault(turn["content"], options)):
            return found[0], f"turn {number}: {found[1]}"
    return None


def _length_fault(text: str, options: QualityOptions) -> tuple[str, str] | None:
    length = len(text.strip())
    if length > options.max_chars:
        return TOO_LONG, f"{length:,} characters; at most {options.max_chars:,}"
    if length < options.min_chars and (text.isascii() or _width(text.strip()) < options.min_chars):
        return TOO_SHORT, f"{length:,} characters; at least {options.min_chars:,}"
    return None


def _width(text: str) -> int:
    """Return the length with ideographs, kana and hangul counted twice: they say in one character what takes others several."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _content_fault(text: str, options: QualityOptions) -> tuple[str, str] | None:
    if not text:
        return None
    words = text.split()
    return (
        _not_text(text, options.min_text_share)
        or _encoded(text, words, options.max_encoded_share)
        or _repeated(text, words, options.max_repeated_share)
    )


# Text -----------------------------------------------------------------------------------------------------------------------


def _not_text(text: str, least: float) -> tuple[str, str] | None:
    data = text.encode("utf-8", "surrogatepass")
    others = data.translate(None, _PLAIN)
    plain = len(data) - len(others)
    unsure = len(text) - plain - len(others.translate(None, _CONTROLS_AND_NOT_ASCII))
    if plain - (SPOILT - 1) * unsure >= least * len(text):
        return None  # even if every character that was not looked at is none
    share = _text_share(text)
    return (NOT_TEXT, f"{share:.0%} of {len(text):,} characters are text; at least {least:.0%}") if share < least else None


def _text_share(text: str) -> float:
    good = bad = 0
    for character, count in Counter(text).items():
        kind = _worth(character)
        good += count * (kind > 0)
        bad += count * (kind < 0)
    noise = sum(len(run[0]) for run in _SYMBOLS.finditer(text) if _is_noise(run[0]))
    return max(0.0, (good - noise - (SPOILT - 1) * bad) / len(text))


def _is_noise(symbols: str) -> bool:
    """Drawings, tables and code repeat few symbols; noise uses them all."""
    distinct = len(set(symbols))
    return distinct * 2 > len(symbols) or distinct >= 10


@lru_cache(maxsize=1 << 16)
def _worth(character: str) -> int:
    """Return 1 for text, -1 for what only data has, 0 for what may stand in a text but says nothing (emoji, escapes)."""
    category = unicodedata.category(character)
    if character in "\t\n\v\f\r" or (character.isascii() and character.isprintable()):
        return 1
    if character == "\ufffd" or (category in ("Cc", "Cn", "Co", "Cs") and character != "\x1b"):
        return -1
    is_drawing = "\u2500" <= character <= "\u25ff"
    return int(category[0] in "LMNPZ" or category in ("Sc", "Sm", "Cf") or is_drawing)


# Encoded data ---------------------------------------------------------------------------------------------------------------


def _encoded(text: str, words: list[str], most: float) -> tuple[str, str] | None:
    if max(map(len, words), default=0) < ENCODED_RUN:
        return None
    total = lone_hashes = 0
    for run in _RUN.finditer(text):
        if len(run[0]) in HASH_LENGTHS and _is_hexadecimal(run[0]):
            lone_hashes += len(run[0]) * _fills_line(text, run.start(), run.end())
        elif _looks_encoded(run[0]):
            total += len(run[0])
    total += lone_hashes if lone_hashes > FEW_HASHES else 0
    if total <= most * len(text):
        return None
    return ENCODED, (
        f"{total / len(text):.0%} of {len(text):,} characters are long runs of base64 or hexadecimal digits; at most {most:.0%}"
    )


def _fills_line(text: str, start: int, end: int) -> bool:
    return text[start - 1 : start] in ("", "\n", "\r") and text[end : end + 1] in ("", "\n", "\r")


def _is_hexadecimal(run: str) -> bool:
    return not run.strip("0123456789abcdefABCDEF")


def _looks_encoded(run: str) -> bool:
    """Tell data from paths, identifiers, rules of dashes and other words that are long."""
    parts = 1 + run.count("/") + run.count("_") + run.count("-")
    if len(run) < 10 * parts or not run.strip("=+"):
        return False
    digit = any(map(str.isdigit, run))
    if _is_hexadecimal(run):
        return digit
    return len(run) >= ENDLESS_RUN or (digit and run != run.lower() and run != run.upper())


# Repeated lines -------------------------------------------------------------------------------------------------------------


def _repeated(text: str, words: list[str], most: float) -> tuple[str, str] | None:
    share = max(_line_share(text), _phrase_share(text, words))
    if share <= most:
        return None
    return REPEATED, f"copies of it are {share:.0%} of {len(text):,} characters; at most {most:.0%}"


def _line_share(text: str) -> float:
    """Return the share of the characters that the copies of one line take, the first of them not counted."""
    lines = text.splitlines()
    if len(lines) < COPIES or len(set(lines)) == len(lines):
        return 0.0
    counts = Counter(map(str.strip, lines))
    if max(counts.values()) < COPIES:
        return 0.0
    return max((count - 1) * (len(line) + 1) * (count >= COPIES) for line, count in counts.items()) / (len(text) + 1)


def _phrase_share(text: str, words: list[str]) -> float:
    """Return 1 if the text is nothing but a few words, or characters, again and again without a line's end."""
    few = len(words) >= 64 and len(set(words[:17])) < 17  # the cheapest test first: of 17 words two are the same, if all are 16
    if few and len(set(words[:64])) <= 16 and len(set(words)) <= min(16, len(words) // 16):
        return 1.0
    return float(len(text) >= 256 and len(words) * 64 < len(text) and len(set(text)) <= 8)
