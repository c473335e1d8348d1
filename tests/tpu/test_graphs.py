"""A run compiles its state, one training step and one validation, runs each step at once, and stops when it compiles more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics
from training_cases import make_job, records
from xla_cases import STEPS, Options, batch_of, model, started, train_on

from sysscan_models.errors import SysscanError
from sysscan_plugins.training.devices import open_device
from sysscan_plugins.training.devices.xla.compiles import CompileGuard


def counted() -> dict[str, int]:
    """What the runtime did so far in this process; it executes and counts in a thread of its own."""
    xm.wait_device_ops()
    executed = metrics.metric_data("ExecuteReplicatedTime")
    return {"compiles": int(metrics.counter_value("UncachedCompile") or 0), "executions": executed[0] if executed else 0}


def since(before: dict[str, int]) -> dict[str, int]:
    return {name: number - before[name] for name, number in counted().items()}


@pytest.mark.parametrize(
    ("kind", "length", "changes"),
    [
        ("llama", 112, {"optimizer_state": "bfloat16"}),
        ("dropout", 104, {"gradient_checkpointing": True, "warmup_ratio": 0.3}),
        ("experts", 120, {"expert_capacity": 1.0, "optimizer": "adafactor"}),
    ],
)
def test_whatever_the_data_two_graphs_train_and_one_validates(
    kind: str, length: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Lengths are of no other test here, whose graphs this process would still have."""
    options = Options(batch_size=2, micro_batch_size=1, max_seq_length=length, log_every=3, validation_batches=1, **changes)
    job = make_job(tmp_path, train=records(60), device="tpu")
    before = counted()
    with open_device("tpu") as device:
        trained = train_on(device, job, model(kind), options)
    found = since(before)
    assert len(trained.losses) == STEPS
    assert len(set(trained.losses)) == STEPS
    assert trained.monitor["compiles"] == found["compiles"] == 3, "state and steady step, and the validation"
    validations = 1 + 2 + 1  # before, after 5 and 10 steps, at the end
    assert found["executions"] == 1 + STEPS + validations, "a step is not one execution"
    assert not [name for name in metrics.counter_names() if name.startswith("aten::")], "operations that ran on the host"
    if "expert_capacity" in changes:
        assert trained.monitor["dropped_tokens"] > 0


def test_reading_and_gathering_compile_and_execute_nothing() -> None:
    device, trained, optimizer = started("llama")
    losses = [device.forward_backward(trained, batch_of(4, 48), 0.1)]
    norm = optimizer.update(1e-3, 1.0)
    device.end_step()
    before = counted()
    values = device.read([*losses, norm])
    assert all(np.isfinite(value) and value > 0 for value in values)
    weight = device.gathered(trained.model.embed_tokens.weight)
    assert since(before) == {"compiles": 0, "executions": 0}
    assert device.read([]) == []
    assert torch.equal(weight, trained.model.embed_tokens.weight.detach().cpu())


def test_a_step_of_another_shape_stops_the_run() -> None:
    device, trained, optimizer = started("llama")
    for length, rows in ((40, 4), (40, 4), (44, 4)):
        device.forward_backward(trained, batch_of(rows, length), 0.1)
        optimizer.update(1e-3, 1.0)
        if length == 40:
            device.end_step()
    with pytest.raises(
        SysscanError,
        match=r"a training step was compiled again.*shape changed: 1 micro-batches of 4x44; it was 1 micro-batches of 4x40",
    ):
        device.end_step()


def test_another_number_of_micro_batches_stops_the_run() -> None:
    device, trained, optimizer = started("llama")
    for count in (1, 2):
        for _ in range(count):
            device.forward_backward(trained, batch_of(4, 40), 0.1)
        optimizer.update(1e-3, 1.0)
        if count == 1:
            device.end_step()
    with pytest.raises(SysscanError, match=r"shape changed: 2 micro-batches of 4x40; it was 1 micro-batches of 4x40"):
        device.end_step()


def test_an_operation_that_changes_stops_the_run() -> None:
    value = torch.ones(7, 3, device="xla")
    torch_xla.sync()
    guard = CompileGuard()
    for step in range(3):
        value = value * torch.ones(step + 2, device="xla").sum()
        torch_xla.sync()
        if step < 2:
            guard.check("training", "4x40")
    with pytest.raises(SysscanError, match=r"after 3 compilations: its shape did not change \(4x40\), so a constant"):
        guard.check("training", "4x40")


def test_what_was_compiled_beside_the_steps_is_not_held_against_them() -> None:
    guard, kept = CompileGuard(), []
    for step in range(3):
        kept.append(torch.ones(9, step + 3, device="xla") * 2)
        torch_xla.sync()
        guard.skip()
        guard.check("validation", "4x40")
    assert guard.compiles == 3
