"""Full fine-tuning of one role, from the base model's folder to a finished checkpoint folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sysscan_models.artifacts import Checkpoint, file_records, made_now
from sysscan_models.interfaces import TrainJob
from sysscan_plugins.training.base_model import (
    BaseTokenizer,
    carry_over,
    load_model,
    load_tokenizer,
    open_out_dir,
    publish_files,
    save_model,
    write_generation_config,
)
from sysscan_plugins.training.devices import open_device
from sysscan_plugins.training.loop import CHECKPOINTS, ENCODED, train_model

if TYPE_CHECKING:
    from sysscan_plugins.full_finetune import FullFinetune

_SAVING = ".saving"


def finetune(options: FullFinetune, job: TrainJob) -> Checkpoint:
    """Train all weights and leave a model in Hugging Face layout in `job.out_dir`; return its saved artifact.

    Raises what `train_model` raises, and UserError when the base model cannot be loaded.
    """
    started = time.monotonic()
    open_out_dir(job)
    device = open_device(job.device)
    base_tokenizer = load_tokenizer(job.base.root, trains_embeddings=True)
    model = load_model(job.base.root, options).requires_grad_(True)
    result = train_model(model, base_tokenizer.tokenizer, job, options, device, template=base_tokenizer.template)
    names = _save(model, base_tokenizer, options, job)
    checkpoint = Checkpoint(
        role=job.role.name,
        inputs={"base": job.base.digest, "splits": job.splits.digest},
        options=options.keyed(),
        seed=job.seed,
        files=file_records(job.out_dir, names),
        made=made_now(seconds=time.monotonic() - started, device=device.name, packages=("torch", "transformers")),
        kind="full",
        **vars(result),
    ).save(job.out_dir)
    for folder in (CHECKPOINTS, ENCODED):
        shutil.rmtree(job.out_dir / folder, ignore_errors=True)
    return checkpoint


def _save(model: Any, base_tokenizer: BaseTokenizer, options: FullFinetune, job: TrainJob) -> list[str]:
    """Write the model, the base's own tokenizer files and the generation settings; return the names of the files."""
    temporary: Path = job.out_dir / _SAVING
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_model(model, temporary, shard_bytes=int(options.max_shard_gb * 10**9))
    carry_over(job.base.root, base_tokenizer, temporary)
    write_generation_config(job.base.root, base_tokenizer.encoder(options).end_tokens(), temporary)
    return publish_files(temporary, job.out_dir)
