"""The frozen records that pass between stages, and how they are written, read and checked.

An artifact holds paths, strings and numbers, never tensors. It is written last and atomically, beside the files that it
describes, so a missing artifact means an unfinished stage. Its `digest` covers what was made and from what; library versions,
device, duration and time are recorded outside of it (`made`). File paths are relative to the artifact's own folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from sysscan_models.errors import IntegrityError, UserError

RECORD = "artifact.json"
"""Name of the record inside an artifact's folder; a single file FILE has its record in FILE.json instead."""

A = TypeVar("A", bound="Artifact")


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file and return its record."""
        return cls(size=path.stat().st_size, sha256=sha256_file(path))


class Artifact(BaseModel):
    """What every stage returns. Subclasses add the facts of their stage; `stage` and `format_version` name it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: ClassVar[str]
    format_version: ClassVar[int] = 1

    role: str = ""
    """Role that it belongs to; empty where it belongs to none (a base model, a package)."""
    inputs: dict[str, str] = {}
    """Digest of each thing that it was made from, by name."""
    options: dict[str, Any] = {}
    """The options that affect the result."""
    seed: int = 0
    files: dict[str, FileRecord] = {}
    """What it holds, by path relative to its folder."""
    made: dict[str, Any] = {}
    """Versions, device, seconds and time: for people, outside the digest."""

    _root: Path | None = PrivateAttr(default=None)

    @property
    def root(self) -> Path:
        """Folder that the relative paths start from; known once the artifact was saved, loaded or placed with `at`."""
        if self._root is None:
            raise RuntimeError(f"this {self.stage} artifact was neither saved nor loaded")
        return self._root

    def at(self: A, root: Path) -> A:
        """Return the artifact with its folder set."""
        placed = self.model_copy()
        placed._root = Path(root)
        return placed

    @property
    def key(self) -> str:
        """SHA-256 of what decides the result: stage, format, role, inputs, options, seed. Known before the work is done."""
        return stage_key(type(self), role=self.role, inputs=self.inputs, options=self.options, seed=self.seed)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole record but for `made`: equal digests mean equal bytes made from equal inputs."""
        return _sha256_json(self._record(with_made=False))

    def _record(self, *, with_made: bool) -> dict[str, Any]:
        body = self.model_dump(mode="json", exclude=None if with_made else {"made"})
        return {"stage": self.stage, "format_version": self.format_version, **body}

    def save(self: A, path: Path) -> A:
        """Write the record (a folder gets RECORD inside it, a file gets FILE.json) and return the placed artifact."""
        record = record_path(path)
        placed = self.at(record.parent)
        body = {**placed._record(with_made=True), "key": placed.key, "digest": placed.digest}
        write_atomically(record, orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return placed

    @classmethod
    def load(cls: type[A], path: Path) -> A:
        """Read the record of a folder or file; raise UserError when it is missing or of another stage."""
        record = record_path(path)
        try:
            body = orjson.loads(record.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{path} has no {record.name}: it is not a finished {cls.stage} artifact. Run that stage first"
            ) from None
        except (OSError, orjson.JSONDecodeError) as error:
            raise IntegrityError(f"{record} cannot be read ({error}); remove it to make this stage again") from error
        if not isinstance(body, dict) or body.get("stage") != cls.stage:
            got = body.get("stage") if isinstance(body, dict) else type(body).__name__
            raise UserError(f"{record} records a {got!r} artifact; expected {cls.stage!r}")
        if body.get("format_version") != cls.format_version:
            raise UserError(
                f"{record} has format version {body.get('format_version')}; this release reads {cls.format_version}. Redo it"
            )
        fields = {key: value for key, value in body.items() if key in cls.model_fields}
        try:
            artifact = cls.model_validate(fields).at(record.parent)
        except ValidationError as error:
            raise IntegrityError(
                f"{record} is damaged: {error.error_count()} fields are wrong; make this stage again"
            ) from error
        if body.get("digest") != artifact.digest:
            raise IntegrityError(f"{record} was changed after it was written: its digest does not match its contents")
        return artifact

    def check_files(self, *, contents: bool) -> None:
        """Raise IntegrityError when a file is missing or has another size or (with `contents`) another SHA-256."""
        for name, expected in self.files.items():
            path = self.root / name
            if not path.is_file():
                raise IntegrityError(f"{path} is missing; its record expects {expected.size} bytes")
            size = path.stat().st_size
            if size != expected.size:
                raise IntegrityError(f"{path} has {size} bytes; its record expects {expected.size}")
            if contents and (got := sha256_file(path)) != expected.sha256:
                raise IntegrityError(f"{path} has SHA-256 {got}; its record expects {expected.sha256}")


class BaseCheckpoint(Artifact):
    """A base model in Hugging Face layout: config.json, safetensors, tokenizer files."""

    stage: ClassVar[str] = "base"
    reference: str
    """What the configuration asked for: a path, a hub id, `embedded:NAME`."""
    revision: str = ""
    """Commit of a hub model, version of a package; empty for a plain folder."""
    licence: str = "unknown"
    """Licence identifier as its source states it."""
    notes: tuple[str, ...] = ()
    """What a report must say about it (that its weights were 4-bit already, say)."""


class Splits(Artifact):
    """train.jsonl, valid.jsonl and test.jsonl of one role, a line per example: `id`, `source`, `kind`, `messages` or `text`."""

    stage: ClassVar[str] = "prepare"
    counts: dict[str, int] = {}
    """Examples per split."""
    kinds: dict[str, int] = {}
    """Examples per kind: `answer`, `labels`, `title`, `messages`, `text` (see prompts.Example)."""
    dataset_digest: str = ""
    """SHA-256 over the sorted content hashes of all documents that were kept, for any role."""

    @property
    def train(self) -> Path:
        """The training split's file."""
        return self.root / "train.jsonl"

    @property
    def valid(self) -> Path:
        """The validation split's file."""
        return self.root / "valid.jsonl"

    @property
    def test(self) -> Path:
        """The test split's file."""
        return self.root / "test.jsonl"


class Checkpoint(Artifact):
    """What a trainer made: a full model, or adapters that belong to a base model."""

    stage: ClassVar[str] = "train"
    kind: str
    """`full` or `adapter`."""
    steps: int = 0
    train_tokens: int = 0
    """Tokens that training saw, padding left out."""
    supervised_tokens: int = 0
    """Those of them that the loss was computed on."""
    first_train_loss: float | None = None
    final_train_loss: float | None = None
    first_valid_loss: float | None = None
    """Validation loss before the first step."""
    final_valid_loss: float | None = None


class MergedCheckpoint(Artifact):
    """A complete model in Hugging Face layout, ready to be exported."""

    stage: ClassVar[str] = "merge"

    @classmethod
    def passed_through(cls, checkpoint: Checkpoint) -> MergedCheckpoint:
        """Return the record of a full checkpoint that needs no merge; it stays where it is."""
        if checkpoint.kind != "full":
            raise UserError(f"a checkpoint of kind {checkpoint.kind!r} must be merged by its own trainer")
        merged = cls(
            role=checkpoint.role,
            inputs={"checkpoint": checkpoint.digest},
            options={},
            seed=checkpoint.seed,
            files=checkpoint.files,
        )
        return merged.at(checkpoint.root)


class QuantizedModel(Artifact):
    """One GGUF model: a file, or shards named by llama.cpp's pattern; the first one is what a loader opens."""

    stage: ClassVar[str] = "quantize"
    file: str
    """File that a loader opens, relative to the folder."""
    type: str
    """Quantization type by llama.cpp's name, such as Q4_K_M."""
    parameters: int = 0
    weights_by_type: dict[str, int] = {}
    """Weights (elements) stored as each GGUF tensor type; Q4_K_M falls back where 256 does not divide a width."""
    architecture: str = ""
    context_length: int = 0
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that a loader opens."""
        return self.root / self.file


class Evaluation(Artifact):
    """Figures of an evaluator, the gates that they passed or failed, and the plots."""

    stage: ClassVar[str] = "evaluate"
    figures: dict[str, Any] = {}
    gates: dict[str, bool] = {}


class ModelPackage(Artifact):
    """The deliverable: GGUF files, manifest.json, README.md (the model card)."""

    stage: ClassVar[str] = "package"
    models: dict[str, str] = {}
    """File of each role, relative to the package."""


def stage_key(
    kind: type[Artifact], *, role: str = "", inputs: Mapping[str, str], options: Mapping[str, Any], seed: int = 0
) -> str:
    """Return the key that an artifact made from these will have; `run` compares it with the one on disk."""
    return _sha256_json(
        {
            "stage": kind.stage,
            "format_version": kind.format_version,
            "role": role,
            "inputs": dict(inputs),
            "options": dict(options),
            "seed": seed,
        }
    )


def record_path(path: Path) -> Path:
    """Return where the record of a folder or of a single file is kept."""
    path = Path(path)
    if path.name == RECORD:
        return path
    return path.with_name(path.name + ".json") if path.suffix == ".gguf" else path / RECORD


def file_records(root: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Read the named files below a folder and return their records, sorted by name."""
    return {name: FileRecord.of(root / name) for name in sorted(names)}


def made_now(*, seconds: float, device: str = "", packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return the circumstances of the work: versions of this and the named packages, device, duration, UTC time."""
    versions = {"python": platform.python_version()}
    for package in ("sysscan-models", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    made = {"versions": versions, "seconds": round(seconds, 1), "finished": finished}
    return {**made, "device": device} if device else made


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        if hasattr(hashlib, "file_digest"):  # Python 3.11; it reads into one buffer without copies
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part: temporary name, fsync, rename.

    A link stays, and leads to the new file; a device or a pipe stays too, and is written to as it is.
    """
    if _is_special(path):
        path.write_bytes(data)
        return
    path, temporary = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a disk that is full must not stay so for our sake
        raise


def check_writable(path: Path) -> None:
    """Raise OSError when `write_atomically` could not write there as it is now; nothing is written, and no folder made."""
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    _, temporary = _target(path)
    if not temporary.exists():
        temporary.touch(exist_ok=False)
        temporary.unlink()


def _is_special(path: Path) -> bool:
    """Say whether there is something that a file must not take the place of: a device, a pipe, a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _target(path: Path) -> tuple[Path, Path]:
    """Return the file that a path leads to, and the temporary one beside it."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    return target, target.with_name(f".{target.name}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished (already fsynced) file or folder into place and fsync the folder that holds it."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
