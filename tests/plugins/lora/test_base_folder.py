from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_lora import save_base

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.training.base_folder import BaseFolder
from sysscan_plugins.training.tensor_file import TensorFile, pieces


def test_one_file_and_shards_show_the_same_tensors(llama: Path, tmp_path: Path) -> None:
    single, sharded = BaseFolder.open(llama), BaseFolder.open(save_base(tmp_path / "sharded", shards=True))
    assert (single.sharded, sharded.sharded) == (False, True)
    assert len(sharded.files) > 2
    assert {name: tensor.shape for name, tensor in single.tensors.items()} == {
        name: tensor.shape for name, tensor in sharded.tensors.items()
    }
    assert single.size == (llama / "model.safetensors").stat().st_size
    assert single.tensors["model.layers.0.self_attn.k_proj.weight"].size == 16 * 32 * 4


def test_offsets_are_those_of_the_library(llama: Path) -> None:
    from safetensors.numpy import load

    data = (llama / "model.safetensors").read_bytes()
    for name, array in load(data).items():
        stored = BaseFolder.open(llama).tensors[name]
        assert data[stored.start : stored.end] == array.tobytes()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), UserError, "has no config.json: it is not a model"),
        (lambda folder: (folder / "config.json").write_text("{"), IntegrityError, "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), IntegrityError, "holds list; expected an object"),
        (
            lambda folder: (folder / "config.json").write_text('{"quantization_config": {"bits": 4}}'),
            UserError,
            "is quantized; expected F32, F16 or BF16 weights. Take the base as it was before quantization",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            UserError,
            "has neither model.safetensors nor model.safetensors.index.json; only safetensors weights are read",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), IntegrityError, "index.json is damaged"),
        (
            lambda folder: next(folder.glob("model-00002*")).unlink(),
            IntegrityError,
            "lacks model-00002-of-.*, which its index names",
        ),
        (lambda folder: rename_in_index(folder, "../x.safetensors"), IntegrityError, r"lacks \.\./x\.safetensors"),
        (
            lambda folder: rename_in_index(folder, None),
            IntegrityError,
            "the shards disagree about 'lm_head.weight'; fetch the base",
        ),
    ],
)
def test_what_is_no_whole_model_is_refused(spoil: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", shards=True)
    spoil(folder)
    with pytest.raises(error, match=message):
        BaseFolder.open(folder)


def rename_in_index(folder: Path, shard: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"]["lm_head.weight"]})
    index["weight_map"]["lm_head.weight"] = shard or others[0]
    path.write_text(json.dumps(index))


def write_header(path: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "the safetensors header is damaged"),
        (b"[]", "the safetensors header is damaged"),
        ({"a": {"dtype": "F32"}}, "the safetensors header is damaged"),
        ({"a": entry(4, 12)}, "'a' does not start where the one before it ends"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "'b' does not start where the one before it ends"),
        ({"a": entry(0, 8, shape=(3,))}, r"'a' of F32 \[3\] has 8 bytes"),
        ({"a": entry(0, 8), "b": entry(8, 16)}, r"has \d+ bytes; its header expects \d+. Fetch the file again"),
    ],
)
def test_a_damaged_header_is_found_out(header: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=message):
        TensorFile.open(write_header(tmp_path / "x.safetensors", header))


def test_types_of_other_widths_and_empty_files_are_no_error(tmp_path: Path) -> None:
    odd = write_header(tmp_path / "odd.safetensors", {"__metadata__": {"format": "pt"}, "a": entry(0, 8, "F4", (16,))})
    assert [tensor.dtype for tensor in TensorFile.open(odd).tensors] == ["F4"]
    assert TensorFile.open(write_header(tmp_path / "none.safetensors", {}, b"")).tensors == ()


@pytest.mark.parametrize("size", [0, 5])
def test_what_is_no_safetensors_file_is_found_out(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * size)
    with pytest.raises(IntegrityError, match="is not a safetensors file, or its header is damaged"):
        TensorFile.open(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(IntegrityError, match="is not a safetensors file"):
        TensorFile.open(path)


def test_a_file_that_shrinks_while_it_is_read_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345678")
    with path.open("rb") as stream:
        os.truncate(path, 3)
        with pytest.raises(IntegrityError, match="ended 5 bytes too early; it changed while it was read"):
            list(pieces(stream, 8))
