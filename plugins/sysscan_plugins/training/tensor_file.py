"""A safetensors file as what it is on disk: a header, then the tensors' bytes one after another.

The library's own writer wants every tensor of a file at once. A merge changes no name, type, shape or offset, so it needs only
the header, copied as it is, and the bytes, piece by piece. This module holds the layout and the pieces; it knows nothing of
models or adapters, and never interprets a tensor's values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from sysscan_models.errors import IntegrityError

PIECE = 1 << 23
"""Bytes that are read at a time."""

_HEADER_LIMIT = 100_000_000  # the format's own limit
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` and `end` are offsets from the beginning of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file: its header's bytes (length prefix included) and its tensors in the order of their bytes."""

    path: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.tensors[-1].end if self.tensors else len(self.header)

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read and check the header; raise IntegrityError when the file is damaged or cut short.

        Source: the format's specification. The tensors' bytes must follow each other without a hole to the file's end.
        """
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > _HEADER_LIMIT:
                raise IntegrityError(f"{path} is not a safetensors file, or its header is damaged; fetch it again")
            text = stream.read(length)
        try:
            tensors = _tensors(text, first=8 + length)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path}: the safetensors header is damaged ({error}); fetch the file again") from error
        found = cls(path, prefix + text, tensors)
        if (actual := path.stat().st_size) != found.size:
            raise IntegrityError(f"{path} has {actual} bytes; its header expects {found.size}. Fetch the file again")
        return found


def _tensors(text: bytes, first: int) -> tuple[StoredTensor, ...]:
    entries = orjson.loads(text)
    entries.pop("__metadata__", None)
    tensors = []
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), first + start, first + end))
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    position = first
    for tensor in tensors:
        width = _BYTES.get(tensor.dtype)
        if tensor.start != position or tensor.end < tensor.start:
            raise ValueError(f"tensor {tensor.name!r} does not start where the one before it ends")
        if width is not None and tensor.size != width * math.prod(tensor.shape):
            raise ValueError(f"tensor {tensor.name!r} of {tensor.dtype} {list(tensor.shape)} has {tensor.size} bytes")
        position = tensor.end
    return tuple(tensors)


def pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes of a stream in pieces of at most PIECE; raise IntegrityError when it ends before."""
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise IntegrityError(f"{stream.name} ended {size} bytes too early; it changed while it was read")
        size -= len(piece)
        yield piece
