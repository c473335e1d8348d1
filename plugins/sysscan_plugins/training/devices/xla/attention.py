"""Attention with static shapes: blockwise over queries, within segments by their numbers, memory linear in the length.

Forward and backward pass compute the scores of one block of queries at a time; between them only the outputs and one number per
query are kept, so no [T, T] matrix ever exists. Keys are not repeated for the heads that share them. The Pallas kernel of a
real TPU does the same in one operation; it is there on request.

Shapes: B rows, N query heads, K key heads, G queries per key head (N = K G), T positions, Q queries of a block, S keys that a
block sees, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from sysscan_models.planning.memory import BLOCK
from sysscan_plugins.training.devices.xla.order import after

NAME = "sysscan_static"
"""Must not contain `flash`: transformers would look for a kernel of that name."""


def no_barrier(_: Sequence[torch.Tensor]) -> None:
    """Keep nothing apart: eager operations are not shared anyway."""


Barrier = Callable[[Sequence[torch.Tensor]], None]
"""Keeps a compiler from sharing what is before and after it, in place."""


class BlockAttention(torch.autograd.Function):
    """Causal attention within segments; scores are in fp32."""

    @staticmethod
    def forward(
        context: Any,
        query_BKGTD: torch.Tensor,
        key_BKTD: torch.Tensor,
        value_BKTD: torch.Tensor,
        segments_BT: torch.Tensor,
        scale: float,
        window: int | None,
        block: int,
        barrier: Barrier,
    ) -> torch.Tensor:
        """Return [B, K, G, T, D]."""
        outputs: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        for own, seen in _blocks(query_BKGTD.shape[3], window, block):
            query = after(query_BKGTD[:, :, :, own], *outputs[-1:], kept=2)
            scores = _scores(query, key_BKTD, segments_BT, own, seen, scale, window)
            sums.append(torch.logsumexp(scores, -1))
            weights = (scores - sums[-1][..., None]).exp().to(value_BKTD.dtype)
            outputs.append(torch.einsum("bkgqs,bksd->bkgqd", weights, value_BKTD[:, :, seen]))
        output, logsum = torch.cat(outputs, 3), torch.cat(sums, 3)
        context.save_for_backward(query_BKGTD, key_BKTD, value_BKTD, segments_BT, output, logsum)
        context.scale, context.window, context.block, context.barrier = scale, window, block, barrier
        return output

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value; the scores are computed again, block by block."""
        query, key, value, segments, output, logsum = (tensor.detach().clone() for tensor in context.saved_tensors)
        context.barrier([query, key, value, gradient])
        scale, window = context.scale, context.window
        # What a query's scores lose together: the sum of its output times the gradient.
        shared = (output.float() * gradient.float()).sum(-1, keepdim=True)
        queries: list[torch.Tensor] = []
        done: list[torch.Tensor] = []
        to_key, to_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        for own, seen in _blocks(query.shape[3], window, context.block):
            part, given = after(query[:, :, :, own], *done, kept=2), gradient[:, :, :, own].float()
            scores = _scores(part, key, segments, own, seen, scale, window)
            weights = (scores - logsum[:, :, :, own, None]).exp()
            value_part = torch.einsum("bkgqs,bkgqd->bksd", weights, given)
            change = torch.einsum("bkgqd,bksd->bkgqs", given, value[:, :, seen].float())
            change = weights * (change - shared[:, :, :, own]) * scale
            queries.append(torch.einsum("bkgqs,bksd->bkgqd", change, key[:, :, seen].float()))
            key_part = torch.einsum("bkgqs,bkgqd->bksd", change, part.float())
            to_key, to_value = _added(to_key, key_part, seen), _added(to_value, value_part, seen)
            done = [queries[-1], to_key[:, :, None, seen], to_value[:, :, None, seen]]
        to_query = torch.cat(queries, 3).to(query.dtype)
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None, None, None, None


def _blocks(length: int, window: int | None, block: int) -> Iterator[tuple[slice, slice]]:
    """Yield the queries of each block and the keys that they can see."""
    for start in range(0, length, block):
        end = min(length, start + block)
        yield slice(start, end), slice(0 if window is None else max(0, start - window + 1), end)


def _added(whole_BKTD: torch.Tensor, part_BKSD: torch.Tensor, at: slice) -> torch.Tensor:
    """Return the sum, with the part moved to its place: writing into a slice makes XLA keep a copy of the whole per block."""
    return whole_BKTD + pad(part_BKSD, (0, 0, at.start, whole_BKTD.shape[2] - at.stop))


def _scores(
    query_BKGQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    segments_BT: torch.Tensor,
    own: slice,
    seen: slice,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Return the scores of a block [B, K, G, Q, S] in fp32, minus infinity where a query does not look."""
    scores = torch.einsum("bkgqd,bksd->bkgqs", query_BKGQD.float(), key_BKTD[:, :, seen].float()) * scale
    device = scores.device
    back_QS = torch.arange(own.start, own.stop, device=device)[:, None] - torch.arange(seen.start, seen.stop, device=device)
    visible_QS = back_QS >= 0 if window is None else (back_QS >= 0) & (back_QS < window)
    same_BQS = segments_BT[:, own, None] == segments_BT[:, None, seen]
    # A query always sees itself, in padding too (segment 0), so that no row is without a score.
    return scores.masked_fill(~(same_BQS & visible_QS)[:, None, None], float("-inf"))


def static_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments_BT: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    block: int = BLOCK,
    barrier: Barrier = no_barrier,
) -> torch.Tensor:
    """Return [B, T, N, D] for query [B, N, T, D] and key, value [B, K, T, D]."""
    rows, heads, length, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], length, size)
    output: torch.Tensor = BlockAttention.apply(grouped, key, value, segments_BT, scale, window, block, barrier)  # type: ignore[no-untyped-call]
    return output.reshape(query.shape).transpose(1, 2).contiguous()


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments_BT: torch.Tensor, *, scale: float, mesh: Any
) -> torch.Tensor:
    """Return what `static_attention` returns, from torch_xla's Pallas kernel. Untested: it runs on a real TPU only.

    Keys are repeated for the heads that share them, and there is no sliding window: the kernel knows neither.
    """
    from torch_xla.experimental.custom_kernel import flash_attention as kernel

    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    segments = segments_BT.float()  # the kernel's own type for them
    divided = ("fsdp", "tensor", None, None)
    output: torch.Tensor = kernel(query, key, value, True, segments, segments, scale, partition_spec=divided, mesh=mesh)
    return output.transpose(1, 2).contiguous()


def use_static_attention(model: Any, *, flash: bool, mesh: Any, barrier: Barrier) -> None:
    """Make a transformers model attend within the segments that its forward pass is given as `segments_BT`."""
    from transformers import AttentionInterface

    def attention(
        module: Any,  # noqa: ARG001 - transformers passes it
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: object,
        *,
        segments_BT: torch.Tensor,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None:
            raise ValueError("static attention takes segments_BT, not a mask")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if flash:
            return flash_attention(query, key, value, segments_BT, scale=scale, mesh=mesh), None
        return static_attention(query, key, value, segments_BT, scale=scale, window=sliding_window, barrier=barrier), None

    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)
