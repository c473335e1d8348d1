"""What a user is told where there is no TPU, and runs on other numbers of devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from xla_cases import STEPS, one_run, train

OPEN = """
from sysscan_models.errors import UserError
from sysscan_plugins.training.devices import open_device
try:
    print(open_device("tpu").name)
except UserError as error:
    print("UserError:", error)
"""


def opened(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PJRT_DEVICE", "CPU_NUM_DEVICES")}
    done = subprocess.run([sys.executable, "-c", OPEN], env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "TPU not available: torch_xla found none and would train on the CPU"),
        ({"PJRT_DEVICE": "CPU"}, "TPU not available: torch_xla found none and would train on the CPU"),
        ({"PJRT_DEVICE": "TPU"}, "TPU not available: the runtime did not start"),
        ({"PJRT_DEVICE": "CUDA"}, "PJRT_DEVICE is 'CUDA'; expected TPU"),
    ],
)
def test_where_there_is_no_tpu_the_user_is_told_what_to_do(environment: dict[str, str], message: str) -> None:
    told = opened(**environment)
    assert told.startswith("UserError:")
    assert message in told
    assert "device = " in told or "Check that" in told


def test_torchrun_is_not_for_tpus() -> None:
    told = opened(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="2", WORLD_SIZE="4", RANK="1")
    assert told.startswith('UserError: device = "tpu", but torchrun has started 4 processes (WORLD_SIZE); expected one on each')
    assert "without torchrun" in told


AS_TPU = """
import sys
sys.path[:0] = sys.argv[1:]
import torch_xla.runtime as xr
xr.device_type = lambda: "TPU"
from xla_cases import batch_of, started
device, model, optimizer = started("llama")
loss = device.forward_backward(model, batch_of(4, 40), 0.1)
optimizer.update(1e-3, 1.0)
device.end_step()
assert device.read([loss])[0] > 0
print(device.name, device.peak_flops, *device.monitor(), sep="; ")
"""


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ({"TPU_ACCELERATOR_TYPE": "v5litepod-4"}, "TPU v5e-4; 197000000000000.0; compiles"),
        ({}, "TPU, 4 devices; 0.0; compiles"),
    ],
)
def test_what_only_a_real_tpu_goes_through_does_not_stop_a_run(named: dict[str, str], shown: str) -> None:
    """On virtual devices that say they are a TPU: its name, and its memory, which torch_xla does not tell."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plugins" / "training")]
    kept = {name: value for name, value in os.environ.items() if "ACCELERATOR_TYPE" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AS_TPU, *folders],
        env={**kept, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", **named},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == shown


def test_a_tpu_in_use_is_named_as_such() -> None:
    from sysscan_plugins.training.devices.xla.runtime import _not_started

    assert "Another process holds the TPU" in _not_started("UNKNOWN: TPU initialization failed: The TPU is already in use")


def test_one_device_takes_the_same_steps(tmp_path: Path) -> None:
    assert opened(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="1") == "1 virtual CPU device"
    expected = train(tmp_path / "cpu", "llama", "cpu")
    found = one_run(tmp_path / "one", "llama", devices=1, batch_size=8, micro_batch_size=4)
    assert found["devices"] == 1
    assert len(found["losses"]) == STEPS
    assert found["losses"] == pytest.approx(expected.losses, abs=1e-5)
    assert found["compiles"] == 3
    assert found["host reads"] == []
