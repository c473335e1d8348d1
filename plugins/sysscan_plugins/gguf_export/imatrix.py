"""Reading llama.cpp's importance matrix: for each tensor, how strongly each input column was used on calibration text.

Both forms that llama-imatrix writes are read: GGUF (now) and its older binary file. Making one is not done here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from sysscan_models.errors import UserError

Vector = NDArray[np.float32]


def read_imatrix(file: Path) -> Mapping[str, Vector]:
    """Return the mean squared activation of each input column, by GGUF tensor name; experts follow one another.

    Raises UserError when the file is missing, is no importance matrix, or holds numbers that are not finite.
    """
    if not file.is_file():
        raise UserError(
            f"imatrix {str(file)!r} does not exist; make one with llama-imatrix from text like what the model will read"
        )
    try:
        with file.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
            stream.seek(0)
            found = _read_gguf(file) if is_gguf else _read_binary(stream)
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"imatrix {str(file)!r} is not an importance matrix that llama-imatrix wrote ({error})") from error
    if not found:
        raise UserError(f"imatrix {str(file)!r} holds no entry")
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise UserError(f"imatrix {str(file)!r}: the entry of {name} is not finite; make it again")
    return found


def _read_gguf(file: Path) -> dict[str, Vector]:
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        name, _, part = tensor.name.rpartition(".")
        if part in ("in_sum2", "counts"):
            parts.setdefault(name, {})[part] = np.array(tensor.data, dtype=np.float32)
    found = {}
    for name, part in parts.items():
        counts = part["counts"].reshape(-1, 1)
        sums = part["in_sum2"].reshape(len(counts), -1)
        unused = np.ones_like(sums)  # an expert that calibration never reached: every column counts alike
        found[name] = np.divide(sums, counts, out=unused, where=counts > 0).reshape(-1)
    return found


def _read_binary(stream: BinaryIO) -> dict[str, Vector]:
    found: dict[str, Vector] = {}
    for _ in range(_integer(stream)):
        name = _exactly(stream, _integer(stream)).decode()
        calls, count = _integer(stream), _integer(stream)
        sums = np.frombuffer(_exactly(stream, 4 * count), dtype="<f4").astype(np.float32)
        found[name] = sums / np.float32(calls) if calls > 0 else sums
    return found


def _integer(stream: BinaryIO) -> int:
    (value,) = struct.unpack("<i", _exactly(stream, 4))
    return int(value)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count) if 0 <= count < 1 << 28 else b""
    if len(data) != count:
        raise ValueError("it is cut off or of another format")
    return data
