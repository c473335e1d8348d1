"""What every gradient trainer shares: its options, and (in the modules beside) one loop, its batches, checkpoints and devices.

Not a plugin itself: `full_finetune` and `lora` subclass `TrainingOptions`, prepare a model, and hand it to `loop.train_model`.
Cheap to import: nothing here needs torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sysscan_models.interfaces import Trainer

_CADENCE: dict[str, Any] = {"affects_result": False}


class TrainingOptions(Trainer):
    """The options that all trainers of this package have in common; a trainer adds its own and its defaults."""

    learning_rate: float = Field(2e-5, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after warm-up (per optimizer step; Adafactor multiplies it by the weights' scale)."""
    epochs: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Passes over the training split."""
    max_steps: int = Field(0, ge=0)
    """Optimizer steps after which training ends, if the epochs do not end before; 0 = no limit."""
    max_tokens: int = Field(0, ge=0)
    """Tokens (padding left out) after which training ends, rounded up to a whole step; 0 = no limit."""
    max_seq_length: int = Field(4096, ge=16)
    """Tokens in a row; longer examples have the user's turn cut."""
    batch_size: int = Field(4, ge=1)
    """Sequences (rows; packed ones when packing) per optimizer step and device, reached by accumulation."""
    micro_batch_size: int = Field(1, ge=1)
    """Rows that go through the model at once, per device; halved when memory runs out."""
    packing: bool = True
    """Put several short examples into one row; they do not see each other. Otherwise one example per row."""
    supervise: Literal["answers", "all"] = "answers"
    """Tokens that the loss is computed on: assistant turns with their end token, or every token."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """AdamW keeps two fp32 moments per weight (8 bytes), Adafactor one row and one column per matrix."""
    optimizer_state: Literal["float32", "bfloat16"] = "float32"
    """Type of AdamW's moments: bfloat16 takes half the memory, rounded by chance, so that small changes are not lost."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW: decay of the first moment per step."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW: decay of the second moment per step."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, applied to matrices only (not to norms and biases)."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Global L2 norm that gradients are clipped to; 0 = no clipping."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of all steps over which the learning rate rises from 0."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of `learning_rate`."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations in the model; trained weights have an fp32 master copy either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more work, much less memory."""
    tensor_parallel: int = Field(1, ge=1)
    """TPU: devices that compute each matrix together; the rows of a step are divided among the other axis."""
    attention: Literal["blockwise", "flash"] = "blockwise"
    """TPU: blocks of queries in plain operations, or the Pallas kernel, which only a real TPU has."""
    expert_capacity: float = Field(0.0, ge=0, allow_inf_nan=False)
    """TPU, mixtures: places of an expert, as a multiple of an even share; what does not fit is dropped and counted. 0 = exact:
    every expert computes every token."""
    validation_batches: int = Field(8, ge=0)
    """Batches (of `batch_size` rows) of the validation split that a validation reads; 0 = all of it."""
    validate_every: int = Field(100, ge=0, json_schema_extra=_CADENCE)
    """Optimizer steps between validations; there is one before the first step and one at the end in any case."""
    checkpoint_every: int = Field(0, ge=0, json_schema_extra=_CADENCE)
    """Optimizer steps between checkpoints; 0 = only by time."""
    checkpoint_minutes: float = Field(30.0, ge=0, json_schema_extra=_CADENCE)
    """Minutes between checkpoints; 0 = only by steps."""
    keep_checkpoints: int = Field(2, ge=1, json_schema_extra=_CADENCE)
    """Checkpoints of an unfinished run kept on disk."""
    log_every: int = Field(1, ge=1, json_schema_extra=_CADENCE)
    """Optimizer steps between reads of the device (loss, progress, the check for non-finite updates)."""

    @model_validator(mode="after")
    def _options_fit(self) -> TrainingOptions:
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}; "
                f"set it to {self.batch_size} or less"
            )
        if self.optimizer_state == "bfloat16" and self.optimizer != "adamw":
            raise ValueError(f'optimizer_state = "bfloat16" is for AdamW\'s moments, and optimizer is {self.optimizer!r}')
        return self
