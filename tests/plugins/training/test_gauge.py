"""What a run tells of its speed, and the sentence at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_cases import make_job, tiny_model, tiny_tokenizer

from sysscan_models.encoding import CHATML
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training.devices.cpu import CPU
from sysscan_plugins.training.loop import train_model


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "lines")


class Rated(CPU):
    """A processor that says what it could do at most, and watches itself."""

    def __init__(self, peak_flops: float) -> None:
        super().__init__()
        self.peak_flops = peak_flops

    def monitor(self) -> dict[str, float]:
        return {"memory_gb": 1.5}


def run(tmp_path: Path, peak_flops: float) -> list[dict[str, Any]]:
    job = make_job(tmp_path)
    options = FullFinetune(compute_dtype="float32", max_seq_length=128, max_steps=4)
    train_model(tiny_model(), tiny_tokenizer(), job, options, Rated(peak_flops), template=CHATML)
    lines = [json.loads(line) for line in (job.out_dir / "train_log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_every_read_tells_the_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in run(tmp_path, peak_flops=1e15):
        assert line["step_seconds"] > 0
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["step_seconds"], abs=1)
        assert 0 < line["mfu"] < 0.01
        assert line["memory_gb"] == 1.5
    said = capsys.readouterr().err
    assert "of the peak is used, the goal is 90%" in said
    assert "likely cause: the model computes in float32" in said


def test_twice_the_peak_is_half_the_utilisation(tmp_path: Path) -> None:
    (line, *_) = run(tmp_path, peak_flops=1e12)
    parameters = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert 2 * parameters < line["mfu"] * 1e12 / line["tokens_per_s"] < 12 * parameters


def test_without_a_peak_nothing_is_said_of_utilisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all("mfu" not in line for line in run(tmp_path, peak_flops=0.0))
    assert "of the peak" not in capsys.readouterr().err
