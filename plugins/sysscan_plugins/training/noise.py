"""Random numbers that divide: those of one element are computed from its place, so each device makes its own part alone.

A compiler that divides tensors over devices does not divide torch's random numbers: every device makes all of them. These are
a hash of a number drawn anew at each call and of the place in the tensor, in plain integer arithmetic. They are the same on any
number of devices, and follow the seed of the device.
"""

from __future__ import annotations

import torch


def uniform_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return fp32 numbers in [0, 1) of the tensor's shape, on its device; multiples of 2**-24."""
    high, low = (torch.rand(2, device=tensor.device) * 2.0**16).int().unbind()
    mixed = _places(tensor) + (high * 2**16 + low)
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):  # triple32, found by Chris Wellons
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return _shifted(mixed ^ _shifted(mixed, 14), 8).float() * 2.0**-24


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Return the number of each element, modulo 2**32, as int32; from one dimension at a time, for those are divided easily."""
    places, stride = torch.zeros((), dtype=torch.int32, device=tensor.device), 1
    for dim in reversed(range(tensor.ndim)):
        size = tensor.shape[dim]
        along = torch.arange(size, dtype=torch.int32, device=tensor.device) * _signed(stride)
        places = places + along.view(size, *(1,) * (tensor.ndim - dim - 1))
        stride *= size
    return places


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift int32 to the right and fill with zeros, as for unsigned numbers.

    What would fall out is removed first: torch_xla divides instead, which rounds negative numbers towards zero.
    """
    shifted: torch.Tensor = ((bits & -(2**by)) >> by) & (2 ** (32 - by) - 1)
    return shifted


def _signed(number: int) -> int:
    """Return the number of 32 bits that is congruent, as int32 has it."""
    return (number + 2**31) % 2**32 - 2**31
