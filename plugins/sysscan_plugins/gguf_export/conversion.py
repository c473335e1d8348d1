"""The whole way from a model folder to a published GGUF model, one step after the other.

Everything that can be refused is refused before the first byte is written. Work happens in a folder beside `out`; what is
published was read back, hashed and fsynced before, so a file under its final name is a finished one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType, LlamaFileType
from pydantic import ValidationError

from sysscan_models.artifacts import QuantizedModel, file_records, made_now, publish, record_path
from sysscan_models.errors import ConfigError, SysscanError, UserError
from sysscan_plugins.gguf_export import GGUF, UNQUANTIZED, gguf_file, llamacpp, size_in_bytes
from sysscan_plugins.gguf_export.architecture import Architecture, PlannedTensor
from sysscan_plugins.gguf_export.checkpoint import HuggingFaceFolder
from sysscan_plugins.gguf_export.imatrix import read_imatrix
from sysscan_plugins.gguf_export.parity import check_parity
from sysscan_plugins.gguf_export.tensors import stored_bytes
from sysscan_plugins.gguf_export.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all; the second may be an estimate."""

_EXTRA_KEY = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_LARGEST_BITS = 8.5  # of Q8_0, the widest type that a quantized file falls back to


@dataclass(frozen=True)
class About:
    """What the file says about itself: name, licence, base model, and any further metadata by dotted key."""

    name: str = ""
    licence: str = ""
    base_model: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add it to a GGUF file's metadata."""
        writer.add_name(self.name)
        writer.add_license(self.licence)
        if self.base_model:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, self.base_model)
        for key, value in sorted(self.extra.items()):
            if not _EXTRA_KEY.fullmatch(key) or key in writer.kv_data[0]:
                raise UserError(
                    f"extra metadata {key!r} cannot be written; expected a dotted key such as sysscan.dataset, not in use"
                )
            writer.add_string(key, value)


@dataclass(frozen=True)
class Plan:
    """All that is known before anything is written."""

    folder: Path
    options: GGUF
    about: About
    architecture: Architecture
    vocabulary: Vocabulary
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]

    @property
    def file_type(self) -> LlamaFileType:
        """The type of the result, as llama.cpp numbers it."""
        return LlamaFileType["ALL_F32" if self.options.type == "F32" else f"MOSTLY_{self.options.type}"]

    @property
    def unquantized(self) -> GGMLQuantizationType:
        """Type of the file that our own converter writes: the result itself, or what llama.cpp quantizes."""
        if self.options.type in UNQUANTIZED:
            return GGMLQuantizationType[self.options.type]
        half = all(slab.source.dtype == "F16" for tensor in self.tensors for slab in tensor.slabs)
        return GGMLQuantizationType.F16 if half else GGMLQuantizationType.BF16

    @property
    def unquantized_bytes(self) -> int:
        """Tensor bytes that our own converter writes."""
        kind = self.unquantized
        return sum(stored_bytes(tensor, kind) for tensor in self.tensors)

    @property
    def quantized_bytes(self) -> int:
        """Upper bound of the tensor bytes that llama.cpp writes; 0 when it is not needed."""
        if self.options.type in UNQUANTIZED:
            return 0
        return sum(int(tensor.elements * (32 if tensor.always_f32 else _LARGEST_BITS)) // 8 for tensor in self.tensors)

    @property
    def disk_bytes(self) -> int:
        """Most that is on the disk at any time while the model is made."""
        both = self.unquantized_bytes + self.quantized_bytes
        shards = 2 * self.quantized_bytes if self.options.max_shard_size else 0
        return max(both, shards) + (64 << 20)

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add all metadata of the file that our own converter writes."""
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_file_type(
            self.file_type if self.options.type in UNQUANTIZED else LlamaFileType[f"MOSTLY_{self.unquantized.name}"]
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.architecture.describe(writer)
        self.vocabulary.describe(writer)
        self.about.describe(writer)


def export(
    hf_dir: Path,
    out: Path,
    *,
    type: str = "Q4_K_M",
    max_shard_size: str = "",
    imatrix: Path | None = None,
    threads: int = 0,
    about: About | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Convert a plain folder in Hugging Face layout to a GGUF model and return its (unsaved) record.

    The options are those of the quantizer `gguf`. Raises ConfigError for options, UserError for a model that is not supported,
    IntegrityError for damaged files, SysscanError when the disk is too small or llama.cpp fails; `out` is untouched then.
    """
    try:
        options = GGUF(type=type, max_shard_size=max_shard_size, imatrix=imatrix, threads=threads)
    except ValidationError as error:
        raise ConfigError((fault["msg"].removeprefix("Value error, ") for fault in error.errors()), "the export") from None
    return convert(hf_dir, out, options, about or About(), progress=progress)


def check(hf_dir: Path, options: GGUF) -> None:
    """Do everything that needs no weights: raise what `convert` would raise before it writes."""
    plan(hf_dir, options, About())


def plan(hf_dir: Path, options: GGUF, about: About) -> Plan:
    """Read config, tokenizer and tensor headers, and decide what to write. Reads no weights, writes nothing."""
    folder = HuggingFaceFolder.open(hf_dir)
    architecture = Architecture.of(folder.config)
    tensors = tuple(architecture.plan(folder))
    vocabulary = Vocabulary.of(hf_dir, architecture.vocab_size)
    notes = [*architecture.notes, check_parity(vocabulary, hf_dir)]
    if vocabulary.space_prefix in ("first", "always"):
        notes.append("text that begins with a space gets one space more from llama.cpp than from the model's own tokenizer")
    if options.imatrix is not None:
        _check_imatrix(options, tensors)
    about = about if about.name else replace(about, name=hf_dir.resolve().name)
    return Plan(hf_dir, options, about, architecture, vocabulary, tensors, tuple(note for note in notes if note))


def convert(hf_dir: Path, out: Path, options: GGUF, about: About, *, progress: Progress | None = None) -> QuantizedModel:
    """Make the GGUF model `out` from a model folder; see `export` for what is returned and raised."""
    started = time.monotonic()
    if out.suffix != ".gguf" or out.is_dir():
        raise UserError(f"{out} cannot be the GGUF model; expected the name of a file that ends in .gguf")
    planned = plan(hf_dir, options, about)
    expected = {**gguf_file.metadata(planned.describe), "general.file_type": int(planned.file_type)}
    with _workspace(out) as work:
        _check_disk(planned, work)
        try:
            files = _write(planned, work / out.name, _Steps(planned, progress))
            written = gguf_file.read_back(files, expected, planned.tensors)
            for file in files:
                gguf_file.sync(file)
            records = file_records(work, [file.name for file in files])
            _publish(files, out)
        except OSError as error:
            raise SysscanError(
                f"writing {out.name} in {out.parent} failed: {error}. Nothing was left under that name"
            ) from error
    by_type = Counter[str]()
    for tensor in written:
        by_type[tensor.type.name] += tensor.elements
    return QuantizedModel(
        options=options.keyed(),
        files=records,
        made=made_now(seconds=time.monotonic() - started, packages=("gguf", "llama-cpp-python", "numpy")),
        file=files[0].name,
        type=options.type,
        parameters=sum(tensor.elements for tensor in planned.tensors if not tensor.values),
        weights_by_type=dict(by_type.most_common()),
        architecture="llama",
        context_length=planned.architecture.context_length,
        notes=(*planned.notes, *_fallbacks(planned, written), *_oversized(planned, files, records)),
    ).at(out.parent)


class _Steps:
    """Adds up the bytes of all steps for the progress callback."""

    def __init__(self, planned: Plan, progress: Progress | None) -> None:
        copies = 2 if planned.options.max_shard_size and planned.quantized_bytes else 1
        self.total = planned.unquantized_bytes + copies * planned.quantized_bytes
        self.done = 0
        self.progress = progress or (lambda _done, _total: None)

    def advance(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        self.progress(self.done, self.total)

    def watch(self, file: Path, step: int) -> Callable[[], None]:
        """Return a function that reports a growing file, which will have at most `step` bytes, without counting it as done."""

        def look() -> None:
            size = file.stat().st_size if file.exists() else 0
            self.progress(self.done + min(size, step), self.total)

        return look


def _write(planned: Plan, out: Path, steps: _Steps) -> list[Path]:
    limit = size_in_bytes(planned.options.max_shard_size) if planned.options.max_shard_size else 0
    kind = planned.unquantized
    if planned.options.type in UNQUANTIZED:
        return gguf_file.write(out, planned.describe, planned.tensors, kind, max_bytes=limit, advance=steps.advance)
    source, whole = out.with_name("unquantized.gguf"), out.with_name("whole.gguf") if limit else out
    gguf_file.write(source, planned.describe, planned.tensors, kind, advance=steps.advance)
    imatrix = read_imatrix(planned.options.imatrix) if planned.options.imatrix else None
    watch = steps.watch(whole, planned.quantized_bytes)
    llamacpp.quantize(source, whole, int(planned.file_type), imatrix=imatrix, threads=planned.options.threads, watch=watch)
    source.unlink()
    steps.advance(planned.quantized_bytes)
    if not limit:
        return [whole]
    # split only now: shards of the unquantized file would come out a third of the size asked for
    files = gguf_file.split(whole, out, limit, steps.advance)
    whole.unlink()
    steps.advance(steps.total)
    return files


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, and remove it whatever happens; one that a killed export left is taken over."""
    work = out.with_name(f".{out.name}.tmp")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error}") from error
    handle = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SysscanError(
                f"{out} is being written by another export right now; wait for it or choose another name"
            ) from None
        try:
            for left in work.iterdir():
                left.unlink()
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(handle)


def _publish(files: Sequence[Path], out: Path) -> None:
    """Rename finished files into place, the one that a loader opens last, and remove what an earlier export left."""
    record_path(out).unlink(missing_ok=True)  # it describes the earlier file
    names = {file.name for file in files}
    for old in out.parent.iterdir():
        if (old == out or gguf_file.is_shard_of(old, out)) and old.name not in names:
            old.unlink()
    for file in reversed(files):
        publish(file, out.with_name(file.name))


def _check_disk(planned: Plan, work: Path) -> None:
    free = shutil.disk_usage(work).free
    if free < planned.disk_bytes:
        raise SysscanError(
            f"exporting {planned.folder} as {planned.options.type} needs up to {planned.disk_bytes / 1e9:.1f} GB in "
            f"{work.parent}, {free / 1e9:.1f} GB are free; free some, or write to another disk"
        )


def _check_imatrix(options: GGUF, tensors: Sequence[PlannedTensor]) -> None:
    assert options.imatrix is not None
    found = read_imatrix(options.imatrix)
    used = [tensor for tensor in tensors if tensor.name in found]
    if not used:
        raise UserError(
            f"imatrix {str(options.imatrix)!r} has entries for none of the model's tensors; it belongs to another model"
        )
    for tensor in used:
        columns = tensor.shape[-1] * (tensor.shape[0] if len(tensor.shape) == 3 else 1)
        if found[tensor.name].size != columns:
            raise UserError(
                f"imatrix {str(options.imatrix)!r} has {found[tensor.name].size} numbers for {tensor.name}, the model needs "
                f"{columns}; it belongs to another model"
            )


def _fallbacks(planned: Plan, written: Sequence[gguf_file.WrittenTensor]) -> Iterator[str]:
    """Say which share of the weights could not have the type asked for, because 256 does not divide their width."""
    kind = planned.options.type
    if kind == "IQ4_NL" or not ("_K" in kind or kind.startswith(("IQ", "TQ"))):
        return  # those have blocks of 32
    fallen = Counter[str]()
    for tensor in written:
        if tensor.shape[-1] % gguf.QK_K and len(tensor.shape) > 1 and tensor.type.name not in UNQUANTIZED:
            fallen[tensor.type.name] += tensor.elements
    total = sum(tensor.elements for tensor in written)
    if fallen:
        types = ", ".join(f"{count / total:.0%} as {name}" for name, count in fallen.most_common())
        yield (
            f"{sum(fallen.values()) / total:.0%} of the weights are in rows that {gguf.QK_K} does not divide, which {kind} "
            f"cannot hold; llama.cpp stored them larger: {types}"
        )


def _oversized(planned: Plan, files: Sequence[Path], records: Mapping[str, Any]) -> Iterator[str]:
    limit = size_in_bytes(planned.options.max_shard_size) if planned.options.max_shard_size else 0
    large = [file.name for file in files if limit and records[file.name].size > limit]
    if large:
        yield f"{', '.join(large)} exceed {planned.options.max_shard_size}: a single tensor does, and tensors are not divided"
