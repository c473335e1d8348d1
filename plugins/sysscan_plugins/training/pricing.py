"""What a training will need, before it runs: tokens, steps, memory, disk.

Weights, gradients and optimizer state are exact, activations a range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sysscan_models.errors import DataError
from sysscan_models.interfaces import Estimate, TrainJob
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_model import first_records, load_tokenizer, read_config
from sysscan_plugins.training.batches import Plan
from sysscan_plugins.training.loss import LOGITS

SAMPLE = 1000
"""Examples that are encoded for an estimate; a larger split is extrapolated by its size in bytes."""
RUNTIME_BYTES = 400 << 20
"""The interpreter, torch and transformers themselves."""

Shapes = Mapping[str, tuple[int, ...]]


def estimate_training(
    job: TrainJob, options: TrainingOptions, *, frozen: Shapes, trained: Shapes, trained_dtype_bytes: int
) -> Estimate:
    """Return the estimate of a run that trains some parameters and keeps others frozen in the compute dtype.

    `trained_dtype_bytes` is the size of a trained weight in the model: 4 means that it is its own fp32 master.
    """
    tokens, steps, notes = _budget(job, options, trains_embeddings=not frozen)
    state = optimizer_bytes(trained, options)
    count = sum(math.prod(shape) for shape in trained.values())
    masters = 0 if trained_dtype_bytes == 4 else 4 * count
    compute = 2 if options.compute_dtype == "bfloat16" else 4
    weights = trained_dtype_bytes * count + compute * sum(math.prod(shape) for shape in frozen.values())
    persistent = weights + masters + 4 * count + state
    low, high = _activation_bytes(read_config(job.base.root), options, compute)
    largest = max((math.prod(shape) for shape in trained.values()), default=0) * trained_dtype_bytes
    checkpoint = 4 * count + state
    return Estimate(
        train_tokens=tokens,
        steps=steps,
        persistent_bytes=persistent,
        peak_low_bytes=persistent + low + RUNTIME_BYTES,
        peak_high_bytes=persistent + high + 2 * largest + 2 * RUNTIME_BYTES,
        disk_bytes=(options.keep_checkpoints + 1) * checkpoint + trained_dtype_bytes * count + 5 * tokens,
        notes=tuple(notes),
    )


def optimizer_bytes(shapes: Shapes, options: TrainingOptions) -> int:
    """Return the bytes of the optimizer's fp32 state: exact."""
    counter = 4 * len(shapes)
    if options.optimizer == "adamw":
        return counter + 8 * sum(math.prod(shape) for shape in shapes.values())
    factored = (
        math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else math.prod(shape)
        for shape in shapes.values()
    )
    return counter + 4 * sum(factored)


def _budget(job: TrainJob, options: TrainingOptions, *, trains_embeddings: bool) -> tuple[int, int, list[str]]:
    """Return tokens and steps of the run, and what must be said about them."""
    path = job.splits.train
    if not path.is_file():
        return 0, options.max_steps, ["tokens and steps are not known before the splits are prepared"]
    encoder = load_tokenizer(job.base.root, trains_embeddings=trains_embeddings).encoder(options)
    lengths, read = [], 0
    for record, size in first_records(path, SAMPLE):
        lengths += [len(piece.ids) for piece in encoder.example(record, options.max_seq_length).pieces]
        read += size
    if not lengths:
        raise DataError(f"{path} has nothing to train on; prepare the splits again")
    factor, notes = path.stat().st_size / read, []
    if factor > 1.01:
        notes = [f"tokens and steps are extrapolated from the first {SAMPLE} examples"]
        lengths = lengths * math.ceil(factor)
        lengths = lengths[: round(len(lengths) * factor / math.ceil(factor))]
    plan = Plan(np.asarray(lengths, np.int64), options, job.seed)
    return plan.tokens, plan.steps, notes


def _activation_bytes(config: Mapping[str, Any], options: TrainingOptions, compute: int) -> tuple[int, int]:
    """Return a low and a high bound of what a micro-batch keeps for its backward pass, and of its logits.

    Per token and layer about 16 hidden-sized and 5 inner-sized tensors live on, or, when recomputed, one hidden-sized and
    the rest of a single layer. A mixture computes as many inner activations as experts are chosen.
    """
    tokens = options.micro_batch_size * options.max_seq_length
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    inner *= config.get("num_experts_per_tok", 1) if config.get("num_local_experts") else 1
    layer = tokens * compute * (16 * hidden + 5 * inner)
    kept = layers * tokens * compute * hidden + layer if options.gradient_checkpointing else layers * layer
    logits = min(LOGITS, tokens * config["vocab_size"]) * (2 * compute + 8)
    return (kept + logits) // 2, 2 * (kept + logits)
