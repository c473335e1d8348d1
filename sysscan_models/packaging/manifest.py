"""manifest.json: the record of a package, and everything that is known about each model in it.

The manifest is the package's artifact: its `digest` covers all of it but `made` (library versions, devices, times of the
stages). It is built from the records of the stages, with secrets redacted, and read back with every check that needs no other
file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from sysscan_models.artifacts import (
    Artifact,
    BaseCheckpoint,
    Checkpoint,
    Evaluation,
    FileRecord,
    MergedCheckpoint,
    ModelPackage,
    QuantizedModel,
    Splits,
    write_atomically,
)
from sysscan_models.errors import IntegrityError, UserError
from sysscan_models.packaging.licences import licence_of
from sysscan_models.prompts import redact
from sysscan_models.roles import ModelRole

MANIFEST = "manifest.json"
CARD = "README.md"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Link(_Facts):
    """One stage in the chain that led to a model: its digest, and the digests of what it was made from."""

    stage: str
    digest: str
    inputs: dict[str, str] = {}


class Quantization(_Facts):
    """What the GGUF file is."""

    type: str
    """By llama.cpp's name, such as Q4_K_M; `unknown` for a file without a record."""
    parameters: int = 0
    weights_by_type: dict[str, int] = {}
    """Weights (elements) stored as each tensor type."""
    architecture: str = ""
    context_length: int = 0
    """Tokens that the base model was made for; 0 when unknown."""
    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class BaseModelFacts(_Facts):
    """The model that training started from."""

    reference: str
    revision: str
    licence: str
    """Identifier on the Hugging Face hub, such as `llama3` or `apache-2.0`; `unknown` when nobody stated it."""
    digest: str
    notes: tuple[str, ...] = ()


class Training(_Facts):
    """How it was trained. Losses are nats per supervised token."""

    kind: str
    options: dict[str, Any]
    seed: int
    steps: int
    train_tokens: int
    supervised_tokens: int
    first_train_loss: float | None
    final_train_loss: float | None
    first_valid_loss: float | None
    final_valid_loss: float | None


class Data(_Facts):
    """What it was trained on."""

    dataset_digest: str
    """SHA-256 over the content hashes of all documents that were kept, for any role."""
    digest: str
    """Digest of this role's splits."""
    inputs: dict[str, str]
    """Digest of the archive and whatever else the splits were made from."""
    options: dict[str, Any]
    seed: int
    counts: dict[str, int]
    kinds: dict[str, int]
    splits: dict[str, FileRecord]
    """The split files: `id` and `source` in their lines name the document and the archive member of every example."""


class EvaluatorResult(_Facts):
    """What one evaluator found."""

    figures: dict[str, Any]
    gates: dict[str, bool]
    options: dict[str, Any]
    digest: str


class EvaluationState(_Facts):
    """Whether the model was evaluated, and how it did."""

    state: Literal["evaluated", "not evaluated"] = "not evaluated"
    results: dict[str, EvaluatorResult] = {}


class RoleEntry(_Facts):
    """Everything that the package says about the model of one role."""

    purpose: str
    system_prompt: str
    """What it was trained with; loading puts it into the role, so that serving sends the same."""
    context_length: int
    file: str
    """The file that a loader opens; the first one of shards."""
    files: dict[str, FileRecord]
    quantization: Quantization
    provenance: Literal["recorded", "partly recorded", "unknown"]
    base: BaseModelFacts | None = None
    training: Training | None = None
    data: Data | None = None
    evaluation: EvaluationState = EvaluationState()
    chain: tuple[Link, ...] = ()


class Manifest(ModelPackage):
    """The record of a package."""

    title: str
    roles: dict[str, RoleEntry]

    def text(self) -> bytes:
        """Return the file's contents: the record, its key and its digest."""
        record = {**self._record(with_made=True), "key": self.key, "digest": self.digest}
        return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def write(self, folder: Path) -> Manifest:
        """Write manifest.json into a folder, atomically, and return the placed manifest."""
        write_atomically(folder / MANIFEST, self.text())
        return self.at(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a package's manifest; the files that it lists are not looked at.

    Raises UserError when there is none or this release cannot read it, IntegrityError when it is damaged, was changed after it
    was written, or names a file outside of its folder.
    """
    path = Path(folder) / MANIFEST
    try:
        body = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} has no {MANIFEST}: it is not a package. `sysscan-models package` makes one") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}); package the models again") from error
    if not isinstance(body, dict) or body.get("stage") != Manifest.stage:
        raise UserError(f"{path} is not the manifest of a package of sysscan-models")
    if body.get("format_version") != Manifest.format_version:
        raise UserError(
            f"{path} has format version {body.get('format_version')}; this release reads {Manifest.format_version}. "
            f"Package the models again"
        )
    try:
        manifest = Manifest.model_validate({key: value for key, value in body.items() if key in Manifest.model_fields})
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged: {error.error_count()} fields are wrong; package the models again") from error
    if body.get("digest") != manifest.digest:
        raise IntegrityError(f"{path} was changed after it was written: its digest does not match its contents")
    for name in (
        *manifest.files,
        *manifest.models.values(),
        *(name for entry in manifest.roles.values() for name in entry.files),
    ):
        check_name(path, name)
    return manifest.at(Path(folder))


def check_name(manifest: Path, name: str) -> None:
    """Raise IntegrityError unless a name in a manifest is that of a file directly in the manifest's folder, links included."""
    plain = name not in ("", ".", "..") and not set(name) & set("/\\\0") and not PureWindowsPath(name).drive
    if not plain or not (manifest.parent / name).resolve().is_relative_to(manifest.parent.resolve()):
        raise IntegrityError(f"{manifest} names the file {name!r}, which lies outside of the package; do not use this package")


def entry(
    role: ModelRole,
    model: QuantizedModel,
    files: Mapping[str, FileRecord],
    *,
    base: BaseCheckpoint | None = None,
    checkpoint: Checkpoint | None = None,
    merged: MergedCheckpoint | None = None,
    splits: Splits | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
    recorded: bool = True,
    licence: str = "",
) -> RoleEntry:
    """Return what the stages' records say about one model; `files` are its GGUF files under their names in the package."""
    stages: list[Artifact] = [stage for stage in (base, splits, checkpoint, merged) if stage is not None]
    chain = (
        tuple(Link(stage=stage.stage, digest=stage.digest, inputs=stage.inputs) for stage in [*stages, model])
        if recorded
        else ()
    )
    results = {
        name: EvaluatorResult(figures=made.figures, gates=made.gates, options=made.options, digest=made.digest)
        for name, made in sorted((evaluations or {}).items())
    }
    return redacted(
        RoleEntry(
            purpose=role.description,
            system_prompt=role.system_prompt,
            context_length=role.context_length,
            file=next(iter(files)),
            files=dict(files),
            quantization=Quantization(**model.model_dump(include=set(Quantization.model_fields))),
            provenance="unknown" if not recorded else "recorded" if base and checkpoint and splits else "partly recorded",
            base=_base_facts(base, licence) if base else None,
            training=Training(**checkpoint.model_dump(include=set(Training.model_fields))) if checkpoint else None,
            data=_data_facts(splits) if splits else None,
            evaluation=EvaluationState(state="evaluated", results=results) if results else EvaluationState(),
            chain=chain,
        )
    )


def _base_facts(base: BaseCheckpoint, licence: str) -> BaseModelFacts:
    return BaseModelFacts(
        reference=Path(base.reference).name if Path(base.reference).is_absolute() else base.reference,
        revision=base.revision,
        licence=licence_of(base.reference, licence or base.licence).id,
        digest=base.digest,
        notes=base.notes,
    )


def _data_facts(splits: Splits) -> Data:
    return Data(
        dataset_digest=splits.dataset_digest,
        digest=splits.digest,
        inputs=splits.inputs,
        options=splits.options,
        seed=splits.seed,
        counts=splits.counts,
        kinds=splits.kinds,
        splits=splits.files,
    )


def broken_links(chain: tuple[Link, ...]) -> list[str]:
    """Return, in words, every stage that was made from something else than the stage before it in the chain."""
    digests = {link.stage: link.digest for link in chain}
    makers = {"base": "base", "splits": "prepare", "checkpoint": "train", "merged": "merge"}
    return [
        f"{link.stage} was made from another {name} ({digest[:12]}) than {makers[name]} recorded ({digests[makers[name]][:12]})"
        for link in chain
        for name, digest in link.inputs.items()
        if name in makers and makers[name] in digests and digest != digests[makers[name]]
    ]


_SECRET_KEY = re.compile(
    r"(^|[_-])(password|passwd|secret|api[_-]?key|(hf|hub|access|auth|api|bearer)[_-]token)$|^token$", re.IGNORECASE
)


def redacted(entry: RoleEntry) -> RoleEntry:
    """Return the entry without secrets: texts pass through `redact`, and values under keys that name a secret are dropped."""
    return RoleEntry.model_validate(without_secrets(entry.model_dump(mode="json")))


def without_secrets(value: Any) -> Any:
    """Return JSON data with every secret replaced by a placeholder."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            redact(str(key)): "[REDACTED]"
            if isinstance(item, str) and item and _SECRET_KEY.search(str(key))
            else without_secrets(item)
            for key, item in value.items()
        }
    return [without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value
