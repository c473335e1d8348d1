"""From the spool to train, valid and test: copies collapse, and what belongs together stays together.

Exact copies meet by content hash, near copies by their signatures. Of a group of near copies one is kept; what is less alike,
but alike, or part of the other, comes into the same split and the same role, and so does (into the same split) what names the
same family. A document's split follows from the seed and its unit alone: its family, or else its content; so documents added
later move none that were there, unless they tie units together. All of it is independent of the order in which documents were
read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from sysscan_models.progress import Progress
from sysscan_models.roles import ModelRole
from sysscan_models.splits.duplicates import Groups, K, NearCopies, Pairs
from sysscan_models.splits.folders import synced
from sysscan_models.splits.intake import KINDS, dropped_line, family_hash
from sysscan_models.splits.report import SCORES, SPLITS, Divided, RoleCounts
from sysscan_models.splits.spool import BUCKETS, HEAD, Heads, Lines, read_bucket, read_line, read_signatures
from sysscan_models.splits.words import mixed

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

_KEPT, _NEAR_COPY, _OTHER_ROLE = 0, 1, 2
_REASONS = {_NEAR_COPY: "near copy", _OTHER_ROLE: "near copy in the other role"}
_AT_ONCE = 1000
"""Copies whose lines are in memory."""
_SURE = 1000.0
"""What a role that the data names weighs against roles that a router found for near copies (at most 1 each)."""

Numbers = npt.NDArray[np.int64]
Units = npt.NDArray[np.uint64]
Families = tuple[Units, Units]
"""Families that hold the same document, pair by pair."""
_LEVELS = 4
"""Similarities from `kept_together` to `near_copies` at which groups are formed: the loosest that is not too large counts.
Parts of documents join these groups in the same way, and where they make them too large the groups stay as they are."""
_FEW, _SHARE = 100, 50
"""A group is too large beyond so many documents and one in so many of all; chains of what is a little alike have no end."""


def divide(work: Path, dropped: IO[bytes], *, roles: Sequence[ModelRole], options: DataOptions, seed: int) -> Divided:
    """Write `work/ROLE/SPLIT.jsonl` from the spool, in the order of the content hashes, and a line for each dropped document.

    `roles` are sorted by their names.
    """
    divided = Divided({role.name: RoleCounts() for role in roles})
    similarity = min(options.kept_together, options.near_copies)
    with Progress("divide", unit="documents") as bar, NearCopies(work / "copies", similarity=similarity) as copies:
        documents, sizes, ties = _without_exact_copies(work, dropped, divided, copies, bar)
        verdict = _settle(documents, copies, ties, options, len(roles))
        divided.largest_unit = verdict.largest
        bar.total = len(documents)
        writer = _Writing(work, dropped, divided, roles, options, seed)
        first = 0
        for bucket, size in enumerate(sizes):
            writer.write(bucket, documents, first, size, verdict)
            first += size
            bar.update(first, kept=divided.kept)
        writer.close()
    return divided


# Exact copies --------------------------------------------------------------------------------------------------------------


def _without_exact_copies(
    work: Path, dropped: IO[bytes], divided: Divided, copies: NearCopies, bar: Progress
) -> tuple[Heads, list[int], Families]:
    """Return all heads without their signatures (mapped from a file), how many each bucket has, and families to tie.

    The signatures go to `copies`.
    """
    sizes, path, ties = [], work / "documents", [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
    with path.open("wb") as stream:
        for bucket in range(BUCKETS):
            heads, exact = read_bucket(work / "spool", bucket)
            copies.add(read_signatures(work / "spool", bucket, heads, K))
            sizes.append(len(heads))
            stream.write(heads.tobytes())
            _drop_exact(work, bucket, exact.kept, exact.dropped, dropped, divided)
            tied = (exact.dropped["family"] != 0) & (exact.kept["family"] != exact.dropped["family"])
            ties.append((exact.kept["family"][tied], exact.dropped["family"][tied]))
            bar.update(sum(sizes), duplicates=divided.duplicates)
    documents = np.memmap(path, HEAD, "r") if sum(sizes) else np.zeros(0, HEAD)
    one, other = (np.concatenate(side) for side in zip(*ties, strict=True))
    return documents, sizes, (one, other)


def _drop_exact(work: Path, bucket: int, kept: Heads, others: Heads, dropped: IO[bytes], divided: Divided) -> None:
    with Lines(work / "spool", bucket) as lines:
        for begin in range(0, len(kept), _AT_ONCE):
            here = slice(begin, begin + _AT_ONCE)
            for one, other in zip(lines.read(kept[here]), lines.read(others[here]), strict=True):
                first, second = orjson.loads(one), orjson.loads(other)
                dropped.write(dropped_line(second["id"], second["source"], "exact copy", of=first["source"]))
                divided.count_duplicate(first["source"], second["source"])


# Near copies ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Verdict:
    """What is decided by looking at several documents; of all others nothing is held in memory."""

    fate: npt.NDArray[np.uint8]
    """For each document: kept, near copy, or near copy in the other role."""
    touched: Numbers
    """Documents that have near copies, sorted."""
    instead: Numbers
    """The document that is kept for each of them (itself, where it is kept)."""
    units: Units
    """The unit of each of them."""
    families: Units
    """Families that are part of a larger unit, sorted."""
    joined: Units
    """The unit of each of these families."""
    largest: int
    """Documents in the largest unit of near copies."""
    similarity: npt.NDArray[np.float32]
    """The estimated similarity of each of them to the one kept for it."""


def _settle(documents: Heads, copies: NearCopies, ties: Families, options: DataOptions, roles: int) -> _Verdict:
    groups, closest = _groups(copies, options)
    fate = np.zeros(len(documents), np.uint8)
    touched = np.union1d(_touched(groups), _touched(closest))
    head = documents[touched]
    group, copy_of = groups[touched].astype(np.int64), closest[touched].astype(np.int64)
    role = _role_of_groups(group, head, roles)
    elsewhere = head["role"] != role
    fate[touched[elsewhere]] = _OTHER_ROLE
    # Of near copies: the one in the right role, then one whose role the data names, then the longest, then the first is kept.
    rank = (touched, -head["characters"].astype(np.int64), -head["sure"].astype(np.int64), elsewhere)
    best = _first_of_each(copy_of, rank)
    best = np.where(elsewhere[best], best[_first_of_each(group, rank)], best)  # where all copies are in the other role
    instead = touched[best]
    similarity = copies.similarities(touched, instead)
    is_copy = (instead != touched) & (similarity >= options.near_copies) & (copy_of == copy_of[best])
    fate[touched[is_copy & ~elsewhere]] = _NEAR_COPY  # of a chain of copies the far end is kept: it is no copy of this one
    largest = int(np.unique(group, return_counts=True)[1].max(initial=0))
    return _Verdict(fate, touched, instead, *_units(group, head, ties), largest, similarity)


def _groups(copies: NearCopies, options: DataOptions) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return for each document the group that stays together, and the one of near copies, named by their first documents."""
    alone = np.arange(copies.count, dtype=np.int32)
    levels = np.linspace(options.kept_together, options.near_copies, _LEVELS)
    levels = levels[levels < 1]  # an estimate of 1 does not mean equal
    if not len(levels):
        return alone, alone
    alike = _joined(copies.pairs(), levels, alone)
    closest = alike[-1] if options.near_copies < 1 else alone
    groups = _bounded(alike, alone)
    del alike  # 16 bytes a document
    parts = copies.parts(groups, ~_represented(closest, copies, options))
    return _bounded(_joined(parts, levels, groups), groups), closest


def _joined(pairs: Iterable[Pairs], levels: npt.NDArray[Any], groups: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    """Return the group of each document at each level, where pairs of at least that similarity join the given groups."""
    joined = [Groups(len(groups)) for _ in levels]
    for level in joined:
        level.join(np.arange(len(groups)), groups)
    for first, second, similarity in pairs:
        for level, there in zip(levels, joined, strict=True):
            close = similarity >= level
            there.join(first[close], second[close])
    return [there.roots() for there in joined]


def _bounded(levels: Sequence[npt.NDArray[np.int32]], tighter: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the group of each document at the loosest level where that is not too large; beyond all levels the tighter one."""
    groups, count = tighter, len(tighter)
    for roots in reversed(levels):
        sizes = np.bincount(roots, minlength=count)
        groups = np.where(sizes[roots] <= max(_FEW, count // _SHARE), roots, groups)
    return groups


def _represented(closest: npt.NDArray[np.int32], copies: NearCopies, options: DataOptions) -> npt.NDArray[np.bool_]:
    """Return which documents are near copies of the first of their group: it says what they say, and they count as one."""
    represented: npt.NDArray[np.bool_] = closest != np.arange(len(closest))
    others = np.flatnonzero(represented)
    represented[others] = copies.similarities(others, closest[others].astype(np.int64)) >= options.near_copies
    return represented


def _first_of_each(group: Numbers, rank: tuple[npt.NDArray[Any], ...]) -> Numbers:
    """Return for each member the place of its group's first member; `rank` as np.lexsort takes it, the heaviest key last."""
    order = np.lexsort((*rank, group))
    begins = np.concatenate([[True], np.diff(group[order]) != 0]) if len(order) else np.zeros(0, bool)
    first = np.empty(len(group), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def _touched(roots: npt.NDArray[Any]) -> Numbers:
    """Return the documents that are in a group with others, sorted."""
    changed = np.flatnonzero(roots != np.arange(len(roots), dtype=roots.dtype))
    return np.union1d(changed, roots[changed]).astype(np.int64)


def _role_of_groups(group: Numbers, head: Heads, roles: int) -> npt.NDArray[np.uint8]:
    """Return for each document the role of its group: the one that weighs most, by scores and by the data's own word."""
    _, place = np.unique(group, return_inverse=True)
    votes = np.zeros((int(place.max(initial=-1)) + 1, roles))
    np.add.at(votes, (place, head["role"]), head["score"] + _SURE * head["sure"])
    return votes.argmax(axis=1).astype(np.uint8)[place] if len(place) else np.zeros(0, np.uint8)


def _units(group: Numbers, head: Heads, ties: Families) -> tuple[Units, Units, Units]:
    """Return the unit of each document that has near copies; and the families that these tie together, with their units.

    A unit is called by its smallest family, or without one by its smallest content hash.
    """
    named, family = np.unique(np.concatenate([head["family"], *ties]), return_inverse=True)
    family, one, other = np.split(family, [len(head), len(head) + len(ties[0])])
    _, place = np.unique(group, return_inverse=True)
    count = int(place.max(initial=-1)) + 1
    tied = Groups(count + len(named))  # groups of near copies and families are the things that are tied together
    has = head["family"] != 0
    tied.join(place[has].astype(np.int64), count + family[has].astype(np.int64))
    tied.join(count + one.astype(np.int64), count + other.astype(np.int64))
    roots = tied.roots()
    largest = np.uint64(2**64 - 1)
    by_family, by_content = np.full(len(roots), largest), np.full(len(roots), largest)
    np.minimum.at(by_family, roots[count:][named != 0], named[named != 0])
    np.minimum.at(by_content, roots[place], content_units(head["key"]))
    unit = np.where(by_family == largest, by_content, by_family)
    real = named != 0
    return unit[roots[place]], named[real], unit[roots[count:]][real]


# Splits --------------------------------------------------------------------------------------------------------------------


def content_units(keys: npt.NDArray[np.bytes_]) -> Units:
    """Return the unit of documents that belong to no family and have no near copies: the first 8 bytes of their hash."""
    return np.frombuffer(keys.astype("S8").tobytes(), ">u8").astype(np.uint64)


def splits_of(units: Units, seed: int, options: DataOptions) -> npt.NDArray[np.uint8]:
    """Return the number (in SPLITS) of the split of each unit; it depends on the unit, the seed and the shares alone."""
    salt = int.from_bytes(hashlib.sha256(f"split\0{seed}".encode()).digest()[:8], "big")
    share = mixed(units ^ np.uint64(salt)) / np.float64(2**64)
    held_out = options.test_fraction + options.valid_fraction
    return np.select([share < options.test_fraction, share < held_out], [2, 1], 0).astype(np.uint8)


def split_of(key: str, family: str, seed: int, options: DataOptions) -> str:
    """Return the split of a document without near copies, by its content hash (hexadecimal) and its family."""
    unit = family_hash(family) or int(key[:16], 16)
    return SPLITS[int(splits_of(np.array([unit], np.uint64), seed, options)[0])]


class _Writing:
    """Writes the documents that are kept, bucket by bucket, and counts them."""

    def __init__(
        self, work: Path, dropped: IO[bytes], divided: Divided, roles: Sequence[ModelRole], options: DataOptions, seed: int
    ) -> None:
        self.work, self.dropped, self.divided, self.options, self.seed = work, dropped, divided, options, seed
        self._names = [role.name for role in roles]
        self._dataset = hashlib.sha256()
        self._stack = ExitStack()
        self._files = []
        for name in self._names:
            (work / name).mkdir()
            paths = [work / name / f"{split}.jsonl" for split in SPLITS]
            self._files.append([self._stack.enter_context(synced(path)) for path in paths])

    def close(self) -> None:
        self._stack.close()
        self.divided.digest = self._dataset.hexdigest()

    def write(self, bucket: int, documents: Heads, first: int, size: int, verdict: _Verdict) -> None:
        """Write what is kept of one bucket: `size` documents from number `first` on."""
        heads = np.asarray(documents[first : first + size])
        units = np.where(heads["family"] == 0, content_units(heads["key"]), heads["family"])
        units = _replaced(units, verdict.families, verdict.joined)
        here = slice(*np.searchsorted(verdict.touched, [first, first + size]))
        units[verdict.touched[here] - first] = verdict.units[here]
        split, fate = splits_of(units, self.seed, self.options), verdict.fate[first : first + size]
        with Lines(self.work / "spool", bucket) as lines:
            for role, name in enumerate(self._names):
                for number, split_name in enumerate(SPLITS):
                    mine = heads[(fate == _KEPT) & (heads["role"] == role) & (split == number)]
                    self._files[role][number].writelines(lines.read(mine))
                    _count(self.divided.roles[name], split_name, mine)
        self._dataset.update(heads["key"][fate == _KEPT].astype("S32").tobytes())
        self._drop(documents, verdict, here)

    def _drop(self, documents: Heads, verdict: _Verdict, here: slice) -> None:
        touched, instead = verdict.touched[here], verdict.instead[here]
        gone = verdict.fate[touched] != _KEPT
        for number, other, similarity in zip(touched[gone], instead[gone], verdict.similarity[here][gone], strict=True):
            fate = int(verdict.fate[number])
            mine, kept = (orjson.loads(read_line(self.work / "spool", documents[place])) for place in (number, other))
            of = kept["source"] if other != number else ""
            self.dropped.write(dropped_line(mine["id"], mine["source"], _REASONS[fate], of=of, similarity=float(similarity)))
            if fate == _OTHER_ROLE:
                self.divided.other_role += 1
            else:
                self.divided.count_near_copy(kept["source"], mine["source"], float(similarity))


def _count(counts: RoleCounts, split: str, heads: Heads) -> None:
    counts.splits[split] += len(heads)
    counts.characters += int(heads["characters"].sum(dtype=np.int64))
    kinds = np.bincount(heads["kind"], minlength=len(KINDS))
    counts.kinds.update({kind: count for kind, count in zip(KINDS, kinds.tolist(), strict=True) if count})
    powers, found = np.unique(np.frexp(heads["characters"].astype(np.float64))[1], return_counts=True)
    counts.lengths.update({1 << power - 1: count for power, count in zip(powers.tolist(), found.tolist(), strict=True)})
    steps = np.bincount(np.minimum(heads["score"] * SCORES, SCORES - 1).astype(np.int64), minlength=SCORES)
    counts.scores = [before + count for before, count in zip(counts.scores, steps.tolist(), strict=True)]


def _replaced(units: Units, families: Units, joined: Units) -> Units:
    """Return the units, with families that belong to a larger unit replaced by it."""
    if not len(families):
        return units
    place = np.minimum(np.searchsorted(families, units), len(families) - 1)
    return np.where(families[place] == units, joined[place], units)
