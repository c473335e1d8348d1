"""The verbs `train specialist` and `train generalist` with device = "tpu", and what they leave for other machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sysscan_models.testing import tiny_llama
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training.base_model import load_tokenizer
from sysscan_plugins.training.batches import encode_split
from sysscan_plugins.training.devices.cpu import CPU

LENGTH = 3000
CONFIG = """
models_dir = "models"
device = "tpu"
[data]
archive = "sample"
[roles.specialist]
base = "./base"
[roles.specialist.trainer]
name = "full_finetune"
{common}
[roles.generalist]
base = "./base"
[roles.generalist.trainer]
name = "lora"
dropout = 0.0
{common}
"""
COMMON = f"""
compute_dtype = "float32"
max_seq_length = {LENGTH}
batch_size = 1
max_steps = 3
learning_rate = 1e-3
validation_batches = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    tiny_llama.write_checkpoint(folder / "base", tiny_llama.initial_tensors(0))
    config = folder / "base" / "config.json"  # one byte is one token there, and the sample's prompts are long
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    (folder / "run.toml").write_text(CONFIG.format(common=COMMON))
    assert sysscan(folder, "prepare").returncode == 0
    return folder


def sysscan(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sysscan_models", *words, "--config", "run.toml"]
    whole = {**os.environ, "SYSSCAN_PROGRESS": "lines", **environment}
    return subprocess.run(line, cwd=folder, env=whole, capture_output=True, text=True, check=False)


def cpu_loss(folder: Path, model: Any, data: Path) -> float:
    """Return the loss of a model on the whole validation split, as plain torch on the CPU computes it."""
    options = FullFinetune(compute_dtype="float32", max_seq_length=LENGTH)
    tokenizer = load_tokenizer(folder / "base", trains_embeddings=True)
    split = encode_split(data / "valid.jsonl", tokenizer.tokenizer, tokenizer.template, options, folder / "encoded")
    device = CPU()
    device.place(model.eval(), options)
    batches = [split.batch([[item]], LENGTH) for item in range(len(split))]
    total = sum(float(device.evaluate(model, batch)) for batch in batches)
    return total / sum(batch.supervised for batch in batches)


def test_a_model_from_the_tpu_is_the_same_model_on_a_cpu(folder: Path) -> None:
    done = sysscan(folder, "train", "specialist")
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / "models" / "specialist_model_fine_tuned"
    record = json.loads((out / "artifact.json").read_text())
    assert record["made"]["device"] == "4 virtual CPU devices"
    assert record["final_valid_loss"] < record["first_valid_loss"]
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    found = cpu_loss(folder, model, folder / "models" / "data" / "specialist")
    assert abs(found - record["final_valid_loss"]) < 1e-5
    assert "train specialist: up to date" in sysscan(folder, "train", "specialist").stderr


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
def test_adapters_from_the_tpu_are_the_same_on_a_cpu(folder: Path) -> None:
    from peft import PeftModel

    done = sysscan(folder, "train", "generalist")
    assert done.returncode == 0, done.stderr[-3000:]
    out = folder / "models" / "generalist_model_lora_adapters"
    record = json.loads((out / "artifact.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out)
    found = cpu_loss(folder, model, folder / "models" / "data" / "generalist")
    assert abs(found - record["final_valid_loss"]) < 1e-5


def test_without_a_tpu_it_says_so(folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CPU_NUM_DEVICES"}
    line = [sys.executable, "-m", "sysscan_models", "train", "specialist", "--config", "run.toml", "--set", "seed=5"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TPU not available: torch_xla found none" in done.stderr
    assert "Traceback" not in done.stderr
