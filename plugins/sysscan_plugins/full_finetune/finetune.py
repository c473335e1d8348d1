"""Full fine-tuning of one role, from the base model's folder to a finished checkpoint folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sysscan_models.artifacts import Checkpoint, made_now
from sysscan_models.interfaces import TrainJob
from sysscan_plugins.training.base_model import (
    BaseTokenizer,
    carry_over,
    load_model,
    load_tokenizer,
    write_generation_config,
)
from sysscan_plugins.training.devices import Device, Weights, open_device
from sysscan_plugins.training.loop import train_model
from sysscan_plugins.training.results import open_out_dir, publish_files, record_result
from sysscan_plugins.training.weights import skeleton, stored_parameters, write_model

if TYPE_CHECKING:
    from sysscan_plugins.full_finetune import FullFinetune

_SAVING = ".saving"


def finetune(options: FullFinetune, job: TrainJob) -> Checkpoint:
    """Train all weights and leave a model in Hugging Face layout in `job.out_dir`; return its saved artifact.

    Raises what `train_model` raises, and UserError when the base model cannot be loaded.
    """
    started = time.monotonic()
    open_out_dir(job)
    with open_device(job.device) as device:
        base_tokenizer = load_tokenizer(job.base.root, trains_embeddings=True)
        model, weights = _load(options, job, device)
        result = train_model(
            model, base_tokenizer.tokenizer, job, options, device, template=base_tokenizer.template, weights=weights
        )
        names = _save(model, base_tokenizer, options, job, device)
        if device.process == 0:
            made = made_now(seconds=time.monotonic() - started, device=device.name, packages=("torch", "transformers"))
            record_result(result, names, job, options, made)
        device.wait()
    return Checkpoint.load(job.out_dir)


def _load(options: FullFinetune, job: TrainJob, device: Device) -> tuple[Any, Weights | None]:
    """Return the model to be trained; for a device that streams, without weights, and those one at a time."""
    if not device.streams:
        return load_model(job.base.root, options).requires_grad_(True), None
    model = skeleton(job.base.root, options).requires_grad_(True)
    return model, stored_parameters(job.base.root, model)


def _save(model: Any, base_tokenizer: BaseTokenizer, options: FullFinetune, job: TrainJob, device: Device) -> list[str]:
    """Write the model, the base's own tokenizer files and the generation settings; return the names of the files."""
    temporary: Path = job.out_dir / _SAVING
    writes, shard_bytes = device.process == 0, int(options.max_shard_gb * 10**9)
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    write_model(model, device.gathered, job.base.root, temporary, shard_bytes=shard_bytes, write=writes)
    if not writes:
        return []
    carry_over(job.base.root, base_tokenizer, temporary)
    write_generation_config(job.base.root, base_tokenizer.encoder(options).end_tokens(), temporary)
    return publish_files(temporary, job.out_dir)
