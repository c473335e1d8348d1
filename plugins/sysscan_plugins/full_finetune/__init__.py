"""Full fine-tuning: every weight of the base model is trained. Options and hook; `finetune` beside does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Estimate, Trainer, TrainJob
from sysscan_plugins.training import TrainingOptions

if TYPE_CHECKING:
    from sysscan_models.artifacts import BaseCheckpoint, Checkpoint
    from sysscan_models.roles import ModelRole


class FullFinetune(TrainingOptions):
    """Trains all weights. The defaults that all trainers share are the numbers of the specialist."""

    name: ClassVar[str] = "full_finetune"
    checkpoint_kind: ClassVar[Literal["full", "adapter"]] = "full"

    max_shard_gb: float = Field(4.0, gt=0)
    """Size of a safetensors file of the result, in GB (10**9 bytes)."""

    def train(self, job: TrainJob) -> Checkpoint:
        """Train and save a model in Hugging Face layout; resume when `job.out_dir` holds an unfinished run."""
        from sysscan_plugins.full_finetune.finetune import finetune

        return finetune(self, job)

    def check(self, base: BaseCheckpoint, role: ModelRole) -> None:
        """Raise UserError when the base model is quantized, of another architecture, or its context is too short."""
        from sysscan_plugins.training.base_model import check_base

        check_base(base.root, self, trains_embeddings=True)

    def estimate(self, job: TrainJob) -> Estimate | None:
        """Return what the job will need; reads the configuration and some of the data, no weights."""
        from sysscan_models.planning.memory import full_memory
        from sysscan_plugins.training.base_model import base_shape
        from sysscan_plugins.training.pricing import estimate_training

        return estimate_training(job, self, full_memory(base_shape(job.base.root), self), trains_embeddings=True)


@hookimpl
def sysscan_register_trainers() -> Sequence[type[Trainer]]:
    """Return the full fine-tuner."""
    return [FullFinetune]
