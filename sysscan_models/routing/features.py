"""The terms of many documents at once as numbers: words, pairs of words, and pieces of words, hashed.

One array holds the characters of a whole batch and every step is one numpy call over all of it, so that a document costs tens
of microseconds and Python touches none of its characters. No vocabulary is kept: a term is the bucket that its hash falls
into. A word counts once in a document, however often it is repeated, and every digit counts as the same digit. Nothing is
weighed here.

Shapes: C characters (16-bit units), W words, D documents of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from sysscan_models.documents import Document

READ_CHARS = 20_000
"""Characters of a document that are weighed; what it is about shows before that, and hostile text stays cheap."""
BATCH_CHARS, BATCH_DOCUMENTS = 1 << 18, 1 << 10
"""What is hashed at once: the working arrays stay near the cache, and places fit the bits that sorting has for them."""
PIECES = (3, 4, 5)
"""Lengths of pieces of words, in characters, the blank before or behind a word included."""

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
_PAIR = np.uint64(0xD6E8FEB86659FD93)
_PIECE = np.uint32(0x9E3779B1)
_IDEOGRAPHS = ((0x3041, 0x30FB), (0x30FC, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
"""Characters that are words by themselves: kana and Han."""
_BLANKS = (
    (0, 0x30), (0x3A, 0x61), (0x7B, 0xAA), (0xAB, 0xB5), (0xB6, 0xBA), (0xBB, 0xC0), (0xD7, 0xD8), (0xF7, 0xF8),
    (0x2000, 0x2070), (0x2190, 0x2C00), (0x3000, 0x3005), (0x3008, 0x3021), (0x30FB, 0x30FC), (0xD800, 0xF900),
    (0xFE10, 0xFE70), (0xFF00, 0xFF10), (0xFF1A, 0xFF21), (0xFF5B, 0xFF66), (0xFFE0, 0x10000),
)  # fmt: skip
"""Characters that divide words. By hand, not by `unicodedata`, so that no Python version decides differently."""


def text_parts(document: Document) -> tuple[str, str]:
    """Return the title and the rest of what is weighed, in lower case."""
    rest = [document.description, document.content, *document.findings]
    if document.messages:
        rest += [message["content"] for message in document.messages]
    return document.title[:READ_CHARS].lower(), "\n".join(rest)[:READ_CHARS].lower()


def batches(parts: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Divide many documents into batches; a document never shares the result with its neighbours, so any division will do."""
    start = size = 0
    for number, (title, rest) in enumerate(parts):
        length = len(title) + len(rest)
        if number > start and (size + length > BATCH_CHARS or number - start >= BATCH_DOCUMENTS):
            yield parts[start:number]
            start, size = number, 0
        size += length
    if start < len(parts):
        yield parts[start:]


@dataclass(frozen=True)
class Words:
    """The words of a batch, in their order."""

    encoded: bytes
    """All texts in lower case, as UTF-16-LE."""
    codes: npt.NDArray[np.uint32]
    """[C] characters; digits made equal, and 0 for what divides words."""
    starts: Index
    """[W] where each word begins, in characters."""
    ends: Index
    """[W] where it ends."""
    document: Index
    """[W] number of its document in the batch."""
    in_title: Flags
    """[W]"""
    hashes: Hashes
    """[W]"""
    pairs: Hashes
    """[W] hash of each word together with the next one."""
    first: Flags
    """[W] whether the word is the first of its kind in its document."""
    first_pair: Flags
    """[W] whether the word and the next one are the first such pair in their document."""

    @cached_property
    def pieced(self) -> Flags:
        """Where in the text pieces count, [C]: in the first of each kind of word that is not an ideograph."""
        counted = self.first & ~_looked_up(_ideographs(), self.codes[self.starts])
        widths = np.diff(self.starts, append=len(self.codes))
        before = self.starts[0] if len(self.starts) else len(self.codes)
        inside = np.concatenate([np.zeros(before, np.bool_), np.repeat(counted, widths)])
        found: Flags = inside & (self.codes != 0)
        return found

    def text(self, start: int, end: int) -> str:
        """Return the text from one word's start to another's end, as the document has it, in lower case."""
        return self.encoded[2 * int(start) : 2 * int(end)].decode("utf-16-le", "replace")


def find_words(parts: Sequence[tuple[str, str]]) -> Words:
    """Divide the texts of one batch (title, rest; both in lower case) into words and hash them."""
    encoded = [f"\n{title}\n{rest}\n".encode("utf-16-le", "surrogatepass") for title, rest in parts]
    offsets = np.cumsum([0] + [len(text) // 2 for text in encoded])
    titles = np.array([1 + _units(title) for title, _ in parts], np.int64)
    together = b"".join(encoded)
    codes = np.take(_letters(), np.frombuffer(together, np.uint16))
    starts, ends = _bounds(codes)
    document = np.repeat(np.arange(len(parts)), np.diff(np.searchsorted(starts, offsets)))
    hashes = _hash_words(codes, starts)
    following = np.append(hashes[1:], np.uint64(0))
    pairs = _mixed(hashes * _PAIR + following)
    last = np.append(document[1:] != document[:-1], True)[: len(document)]
    return Words(
        encoded=together, codes=codes, starts=starts, ends=ends, document=document,
        in_title=starts < np.take(offsets[:-1] + titles, document), hashes=hashes, pairs=pairs,
        first=_first_of_kind(hashes, document), first_pair=_first_of_kind(pairs, document) & ~last,
    )  # fmt: skip


def piece_buckets(codes: npt.NDArray[np.uint32], bits: int) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """Yield, for each length of pieces, the bucket of the piece that begins at each place, [C - length + 1]."""
    value = codes * _PIECE
    for length in range(2, PIECES[-1] + 1):
        value = (value[:-1] + codes[length - 1 :]) * _PIECE
        if length in PIECES:
            yield length, ((value ^ (value >> np.uint32(15))) * np.uint32(0x85EBCA6B + 2 * length)) >> np.uint32(32 - bits)


def piece_counts(pieced: Flags, length: int) -> Flags:
    """Say for each place whether the piece of `length` that begins there counts: all but its ends lie within one word."""
    end = len(pieced) - length + 1
    inside = pieced[1 : end + 1]
    for place in range(2, length - 1):
        inside = inside & pieced[place : end + place]
    return inside


def buckets(hashes: Hashes, bits: int) -> Index:
    """Return the bucket of each hash, one of 2**bits."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64)


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


@cache
def _letters() -> npt.NDArray[np.uint32]:
    letters = np.arange(0x10000, dtype=np.uint32)
    for low, high in _BLANKS:
        letters[low:high] = 0
    letters[0x30:0x3A] = 0x30
    return letters


@cache
def _ideographs() -> Flags:
    ideographs = np.zeros(0x10000, np.bool_)
    for low, high in _IDEOGRAPHS:
        ideographs[low:high] = True
    return ideographs


def _looked_up(table: Flags, codes: npt.NDArray[np.uint32]) -> Flags:
    if not len(codes) or codes.max() < _IDEOGRAPHS[0][0]:
        return np.zeros(len(codes), np.bool_)
    return np.take(table, codes)


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Return powers of an odd number modulo 2**64 and their inverses, one for each place in a batch."""
    up, down = (
        np.full(BATCH_CHARS + 8 * READ_CHARS + 4 * BATCH_DOCUMENTS, power, np.uint64)
        for power in (_BASE, pow(_BASE, -1, 1 << 64))
    )
    up[0] = down[0] = 1
    return np.cumprod(up, dtype=np.uint64), np.cumprod(down, dtype=np.uint64)


def _bounds(codes: npt.NDArray[np.uint32]) -> tuple[Index, Index]:
    """Return where words begin and end: runs of letters, and each ideograph by itself."""
    word, alone = codes != 0, _looked_up(_ideographs(), codes)
    turns = word[1:] != word[:-1]
    if not alone.any():  # a batch begins and ends with a blank
        places = np.flatnonzero(turns) + 1
        return places[0::2], places[1::2]
    turns |= alone[1:] | alone[:-1]
    return np.flatnonzero(turns & word[1:]) + 1, np.flatnonzero(turns & word[:-1]) + 1


def _hash_words(codes: npt.NDArray[np.uint32], starts: Index) -> Hashes:
    """Return the hash of each word: a polynomial in its characters, whatever place it stands in."""
    if not len(starts):
        return np.zeros(0, np.uint64)
    up, down = _powers()
    return _mixed(np.add.reduceat(codes * up[: len(codes)], starts) * np.take(down, starts))


def _mixed(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(_BASE)
    return hashes ^ (hashes >> np.uint64(29))


def _first_of_kind(hashes: Hashes, document: Index) -> Flags:
    """Say which entries are the first of their hash in their document: 10 bits of document, 34 of hash, 20 of place."""
    first = np.zeros(len(hashes), np.bool_)
    place = np.arange(len(hashes), dtype=np.uint64)
    keyed = (document.astype(np.uint64) << np.uint64(54)) | ((hashes >> np.uint64(30)) << np.uint64(20)) | place
    keyed.sort()
    kinds = keyed >> np.uint64(20)
    new = np.ones(len(keyed), np.bool_)
    new[1:] = kinds[1:] != kinds[:-1]
    first[(keyed[new] & np.uint64((1 << 20) - 1)).astype(np.int64)] = True
    return first
