"""Training on one CUDA device."""

from __future__ import annotations

import torch

from sysscan_models.errors import UserError
from sysscan_models.machine import card_peak
from sysscan_plugins.training.devices.eager import EagerDevice


class CUDA(EagerDevice):
    """An NVIDIA (or ROCm) device: `cuda` or `cuda:N`."""

    def __init__(self, name: str = "cuda") -> None:
        if not torch.cuda.is_available():
            raise UserError(
                f"device {name!r} was asked for, but torch {torch.__version__} finds no CUDA device here; use `auto` or `cpu`"
            )
        index = name.partition(":")[2] or str(torch.cuda.current_device())
        if not index.isdigit() or int(index) >= torch.cuda.device_count():
            choices = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
            raise UserError(f"device {name!r} does not exist. Valid choices: {choices}")
        super().__init__(f"cuda:{index}")
        torch.backends.cuda.matmul.allow_tf32 = False
        self.peak_flops = card_peak(torch.cuda.get_device_name(self.device))

    def monitor(self) -> dict[str, float]:
        """See Device."""
        return {"memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """See Device."""
        return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))

    def free_memory(self) -> None:
        """See Device."""
        torch.cuda.empty_cache()
