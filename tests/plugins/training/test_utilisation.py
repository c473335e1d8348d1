"""Model FLOPs against counts made by hand and by torch, and the causes that are named."""

from __future__ import annotations

from typing import Any

import pytest

from sysscan_models.planning.shapes import KNOWN, Shape
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.lora import Lora
from sysscan_plugins.training.utilisation import Waste, attended, flops_per_token, likely_cause, utilisation

LLAMA, MIXTRAL = KNOWN["meta-llama/meta-llama-3-8b"], KNOWN["mistralai/mixtral-8x7b-v0.1"]
TINY = Shape(hidden=64, layers=3, intermediate=160, heads=4, kv_heads=2, head_dim=16, vocabulary=259)
MIXTURE = Shape(64, 3, 160, 4, 2, 16, 259, experts=4, experts_per_token=2)


def test_a_token_attends_to_half_of_its_segment() -> None:
    assert attended([1]) == 1
    assert attended([4]) == 2.5
    assert attended([4, 1]) == (10 + 1) / 5
    assert attended([]) == 0


@pytest.mark.parametrize("shape", [TINY, MIXTURE], ids=["dense", "mixture"])
def test_flops_of_full_training_are_those_that_torch_counts(shape: Shape) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    length, model = 32, tiny(shape)
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    ours = flops_per_token(shape, FullFinetune(max_seq_length=length), attended=length)  # torch counts whole squares
    if shape.experts:  # the loop over experts computes their rows exactly; the gate is counted by both
        assert counter.get_total_flops() == pytest.approx(ours * length, rel=0.02)
    else:
        assert counter.get_total_flops() == pytest.approx(ours * length, rel=0.005)


def tiny(shape: Shape) -> Any:
    """Build the model of a shape; its attention is of plain products, which torch counts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "attn_implementation": "eager",
    }  # fmt: skip
    if not shape.experts:
        return LlamaForCausalLM(LlamaConfig(**sizes))
    experts = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token}
    return MixtralForCausalLM(MixtralConfig(**sizes, **experts, experts_implementation="eager"))


def test_flops_of_known_models() -> None:
    matrices = LLAMA.parameters - LLAMA.vocabulary * LLAMA.hidden  # the embedding is looked up
    assert flops_per_token(LLAMA, FullFinetune(), attended=0) == pytest.approx(6 * matrices, rel=1e-4)
    attention = flops_per_token(LLAMA, FullFinetune(), attended=4096) - flops_per_token(LLAMA, FullFinetune(), attended=0)
    assert attention == 12 * 32 * 4096 * 4096
    active = 12.75e9  # of 46.7 B, with two of eight experts; embedding left out
    assert flops_per_token(MIXTRAL, FullFinetune(), attended=0) == pytest.approx(6 * active, rel=0.01)
    lora = flops_per_token(MIXTRAL, Lora(), attended=0)
    assert lora == pytest.approx(4 * active + 6 * 13_631_488, rel=0.01)
    experts = flops_per_token(MIXTRAL, Lora(experts=True, dropout=0), attended=0) - lora
    rows = 16 * (4096 + 2 * 14336) + 16 * (14336 + 4096)
    assert experts == 6 * 32 * 2 * rows  # the adapters of two experts in each of 32 layers


def test_a_published_run_has_its_published_utilisation() -> None:
    """Llama 3.1 8B on v6e-8 with 8192 tokens: 7,139 tokens per second and chip, 413 TFLOP/s there by whole squares."""
    flops = flops_per_token(KNOWN["meta-llama/llama-3.1-8b"], FullFinetune(), attended=8192)
    share = utilisation(flops, 8 * 7139, peak_flops=918e12, devices=8)
    assert share == pytest.approx(0.45, abs=0.01)
    assert utilisation(flops, 1e4, peak_flops=0, devices=1) is None


def test_at_the_goal_nothing_is_said_and_good_runs_are_left_alone() -> None:
    assert likely_cause(0.9, LLAMA, FullFinetune()) == ""
    told = likely_cause(0.42, LLAMA, FullFinetune())
    assert told.startswith("42% of the peak is used, the goal is 90%; good runs of such models reach 35% to 55%")


@pytest.mark.parametrize(
    ("options", "waste", "names"),
    [
        ({}, Waste(preparing=0.5, padding=0.4), "laying out batches took 50% of the time"),
        ({}, Waste(padding=0.4), "40% of the positions are padding; set a smaller max_seq_length"),
        ({"packing": False}, Waste(padding=0.4), "set packing = true"),
        ({"compute_dtype": "float32"}, Waste(padding=0.1), "computes in float32"),
        ({"micro_batch_size": 1}, Waste(), "set a larger micro_batch_size if"),
        ({"micro_batch_size": 1, "batch_size": 1}, Waste(), "set a larger micro_batch_size and batch_size if"),
        ({"micro_batch_size": 2, "gradient_checkpointing": True}, Waste(), "gradient checkpointing"),
        ({"micro_batch_size": 2}, Waste(), "a profile of the device"),
    ],
)
def test_the_likely_cause_is_named(options: dict[str, Any], waste: Waste, names: str) -> None:
    told = likely_cause(0.1, LLAMA, FullFinetune(**options), waste)
    assert told.startswith("10% of the peak is used, the goal is 90%")
    assert "35% to 55%" in told
    assert names in told


def test_a_small_model_is_no_fault() -> None:
    told = likely_cause(0.02, KNOWN["embedded:smollm2-135m-instruct"], FullFinetune())
    assert "the model is small (hidden size 576)" in told
