"""GGUF files as files: writing one from a plan, splitting one, reading one back.

A file is written under whatever name it is given; publishing it under its final name is the caller's. Shards are named as
llama.cpp names them, NAME-00001-of-0000N.gguf, and the first is the one that a loader opens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.gguf_export.architecture import PlannedTensor
from sysscan_plugins.gguf_export.tensors import load, stored_bytes, stored_type

Describe = Callable[[GGUFWriter], None]
Advance = Callable[[int], None]
"""Called with the number of bytes that were written since the last call."""


class WrittenTensor(NamedTuple):
    """What a GGUF file says of one tensor; the shape is in numpy's order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    elements: int


def metadata(describe: Describe) -> dict[str, Any]:
    """Return the metadata that a description adds, by key."""
    writer = GGUFWriter(None, "llama")
    describe(writer)
    return {key: entry.value for key, entry in writer.kv_data[0].items()}


def write(
    file: Path,
    describe: Describe,
    tensors: Sequence[PlannedTensor],
    file_type: GGMLQuantizationType,
    *,
    max_bytes: int = 0,
    advance: Advance = lambda _: None,
) -> list[Path]:
    """Write tensors in 16 or 32 bits, one at a time, to `file` or its shards of at most `max_bytes`; return the files."""

    def planned(target: Path, limit: int) -> GGUFWriter:
        writer = GGUFWriter(target, "llama", split_max_size=limit)
        describe(writer)
        for tensor in tensors:
            kind, size = stored_type(tensor, file_type), stored_bytes(tensor, file_type)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
        return writer

    limit = _tensor_limit(file, max_bytes, planned, len(tensors)) if max_bytes else 0
    with closing(planned(file, limit)) as writer:
        files = _write_header(writer)
        for tensor in tensors:
            data = load(tensor, file_type)
            writer.write_tensor_data(data)
            advance(data.nbytes)
    return files


def split(source: Path, file: Path, max_bytes: int, advance: Advance = lambda _: None) -> list[Path]:
    """Copy a GGUF file into shards of at most `max_bytes` (one file, if it fits), bit for bit; return the files."""
    reader = GGUFReader(source)

    def planned(target: Path, limit: int) -> GGUFWriter:
        writer = GGUFWriter(target, _contents(reader)["general.architecture"], split_max_size=limit)
        for key, entry in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                kind = entry.types[0]
                nested = entry.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(key, entry.contents(), kind, sub_type=nested)
        for tensor in reader.tensors:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type)
        return writer

    with closing(planned(file, _tensor_limit(file, max_bytes, planned, len(reader.tensors)))) as writer:
        files = _write_header(writer)
        for tensor in reader.tensors:
            writer.write_tensor_data(tensor.data)
            advance(tensor.data.nbytes)
    return files


def read_back(files: Sequence[Path], expected: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> list[WrittenTensor]:
    """Parse what was written and compare it with what was planned; return the tensors.

    Raises IntegrityError when a file does not parse or is cut off, and when metadata, names or shapes are not as planned.
    """
    found: list[WrittenTensor] = []
    for file in files:
        try:
            reader = GGUFReader(file)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise IntegrityError(
                f"{file.name} does not read back as GGUF ({error}); the disk or the memory may be faulty"
            ) from error
        if file == files[0]:
            _compare_metadata(file, _contents(reader), expected)
        for tensor in reader.tensors:
            shape = tuple(int(size) for size in reversed(tensor.shape))
            found.append(WrittenTensor(tensor.name, shape, tensor.tensor_type, int(tensor.n_elements)))
    shapes = {tensor.name: tensor.shape for tensor in found}
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    wrong = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if wrong or len(found) != len(tensors):
        name = wrong[0] if wrong else "a repeated tensor"
        raise IntegrityError(
            f"{files[0].name} reads back with {len(found)} tensors, {len(tensors)} were planned; first difference: {name}, "
            f"planned {wanted.get(name)}, found {shapes.get(name)}"
        )
    return found


def sync(file: Path) -> None:
    """Wait until a file's contents are on the disk."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_shard_of(file: Path, whole: Path) -> bool:
    """Say whether a file has the name of a shard of `whole`."""
    return re.fullmatch(rf"{re.escape(whole.stem)}-\d{{5}}-of-\d{{5}}\.gguf", file.name) is not None


def _write_header(writer: GGUFWriter) -> list[Path]:
    """Write everything but the tensors; return the files, which are named by how many shards the plan needs."""
    if len(writer.tensors) == 1:
        writer.split_max_size = 0  # else gguf warns that there is nothing to split
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.path is not None
    return list(writer.format_shard_names(writer.path))


def _tensor_limit(file: Path, max_bytes: int, planned: Callable[[Path, int], GGUFWriter], count: int) -> int:
    """Return how many bytes of tensors fit into a shard beside the metadata, which the first one carries whole."""
    scratch = file.with_name(f"{file.stem}.header")
    with closing(planned(scratch, 0)) as writer:
        _write_header(writer)
    header = scratch.stat().st_size + gguf.GGUF_DEFAULT_ALIGNMENT * (count + 1)
    scratch.unlink()
    if header >= max_bytes:
        raise UserError(f"max_shard_size is {max_bytes} bytes, but the metadata (tokenizer and all) takes {header}; raise it")
    return int(max_bytes - header)


def _contents(reader: GGUFReader) -> dict[str, Any]:
    return {key: entry.contents() for key, entry in reader.fields.items()}


def _compare_metadata(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if _as_stored(value) != found.get(key):
            raise IntegrityError(
                f"{file.name}: metadata {key!r} reads back as {str(found.get(key))[:80]!r}, not {str(value)[:80]!r}"
            )


def _as_stored(value: Any) -> Any:
    """Return a value as it comes back: floats are stored in 32 bits, enumerations as their numbers."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], float):
        return np.asarray(value, dtype=np.float32).tolist()
    return list(value) if isinstance(value, tuple) else value
