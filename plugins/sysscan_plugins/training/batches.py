"""Batches, from a split on disk to the rows of each step.

A split is encoded once into flat memory-mapped arrays; rows are planned from lengths alone; the rows of a step are a pure
function of the seed and the step, which is the whole data cursor. Numpy only; what a device does with a batch is its own
business. Shapes: B rows, T positions, N real tokens.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from sysscan_models.artifacts import publish, sha256_file, write_atomically
from sysscan_models.encoding import IGNORE_INDEX, ChatEncoder, HFTokenizer, pack
from sysscan_models.errors import DataError
from sysscan_models.progress import Progress
from sysscan_plugins.training import TrainingOptions

ENCODING = 1
"""Format of the encoded arrays; part of their key."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlatBatch:
    """A batch without its padding, as one row of N tokens."""

    ids_N: Ints
    targets_N: Ints
    positions_N: Ints
    lengths: tuple[int, ...]
    """Tokens of each segment, in order; they add up to N."""


@dataclass(frozen=True)
class Batch:
    """Rows of a fixed length. A segment is one example; it attends to nothing but itself."""

    ids_BT: Ints
    targets_BT: Ints
    """The token to predict at each position (labels shifted by one), IGNORE_INDEX where there is no loss."""
    positions_BT: Ints
    """Position within the segment."""
    segments_BT: Ints
    """1, 2, ... within a row; 0 is padding."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int((self.segments_BT > 0).sum())

    @property
    def supervised(self) -> int:
        """Tokens that the loss is computed on."""
        return int((self.targets_BT != IGNORE_INDEX).sum())

    def part(self, number: int, parts: int) -> Batch:
        """Return one of equal parts of the rows; their number must be divisible by `parts`."""
        size = len(self.ids_BT) // parts
        own = slice(number * size, (number + 1) * size)
        return Batch(self.ids_BT[own], self.targets_BT[own], self.positions_BT[own], self.segments_BT[own])

    def flat(self) -> FlatBatch:
        """Return the batch without padding."""
        real = self.segments_BT > 0
        positions_N = self.positions_BT[real]
        starts = np.append(np.flatnonzero(positions_N == 0), len(positions_N))
        return FlatBatch(self.ids_BT[real], self.targets_BT[real], positions_N, tuple(np.diff(starts).tolist()))


@dataclass(frozen=True)
class EncodedSplit:
    """All sequences of a split, one after the other, on disk."""

    folder: Path
    ids: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]
    starts: Ints
    """Where each sequence starts in `ids`; one more at the end."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """`outcomes`: examples by what became of them; `dropped`: the first few that did; `sample`: what one looked like."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens of each sequence."""
        return np.diff(self.starts)

    def names(self, items: Sequence[int]) -> list[str]:
        """Return the ids of the documents that sequences came from, without repetition."""
        wanted, found = set(items), {}
        with (self.folder / "documents.jsonl").open("rb") as lines:
            for number, line in enumerate(lines):
                if number in wanted:
                    found[number] = orjson.loads(line)
        return list(dict.fromkeys(found[item] for item in items))

    def batch(self, rows: Sequence[Sequence[int]], max_seq_length: int) -> Batch:
        """Lay sequences out in rows of a fixed length."""
        shape = (len(rows), max_seq_length)
        ids_BT, positions_BT, segments_BT = (np.zeros(shape, np.int64) for _ in range(3))
        targets_BT = np.full(shape, IGNORE_INDEX, np.int64)
        for row, items in enumerate(rows):
            at = 0
            for segment, item in enumerate(items, 1):
                start, end = int(self.starts[item]), int(self.starts[item + 1])
                length = end - start
                ids = self.ids[start:end]
                ids_BT[row, at : at + length] = ids
                targets_BT[row, at : at + length - 1] = np.where(self.supervised[start + 1 : end], ids[1:], IGNORE_INDEX)
                positions_BT[row, at : at + length] = np.arange(length)
                segments_BT[row, at : at + length] = segment
                at += length
        return Batch(ids_BT, targets_BT, positions_BT, segments_BT)


def encode_split(path: Path, tokenizer: Any, template: str, options: TrainingOptions, folder: Path) -> EncodedSplit:
    """Encode a split (JSON Lines of `id` and `messages` or `text`) below `folder`, or find it there.

    Raises DataError for a split that is not there, or a line that is no JSON object.
    """
    if not path.is_file():
        raise DataError(f"there is no split {path}; prepare the splits first")
    described = [
        str(ENCODING),
        sha256_file(path),
        tokenizer.backend_tokenizer.to_str(),
        template,
        str(options.max_seq_length),
        options.supervise,
    ]
    key = hashlib.sha256("\0".join(described).encode()).hexdigest()[:16]
    target = folder / f"{path.stem}-{key}"
    if not (target / "report.json").is_file():
        encoder = ChatEncoder(HFTokenizer(tokenizer), template, supervise=options.supervise)
        _write(path, encoder, options.max_seq_length, target)
    return _open(target)


def demand_supervision(split: EncodedSplit, path: Path) -> None:
    """Raise DataError, with a sample of what was read, when a split has no token that the loss is computed on."""
    if not split.supervised.any():
        raise DataError(
            f"{path} has no token to learn from: {split.report['outcomes'] or 'it is empty'}. "
            f"Expected conversations with an assistant turn, or plain text. A sample: {split.report['sample']}"
        )


def _write(path: Path, encoder: ChatEncoder, max_seq_length: int, target: Path) -> None:
    """Encode into a temporary folder and rename it; memory is bounded by one example, and eight bytes for each."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    outcomes: Counter[str] = Counter()
    dropped: list[dict[str, str]] = []
    starts, sample = [0], ""
    with (
        (temporary / "ids.bin").open("wb") as ids,
        (temporary / "supervised.bin").open("wb") as supervised,
        (temporary / "documents.jsonl").open("wb") as documents,
        Progress(f"encode {path.name}", unit="examples") as bar,
    ):
        for number, (name, record, _) in enumerate(read_split(path), 1):
            encoded = encoder.example(record, max_seq_length)
            pieces = [piece for piece in encoded.pieces if any(label != IGNORE_INDEX for label in piece.labels)]
            outcome = "masked" if encoded.pieces and not pieces else encoded.outcome
            outcomes[outcome] += 1
            if not pieces and len(dropped) < 20:
                dropped.append({"id": name, "why": f"{outcome} {encoded.detail}".strip()})
            sample = sample or orjson.dumps(record).decode()[:400] + (f" ({dropped[0]['why']})" if dropped else "")
            for piece in pieces:
                ids.write(np.asarray(piece.ids, np.int32).tobytes())
                supervised.write((np.asarray(piece.labels) != IGNORE_INDEX).tobytes())
                documents.write(orjson.dumps(name) + b"\n")
                starts.append(starts[-1] + len(piece.ids))
            bar.update(number)
        for written in (ids, supervised, documents):
            written.flush()
            os.fsync(written.fileno())
    np.save(temporary / "starts.npy", np.asarray(starts, np.int64))
    report = {"outcomes": dict(sorted(outcomes.items())), "dropped": dropped, "sample": sample}
    write_atomically(temporary / "report.json", orjson.dumps(report))
    shutil.rmtree(target, ignore_errors=True)
    publish(temporary, target)


def read_split(path: Path) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield name, record and bytes of each line of a split; raise DataError for a line that is no JSON object."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
                yield str(record.get("id") or f"{path.name}:{number}"), record, len(line)
            except (orjson.JSONDecodeError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: expected a JSON object; {error}. Prepare the splits again") from error


def _open(folder: Path) -> EncodedSplit:
    starts = np.load(folder / "starts.npy")
    tokens = int(starts[-1])
    if not tokens:  # numpy maps no empty file
        ids, supervised = np.zeros(0, np.int32), np.zeros(0, np.bool_)
    else:
        ids = np.memmap(folder / "ids.bin", np.int32, "r", shape=(tokens,))
        supervised = np.memmap(folder / "supervised.bin", np.bool_, "r", shape=(tokens,))
    return EncodedSplit(folder, ids, supervised, starts, orjson.loads((folder / "report.json").read_bytes()))


class Plan:
    """Which rows each optimizer step reads: all epochs, packed and shuffled, cut where the budget of steps or tokens ends."""

    def __init__(self, lengths: Ints, options: TrainingOptions, seed: int, *, devices: int = 1) -> None:
        self.devices = devices
        self.rows_per_step = options.batch_size * devices
        limit = options.max_steps * self.rows_per_step
        rows: list[tuple[int, ...]] = []
        tokens, epoch = 0, 0
        while epoch < options.epochs and not (limit and len(rows) >= limit):
            packed = plan_rows(lengths, options, seed + 1_000_003 * epoch)
            share = min(1.0, options.epochs - epoch)
            rows += packed[: max(1, round(share * len(packed)))]
            tokens += int(lengths.sum())
            epoch += 1
            if options.max_tokens and share == 1.0 and tokens >= options.max_tokens:
                break
        if limit:
            rows = rows[:limit]
        if options.max_tokens:
            ends = np.cumsum([int(lengths[list(row)].sum()) for row in rows])
            needed = int(np.searchsorted(ends, options.max_tokens)) + 1
            rows = rows[: -(-needed // self.rows_per_step) * self.rows_per_step]
        self._row_ends = np.cumsum([len(row) for row in rows])
        self._items = np.fromiter((item for row in rows for item in row), np.int32)
        self.tokens = int(lengths[self._items].sum())
        self.steps = -(-len(rows) // self.rows_per_step)

    def rows(self, step: int) -> list[list[int]]:
        """Return the rows of a step, counted from 0: lists of sequence numbers. The last step may have fewer."""
        first = step * self.rows_per_step
        ends = self._row_ends[first : first + self.rows_per_step]
        starts = [int(self._row_ends[first - 1]) if first else 0, *ends[:-1].tolist()]
        return [self._items[start:end].tolist() for start, end in zip(starts, ends.tolist(), strict=True)]


def plan_rows(lengths: Ints, options: TrainingOptions, seed: int) -> list[tuple[int, ...]]:
    """Return one epoch's rows in their order: packed, or one sequence each."""
    if options.packing:
        return pack(lengths.tolist(), options.max_seq_length, seed)
    order = np.random.default_rng(seed).permutation(len(lengths))
    return [(int(item),) for item in order]
