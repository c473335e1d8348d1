"""Checkpoints of sharded tensors, with torch.distributed.checkpoint: written shard by shard, read on any number of devices."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch_xla.core.xla_model as xm
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch_xla.experimental.distributed_checkpoint import SPMDLoadPlanner, SPMDSavePlanner


def save(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write tensors by name; the folder is there."""
    xm.wait_device_ops()  # the planner takes the shards as they are, also of a graph that still runs
    with _group():
        save_tensors(dict(tensors), storage_writer=FileSystemWriter(folder), planner=SPMDSavePlanner())


def load(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read tensors by name, in place: each keeps its layout, and each device gets its part alone."""
    xm.wait_device_ops()
    with _group():
        load_tensors(dict(tensors), storage_reader=FileSystemReader(folder), planner=SPMDLoadPlanner())


@contextmanager
def _group() -> Iterator[None]:
    """Have a group of processes, of this one alone if there is none: the planners ask it who writes what."""
    own = not dist.is_initialized()
    if own:
        with _silent():
            dist.init_process_group("gloo", rank=0, world_size=1, store=torch._C._distributed_c10d.HashStore())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch(_xla)?\.")  # they warn each other of their future, per tensor
            yield
    finally:
        if own:
            dist.destroy_process_group()


@contextmanager
def _silent() -> Iterator[None]:
    """Throw standard output away: gloo says there whom it is connected to, at any log level."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
