"""Small trainings for the tests of the XLA device: the same model, data and rows per step on plain CPU and on XLA."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch
from training_cases import make_job, records, tiny_model, tiny_tokenizer

from sysscan_models.encoding import IGNORE_INDEX
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.lora import EXPERT_PARAMETERS
from sysscan_plugins.training.batches import Batch
from sysscan_plugins.training.devices import Device, open_device
from sysscan_plugins.training.loop import TrainResult, train_model
from sysscan_plugins.training.optimizers import MasterOptimizer

STEPS = 12
DEVICES = 4


class Options(FullFinetune):
    """Small and exact; rows per step do not depend on the device."""

    max_seq_length: int = 128
    compute_dtype: Literal["bfloat16", "float32"] = "float32"
    max_steps: int = STEPS
    epochs: float = 9.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    validate_every: int = 5


@dataclass
class Trained:
    """What a training left behind."""

    result: TrainResult
    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    """Whole, on the CPU."""
    monitor: dict[str, float]


def model(kind: str) -> Any:
    """`llama`, `mixtral`, `attention` (a Mixtral with adapters on its attention), `experts` (on both).

    `dropout`: attention with dropout; `deep`: a Llama with activations that weigh something.
    """
    if kind in ("llama", "mixtral"):
        return tiny_model(kind)
    if kind == "deep":
        return tiny_model("llama", num_hidden_layers=6, hidden_size=64, intermediate_size=192)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=list(EXPERT_PARAMETERS) if kind == "experts" else None,
        lora_dropout=0.3 if kind == "dropout" else 0.0,
        init_lora_weights=False,  # so that both factors matter from the first step
    )
    base = tiny_model("mixtral")
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        return get_peft_model(base, config, autocast_adapter_dtype=False)


def train(tmp_path: Path, kind: str, name: str, *, out: str = "", rows: int = 8, micro: int = 8, **changes: Any) -> Trained:
    """Train on a device; `rows` and `micro` are of all its devices together."""
    job = make_job(tmp_path, train=records(60), out=out or name, device=name)
    devices = DEVICES if name == "tpu" else 1
    options = Options(batch_size=rows // devices, micro_batch_size=micro // devices, **changes)
    with open_device(name) as device:
        return train_on(device, job, model(kind), options)


def started(
    kind: str, *, dtype: torch.dtype = torch.float32, config: dict[str, Any] | None = None, **changes: Any
) -> tuple[Device, Any, MasterOptimizer]:
    """Return an XLA device with a model on it, the model, and its optimizer."""
    trained = model(kind).to(dtype)
    for key, value in (config or {}).items():
        setattr(trained.config, key, value)
    device, options = open_device("tpu"), Options(**changes)
    device.place(trained, options)
    parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    return device, trained, device.create_optimizer(parameters, options)


def batch_of(rows: int, length: int) -> Batch:
    """Two segments and some padding in each row; the next token can be learned."""
    ids = np.tile(np.arange(length) * 5 % 251 + 3, (rows, 1)) + np.arange(rows)[:, None]
    targets = np.roll(ids, -1, axis=1)
    half = length // 2
    positions = np.tile(np.concatenate([np.arange(half), np.arange(length - half)]), (rows, 1))
    segments = np.tile(np.where(np.arange(length) < half, 1, 2), (rows, 1))
    targets[:, -3:], segments[:, -2:], positions[:, -2:] = IGNORE_INDEX, 0, 0
    return Batch(ids, targets, positions, segments)


def train_on(device: Device, job: Any, trained: Any, options: Options) -> Trained:
    tokenizer = tiny_tokenizer()
    result = train_model(trained, tokenizer, job, options, device, template=str(tokenizer.chat_template))
    log = [orjson.loads(line) for line in (job.out_dir / "train_log.jsonl").read_bytes().splitlines()]
    steps = [line for line in log if "loss" in line]
    return Trained(
        result,
        [line["loss"] for line in steps],
        [line["grad_norm"] for line in steps],
        {name: device.gathered(parameter.detach()).clone() for name, parameter in trained.named_parameters()},
        device.monitor(),
    )


def one_run(
    folder: Path, kind: str, *, devices: int = DEVICES, environment: dict[str, str] | None = None, **changes: Any
) -> Any:
    """Train in a process of its own; return what it wrote to run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("one_run.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, folder, kind, orjson.dumps(changes)],
        env={**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), **(environment or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return orjson.loads((folder / "run.json").read_bytes())
