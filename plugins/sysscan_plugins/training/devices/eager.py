"""What CPU and CUDA share, whose shapes are dynamic.

Padding is stripped, attention runs per segment, and logits are computed only where there is a loss. Not for XLA, which wants
every step to have the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sysscan_models.encoding import IGNORE_INDEX
from sysscan_models.errors import UserError
from sysscan_models.progress import say
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.attention import use_segment_attention
from sysscan_plugins.training.batches import Batch
from sysscan_plugins.training.devices import Device, Weights
from sysscan_plugins.training.loss import head_backward, head_loss
from sysscan_plugins.training.optimizers import MasterOptimizer


class EagerDevice(Device):
    """A device that runs operations as they come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = torch.device(name)

    def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
        """See Device."""
        model.to(self.device)
        self.prepare(causal_model(model), options)

    def prepare(self, causal: Any, options: TrainingOptions) -> None:
        """Let the model attend within segments, and recompute activations if asked to."""
        if options.tensor_parallel > 1 or options.attention == "flash":
            asked = 'attention = "flash"' if options.attention == "flash" else f"tensor_parallel = {options.tensor_parallel}"
            raise UserError(f"{asked} is for TPUs, and this is {self.name}; leave the option out")
        if options.expert_capacity and getattr(causal.config, "num_local_experts", 0):
            say(f"{self.name}: expert_capacity is for TPUs; here every expert computes exactly the tokens that are sent to it")
        use_segment_attention(causal)
        if options.gradient_checkpointing:
            enable = getattr(causal, "activation_checkpointing_enable", None)  # what newer transformers call it
            (enable or causal.gradient_checkpointing_enable)({"use_reentrant": False})

    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        """See Device."""
        head, hidden_SH, targets_S, vocabulary = self._hidden(model, batch)
        loss, gradient_SH = head_backward(head, hidden_SH, targets_S, vocabulary, scale)
        if hidden_SH.requires_grad and len(targets_S):
            hidden_SH.backward(gradient_SH)  # type: ignore[no-untyped-call]
        return loss

    def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
        """See Device."""
        with torch.no_grad():
            return head_loss(*self._hidden(model, batch))

    def create_optimizer(self, parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions) -> MasterOptimizer:
        """See Device."""
        return MasterOptimizer(parameters, options)

    def decoder(self, causal: Any) -> Any:
        """Return what makes hidden states of token ids."""
        return causal.model

    def _hidden(self, model: Any, batch: Batch) -> tuple[Any, torch.Tensor, torch.Tensor, int]:
        """Return the output head, the hidden states where there is a loss [S, H], their targets [S], the vocabulary's size."""
        causal, flat = causal_model(model), batch.flat()
        ids_1N, positions_1N, targets_N = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (flat.ids_N[None], flat.positions_N[None], flat.targets_N)
        )
        hidden_1NH = self.decoder(causal)(
            input_ids=ids_1N, position_ids=positions_1N, attention_mask=None, use_cache=False, segment_lengths=flat.lengths
        ).last_hidden_state
        supervised_S = torch.from_numpy((flat.targets_N != IGNORE_INDEX).nonzero()[0]).to(self.device, non_blocking=True)
        hidden_SH = hidden_1NH[0].index_select(0, supervised_S)
        return causal.get_output_embeddings(), hidden_SH, targets_N.index_select(0, supervised_S), int(causal.config.vocab_size)


def causal_model(model: Any) -> Any:
    """Return the causal LM of transformers: the model itself, or the one inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
