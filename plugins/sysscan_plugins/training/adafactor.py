"""Adafactor with everything on the device: the maths and the state of torch.optim.Adafactor, which reads the host each step.

A read is what a compiled graph cannot have and what makes a GPU wait. Here the learning rate may be a tensor, a step can be
undone on the device where its gradients are not finite, and a subclass that holds parts of parameters says how means are made.
Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018. Not made for complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Adafactor(torch.optim.Optimizer):
    """One row and one column of second moments per matrix (the last two dimensions), a full one per vector.

    State by torch's names: `step` [], and `row_var` [..., R, 1] and `col_var` [..., 1, C], or `variance` [N]; all fp32 for fp32
    parameters and on their device.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.finite: torch.Tensor | None = None
        """0-d and boolean, or None; where it is false, a step changes neither parameters nor state."""
        super().__init__(params, {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay})

    def mean(self, parameter: torch.Tensor, tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        """Return the mean over `dims` (negative, kept with size 1) of what belongs to a whole parameter.

        Where `parameter` is a part, `tensor` is that part's and has as many dimensions: a subclass adds up the parts' sums, if
        the dimension that was divided is among `dims`, and divides by the whole parameter's sizes.
        """
        return tensor.mean(dim=dims, keepdim=True)

    @torch.no_grad()
    def prime(self) -> None:
        """Create the state of every parameter, as before the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter].update(_state(parameter))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.state[parameter].update(_state(parameter))
                    self._update(parameter, parameter.grad, self.state[parameter], group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        rate, (eps1, eps2) = group["lr"], group["eps"]
        eps1 = torch.finfo(parameter.dtype).eps if eps1 is None else eps1
        every = tuple(range(-parameter.ndim, 0))
        step = state["step"] + 1
        weight = step ** group["beta2_decay"]  # of the new second moment
        scale = self.mean(parameter, parameter.square(), every).sqrt().reshape(())
        alpha = scale.clamp(min=eps2) * step.rsqrt().clamp(max=rate)
        moments = self._moments(parameter, gradient.square(), state, weight)
        update = _estimate(moments, lambda row: self.mean(parameter, row, (-2,)), eps1).clamp_(min=eps1 * eps1).rsqrt_()
        update.mul_(gradient)
        rms = self.mean(parameter, update.square(), every).sqrt().reshape(())
        update.mul_(alpha / (rms / group["d"]).clamp(min=1.0))
        kept = parameter * (1 - rate * group["weight_decay"]) if group["weight_decay"] else parameter
        for old, new in (
            (parameter, kept.sub(update)),
            (state["step"], step),
            *((state[key], moments[key]) for key in moments),
        ):
            old.copy_(new if self.finite is None else torch.where(self.finite, new, old))

    def _moments(
        self, parameter: torch.Tensor, squared: torch.Tensor, state: dict[str, Any], weight: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the second moments after this step."""
        if parameter.ndim < 2:
            return {"variance": torch.lerp(state["variance"], squared, weight)}
        return {
            "row_var": torch.lerp(state["row_var"], self.mean(parameter, squared, (-1,)), weight),
            "col_var": torch.lerp(state["col_var"], self.mean(parameter, squared, (-2,)), weight),
        }


def _state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
    if parameter.ndim < 2:
        return {**state, "variance": torch.zeros_like(parameter)}
    *batch, rows, columns = parameter.shape
    return {**state, "row_var": parameter.new_zeros([*batch, rows, 1]), "col_var": parameter.new_zeros([*batch, 1, columns])}


def _estimate(moments: dict[str, torch.Tensor], mean: Callable[[torch.Tensor], torch.Tensor], eps1: float) -> torch.Tensor:
    """Return the second moment of every number of a parameter (a new tensor), from those of its rows and columns."""
    if "variance" in moments:
        return moments["variance"].clone()
    return (moments["row_var"] * moments["col_var"]).div_(mean(moments["row_var"]).clamp(min=eps1))
