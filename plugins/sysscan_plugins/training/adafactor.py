"""Adafactor with everything on the device: the maths and the state of torch.optim.Adafactor, which reads the host each step.

A read is what a compiled graph cannot have and what makes a GPU wait. Here the learning rate may be a tensor, a step can be
undone on the device where its gradients are not finite, and a subclass that holds parts of parameters says how means are made.
Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018. Not made for complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from sysscan_plugins.training.static_optimizers import StaticOptimizer


class Adafactor(StaticOptimizer):
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
        super().__init__(params, {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay})

    def mean(self, parameter: torch.Tensor, tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        """Return the mean over `dims` (negative, kept with size 1) of what belongs to a whole parameter.

        Where `parameter` is a part, `tensor` is that part's and has as many dimensions: a subclass adds up the parts' sums, if
        the dimension that was divided is among `dims`, and divides by the whole parameter's sizes.
        """
        return tensor.mean(dim=dims, keepdim=True)

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """See StaticOptimizer."""
        if parameter.ndim < 2:
            return {"variance": torch.zeros_like(parameter)}
        *batch, rows, columns = parameter.shape
        return {"row_var": parameter.new_zeros([*batch, rows, 1]), "col_var": parameter.new_zeros([*batch, 1, columns])}

    def changes(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """See StaticOptimizer."""
        rate, (eps1, eps2) = group["lr"], group["eps"]
        eps1 = torch.finfo(parameter.dtype).eps if eps1 is None else eps1
        every = tuple(range(-parameter.ndim, 0))
        step = state["step"] + 1
        weight = step ** group["beta2_decay"]  # of the new second moment
        scale = self.mean(parameter, parameter.square(), every).sqrt().reshape(())
        alpha = scale.clamp(min=eps2) * step.rsqrt().clamp(max=rate)
        moments = self._moved(parameter, gradient.square(), state, weight)
        update = _estimate(moments, lambda row: self.mean(parameter, row, (-2,)), eps1).clamp_(min=eps1 * eps1).rsqrt_()
        update.mul_(gradient)
        rms = self.mean(parameter, update.square(), every).sqrt().reshape(())
        update.mul_(alpha / (rms / group["d"]).clamp(min=1.0))
        kept = parameter * (1 - rate * group["weight_decay"]) if group["weight_decay"] else parameter
        return (
            (parameter, kept.sub(update)),
            (state["step"], step),
            *((state[key], moments[key]) for key in moments),
        )

    def _moved(
        self, parameter: torch.Tensor, squared: torch.Tensor, state: dict[str, Any], weight: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the second moments after this step."""
        if parameter.ndim < 2:
            return {"variance": torch.lerp(state["variance"], squared, weight)}
        return {
            "row_var": torch.lerp(state["row_var"], self.mean(parameter, squared, (-1,)), weight),
            "col_var": torch.lerp(state["col_var"], self.mean(parameter, squared, (-2,)), weight),
        }


def _estimate(moments: dict[str, torch.Tensor], mean: Callable[[torch.Tensor], torch.Tensor], eps1: float) -> torch.Tensor:
    """Return the second moment of every number of a parameter (a new tensor), from those of its rows and columns."""
    if "variance" in moments:
        return moments["variance"].clone()
    return (moments["row_var"] * moments["col_var"]).div_(mean(moments["row_var"]).clamp(min=eps1))
