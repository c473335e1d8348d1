"""What is held out must not be learnt from: texts that share a run of words with a benchmark are found by its hashes.

Case, blanks, punctuation and accents make no difference (see words.py). A run counts only if it has a third as many different
words, numbers aside, as words: tables of figures and rows of one word are shared by texts that have nothing to do with each
other. Nor does what most texts of a held-out file have count: an instruction or a licence around each of them. Short questions
are looked for wherever they stand. Nothing is removed here, and texts that say the same in other words are not found.

Shapes: M runs of the held-out texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sysscan_models.splits.words import Hashes, Words, mixed, pieces, word_hashes

SHORTEST = 6
"""Words of the shortest held-out text or question that is looked for inside longer ones; shorter ones are anybody's."""
SAMPLE, MOST = 64, 20
"""Texts of each held-out file by which common text is known: what more than half of them have, and more than so many."""
SAMPLED_RUNS = 1 << 14
"""Runs of each of these texts that are looked at."""
QUOTED_CHARS = 200
"""Characters of the longest quotation."""
BATCH_CHARS = 1 << 20
"""Characters of held-out text that are hashed at once."""
FILTER_BITS = 16
"""Bits of the filter for each run: of the runs that are not held out, one in so many needs a search."""
_QUESTION_MARKS = ("?", "\uff1f")
_SENTENCE_END = re.compile("(?<=[.!?])\\s|(?<=[\u3002\uff01\uff1f])|\n")


_Shared = tuple[int, Words, npt.NDArray[np.int64], npt.NDArray[np.unsignedinteger]]
_Sample = dict[int, Hashes]
"""Runs of some texts of a file by a hash of the text: equal texts count once, and their order makes no difference."""


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
    """Lengths of held-out texts and questions that are shorter than a run, from SHORTEST words on."""
    common: int
    """Runs that were left out because most texts of a file have them."""
    _filter: npt.NDArray[np.uint8]

    @classmethod
    def from_texts(cls, named_texts: Iterable[tuple[str, str]], *, words: int) -> HeldOut:
        """Return the index of held-out texts, given as (name of the file, text)."""
        numbers: dict[str, int] = {}
        hashes, files = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        some: list[Hashes] = []
        some_files: list[npt.NDArray[np.uint32]] = []
        lengths: set[int] = set()
        samples: dict[int, _Sample] = {}
        for of_texts, texts in _batches(named_texts):
            of_text = np.array([numbers.setdefault(name, len(numbers)) for name in of_texts], np.uint32)
            held, held_in, short = _held(texts, words)
            some.append(held)
            some_files.append(of_text[held_in])
            lengths |= short
            _sample(samples, of_text, held, held_in)
            if sum(map(len, some)) > len(hashes):  # so that all is sorted only as often as it has doubled
                hashes, files = _first_of_each([hashes, *some], [files, *some_files])
                some, some_files = [], []
        hashes, files = _first_of_each([hashes, *some], [files, *some_files])
        rare = ~np.isin(hashes, _common(samples))
        hashes, files = hashes[rare], files[rare].astype(np.min_scalar_type(len(numbers)))
        names, common = tuple(numbers), int(np.count_nonzero(~rare))
        digest = _digest(names, words, hashes, files)
        return cls(names, words, hashes, files, digest, tuple(sorted(lengths)), common, _filter_of(hashes))

    def overlaps(self, words: Words) -> list[str]:
        """Return for each text the name of the first held-out file that shares a run with it, or "".

        A held-out text of fewer words than a run is looked for whole; one of fewer than SHORTEST only in texts as short.
        """
        first = np.full(len(words), len(self.names))
        for _, runs, shared, files in self._shared(words):
            np.minimum.at(first, np.searchsorted(runs.offsets, shared, side="right") - 1, files)
        named = (*self.names, "")
        return [named[file] for file in first.tolist()]

    def quotation(self, text: str) -> str:
        """Return the first words of a text that overlap with the file that `overlaps` names for it, or "".

        As they stand in the text, with single blanks, and at most QUOTED_CHARS characters. Time is linear in the length.
        """
        found = [
            (int(files.min()), int(shared[files.argmin()]), length)
            for length, _, shared, files in self._shared(word_hashes([text]))
            if len(shared)
        ]
        if not found:
            return ""
        _, start, length = min(found)
        return _words_between(text, start, start + length)

    def _shared(self, words: Words) -> Iterator[_Shared]:
        """Yield, for each length that is looked for, all runs, which of them are held out, and in which file first."""
        for length in (self.words, *self.shorter) if len(self.hashes) else ():
            runs = words.runs(length)
            tops = runs.hashes >> _shift(self._filter)
            likely = np.flatnonzero(self._filter[tops >> np.uint64(3)] & _bit(tops))
            places = np.minimum(np.searchsorted(self.hashes, runs.hashes[likely]), len(self.hashes) - 1)
            equal = self.hashes[places] == runs.hashes[likely]
            yield length, runs, likely[equal], self.files[places[equal]]


def _words_between(text: str, start: int, end: int) -> str:
    """Return what holds the words of these numbers, split at blanks."""
    quoted: list[str] = []
    counted = 0
    for piece in pieces(text):
        count = int(word_hashes([piece]).counts[0])
        if counted + count > start:
            parts = piece.split()
            ends = counted + np.cumsum(word_hashes(parts).counts)
            first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, end)
            quoted += [part[:QUOTED_CHARS] for part in parts[first : last + 1]]
        counted += count
        if counted >= end:
            break
    return " ".join(quoted)[:QUOTED_CHARS]


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


def _held(texts: Sequence[str], length: int) -> tuple[Hashes, npt.NDArray[np.int64], set[int]]:
    """Return the runs that are held out, the text of each, and how long the shorter ones are.

    A text or a question of fewer words than a run, but not of too few, is a run of its own length: it is found inside others.
    """
    words = word_hashes(texts)
    runs, telling = _telling_runs(words, length)
    all_texts = np.arange(len(texts))
    hashes, of_text = [runs.hashes[telling]], [np.repeat(all_texts, runs.counts)[telling]]
    questions, of_question = _questions(texts)
    asked = word_hashes(questions)
    lengths = set()
    for short, of_short, telling_runs in (
        (words, all_texts, (runs, telling)),
        (asked, of_question, _telling_runs(asked, length)),
    ):
        tells = _first_runs(*telling_runs)
        for size in range(SHORTEST, length):
            whole = np.flatnonzero((short.counts == size) & tells)
            if len(whole):
                exact = short.runs(size)
                hashes.append(exact.hashes[exact.offsets[whole]])
                of_text.append(of_short[whole])
                lengths.add(size)
    return np.concatenate(hashes), np.concatenate(of_text), lengths


def _first_runs(runs: Words, telling: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which texts begin with a run that says enough; of a short text that is all of it."""
    first = np.append(telling, False)[runs.offsets[:-1]]
    return first & (runs.counts > 0)


def _questions(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return all sentences that are questions, and the text of each."""
    asked = [
        (number, sentence)
        for number, text in enumerate(texts)
        for sentence in (_SENTENCE_END.split(text) if any(mark in text for mark in _QUESTION_MARKS) else ())
        if sentence.rstrip().endswith(_QUESTION_MARKS)
    ]
    return [sentence for _, sentence in asked], np.array([number for number, _ in asked], np.int64)


def _sample(samples: dict[int, _Sample], files: npt.NDArray[np.uint32], held: Hashes, of_text: npt.NDArray[np.int64]) -> None:
    """Take the texts with the least hashes of each file into its sample."""
    wholes = np.zeros(len(files), np.uint64)
    np.add.at(wholes, of_text, mixed(held))
    held = held[np.argsort(of_text, kind="stable")]
    ends = np.cumsum(np.bincount(of_text, minlength=len(files)))
    for file, whole, start, end in zip(
        files.tolist(), mixed(wholes).tolist(), [0, *ends.tolist()], ends.tolist(), strict=False
    ):
        sample = samples.setdefault(file, {})
        if len(sample) < SAMPLE or whole < max(sample):
            sample[whole] = np.unique(held[start : min(end, start + SAMPLED_RUNS)])
            if len(sample) > SAMPLE:
                del sample[max(sample)]


def _common(samples: dict[int, _Sample]) -> Hashes:
    """Return the runs that most texts of a file have."""
    found = [np.zeros(0, np.uint64)]
    for sample in samples.values():
        runs, counts = np.unique(np.concatenate(list(sample.values())), return_counts=True)
        found.append(runs[counts > max(MOST, len(sample) // 2)])
    return np.concatenate(found)


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
