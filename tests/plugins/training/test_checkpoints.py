"""Checkpoints are whole or not there, and only those of the same run are used."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch

from sysscan_plugins.training import checkpoints
from sysscan_plugins.training.devices.cpu import CPU

TENSORS = {"master:a": torch.arange(6.0).reshape(2, 3), "step:a": torch.tensor(3.0)}


def save(folder: Path, step: int, *, keep: int = 9) -> Path:
    with checkpoints.saving(folder, {"step": step, "run": "key"}, CPU(), keep=keep) as target:
        checkpoints.write_shards(target, TENSORS.items())
    return checkpoints.place(folder, step)


def found(folder: Path, run: str = "key") -> tuple[str | None, list[str]]:
    notes: list[str] = []
    latest = checkpoints.latest(folder, run, notes.append)
    return (latest[0].name if latest else None), notes


def test_tensors_come_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    read = dict(checkpoints.tensors(path))
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert found(tmp_path) == ("checkpoint-00000003", [])


def test_tensors_are_divided_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 16)
    path = save(tmp_path, 1)
    assert len(list(path.glob("*.safetensors"))) == 2
    assert dict(checkpoints.tensors(path)).keys() == TENSORS.keys()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-00000009", "checkpoint-00000010"]


def test_damaged_and_foreign_ones_are_removed_with_a_message(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shard = next(save(tmp_path, 2).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    next(save(tmp_path, 3).glob("*.safetensors")).unlink()
    (save(tmp_path, 4) / "state.json").write_text("{")
    (save(tmp_path, 5) / "state.json").unlink()
    other = save(tmp_path, 6) / "state.json"
    other.write_bytes(orjson.dumps({**orjson.loads(other.read_bytes()), "run": "other"}))
    (tmp_path / ".checkpoint-00000007.tmp").mkdir()
    name, notes = found(tmp_path)
    assert name == "checkpoint-00000001"
    assert [note.partition(": ")[2] for note in notes] == [
        "writing was interrupted; removed",
        "it belongs to a run with other data, options or base model; removed",
        "its state.json cannot be read (FileNotFoundError); removed",
        "its state.json cannot be read (JSONDecodeError); removed",
        "state-00000.safetensors is missing; removed",
        "state-00000.safetensors is damaged; removed",
    ]


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == (None, [])
