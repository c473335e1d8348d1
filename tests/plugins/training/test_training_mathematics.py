"""Packing, accumulation, chunked loss and masters change the speed of training, not its mathematics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import records, tiny_model, tiny_tokenizer

from sysscan_models.encoding import CHATML, IGNORE_INDEX
from sysscan_plugins.training import TrainingOptions, loss
from sysscan_plugins.training.batches import Batch, EncodedSplit, encode_split
from sysscan_plugins.training.devices.cpu import CPU
from sysscan_plugins.training.optimizers import MasterOptimizer


class Options(TrainingOptions):
    name = "test"

    def train(self, job: Any) -> Any:
        raise NotImplementedError


OPTIONS = Options(compute_dtype="float32", max_seq_length=256, batch_size=8)


@pytest.fixture
def split(tmp_path: Path) -> EncodedSplit:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(8)))
    return encode_split(path, tiny_tokenizer(), CHATML, OPTIONS, tmp_path / "encoded")


def gradients(model: Any) -> torch.Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()
    model.zero_grad()
    return found


def reference(model: Any, split: EncodedSplit) -> tuple[float, torch.Tensor]:
    """The loss of transformers itself, one sequence at a time, and its gradient."""
    model.set_attn_implementation("eager")
    total, count = torch.zeros(()), 0
    for number in range(len(split)):
        ids = torch.tensor(np.array(split.ids[split.starts[number] : split.starts[number + 1]], np.int64))[None]
        learnt = torch.tensor(np.array(split.supervised[split.starts[number] : split.starts[number + 1]]))[None]
        labels = torch.where(learnt, ids, IGNORE_INDEX)
        supervised = int((labels[:, 1:] != IGNORE_INDEX).sum())
        total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * supervised
        count += supervised
    (total / count).backward()
    return float(total.detach()), gradients(model)


def measured(model: Any, batches: list[Batch], options: TrainingOptions = OPTIONS) -> tuple[float, torch.Tensor]:
    device = CPU()
    device.place(model, options)
    model.train()
    scale = 1 / sum(batch.supervised for batch in batches)
    return sum(float(device.forward_backward(model, batch, scale)) for batch in batches), gradients(model)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize(
    "rows", [[[0, 1, 2], [3, 4, 5], [6, 7]], [[0], [1], [2], [3], [4], [5], [6], [7]], [[7, 6], [5, 3], [1, 0, 2], [4]]]
)
def test_packed_loss_and_gradient_equal_unpacked(split: EncodedSplit, kind: str, rows: list[list[int]]) -> None:
    model = tiny_model(kind)
    total, gradient = reference(model, split)
    packed, packed_gradient = measured(model, [split.batch(rows, 256)])
    assert packed == pytest.approx(total, rel=1e-5)
    assert torch.allclose(packed_gradient, gradient, atol=1e-6, rtol=1e-4)


def test_tied_embeddings_get_both_gradients(split: EncodedSplit) -> None:
    model = tiny_model(tie_word_embeddings=True)
    _, gradient = reference(model, split)
    _, packed = measured(model, [split.batch([[0, 1, 2, 3, 4, 5, 6, 7]], 512)])
    assert torch.allclose(packed, gradient, atol=1e-6, rtol=1e-4)


def test_chunks_of_the_loss_change_nothing(split: EncodedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    batch = [split.batch([[0, 1, 2, 3, 4, 5, 6, 7]], 512)]
    whole, gradient = measured(model, batch)
    monkeypatch.setattr(loss, "LOGITS", 1)
    chunked, chunked_gradient = measured(model, batch)
    assert batch[0].supervised > 2 * 64  # several chunks, the last one smaller
    assert chunked == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(chunked_gradient, gradient, atol=1e-7)


def test_accumulation_changes_nothing(split: EncodedSplit) -> None:
    model = tiny_model()
    rows = [[0, 1], [2], [3, 4], [5]]
    once, gradient = measured(model, [split.batch(rows, 256)])
    often, accumulated = measured(model, [split.batch([row], 256) for row in rows])
    assert often == pytest.approx(once, rel=1e-6)
    assert torch.allclose(accumulated, gradient, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_gradient_checkpointing_changes_nothing(split: EncodedSplit, kind: str) -> None:
    batch = [split.batch([[0, 1, 2], [3, 4, 5]], 256)]
    plain = measured(tiny_model(kind), batch)
    model = tiny_model(kind)
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again = measured(model, batch, OPTIONS.model_copy(update={"gradient_checkpointing": True}))
    assert len(calls) == 2, "the layer is computed again in the backward pass"
    assert again[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(again[1], plain[1], atol=1e-7)


def test_a_sliding_window_is_kept(split: EncodedSplit) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=8))
    total, gradient = reference(model, split)
    packed, packed_gradient = measured(model, [split.batch([[0, 1, 2, 3, 4, 5, 6, 7]], 512)])
    assert packed == pytest.approx(total, rel=1e-5)
    assert torch.allclose(packed_gradient, gradient, atol=1e-6, rtol=1e-4)


def test_fp32_masters_move_where_bf16_weights_cannot() -> None:
    options = Options(learning_rate=2e-5)
    model = tiny_model(dtype=torch.bfloat16)
    before = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}
    optimizer = MasterOptimizer(dict(model.named_parameters()), options)
    for _ in range(3):
        model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None], use_cache=False).loss.backward()
        optimizer.update(2e-5, 1.0)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (optimizer.masters[name] - before[name]).abs()
    assert moved.median() > 3e-5, "three steps of about the learning rate each"
    weights = model.get_parameter(name)
    assert torch.equal(weights, optimizer.masters[name].to(torch.bfloat16))
    large = before[name].abs() > 0.02
    assert (weights.float() == before[name])[large].float().mean() > 0.5, "bf16 alone would have lost these updates"


def test_bf16_gradients_accumulate_in_fp32() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    optimizer = MasterOptimizer(dict(model.named_parameters()), Options())
    name = "lm_head.weight"
    parameter = model.get_parameter(name)
    for value in (1.0, 2**-10):  # the sum has no bf16
        (parameter.float() * value).sum().backward()
        assert parameter.grad is None, "freed when it arrives"
    assert optimizer._buffers[name].unique().tolist() == [1.0 + 2**-10]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_that_is_not_finite_changes_nothing(optimizer: Any, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    masters = MasterOptimizer(dict(model.named_parameters()), Options(optimizer=optimizer, weight_decay=0.1))

    def step(factor: float) -> torch.Tensor:
        (model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None], use_cache=False).loss * factor).backward()
        return masters.update(1e-3, 1.0)

    assert step(1.0).isfinite()
    before = {name: tensor.clone() for name, tensor in masters.tensors()}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert not step(float("nan")).isfinite()
    assert all(torch.equal(tensor, before[name]) for name, tensor in masters.tensors())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert step(1.0).isfinite()
    assert not torch.equal(model.lm_head.weight, weights["lm_head.weight"])


def test_clipping_bounds_the_norm_and_decay_spares_norms() -> None:
    model = tiny_model()
    optimizer = MasterOptimizer(dict(model.named_parameters()), Options(compute_dtype="float32", weight_decay=0.1))
    groups = optimizer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert float(optimizer.update(1e-3, 1.0)) == pytest.approx(3.0 * count**0.5, rel=1e-5)
