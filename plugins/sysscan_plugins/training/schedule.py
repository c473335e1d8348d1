"""The learning rate of a step: linear warm-up, then a cosine. A pure function, so that there is no scheduler to save."""

from __future__ import annotations

import math

from sysscan_plugins.training import TrainingOptions


def learning_rate(step: int, steps: int, options: TrainingOptions) -> float:
    """Return the learning rate of a step, counted from 0, of `steps`; the first is never 0, the last nearly `min_lr_ratio`."""
    warmup = math.ceil(options.warmup_ratio * steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * share))
    return options.learning_rate * (options.min_lr_ratio + (1.0 - options.min_lr_ratio) * cosine)
