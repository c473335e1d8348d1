"""The memory of training, as pure functions of a model's shape and a trainer's options.

They hold for the training loop of the bundled trainers: weights and activations in the compute dtype, fp32 masters and fp32
gradient buffers of what is trained. What must be held is exact; the peak is a range, for activations cannot be known before.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sysscan_models.planning.shapes import Shape, TensorShape

if TYPE_CHECKING:
    from sysscan_models.interfaces import Trainer

LOGITS = 1 << 25
"""Logits that the loss holds at once; the training loop's number."""
RUNTIME = 1_000_000_000
"""Bytes for the interpreter, torch and its allocator, at most, beside what is counted."""
SLACK = 1.05
"""Share that an allocator loses between blocks, on the upper bound."""


class TrainingLike(Protocol):
    """The options that decide the memory of full training; `TrainingOptions` of the bundled trainers has them."""

    @property
    def micro_batch_size(self) -> int:
        """Rows at once, per device."""

    @property
    def max_seq_length(self) -> int:
        """Tokens in a row."""

    @property
    def compute_dtype(self) -> str:
        """`bfloat16` or `float32`."""

    @property
    def optimizer(self) -> str:
        """`adamw` or `adafactor`."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again."""


class LoraLike(TrainingLike, Protocol):
    """The options that decide the memory of LoRA training; the `lora` trainer has them."""

    @property
    def rank(self) -> int:
        """Rank of the adapters."""

    @property
    def targets(self) -> Collection[str]:
        """Names of the adapted modules."""

    @property
    def experts(self) -> bool:
        """Whether experts are adapted."""


@dataclass(frozen=True)
class LoraOptions:
    """Options of LoRA for a model that nobody trains with it yet."""

    micro_batch_size: int
    max_seq_length: int
    compute_dtype: str = "bfloat16"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    rank: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    experts: bool = False


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device: what is held all the time, exactly, and bounds of the peak for a full micro-batch."""

    weights: int
    masters: int
    gradients: int
    optimizer: int
    peak_low: int
    peak_high: int
    trained: int
    """Weights that are trained (a count)."""

    @property
    def persistent(self) -> int:
        """Bytes that are held from the first step to the last."""
        return self.weights + self.masters + self.gradients + self.optimizer

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint of the run: fp32 masters and optimizer state."""
        return 4 * self.trained + self.optimizer


def full_memory(shape: Shape, options: TrainingLike, *, devices: int = 1) -> TrainingMemory:
    """Return the memory of training every weight, per device; with several, everything held is divided among them."""
    trained = list(shape.tensors())
    return _memory(shape, options, trained, frozen=0, adapted=0, devices=devices)


def lora_memory(shape: Shape, options: LoraLike, *, devices: int = 1) -> TrainingMemory:
    """Return the memory of training LoRA adapters beside frozen weights, per device.

    Adapters are in the compute dtype with fp32 masters. An adapted expert's weight and change exist side by side while it
    computes, and the inputs of adapted modules are kept.
    """
    trained = list(shape.adapters(options.rank, options.targets, experts=options.experts))
    size = _compute_bytes(options)
    adapted = sum(tensor.shape[-1] for tensor in shape.layer() if tensor.name in options.targets)
    layers = 1 if options.gradient_checkpointing else shape.layers
    kept = 3 * size * adapted * layers * options.micro_batch_size * options.max_seq_length
    changes = sum(tensor.elements for tensor in shape.layer() if options.experts and tensor.name == "experts")
    return _memory(shape, options, trained, frozen=shape.parameters, adapted=kept + 2 * size * changes, devices=devices)


def _memory(
    shape: Shape, options: TrainingLike, trained: list[TensorShape], *, frozen: int, adapted: int, devices: int
) -> TrainingMemory:
    size, count = _compute_bytes(options), sum(tensor.elements for tensor in trained)
    parts = {
        "weights": (frozen + count) * size,
        "masters": 0 if size == 4 else 4 * count,
        "gradients": 4 * count,
        "optimizer": sum(_optimizer_bytes(tensor, options.optimizer) for tensor in trained),
    }
    held = {name: math.ceil(part / devices) for name, part in parts.items()}
    low, high = _activations(shape, options, frozen=bool(frozen))
    gathered = (shape.layer_parameters + shape.vocabulary * shape.hidden) * size if devices > 1 else 0
    largest = max((math.prod(tensor.shape) for tensor in trained), default=0)
    update = 12 * largest if options.optimizer == "adafactor" else 0  # its update is computed a tensor at a time, in fp32
    persistent = sum(held.values())
    return TrainingMemory(
        **held,
        peak_low=persistent + gathered + low,
        peak_high=int((persistent + gathered + max(high + adapted + 2 * size * largest, update)) * SLACK) + RUNTIME,
        trained=count,
    )


def _compute_bytes(options: TrainingLike) -> int:
    return 4 if options.compute_dtype == "float32" else 2


def _optimizer_bytes(tensor: TensorShape, optimizer: str) -> int:
    """Return the bytes of the fp32 state: AdamW's two moments or Adafactor's row and column, and a step counter each."""
    shape = tensor.shape
    if optimizer == "adamw":
        values = 2 * math.prod(shape)
    elif len(shape) > 1:
        values = math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]
    else:
        values = math.prod(shape)
    return 4 * (values + 1) * tensor.count


def _activations(shape: Shape, options: TrainingLike, *, frozen: bool) -> tuple[int, int]:
    """Return bounds of what a full micro-batch keeps for its backward pass, without and with its largest temporaries.

    The coefficients of `kept` were counted on what autograd saves (transformers 5, fused attention, one layer more against one
    layer fewer); those of the temporaries are fitted on XLA's buffer assignment.
    """
    size, tokens = _compute_bytes(options), options.micro_batch_size * options.max_seq_length
    wide = ((6 if frozen else 10) if size == 2 else (8 if frozen else 16)) * (shape.hidden + shape.query_width)
    choices = shape.experts_per_token or 1
    inner = (3 if frozen else 4) * size * shape.intermediate * choices
    routed = 5 * size * shape.hidden * choices // 2 if shape.experts else 0
    kept = tokens * (wide + 2 * size * shape.kv_width + 9 * shape.heads + inner + routed)
    inputs = tokens * size * shape.hidden * shape.layers
    saved = inputs + kept if options.gradient_checkpointing else kept * shape.layers
    working = tokens * size * (4 * shape.hidden + 5 * shape.intermediate * choices)
    logits = min(tokens * shape.vocabulary, max(64 * shape.vocabulary, LOGITS)) * (2 * size + 8)
    return saved, saved + max(working, logits)


def memory_of(trainer: Trainer, shape: Shape, *, devices: int = 1) -> TrainingMemory | None:
    """Return the memory of a trainer that has the options of the bundled ones; None for one that only its `estimate` knows."""
    options: Any = trainer
    common = ("micro_batch_size", "max_seq_length", "compute_dtype", "optimizer", "gradient_checkpointing")
    if not all(hasattr(options, name) for name in common):
        return None
    if trainer.checkpoint_kind == "full":
        return full_memory(shape, options, devices=devices)
    has_adapters = all(hasattr(options, name) for name in ("rank", "targets", "experts"))
    return lora_memory(shape, options, devices=devices) if has_adapters else None
