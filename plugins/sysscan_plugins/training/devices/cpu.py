"""Training on the CPU. With the same number of threads, the same inputs give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sysscan_plugins.training.devices.eager import EagerDevice


class CPU(EagerDevice):
    """The processor of this machine; threads as torch was told (OMP_NUM_THREADS)."""

    def __init__(self) -> None:
        super().__init__("cpu")

    @contextmanager
    def exact(self, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Use deterministic operations, and as many threads as the run began with: sums depend on how they are divided."""
        memory: Any = torch.utils.deterministic
        threads, fill = torch.get_num_threads(), memory.fill_uninitialized_memory
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.set_num_threads(int(facts.get("threads", threads)))
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # it costs a pass over every new tensor and changes no result
        try:
            yield {"threads": torch.get_num_threads()}
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill

    def is_out_of_memory(self, error: BaseException) -> bool:
        """See Device; torch's CPU allocator raises a plain RuntimeError."""
        text = str(error)
        return isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
        )
