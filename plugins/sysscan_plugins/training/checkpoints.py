"""Checkpoints of an unfinished run: tensors and a JSON marker, written so that a kill at any moment leaves the one before.

A checkpoint is a folder `checkpoint-STEP`. It is filled under a temporary name, its marker `state.json` last, everything
fsynced, then renamed. What is incomplete, damaged or of another run is removed with a message. The tensors are the device's to
write: safetensors on one device, torch.distributed.checkpoint's files on several.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from sysscan_models.artifacts import FileRecord, publish, write_atomically

if TYPE_CHECKING:
    import torch

    from sysscan_plugins.training.devices import Device

SHARD_BYTES = 2 << 30
MARKER = "state.json"


@contextmanager
def saving(folder: Path, state: dict[str, Any], device: Device, *, keep: int) -> Iterator[Path]:
    """Give a folder to write the tensors of `state["step"]` into, then complete it and remove all but the newest `keep`.

    All processes go through this together; the first one makes the folder and completes it.
    """
    target = place(folder, state["step"])
    temporary = folder / f".{target.name}.tmp"
    if device.process == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    device.wait()
    yield temporary
    device.wait()
    if device.process == 0:
        files = {path.name: FileRecord.of(path).model_dump() for path in sorted(temporary.iterdir())}
        write_atomically(temporary / MARKER, orjson.dumps({**state, "files": files}, option=orjson.OPT_INDENT_2))
        shutil.rmtree(target, ignore_errors=True)
        publish(temporary, target)
        for old in sorted(folder.glob("checkpoint-*"))[:-keep]:
            shutil.rmtree(old)
    device.wait()


def place(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return folder / f"checkpoint-{step:08d}"


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write CPU tensors into files of about SHARD_BYTES, so that copies from an accelerator need no more memory than that."""
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    number = size = 0

    def flush() -> None:
        path = folder / f"state-{number:05d}.safetensors"
        save_file(shard, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            flush()
            shard, number, size = {}, number + 1, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    flush()


def latest(folder: Path, run: str, note: Callable[[str], None], *, contents: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest usable checkpoint of this run and its state, or None; without `contents` no hash is compared.

    What comes after it and cannot be used is removed, for it would stand in the way of what this run saves; `note` is told why.
    """
    for leftover in folder.glob(".checkpoint-*.tmp"):
        note(f"{leftover.name}: writing was interrupted; removed")
        shutil.rmtree(leftover)
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            state = orjson.loads((path / MARKER).read_bytes())
            fault = _fault(path, state, run, contents=contents)
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            fault = f"its {MARKER} cannot be read ({type(error).__name__})"
        if fault is None:
            return path, state
        note(f"{path.name}: {fault}; removed")
        shutil.rmtree(path)
    return None


def _fault(path: Path, state: dict[str, Any], run: str, *, contents: bool) -> str | None:
    """Return why a checkpoint cannot be used, or None."""
    if state["run"] != run:
        return "it belongs to a run with other data, options or base model"
    for name, expected in state["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if contents and FileRecord.of(path / name) != FileRecord.model_validate(expected):
            return f"{name} is damaged"
    return None


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint, one at a time, whole ones, on the CPU."""
    if is_sharded(path):
        yield from _whole_tensors(path)
        return
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, stored.get_tensor(name)


def is_sharded(path: Path) -> bool:
    """Say whether several devices wrote a checkpoint together."""
    return (path / ".metadata").is_file()


def _whole_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    for name, stored in FileSystemReader(path).read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        whole = torch.empty(stored.size, dtype=stored.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is")  # no other process is wanted here
            load({name: whole}, storage_reader=FileSystemReader(path), no_dist=True)
        yield name, whole
