"""A base model as far as it is known here and now, without asking the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

from sysscan_models.errors import IntegrityError, UserError
from sysscan_models.planning.shapes import KNOWN, Shape, read_weights, shape_of

if TYPE_CHECKING:
    from sysscan_models.artifacts import BaseCheckpoint
    from sysscan_models.pipeline import Pipeline

TOKENIZER = 20_000_000
"""Bytes of tokenizer files beside the weights, at most."""


@dataclass(frozen=True)
class Base:
    """A base model as far as it is known here and now."""

    reference: str
    where: Literal["here", "known", "unknown"]
    """`here` on disk, `known` by the table of shapes, or neither."""
    parameters: int = 0
    size: int = 0
    """Bytes in Hugging Face layout."""
    shape: Shape | None = None
    folder: Path | None = None
    """Where it is, or will be brought to; None when there is no such thing."""
    ours: bool = False
    """Whether it lies, or will lie, in the models folder."""
    fault: str = ""


def find_base(pipeline: Pipeline, name: str) -> Base:
    """Return what is known about a role's base model without asking the network."""
    from sysscan_models.artifacts import record_path
    from sysscan_models.pipeline import choose_source

    part = pipeline.config.role(name)
    try:
        source, ref = choose_source(part.base, pipeline.config.folder)
    except UserError as error:
        return Base(part.base, "unknown", fault=str(error))
    ours = source != "path"
    folder = pipeline.layout.base(part.base, part.revision) if ours else Path(ref)
    if ours and not record_path(folder).exists():
        shape = KNOWN.get(part.base.lower().removeprefix("hub:"))
        if shape is None:
            return Base(part.base, "unknown", folder=folder, ours=True)
        return Base(part.base, "known", shape.parameters, 2 * shape.parameters + TOKENIZER, shape, folder, ours=True)
    try:
        shape, weights = shape_of(orjson.loads((folder / "config.json").read_bytes())), read_weights(folder)
    except (OSError, orjson.JSONDecodeError) as error:
        return Base(part.base, "unknown", folder=folder, ours=ours, fault=f"{folder / 'config.json'} cannot be read ({error})")
    except IntegrityError as error:
        return Base(part.base, "unknown", folder=folder, ours=ours, fault=str(error))
    fault = "" if weights.parameters else f"{folder} holds no safetensors weights"
    return Base(part.base, "here", weights.parameters, weights.size + TOKENIZER, shape, folder, ours, fault)


def unhashed_record(base: Base) -> BaseCheckpoint:
    """Return a record of the base with sizes only: reading every byte for its hash is the run's business, not the plan's."""
    from sysscan_models.artifacts import BaseCheckpoint, FileRecord

    assert base.folder is not None
    files = {
        path.name: FileRecord(size=path.stat().st_size, sha256="") for path in sorted(base.folder.iterdir()) if path.is_file()
    }
    return BaseCheckpoint(reference=base.reference, files=files).at(base.folder)
