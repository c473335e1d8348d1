"""A text as the hashes of its words, so that copies are found however they are written.

A word is a run of letters and digits after compatibility normalisation (NFKC) and case folding; the lowest bit of its hash
tells whether it is a number (begins with a digit). Characters of scripts that are written without blanks between words are
words of their own. What one does not see, or reads over, makes no difference: accents and vowel points, characters without a
width, numbers of footnotes ([12] and raised ones), and letters of other scripts that look like Latin ones. Whole
batches are hashed by numpy, without a step of Python for each word. The hashes are the same on every machine and in every run;
they are no secret and withstand no one who wants two words to collide. Nothing is compared here.

Shapes: N texts, W words, R runs of words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
_Codes = npt.NDArray[Any]

BLOCK = 1 << 16
"""Characters that are hashed at once: the working arrays stay in the cache, and longer texts need no more memory."""
MARKS = 30
"""Marks in a row that are looked at, as in Unicode's stream-safe format: sorting endless ones takes quadratic time."""
_BASE = 0x9E3779B97F4A7C15
_BLANK, _LETTER, _DIGIT, _EDGE, _UNSEEN, _ALONE = 0, 1, 2, 3, 4, 5
"""Kinds of characters. _EDGE stands between texts; _UNSEEN is left out, also within words; _ALONE is a word by itself."""
_EDGE_CODE = 0xFF
_EDGE_CODE_WIDE = 0xFFFF_FFFF
_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1100, 0x11FF),  # Hangul
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3040, 0x31FF),  # kana, bopomofo
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_FOOTNOTE = re.compile(r"\[[0-9]{1,4}\]")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_LOOKALIKES = dict(
    zip(
        "авеікмнорстухѕјһԁԛԝӏαβεικμνορτυχζηɑɡıłøđħ",
        "abeikmhopctyxsjhdqwlabeikmvoptyxznagilodh",
        strict=True,
    )
)
"""Case-folded Cyrillic, Greek and other letters, and the Latin ones that they, or their capitals, are taken for."""


@dataclass(frozen=True, slots=True)
class Words:
    """The hashes of the words of N texts, one text after the other."""

    hashes: Hashes
    """uint64 [W]"""
    offsets: Offsets
    """int64 [N + 1]: the words of text i are `hashes[offsets[i]:offsets[i + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def numbers(self) -> npt.NDArray[np.bool_]:
        """Which words are numbers, bool [W]."""
        return (self.hashes & np.uint64(1)).astype(bool)

    @property
    def counts(self) -> Offsets:
        """The number of words of each text, int64 [N]."""
        return np.diff(self.offsets)

    def runs(self, length: int) -> Words:
        """Return the hashes of all runs of `length` consecutive words of each text, in order, shaped like words.

        A text of fewer words, but of one at least, has one run: all of it. Runs of different lengths have different hashes.
        """
        padded = _padded(self, length)
        starts, counts = padded.offsets[:-1], np.maximum(padded.counts - (length - 1), 0)
        offsets = _ends(counts)
        hashes = _run_hashes(padded.hashes, length)
        if not len(hashes):
            return Words(np.zeros(0, np.uint64), offsets)
        keep = np.ones(len(hashes), bool)  # but for runs that reach into the next text
        last = starts + counts
        crossing = last[:, None] + np.arange(length - 1)
        keep[crossing[(crossing < padded.offsets[1:, None]) & (crossing < len(hashes))]] = False
        return Words(hashes[keep], offsets)


def word_hashes(texts: Sequence[str]) -> Words:
    """Return the hashes of the words of each text; any text is fine, also an empty one. Time is linear in the length."""
    narrow: list[str] = []
    wide: list[str] = []
    is_wide: list[bool] = []
    firsts = [0]  # the pieces of text i are those from firsts[i] to firsts[i + 1]
    for text in texts:
        for piece in _plain_pieces(text):
            plain = piece.isascii()
            (narrow if plain else wide).append(piece)
            is_wide.append(not plain)
        firsts.append(len(is_wide))
    if not wide:
        words = _hashed(narrow, _narrow_block)
    elif not narrow:
        words = _hashed(wide, _wide_block)
    else:
        words = _interleaved(_hashed(narrow, _narrow_block), _hashed(wide, _wide_block), np.array(is_wide))
    return Words(words.hashes, words.offsets[firsts])


def mixed(values: Hashes) -> Hashes:
    """Return uint64 values with every bit of the result depending on every bit (the finalizer of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


# Texts -> pieces of plain characters ----------------------------------------------------------------------------------------


def _plain_pieces(text: str) -> Iterator[str]:
    """Yield a text in normalised pieces of at most a block, without footnotes; normalising may make 18 characters of one."""
    for piece in (text,) if len(text) <= BLOCK else pieces(text):
        if "[" in piece:
            piece = _FOOTNOTE.sub(" ", piece)
        if piece.isascii():
            yield piece
        else:
            yield from pieces(_normalised(piece))


def pieces(text: str) -> Iterator[str]:
    """Cut a long text where a word ends; a word longer than a block is cut too. The pieces have the words of the text."""
    start = 0
    while len(text) - start > BLOCK:
        end = start + BLOCK
        blank = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = blank if blank > 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


def _normalised(text: str) -> str:
    if max(text) >= "\u0300":
        text = _without_endless_marks(text)
    for raised in _RAISED:
        text = text.replace(raised, "")
    return unicodedata.normalize("NFKC", text).casefold()


def _without_endless_marks(text: str) -> str:
    codes = _codes(text)
    is_mark = _looked_up(codes) & _MARK != 0
    if np.count_nonzero(is_mark) <= MARKS:
        return text
    places = np.arange(len(codes))
    before = np.maximum.accumulate(np.where(is_mark, -1, places))  # the last character that is no mark
    keep = places - before <= MARKS
    return text if keep.all() else codes[keep].tobytes().decode("utf-32-le", "surrogatepass")


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# Characters -> words --------------------------------------------------------------------------------------------------------


def _values(codes: npt.NDArray[Any]) -> Hashes:
    return mixed((codes.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE))


def _narrow_tables() -> tuple[npt.NDArray[np.uint8], Hashes]:
    kinds, folded = np.zeros(256, np.uint8), np.arange(256)
    for code in range(128):
        kinds[code] = _DIGIT if chr(code).isdigit() else _LETTER if chr(code).isalpha() else _BLANK
        folded[code] = ord(chr(code).lower())
    kinds[_EDGE_CODE] = _EDGE
    values = _values(folded)
    values[(kinds == _BLANK) | (kinds == _EDGE)] = 0
    return kinds, values


def _powers(base: int) -> Hashes:
    powers = np.full(BLOCK * 4, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_NARROW_KINDS, _NARROW_VALUES = _narrow_tables()
_POWERS, _INVERSE_POWERS = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))


def _hashed(pieces: Sequence[str], block: Any) -> Words:
    """Hash pieces, as many at a time as make a block."""
    hashes, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    start = size = 0
    for number, piece in enumerate(pieces):
        size += len(piece) + 1
        if size >= BLOCK or number == len(pieces) - 1:
            of_block, of_pieces = block(pieces[start : number + 1])
            hashes.append(of_block)
            counts.append(of_pieces)
            start, size = number + 1, 0
    return Words(np.concatenate(hashes), _ends(np.concatenate(counts)))


def _narrow_block(pieces: Sequence[str]) -> tuple[Hashes, Offsets]:
    """Return the hashes of all words of ASCII texts and the number of words of each text."""
    codes = np.frombuffer(f"\xff{chr(_EDGE_CODE).join(pieces)}\xff".encode("latin-1"), np.uint8)
    codes, kinds = _thinned(codes, _NARROW_KINDS[codes])
    is_word = kinds - np.uint8(_LETTER) < 2  # unsigned: blanks become 255
    turns = np.flatnonzero(is_word[1:] != is_word[:-1])  # the last character before each word and the last one of it
    return _word_hashes(_NARROW_VALUES[codes], kinds, turns[0::2], turns[1::2]), _per_piece(kinds, turns[0::2])


def _wide_block(pieces: Sequence[str]) -> tuple[Hashes, Offsets]:
    """Return the same of normalised texts of any characters."""
    edge = _EDGE_CODE_WIDE.to_bytes(4, "little")
    encoded = edge.join(piece.encode("utf-32-le", "surrogatepass") for piece in pieces)
    codes = np.frombuffer(edge + encoded + edge, "<u4")
    is_edge = codes == _EDGE_CODE_WIDE
    codes = np.where(is_edge, 0, codes)
    kinds = _looked_up(codes) & ~np.uint8(_MARK)
    kinds[is_edge] = _EDGE
    seen = kinds != _UNSEEN
    codes, kinds = _thinned(_folded[codes[seen]], kinds[seen])
    alone = kinds == _ALONE
    is_word = (kinds == _LETTER) | (kinds == _DIGIT) | alone
    breaks = (is_word[1:] != is_word[:-1]) | alone[1:] | alone[:-1]
    values = _values(codes)
    values[~is_word] = 0
    before = np.flatnonzero(breaks & is_word[1:])
    last = np.flatnonzero(breaks & is_word[:-1])
    return _word_hashes(values, kinds, before, last), _per_piece(kinds, before)


def _thinned(codes: _Codes, kinds: npt.NDArray[np.uint8]) -> tuple[_Codes, npt.NDArray[np.uint8]]:
    """Keep one character of each row of blanks."""
    keep = kinds != _BLANK
    keep[1:] |= kinds[1:] != kinds[:-1]
    return codes[keep], kinds[keep]


def _word_hashes(values: Hashes, kinds: npt.NDArray[np.uint8], before: Offsets, last: Offsets) -> Hashes:
    """Return sum(value[k] * base^k) mod 2^64 of each word, k counted from its first character, mixed, and marked if a number.

    `before` and `last` are the places of the character before each word and of its last one.
    """
    values = values * _POWERS[: len(values)]
    np.cumsum(values, out=values)
    hashes = mixed((values[last] - values[before]) * _INVERSE_POWERS[before])
    hashes &= ~np.uint64(1)
    hashes |= kinds[before + 1] == _DIGIT
    return hashes


def _per_piece(kinds: npt.NDArray[np.uint8], before: Offsets) -> Offsets:
    return np.diff(np.searchsorted(before, np.flatnonzero(kinds == _EDGE))).astype(np.int64)


_MARK = 0x80
_kinds = np.zeros(0x110000, np.uint8)
_folded = np.arange(0x110000, dtype=np.uint32)
_known_pages = np.zeros(0x1100, bool)


def _looked_up(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the kind of each code point, with _MARK where marks in a row would be sorted.

    Pages of 256 are learnt when met, and so is which letter each of their characters is taken for.
    """
    pages = codes >> 8
    if not _known_pages[pages].all():
        for page in np.unique(pages).tolist():
            first = page << 8
            _kinds[first : first + 256] = [_kind(code) for code in range(first, first + 256)]
            _folded[first : first + 256] = [_letter(code) for code in range(first, first + 256)]
            _known_pages[page] = True
    kinds: npt.NDArray[np.uint8] = _kinds[codes]
    return kinds


def _kind(code: int) -> int:
    category = unicodedata.category(chr(code))
    mark = _MARK if unicodedata.combining(chr(code)) else 0
    if _is_unseen(code):
        return _UNSEEN | mark
    if category[0] not in "LMN":
        return _BLANK | mark
    if category == "Nd":
        return _DIGIT
    return mark | (_ALONE if _stands_alone(code) else _LETTER)


def _is_unseen(code: int) -> bool:
    """Tell whether a character is an accent, a vowel point or the like, or has no width."""
    char = chr(code)
    if unicodedata.category(char) in ("Cf", "Me") or code in (0x034F, 0x0640):  # a joiner, and what stretches Arabic words
        return True
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:  # which glyph is shown
        return True
    return unicodedata.combining(char) >= 10 and not _stands_alone(code)  # below 10: parts of Indic and Japanese letters


def _stands_alone(code: int) -> bool:
    return any(first <= code <= last for first, last in _WITHOUT_BLANKS)


def _letter(code: int) -> int:
    """Return the letter without its accents, or the Latin one that it looks like."""
    parts = unicodedata.normalize("NFD", chr(code))
    char = parts[0] if all(_is_unseen(ord(part)) for part in parts[1:]) else chr(code)
    return ord(_LOOKALIKES.get(char, char))


# Arrangement ----------------------------------------------------------------------------------------------------------------


def _ends(counts: npt.NDArray[Any]) -> Offsets:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _interleaved(narrow: Words, wide: Words, is_wide: npt.NDArray[np.bool_]) -> Words:
    """Put the words of two lists of pieces back into the order of the pieces."""
    counts = np.empty(len(is_wide), np.int64)
    counts[~is_wide], counts[is_wide] = narrow.counts, wide.counts
    offsets = _ends(counts)
    hashes = np.empty(int(offsets[-1]), np.uint64)
    for words, mine in ((narrow, ~is_wide), (wide, is_wide)):
        hashes[np.repeat(offsets[:-1][mine] - words.offsets[:-1], words.counts) + np.arange(len(words.hashes))] = words.hashes
    return Words(hashes, offsets)


_FILLING = np.uint64(0x5851F42D4C957F2D)


def _padded(words: Words, length: int) -> Words:
    """Fill texts of fewer than `length` words up with a word that no text has."""
    counts = words.counts
    if not ((counts > 0) & (counts < length)).any():
        return words
    offsets = _ends(np.where(counts > 0, np.maximum(counts, length), 0))
    hashes = np.full(int(offsets[-1]), _FILLING)
    hashes[np.repeat(offsets[:-1] - words.offsets[:-1], counts) + np.arange(len(words.hashes))] = words.hashes
    return Words(hashes, offsets)


def _run_hashes(hashes: Hashes, length: int) -> Hashes:
    """Return a hash of every `length` consecutive values; runs of twice the length are made of two, so few steps suffice."""
    if len(hashes) < length:
        return np.zeros(0, np.uint64)
    total: Hashes | None = None
    done, size, part = 0, 1, hashes  # part: the runs of `size`
    while True:
        if length & size:
            total = part if total is None else total[: len(part) - done] * np.uint64(pow(_BASE, size, 1 << 64)) + part[done:]
            done += size
        if done == length:
            assert total is not None
            return mixed(total[: len(hashes) - length + 1] * np.uint64(_BASE) + np.uint64(length))
        part = part[:-size] * np.uint64(pow(_BASE, size, 1 << 64)) + part[size:]
        size *= 2
