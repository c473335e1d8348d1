"""Training in several processes (FSDP2 over gloo) is the same training as in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_cases import make_base, make_splits, records

from sysscan_models.testing import tiny_llama
from sysscan_plugins.training import checkpoints

PROGRAM = Path(__file__).parent / "processes.py"
FULL: dict[str, Any] = {"compute_dtype": "float32", "max_seq_length": 128, "epochs": 4, "learning_rate": 3e-3}
CHECKPOINTED = {**FULL, "optimizer": "adafactor", "learning_rate": 0.3, "gradient_checkpointing": True}
LORA: dict[str, Any] = {**FULL, "rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_splits(tmp_path / "splits", records(), records(6))
    return tmp_path


def launched(folder: Path, processes: int, options: dict[str, Any], *, out: str = "", **described: Any) -> list[Any]:
    """Return the command that trains in so many processes."""
    out = out or f"out{processes}"
    case = folder / f"{out}.json"
    whole = {"folder": str(folder), "out": out, "trainer": "full_finetune", "options": options, **described}
    case.write_text(json.dumps(whole))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, str(PROGRAM), str(case)]


def train(folder: Path, processes: int, options: dict[str, Any], *, out: str = "", **described: Any) -> Path:
    """Train in so many processes and return the result's folder."""
    out = out or f"out{processes}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SYSSCAN_PROGRESS": "lines"}
    command = launched(folder, processes, options, out=out, **described)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "stops_at" in described or done.returncode == 0, done.stderr[-4000:]
    (folder / f"{out}.log").write_text(done.stderr)
    return folder / out


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("valid_loss")) for line in lines]


def apart(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) >= 12
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "trainer", "options"),
    [
        ("llama", "full_finetune", FULL),
        pytest.param("llama", "full_finetune", CHECKPOINTED, marks=pytest.mark.slow),
        pytest.param("mixtral", "lora", LORA, marks=pytest.mark.slow),
        ("mixtral", "lora", {**LORA, "experts": True}),
    ],
    ids=["full", "adafactor", "lora", "lora-experts"],
)
def test_two_processes_learn_what_one_learns(folder: Path, kind: str, trainer: str, options: dict[str, Any]) -> None:
    make_base(folder / "base", kind)
    one = train(folder, 1, {**options, "batch_size": 4}, trainer=trainer)
    two = train(folder, 2, {**options, "batch_size": 2}, trainer=trainer)
    assert apart(losses(one), losses(two)) < 1e-5
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for file in one.glob("*.safetensors"):
        expected, found = load_file(file), load_file(two / file.name)
        assert expected.keys() == found.keys()
        assert max(float((expected[name] - found[name]).abs().max()) for name in expected) < 1e-4
    assert json.loads((two / "artifact.json").read_text())["made"]["device"] == "2 x cpu"
    assert (folder / "out2.log").read_text().count("validation loss after step 0") == 1, "one process tells"


PLACING = """
import torch
from training_cases import Streamed, tiny_model
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training.devices.fsdp import FullySharded
model = tiny_model("llama", num_hidden_layers=12)
streamed = Streamed(model)
for module in model.modules():
    for leaf, parameter in module._parameters.items():
        module._parameters[leaf] = parameter if parameter is None else torch.nn.Parameter(parameter.to("meta"))
with FullySharded("cpu") as device:
    device.place(model, FullFinetune(compute_dtype="float32"), streamed)
    own = sum(parameter.to_local().nbytes for parameter in model.parameters())
    assert own < 0.51 * streamed.whole, (own, streamed.whole)
    assert streamed.peak <= 2 * streamed.largest < streamed.whole / 4, (streamed.peak, streamed.largest)
"""


@pytest.mark.slow
def test_a_process_keeps_its_part_and_lets_the_rest_go(tmp_path: Path) -> None:
    script = tmp_path / "placing.py"
    script.write_text(PLACING)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent)}
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    (path,) = (out / "checkpoints").glob("checkpoint-*")
    return dict(checkpoints.tensors(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "optimizer"),
    [(2, 2, "adamw"), (2, 1, "adamw"), (1, 2, "adamw"), (2, 3, "adafactor"), (2, 1, "adafactor")],
)
def test_a_run_goes_on_in_another_number_of_processes(folder: Path, first: int, then: int, optimizer: str) -> None:
    make_base(folder / "base")
    options = {**FULL, "optimizer": optimizer, "learning_rate": 3e-3 if optimizer == "adamw" else 0.3}
    whole = train(folder, 1, {**options, "batch_size": 6}, out="whole")
    options["batch_size"] = 6 // first  # the same configuration before and after: so many rows a step it goes on with
    parts = train(folder, first, options, out="parts", stops_at=5, process=str(first - 1))
    assert not (parts / "artifact.json").exists()
    before = checkpoint(parts)
    train(folder, then, options, out="parts", dump=True)
    assert "goes on after step 5" in (folder / "parts.log").read_text()
    assert apart(losses(whole), losses(parts)) < 1e-5
    loaded = dict(checkpoints.tensors(folder / "loaded"))
    assert before.keys() == loaded.keys()
    assert all(torch.equal(before[name], loaded[name]) for name in before), "nothing is lost on the way"


@pytest.mark.slow
def test_a_fault_of_the_data_is_one_message(folder: Path) -> None:
    make_base(folder / "base")
    (folder / "splits" / "train.jsonl").write_text("no JSON")
    done = subprocess.run(launched(folder, 3, FULL), capture_output=True, text=True, check=False)
    assert done.stderr.count("line 1: expected a JSON object") == 1
    assert done.stderr.count("another process failed; its message says why") == 2
    assert "FileExistsError" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_of_the_launcher_keeps_the_work(folder: Path) -> None:
    make_base(folder / "base")
    options = {**FULL, "epochs": 400}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SYSSCAN_PROGRESS": "lines"}
    line = launched(folder, 2, options)
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as running:
        log = folder / "out2" / "train_log.jsonl"
        while running.poll() is None and not (log.exists() and log.read_bytes().count(b'"loss"') > 3):
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=120)[1]
    assert "stopping after this step, then saving a checkpoint" in said
    assert len(list((folder / "out2" / "checkpoints").glob("checkpoint-*/state.json"))) == 1


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """As the README says it: prepare in one process, train in two, and go on with one."""
    tiny_llama.write_checkpoint(tmp_path / "base", tiny_llama.initial_tensors(0))
    config = tmp_path / "base" / "config.json"  # one byte is one token there, and the sample's prompts are long
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    toml = f"""
models_dir = "models"
device = "cpu"
[data]
archive = "sample"
[roles.specialist]
base = "{tmp_path / "base"}"
[roles.specialist.trainer]
name = "full_finetune"
compute_dtype = "float32"
max_seq_length = 3000
max_steps = 12
"""
    (tmp_path / "run.toml").write_text(toml)

    def command(*words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        line = [sys.executable, *launcher, "-m", "sysscan_models", *words, "--config", "run.toml"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SYSSCAN_PROGRESS": "lines"}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    refused = command("run", processes=2)
    assert "only training is divided among processes" in refused.stderr
    assert command("prepare").returncode == 0
    trained = command("train", "specialist", processes=2)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert trained.stdout.count("specialist: full checkpoint after 12 steps") == 1, "one process tells"
    again = command("train", "specialist")
    assert "train specialist: up to date" in again.stderr
