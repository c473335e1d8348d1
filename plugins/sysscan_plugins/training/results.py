"""The folder of a training's result: opened, filled with finished files at once, and recorded last.

Of several processes the first one does this; the others wait and read the record.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysscan_models.artifacts import Checkpoint, file_records, record_path
from sysscan_models.errors import UserError
from sysscan_models.interfaces import TrainJob
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_model import LICENCE_FILES, TOKENIZER_FILES
from sysscan_plugins.training.loop import CHECKPOINTS, ENCODED, TrainResult

_RESULT_FILES = (
    *TOKENIZER_FILES,
    *LICENCE_FILES,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors*",
)
"""What a finished checkpoint is made of. Nothing of an earlier one may stay: an adapter would be put on a full model."""


def open_out_dir(job: TrainJob) -> None:
    """Make the folder of a job's result and remove an earlier one's record; raise UserError when it is the base itself."""
    if job.out_dir.resolve() == job.base.root.resolve():
        raise UserError(
            f"the base model of {job.role.name} is {job.out_dir}, where its checkpoint is to be written. Copy it elsewhere and "
            f"name the copy as base, or choose another models folder"
        )
    job.out_dir.mkdir(parents=True, exist_ok=True)
    record_path(job.out_dir).unlink(missing_ok=True)


def publish_files(temporary: Path, out_dir: Path) -> list[str]:
    """Move finished files from a temporary folder into `out_dir`, fsynced, in place of an earlier checkpoint's.

    Returns their names. The record comes last.
    """
    for stale in {path for pattern in _RESULT_FILES for path in out_dir.glob(pattern)}:
        stale.unlink()
    names = sorted(path.name for path in temporary.iterdir())
    for name in names:
        with (temporary / name).open("rb") as stream:
            os.fsync(stream.fileno())
        (temporary / name).replace(out_dir / name)
    temporary.rmdir()
    return names


def record_result(
    result: TrainResult, names: list[str], job: TrainJob, options: TrainingOptions, made: Mapping[str, Any]
) -> None:
    """Write the artifact of a finished training, and remove what an unfinished one needs."""
    Checkpoint(
        role=job.role.name,
        inputs={"base": job.base.digest, "splits": job.splits.digest},
        options=options.keyed(),
        seed=job.seed,
        files=file_records(job.out_dir, names),
        made=dict(made),
        kind=options.checkpoint_kind,
        **vars(result),
    ).save(job.out_dir)
    for scratch in (CHECKPOINTS, ENCODED):
        shutil.rmtree(job.out_dir / scratch, ignore_errors=True)
