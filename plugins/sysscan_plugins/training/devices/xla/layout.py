"""Where each tensor lies: a mesh of devices ('fsdp', 'tensor'), and which dimension of a tensor which axis divides.

What is not annotated, XLA may hold whole on every device without a word: results stay right, memory does not. So layouts are
asked for by name and checked after loading and after the first step. Only shards are sent: no device and no second copy on the
host ever holds a whole tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs

from sysscan_models.errors import SysscanError, UserError
from sysscan_models.planning.memory import sharded_dim

Spec = tuple[str | None, ...]
"""For each dimension the axis that divides it, or None."""

_COLUMN = re.compile(r"\.(q|k|v|gate|up)_proj\.(base_layer\.)?weight$")
_ROW = re.compile(r"\.(o|down)_proj\.(base_layer\.)?weight$")


class Layout:
    """The mesh of a run, and what follows from it for each tensor."""

    def __init__(self, devices: int, tensor_parallel: int, *, processes: int = 1) -> None:
        if devices % tensor_parallel:
            raise UserError(
                f"tensor_parallel is {tensor_parallel}, which does not divide the {devices} devices here; "
                f"valid choices: {', '.join(str(size) for size in range(1, devices + 1) if devices % size == 0)}"
            )
        self.device = torch_xla.device()
        self.axes = {"fsdp": devices // tensor_parallel, "tensor": tensor_parallel}
        self.mesh = xs.Mesh(np.arange(devices), tuple(self.axes.values()), tuple(self.axes))
        self._processes = processes

    def of_parameter(self, name: str, shape: Sequence[int]) -> Spec:
        """Return the layout of a parameter, by the rule that the plan goes by; projections are divided both ways."""
        shape = tuple(shape)
        column = 0 if _COLUMN.search(name) else 1 if _ROW.search(name) else None
        if self.axes["tensor"] > 1 and column is not None and shape[column] % self.axes["tensor"] == 0:
            other = 1 - column
            fsdp = "fsdp" if self.axes["fsdp"] > 1 and shape[other] % self.axes["fsdp"] == 0 else None
            return ("tensor", fsdp) if column == 0 else (fsdp, "tensor")
        dim = sharded_dim(shape, self.axes["fsdp"])
        return tuple("fsdp" if i == dim else None for i in range(len(shape)))

    def of_state(self, parameter: Spec, shape: Sequence[int], state_shape: Sequence[int]) -> Spec:
        """Return the layout of a state tensor of a parameter: the parameter's, but sums over a dimension are not divided."""
        if len(state_shape) != len(shape):
            return (None,) * len(state_shape)
        return tuple(axis if size == own else None for axis, size, own in zip(parameter, shape, state_shape, strict=True))

    def send(self, tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
        """Return a CPU tensor on the devices, each of which gets its part alone."""
        sent: torch.Tensor = xm.send_cpu_data_to_device(tensor, self.device, xs.ShardingSpec(self.mesh, spec))[0]
        return sent

    def send_rows(self, arrays: Sequence[Any]) -> list[torch.Tensor]:
        """Return integer arrays [B, T] on the devices as int32, rows divided, in one transfer.

        In a slice of several hosts, the arrays are this process's rows (untested).
        """
        tensors = [torch.from_numpy(array.astype(np.int32)) for array in arrays]
        spec = xs.ShardingSpec(self.mesh, ("fsdp", None), minibatch=self._processes > 1)
        sent: list[torch.Tensor] = xm.send_cpu_data_to_device(tensors, self.device, spec)
        return sent

    def send_number(self, value: float) -> torch.Tensor:
        """Return a number on the devices (0-d); as data, for a number in a graph would make it another graph."""
        return self.send(torch.tensor([value], dtype=torch.float32), (None,)).reshape(())

    def mark(self, tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
        """Annotate a tensor that is or will be on the devices, in place."""
        xs.mark_sharding(tensor, self.mesh, spec)
        return tensor

    def mark_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Annotate an activation, and the gradient that it will get: the first dimension is divided over the rows' axis."""
        spec = ("fsdp", *(None,) * (tensor.ndim - 1))
        if tensor.requires_grad and not tensor.is_leaf:
            tensor.register_hook(lambda gradient: self.mark(gradient, spec))  # type: ignore[no-untyped-call]
        return self.mark(tensor, spec)

    def mark_experts(self, tensor: torch.Tensor) -> torch.Tensor:
        """Send tokens [E, ...] to the devices that hold their experts, where experts are divided."""
        return tensor if tensor.shape[0] % self.axes["fsdp"] else self.mark_rows(tensor)

    def check(self, tensors: Iterable[tuple[str, torch.Tensor, Spec]], when: str) -> None:
        """Raise SysscanError when a tensor does not lie as it should."""
        for name, tensor, spec in tensors:
            found, expected = sharding(tensor), self._written(spec)
            if found != expected:
                raise SysscanError(
                    f"{when}, {name} {list(tensor.shape)} lies {found or 'whole'} on the devices; expected {expected}. "
                    f"Training would need more memory than planned. Report this with your torch_xla version"
                )

    def _written(self, spec: Spec) -> str:
        """Return a layout as the runtime writes it."""
        tiles = [self.axes[axis] if axis else 1 for axis in spec]
        if all(tile == 1 for tile in tiles):
            return "{replicated}"
        used = [axis for axis in spec if axis]
        ids = self.mesh.get_logical_mesh()
        left = [axis for axis in self.axes if axis not in used]
        order = [list(self.axes).index(axis) for axis in (*used, *left)]
        copies = self.mesh.size() // int(np.prod(tiles))
        shown = [*tiles, copies] if copies > 1 else tiles
        replicated = " last_tile_dim_replicate" if copies > 1 else ""
        devices = ",".join(str(number) for number in ids.transpose(order).flatten())
        return f"{{devices=[{','.join(str(tile) for tile in shown)}]{devices}{replicated}}}"


def sharding(tensor: torch.Tensor) -> str:
    """Return how a tensor lies, as the runtime writes it; empty when it was never said."""
    written: str = torch_xla._XLAC._get_xla_sharding_spec(tensor)
    return written


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the devices on the CPU, put together here: no device gathers it, and nothing is compiled."""
    tensor = tensor.detach()
    xm.wait_device_ops()  # the graph that makes it may still run
    parts = torch_xla._XLAC._get_local_shards([tensor])[0]
    places = torch_xla._XLAC._get_local_shard_replica_and_indices([tensor])[0]
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    for (part, _), (_, place) in zip(parts, places, strict=True):
        if place is Ellipsis:
            return part.reshape(tensor.shape)  # type: ignore[no-any-return]
        result[tuple(place)] = part[tuple(slice(0, at.stop - at.start) for at in place)]
    return result
