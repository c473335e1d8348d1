"""A run goes on where it was stopped: exactly on as many devices, with the same weights and state on another number."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from xla_cases import STEPS, one_run

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
