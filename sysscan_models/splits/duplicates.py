"""Near copies, and parts of each other: documents that share words in sequence, found without comparing each with each.

A document is the set of its runs of SHINGLE words; how similar two are is the Jaccard index of their sets, estimated by the
share of equal values of their signatures (Dahlgaard, Knudsen and Thorup, "Fast similarity sketching", 2017: at least as exact
as MinHash, and in long texts one hash for each run instead of K). The bands of the signatures are sorted on disk, and documents
with an equal band are compared.

The same signatures tell whether one document is part of another. A value is the least of its document's runs, so where the
values of two differ, the one with the lesser value has a run there that the other lacks: of a document that is all within
another no value is less than the other's. Documents that agree in two single values are compared so, but for values that many
documents have: what they share is a licence or a template. What becomes of copies is not decided here. Documents without a
word are like no other.

Shapes: N documents, K values of a signature, R values of a band, P pairs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sysscan_models.splits.words import Hashes, Words, mixed

SHINGLE = 3
"""Words of a run."""
K = 128
"""Values of a signature: the standard error of an estimate is at most 0.044."""
NEIGHBOURS = 4
"""Documents with an equal band are compared with so many before them and with their first, so that 100,000 of them take no
more time than 100,000 in pairs; buckets of up to 6 are compared completely."""
SORTED_AT_ONCE = 1 << 21
"""Keys of a band that are sorted in memory at once, 8 bytes each."""
COMPARED_AT_ONCE = 1 << 14
"""Pairs whose signatures are in memory at once, 1 KB each."""
PART_BITS = 15
"""Documents (their number is 2 to the power of this) whose candidates are in one file and in memory at once."""
ROUNDS = 8
"""Rounds in which every run is thrown into one place of the signature; the places left empty look at every run."""
PLACES = range(0, K, 4)
"""Places of the signature by whose single values parts are looked for."""
COMMON = 100
"""A value that more documents have at its place is common text, and ties none of them."""
LEAST_SHARED = 8
"""Values that a document and its part must share: so a part may be down to a sixteenth of the whole or so."""
LEAST_MET = 3
"""Values among PLACES that they must share, common ones aside; and these must be a third of all that they share there."""
LEAST_RUNS = 12
"""Runs of the shortest part, about: what is shorter is a title, and anybody's."""
_EMPTY = 0xFFFF_FFFF
_ROUND_SHIFT = 28
"""A value's highest bits are its round, so that the values of a place are in the order in which they replace each other."""
_STEP = 0x9E3779B97F4A7C15
_PLACE_BITS = K.bit_length() - 1

Ids = npt.NDArray[np.int64]
Signatures = npt.NDArray[np.uint32]
Pairs = tuple[Ids, Ids, npt.NDArray[np.float32]]


# Signatures -----------------------------------------------------------------------------------------------------------------


def signatures(words: Words) -> Signatures:
    """Return the signatures of texts, uint32 [N, K]: the share of equal values of two estimates their similarity.

    A text of fewer words than SHINGLE is one run; a text without words has a signature that marks it so.
    """
    runs = words.runs(SHINGLE)
    count = len(runs)
    signatures = np.full(count * K, _EMPTY, np.uint32)
    hashes, rows = runs.hashes, np.repeat(np.arange(count) * K, runs.counts)
    for number in range(ROUNDS):
        _throw(signatures, hashes, rows, number)
        full = (signatures.reshape(count, K) != _EMPTY).all(axis=1)
        unfinished = ~full[rows // K]
        hashes, rows = hashes[unfinished], rows[unfinished]
        if not len(hashes):
            break
    else:
        _fill(signatures, runs)
    return signatures.reshape(count, K)


def _throw(signatures: Signatures, hashes: Hashes, rows: Ids, number: int) -> None:
    """Let every run hit one place of its signature; the least value stays, and what an earlier round filled stays."""
    thrown = mixed(hashes + np.uint64(number * _STEP % 2**64))
    places = rows + (thrown >> np.uint64(64 - _PLACE_BITS)).astype(np.int64)
    values = _signature_values(thrown, number)
    if number:
        free = signatures[places] == _EMPTY
        places, values = places[free], values[free]
    np.minimum.at(signatures, places, values)


def _fill(signatures: Signatures, runs: Words) -> None:
    """Give every place that is still empty the least value that any run of its text has there: short texts end here."""
    empty = np.flatnonzero(signatures == _EMPTY)
    empty = empty[runs.counts[empty // K] > 0]
    if not len(empty):
        return
    counts = runs.counts[empty // K]
    starts = np.cumsum(counts) - counts
    members = np.repeat(runs.offsets[:-1][empty // K] - starts, counts) + np.arange(counts.sum())
    places = np.repeat((empty % K + ROUNDS).astype(np.uint64), counts)
    values = _signature_values(mixed(runs.hashes[members] + places * np.uint64(_STEP)), ROUNDS)
    signatures[empty] = np.minimum.reduceat(values, starts)


def _signature_values(hashes: Hashes, number: int) -> Signatures:
    return (hashes & np.uint64((1 << _ROUND_SHIFT) - 1) | np.uint64(number << _ROUND_SHIFT)).astype(np.uint32)  # never _EMPTY


def chance_of_meeting(similarity: float, rows: int) -> float:
    """Return how likely two documents of a similarity agree in a band of `rows` values at least."""
    return float(1 - (1 - similarity**rows) ** (K // rows))


def band_rows(similarity: float) -> int:
    """Return the most values of a band with which 85% of pairs of just that similarity, and nearly all above it, meet."""
    return max((rows for rows in range(1, K + 1) if chance_of_meeting(similarity, rows) >= 0.85), default=1)


# Pairs ----------------------------------------------------------------------------------------------------------------------


class NearCopies:
    """Collects signatures in a folder and finds the pairs that are alike. Use it in a `with` statement, or close it.

    On disk a document takes 512 bytes, 8, and 4 for each band and each of PLACES (776 in all at similarity 0.5), and 8 for each
    pair that meets there; in memory about 10, and 200 MB for the work. Raises OSError when the folder cannot be written.
    """

    def __init__(self, folder: Path, *, similarity: float) -> None:
        self.similarity = similarity
        self.count = 0
        self.verified = 0
        """Pairs that met and were compared so far."""
        self._rows = band_rows(similarity)
        self._bands = 0 if similarity >= 1 else K // self._rows  # equal signatures need no bands
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._signatures = stack.enter_context(self._open("signatures"))
            self._wholes = stack.enter_context(self._open("wholes"))
            self._keys = [stack.enter_context(self._open(f"band-{band}")) for band in range(self._bands)]
            self._values = [stack.enter_context(self._open(f"place-{place}")) for place in PLACES]
            self._files = stack.pop_all()

    def __enter__(self) -> NearCopies:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; they stay on disk until their folder is removed."""
        self._files.close()

    def add(self, signatures_NK: Signatures) -> None:
        """Add documents by their signatures, uint32 [N, K]; they are numbered from 0 in the order in which they are added."""
        if not len(signatures_NK):
            return
        self.count += len(signatures_NK)
        self._signatures.write(signatures_NK.astype("<u4").tobytes())
        wordless = signatures_NK[:, 0] == _EMPTY
        wholes = _combined(signatures_NK)
        wholes[wordless] = 0
        self._wholes.write(wholes.astype("<u8").tobytes())
        for band, file in enumerate(self._keys):
            keys = _combined(signatures_NK[:, band * self._rows : (band + 1) * self._rows]) >> np.uint64(32)
            file.write(keys.astype("<u4").tobytes())
        for place, file in zip(PLACES, self._values, strict=True):
            file.write(signatures_NK[:, place].astype("<u4").tobytes())

    def pairs(self) -> Iterator[Pairs]:
        """Yield pairs of documents (first < second) and their estimated similarity, all of at least the similarity asked for.

        Of documents with equal signatures only the first takes part in other pairs, and each other is paired with it. No pair
        comes twice. The pairs depend on the documents and their order alone.
        """
        self._flush()
        taking_part = np.ones(self.count, bool)
        for first, second in self._equal():
            taking_part[second] = False
            yield first, second, np.ones(len(first), np.float32)
        taking_part &= self._stored("wholes", "<u8") != 0
        if self._bands and self.count:
            found = (
                self._meeting_in_band(entries, band)
                for band in range(self._bands)
                for entries in self._sorted_entries(f"band-{band}", taking_part)
            )
            for some in self._compared(self._spooled(found), least=1):
                similarity = self._equal_share(*some)
                alike = similarity >= self.similarity
                yield some[0][alike], some[1][alike], similarity[alike]

    def parts(self, groups: npt.NDArray[Any], taking_part: npt.NDArray[np.bool_]) -> Iterator[Pairs]:
        """Yield pairs (first < second) of which one is mostly part of the other, by as much as the similarity asked for.

        Their third value compares with that of `pairs`: it is the similarity of two documents of one length that have the same
        share of each other. Looked for among the documents that take part, bool [N], outside their `groups` [N] alone.
        """
        if not self.count:
            return
        self._flush()
        taking_part = taking_part & (self._stored("wholes", "<u8") != 0)
        common: list[npt.NDArray[np.uint32]] = []
        found = (pairs[groups[_firsts(pairs)] != groups[_seconds(pairs)]] for pairs in self._meeting(taking_part, common))
        for first, second in self._compared(self._spooled(found), least=LEAST_MET):
            similarity = _part_similarity(self._signatures_of(first), self._signatures_of(second), common)
            alike = similarity >= self.similarity
            yield first[alike], second[alike], similarity[alike]

    def similarities(self, first: Ids, second: Ids) -> npt.NDArray[np.float32]:
        """Return the estimated similarity of documents, pair by pair, float32; some pairs at a time are in memory."""
        self._flush()
        return self._equal_share(first, second)

    def _equal_share(self, first: Ids, second: Ids) -> npt.NDArray[np.float32]:
        similar = np.empty(len(first), np.float32)
        for start in range(0, len(first), COMPARED_AT_ONCE):
            some = slice(start, start + COMPARED_AT_ONCE)
            equal = self._signatures_of(first[some]) == self._signatures_of(second[some])
            similar[some] = equal.mean(axis=1, dtype=np.float32)
        return similar

    def _equal(self) -> Iterator[tuple[Ids, Ids]]:
        wholes = self._stored("wholes", "<u8")
        passes = -(-self.count // SORTED_AT_ONCE)
        for number in range(passes):
            found = []
            for start in range(0, self.count, SORTED_AT_ONCE):
                some = wholes[start : start + SORTED_AT_ONCE]
                found.append(np.flatnonzero((some % np.uint64(passes) == number) & (some != 0)) + start)
            ids = np.concatenate(found)
            ids = ids[np.argsort(wholes[ids], kind="stable")]
            starts, sizes = _buckets(wholes[ids])
            copies = np.ones(len(ids), bool)
            copies[starts] = False
            yield np.repeat(ids[starts], sizes)[copies], ids[copies]

    def _spooled(self, found: Iterable[Hashes]) -> list[Path]:
        """Write pairs, as first << 32 | second, to files by their first document."""
        parts = [self._folder / f"candidates-{number}" for number in range(1 + (self.count >> PART_BITS))]
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("wb")) for part in parts]
            for pairs in found:
                ordered = np.sort(pairs)
                ends = np.searchsorted(ordered >> np.uint64(32 + PART_BITS), np.arange(len(parts) + 1, dtype=np.uint64))
                for file, start, end in zip(files, ends[:-1], ends[1:], strict=True):
                    file.write(ordered[start:end].astype("<u8").tobytes())
        return parts

    def _sorted_entries(self, name: str, taking_part: npt.NDArray[np.bool_]) -> Iterator[Hashes]:
        """Yield key << 32 | document in ascending order, some of the keys at a time so that memory is bounded."""
        passes = max(1, -(-self.count // SORTED_AT_ONCE))
        keys = self._stored(name, "<u4")
        for number in range(passes):
            found = []
            for start in range(0, self.count, SORTED_AT_ONCE):
                some = keys[start : start + SORTED_AT_ONCE].astype(np.uint64)
                of_range = some % np.uint64(passes) == number
                mine = np.flatnonzero(taking_part[start : start + SORTED_AT_ONCE] & of_range)
                found.append(some[mine] << np.uint64(32) | (mine + start).astype(np.uint64))
            entries = np.concatenate(found)
            entries.sort()
            yield entries

    def _meeting_in_band(self, entries: Hashes, band: int) -> Hashes:
        """Return pairs of documents with an equal band, packed."""
        keys, ids = _firsts(entries), _seconds(entries)
        starts, sizes = _buckets(keys)
        self._order_large(ids, np.repeat(sizes, sizes) > NEIGHBOURS + 2, keys, band)
        return _neighbours(ids, starts, sizes)

    def _order_large(self, ids: Ids, large: npt.NDArray[np.bool_], keys: Ids, band: int) -> None:
        """Order large buckets by the next band too: so the most alike of them are neighbours."""
        if large.any():
            next_keys = self._stored(f"band-{(band + 1) % self._bands}", "<u4")[ids[large]]
            ids[large] = ids[large][np.lexsort((ids[large], next_keys, keys[large]))]

    def _meeting(self, taking_part: npt.NDArray[np.bool_], common: list[npt.NDArray[np.uint32]]) -> Iterator[Hashes]:
        """Yield pairs of documents with an equal value, packed, and append the common values of each place, sorted."""
        for place in PLACES:
            many = [np.zeros(0, np.uint32)]
            for entries in self._sorted_entries(f"place-{place}", taking_part):
                keys, ids = _firsts(entries), _seconds(entries)
                starts, sizes = _buckets(keys)
                many.append(keys[starts[sizes > COMMON]].astype(np.uint32))
                few = (sizes > 1) & (sizes <= COMMON)
                yield _neighbours(ids, starts[few], sizes[few])
            common.append(np.sort(np.concatenate(many)))

    def _compared(self, parts: Iterable[Path], least: int) -> Iterator[tuple[Ids, Ids]]:
        """Yield the pairs that are `least` times in the files, each once, some at a time, and remove the files."""
        for part in parts:
            pairs = np.sort(np.fromfile(part, "<u8"))
            starts, sizes = _buckets(pairs)
            pairs = pairs[starts[sizes >= least]]
            part.unlink()
            for start in range(0, len(pairs), COMPARED_AT_ONCE):
                some = pairs[start : start + COMPARED_AT_ONCE]
                self.verified += len(some)
                yield _firsts(some), _seconds(some)

    def _signatures_of(self, ids: Ids) -> Signatures:
        """Read signatures back. Not by a memory map, whose pages would count as memory of ours."""
        distinct, places = np.unique(ids, return_inverse=True)
        handle, size = self._signatures.fileno(), 4 * K
        data = b"".join([os.pread(handle, size, number * size) for number in distinct.tolist()])
        return np.frombuffer(data, "<u4").reshape(-1, K)[places]

    def _flush(self) -> None:
        for file in (self._signatures, self._wholes, *self._keys, *self._values):
            file.flush()

    def _open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("w+b")

    def _stored(self, name: str, kind: str) -> npt.NDArray[np.unsignedinteger]:
        if not self.count:
            return np.zeros(0, kind)
        return np.memmap(self._folder / name, dtype=kind, mode="r")


def _combined(values_NR: Signatures) -> Hashes:
    """Return a hash of each row."""
    combined = np.zeros(len(values_NR), np.uint64)
    for column in range(values_NR.shape[1]):
        combined = combined * np.uint64(_STEP) + values_NR[:, column]
    return mixed(combined)


def _buckets(ordered: npt.NDArray[np.integer]) -> tuple[Ids, Ids]:
    """Return where rows of equal values start, and how long they are."""
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, np.int64)
    return starts, np.diff(starts, append=len(ordered))


def _neighbours(ids: Ids, starts: Ids, sizes: Ids) -> Hashes:
    """Return the pairs of each bucket that are compared, packed: neighbours, and each with the first."""
    place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the bucket
    ids = ids[np.repeat(starts, sizes) + place]
    found = []
    for distance in range(1, NEIGHBOURS + 1):
        later = np.flatnonzero(place >= distance)
        found.append(_packed(ids[later - distance], ids[later]))
    later = np.flatnonzero(place > NEIGHBOURS)
    found.append(_packed(ids[later - place[later]], ids[later]))
    return np.concatenate(found)


def _part_similarity(one: Signatures, other: Signatures, common: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.float32]:
    """Return how alike the lesser of each pair and its share of the larger are, float32 [P]; 0 where too little tells it."""
    shared = np.count_nonzero(one == other, axis=1)
    only_one, only_other = np.count_nonzero(one < other, axis=1), np.count_nonzero(one > other, axis=1)
    lesser = np.where((only_one < only_other)[:, None], one, other)
    missing = np.minimum(only_one, only_other)
    enough = (shared >= LEAST_SHARED) & (np.count_nonzero(lesser >> _ROUND_SHIFT == 0, axis=1) >= LEAST_RUNS)
    similarity = np.where(enough, shared / np.maximum(shared + 2 * missing, 1), 0).astype(np.float32)
    met, met_at_all = np.zeros(len(one), np.int64), np.zeros(len(one), np.int64)
    for number, place in enumerate(PLACES):
        equal = np.flatnonzero(one[:, place] == other[:, place])
        met[equal] += ~np.isin(one[equal, place], common[number])
        met_at_all[equal] += 1
    similarity[(met < LEAST_MET) | (met * 3 < met_at_all)] = 0
    return similarity


def _firsts(packed: Hashes) -> Ids:
    return (packed >> np.uint64(32)).astype(np.int64)


def _seconds(packed: Hashes) -> Ids:
    return (packed & np.uint64(0xFFFF_FFFF)).astype(np.int64)


def _packed(one: Ids, other: Ids) -> Hashes:
    return np.minimum(one, other).astype(np.uint64) << np.uint64(32) | np.maximum(one, other).astype(np.uint64)


# Groups ---------------------------------------------------------------------------------------------------------------------


class Groups:
    """Documents that are joined directly or by way of others; 4 bytes each. The order of the joins makes no difference."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count, dtype=np.int32)

    def join(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
        """Join documents pair by pair, given as two arrays of their numbers."""
        one, other = self._find(np.asarray(first)), self._find(np.asarray(second))
        while (apart := np.flatnonzero(one != other)).size:
            one, other = one[apart], other[apart]
            np.minimum.at(self._parents, np.maximum(one, other), np.minimum(one, other))
            one, other = self._find(one), self._find(other)

    def roots(self) -> npt.NDArray[np.int32]:
        """Return the smallest number of each document's group, int32 [count]."""
        self._shorten()
        return self._parents.copy()

    def _find(self, nodes: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        roots: npt.NDArray[np.int32] = self._parents[nodes]
        for _ in range(8):
            above = self._parents[roots]
            if np.array_equal(above, roots):
                return roots
            self._parents[nodes] = roots = above
        self._shorten()  # a long chain: halve all ways until there are none
        roots = self._parents[nodes]
        return roots

    def _shorten(self) -> None:
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents = above
