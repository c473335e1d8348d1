"""How well a run uses its devices: model FLOPs per token, their share of the peak, and why that share may be low.

Pure arithmetic on a model's shape and what a log read knows; nothing is measured here, and torch is not needed. Model FLOPs are
those that the mathematics asks for: what is computed again (gradient checkpointing), padding and unused places of experts do
not count, so waste shows as a lower share. Attention is counted causal, within segments; a multiplication and an addition are
2 FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sysscan_models.planning.shapes import Shape, TensorShape
from sysscan_plugins.training import TrainingOptions

GOAL = 0.90
"""The share of the peak that the original document names as ideal; below it `likely_cause` has something to say."""
GOOD = (0.35, 0.55)
"""What published pre-training runs of models of this kind reach on TPUs, as shares of the peak: MaxText and torchprime report
45 % for Llama 3 8B and 35 to 55 % for Mixtral 8x7B. Fine-tuning on short documents reaches less."""
MUCH = 0.2
"""Share of the time, or of the positions, from which a waste is named as the cause."""
NARROW = 2048
"""Hidden size below which the matrices are too small to keep a large accelerator busy."""


@dataclass(frozen=True)
class Waste:
    """What a log read knows of time and work that went elsewhere, each as a share from 0 to 1."""

    padding: float = 0.0
    """Of the positions of the packed rows: those without a token."""
    preparing: float = 0.0
    """Of the time: the host laid out batches."""


def attended(lengths: Iterable[int]) -> float:
    """Return how many positions a token attends to in the mean, itself included; `lengths` are tokens of each segment."""
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += length * (length + 1) // 2
    return pairs / tokens if tokens else 0.0


def flops_per_token(shape: Shape, options: TrainingOptions, *, attended: float) -> float:
    """Return the model FLOPs of forward and backward pass for one token; `attended` is what `attended()` returns.

    Full training takes 6 per weight that a token is multiplied with (2 forward, 2 for the gradient of the input, 2 for that of
    the weight), LoRA 4 per frozen weight and 6 per weight of an adapter. Of experts, those count that a token is sent to. The
    embedding is looked up, not multiplied; the output head is.
    """
    weights = _active(shape, shape.layer()) * shape.layers + shape.vocabulary * shape.hidden
    products = 12.0 * shape.query_width * attended * shape.layers  # scores and values, 2 each forward, twice that backward
    if options.checkpoint_kind == "full":
        return 6.0 * weights + products
    lora: Any = options
    return 4.0 * weights + 6.0 * _active(shape, shape.adapters(lora.rank, lora.targets, experts=lora.experts)) + products


def _active(shape: Shape, tensors: Iterable[TensorShape]) -> float:
    """Return the weights of matrices that one token is multiplied with."""
    share = shape.experts_per_token / shape.experts if shape.experts else 1.0
    matrices = (tensor for tensor in tensors if len(tensor.shape) > 1)
    return sum(tensor.elements * (share if tensor.name == "experts" else 1.0) for tensor in matrices)


def utilisation(flops_per_token: float, tokens_per_second: float, *, peak_flops: float, devices: int) -> float | None:
    """Return the model FLOPs utilisation, 0 to 1; None where the peak is not known (0).

    `tokens_per_second` are useful ones, padding left out, of all devices together; `peak_flops` is of one device, per second.
    """
    return flops_per_token * tokens_per_second / (peak_flops * devices) if peak_flops > 0 and devices > 0 else None


def likely_cause(share: float, shape: Shape, options: TrainingOptions, waste: Waste = Waste()) -> str:
    """Return a sentence that names the likely cause of a utilisation below the goal and what to do; nothing at the goal.

    `share` is what `utilisation` returned. Causes that were measured come before those that only the options suggest.
    """
    if share >= GOAL:
        return ""
    low, high = GOOD
    told = f"{share:.0%} of the peak is used, the goal is {GOAL:.0%}"
    if share >= low:
        return f"{told}; good runs of such models reach {low:.0%} to {high:.0%}, so nothing is likely to be wrong"
    return f"{told} and good runs of large models reach {low:.0%} to {high:.0%}; likely cause: {_cause(shape, options, waste)}"


def _cause(shape: Shape, options: TrainingOptions, waste: Waste) -> str:
    measured = {
        "preparing": f"laying out batches took {waste.preparing:.0%} of the time; give the host faster processors",
        "padding": f"{waste.padding:.0%} of the positions are padding; "
        + ("set a smaller max_seq_length" if options.packing else "set packing = true"),
    }
    worst = max(measured, key=lambda name: getattr(waste, name))
    if getattr(waste, worst) >= MUCH:
        return measured[worst]
    if options.compute_dtype == "float32":
        return 'the model computes in float32, the peak is that of bfloat16; set compute_dtype = "bfloat16"'
    if shape.hidden < NARROW:
        return f"the model is small (hidden size {shape.hidden}), its matrices do not fill the device; take fewer devices"
    if options.micro_batch_size == 1:
        larger = "" if options.batch_size > 1 else " and batch_size"
        return f"one row at a time is little work for the device; set a larger micro_batch_size{larger} if memory allows"
    if options.gradient_checkpointing:
        return "gradient checkpointing computes about a third more than is counted; turn it off if memory allows"
    return "none of the usual ones; a profile of the device would show it"
