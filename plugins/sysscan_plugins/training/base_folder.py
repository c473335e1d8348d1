"""A base model in Hugging Face layout, as far as adapters and their merge need it: its configuration and its tensors' headers.

Reads no weight and builds no model, so it answers at once, whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.training.base_model import model_config
from sysscan_plugins.training.tensor_file import StoredTensor, TensorFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class BaseFolder:
    """A folder with config.json and safetensors weights, in one file or in shards with an index."""

    path: Path
    config: Mapping[str, Any]
    files: tuple[TensorFile, ...]

    @classmethod
    def open(cls, path: Path) -> BaseFolder:
        """Read the configuration and all headers.

        Raises UserError for what is no model in this layout or was quantized, IntegrityError for damaged or missing files.
        """
        config = model_config(path)
        if config.get("quantization_config"):
            raise UserError(
                f"{path} is quantized; expected F32, F16 or BF16 weights. Take the base as it was before quantization"
            )
        return cls(path, config, tuple(_weight_files(path)))

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by name."""
        return {tensor.name: tensor for file in self.files for tensor in file.tensors}

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    @property
    def sharded(self) -> bool:
        """Whether an index names the files."""
        return not (self.path / SINGLE).is_file()

    @property
    def tied(self) -> bool:
        """Whether the embedding serves as lm_head too."""
        return bool(self.config.get("tie_word_embeddings", False))


def _weight_files(folder: Path) -> list[TensorFile]:
    if (folder / SINGLE).is_file():  # transformers, too, prefers it to an index
        return [TensorFile.open(folder / SINGLE)]
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; only safetensors weights are read")
    try:
        shard_of: dict[str, str] = dict(orjson.loads(index.read_bytes())["weight_map"])
        names = sorted(set(shard_of.values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{index} is damaged ({error}); fetch the base again") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise IntegrityError(f"{folder} lacks {', '.join(missing)}, which its index names; fetch the base again")
    files = [TensorFile.open(folder / name) for name in names]
    held = {tensor.name: file.path.name for file in files for tensor in file.tensors}
    if held != shard_of:
        wrong = sorted(held.items() ^ shard_of.items())[0][0]
        raise IntegrityError(f"{index} and the shards disagree about {wrong!r}; fetch the base again")
    return files


def in_memory(name: str) -> str:
    """Return what transformers calls a tensor once it is loaded: a Mixtral's experts are fused there, classic names or not."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    return re.sub(
        r"\.experts\.\d+\.w([123])\.weight$", lambda w: ".experts." + ("down_proj" if w[1] == "2" else "gate_up_proj"), name
    )
