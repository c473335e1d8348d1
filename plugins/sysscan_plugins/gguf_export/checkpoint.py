"""A model in Hugging Face layout on disk: config.json and safetensors files, read one piece of a tensor at a time.

The safetensors header is read here rather than by its library because numpy has no bfloat16, which the library then refuses,
and because rows of one expert must be read without the rest. It neither knows architectures nor writes anything.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sysscan_models.errors import IntegrityError, UserError

DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Element types that can be exported, and how numpy holds them; bfloat16 as its upper 16 bits."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, element type by safetensors' name, shape, and first byte in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Number of rows: all dimensions but the last multiplied."""
        return prod(self.shape[:-1])

    def read(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Read `count` rows (all by default) from row `first` on; the result has shape [count, last dimension]."""
        kind, width = np.dtype(DTYPES[self.dtype]), self.shape[-1]
        rows = self.rows - first if count is None else count
        with self.file.open("rb") as stream:
            stream.seek(self.offset + first * width * kind.itemsize)
            data = np.fromfile(stream, dtype=kind, count=rows * width)
        if data.size != rows * width:
            raise IntegrityError(f"{self.file} ended inside tensor {self.name!r}: it was cut off while it was being read")
        return data.reshape(rows, width)


@dataclass(frozen=True)
class HuggingFaceFolder:
    """The config of a model and where its tensors are. `open` reads headers only."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, path: Path) -> HuggingFaceFolder:
        """Read config.json and the headers of the safetensors files.

        Raises UserError when the folder holds something else than a model in Hugging Face layout with safetensors,
        IntegrityError when a file is damaged or missing.
        """
        config = read_config(path)
        tensors: dict[str, StoredTensor] = {}
        for file in _files(path):
            tensors.update(_header(file))
        return cls(path, config, tensors)


def read_config(path: Path) -> dict[str, Any]:
    """Return config.json of a model folder; raise UserError when there is none."""
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder; expected a model in Hugging Face layout (config.json, *.safetensors, tokenizer.json)"
        )
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise UserError(f"{path} holds an adapter, not a complete model; merge it into its base model first")
        raise UserError(f"{path} has no config.json; expected a model in Hugging Face layout")
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file; raise IntegrityError when it is damaged."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{file} holds {type(value).__name__}; expected a JSON object")
    return value


def _files(path: Path) -> list[Path]:
    if (path / _SINGLE).is_file():  # before the index, as transformers does
        names = [_SINGLE]
    elif (path / _INDEX).is_file():
        names = sorted(set(read_json(path / _INDEX).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in names):
            raise IntegrityError(f"{path / _INDEX} names files outside of its folder: {', '.join(names)}")
    else:
        names = []
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise IntegrityError(f"{path} lacks {', '.join(missing)}, which its index names; download or save the model again")
    if not names:
        others = sorted(file.name for file in path.glob("*.bin"))
        found = f"it has {', '.join(others)}: save the model again with safe_serialization" if others else "none were found"
        raise UserError(f"{path} has no {_SINGLE} and no {_INDEX}; only safetensors are read, and {found}")
    return [path / name for name in names]


def _header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        tensors = {name: _stored(file, name, 8 + length, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IntegrityError(f"{file} is not a whole safetensors file ({error}); download or save it again") from error
    needed = max((stored.offset + _nbytes(stored) for stored in tensors.values()), default=0)
    if size < needed:
        raise IntegrityError(
            f"{file} has {size} bytes, its header describes {needed}: it is cut off; download or save it again"
        )
    return tensors


def _stored(file: Path, name: str, start: int, entry: dict[str, Any]) -> StoredTensor:
    shape = tuple(int(size) for size in entry["shape"])
    if entry["dtype"] not in DTYPES or not shape:
        raise UserError(
            f"{file}: tensor {name!r} has element type {entry['dtype']} and {len(shape)} dimensions; expected at least one "
            f"dimension of {', '.join(DTYPES)}. A model that is already quantized must be saved in full precision first"
        )
    first, last = entry["data_offsets"]
    stored = StoredTensor(name, file, entry["dtype"], shape, start + int(first))
    if last - first != _nbytes(stored):
        raise ValueError(f"tensor {name!r} of shape {list(shape)} has {last - first} bytes")
    return stored


def _nbytes(stored: StoredTensor) -> int:
    return prod(stored.shape) * np.dtype(DTYPES[stored.dtype]).itemsize
