"""The optimizer of a run: fp32 master weights, fp32 gradient buffers, clipping, and AdamW or Adafactor on the masters.

A model in bf16 cannot take a small step (at a learning rate of 2e-5 an update rounds to nothing), so the step is taken on fp32
masters and copied back. Parameters that are fp32 already are their own masters. Does not know schedules or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter

from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.adafactor import Adafactor
from sysscan_plugins.training.static_optimizers import StaticAdamW, StaticOptimizer


class MasterOptimizer:
    """Accumulates gradients of micro-batches and takes optimizer steps; parameters are known by their names.

    Where parameters are sharded, masters, buffers and state are of this process's part of each; a subclass says which part
    that is, how a norm is made of all parts, and how the parts are written.
    """

    fused = True
    """Whether this device has torch's fused kernels for AdamW."""

    def __init__(self, parameters: Mapping[str, Parameter], options: TrainingOptions) -> None:
        self.parameters = dict(parameters)
        parts = {name: self.part(parameter) for name, parameter in self.parameters.items()}
        self.masters = {name: _master(part) for name, part in parts.items()}
        self._copied = {name: part for name, part in parts.items() if part.dtype != torch.float32}
        self._arrived: set[str] = set()
        self._buffers: dict[str, torch.Tensor] = {}
        self.optimizer = self.create(options)
        self._hooks = [self._watch(name) for name in self.parameters if self.masters[name] is not self.parameters[name]]

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a parameter or gradient."""
        return tensor

    def create(self, options: TrainingOptions) -> torch.optim.Optimizer:
        """Return the optimizer of the masters."""
        groups = decayed(self.masters, options)
        if options.optimizer == "adafactor":
            return Adafactor(groups, lr=options.learning_rate)
        rate, betas = options.learning_rate, (options.beta1, options.beta2)
        if self.fused and options.optimizer_state == "float32":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
        return StaticAdamW(groups, lr=rate, betas=betas, state_dtype=getattr(torch, options.optimizer_state))

    def norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the L2 norm of all gradients together (0-d)."""
        return torch.nn.utils.get_total_norm(gradients)

    def _watch(self, name: str) -> Any:
        parameter: Any = self.parameters[name]
        return parameter.register_post_accumulate_grad_hook(partial(self._accumulate, name))

    def _accumulate(self, name: str, parameter: torch.Tensor) -> None:
        """Add a gradient that has just arrived to its fp32 buffer and free it, before the next one arrives."""
        assert parameter.grad is not None
        gradient = self.part(parameter.grad)
        if name not in self._buffers:
            self._buffers[name] = torch.empty_like(self.masters[name])
        if name in self._arrived:
            self._buffers[name].add_(gradient)
        else:
            self._buffers[name].copy_(gradient)
            self._arrived.add(name)
        parameter.grad = None

    def discard(self) -> None:
        """Forget the gradients that were accumulated."""
        self._arrived.clear()
        for name, parameter in self.parameters.items():
            parameter.grad = None
            self.masters[name].grad = None

    def update(self, learning_rate: float, max_norm: float) -> torch.Tensor:
        """Clip, step, copy back to the model, and forget the gradients; return their norm before clipping (0-d).

        An update whose norm is not finite changes nothing: the caller sees it by the norm.
        """
        for name in self._arrived:
            self.masters[name].grad = self._buffers[name]
        norm = self.norm([master.grad for master in self.masters.values() if master.grad is not None])
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(self.masters.values(), max_norm, norm)
        self.step_if(torch.isfinite(norm), learning_rate)
        self._copy()
        self.discard()
        return norm

    def step_if(self, finite: torch.Tensor, learning_rate: float | torch.Tensor) -> None:
        """Take an optimizer step with this learning rate, or change nothing where `finite` (0-d) is false."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if isinstance(self.optimizer, StaticOptimizer):
            self.optimizer.finite = finite
        else:  # AdamW's fused kernels skip on the device, as for GradScaler
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()

    def _copy(self) -> None:
        """Bring the model's weights up to date with the masters."""
        if self._copied:
            with torch.no_grad():
                torch._foreach_copy_(list(self._copied.values()), [self.masters[name] for name in self._copied])

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the masters and the optimizer's state by name; they are the tensors themselves, not copies."""
        for name, master in self.masters.items():
            yield f"master:{name}", master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                yield f"{key}:{name}", value

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Put back what `tensors` gave, in any order, and bring the model's weights up to date with the masters."""
        missing = set(self.masters)
        with torch.no_grad():
            for full_name, tensor in tensors:
                key, _, name = full_name.partition(":")
                master = self.masters[name]
                if key == "master":
                    master.copy_(tensor)
                    missing.discard(name)
                else:
                    self.optimizer.state[master][key] = tensor.to(master.device, copy=True)
        self._copy()
        if missing:
            raise ValueError(f"no master weights for {sorted(missing)[:3]}")

    def release(self) -> None:
        """Free masters, buffers and state; the model keeps its weights."""
        for hook in self._hooks:
            hook.remove()
        self.discard()
        self.optimizer.state.clear()
        self.masters.clear()
        self._copied.clear()
        self._buffers.clear()


def _master(part: torch.Tensor) -> Parameter:
    if part.dtype != torch.float32:
        return Parameter(part.detach().float())
    return part if isinstance(part, Parameter) else Parameter(part.detach())


def decayed(masters: Mapping[str, Parameter], options: TrainingOptions) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: matrices with weight decay, norms and biases without."""
    matrices = [master for master in masters.values() if master.ndim >= 2]
    vectors = [master for master in masters.values() if master.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
