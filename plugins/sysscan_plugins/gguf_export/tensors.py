"""The numbers of one planned tensor: read, reordered for llama.cpp, and cast to the type that is written.

Works on one tensor at a time and in pieces inside of it; holds at most the result and one slab of stored rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from sysscan_models.errors import SysscanError
from sysscan_plugins.gguf_export.architecture import PlannedTensor

_NUMPY: dict[GGMLQuantizationType, type[np.generic]] = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
    GGMLQuantizationType.BF16: np.uint16,
}
_PIECE = 1 << 20
"""Weights that are cast at a time; what that needs beside them stays in the processor's cache."""


def stored_type(tensor: PlannedTensor, file_type: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the type that a tensor has in an unquantized file of this type."""
    return GGMLQuantizationType.F32 if tensor.always_f32 else file_type


def stored_bytes(tensor: PlannedTensor, file_type: GGMLQuantizationType) -> int:
    """Return the size of a tensor in an unquantized file of this type, in bytes."""
    return tensor.elements * np.dtype(_NUMPY[stored_type(tensor, file_type)]).itemsize


def load(tensor: PlannedTensor, file_type: GGMLQuantizationType) -> NDArray[Any]:
    """Return the tensor's numbers as they are written, of the tensor's shape; bfloat16 as uint16.

    Raises SysscanError when a number is not finite, or is too large for 16-bit floats.
    """
    target = stored_type(tensor, file_type)
    if tensor.values:
        return np.array(tensor.values, dtype=np.float32).reshape(tensor.shape)
    parts = (_cast(tensor.name, slab.source.read(slab.first, slab.rows), slab.source.dtype, target) for slab in tensor.slabs)
    if len(tensor.slabs) == 1:
        data = next(parts)
    else:
        data = np.empty((sum(slab.rows for slab in tensor.slabs), tensor.shape[-1]), dtype=_NUMPY[target])
        row = 0
        for part in parts:
            data[row : row + len(part)] = part
            row += len(part)
    if tensor.heads:
        data = _to_llama_rotary(data.reshape(tensor.shape), tensor.heads)
    return data.reshape(tensor.shape)


def _to_llama_rotary(data: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of each head from two halves (Hugging Face) to pairs side by side (llama.cpp); [heads * dim, ...]."""
    halves = data.reshape(heads, 2, len(data) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.shape)


def _cast(name: str, data: NDArray[Any], dtype: str, target: GGMLQuantizationType) -> NDArray[Any]:
    same = target.name == dtype
    flat = data.reshape(-1)
    result = flat if same else np.empty(flat.size, dtype=_NUMPY[target])
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if not _finite(piece, dtype):
            raise SysscanError(
                f"tensor {name!r} has numbers that are not finite; the model is damaged or its training diverged"
            )
        if same:
            continue
        wide = (piece.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else piece.astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            narrow = _to_bfloat16(wide) if target == GGMLQuantizationType.BF16 else wide.astype(_NUMPY[target], copy=False)
        if not _finite(narrow, target.name):
            raise SysscanError(f"tensor {name!r} has numbers that {target.name} cannot hold; export as BF16 or F32 instead")
        result[start : start + _PIECE] = narrow
    return result.reshape(data.shape)


def _to_bfloat16(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite numbers to the nearest bfloat16, ties to even, as gguf's own rounding does at a third of the speed."""
    bits = wide.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _finite(piece: NDArray[Any], dtype: str) -> bool:
    if dtype == "BF16":  # as uint16; all bits of the exponent set mean infinity or not a number
        return bool(((piece & 0x7FFF) < 0x7F80).all())
    return bool(np.isfinite(piece).all())
