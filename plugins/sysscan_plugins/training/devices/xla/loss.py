"""Cross-entropy with static shapes: every position has logits, a chunk of positions at a time, masked without a target.

`training.loss` picks the supervised positions first, which gives each batch other shapes. The gradient is made with the loss,
so the logits of all positions never exist at once and nothing is computed twice.

Shapes: B rows, T positions, C positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sysscan_models.encoding import IGNORE_INDEX
from sysscan_plugins.training.devices.xla.order import after

Head = Callable[[torch.Tensor], torch.Tensor]


def head_loss(head: Head, hidden_BTH: torch.Tensor, targets_BT: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the sum of the token losses, without gradients."""
    with torch.no_grad():
        total_B11 = hidden_BTH.new_zeros((len(hidden_BTH), 1, 1), dtype=torch.float32)
        for hidden, targets in _chunks(hidden_BTH, targets_BT, chunk):
            logits = head(after(hidden, total_B11, kept=1))
            total_B11 = total_B11 + _loss(torch.log_softmax(logits, dim=-1, dtype=torch.float32), _hits(logits, targets))
        return total_B11.sum()


def head_backward(
    head: Head, hidden_BTH: torch.Tensor, targets_BT: torch.Tensor, chunk: int, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the token losses, and the gradient of `scale` (0-d) times it for the hidden states, [B, T, H].

    The head's own gradients accumulate on the way. Nothing makes a compiler take them chunk by chunk: that would be a transfer
    between all devices for each. So for a head that is trained, it may keep the gradients of all logits until then.
    """
    total_B11 = hidden_BTH.new_zeros((len(hidden_BTH), 1, 1), dtype=torch.float32)  # per row: each device looks at its own
    gradients: list[torch.Tensor] = []
    for hidden, targets in _chunks(hidden_BTH, targets_BT, chunk):
        leaf = after(hidden, total_B11, *gradients[-1:], kept=1).requires_grad_()
        logits = head(leaf)
        loss_B11, gradient = _loss_and_gradient(logits.detach(), targets, scale)
        logits.backward(gradient)  # type: ignore[no-untyped-call]
        total_B11 = total_B11 + loss_B11
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    return total_B11.sum(), torch.cat(gradients, dim=1)


def _loss_and_gradient(
    logits_BCV: torch.Tensor, targets_BC: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    log_probabilities = torch.log_softmax(logits_BCV, dim=-1, dtype=torch.float32)
    supervised_BC = (targets_BC != IGNORE_INDEX).float()
    hit = _hits(log_probabilities, targets_BC)
    gradient = (log_probabilities.exp() - hit) * (supervised_BC * scale)[..., None]
    return _loss(log_probabilities, hit), gradient.to(logits_BCV.dtype)


def _loss(log_probabilities_BCV: torch.Tensor, hit_BCV: torch.Tensor) -> torch.Tensor:
    """Return the sum of the losses of each row [B, 1, 1]; positions without a target add 0."""
    return -(log_probabilities_BCV * hit_BCV).sum((1, 2), keepdim=True)


def _hits(logits_BCV: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
    """Return 1 at each target and 0 elsewhere; a comparison, which XLA fuses, where a lookup would gather."""
    every = torch.arange(logits_BCV.shape[-1], device=targets_BC.device, dtype=targets_BC.dtype)
    return (targets_BC[..., None] == every).float()


def _chunks(hidden_BTH: torch.Tensor, targets_BT: torch.Tensor, chunk: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, hidden_BTH.shape[1], chunk):
        yield hidden_BTH[:, start : start + chunk].detach(), targets_BT[:, start : start + chunk]
