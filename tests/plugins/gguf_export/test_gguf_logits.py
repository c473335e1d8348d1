"""The exported model computes what the Hugging Face model computes, through the real llama.cpp."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_cases import hf_greedy, hf_logits, opened, tiny_model
from safetensors.torch import load_file, save_file

from sysscan_plugins.gguf_export.conversion import export

IDS = [3, 77, 200, 14, 5, 9, 300, 41, 42, 43, 44, 45, 46, 100, 101, 102, 7, 7, 7, 250] * 3

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim of its own": ("llama", {"head_dim": 64, "rms_norm_eps": 1e-3}),
    "llama, rope llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    "llama, padded vocabulary": ("llama", {"vocab_size": 541}),
    "llama, width that 256 does not divide": ("llama", {"hidden_size": 192, "num_attention_heads": 6}),
    "mistral": ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mixtral": ("mixtral", {}),
    "mixtral, 8 experts, 3 used": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}),
}


def scale_of_difference(expected: np.ndarray, found: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_in_32_bits_are_those_of_hugging_face_at_every_position(
    case: str, tmp_path: Path, llama3_tokenizer: Path
) -> None:
    kind, config = CASES[case]
    folder = tiny_model(tmp_path / "model", llama3_tokenizer, kind, seed=3, **config)
    export(folder, tmp_path / "model.gguf", type="F32")
    with opened(tmp_path / "model.gguf") as model:
        assert scale_of_difference(hf_logits(folder, IDS), model.logits(IDS)) < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_16_bits_agree_with_hugging_face_and_continue_alike(
    architecture: str, kind: str, tmp_path: Path, llama3_tokenizer: Path
) -> None:
    folder = tiny_model(tmp_path / "model", llama3_tokenizer, architecture, seed=5, dtype="bfloat16")
    export(folder, tmp_path / "model.gguf", type=kind)
    expected = hf_logits(folder, IDS)
    with opened(tmp_path / "model.gguf") as model:
        found = model.logits(IDS)
        assert scale_of_difference(expected, found) < 0.02
        assert np.mean(expected.argmax(1) == found.argmax(1)) > 0.95
        assert model.greedy(IDS[:8], 8) == hf_greedy(folder, IDS[:8], 8)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_q4_k_m_is_close_and_made_of_real_k_quants(architecture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(architecture)
    quantized = export(folder, tmp_path / "model.gguf")
    assert {"Q4_K", "Q6_K", "F32"} == set(quantized.weights_by_type)
    export(folder, tmp_path / "exact.gguf", type="F32")
    exact = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "exact.gguf").tensors}
    allowed = {"F32": 0.0, "Q6_K": 0.03, "Q4_K": 0.1}
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        original = exact[tensor.name]
        error = gguf.quants.dequantize(tensor.data, tensor.tensor_type) - original
        assert np.linalg.norm(error) <= allowed[tensor.tensor_type.name] * np.linalg.norm(original), tensor.name
    with opened(tmp_path / "model.gguf") as model:
        found = model.logits(IDS)
    assert np.corrcoef(hf_logits(folder, IDS).reshape(-1), found.reshape(-1))[0, 1] > 0.9  # random weights suffer most


def test_a_checkpoint_in_shards_gives_the_same_file(tmp_path: Path, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "tiny-llama"
    shutil.copytree(llama, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = export(llama, tmp_path / "one.gguf", type="BF16"), export(sharded, tmp_path / "many.gguf", type="BF16")
    assert one.files["one.gguf"].sha256 == many.files["many.gguf"].sha256


def test_fused_experts_give_the_same_file_as_classic_names(tmp_path: Path, mixtral: Path) -> None:
    import torch

    fused = tmp_path / mixtral.name
    shutil.copytree(mixtral, fused)
    tensors = load_file(mixtral / "model.safetensors")
    for layer in range(2):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        parts = [[tensors.pop(f"{old}.experts.{expert}.w{number}.weight") for expert in range(4)] for number in (1, 2, 3)]
        gates, downs, ups = (torch.stack(part) for part in parts)
        tensors[f"{new}.experts.gate_up_proj"] = torch.cat([gates, ups], dim=1).contiguous()
        tensors[f"{new}.experts.down_proj"] = downs
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")
    save_file(tensors, fused / "model.safetensors", metadata={"format": "pt"})
    classic, other = export(mixtral, tmp_path / "a.gguf", type="F32"), export(fused, tmp_path / "b.gguf", type="F32")
    assert classic.files["a.gguf"].sha256 == other.files["b.gguf"].sha256


def test_the_old_spelling_of_rope_in_config_json_is_read(tmp_path: Path, llama3_tokenizer: Path) -> None:
    folder = tiny_model(tmp_path / "m", llama3_tokenizer, rope_parameters=LLAMA3_ROPE)
    new = export(folder, tmp_path / "new.gguf", type="F32")
    config = json.loads((folder / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"], config["rope_scaling"] = parameters.pop("rope_theta"), parameters
    (folder / "config.json").write_text(json.dumps(config))
    old = export(folder, tmp_path / "old.gguf", type="F32")
    assert old.files["old.gguf"].sha256 == new.files["new.gguf"].sha256


def test_a_missing_rope_theta_is_the_one_that_transformers_takes(tmp_path: Path, mixtral: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(mixtral, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("rope_parameters")["rope_theta"] == 1e6
    (folder / "config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "m.gguf", type="BF16")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["llama.rope.freq_base"].contents() == 1e6


def test_a_sliding_window_bounds_the_context_and_is_noted(tmp_path: Path, llama3_tokenizer: Path) -> None:
    folder = tiny_model(tmp_path / "m", llama3_tokenizer, "mistral", sliding_window=128)
    made = export(folder, tmp_path / "m.gguf", type="BF16")
    assert made.context_length == 128
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["llama.context_length"].contents() == 128
    assert any("no sliding window of 128 tokens" in note for note in made.notes)
