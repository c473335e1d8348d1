"""The device interface: everything of the training loop that depends on where it runs.

The loop hands over fixed [B, T] batches and gets device tensors back, which it reads only at the log interval. A device with
static shapes (XLA) can use the batches as they are; one with dynamic shapes strips the padding. Device modules are imported
when they are asked for. Shapes: B rows, T positions, N real tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from sysscan_models.errors import UserError

if TYPE_CHECKING:
    import torch

    from sysscan_plugins.training import TrainingOptions
    from sysscan_plugins.training.batches import Batch
    from sysscan_plugins.training.optimizers import MasterOptimizer


class Device(ABC):
    """Where a model trains. One object per run."""

    name: str
    """What a record says: `cpu`, `cuda:0`, ..."""
    count: int = 1
    """Devices that share an optimizer step; each gets `batch_size` rows of it."""

    @abstractmethod
    def place(self, model: Any, options: TrainingOptions) -> None:
        """Move the model here and choose its attention; called once, before the optimizer is created."""

    @abstractmethod
    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        """Return the sum of the token losses of one micro-batch (0-d, on the device); gradients times scale add up."""

    @abstractmethod
    def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the token losses of one micro-batch (0-d, on the device), without gradients."""

    @abstractmethod
    def create_optimizer(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions) -> MasterOptimizer:
        """Return the optimizer of the trainable parameters, with fp32 masters; accumulation and clipping are its too."""

    def total_supervised(self, count: int) -> int:
        """Return the number of supervised tokens of a step over all processes, given this process's."""
        return count

    def exact(self, facts: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
        """Make the same inputs give the same bytes as far as this device can, until the context ends.

        Gives what the bytes depend on (the number of threads, say); `facts` is what it gave when the run began, to go by.
        """
        return nullcontext(facts)

    def seed(self, seed: int) -> None:
        """Seed the random numbers of this device (dropout); called before every step."""
        import torch

        torch.manual_seed(seed)

    def end_micro_batch(self) -> None:  # noqa: B027 - most devices have nothing to do
        """Mark the end of a micro-batch (XLA cuts its graph here)."""

    def read(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        """Return the values of 0-d device tensors, in one transfer; the only place where the host waits."""
        import torch

        return [float(value) for value in torch.stack([tensor.float() for tensor in tensors]).cpu().tolist()] if tensors else []

    def state(self, optimizer: MasterOptimizer) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield what a checkpoint holds, by name, as CPU tensors, one at a time."""
        for name, tensor in optimizer.tensors():
            yield name, tensor.cpu()

    def load_state(self, optimizer: MasterOptimizer, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Put back what `state` gave, in any order, and bring the model's weights up to date with the masters."""
        optimizer.load(tensors)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Say whether an error of `forward_backward` means that the micro-batch was too large."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:  # noqa: B027 - nothing to do on a CPU
        """Give cached memory back, after an out-of-memory error."""


def open_device(name: str = "auto") -> Device:
    """Return the device of that name; `auto` takes CUDA when there is one. Raises UserError with the valid choices."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind == "cpu":
        from sysscan_plugins.training.devices.cpu import CPU

        return CPU()
    if kind == "cuda":
        from sysscan_plugins.training.devices.cuda import CUDA

        return CUDA(name)
    raise UserError(f"unknown device {name!r}. Valid choices: auto, cpu, cuda, cuda:N")
