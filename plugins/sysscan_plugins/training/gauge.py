"""What a run tells of its speed: step time, useful tokens per second, model FLOPs utilisation, and what the device itself says.

The figures go into the log and the progress line at every read of the device; at the end of a run whose device has a known
peak, one sentence says how well it was used and why not better. Measures nothing by itself but time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sysscan_models.planning.shapes import Shape, shape_of
from sysscan_models.progress import Progress
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_model import ARCHITECTURES
from sysscan_plugins.training.batches import EncodedSplit, Plan
from sysscan_plugins.training.devices import Device
from sysscan_plugins.training.utilisation import Waste, attended, flops_per_token, likely_cause, utilisation


@dataclass
class Gauge:
    """The speed of one run, from read to read. Pauses (validation, checkpoints) are left out by `restart`."""

    shape: Shape | None
    options: TrainingOptions
    device: Device
    flops: float
    """Model FLOPs per useful token."""
    padding: float
    """Share of the positions that the device computes without a token in them."""
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    prepared: float = 0.0
    """Seconds in which the host laid out batches."""
    _from: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, model: Any, options: TrainingOptions, device: Device, train: EncodedSplit, plan: Plan) -> Gauge:
        """Return the gauge of a run of a causal LM of transformers, or of a PEFT model around one."""
        config = model.config.to_dict()
        shape = shape_of({**config, "architectures": [ARCHITECTURES.get(config["model_type"])]})
        positions = plan.steps * plan.rows_per_step * options.max_seq_length
        padding = 1 - plan.tokens / positions if device.fixed_steps and positions else 0.0
        flops = flops_per_token(shape, options, attended=attended(train.lengths.tolist())) if shape else 0.0
        return cls(shape, options, device, flops, padding)

    def restart(self) -> None:
        """Count from now; what was done since the last read was no training."""
        self._from = time.monotonic()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count the time of a block as the host's work on batches."""
        began = time.monotonic()
        yield
        self.prepared += time.monotonic() - began

    def read(self, steps: int, tokens: int) -> dict[str, float]:
        """Return the figures of the steps since the last read; `tokens` are those that they learned from."""
        now = time.monotonic()
        seconds, self._from = max(1e-9, now - self._from), now
        if self.steps:  # the first read has compiling and warming up in it
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        else:
            self.prepared = 0.0
        self.steps += steps
        share = self._share(tokens / seconds)
        figures = {"step_seconds": seconds / steps, "tokens_per_s": float(round(tokens / seconds))}
        return {**figures, **({} if share is None else {"mfu": share}), **self.device.monitor()}

    def tell(self, bar: Progress) -> None:
        """Say how well the device was used, where its peak is known, and how much of the work was padding."""
        if self.padding:
            bar.note(f"{self.padding:.0%} of the positions of the packed rows were padding")
        if said := self.verdict():
            bar.note(said)

    def verdict(self) -> str:
        """Return one sentence about the use of the device in the whole run; nothing where its peak is not known."""
        share = self._share(self.tokens / self.seconds) if self.seconds else None
        if share is None or self.shape is None:
            return ""
        waste = Waste(padding=self.padding, preparing=min(1.0, self.prepared / self.seconds))
        return likely_cause(share, self.shape, self.options, waste)

    def _share(self, tokens_per_second: float) -> float | None:
        if not self.flops:
            return None
        return utilisation(self.flops, tokens_per_second, peak_flops=self.device.peak_flops, devices=self.device.count)
