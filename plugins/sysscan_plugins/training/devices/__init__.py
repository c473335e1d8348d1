"""The device interface: everything of the training loop that depends on where it runs, and on how many devices.

The loop hands over fixed [B, T] batches and gets device tensors back, which it reads only at the log interval. A device with
static shapes (XLA) can use the batches as they are; one with dynamic shapes strips the padding. Device modules are imported
when they are asked for; those of other packages are found by the entry point group `sysscan_models.devices` (name -> class,
called with the whole name that was asked for). Shapes: B rows, T positions, N real tokens.

Several processes (torchrun, the workers of a TPU slice) run the same program: each is given the same global batches and takes
its part of them, and only the first one writes what is not sharded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sysscan_models import processes
from sysscan_models.config import DEVICES, device_choices
from sysscan_models.errors import SysscanError, UserError
from sysscan_plugins.training import checkpoints

if TYPE_CHECKING:
    from types import TracebackType

    import torch

    from sysscan_plugins.training import TrainingOptions
    from sysscan_plugins.training.batches import Batch
    from sysscan_plugins.training.optimizers import MasterOptimizer

Weights = Iterable[tuple[str, "torch.Tensor"]]
"""Parameters by their names in the model, as CPU tensors, read one at a time."""

PATIENCE = timedelta(days=2)
"""How long a process waits for the others: while the first one encodes an archive or hashes a checkpoint, hours."""


class Device(ABC):
    """Where a model trains. One object per run; a context manager, which gives back what it holds."""

    name: str
    """What a record says: `cpu`, `cuda:0`, `2 x cuda`, `TPU v5e-8`, ..."""
    count: int = 1
    """Devices that share an optimizer step, over all processes; each gets `batch_size` rows of it."""
    process: int = 0
    """This process's number among `processes`."""
    processes: int = 1
    streams: bool = False
    """Whether the model comes with its parameters on the meta device, for `place` to read them one at a time."""
    fixed_steps: bool = False
    """Whether every step must have the same number of micro-batches (XLA compiles each number anew)."""
    peak_flops: float = 0.0
    """Peak of one device in bf16 operations per second; 0 when it is not known."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most devices hold nothing
        """Leave the group of processes; the device is not used afterwards."""

    @abstractmethod
    def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
        """Move the model here and choose its attention; called once, before the optimizer is created.

        A device that `streams` reads the parameters from `weights`; others are given a model that has them.
        """

    @abstractmethod
    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        """Return the sum of the token losses of one micro-batch over all processes (0-d, on the device).

        Gradients times `scale` add up, also over the micro-batches of a step.
        """

    @abstractmethod
    def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the token losses of one micro-batch over all processes (0-d, on the device), without gradients."""

    @abstractmethod
    def create_optimizer(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions) -> MasterOptimizer:
        """Return the optimizer of the trainable parameters, with fp32 masters; accumulation and clipping are its too."""

    def exact(self, facts: Mapping[str, Any]) -> AbstractContextManager[Mapping[str, Any]]:
        """Make the same inputs give the same bytes as far as this device can, until the context ends.

        Gives what the bytes depend on (the number of threads, say); `facts` is what it gave when the run began, to go by.
        """
        return nullcontext(facts)

    def seed(self, seed: int) -> None:
        """Seed the random numbers of this device (dropout); called before every step."""
        import torch

        torch.manual_seed(seed)

    def end_step(self) -> None:  # noqa: B027 - most devices have nothing to do
        """Mark the end of an optimizer step (XLA runs its graph here)."""

    def read(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        """Return the values of 0-d device tensors, in one transfer; the only place where the host waits."""
        import torch

        return [float(value) for value in torch.stack([tensor.float() for tensor in tensors]).cpu().tolist()] if tensors else []

    def monitor(self) -> dict[str, float]:
        """Return what is worth seeing of the device at a log read: `memory_gb` at its peak, `compiles`, ..."""
        return {}

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a whole parameter on the CPU; all processes call it for the same parameters in the same order."""
        return tensor.detach().cpu()

    def added_up(self, counts: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes of what each has counted, on the CPU."""
        return counts.cpu()

    def save_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """Write masters and optimizer state into a folder that is there; all processes call it."""
        checkpoints.write_shards(folder, ((name, tensor.cpu()) for name, tensor in optimizer.tensors()))

    def load_state(self, optimizer: MasterOptimizer, folder: Path) -> None:
        """Put back what `save_state` wrote, on this or another number of devices, and bring the weights up to date."""
        optimizer.load(checkpoints.tensors(folder))

    @contextmanager
    def in_turn(self) -> Iterator[bool]:
        """Let the first process go through a block before the others; gives whether this is the first.

        Where the first one fails, the others do not enter: raises SysscanError there.
        """
        first, failed = self.process == 0, True
        if not first and self.agreed(False)[0]:
            raise SysscanError("another process failed; its message says why")
        try:
            yield first
            failed = False
        finally:
            if first:
                self.agreed(failed)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.agreed()

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether any process has it set; all processes get the same answer."""
        if self.processes == 1:
            return flags
        import torch
        import torch.distributed as dist

        # On the CPU: the accelerator's queue must not be waited for, and the limits of its library are minutes.
        values = torch.tensor([0.0, *map(float, flags)])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist()[1:])

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Say whether an error of `forward_backward` means that the micro-batch was too large."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:  # noqa: B027 - nothing to do on a CPU
        """Give cached memory back, after an out-of-memory error."""


def open_device(name: str = "auto") -> Device:
    """Return the device of that name, of all processes together where several were started (torchrun).

    `auto` takes CUDA when there is one. Raises UserError with the valid choices.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, several = name.partition(":")[0], processes.count() > 1
    if kind in ("cpu", "cuda") and several:
        from sysscan_plugins.training.devices.fsdp import FullySharded

        return FullySharded(name)
    if kind == "cpu":
        from sysscan_plugins.training.devices.cpu import CPU

        return CPU()
    if kind == "cuda":
        from sysscan_plugins.training.devices.cuda import CUDA

        return CUDA(name)
    if kind == "tpu":
        from sysscan_plugins.training.devices.xla import XLA

        return XLA()
    for point in entry_points(group=DEVICES):
        if point.name == kind:
            chosen: Callable[[str], Device] = point.load()
            return chosen(name)
    raise UserError(f"unknown device {name!r}. Valid choices: {device_choices()}")
