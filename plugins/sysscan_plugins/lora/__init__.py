"""LoRA: small matrices beside frozen weights are trained, and merged into them later. Options and hook; cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sysscan_models import hookimpl
from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, MergedCheckpoint
from sysscan_models.interfaces import Estimate, Trainer, TrainJob
from sysscan_models.roles import ModelRole
from sysscan_plugins.training import TrainingOptions

EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""What transformers calls the fused expert weights of a Mixtral in memory."""


class Lora(TrainingOptions):
    """Train adapters on attention projections, on request on the MLP or on a Mixtral's experts; the rest stays as it is."""

    name: ClassVar[str] = "lora"
    checkpoint_kind: ClassVar[Literal["full", "adapter"]] = "adapter"

    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after warm-up (per optimizer step)."""
    max_seq_length: int = Field(2048, ge=16)
    """Tokens in a row; longer examples have the user's turn cut."""
    batch_size: int = Field(2, ge=1)
    """Sequences (rows; packed ones when packing) per optimizer step and device, reached by accumulation."""
    rank: int = Field(16, ge=1)
    """Rows of lora_A and columns of lora_B: the rank of what is added to a weight."""
    alpha: int = Field(32, ge=1)
    """What is added is scaled by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the adapters' inputs that training drops; must be 0 with experts."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last names of the linear modules that get adapters, in every layer."""
    extra_targets: tuple[str, ...] = ()
    """More of them: `gate_proj`, `up_proj`, `down_proj` for the MLP of a dense model."""
    experts: bool = False
    """Adapt every expert of a mixture-of-experts model (Mixtral) too."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks from learning too slowly."""

    @property
    def targets(self) -> tuple[str, ...]:
        """All linear modules that get adapters, each once, in order."""
        return tuple(dict.fromkeys((*self.target_modules, *self.extra_targets)))

    @model_validator(mode="after")
    def _something_can_be_trained(self) -> Lora:
        if self.experts and self.dropout > 0:
            raise ValueError(f"dropout is {self.dropout:g}, but adapters of experts cannot have one; set dropout = 0")
        if not self.targets and not self.experts:
            raise ValueError(
                "target_modules and extra_targets are empty and experts is false: nothing would be trained; name a module"
            )
        return self

    def train(self, job: TrainJob) -> Checkpoint:
        """Train adapters and save them in peft's layout; resume when `job.out_dir` holds an unfinished run."""
        from sysscan_plugins.lora.adapters import train

        return train(job, self)

    def merge(self, checkpoint: Checkpoint, base: BaseCheckpoint, out_dir: Path) -> MergedCheckpoint:
        """Merge adapters into their base, a block of a tensor at a time, and return the saved artifact of the complete model.

        Artifacts without files stand for plain folders; their records are used where they lie in the folders.
        """
        from sysscan_models.progress import Progress
        from sysscan_plugins.lora.merging import merge_adapter

        recorded = bool(checkpoint.files)  # then `out_dir` is ours, and whatever an interrupted run left there is replaced
        with Progress(f"merge {checkpoint.role}".strip(), unit="MB") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total >> 20
                bar.update(done >> 20)

            return merge_adapter(
                base.root,
                checkpoint.root,
                out_dir,
                base=base if base.files else None,
                checkpoint=checkpoint if recorded else None,
                replace=recorded,
                progress=show,
            )

    def check(self, base: BaseCheckpoint, role: ModelRole) -> None:
        """Raise UserError when this base has not what the options name, or cannot be trained or merged; loads no weight."""
        from sysscan_plugins.lora.targets import check_targets

        check_targets(base.root, self)

    def estimate(self, job: TrainJob) -> Estimate | None:
        """Return what the job will need; reads the configuration and some of the data, no weights."""
        from sysscan_models.planning.memory import lora_memory
        from sysscan_plugins.lora.targets import check_targets
        from sysscan_plugins.training.base_model import base_shape
        from sysscan_plugins.training.pricing import estimate_training

        check_targets(job.base.root, self)
        return estimate_training(job, self, lora_memory(base_shape(job.base.root), self), trains_embeddings=False)


@hookimpl
def sysscan_register_trainers() -> Sequence[type[Trainer]]:
    """Return the LoRA trainer."""
    return [Lora]
