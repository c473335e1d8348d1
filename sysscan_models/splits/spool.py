"""The spool: what each document became, kept on disk by content hash until all documents are known.

Every writing process has files of its own, three for each bucket: heads of a fixed size, signatures, and finished lines. Equal
documents meet in one bucket, and the buckets in their order are the documents in the order of their hashes, whoever wrote
them and when. Nothing here decides what is kept.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BUCKETS = 128
"""Files of each kind of each writer; the heads of one bucket at a time are held in memory."""

Heads = npt.NDArray[Any]
"""Structured rows of HEAD."""


HEAD = np.dtype(
    [
        ("key", "S32"),  # the content hash
        ("family", "u8"),  # hash of the family, 0 for none
        ("role", "u1"),  # index in the names of the roles, sorted
        ("sure", "u1"),  # 1 where the data itself named the role
        ("score", "f4"),
        ("kind", "u1"),  # index in KINDS
        ("characters", "u4"),
        ("writer", "u2"),
        ("row", "u4"),  # of the signature in its file
        ("length", "u4"),  # of the line, in bytes
        ("offset", "u8"),  # of the line in its file
    ]
)


def bucket_of(keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Return the number of the bucket of each key: their order is that of the keys."""
    first = np.frombuffer(keys.astype("S1").tobytes(), np.uint8).astype(np.int64)
    return first * BUCKETS // 256


class Writer:
    """Writes the documents of one process, some hundreds at a time. A context manager."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._stack = ExitStack()
        _allow_files(3 * BUCKETS + 100)
        names = [f"{bucket:03d}.{number:03d}" for bucket in range(BUCKETS)]
        self._heads = [self._stack.enter_context((folder / f"{name}.heads").open("wb", buffering=0)) for name in names]
        self._signatures = [
            self._stack.enter_context((folder / f"{name}.signatures").open("wb", buffering=0)) for name in names
        ]
        self._lines = [self._stack.enter_context((folder / f"{name}.lines").open("wb", buffering=0)) for name in names]
        self._sizes, self._rows = [0] * BUCKETS, [0] * BUCKETS

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, heads: Heads, signatures: npt.NDArray[np.uint32], lines: Sequence[bytes]) -> None:
        """Append documents, and keep nothing back; where a head's signature and line are is filled in here."""
        lengths = np.array([len(line) for line in lines], np.int64)
        heads["writer"], heads["length"] = self.number, lengths
        buckets = bucket_of(heads["key"])
        order = np.argsort(buckets, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
            bucket = int(buckets[rows[0]])
            ends = self._sizes[bucket] + np.cumsum(lengths[rows])
            heads["offset"][rows] = ends - lengths[rows]
            self._sizes[bucket] = int(ends[-1])
            heads["row"][rows] = self._rows[bucket] + np.arange(len(rows))
            self._rows[bucket] += len(rows)
            _write_whole(self._signatures[bucket], signatures[rows].tobytes())
            _write_whole(self._lines[bucket], b"".join([lines[row] for row in rows]))
            _write_whole(self._heads[bucket], heads[rows].tobytes())


def _allow_files(count: int) -> None:
    """Raise how many files this process may have open, where that is less; the system's own limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _write_whole(stream: FileIO, data: bytes) -> None:
    while data:
        data = data[stream.write(data) or 0 :]


class Lines:
    """The lines of one bucket, read from their files where they are asked for. A context manager."""

    def __init__(self, folder: Path, bucket: int) -> None:
        self._stack = ExitStack()
        self._maps: dict[int, Any] = {}
        for path in sorted(folder.glob(f"{bucket:03d}.*.lines")):
            if path.stat().st_size:
                stream = self._stack.enter_context(path.open("rb"))
                mapped = self._stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
                self._maps[int(path.name.split(".")[1])] = mapped

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, heads: Heads) -> list[bytes]:
        """Return the line of each head."""
        places = zip(heads["writer"].tolist(), heads["offset"].tolist(), heads["length"].tolist(), strict=True)
        return [self._maps[writer][offset : offset + length] for writer, offset, length in places]


def read_line(folder: Path, head: Any) -> bytes:
    """Return the line of one head, from any bucket."""
    bucket = head["key"][:1].ljust(1, b"\0")[0] * BUCKETS // 256
    with (folder / f"{bucket:03d}.{head['writer']:03d}.lines").open("rb", buffering=0) as stream:
        stream.seek(int(head["offset"]))
        return stream.read(int(head["length"]))


@dataclass(frozen=True)
class Copies:
    """Exact copies of documents that come earlier in the order: the heads of the ones and of the others."""

    kept: Heads
    dropped: Heads


def read_signatures(folder: Path, bucket: int, heads: Heads, values: int) -> npt.NDArray[np.uint32]:
    """Return the signature, of so many values, of each head of a bucket."""
    found = np.zeros((len(heads), values), np.uint32)
    for writer in np.unique(heads["writer"]).tolist():
        mine = np.flatnonzero(heads["writer"] == writer)
        path = folder / f"{bucket:03d}.{writer:03d}.signatures"
        found[mine] = np.memmap(path, np.uint32, "r").reshape(-1, values)[heads["row"][mine]]
    return found


def read_bucket(folder: Path, bucket: int) -> tuple[Heads, Copies]:
    """Return the heads of a bucket in the order of their keys, each key once, and the exact copies.

    Of equal documents the one whose role the data names is kept, then one with a family, then the first by its line, whoever
    wrote it.
    """
    paths = sorted(folder.glob(f"{bucket:03d}.*.heads"))
    heads = np.concatenate([np.fromfile(path, HEAD) for path in paths]) if paths else np.zeros(0, HEAD)
    heads = heads[np.argsort(heads["key"], kind="stable")]
    same = heads["key"][1:] == heads["key"][:-1]
    if not same.any():
        return heads, Copies(heads[:0], heads[:0])
    begins = np.flatnonzero(np.concatenate([[True], ~same]))
    ends = np.append(begins[1:], len(heads))
    with Lines(folder, bucket) as lines:
        for begin, end in zip(begins[ends - begins > 1].tolist(), ends[ends - begins > 1].tolist(), strict=True):
            run = heads[begin:end].copy()
            texts = lines.read(run)
            facts = zip((1 - run["sure"]).tolist(), run["family"].tolist(), texts, strict=True)
            rank = [(unsure, family == 0, family, text) for unsure, family, text in facts]
            heads[begin:end] = run[sorted(range(len(run)), key=rank.__getitem__)]
    first = np.zeros(len(heads), bool)
    first[begins] = True
    groups = np.repeat(begins, ends - begins)
    return heads[first], Copies(heads[groups[~first]], heads[~first])
