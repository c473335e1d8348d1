"""The optimizer of a run on XLA: masters and state lie as their parameters do; a step is in the graph of its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch_xla
from torch.nn import Parameter

from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.devices.xla.layout import Layout, Spec
from sysscan_plugins.training.optimizers import MasterOptimizer
from sysscan_plugins.training.static_optimizers import StaticOptimizer


class XLAOptimizer(MasterOptimizer):
    """Has its state from the start, so that the first step's graph is that of all steps."""

    fused = False
    optimizer: StaticOptimizer

    def __init__(self, parameters: Mapping[str, Parameter], options: TrainingOptions, layout: Layout) -> None:
        self._layout = layout
        super().__init__(parameters, options)
        self.optimizer.prime()
        for _, tensor, spec in self.laid_out():
            layout.mark(tensor, spec)
        torch_xla.sync()

    def step_if(self, finite: torch.Tensor, learning_rate: float | torch.Tensor) -> None:
        """See MasterOptimizer; the learning rate as data, for a number in a graph would make it another graph."""
        super().step_if(finite, self._layout.send_number(float(learning_rate)))

    def discard(self) -> None:
        """See MasterOptimizer; buffers go too: what lives when the graph is run would become an output of it."""
        super().discard()
        self._buffers.clear()

    def laid_out(self) -> Iterator[tuple[str, Any, Spec]]:
        """Yield masters and state by name, with the layout that each should have."""
        for name, master in self.masters.items():
            spec = self._layout.of_parameter(name, master.shape)
            yield f"master:{name}", master.detach(), spec
            for key, value in self.optimizer.state[master].items():
                yield f"{key}:{name}", value, self._layout.of_state(spec, master.shape, value.shape)

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See MasterOptimizer; takes whole tensors, as one device writes them, and each device gets its part alone."""
        own = {name: (tensor, spec) for name, tensor, spec in self.laid_out()}
        missing = set(own)
        for name, tensor in tensors:
            target, spec = own[name]
            target.copy_(self._layout.send(tensor.to(target.dtype).contiguous(), spec))
            torch_xla.sync()
            missing.discard(name)
        self.refresh()
        if missing:
            raise ValueError(f"the checkpoint does not hold {sorted(missing)[:3]}")

    def refresh(self) -> None:
        """Bring the model's weights up to date with masters that were written to."""
        self._copy()
        torch_xla.sync()
