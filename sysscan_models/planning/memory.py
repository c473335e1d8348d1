"""The memory of training, as pure functions of a model's shape and a trainer's options.

They hold for the training loop of the bundled trainers: weights and activations in the compute dtype, fp32 masters and fp32
gradient buffers of what is trained. What must be held is exact; the peak is a range, for activations cannot be known before.

Several devices divide all that is held, tensor by tensor: on XLA (TPU) by `sharded_dim`, on GPUs by FSDP2, which cuts every
tensor along its first dimension. Divided weights are gathered while they compute; activations are only where divided experts
with a capacity compute, whose inputs are those of all rows (which is counted).
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
BLOCK = 512
"""Queries that static attention computes at once, at most."""
REPLICATED = 1 << 12
"""Elements below which a vector is not worth dividing."""


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
    """Bytes on one device: what is held all the time, exactly, and bounds of the peak for a full micro-batch.

    Where a tensor cannot be divided evenly, it is the device with the largest parts.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    peak_low: int
    peak_high: int
    trained: int
    """Weights that are trained (a count), over all devices."""
    checkpoint: int
    """Bytes of a checkpoint of the run, over all devices: fp32 masters and optimizer state."""

    @property
    def persistent(self) -> int:
        """Bytes that are held from the first step to the last."""
        return self.weights + self.masters + self.gradients + self.optimizer


def sharded_dim(shape: tuple[int, ...], devices: int) -> int | None:
    """Return the dimension along which XLA devices divide a parameter, or None when each of them holds it whole.

    The rule of the plan and of the XLA device alike: of the dimensions that the number of devices divides evenly, the largest,
    the first of equal ones. Fused experts [E, out, in] are divided along E when it can be divided, so that a device keeps whole
    experts and no expert is ever gathered. Whole stay: scalars, vectors shorter than 4096, tensors where no dimension can be
    divided, and everything on one device. Optimizer state is divided as its parameter is; of Adafactor's two factors the one
    that lacks the divided dimension stays whole.
    """
    if devices <= 1 or (len(shape) == 1 and shape[0] < REPLICATED):
        return None
    if len(shape) == 3 and shape[0] and shape[0] % devices == 0:
        return 0
    fitting = [dim for dim, size in enumerate(shape) if size and size % devices == 0]
    return max(fitting, key=lambda dim: (shape[dim], -dim), default=None)


def local_shape(shape: tuple[int, ...], devices: int, *, xla: bool) -> tuple[int, ...]:
    """Return the shape of a device's part of a parameter; of FSDP2, the largest part (the last device's may be smaller)."""
    if not xla:
        return (math.ceil(shape[0] / devices), *shape[1:]) if shape else shape
    divided = sharded_dim(shape, devices)
    return tuple(size // devices if dim == divided else size for dim, size in enumerate(shape))


def full_memory(shape: Shape, options: TrainingLike, *, devices: int = 1, xla: bool = False) -> TrainingMemory:
    """Return the memory of training every weight, per device; several are FSDP2's processes, or with `xla` a TPU's devices."""
    return _memory(_Job(shape, options, list(shape.tensors()), frozen=False, devices=devices, xla=xla))


def lora_memory(shape: Shape, options: LoraLike, *, devices: int = 1, xla: bool = False) -> TrainingMemory:
    """Return the memory of training LoRA adapters beside frozen weights, per device; several as in `full_memory`.

    Adapters are in the compute dtype with fp32 masters. An adapted expert's weight and change exist side by side while it
    computes, and the inputs of adapted modules are kept.
    """
    job = _Job(
        shape,
        options,
        list(shape.adapters(options.rank, options.targets, experts=options.experts)),
        frozen=True,
        devices=devices,
        xla=xla,
    )
    adapted = sum(tensor.shape[-1] for tensor in shape.layer() if tensor.name in options.targets)
    layers = 1 if options.gradient_checkpointing else shape.layers
    kept = 3 * job.size * adapted * layers * options.micro_batch_size * options.max_seq_length
    changed = [tensor for tensor in shape.layer() if options.experts and tensor.name == "experts"]
    changes = sum(job.held(tensor) if job.experts_stay else tensor.elements for tensor in changed)
    return _memory(job, adapted=kept + 2 * job.size * changes)


@dataclass(frozen=True)
class _Job:
    """What is trained, how, and on how many devices of which kind."""

    shape: Shape
    options: TrainingLike
    trained: list[TensorShape]
    frozen: bool
    """Whether the weights of the base model are frozen, and what is trained lies beside them."""
    devices: int
    xla: bool

    @property
    def size(self) -> int:
        """Bytes of a number in the compute dtype."""
        return 4 if self.options.compute_dtype == "float32" else 2

    @property
    def rows_axis(self) -> int:
        """Devices that everything is divided among; the others of a TPU (tensor_parallel) divide projections only."""
        return max(1, self.devices // getattr(self.options, "tensor_parallel", 1)) if self.xla else self.devices

    @property
    def capacity(self) -> float:
        """Places of an expert as a multiple of an even share; 0 where every expert computes every token."""
        return float(getattr(self.options, "expert_capacity", 0.0)) if self.xla else 1.0

    @property
    def experts_divided(self) -> bool:
        """Whether every device holds experts that are whole."""
        return self.xla and bool(self.shape.experts) and self.shape.experts % self.rows_axis == 0

    @property
    def experts_stay(self) -> bool:
        """Whether every device computes its own experts, so that they are never gathered."""
        return self.experts_divided and self.capacity > 0

    def held(self, tensor: TensorShape, *, adapter: bool = False) -> int:
        """Return the elements that one device holds of some tensors of one shape."""
        column = _PROJECTIONS.get(tensor.name)
        parts, shape = self.devices // self.rows_axis, tensor.shape
        if parts > 1 and column is not None and not adapter and len(shape) == 2 and shape[column] % parts == 0:
            other = shape[1 - column]
            rest = other // self.rows_axis if other % self.rows_axis == 0 else other
            return shape[column] // parts * rest * tensor.count
        return math.prod(local_shape(shape, self.rows_axis, xla=self.xla)) * tensor.count


_PROJECTIONS = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), 0) | {"o_proj": 1, "down_proj": 1}
"""The dimension of each projection that tensor_parallel divides."""


def experts_stay(shape: Shape, options: Any, *, devices: int, xla: bool) -> bool:
    """Return whether every device computes its own experts with such options, so that no expert is ever gathered."""
    return _Job(shape, options, [], frozen=True, devices=devices, xla=xla).experts_stay


def _memory(job: _Job, *, adapted: int = 0) -> TrainingMemory:
    """Return the memory; `adapted` are bytes that adapters take beside the activations, at most."""
    count, size = sum(job.held(tensor, adapter=job.frozen) for tensor in job.trained), job.size
    base = sum(map(job.held, job.shape.tensors())) if job.frozen else 0
    parts = {
        "weights": (base + count) * size,
        "masters": 0 if size == 4 else 4 * count,
        "gradients": 4 * count,
        "optimizer": sum(_optimizer_bytes(job, tensor, job.devices) for tensor in job.trained),
    }
    persistent, trained = sum(parts.values()), sum(tensor.elements for tensor in job.trained)
    low, high = _activations(job)
    gathered_low, gathered_high = _gathered(job)
    gradient = 2 * size * max((math.prod(tensor.shape) for tensor in job.trained), default=0)
    largest = max((job.held(tensor, adapter=job.frozen) // tensor.count for tensor in job.trained), default=0)
    update = 12 * largest if job.options.optimizer == "adafactor" else 0  # computed a tensor at a time, in fp32
    peak = persistent + gathered_high + max(high + adapted + gradient, update)
    return TrainingMemory(
        **parts,
        peak_low=persistent + gathered_low + low,
        peak_high=int(peak * SLACK) + RUNTIME,
        trained=trained,
        checkpoint=4 * trained + sum(_optimizer_bytes(job, tensor, 1) for tensor in job.trained),
    )


def _gathered(job: _Job) -> tuple[int, int]:
    """Return bounds of what devices gather of each other's parts while they compute.

    XLA gathers a layer and the embedding, but no experts that stay in place; where every expert computes every token, one at a
    time, or all of a layer if the compiler so decides. FSDP2 gathers embedding and head for a whole step, a layer and the next
    one; gradients of both are whole, in the compute dtype and in fp32, until they are divided.
    """
    if job.devices == 1:
        return 0, 0
    embedding = job.shape.vocabulary * job.shape.hidden
    experts = sum(tensor.elements for tensor in job.shape.layer() if tensor.name == "experts")
    layer = job.shape.layer_parameters
    if job.xla:
        rest = layer - experts + embedding
        fewest = 0 if job.experts_stay else experts // job.shape.experts if job.experts_divided else experts
        return (rest + fewest) * job.size, (rest + (0 if job.experts_stay else experts)) * job.size
    root = embedding * (1 if job.shape.tied else 2)
    whole = 0 if job.frozen else (layer + root) * (job.size + 4)
    return (layer + root) * job.size, (2 * layer + root) * job.size + whole


def _optimizer_bytes(job: _Job, tensor: TensorShape, devices: int) -> int:
    """Return the bytes of the state: AdamW's two moments or Adafactor's row and column (fp32), and a step counter each."""
    options = job.options
    if options.optimizer == "adamw":
        moment = 2 if getattr(options, "optimizer_state", "float32") == "bfloat16" else 4  # not every trainer has the option
        elements = tensor.elements if devices == 1 else job.held(tensor, adapter=job.frozen)
        return 2 * moment * elements + 4 * tensor.count
    local = local_shape(tensor.shape, min(devices, job.rows_axis), xla=job.xla)
    factored = math.prod(local[:-1]) + math.prod(local[:-2]) * local[-1] if len(local) > 1 else math.prod(local)
    return 4 * (factored + 1) * tensor.count


def _activations(job: _Job) -> tuple[int, int]:
    """Return bounds of what a full micro-batch keeps for its backward pass, without and with its largest temporaries.

    The coefficients of `kept` were counted on what autograd saves (transformers 5, fused attention, one layer more against one
    layer fewer); those of the temporaries are fitted on XLA's buffer assignment.
    """
    shape, options, size = job.shape, job.options, job.size
    together = job.devices // job.rows_axis  # these devices have all their rows in common, and divide some of the work
    tokens = options.micro_batch_size * options.max_seq_length * together
    wide = ((6 if job.frozen else 10) if size == 2 else (8 if job.frozen else 16)) * (shape.hidden + shape.query_width)
    choices = shape.experts_per_token or 1
    inner = (3 if job.frozen else 4) * size * shape.intermediate
    routed = 5 * size * shape.hidden * choices // 2 if shape.experts else 0
    around = wide + 2 * size * shape.kv_width + 9 * shape.heads + routed
    places = choices if not shape.experts else choices * job.capacity or shape.experts  # 0: every expert has every token
    inputs = tokens * size * shape.hidden * shape.layers
    low, high = (tokens * int(around + inner * computed) for computed in (choices, places))
    if options.gradient_checkpointing:
        low, high = inputs + low, inputs + high
    else:
        low, high = low * shape.layers, high * shape.layers
    working = int(tokens * size * (4 * shape.hidden + 5 * shape.intermediate * (places if job.capacity else choices)))
    if job.xla:
        working += _static_attention(shape, options) * together
    if job.experts_stay:  # the tokens of all devices come to the experts, and their results go back
        working += 2 * tokens * size * shape.hidden * job.rows_axis
    logits = min(tokens * shape.vocabulary, max(64 * shape.vocabulary, LOGITS)) * (2 * size + 8)
    return low // together, high + max(working, logits)


def _static_attention(shape: Shape, options: TrainingLike) -> int:
    """Return the bytes of the scores of one block of queries, with their softmax and gradient, in fp32."""
    return 12 * options.micro_batch_size * shape.heads * min(BLOCK, options.max_seq_length) * options.max_seq_length


def memory_of(trainer: Trainer, shape: Shape, *, devices: int = 1, xla: bool = False) -> TrainingMemory | None:
    """Return the memory of a trainer that has the options of the bundled ones; None for one that only its `estimate` knows."""
    options: Any = trainer
    common = ("micro_batch_size", "max_seq_length", "compute_dtype", "optimizer", "gradient_checkpointing")
    if not all(hasattr(options, name) for name in common):
        return None
    if trainer.checkpoint_kind == "full":
        return full_memory(shape, options, devices=devices, xla=xla)
    has_adapters = all(hasattr(options, name) for name in ("rank", "targets", "experts"))
    return lora_memory(shape, options, devices=devices, xla=xla) if has_adapters else None
