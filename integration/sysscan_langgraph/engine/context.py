"""llama.cpp contexts: a number of streams, each with KV cells of its own, and the decoding into them.

Streams are kept apart (`kv_unified` off) and flash attention is off on a CPU. Measured with a model of 135M parameters and 16
sequences of 240 tokens, that is the fastest way to decode (89 ms a step on one core; 105 ms with one cache for all, 153 ms with
flash attention besides) and to read prompts (2.2 times as fast as one cache for all), and the only one in which a token's
logits do not depend on what other streams hold.

What is left that depends on the batch are llama.cpp's matrix kernels, some of which sum up in another order where there are few
columns: with Q4_K, Q6_K, Q4_0 or Q5_0 weights the logits of a token are the same, bit for bit, in batches of 8, 12 and 16, and
differ in smaller and odd ones; with 16-bit weights they differ only in a batch of one; with Q8_0 and Q4_1 never. So a step that
must be reproducible decodes whole groups of GROUP streams, the idle ones a token that is taken back, and prompts are read one
at a time, which costs nothing: llama.cpp computes them apart anyway.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from sysscan_langgraph.engine import log
from sysscan_langgraph.engine.weights import Weights
from sysscan_models.errors import SysscanError, UserError

GROUP = 8
"""Streams that are decoded together at least, for a token's logits to be the same in every batch."""
_GAP = 2
"""Idle streams that cost less when they are decoded too than when they divide a batch, of which only neighbours are one."""
_CELLS = 256
"""llama.cpp rounds the cells of a stream up to these."""


class Context:
    """Streams of `size` tokens each. Used by one thread."""

    def __init__(
        self,
        weights: Weights,
        streams: int,
        size: int,
        *,
        n_batch: int,
        threads: int,
        adapter: Any = None,
        scores: bool = False,
    ) -> None:
        self.size, self.n_batch = size, n_batch
        self.streams = streams if streams < GROUP else -(-streams // GROUP) * GROUP
        self.group = min(GROUP, self.streams)
        self._resources = ExitStack()
        self._vocabulary = weights.vocabulary.size
        cells = -(-(size + 1) // _CELLS) * _CELLS  # one more for the token of an idle stream
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells * self.streams, self.streams, False
        params.n_batch, params.n_ubatch = max(n_batch, self.streams), max(min(n_batch, 512), self.streams)
        params.n_outputs_max = 0 if scores else self.streams
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        if not llama_cpp.llama_supports_gpu_offload():
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        log.forget()
        self._pointer = llama_cpp.llama_init_from_model(weights.pointer, params)
        if not self._pointer:
            raise UserError(
                f"llama.cpp cannot open a context of {self.streams} x {size} tokens for {weights.path}: {log.reason()}. "
                "Lower n_ctx or n_parallel"
            )
        self._resources.callback(llama_cpp.llama_free, self._pointer)
        try:
            if adapter:
                self._adapt(adapter)
            self._memory = llama_cpp.llama_get_memory(self._pointer)
            self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
            self._resources.callback(llama_cpp.llama_batch_free, self._batch)
        except BaseException:
            self._resources.close()
            raise
        self.lengths = [0] * self.streams
        """Tokens that each stream holds."""

    def close(self) -> None:
        """Free the cells."""
        self._resources.close()

    def read(self, stream: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add at most `n_batch` tokens to one stream; return the logits after the last, [V]: llama.cpp's memory."""
        self._batch.n_tokens = 0
        for place, token in enumerate(ids):
            self._add(stream, token, self.lengths[stream] + place, place == len(ids) - 1)
        self._decode([stream])
        self.lengths[stream] += len(ids)
        return self._logits(1).reshape(-1)

    def step(self, tokens: Mapping[int, int], *, whole_groups: bool = True) -> tuple[list[int], NDArray[np.float32]]:
        """Add one token to each stream that is named; return the streams decoded, S, and their logits [S, V].

        With `whole_groups`, a group that has one such stream is decoded whole. Raises SysscanError when llama.cpp fails; the
        streams in the step hold nothing then.
        """
        streams = self._grouped(tokens) if whole_groups else _without_gaps(sorted(tokens))
        self._batch.n_tokens = 0
        for stream in streams:
            self._add(stream, tokens.get(stream, 0), self.lengths[stream], True)
        self._decode(streams)
        rows = self._logits(len(streams))
        for stream in streams:
            if stream in tokens:
                self.lengths[stream] += 1
            elif not llama_cpp.llama_memory_seq_rm(self._memory, stream, self.lengths[stream], -1):
                self.keep(stream, 0)  # a recurrent model keeps no history
        return streams, rows

    def _grouped(self, tokens: Mapping[int, int]) -> list[int]:
        groups = sorted({stream // self.group for stream in tokens})
        return [group * self.group + at for group in groups for at in range(self.group)]

    def keep(self, stream: int, length: int) -> int:
        """Drop what a stream holds after its first `length` tokens; return what is kept, which is nothing for some models."""
        if length < self.lengths[stream] or not length:
            kept = llama_cpp.llama_memory_seq_rm(self._memory, stream, length or -1, -1)
            if not kept:  # a recurrent model keeps no history
                llama_cpp.llama_memory_seq_rm(self._memory, stream, -1, -1)
            self.lengths[stream] = length if kept else 0
        return self.lengths[stream]

    def copy(self, source: int, target: int, length: int) -> int:
        """Make a stream begin as another one does; return how many of the `length` tokens it then holds."""
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.lengths[target] = self.lengths[source]
        return self.keep(target, length)

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add at most `n_batch` tokens to the first stream and return the logits after each, [T, V]."""
        self._batch.n_tokens = 0
        for place, token in enumerate(ids):
            self._add(0, token, self.lengths[0] + place, True)
        self._decode([0])
        self.lengths[0] += len(ids)
        return self._logits(len(ids)).copy()

    def _add(self, stream: int, token: int, position: int, logits: bool) -> None:
        batch, place = self._batch, self._batch.n_tokens
        batch.token[place], batch.pos[place] = token, position
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
        batch.logits[place] = logits
        batch.n_tokens = place + 1

    def _decode(self, streams: Sequence[int]) -> None:
        log.forget()
        code = llama_cpp.llama_decode(self._pointer, self._batch)
        if not code:
            return
        reason = log.reason()
        for stream in streams:
            llama_cpp.llama_memory_seq_rm(self._memory, stream, -1, -1)
            self.lengths[stream] = 0
        raise SysscanError(f"llama.cpp failed to decode {self._batch.n_tokens} tokens (code {code}): {reason}")

    def _logits(self, rows: int) -> NDArray[np.float32]:
        address = ctypes.addressof(llama_cpp.llama_get_logits(self._pointer).contents)
        buffer = (ctypes.c_float * (rows * self._vocabulary)).from_address(address)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(buffer).reshape(rows, self._vocabulary)
        return logits

    def _adapt(self, adapter: Any) -> None:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        if code := llama_cpp.llama_set_adapters_lora(self._pointer, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise UserError(f"llama.cpp cannot apply the adapter (code {code}): {log.reason()}")


def _without_gaps(streams: list[int]) -> list[int]:
    """Return sorted streams with small gaps between them filled."""
    filled = streams[:1]
    for stream in streams[1:]:
        filled += range(filled[-1] + 1 if stream - filled[-1] - 1 <= _GAP else stream, stream + 1)
    return filled
