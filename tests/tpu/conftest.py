"""Tests that need torch_xla, on virtual devices of the CPU; `make test-tpu` runs them in an environment of their own.

Where torch_xla is not installed, they are not there. It reads its environment once, when it starts: so that is set here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch_xla") else ["*"]

if not collect_ignore_glob:
    if "PJRT_DEVICE" not in os.environ:
        os.environ.update(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="4")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "training"))  # its tiny models and splits


@pytest.fixture(scope="session", autouse=True)
def _runtime() -> None:
    """Start torch_xla before anything else trains: autograd counts the devices once, at its first backward pass."""
    import torch

    from sysscan_plugins.training.devices import open_device

    open_device("tpu")
    torch.zeros(1, device="xla")
