"""What a run writes: the size of each thing, and the most that is on disk at any time.

The package holds hard links to the GGUF files, so it takes nothing more where the file system has links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sysscan_models import machine
from sysscan_models.planning.bases import TOKENIZER, Base
from sysscan_models.planning.memory import TrainingMemory
from sysscan_models.planning.shapes import Shape

if TYPE_CHECKING:
    from sysscan_models.config import RoleConfig
    from sysscan_models.interfaces import Estimate
    from sysscan_models.pipeline import Pipeline
    from sysscan_models.planning.pricing import RolePrice

BITS: Mapping[str, float] = {
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.70, "Q5_K_S": 5.57, "Q5_1": 6.05, "Q5_0": 5.59,
    "Q4_K_M": 4.89, "Q4_K_S": 4.67, "Q4_1": 5.13, "Q4_0": 4.66, "IQ4_NL": 4.68, "IQ4_XS": 4.46, "Q3_K_L": 4.30, "Q3_K_M": 4.00,
    "Q3_K_S": 3.65, "IQ3_M": 3.77, "IQ3_S": 3.66, "IQ3_XS": 3.50, "IQ3_XXS": 3.26, "Q2_K": 3.17, "Q2_K_S": 2.97, "IQ2_M": 2.93,
    "IQ2_S": 2.74, "IQ2_XS": 2.59, "IQ2_XXS": 2.39, "IQ1_M": 2.15, "IQ1_S": 2.01,
}  # fmt: skip
"""Bits per weight of a whole file of each llama.cpp type, from llama.cpp's own table for Llama 3 8B."""
FALLBACK = 1.3
"""What a K or IQ type grows by where 256 does not divide a model's width and larger types stand in."""


@dataclass(frozen=True)
class Disk:
    """Bytes on the file system of the models folder."""

    folder: Path
    present: int
    """What is in the models folder now."""
    peak: int
    """Most that will be written beyond that, at any time."""
    final: int
    """Size of the models folder in the end, temporary files gone."""
    free: int
    complete: bool
    """Whether every part is known."""


def quantized_bytes(parameters: int, kind: str, shape: Shape | None = None) -> int:
    """Return about how many bytes a GGUF file of a type takes; unknown types count as 16 bits."""
    bits = BITS.get(kind.upper(), 16.0)
    narrow = shape is not None and any(width % 256 for width in (shape.hidden, shape.intermediate))
    if narrow and ("_K" in kind.upper() or kind.upper().startswith("IQ")):
        bits *= FALLBACK
    return int(parameters * bits / 8) + TOKENIZER // 2


def disk_parts(
    part: RoleConfig, base: Base, parts: TrainingMemory | None, estimate: Estimate | None, tokens: int
) -> dict[str, int]:
    """Return the bytes of what a role leaves on disk or needs there for a while; empty when its base is not known.

    `training` is the most that its folder holds while it trains: checkpoints, one of them being written, and the model.
    """
    if not base.parameters:
        return {}
    full, options = part.trainer.checkpoint_kind == "full", part.trainer
    size = 4 if getattr(options, "compute_dtype", "") == "float32" else 2
    model = (base.parameters * size if full else (parts.trained * size if parts else 0)) + TOKENIZER
    state = parts.checkpoint if parts else 12 * base.parameters if full else 0
    training = (getattr(options, "keep_checkpoints", 1) + 1) * state + model + 5 * tokens
    kind = str(getattr(part.quantizer, "type", "Q4_K_M"))
    in_full = size == 4 if full else base.size > 3 * base.parameters
    return {
        "base": base.size if base.ours else 0,
        "training": max(training, estimate.disk_bytes) if estimate else training,
        "model": model,
        "merged": 0 if full else base.size,
        "intermediate": 0
        if BITS.get(kind.upper(), 16) >= 16
        else quantized_bytes(base.parameters, "F32" if in_full else "F16"),
        "quantized": quantized_bytes(base.parameters, kind, base.shape),
    }


def price_disk(pipeline: Pipeline, roles: Mapping[str, RolePrice], *, splits: int) -> Disk:
    """Walk through the run in its order and add up what it writes; `splits` is the bytes that preparing will write."""
    layout, held = pipeline.layout, splits
    bases = {price.base.folder: price for price in roles.values() if price.base.ours and price.base.folder}
    for folder, price in bases.items():
        held += 0 if price.base.where == "here" else max(0, price.base.size - _bytes_at(folder))
    peak = held
    for name, price in roles.items():
        part, parts = pipeline.config.role(name), price.disk
        kind = part.trainer.checkpoint_kind
        if not parts:
            continue
        if "train" not in price.done:
            there = _bytes_at(layout.checkpoint(part.role, kind))
            peak = max(peak, held + parts["training"] - there)
            held += parts["model"] - there
        if "merge" not in price.done and kind != "full":
            held += parts["merged"] - _bytes_at(layout.merged(part.role, kind))
            peak = max(peak, held)
        if "quantize" not in price.done:
            peak = max(peak, held + parts["intermediate"] + parts["quantized"])
            held += parts["quantized"] - _bytes_at(layout.models / part.quantizer.file_name(part.role))
    present, free = _bytes_at(layout.models), machine.free_disk(layout.models)
    return Disk(layout.models, present, max(0, peak), present + held, free, all(price.disk for price in roles.values()))


def _bytes_at(place: Path) -> int:
    """Return the bytes of a file, or of the files below a folder, hard links once; 0 when there is nothing."""
    sizes = {}
    for path in place.rglob("*") if place.is_dir() else (place,):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
