"""The weights of a linear router: one number for each bucket of terms, in a file of at most 2 MB without any vocabulary.

A file is a numpy archive that is read without unpickling. Its digest is part of what a router's decisions depend on.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sysscan_models.errors import UserError
from sysscan_models.routing.features import Words, buckets, find_words, piece_buckets, piece_counts

SHIPPED = Path(__file__).with_name("coefficients.npz")
FORMAT = 1
LARGEST = 64 << 20
"""Bytes of a file of coefficients that is read; what comes with the package has 2 MB."""
TITLE_FACTOR = 2
"""A term of the title counts as so many."""
FEWEST_WORDS = 8
"""A shorter text is weighed as if it had so many words: three words prove little."""

Table = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Coefficients:
    """Weights of the terms, positive for security; a power of two of each.

    A file holds the signed root of each whole number in one byte: fine steps where most weights are, and room for large ones.
    """

    words: Table
    """[2**bits] of words and of pairs."""
    pieces: Table
    """[2**bits]"""
    scale: float
    """What one step of the tables is worth."""
    bias: float

    @classmethod
    def from_roots(cls, words: npt.NDArray[np.int8], pieces: npt.NDArray[np.int8], scale: float, bias: float) -> Coefficients:
        """Return coefficients from the tables of a file."""
        squares = [table.astype(np.int16) * np.abs(table.astype(np.int16)) for table in (words, pieces)]
        return cls(squares[0], squares[1], scale, bias)

    def weigh(self, parts: Sequence[tuple[str, str]]) -> Weighed:
        """Weigh the texts of one batch: all sums are of whole numbers, so neither order nor batch changes a result."""
        words = find_words(parts)
        bits = self.words.size.bit_length() - 1
        factor = np.where(words.in_title, TITLE_FACTOR, 1)
        single = np.take(self.words, buckets(words.hashes, bits)).astype(np.int64) + self._pieces_of(words)
        single *= words.first * factor
        pair = np.take(self.words, buckets(words.pairs, bits)).astype(np.int64) * (words.first_pair * factor)
        counts = np.bincount(words.document, words.first * factor, len(parts))
        total = np.bincount(words.document, single + pair, len(parts))
        logits = self.bias + self.scale * total / np.sqrt(np.maximum(counts, FEWEST_WORDS))
        return Weighed(words, single, pair, logits)

    def _pieces_of(self, words: Words) -> npt.NDArray[np.int64]:
        """Return the weight of the pieces of each word, [W]; a piece belongs to the word that its second character is in."""
        if not len(words.starts):
            return np.zeros(0, np.int64)
        weights = np.zeros(len(words.codes), np.int32)
        for length, bucket in piece_buckets(words.codes, self.pieces.size.bit_length() - 1):
            found = np.take(self.pieces, bucket)
            found *= piece_counts(words.pieced, length)
            weights[1 : 1 + len(found)] += found
        return np.add.reduceat(weights, words.starts, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the file; the same coefficients give the same bytes."""
        roots = {
            name: (np.sign(table) * np.rint(np.sqrt(np.abs(table.astype(np.float64))))).astype(np.int8)
            for name, table in (("words", self.words), ("pieces", self.pieces))
        }
        np.savez_compressed(path, format=FORMAT, line=np.array([self.scale, self.bias]), **roots)


@dataclass(frozen=True)
class Weighed:
    """What was found in a batch of D documents with W words."""

    words: Words
    single: npt.NDArray[np.int64]
    """[W] weight of each word, with its pieces."""
    pair: npt.NDArray[np.int64]
    """[W] weight of each word together with the next one."""
    logits: npt.NDArray[np.float64]
    """[D] positive for security."""

    def terms(self, security: npt.NDArray[np.bool_], most: int = 5) -> list[tuple[str, ...]]:
        """Return the terms of each document that weigh most on the side that was chosen, [D], the heaviest first."""
        side = np.where(security, 1, -1)
        count = len(self.single)
        weights = np.concatenate([self.single, self.pair]) * np.tile(np.take(side, self.words.document), 2)
        candidates = np.flatnonzero(weights > 0)
        document = np.take(np.tile(self.words.document, 2), candidates)
        keyed = (document << 53) | (((1 << 31) - weights[candidates]) << 21) | candidates
        keyed.sort()
        bounds = np.searchsorted(keyed, np.arange(len(security) + 1) << 53)
        places = (keyed & ((1 << 21) - 1)).tolist()
        return [
            self._named(places[low : min(low + 2 * most, high)], count, most)
            for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]

    def _named(self, places: Sequence[int], count: int, most: int) -> tuple[str, ...]:
        names: list[str] = []
        for place in places:
            first = place % count
            last = first + (place >= count)
            name = " ".join(self.words.text(self.words.starts[first], self.words.ends[last]).split())[:60]
            if not any(name in other for other in names):
                names.append(name)
            if len(names) == most:
                break
        return tuple(names)


@lru_cache(maxsize=4)
def load_coefficients(path: Path) -> Coefficients:
    """Read a file of coefficients; raise UserError when it is none."""
    return _read(path)[0]


@lru_cache(maxsize=4)
def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file of coefficients."""
    return _read(path)[1]


def _read(path: Path) -> tuple[Coefficients, str]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(
            f"the router's coefficients {path} cannot be read: {error.strerror}; "
            "make them with `sysscan-models fit-router`, or leave `coefficients` empty for those of the package"
        ) from error
    try:
        return _parsed(data), hashlib.sha256(data).hexdigest()
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(
            f"{path} holds no coefficients of a router ({error}); expected a file made by `sysscan-models fit-router`"
        ) from error


def _parsed(data: bytes) -> Coefficients:
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MB")
    if data[:2] != b"PK":
        raise ValueError("not a numpy archive")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if int(arrays["format"]) != FORMAT:
            raise ValueError(f"format {int(arrays['format'])}, expected {FORMAT}")
        words, pieces, line = arrays["words"], arrays["pieces"], arrays["line"]
    for table in (words, pieces):
        if (
            table.dtype != np.int8
            or table.ndim != 1
            or not 8 <= table.size.bit_length() - 1 <= 24
            or table.size.bit_count() != 1
        ):
            raise ValueError("a table that is not a power of two of whole numbers")
    if line.shape != (2,) or not np.isfinite(line).all():
        raise ValueError("scale and bias are not two numbers")
    return Coefficients.from_roots(words, pieces, float(line[0]), float(line[1]))
