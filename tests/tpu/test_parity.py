"""The XLA device takes the steps of the plain CPU: fp32, dropout 0, the same seed, within 1e-5 of the loss at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from xla_cases import STEPS, Trained, train


def differences(first: Trained, second: Trained) -> list[float]:
    assert len(first.losses) == len(second.losses)
    return [abs(a - b) for a, b in zip(first.losses, second.losses, strict=True)]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tensor parallel": ("llama", {"tensor_parallel": 2}),
    "llama, 2 micro-batches": ("llama", {"micro": 4}),
    "llama, checkpointing": ("llama", {"gradient_checkpointing": True}),
    "llama, adafactor": ("llama", {"optimizer": "adafactor", "learning_rate": 1e-2}),
    "mixtral, adapters on attention": ("attention", {}),
    "mixtral, adapters on attention and experts": ("experts", {}),
    "mixtral, adapters, checkpointing": ("experts", {"gradient_checkpointing": True, "micro": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_cpu(case: str, tmp_path: Path, record_property: Any) -> None:
    kind, changes = CASES[case]
    plain = {key: value for key, value in changes.items() if key not in ("micro", "tensor_parallel")}
    expected = train(tmp_path, kind, "cpu", **plain)
    found = train(tmp_path, kind, "tpu", **changes)
    differing = differences(expected, found)
    record_property("largest difference", max(differing))
    assert len(differing) >= STEPS
    assert max(differing) < 1e-5
    assert expected.losses[0] - expected.losses[-1] > 0.05, "nothing was learned: equal losses say nothing"
    for first, second in zip(expected.norms, found.norms, strict=True):
        assert second == pytest.approx(first, rel=1e-3)
    for valid in ("first_valid_loss", "final_valid_loss"):
        assert getattr(found.result, valid) == pytest.approx(getattr(expected.result, valid), abs=1e-5)
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=2e-4)
    assert found.monitor["compiles"] <= 3  # the state, the training step, the validation; a test before may have left one
