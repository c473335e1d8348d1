"""Training on several CUDA devices or CPU processes: PyTorch's fully sharded data parallelism (FSDP2), started by torchrun.

Every process holds a part of each parameter, of its fp32 master and of the optimizer's state; a layer's weights are gathered
when it computes, and its gradients are summed and divided again. A process takes its own rows of each global batch, so that a
step is the same step whatever the number of processes. Checkpoints are torch.distributed.checkpoint's and can be resumed on
another number of processes. Of a model that is too large for one machine no process ever holds more than its part and a tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from sysscan_models.errors import SysscanError, UserError
from sysscan_plugins.training import TrainingOptions, checkpoints
from sysscan_plugins.training.adafactor import Adafactor
from sysscan_plugins.training.batches import Batch
from sysscan_plugins.training.devices import PATIENCE, Weights
from sysscan_plugins.training.devices.eager import EagerDevice, causal_model
from sysscan_plugins.training.optimizers import MasterOptimizer, decayed


class FullySharded(EagerDevice):
    """All processes that torchrun started, one device each: `cpu` (gloo) or `cuda` (NCCL, and gloo for what is on the CPU)."""

    streams = True

    def __init__(self, name: str) -> None:
        kind, _, number = name.partition(":")
        if number:
            raise UserError(f"device {name!r} names one card, but several processes were started; set device to {kind!r}")
        self._single = _own_device(kind)
        super().__init__(self._single.name)
        if not dist.is_initialized():
            dist.init_process_group("gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
        self.process, self.processes = dist.get_rank(), dist.get_world_size()
        self.count = self.processes
        self.name = f"{self.count} x {kind}"
        self.peak_flops = self._single.peak_flops
        self._mesh = init_device_mesh(kind, (self.count,))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif isinstance(error, dist.DistBackendError) or "Connection closed by peer" in str(error):
            raise SysscanError("another process failed; its message says why") from error
        # With an error on its way nothing is closed: that would wait for processes that may be gone.

    def close(self) -> None:
        """See Device."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
        """See Device; parameters are read one at a time, and each process keeps its part."""
        if weights is None:
            raise ValueError("a sharded device reads the parameters from `weights`")
        causal = causal_model(model)
        self.prepare(causal, options)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        # The output head is called by the loss, outside of the model's own forward, so it has to belong to the root, whose
        # weights stay gathered from the forward pass to the end of the backward pass; and the root must be entered by a call.
        causal.forward = causal.model.forward
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in [*causal.model.layers, causal]:
            fully_shard(module, mesh=self._mesh, mp_policy=policy)
            module.set_gradient_divide_factor(1.0)  # the loss is scaled by the tokens of all processes: gradients are summed
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        model.to_empty(device=self.device)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        self._fill(dict(model.named_parameters()), weights)

    @torch.no_grad()
    def _fill(self, parameters: Mapping[str, torch.nn.Parameter], weights: Weights) -> None:
        missing = set(parameters)
        for name, tensor in weights:
            part = _local(parameters[name])
            part.copy_(own_part(tensor, self.process, self.processes))
            missing.discard(name)
        if missing:
            raise SysscanError(f"no weights were read for {len(missing)} parameters: {', '.join(sorted(missing)[:3])}")

    def decoder(self, causal: Any) -> Any:
        """See EagerDevice: the whole model, whose forward pass ends with the hidden states."""
        return causal

    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        """See Device."""
        own, share = self._own(batch)
        return self._summed(super().forward_backward(model, own, scale * share) * share)

    def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
        """See Device."""
        own, share = self._own(batch)
        loss = super().evaluate(model, own) * share
        causal_model(model).reshard()  # there is no backward pass that would
        return self._summed(loss)

    def _own(self, batch: Batch) -> tuple[Batch, int]:
        """Return this process's rows, and 1; where they have nothing to learn from, a stand-in whose loss counts 0 times.

        Every process has to take part in every exchange, and to have a gradient for every parameter.
        """
        own = batch.part(self.process, self.processes)
        if own.supervised:
            return own, 1
        token = np.zeros((1, 1), np.int64)
        return Batch(token, token, token, token + 1), 0

    def _summed(self, loss: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(loss)
        return loss

    def create_optimizer(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions) -> MasterOptimizer:
        """See Device."""
        return ShardedOptimizer(parameters, options, self._mesh)

    def exact(self, facts: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
        """See Device; as far as one process of this kind can."""
        return self._single.exact(facts)

    def seed(self, seed: int) -> None:
        """See Device; processes draw differently, for they have different rows."""
        torch.manual_seed(seed * self.processes + self.process)

    def monitor(self) -> dict[str, float]:
        """See Device; of the first process's device."""
        return self._single.monitor()

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Device."""
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return whole.detach().cpu()

    def added_up(self, counts: torch.Tensor) -> torch.Tensor:
        """See Device."""
        total = counts.clone()
        dist.all_reduce(total)
        return total.cpu()

    def save_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """See Device."""
        save(dict(optimizer.tensors()), storage_writer=FileSystemWriter(folder, sync_files=True))

    def load_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """See Device."""
        assert isinstance(optimizer, ShardedOptimizer)
        if checkpoints.is_sharded(folder):
            optimizer.load_parts(folder)
        else:
            optimizer.load(checkpoints.tensors(folder))

    def free_memory(self) -> None:
        """See Device."""
        self._single.free_memory()


class ShardedOptimizer(MasterOptimizer):
    """Masters, gradients and state of this process's part of every parameter: its rows of the first dimension."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        super().__init__(parameters, options)

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """See MasterOptimizer; it shares the memory of the parameter."""
        return _local(tensor)

    def create(self, options: TrainingOptions) -> torch.optim.Optimizer:
        """See MasterOptimizer."""
        if options.optimizer == "adafactor":
            rows = {master: self.parameters[name].shape[0] for name, master in self.masters.items()}
            return _Adafactor(decayed(self.masters, options), rows, options.learning_rate)
        return super().create(options)

    def norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """See MasterOptimizer; over the parts of all processes."""
        squares = super().norm(gradients).square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See MasterOptimizer; as DTensors, for torch.distributed.checkpoint, but for what every process has alike."""
        for name, tensor in super().tensors():
            shape = self._whole(name, tensor.shape)
            yield name, _sharded(tensor, shape, self._mesh) if shape else tensor

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See MasterOptimizer; takes whole tensors, as one device writes them."""
        process, processes = self._mesh.get_local_rank(), self._mesh.size()
        super().load(
            (name, own_part(tensor, process, processes) if self._whole(name, tensor.shape) else tensor)
            for name, tensor in tensors
        )

    def load_parts(self, folder: Path) -> None:
        """Put back what any number of processes wrote; each reads its own part."""
        reader = FileSystemReader(folder)
        targets, parts = {}, {}
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            device = self.masters[name.partition(":")[2]].device
            whole = torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
            shape = self._whole(name, whole.shape)
            part = own_part(whole, self._mesh.get_local_rank(), self._mesh.size()) if shape else whole
            parts[name] = torch.empty_like(part, device=device)
            targets[name] = _sharded(parts[name], shape, self._mesh) if shape else parts[name]
        load(targets, storage_reader=reader)
        super().load(parts.items())

    def _whole(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of all parts of a tensor of the state together; nothing for what every process has alike."""
        key, _, parameter = name.partition(":")
        whole = self.parameters[parameter].shape
        if not shape or (key == "col_var" and len(whole) == 2):
            return ()
        return (whole[0], *shape[1:])


class _Adafactor(Adafactor):
    """Adafactor on the rows that this process has of every parameter."""

    def __init__(self, groups: Any, rows: Mapping[Any, int], lr: float) -> None:
        self._rows = rows
        super().__init__(groups, lr=lr)

    def mean(self, parameter: torch.Tensor, tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        """See Adafactor."""
        if -parameter.ndim not in dims:
            return super().mean(parameter, tensor, dims)
        total = tensor.sum(dim=dims, keepdim=True)
        dist.all_reduce(total)
        count = self._rows[parameter] * math.prod(tensor.shape[dim] for dim in dims if dim != -parameter.ndim)
        return total / count


def _own_device(kind: str) -> EagerDevice:
    """Return this process's own device: torchrun numbers the processes of a machine."""
    if kind == "cpu":
        from sysscan_plugins.training.devices.cpu import CPU

        return CPU()
    from sysscan_plugins.training.devices.cuda import CUDA

    device = CUDA(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    torch.cuda.set_device(device.device)
    return device


def own_part(tensor: torch.Tensor, process: int, processes: int) -> torch.Tensor:
    """Return the rows of the first dimension that FSDP2 gives to a process: equal parts, the last ones smaller or empty."""
    parts = tensor.chunk(processes)
    return parts[process] if process < len(parts) else tensor[:0]


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.detach().to_local()
    return local


def _sharded(part: torch.Tensor, shape: tuple[int, ...], mesh: DeviceMesh) -> DTensor:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)
