"""Dropout whose mask each device makes for its own rows alone; torch's own is made whole on every device (see `noise`)."""

from __future__ import annotations

import torch

from sysscan_plugins.training.noise import uniform_like


class DividedDropout(torch.nn.Dropout):
    """What torch.nn.Dropout does, with another mask for the same seed."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the input's shape and type."""
        if not self.training or not self.p:
            return input
        kept = uniform_like(input) >= self.p
        return torch.where(kept, input / (1 - self.p), torch.zeros_like(input))


def divide_dropout(model: torch.nn.Module) -> None:
    """Let all dropout modules of a model make their masks in parts."""
    _turn(model, torch.nn.Dropout, DividedDropout)


def restore_dropout(model: torch.nn.Module) -> None:
    """Undo `divide_dropout`."""
    _turn(model, DividedDropout, torch.nn.Dropout)


def _turn(model: torch.nn.Module, old: type[torch.nn.Module], new: type[torch.nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
