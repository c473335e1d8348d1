"""What an export leaves behind: whole, checked files under the names asked for, or nothing."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf_cases import byte_level_tokenizer, hf_logits, opened, tiny_model
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from sysscan_models.artifacts import BaseCheckpoint, MergedCheckpoint, QuantizedModel, record_path, sha256_file
from sysscan_models.errors import ConfigError, IntegrityError, SysscanError, UserError
from sysscan_models.plugins import plugin_manager
from sysscan_models.roles import SPECIALIST
from sysscan_plugins import gguf_export
from sysscan_plugins.gguf_export import GGUF, NEED_IMATRIX, TYPES, UNQUANTIZED, gguf_file, llamacpp, size_in_bytes
from sysscan_plugins.gguf_export.conversion import About, export, plan
from sysscan_plugins.gguf_export.imatrix import read_imatrix
from sysscan_plugins.gguf_export.tensors import _to_bfloat16

IDS = [3, 77, 200, 14, 5, 9, 300, 41]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def metadata(file: Path) -> dict[str, Any]:
    return {key: entry.contents() for key, entry in gguf.GGUFReader(file).fields.items()}


def copied(source: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


# The record and the file


def test_the_record_of_an_export(tmp_path: Path, llama: Path) -> None:
    made = export(llama, tmp_path / "out" / "m.gguf")
    file = tmp_path / "out" / "m.gguf"
    assert names(tmp_path / "out") == ["m.gguf"]
    assert (made.path, made.type, made.architecture, made.context_length) == (file, "Q4_K_M", "llama", 512)
    assert made.files["m.gguf"].sha256 == sha256_file(file)
    weights = load_file(llama / "model.safetensors")
    assert made.parameters == sum(array.size for array in weights.values()) == sum(made.weights_by_type.values())
    assert made.notes == ()
    assert QuantizedModel.load(made.save(file).path).digest == made.digest
    found = metadata(file)
    assert found["general.name"] == llama.name
    assert found["general.file_type"] == llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert found["general.quantization_version"] == gguf.GGML_QUANT_VERSION


def test_what_the_file_says_about_itself(tmp_path: Path, llama: Path) -> None:
    about = About("Name", "llama3.1", "meta-llama/Llama-3.1-8B", {"sysscan.dataset": "sha256:00ff"})
    export(llama, tmp_path / "m.gguf", type="BF16", about=about)
    found = metadata(tmp_path / "m.gguf")
    assert found["general.name"] == "Name"
    assert found["general.license"] == "llama3.1"
    assert found["general.base_model.count"] == 1
    assert found["general.base_model.0.name"] == "meta-llama/Llama-3.1-8B"
    assert found["sysscan.dataset"] == "sha256:00ff"


@pytest.mark.parametrize("key", ["general.name", "llama.block_count", "nodot", "With.Capitals"])
def test_extra_metadata_cannot_replace_what_the_model_needs(key: str, tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match=f"extra metadata '{key}' cannot be written"):
        export(llama, tmp_path / "m.gguf", about=About(name="x", extra={key: "y"}))
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_K_M"])
def test_the_same_input_gives_the_same_bytes(kind: str, tmp_path: Path, mixtral: Path) -> None:
    first = export(mixtral, tmp_path / "a" / "m.gguf", type=kind, threads=1)
    second = export(mixtral, tmp_path / "b" / "m.gguf", type=kind, threads=2)
    assert first.digest == second.digest


def test_progress_grows_to_the_whole(tmp_path: Path, llama: Path) -> None:
    for kind, shards in (("BF16", ""), ("Q4_K_M", ""), ("Q4_K_M", "500KB")):
        seen: list[tuple[int, int]] = []

        def note(done: int, total: int, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((done, total))

        export(llama, tmp_path / "m.gguf", type=kind, max_shard_size=shards, progress=note)
        done = [count for count, _ in seen]
        assert done == sorted(done)
        assert seen[-1][0] == seen[-1][1] > 0
        assert {total for _, total in seen} == {seen[0][1]}


def test_nothing_is_printed(tmp_path: Path, llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(llama, tmp_path / "m.gguf")
    assert capfd.readouterr() == ("", "")


def test_memory_is_bounded_by_a_tensor(tmp_path: Path, llama3_tokenizer: Path) -> None:
    folder = tiny_model(tmp_path / "m", llama3_tokenizer, "mixtral", num_hidden_layers=8, num_local_experts=8)
    tracemalloc.start()
    try:
        export(folder, tmp_path / "m.gguf", type="BF16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = 8 * 256 * 256 * 2  # one layer's stacked experts
    vocabulary = 4 << 20
    total = (tmp_path / "m.gguf").stat().st_size
    assert total > 20 << 20
    assert peak < 3 * largest + 8 * (1 << 20) + vocabulary < total


# Types


def test_all_types_of_llama_cpp_are_known() -> None:
    theirs = {name.removeprefix("LLAMA_FTYPE_").partition("_")[2] for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_")}
    known = {kind.name.partition("_")[2] for kind in gguf.LlamaFileType}
    not_quantized_to = {"", "NVFP4"}  # GUESSED, and a type that llama_model_quantize does not make
    assert set(TYPES) == (theirs & known) - not_quantized_to
    assert len(TYPES) == len(set(TYPES))


QUICK = ("Q8_0", "Q4_0", "Q5_K_M", "Q3_K_S", "IQ4_XS", "TQ2_0")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind in TYPES
        if kind not in (*NEED_IMATRIX, *UNQUANTIZED, "Q4_K_M")
    ],
)
def test_every_type_is_made_and_loads(kind: str, tmp_path: Path, llama: Path) -> None:
    made = export(llama, tmp_path / "m.gguf", type=kind)
    assert metadata(made.path)["general.file_type"] == getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    with opened(made.path) as model:
        assert np.isfinite(model.logits(IDS)).all()


def test_an_unknown_type_lists_the_valid_ones(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown GGUF type 'Q4_K_X'\. Did you mean 'Q4_K_S'\? Valid choices: BF16, F16, F32"
    ):
        export(llama, tmp_path / "m.gguf", type="Q4_K_X")
    assert GGUF(type="q8_0").type == "Q8_0"


def test_a_type_that_needs_an_imatrix_says_so() -> None:
    for kind in NEED_IMATRIX:
        with pytest.raises(ValidationError, match=f"type {kind} needs an importance matrix"):
            GGUF(type=kind)


def test_widths_that_256_does_not_divide_are_reported(tmp_path: Path, llama3_tokenizer: Path) -> None:
    folder = tiny_model(tmp_path / "m", llama3_tokenizer, hidden_size=192, num_attention_heads=6)
    made = export(folder, tmp_path / "m.gguf")
    (note,) = made.notes
    fallen = sum(count for kind, count in made.weights_by_type.items() if kind in ("Q5_0", "Q8_0"))
    assert fallen > made.parameters / 2
    assert (
        f"{fallen / made.parameters:.0%} of the weights are in rows that 256 does not divide, which Q4_K_M cannot hold" in note
    )
    assert "% as Q5_0" in note
    assert export(folder, tmp_path / "m.gguf", type="Q8_0").notes == ()


# Shards


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
def test_shards_are_native_to_llama_cpp_and_hold_the_same(kind: str, tmp_path: Path, llama: Path) -> None:
    limit = 1_000_000 if kind == "BF16" else 300_000
    whole = export(llama, tmp_path / "whole.gguf", type=kind)
    made = export(llama, tmp_path / "m.gguf", type=kind, max_shard_size=f"{limit // 1000}KB")
    count = len(made.files)
    assert count > 2
    assert sorted(made.files) == [f"m-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    assert names(tmp_path) == [*sorted(made.files), "whole.gguf"]
    assert made.file == f"m-00001-of-{count:05d}.gguf"
    assert max(record.size for record in made.files.values()) <= limit
    assert made.weights_by_type == whole.weights_by_type
    assert made.notes == ()
    with opened(made.path) as shards, opened(whole.path) as single:
        assert np.array_equal(shards.logits(IDS), single.logits(IDS))


def test_no_shard_is_larger_than_asked_for(tmp_path: Path, llama: Path) -> None:
    for limit in range(588_000, 612_000, 4_000):  # the tensors of the first shard take 587,776 bytes
        made = export(llama, tmp_path / "m.gguf", type="BF16", max_shard_size=str(limit))
        assert max(record.size for record in made.files.values()) <= limit


def test_a_model_that_fits_stays_one_file(tmp_path: Path, llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("BF16", "Q4_K_M"):
        made = export(llama, tmp_path / f"{kind}.gguf", type=kind, max_shard_size="4GB")
        assert list(made.files) == [f"{kind}.gguf"]
        plain = export(llama, tmp_path / "plain.gguf", type=kind)
        assert {t.name: t.data.tobytes() for t in gguf.GGUFReader(made.path).tensors} == {
            t.name: t.data.tobytes() for t in gguf.GGUFReader(plain.path).tensors
        }
    assert not caplog.records


def test_a_new_export_replaces_all_of_the_old_one(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "other-00001-of-00002.gguf").write_bytes(b"another model's")
    export(llama, tmp_path / "m.gguf", type="BF16", max_shard_size="1MB").save(tmp_path / "m.gguf")
    export(llama, tmp_path / "m.gguf", type="BF16")
    assert names(tmp_path) == ["m.gguf", "other-00001-of-00002.gguf"]
    made = export(llama, tmp_path / "m.gguf", type="BF16", max_shard_size="2MB")
    assert names(tmp_path) == [*sorted(made.files), "other-00001-of-00002.gguf"]


def test_a_tensor_larger_than_a_shard_is_noted(tmp_path: Path, llama: Path) -> None:
    made = export(llama, tmp_path / "m.gguf", type="BF16", max_shard_size="200KB")
    assert any("exceed 200KB: a single tensor does" in note for note in made.notes)
    with opened(made.path) as model:
        assert np.isfinite(model.logits(IDS)).all()


def test_a_shard_must_hold_the_metadata(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match=r"max_shard_size is 2000 bytes, but the metadata .* takes \d+"):
        export(llama, tmp_path / "m.gguf", type="BF16", max_shard_size="2KB")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 MiB", 3 << 19), ("7", 7), ("2k", 2000), ("1TB", 10**12)])
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["many", "-1GB", "0", "4XB"])
def test_a_size_that_is_none(text: str, tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ConfigError, match=f"max_shard_size '{text}' is not a size above 0"):
        export(llama, tmp_path / "m.gguf", max_shard_size=text)


# Importance matrix


def imatrix_gguf(file: Path, entries: dict[str, np.ndarray], count: float = 1, *, unused_expert: bool = False) -> Path:
    """Write sums [experts, columns] as llama-imatrix does; `unused_expert` says that no token reached the first of several."""
    writer = gguf.GGUFWriter(file, "llama")
    for name, sums in entries.items():
        counts = np.full((len(sums), 1), count, dtype=np.float32)
        if unused_expert and len(sums) > 1:
            counts[0] = 0
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def imatrix_binary(file: Path, entries: dict[str, np.ndarray], calls: int) -> Path:
    packed = struct.pack("<i", len(entries))
    for name, values in entries.items():
        packed += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        packed += values.astype("<f4").tobytes()
    file.write_bytes(packed + struct.pack("<ii", calls, 0))
    return file


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    """Return for every quantized tensor of a model a vector in which few columns matter much."""
    planned = plan(folder, GGUF(type="BF16"), About())
    generator = np.random.default_rng(1)
    return {
        tensor.name: (generator.random((tensor.shape[0] if len(tensor.shape) == 3 else 1, tensor.shape[-1])) ** 8 + 1e-4) * 100
        for tensor in planned.tensors
        if len(tensor.shape) > 1 and not tensor.always_f32
    }


@pytest.mark.parametrize("form", ["gguf", "binary"])
def test_an_imatrix_changes_what_is_kept(form: str, tmp_path: Path, llama: Path) -> None:
    columns = columns_of(llama)
    file = tmp_path / "imatrix"
    if form == "gguf":
        imatrix_gguf(file, {name: values * 4 for name, values in columns.items()}, 4)
    else:
        imatrix_binary(file, {name: values * 4 for name, values in columns.items()}, 4)
    exact = {
        tensor.name: tensor.data for tensor in gguf.GGUFReader(export(llama, tmp_path / "x.gguf", type="F32").path).tensors
    }

    def weighted_error(made: QuantizedModel) -> float:
        return sum(
            float((columns[t.name].reshape(-1) * (gguf.quants.dequantize(t.data, t.tensor_type) - exact[t.name]) ** 2).sum())
            for t in gguf.GGUFReader(made.path).tensors
            if t.name in columns
        )

    plain = export(llama, tmp_path / "plain.gguf", type="Q4_K_M")
    weighted = export(llama, tmp_path / "weighted.gguf", type="Q4_K_M", imatrix=file)
    assert weighted_error(weighted) < 0.9 * weighted_error(plain)
    assert weighted.options["imatrix"] == sha256_file(file)


@pytest.mark.slow
def test_types_below_3_bits_with_an_imatrix_for_experts(tmp_path: Path, mixtral: Path) -> None:
    file = imatrix_gguf(tmp_path / "imatrix.gguf", columns_of(mixtral), unused_expert=True)
    made = export(mixtral, tmp_path / "m.gguf", type="IQ2_XS", imatrix=file)
    assert made.weights_by_type["IQ2_XS"] > made.parameters / 3


def test_an_imatrix_holds_means(tmp_path: Path) -> None:
    sums = {"a.weight": np.array([[8.0, 4.0]]), "b.weight": np.array([[2.0, 6.0], [4.0, 12.0]])}
    means = read_imatrix(imatrix_gguf(tmp_path / "i.gguf", sums, 4, unused_expert=True))
    assert means["a.weight"].tolist() == [2.0, 1.0]
    assert means["b.weight"].tolist() == [1.0, 1.0, 1.0, 3.0]
    binary = imatrix_binary(tmp_path / "i.dat", {"a.weight": np.array([8.0, 4.0])}, 4)
    assert read_imatrix(binary)["a.weight"].tolist() == [2.0, 1.0]


def test_imatrix_files_that_do_not_fit(tmp_path: Path, llama: Path) -> None:
    def refused(file: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            export(llama, tmp_path / "m.gguf", imatrix=file)
        assert not (tmp_path / "m.gguf").exists()

    refused(tmp_path / "none", r"imatrix '.*none' does not exist; make one with llama-imatrix")
    (tmp_path / "text").write_text("not an importance matrix at all")
    refused(tmp_path / "text", "is not an importance matrix that llama-imatrix wrote")
    refused(imatrix_binary(tmp_path / "empty", {}, 1), "holds no entry")
    refused(imatrix_binary(tmp_path / "nan", {"blk.0.attn_q.weight": np.full(256, np.nan)}, 1), "attn_q.weight is not finite")
    refused(imatrix_binary(tmp_path / "other", {"blk.9.attn_q.weight": np.ones(256)}, 1), "none of the model's tensors")
    refused(
        imatrix_binary(tmp_path / "size", {"blk.0.attn_q.weight": np.ones(64)}, 1), "64 numbers for blk.0.attn_q.weight.*256"
    )


# Failures leave nothing


def failing(folder: Path, out: Path, error: type[Exception], message: str, **options: Any) -> None:
    with pytest.raises(error, match=message):
        export(folder, out, **options)
    assert not [name for name in names(out.parent) if name != folder.name]


def test_weights_that_are_cut_off(tmp_path: Path, llama: Path) -> None:
    folder = copied(llama, tmp_path / "m")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    failing(folder, tmp_path / "m.gguf", IntegrityError, r"has \d+ bytes, its header describes \d+: it is cut off")
    file.write_bytes(b"\xff" * 64)
    failing(folder, tmp_path / "m.gguf", IntegrityError, "not a whole safetensors file")


def changed_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    weights = dict(load_file(folder / "model.safetensors"))
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_K_M"])
def test_numbers_that_are_not_finite(kind: str, tmp_path: Path, llama: Path) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan

    folder = changed_weights(copied(llama, tmp_path / "m"), spoil)
    failing(folder, tmp_path / "m.gguf", SysscanError, r"'blk\.1\.ffn_up\.weight' has numbers that are not finite", type=kind)


def test_numbers_that_are_not_finite_in_bfloat16(tmp_path: Path, mixtral: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = copied(mixtral, tmp_path / "m")
    weights = load_torch(folder / "model.safetensors")
    weights["model.layers.0.block_sparse_moe.experts.2.w2.weight"][0, 0] = -torch.inf
    save_torch(weights, folder / "model.safetensors", metadata={"format": "pt"})
    failing(folder, tmp_path / "m.gguf", SysscanError, "ffn_down_exps.weight' has numbers that are not finite", type="BF16")


def test_numbers_too_large_for_f16(tmp_path: Path, llama: Path) -> None:
    def enlarge(weights: dict[str, np.ndarray]) -> None:
        weights["model.embed_tokens.weight"][0, 0] = 70000.0

    folder = changed_weights(copied(llama, tmp_path / "m"), enlarge)
    failing(folder, tmp_path / "m.gguf", SysscanError, "that F16 cannot hold; export as BF16 or F32", type="F16")
    export(folder, tmp_path / "m.gguf", type="BF16")


def test_rounding_to_bfloat16_is_ggufs() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    ties = (np.arange(1 << 12, dtype=np.uint32) * 0x8000).view(np.float32)
    numbers = np.concatenate([numbers[np.isfinite(numbers)], ties])
    expected = gguf.quants.quantize(numbers.reshape(1, -1), gguf.GGMLQuantizationType.BF16).view(np.uint16).reshape(-1)
    assert np.array_equal(_to_bfloat16(numbers), expected)


def test_tensors_that_do_not_belong_to_the_config(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "m.gguf"

    def with_weights(name: str, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
        return changed_weights(copied(llama, tmp_path / name), change)

    def refused(folder: Path, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            export(folder, out)
        assert not out.exists()

    missing = with_weights("missing", lambda weights: weights.pop("model.layers.1.self_attn.q_proj.weight"))
    refused(missing, IntegrityError, r"'blk\.1\.attn_q\.weight' of \[256, 256\].*found no tensor")
    headless = with_weights("headless", lambda weights: weights.pop("lm_head.weight"))
    refused(headless, IntegrityError, "config.json must say tie_word_embeddings = true")
    unknown = with_weights("unknown", lambda weights: weights.update({"model.vision.weight": np.ones((2, 2), np.float32)}))
    refused(unknown, UserError, "tensors that LlamaForCausalLM, .* do not know: model.vision.weight")
    bias = with_weights(
        "bias", lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": np.ones(256, np.float32)})
    )
    refused(bias, UserError, "does not describe: blk.0.attn_q.bias")
    refused(
        copied(llama, tmp_path / "rows", vocab_size=600), IntegrityError, r"\[504, 256\].*rows must be config.json's vocab_size"
    )
    refused(copied(llama, tmp_path / "wide", intermediate_size=640), IntegrityError, r"ffn_gate.weight' of \[640, 256\]")
    quantized = with_weights("int8", lambda weights: weights.update({"lm_head.weight": np.ones((504, 256), np.int8)}))
    refused(quantized, UserError, "element type I8.*already quantized")


def test_an_expert_that_is_missing(tmp_path: Path, mixtral: Path) -> None:
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = copied(mixtral, tmp_path / "m")
    weights = load_torch(folder / "model.safetensors")
    weights["model.layers.0.block_sparse_moe.experts.4.w1.weight"] = weights.pop(
        "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    )
    save_torch(weights, folder / "model.safetensors", metadata={"format": "pt"})
    failing(folder, tmp_path / "m.gguf", IntegrityError, r"'blk\.0\.ffn_gate_exps\.weight' of \[4, 256, 256\]")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM, which cannot be exported; supported are LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gemma"}, "model_type 'gemma'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'; supported are default, linear, llama3"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "rope type 'llama3' without 'low_freq_factor'"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 4.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "high_freq_factor 1.0 and low_freq_factor 4.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; expected a number above 0"),
        ({"num_key_value_heads": 3}, "8 heads, 3 key-value heads"),
    ],
)
def test_a_config_that_is_not_supported(config: dict[str, Any], message: str, tmp_path: Path, llama: Path) -> None:
    failing(copied(llama, tmp_path / "m", **config), tmp_path / "m.gguf", UserError, message)


def test_folders_that_hold_no_model(tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "out" / "m.gguf"

    def refused(folder: Path, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            export(folder, out)
        assert not out.parent.exists()

    refused(tmp_path / "nowhere", UserError, "is not a folder")
    (tmp_path / "x").mkdir()
    refused(tmp_path / "x", UserError, "has no config.json")
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "x", UserError, "holds an adapter, not a complete model; merge it")
    pickled = copied(llama, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, UserError, "it has pytorch_model.bin: save the model again with safe_serialization")
    index = pickled / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refused(pickled, IntegrityError, "lacks model-00001-of-00002.safetensors, which its index names")
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refused(pickled, IntegrityError, "names files outside of its folder")


def test_a_name_that_cannot_be_the_model(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match=r"expected the name of a file that ends in \.gguf"):
        export(llama, tmp_path / "m.bin")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write beside"):
        export(llama, tmp_path / "file" / "m.gguf")


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(tmp_path: Path, llama: Path) -> None:
    """The weights are a file with a hole as large as what is free; only its header is ever read."""
    free = shutil.disk_usage(tmp_path).free
    rows = int(0.8 * free / 2 / 256 / 6)  # 2 bytes a weight, six matrices: 16 bits alone would fit
    header, offset = {}, 0
    for name, array in load_file(llama / "model.safetensors").items():
        shape = list(array.shape)
        if ".mlp." in name:
            shape = [256, rows] if "down" in name else [rows, 256]
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    folder = copied(llama, tmp_path / "m", intermediate_size=rows)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + offset)
    assert plan(folder, GGUF(type="BF16"), About()).disk_bytes < free
    code = """
import resource, sys
from pathlib import Path
from sysscan_models.errors import SysscanError
from sysscan_plugins.gguf_export.conversion import export
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # if it were not refused, it would try to read the hole
try:
    export(Path(sys.argv[1]), Path(sys.argv[2]))
except SysscanError as error:
    print(error)
"""
    printed, errors = in_a_child(code, folder, tmp_path / "m.gguf").communicate(timeout=120)
    assert re.search(r"needs up to \d+\.\d GB in .* GB are free; free some", printed), printed + errors
    assert names(tmp_path) == ["m"]


def in_a_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
def test_a_write_that_fails_leaves_nothing(kind: str, tmp_path: Path, llama: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from sysscan_models.errors import SysscanError
from sysscan_plugins.gguf_export.conversion import export
folder, out, kind, limit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    export(folder, out, type=kind)
except SysscanError as error:
    print(error)
"""
    limit = 500_000
    child = in_a_child(code, llama, tmp_path / "m.gguf", kind, limit)
    printed, errors = child.communicate(timeout=120)
    assert "writing m.gguf in" in printed, errors
    assert "Nothing was left under that name" in printed
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
def test_a_killed_export_leaves_nothing_under_the_name_and_the_next_one_cleans_up(
    kind: str, tmp_path: Path, llama: Path
) -> None:
    code = """
import sys, time
from pathlib import Path
from sysscan_plugins.gguf_export.conversion import export
def stop(done, total):
    if done > float(sys.argv[4]) * total:
        print("now", flush=True)
        time.sleep(600)
export(Path(sys.argv[1]), Path(sys.argv[2]), type=sys.argv[3], progress=stop)
"""
    out = tmp_path / "m.gguf"
    child = in_a_child(code, llama, out, kind, 0.5 if kind == "BF16" else 0.7)
    assert child.stdout is not None
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert names(tmp_path) == [".m.gguf.tmp"]
    export(llama, out, type=kind)
    assert names(tmp_path) == ["m.gguf"]


def test_ctrl_c_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, llama: Path) -> None:
    old = export(llama, tmp_path / "m.gguf", type="F32").save(tmp_path / "m.gguf")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(llama, tmp_path / "m.gguf", type="Q4_K_M", progress=interrupt)
    assert names(tmp_path) == ["m.gguf", "m.gguf.json"]
    old.check_files(contents=True)


def test_two_exports_of_one_name_at_a_time(tmp_path: Path, llama: Path) -> None:
    (tmp_path / ".m.gguf.tmp").mkdir()
    handle = os.open(tmp_path / ".m.gguf.tmp", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(SysscanError, match="is being written by another export right now"):
            export(llama, tmp_path / "m.gguf")
    finally:
        os.close(handle)
    export(llama, tmp_path / "m.gguf")
    assert names(tmp_path) == ["m.gguf"]


# Reading back


def test_a_damaged_file_is_found_when_it_is_read_back(tmp_path: Path, llama: Path) -> None:
    export(llama, tmp_path / "m.gguf", type="BF16")
    planned = plan(llama, GGUF(type="BF16"), About())
    file, expected = tmp_path / "m.gguf", gguf_file.metadata(planned.describe)
    assert len(gguf_file.read_back([file], expected, planned.tensors)) == len(planned.tensors)
    with pytest.raises(IntegrityError, match=r"metadata 'llama\.block_count' reads back as '2', not '3'"):
        gguf_file.read_back([file], {**expected, "llama.block_count": 3}, planned.tensors)
    with pytest.raises(IntegrityError, match=r"with 21 tensors, 20 were planned; first difference: output\.weight"):
        gguf_file.read_back([file], expected, planned.tensors[:-1])
    with pytest.raises(IntegrityError, match="a repeated tensor"):
        gguf_file.read_back([file, file], expected, planned.tensors)
    os.truncate(file, file.stat().st_size - 64)
    with pytest.raises(IntegrityError, match="does not read back as GGUF"):
        gguf_file.read_back([file], expected, planned.tensors)


# llama.cpp in its child process


def test_the_end_of_llama_cpps_log_is_in_the_message(tmp_path: Path, llama: Path) -> None:
    source = export(llama, tmp_path / "m.gguf", type="BF16").path
    with pytest.raises(
        SysscanError, match=r"(?s)quantizing x.gguf: llama.cpp reported a failure.*invalid output file type 999"
    ):
        llamacpp.quantize(source, tmp_path / "x.gguf", 999)


def test_a_child_that_llama_cpp_takes_down_is_reported(tmp_path: Path) -> None:
    """Two tokens of one text make llama.cpp abort the process that loads them."""
    writer = gguf.GGUFWriter(tmp_path / "twice.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "a"])
    writer.add_token_types([1, 1])
    writer.add_token_merges(["a a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(SysscanError, match=r"(?s)reading the vocabulary: llama.cpp was ended by signal 6; the end of its log:"):
        llamacpp.tokenize(tmp_path / "twice.gguf", ["a"])


def test_the_child_ends_with_its_parent(tmp_path: Path, llama3_tokenizer: Path) -> None:
    """A killed export must not leave llama.cpp working on for an hour."""
    folder = tiny_model(tmp_path / "m", llama3_tokenizer, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    source = export(folder, tmp_path / "m.gguf", type="BF16").path
    code = """
import sys
from pathlib import Path
from sysscan_plugins.gguf_export import llamacpp
llamacpp.quantize(Path(sys.argv[1]), Path(sys.argv[2]), 15, threads=1, watch=lambda: print("working", flush=True))
"""
    parent = in_a_child(code, source, tmp_path / "q.gguf")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "working\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 1
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{children[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{children[0]}").exists()


# The plugin


def test_the_plugin_is_registered_and_cheap_to_import() -> None:
    assert plugin_manager(gguf_export, entry_points=False).get("quantizers", "gguf") is GGUF
    heavy = ("torch", "transformers", "gguf", "numpy", "llama_cpp")
    code = f"import sys, sysscan_plugins.gguf_export; print([name for name in {heavy} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"


def test_quantize_for_a_role(tmp_path: Path, llama: Path) -> None:
    merged = MergedCheckpoint(role="specialist").at(llama)
    quantizer = GGUF()
    out = tmp_path / quantizer.file_name(SPECIALIST)
    made = quantizer.quantize(merged, out, SPECIALIST).save(out)
    assert made.file == "specialist_model_q4km.gguf"
    assert (made.role, made.inputs, made.options) == ("specialist", {"merged": merged.digest}, quantizer.keyed())
    assert metadata(out)["general.name"] == "Sys-Scan-Graph specialist"
    assert metadata(out)["sysscan.merged"] == merged.digest
    made.check_files(contents=True)
    with opened(out) as model:
        agreement = model.logits(IDS).argmax(1) == hf_logits(llama, IDS).argmax(1)
    assert agreement.any()


def test_quantize_without_a_role_is_a_plain_export(tmp_path: Path, llama: Path) -> None:
    made = GGUF(type="BF16").quantize(MergedCheckpoint().at(llama), tmp_path / "m.gguf")
    assert (made.role, made.inputs) == ("", {})
    assert metadata(made.path)["general.name"] == llama.name
    assert not record_path(made.path).exists()


def test_file_names_follow_the_type() -> None:
    expected = {"Q4_K_M": "q4km", "Q8_0": "q80", "BF16": "bf16", "IQ4_XS": "iq4xs", "F32": "f32"}
    for kind, part in expected.items():
        assert GGUF(type=kind).file_name(SPECIALIST) == f"specialist_model_{part}.gguf"


def test_what_the_key_depends_on(tmp_path: Path) -> None:
    assert GGUF(threads=1).keyed() == GGUF(threads=2).keyed()
    assert GGUF(type="Q8_0").keyed() != GGUF().keyed()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert GGUF(imatrix=tmp_path / "a").keyed() == GGUF(imatrix=tmp_path / "b").keyed()
    with pytest.raises(UserError, match=r"imatrix '.*c' does not exist"):
        GGUF(imatrix=tmp_path / "c").keyed()


def test_check_needs_no_weights_and_refuses_early(tmp_path: Path, llama: Path) -> None:
    folder = copied(llama, tmp_path / "m")
    base = BaseCheckpoint(reference="x").at(folder)
    header = (folder / "model.safetensors").read_bytes()[: 1 << 16]
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(header)
    os.truncate(folder / "model.safetensors", size)  # nothing but zeros behind the header
    GGUF().check(base)
    byte_level_tokenizer(folder, "gpt-2", size=700)
    with pytest.raises(UserError, match="the embedding was not resized with the tokenizer"):
        GGUF().check(base)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UserError, match="BertModel, which cannot be exported"):
        GGUF().check(base)
