"""What a training will need, before it runs: tokens and steps, from the data; disk; memory.

The memory is priced in `sysscan_models.planning.memory`, which also prices what nobody has fetched yet.
"""

from __future__ import annotations

import math
from itertools import islice

import numpy as np

from sysscan_models.errors import DataError
from sysscan_models.interfaces import Estimate, TrainJob
from sysscan_models.planning.memory import TrainingMemory
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_model import load_tokenizer
from sysscan_plugins.training.batches import Plan, read_split

SAMPLE = 1000
"""Examples that are encoded for an estimate; a larger split is extrapolated by its size in bytes."""


def estimate_training(job: TrainJob, options: TrainingOptions, memory: TrainingMemory, *, trains_embeddings: bool) -> Estimate:
    """Return the estimate of a run on one device; raise DataError for a training split that cannot be read."""
    tokens, steps, notes = _budget(job, options, trains_embeddings=trains_embeddings)
    result = memory.trained * (2 if options.compute_dtype == "bfloat16" else 4)
    return Estimate(
        train_tokens=tokens,
        steps=steps,
        persistent_bytes=memory.persistent,
        peak_low_bytes=memory.peak_low,
        peak_high_bytes=memory.peak_high,
        disk_bytes=(options.keep_checkpoints + 1) * memory.checkpoint + result + 5 * tokens,
        notes=tuple(notes),
    )


def _budget(job: TrainJob, options: TrainingOptions, *, trains_embeddings: bool) -> tuple[int, int, list[str]]:
    """Return tokens and steps of the run, and what must be said about them."""
    path = job.splits.train
    if not path.is_file():
        return 0, options.max_steps, ["tokens and steps are not known before the splits are prepared"]
    encoder = load_tokenizer(job.base.root, trains_embeddings=trains_embeddings).encoder(options)
    lengths, read = [], 0
    for _, record, size in islice(read_split(path), SAMPLE):
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
