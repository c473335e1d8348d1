"""Optimizers for compiled graphs: every number that changes is a tensor, and no step reads the device or depends on a value.

What they share, and AdamW, whose own in torch keeps its state in the parameters' type and skips a step only in CUDA's fused
kernels: here state may be bf16 (half the memory). Adafactor is in `adafactor`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch

from sysscan_plugins.training.noise import uniform_like


class StaticOptimizer(torch.optim.Optimizer):
    """An optimizer whose steps can be undone on the device, where gradients are not finite; a subclass has the maths."""

    finite: torch.Tensor | None = None
    """0-d and boolean, or None; where it is false, a step changes neither parameters nor state."""

    @torch.no_grad()
    def prime(self) -> None:
        """Create the state of every parameter, as before the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self._state_of(parameter)
                    for old, new in self.changes(parameter, parameter.grad, state, group):
                        old.copy_(new if self.finite is None else torch.where(self.finite, new, old))

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state.update(self.moments(parameter))
        return state

    @abstractmethod
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a parameter's state but for `step`, as before the first step."""

    @abstractmethod
    def changes(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return what a step changes, parameter and state, each with what it becomes."""


class StaticAdamW(StaticOptimizer):
    """The maths of torch.optim.AdamW. State by torch's names: `step` [], fp32; `exp_avg`, `exp_avg_sq` like the parameter."""

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.state_dtype = state_dtype
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """See StaticOptimizer."""
        return {key: torch.zeros_like(parameter, dtype=self.state_dtype) for key in ("exp_avg", "exp_avg_sq")}

    def changes(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """See StaticOptimizer."""
        (beta1, beta2), rate = group["betas"], group["lr"]
        step = state["step"] + 1
        first = torch.lerp(state["exp_avg"].float(), gradient, 1 - beta1)
        second = state["exp_avg_sq"].float() * beta2 + gradient.square() * (1 - beta2)
        deviation = second.sqrt() / (1 - beta2**step).sqrt() + group["eps"]
        kept = parameter * (1 - rate * group["weight_decay"]) if group["weight_decay"] else parameter
        updated = kept - (rate / (1 - beta1**step)) * first / deviation
        return (
            (parameter, updated),
            (state["step"], step),
            (state["exp_avg"], rounded(first, self.state_dtype)),
            (state["exp_avg_sq"], rounded(second, self.state_dtype)),
        )


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return fp32 values in another type; to bf16 up or down by chance, so that the mean is kept.

    A second moment with a decay of 0.999 changes by less than half a step of bf16: rounded to nearest it would never move.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    # Not on the bits: torch_xla computes up to here and goes to the host when a type is reinterpreted. The exponent may come
    # out one too large just below a power of two; that is coarser, but keeps the mean too.
    step = torch.pow(2.0, torch.floor(torch.log2(values.abs()) + 1e-6) - 7)  # between neighbours in bf16
    moved = torch.floor(values / step + uniform_like(values)) * step
    return torch.where(torch.isfinite(moved), moved, values).to(dtype)
