"""Cross-entropy of the supervised positions, computed in chunks so that the logits of a whole batch never exist at once.

Logits are in the model's compute dtype, the loss in fp32, summed, not averaged: the caller knows how many tokens its step has.
Shapes: S supervised positions, C of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import cross_entropy

LOGITS = 2**25
"""Logits that exist at once (128 MiB in fp32)."""

Head = Callable[[torch.Tensor], torch.Tensor]


def head_loss(head: Head, hidden_SH: torch.Tensor, targets_S: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return the sum of the token losses, without gradients."""
    with torch.no_grad():
        losses = [
            cross_entropy(head(hidden).float(), targets, reduction="sum")
            for hidden, targets in _chunks(hidden_SH, targets_S, vocabulary)
        ]
    return torch.stack(losses).sum() if losses else hidden_SH.new_zeros((), dtype=torch.float32)


def head_backward(
    head: Head, hidden_SH: torch.Tensor, targets_S: torch.Tensor, vocabulary: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the token losses, and the gradient of `scale` times it with respect to the hidden states, [S, H].

    The head's own gradients accumulate on the way. Each chunk goes backward at once, so nothing has to be computed twice.
    """
    losses, gradients = [], []
    for hidden, targets in _chunks(hidden_SH, targets_S, vocabulary):
        leaf = hidden.requires_grad_()
        logits = head(leaf)
        loss, gradient = _loss_and_gradient(logits.detach(), targets, scale)
        logits.backward(gradient)  # type: ignore[no-untyped-call]
        losses.append(loss)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    if not losses:
        return hidden_SH.new_zeros((), dtype=torch.float32), torch.zeros_like(hidden_SH)
    return torch.stack(losses).sum(), torch.cat(gradients)


def _loss_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy and the gradient of `scale` times it, [C, V] in the logits' type.

    By hand and in place: autograd's own takes twice the time, most of it for memory that it touches once.
    """
    log_probabilities = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    every = torch.arange(len(targets_C), device=targets_C.device)
    loss = -log_probabilities[every, targets_C].sum()
    gradient = log_probabilities.exp_()
    gradient[every, targets_C] -= 1.0
    return loss, gradient.mul_(scale).to(logits_CV.dtype)


def _chunks(hidden_SH: torch.Tensor, targets_S: torch.Tensor, vocabulary: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = max(64, LOGITS // vocabulary)
    for start in range(0, len(targets_S), size):
        yield hidden_SH[start : start + size].detach(), targets_S[start : start + size]
