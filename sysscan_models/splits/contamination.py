"""What is held out must not be learnt from: texts that share a run of words with a benchmark are found by its hashes.

Case, blanks and punctuation make no difference (see words.py). A run counts only if it has a
third as many different words, numbers aside, as words: tables of figures and rows of one word are shared by texts that have
nothing to do with each other. Nothing is removed or counted here, and texts that say the same in other words are not found.

Shapes: M runs of the held-out texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sysscan_models.splits.words import Hashes, Words, word_hashes

SHORTEST = 6
"""Words of the shortest held-out text that is looked for inside longer ones; shorter ones are anybody's."""
BATCH_CHARS = 1 << 20
"""Characters of held-out text that are hashed at once."""
FILTER_BITS = 16
"""Bits of the filter for each run: of the runs that are not held out, one in so many needs a search."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The runs of words that may not occur, 10 bytes each and 2 of the filter; it can be pickled."""

    names: tuple[str, ...]
    """Names of the held-out files, in the order in which they were given."""
    words: int
    """Words of a run."""
    hashes: Hashes
    """uint64 [M], ascending."""
    files: npt.NDArray[np.unsignedinteger]
    """[M]: the first file, as an index of `names`, that has the run."""
    digest: str
    """SHA-256 of all that decides what is found."""
    shorter: tuple[int, ...]
    """Lengths of held-out texts that are shorter than a run, from SHORTEST words on."""
    _filter: npt.NDArray[np.uint8]

    @classmethod
    def from_texts(cls, named_texts: Iterable[tuple[str, str]], *, words: int) -> HeldOut:
        """Return the index of held-out texts, given as (name of the file, text)."""
        numbers: dict[str, int] = {}
        hashes, files = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        some: list[npt.NDArray[np.uint64]] = []
        some_files: list[npt.NDArray[np.uint32]] = []
        lengths: set[int] = set()
        for of_texts, texts in _batches(named_texts):
            hashed = word_hashes(texts)
            runs, telling = _telling_runs(hashed, words)
            of_text = np.array([numbers.setdefault(name, len(numbers)) for name in of_texts], np.uint32)
            some.append(runs.hashes[telling])
            some_files.append(np.repeat(of_text, runs.counts)[telling])
            for length in (
                range(SHORTEST, words) if len(telling) else ()
            ):  # texts that are shorter than a run, to be found inside longer ones
                short = np.flatnonzero((hashed.counts == length) & telling[np.minimum(runs.offsets[:-1], len(telling) - 1)])
                if len(short):
                    exact = hashed.runs(length)
                    some.append(exact.hashes[exact.offsets[short]])
                    some_files.append(of_text[short])
                    lengths.add(length)
            if sum(map(len, some)) > len(hashes):  # so that all is sorted only as often as it has doubled
                hashes, files = _first_of_each([hashes, *some], [files, *some_files])
                some, some_files = [], []
        hashes, files = _first_of_each([hashes, *some], [files, *some_files])
        files = files.astype(np.min_scalar_type(len(numbers)))
        names = tuple(numbers)
        digest = _digest(names, words, hashes, files)
        return cls(names, words, hashes, files, digest, tuple(sorted(lengths)), _filter_of(hashes))

    def overlaps(self, words: Words) -> list[str]:
        """Return for each text the name of the first held-out file that shares a run with it, or "".

        A held-out text of fewer words than a run is looked for whole; one of fewer than SHORTEST only in texts as short.
        """
        if not len(self.hashes):
            return [""] * len(words)
        first = np.full(len(words), len(self.names))
        for length in (self.words, *self.shorter):
            runs = words.runs(length)
            tops = runs.hashes >> _shift(self._filter)
            likely = np.flatnonzero(self._filter[tops >> np.uint64(3)] & _bit(tops))
            places = np.minimum(np.searchsorted(self.hashes, runs.hashes[likely]), len(self.hashes) - 1)
            shared = self.hashes[places] == runs.hashes[likely]
            texts = np.searchsorted(runs.offsets, likely[shared], side="right") - 1
            np.minimum.at(first, texts, self.files[places[shared]])
        named = (*self.names, "")
        return [named[file] for file in first.tolist()]


def _batches(named_texts: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    names: list[str] = []
    texts: list[str] = []
    chars = 0
    for name, text in named_texts:
        names.append(name)
        texts.append(text)
        chars += len(text)
        if chars >= BATCH_CHARS:
            yield names, texts
            names, texts, chars = [], [], 0
    yield names, texts


def _telling_runs(words: Words, length: int) -> tuple[Words, npt.NDArray[np.bool_]]:
    """Return all runs, and which of them say enough to be the same by more than chance."""
    runs = words.runs(length)
    telling = np.zeros(len(runs.hashes), bool)
    numbers = words.numbers
    for text in range(len(words)):
        here = slice(words.offsets[text], words.offsets[text + 1])
        mine = words.hashes[here]
        if len(mine):
            size = min(length, len(mine))
            telling[runs.offsets[text] : runs.offsets[text + 1]] = _different(mine, ~numbers[here], size) * 3 >= size
    return runs, telling


def _different(words: Hashes, worth: npt.NDArray[np.bool_], length: int) -> npt.NDArray[np.int64]:
    """Return how many different words of those that are worth it each run of `length` words has."""
    order = np.argsort(words, kind="stable")
    before = np.full(len(words), -1)  # the last place of the same word
    same = words[order[1:]] == words[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    places = np.arange(len(words))
    # A word counts in the runs that hold it but not its last occurrence: those that start in (before, place] and reach it.
    first, last = np.maximum(before + 1, places - length + 1), np.minimum(places, len(words) - length)
    counts = worth & (first <= last)
    change = np.zeros(len(words) - length + 2, np.int64)
    np.add.at(change, first[counts], 1)
    np.subtract.at(change, last[counts] + 1, 1)
    return np.cumsum(change[:-1])


def _first_of_each(hashes: Sequence[Hashes], files: Sequence[npt.NDArray[np.uint32]]) -> tuple[Hashes, npt.NDArray[np.uint32]]:
    distinct, places = np.unique(np.concatenate(list(hashes)), return_index=True)
    return distinct, np.concatenate(list(files))[places]


def _filter_of(hashes: Hashes) -> npt.NDArray[np.uint8]:
    table = np.zeros(1 << (len(hashes) * FILTER_BITS // 8).bit_length(), np.uint8)
    tops = hashes >> _shift(table)
    np.bitwise_or.at(table, tops >> np.uint64(3), _bit(tops))
    return table


def _shift(table: npt.NDArray[np.uint8]) -> np.uint64:
    """Return by how much a hash is shifted to become the number of a bit of the filter."""
    return np.uint64(64 - 3 - (len(table).bit_length() - 1))


def _bit(tops: Hashes) -> npt.NDArray[np.uint8]:
    return np.uint8(1) << (tops & np.uint64(7)).astype(np.uint8)


def _digest(names: Sequence[str], words: int, hashes: Hashes, files: npt.NDArray[np.unsignedinteger]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    digest.update(f"\n{words}\n{len(hashes)}\n".encode())
    digest.update(hashes.astype("<u8").tobytes())
    digest.update(files.astype("<u4").tobytes())
    return digest.hexdigest()
