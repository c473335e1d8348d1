"""Attention within segments: each example of a packed row attends to itself alone, and no work is spent on the rest.

Registered with transformers under a name that has no mask function, so that no mask is built (masks of packed rows are easy to
get silently wrong: a cache left on or a 2-D mask of ones lets examples see each other).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "sysscan_segments"
"""Must not contain `flash`: transformers would look for a kernel of that name."""


def segment_attention(
    module: Any,  # noqa: ARG001 - transformers passes it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    *,
    segment_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return [1, N, heads, D] for query [1, heads, N, D] and key, value [1, kv_heads, N, D]; segment lengths add up to N."""
    if attention_mask is not None:
        raise ValueError("segment attention takes segment_lengths, not a mask")
    grouped = query.shape[1] != key.shape[1]
    outputs, start = [], 0
    for length in segment_lengths:
        q, k, v = (tensor.narrow(2, start, length) for tensor in (query, key, value))
        window = _window(q, sliding_window)
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=window, is_causal=window is None, scale=scaling, dropout_p=dropout, enable_gqa=grouped
            )
        )
        start += length
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _window(query: torch.Tensor, size: int | None) -> torch.Tensor | None:
    """Return the causal mask [T, T] of a sliding window that a segment is longer than, else None."""
    length = query.shape[2]
    if size is None or length <= size:
        return None
    every = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return every.tril() & every.triu(1 - size)


def use_segment_attention(model: Any) -> None:
    """Make a transformers model (or the one inside a PEFT model) attend within segments."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, segment_attention)
    model.set_attn_implementation(NAME)
