"""Checkpoints of an unfinished run: safetensors and a JSON marker, written so that a kill at any moment leaves the one before.

A checkpoint is a folder `checkpoint-STEP`. It is filled under a temporary name, its marker `state.json` last, everything
fsynced, then renamed. What is incomplete, damaged or of another run is removed with a message. Nothing is pickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import torch

from sysscan_models.artifacts import FileRecord, publish, write_atomically

SHARD_BYTES = 2 << 30
MARKER = "state.json"


def save(folder: Path, state: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], *, keep: int) -> Path:
    """Write a checkpoint of CPU tensors for `state["step"]`, remove all but the newest `keep`, and return its folder."""
    target = folder / f"checkpoint-{state['step']:08d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = {path.name: FileRecord.of(path).model_dump() for path in _write_shards(temporary, tensors)}
    write_atomically(temporary / MARKER, orjson.dumps({**state, "files": files}, option=orjson.OPT_INDENT_2))
    shutil.rmtree(target, ignore_errors=True)
    publish(temporary, target)
    for old in sorted(folder.glob("checkpoint-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def _write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Path]:
    """Write tensors into files of about SHARD_BYTES, so that copies from an accelerator need no more memory than that."""
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    number = size = 0

    def flush() -> Path:
        path = folder / f"state-{number:05d}.safetensors"
        save_file(shard, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        return path

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield flush()
            shard, number, size = {}, number + 1, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield flush()


def latest(folder: Path, run: str, note: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest usable checkpoint of this run and its state, or None.

    What comes after it and cannot be used is removed, for it would stand in the way of what this run saves; `note` is told why.
    """
    for leftover in folder.glob(".checkpoint-*.tmp"):
        note(f"{leftover.name}: writing was interrupted; removed")
        shutil.rmtree(leftover)
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            state = orjson.loads((path / MARKER).read_bytes())
            fault = _fault(path, state, run)
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            fault = f"its {MARKER} cannot be read ({type(error).__name__})"
        if fault is None:
            return path, state
        note(f"{path.name}: {fault}; removed")
        shutil.rmtree(path)
    return None


def _fault(path: Path, state: dict[str, Any], run: str) -> str | None:
    """Return why a checkpoint cannot be used, or None."""
    if state["run"] != run:
        return "it belongs to a run with other data, options or base model"
    for name, expected in state["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if FileRecord.of(path / name) != FileRecord.model_validate(expected):
            return f"{name} is damaged"
    return None


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint, one at a time."""
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, stored.get_tensor(name)
