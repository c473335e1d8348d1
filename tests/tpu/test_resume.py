"""A run goes on where it was stopped: exactly on as many devices, with the same weights and state on another number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import make_job, records
from xla_cases import STEPS, Options, model, one_run, train_on

from sysscan_plugins.training.devices import open_device

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"batch_size": 2, "micro_batch_size": 1, "checkpoint_every": 6},
    "attention": {"batch_size": 2, "micro_batch_size": 1, "checkpoint_every": 6, "optimizer": "adafactor"},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_run_goes_on_exactly_and_on_another_number_of_devices(kind: str, tmp_path: Path) -> None:
    whole = one_run(tmp_path / "whole", kind, **OPTIONS[kind])
    assert len(whole["losses"]) == STEPS
    found = {}
    for devices in (4, 2):
        folder = tmp_path / str(devices)
        shutil.copytree(tmp_path / "whole", folder)
        assert [path.name for path in (folder / "tpu" / "checkpoints").iterdir()] == ["checkpoint-00000006"]
        found[devices] = one_run(folder, kind, devices=devices, **OPTIONS[kind])
        assert found[devices]["devices"] == devices
    assert found[4]["losses"] == whole["losses"], "not exactly the same run"
    assert found[2]["losses"][:6] == whole["losses"][:6]  # the log was kept
    assert found[2]["losses"][6:] == pytest.approx(whole["losses"][6:], abs=1e-5)
    on_4, on_2 = (torch.load(tmp_path / str(devices) / "state.pt") for devices in (4, 2))
    assert on_4.keys() == on_2.keys()
    assert any(key.startswith("master:") for key in on_4)
    assert all(torch.equal(on_4[key], on_2[key]) and on_4[key].dtype == on_2[key].dtype for key in on_4)
    assert all(value == 6 for key, value in on_4.items() if key.startswith("step:"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {}), ("llama", {"optimizer_state": "bfloat16"}), ("attention", {"optimizer": "adafactor"})],
)
def test_a_run_of_one_cpu_goes_on_here(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """With bf16 state the rounding is drawn differently on the two devices, so the losses are only close."""
    options = Options(batch_size=8, micro_batch_size=2, checkpoint_every=6, keep_checkpoints=3, **changes)
    trained = {}
    for name in ("cpu", "tpu"):
        job = make_job(tmp_path, train=records(60), out="run", device=name)
        with open_device(name) as device:
            trained[name] = train_on(device, job, model(kind), options)
        if name == "cpu":
            shutil.rmtree(job.out_dir / "checkpoints" / "checkpoint-00000012", ignore_errors=True)
            whole = trained["cpu"].losses
            assert [path.name for path in (job.out_dir / "checkpoints").iterdir()] == ["checkpoint-00000006"]
    assert len(whole) == STEPS
    assert trained["tpu"].losses[:6] == whole[:6]  # the log was kept
    near = 2e-3 if "optimizer_state" in changes else 1e-5
    assert trained["tpu"].losses[6:] == pytest.approx(whole[6:], abs=near)


def test_a_checkpoint_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_device("tpu") as device:
        device.place(model("llama"), Options())
        optimizer = device.create_optimizer(dict(device._model.named_parameters()), Options())
        capfd.readouterr()
        device.save_state(optimizer, tmp_path)
        device.load_state(optimizer, tmp_path)
        os.write(1, b"heard")
    assert capfd.readouterr().out == "heard"


def test_chance_is_the_same_on_any_number_of_devices(tmp_path: Path) -> None:
    """Dropout, and the rounding of bf16 state."""
    changes = {"optimizer_state": "bfloat16", "max_steps": 6}
    found = {
        devices: one_run(
            tmp_path / str(devices),
            "dropout",
            devices=devices,
            batch_size=8 // devices,
            micro_batch_size=8 // devices,
            **changes,
        )["losses"]
        for devices in (4, 2)
    }
    assert found[4] == pytest.approx(found[2], abs=1e-5)
