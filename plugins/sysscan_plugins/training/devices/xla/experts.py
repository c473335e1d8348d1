"""Experts of a mixture with static shapes, registered with transformers' interface of experts.

Exact: every expert computes every token, weighted by 0 where it was not chosen; E / top_k times the work. With a capacity:
each expert has a fixed number of places per group of tokens, as many as `capacity` times an even share, and a token that finds
none is dropped by that expert (the residual connection carries it on); dropped choices are counted on the device.

Shapes: N tokens, k choices of a token, E experts, H hidden size, I inner size, M groups, G tokens of a group, C places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, one_hot

NAME = "sysscan_static"
GROUP = 1024
"""Tokens at most that share an expert's places; what assigns them grows with its square."""

Divide = Callable[[torch.Tensor], torch.Tensor]


def looped_experts(module: Any, hidden_NH: torch.Tensor, chosen_Nk: torch.Tensor, weights_Nk: torch.Tensor) -> torch.Tensor:
    """Return [N, H], exactly what the model says."""
    gate_up, down = module.gate_up_proj, module.down_proj  # once: adapters compute them at each access
    weights_NE = (one_hot(chosen_Nk.long(), module.num_experts) * weights_Nk[..., None].float()).sum(1).to(hidden_NH.dtype)
    output = torch.zeros_like(hidden_NH)
    for expert in range(module.num_experts):
        gate, up = linear(hidden_NH, gate_up[expert]).chunk(2, dim=-1)
        output = output + linear(module.act_fn(gate) * up, down[expert]) * weights_NE[:, expert, None]
    return output


class CapacityExperts:
    """Experts with a fixed number of places; an object counts what it drops."""

    def __init__(self, capacity: float, dropped: torch.Tensor, divide: Divide, *, recomputed: bool) -> None:
        self.capacity = capacity
        self.dropped = dropped
        """Choices that found no place, in training, so far (0-d, on the device)."""
        self.divide = divide
        self.recomputed = recomputed
        """Whether layers run twice in a step (gradient checkpointing): then the first time, without gradients, counts."""
        self.real_BT: torch.Tensor | None = None
        """Which positions of the batch are not padding; the others take no place."""

    def __call__(self, module: Any, hidden_NH: torch.Tensor, chosen_Nk: torch.Tensor, weights_Nk: torch.Tensor) -> torch.Tensor:
        """Return [N, H]."""
        assert self.real_BT is not None
        group = _group(self.real_BT.shape[1])
        places = min(group, math.ceil(self.capacity * chosen_Nk.shape[1] * group / module.num_experts))
        combine_MGEC, dropped = self._assign(chosen_Nk, weights_Nk, group, places, module.num_experts)
        if module.training and torch.is_grad_enabled() != self.recomputed:
            self.dropped.add_(dropped)
        dispatch_MGEC = (combine_MGEC > 0).to(hidden_NH.dtype)
        inputs = self.divide(torch.einsum("mgec,mgh->emch", dispatch_MGEC, hidden_NH.view(-1, group, hidden_NH.shape[1])))
        gate, up = torch.einsum("emch,eih->emci", inputs, module.gate_up_proj).chunk(2, dim=-1)
        outputs = self.divide(torch.einsum("emci,ehi->emch", module.act_fn(gate) * up, module.down_proj))
        return torch.einsum("mgec,emch->mgh", combine_MGEC.to(hidden_NH.dtype), outputs).reshape(hidden_NH.shape)

    def _assign(
        self, chosen_Nk: torch.Tensor, weights_Nk: torch.Tensor, group: int, places: int, experts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight of each token in each place, [M, G, E, C], and the number of choices without one (0-d)."""
        assert self.real_BT is not None
        choices = chosen_Nk.shape[1]
        wanted = one_hot(chosen_Nk.long(), experts) * self.real_BT.reshape(-1, 1, 1).long()
        wanted = wanted.view(-1, group * choices, experts)  # in the order of the tokens: earlier ones come first
        place = (wanted.cumsum(1) - 1) * wanted  # below 0 nowhere: what is not wanted is 0
        found = wanted * (place < places).long()
        dropped = (wanted - found).sum().float()
        at = (place[..., None] == torch.arange(places, device=place.device)) & (found[..., None] > 0)
        weights = weights_Nk.view(-1, group * choices, 1, 1).float() * at.float()
        return weights.view(weights.shape[0], group, choices, experts, places).sum(2), dropped


def _group(length: int) -> int:
    """Return the largest size of equal groups of a row."""
    return next(length // parts for parts in range(1, length + 1) if length % parts == 0 and length // parts <= GROUP)


def use_static_experts(model: Any, experts: Callable[..., torch.Tensor]) -> None:
    """Make a mixture of transformers compute its experts by this function."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    model.set_experts_implementation(NAME)


def forget_experts() -> None:
    """Let go of what `use_static_experts` was given: transformers would keep it to the end of the process."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, looped_experts)
