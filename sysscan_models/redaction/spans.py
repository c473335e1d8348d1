"""Where secrets lie in a text: spans, what may stand before one, and the text with placeholders in their places.

A finder appends `(start, end, kind)` to a list and changes nothing; here spans that overlap become one. No finder may look at a
character more than a fixed number of times.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

Span = tuple[int, int, str]
"""Start, end and kind of something that is taken out."""

PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]{1,24}\]")
"""What stands for something that was taken out, ours or another tool's."""
_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ESCAPE_END = re.compile(r"(?:\\[nrtbf]|\\+u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2}|\x1b\[[0-9;]{0,8}m)\Z")
_HALVES = re.compile("[\ud800-\udfff]")
_FOLD = {0xFF01 + offset: 0x21 + offset for offset in range(94)}
_WIDE = "\uff1a\uff1d\uff3f\uff0d\uff20\uff0f\uff53\uff4b\uff21"
"""Full-width forms of which any disguised secret has at least one: `: = _ - @ / s k A`."""


def folded(text: str) -> str:
    """Return the text with full-width forms of ASCII as ASCII, and no halves of characters; its length stays, so spans hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _HALVES.sub("\ufffd", text)
    return text.translate(_FOLD) if any(mark in text for mark in _WIDE) else text


_SMALL = {ord(capital): capital.lower() for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def small(text: str) -> str:
    """Return the text in small letters; the length stays, so spans hold for both."""
    lower = text.lower()  # one capital (I with a dot) has two characters when small
    return lower if len(lower) == len(text) else text.translate(_SMALL)


def places(text: str, literals: Sequence[str]) -> Iterator[int]:
    """Yield where each of a few literals stands in a text."""
    for literal in literals:
        at = text.find(literal)
        while at >= 0:
            yield at
            at = text.find(literal, at + len(literal))


def begins(text: str, at: int) -> bool:
    """Return whether a secret may begin at `at`: not within a word, to which a quoted line end or a colour does not belong."""
    if at == 0 or text[at - 1] not in _ALPHANUMERIC:
        return True
    return _ESCAPE_END.search(text[max(0, at - 12) : at]) is not None


def replaced(text: str, found: list[Span], ranks: dict[str, int], counts: Counter[str] | None) -> str:
    """Return the text with a placeholder for each group of overlapping spans, named for the kind that `ranks` has first."""
    parts, done = [], 0
    for start, end, kind in _merged(_whole(text, found), ranks):
        parts += [text[done:start], f"[{kind}]"]
        done = end
        if counts is not None:
            counts[kind] += 1
    return "".join([*parts, text[done:]])


def _whole(text: str, found: list[Span]) -> list[Span]:
    """Return the spans, sorted, without those inside a placeholder; one that cuts a placeholder covers all of it."""
    found.sort()
    if "[" not in text:
        return found
    walls = [(match.start(), match.end()) for match in PLACEHOLDER.finditer(text)]
    kept, first = [], 0
    for start, end, kind in found:
        while first < len(walls) and walls[first][1] <= start:
            first += 1
        within = _grown(start, end, walls, first)
        if within is not None:
            kept.append((*within, kind))
    return sorted(kept)


def _grown(start: int, end: int, walls: Sequence[tuple[int, int]], first: int) -> tuple[int, int] | None:
    if first == len(walls) or walls[first][0] >= end:
        return start, end
    if walls[first][0] <= start and end <= walls[first][1]:
        return None
    start, last = min(start, walls[first][0]), first
    while last + 1 < len(walls) and walls[last + 1][0] < end:
        last += 1
    return start, max(end, walls[last][1])


def _merged(found: list[Span], ranks: dict[str, int]) -> list[Span]:
    merged: list[Span] = []
    for start, end, kind in found:
        if merged and start < merged[-1][1]:
            before = merged[-1]
            merged[-1] = (before[0], max(before[1], end), min(before[2], kind, key=ranks.__getitem__))
        else:
            merged.append((start, end, kind))
    return merged
