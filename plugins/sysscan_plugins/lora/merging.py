"""The merge: a base model and a LoRA adapter become one complete model, one block of a tensor at a time.

Every safetensors file keeps its header, byte for byte, and so its layout; tensors that no pair targets are copied as bytes. No
model is built, so neither transformers nor the memory for a model is needed: what is held is the adapter and one block. After
writing, every file is read back beside its original, which proves that nothing else moved and gives the hashes of both.

Arithmetic and rounding are peft's own (`merge_and_unload`): the product in float32, added to the weight in float32, rounded
once to the weight's type; for fused experts the product is rounded to that type first.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch

from sysscan_models.artifacts import (
    RECORD,
    BaseCheckpoint,
    Checkpoint,
    FileRecord,
    MergedCheckpoint,
    file_records,
    made_now,
    publish,
)
from sysscan_models.errors import IntegrityError, SysscanError, UserError
from sysscan_plugins.lora.pairs import CONFIG_FILE, WEIGHTS_FILE, Update, Updates, match, read_adapter
from sysscan_plugins.training.base_folder import INDEX, BaseFolder
from sysscan_plugins.training.tensor_file import StoredTensor, TensorFile, pieces

BLOCK = 1 << 21
"""Weights that are merged at a time: 8 MB of float32."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, writing and reading back counted alike."""

_TEMPLATE = "chat_template.jinja"
_GENERATION = "generation_config.json"
_CARRIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""What a base folder gives the merged model beside its weights: configuration, tokenizer, licence."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge_adapter(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    base: BaseCheckpoint | None = None,
    checkpoint: Checkpoint | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> MergedCheckpoint:
    """Merge a LoRA adapter in peft's layout into a base model in Hugging Face layout; return the saved artifact of `out_dir`.

    Works on plain folders. The records of base and adapter are used when they are given or lie in the folders: then the base
    must be the one that the adapter was trained on. `out_dir` appears when it is complete; an earlier merge there is replaced,
    anything else only with `replace`.

    Raises UserError when the adapter does not fit the base or has a feature that is not supported, IntegrityError when a file
    is damaged or not what its record says, SysscanError when the disk is too full or a merged weight is not finite.
    """
    base_dir, adapter_dir, out_dir = Path(base_dir), Path(adapter_dir), Path(out_dir).absolute()
    base = base or _record(BaseCheckpoint, base_dir)
    checkpoint = checkpoint or _record(Checkpoint, adapter_dir)
    _check_lineage(base, checkpoint, adapter_dir)
    folder = BaseFolder.open(base_dir)
    updates = match(read_adapter(adapter_dir), folder.tensors, tied=folder.tied)
    _check_target(out_dir, base_dir, adapter_dir, replace=replace)
    _check_space(out_dir, folder.size)
    temporary = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _merge(folder, adapter_dir, updates, temporary, base, checkpoint, progress).save(temporary)
        _replace(temporary, out_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return MergedCheckpoint.load(out_dir)


def _merge(
    folder: BaseFolder,
    adapter_dir: Path,
    updates: Updates,
    out_dir: Path,
    base: BaseCheckpoint | None,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> MergedCheckpoint:
    """Write the merged model's files, prove them, and return their record, not yet saved."""
    started = time.monotonic()
    meter = _Meter(2 * folder.size, progress)
    carried = _carry(folder, adapter_dir, out_dir)
    applied = [part for file in folder.files for part in _write(file, out_dir / file.path.name, updates, meter)]
    _check_applied(applied, updates)
    proof = _Proof(updates)
    for file in folder.files:
        proof.compare(file, out_dir / file.path.name, meter)
    proof.check(base, adapter_dir)
    adapter = checkpoint.digest if checkpoint else _digest(file_records(adapter_dir, (CONFIG_FILE, WEIGHTS_FILE)))
    return MergedCheckpoint(
        role=checkpoint.role if checkpoint else "",
        inputs={"base": base.digest if base else _digest(proof.sources), "checkpoint": adapter},
        options={"trainer": "lora"},
        seed=checkpoint.seed if checkpoint else 0,
        files={**file_records(out_dir, carried), **proof.written},
        made={**made_now(seconds=time.monotonic() - started, device="cpu", packages=("torch",)), **proof.figures()},
    )


@dataclass
class _Meter:
    """Counts bytes for the caller's progress."""

    total: int
    report: Progress | None
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.report:
            self.report(self.done, self.total)


def _record(kind: type[Any], folder: Path) -> Any:
    """Return the folder's record, or None for a plain folder; a record of another stage is none of ours."""
    try:
        stage = orjson.loads((folder / RECORD).read_bytes()).get("stage")
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError, AttributeError) as error:
        raise IntegrityError(f"{folder / RECORD} cannot be read ({error}); remove it to merge plain folders") from error
    return kind.load(folder) if stage == kind.stage else None


def _check_lineage(base: BaseCheckpoint | None, checkpoint: Checkpoint | None, adapter_dir: Path) -> None:
    if checkpoint is None:
        return
    if checkpoint.kind != "adapter":
        raise UserError(f"{adapter_dir} holds a checkpoint of kind {checkpoint.kind!r}; only 'adapter' needs a merge")
    checkpoint.at(adapter_dir).check_files(contents=True)
    trained_on = checkpoint.inputs.get("base")
    if base is not None and trained_on not in (None, base.digest):
        raise UserError(
            f"{adapter_dir} was trained on the base with digest {trained_on}, but {base.reference} has {base.digest}. "
            f"Give the base that it was trained on, or train it again"
        )


def _check_target(out_dir: Path, *sources: Path, replace: bool) -> None:
    for source in (source.resolve() for source in sources):
        if source == out_dir.resolve() or out_dir.resolve() in source.parents:
            raise UserError(f"the merged model cannot be written to {out_dir}: {source} is an input. Choose another folder")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; expected a folder that does not exist yet")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not replace and _record(MergedCheckpoint, out_dir) is None:
        raise UserError(f"{out_dir} is not empty and holds no earlier merge. Choose another folder, or remove it")


def _check_space(out_dir: Path, needed: int) -> None:
    existing = next(folder for folder in out_dir.parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SysscanError(
            f"the merged model needs {needed:,} bytes in {out_dir.parent}; {free:,} are free. Make room, or choose another disk"
        )


def _carry(folder: BaseFolder, adapter_dir: Path, out_dir: Path) -> list[str]:
    """Copy the base's configuration and tokenizer, the adapter's template and generation settings; return the names."""
    index = {INDEX} if folder.sharded else set()
    paths = {path.name: path for pattern in _CARRIED for path in folder.path.glob(pattern) if path.is_file()}
    contents = {
        name: path.read_bytes()
        for name, path in paths.items()
        if name != RECORD and not name.startswith(".") and (name in index or not name.endswith(".index.json"))
    }
    if template := _chat_template(adapter_dir):
        contents[_TEMPLATE] = template
    if (adapter_dir / _GENERATION).is_file():
        contents[_GENERATION] = (adapter_dir / _GENERATION).read_bytes()
    for name, content in contents.items():
        with (out_dir / name).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return list(contents)


def _chat_template(adapter_dir: Path) -> bytes:
    """Return the adapter folder's template, from its own file or from its tokenizer's configuration; empty when it has none."""
    if (adapter_dir / _TEMPLATE).is_file():
        return (adapter_dir / _TEMPLATE).read_bytes()
    config = adapter_dir / "tokenizer_config.json"
    try:
        template = orjson.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise IntegrityError(f"{config} is damaged ({error}); save the adapter's tokenizer again") from error
    return template.encode() if isinstance(template, str) else b""


def _write(source: TensorFile, target: Path, updates: Updates, meter: _Meter) -> list[Update]:
    """Write one file of the merged model; return the updates that went into it."""
    applied: list[Update] = []
    with source.path.open("rb") as reader, target.open("wb") as writer:
        reader.seek(len(source.header))
        writer.write(source.header)
        meter.add(len(source.header))
        for tensor in source.tensors:
            parts = updates.get(tensor.name)
            for piece in pieces(reader, tensor.size) if parts is None else _merged(reader, tensor, parts):
                writer.write(piece)
                meter.add(len(piece))
            applied += parts or ()
        writer.flush()
        os.fsync(writer.fileno())
    return applied


def _merged(reader: BinaryIO, tensor: StoredTensor, parts: tuple[Update, ...]) -> Iterator[bytes | memoryview]:
    """Read a tensor and yield its merged bytes, block by block."""
    dtype, width = _DTYPES[tensor.dtype], tensor.shape[-1]
    for part in parts:
        # Blocks of nearly equal size: a last block of one row would go another way through the BLAS and round differently.
        count = math.ceil(part.rows * width / BLOCK)
        for b in part.b.tensor_split(count):
            weight = torch.frombuffer(_exactly(reader, b.shape[0] * width * dtype.itemsize), dtype=dtype).view(-1, width)
            delta = (b @ part.a).mul_(part.scale)
            merged = weight.float().add_(delta.to(dtype) if part.rounded else delta).to(dtype)
            if not torch.isfinite(merged).all():
                raise SysscanError(
                    f"{tensor.name} is not finite after the merge: {part.pair} is broken, or {tensor.dtype} cannot hold it"
                )
            yield merged.view(torch.uint8).numpy().data.cast("B")


def _exactly(reader: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    if reader.readinto(data) != size:  # type: ignore[attr-defined]
        raise IntegrityError(f"{reader.name} ended too early; it changed while it was read")
    return data


def _check_applied(applied: list[Update], updates: Updates) -> None:
    """Raise when an update of the plan went into no tensor: a fault of ours that must never pass for a merge."""
    left = {part.pair for parts in updates.values() for part in parts} - {part.pair for part in applied}
    if left or len(applied) != sum(map(len, updates.values())):
        raise IntegrityError(f"the merge left {len(left)} adapter pairs unapplied: {', '.join(sorted(left)[:4])}")


@dataclass
class _Proof:
    """What reading both models back showed: hashes of both, and which tensors are another than in the base."""

    updates: Updates
    sources: dict[str, FileRecord] = field(default_factory=dict)
    written: dict[str, FileRecord] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def compare(self, source: TensorFile, target: Path, meter: _Meter) -> None:
        """Compare one file with its original, tensor by tensor; raise IntegrityError when something else moved."""
        before, after = hashlib.sha256(), hashlib.sha256()
        with source.path.open("rb") as old, target.open("rb") as new:
            for name, size in [("the header", len(source.header)), *((tensor.name, tensor.size) for tensor in source.tensors)]:
                for ours, theirs in zip(pieces(new, size), pieces(old, size), strict=True):
                    before.update(theirs)
                    after.update(ours)
                    meter.add(len(ours))
                    if ours == theirs:
                        continue
                    if name not in self.updates:
                        raise IntegrityError(f"{target.name}: {name} differs from the base, though no adapter pair targets it")
                    self.changed.add(name)
        self.sources[source.path.name] = FileRecord(size=source.size, sha256=before.hexdigest())
        self.written[target.name] = FileRecord(size=source.size, sha256=after.hexdigest())

    def check(self, base: BaseCheckpoint | None, adapter_dir: Path) -> None:
        """Raise when the base is not what its record says, or the adapter changed nothing."""
        for name, got in self.sources.items():
            if base and name in base.files and base.files[name] != got:
                raise IntegrityError(
                    f"{name} of {base.reference} has SHA-256 {got.sha256}; its record expects {base.files[name].sha256}"
                )
        if not self.changed:
            raise UserError(
                f"merging {adapter_dir} changes no weight: all of its lora_B are zero or too small. Was it trained?"
            )

    def figures(self) -> dict[str, Any]:
        """Return what a person wants to know: tensors that were merged, and those of them that rounding left as they were."""
        return {"merged_tensors": len(self.updates), "unchanged": sorted(self.updates.keys() - self.changed)}


def _digest(records: dict[str, FileRecord]) -> str:
    return hashlib.sha256(
        orjson.dumps({name: record.sha256 for name, record in records.items()}, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


def _replace(temporary: Path, out_dir: Path) -> None:
    """Put the finished folder into place; an earlier merge is moved aside first and removed last."""
    folder = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    aside = out_dir.with_name(f".{out_dir.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out_dir.exists():
        out_dir.replace(aside)
    publish(temporary, out_dir)
    shutil.rmtree(aside, ignore_errors=True)
