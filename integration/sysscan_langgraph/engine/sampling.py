"""The choice of the next token with llama.cpp's samplers, within a grammar if there is one.

The likeliest token needs no sampler. A grammar is asked about the one token that was chosen, and applied to more of the
vocabulary only where it refuses that token, as llama.cpp's own programs do: a hundred times as cheap. A token that the grammar
refuses is never given to it, for that aborts the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from sysscan_langgraph.engine.plan import Plan
from sysscan_langgraph.engine.weights import Weights
from sysscan_models.errors import SysscanError

PENALTY_WINDOW = 64
"""Tokens of the answer that the repeat penalty looks back on; llama.cpp's default."""
RANDOM_SEED = 0xFFFFFFFF
"""The seed that llama.cpp takes for "draw one"; it is never given."""
SHORTLIST = 128
"""Likeliest tokens that a grammar is applied to before the whole vocabulary is."""
_PRINTABLE = range(0x20, 0x7F)


class Candidates:
    """A reused table of tokens for llama.cpp's samplers; ids, logits and probabilities of `size` tokens."""

    def __init__(self, size: int) -> None:
        self._data = (llama_cpp.llama_token_data * size)()
        self._array = llama_cpp.llama_token_data_array(self._data, size, -1, False)
        self._reference = ctypes.byref(self._array)
        self.table = np.ctypeslib.as_array(self._data)

    def fill(self, ids: NDArray[np.integer[Any]], logits: Any) -> None:
        """Put tokens in; there may be fewer than `size`."""
        self._array.data, self._array.size = self._data, len(ids)
        self._array.selected, self._array.sorted = -1, False
        table = self.table[: len(ids)]
        table["id"], table["logit"], table["p"] = ids, logits, 0

    def apply(self, sampler: Any) -> None:
        """Let a sampler work on the table."""
        llama_cpp.llama_sampler_apply(sampler, self._reference)

    def selected(self) -> int:
        """Return the token that a sampler selected."""
        return int(self._array.data[self._array.selected].id)


class Tools:
    """What the samplers of one worker share: tables as large as the vocabulary, and the ids of all tokens."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.vocabulary = weights, weights.vocabulary
        self.ids = np.arange(self.vocabulary.size, dtype=np.int32)
        self.all = Candidates(self.vocabulary.size)
        self.one = Candidates(1)
        ends = [token for token in sorted(weights.ends) if self.vocabulary.ends_turn(token)]
        self.end = ends[0] if ends else -1
        self.control = frozenset(self.vocabulary.control_tokens.values())
        self._byte_tokens = weights.byte_tokens
        self.bytes = self.end >= 0 and all(byte in self._byte_tokens for byte in _PRINTABLE)
        """Whether texts can be spelt a byte at a time, which looking ahead needs."""
        self._spelling = np.array([*self._byte_tokens, -1], dtype=np.int16)
        self._spelt = np.array([*self._byte_tokens.values(), self.end], dtype=np.int32)
        self._bytes = Candidates(len(self._spelt))

    def byte_token(self, byte: int) -> int:
        """Return the token of one byte."""
        return self._byte_tokens[byte]

    def next_bytes(self, grammar: Grammar) -> frozenset[int]:
        """Return the bytes that may come next, and -1 where the answer may end."""
        self._bytes.fill(self._spelt, 1.0)
        grammar.apply(self._bytes)
        return frozenset(self._spelling[self._bytes.table["logit"] > 0].tolist())


class Grammar:
    """Where an answer stands in its grammar."""

    def __init__(self, tools: Tools, pointer: Any) -> None:
        self._tools, self._pointer = tools, pointer

    @classmethod
    def start(cls, tools: Tools, text: str) -> Grammar:
        """Return the beginning of a grammar that was checked before."""
        return cls(tools, llama_cpp.llama_sampler_init_grammar(tools.vocabulary.pointer, text.encode(), b"root"))

    def clone(self) -> Grammar:
        """Return another one at the same place, to look ahead."""
        return Grammar(self._tools, llama_cpp.llama_sampler_clone(self._pointer))

    def free(self) -> None:
        """Give the memory back."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            llama_cpp.llama_sampler_free(pointer)

    def allows(self, token: int) -> bool:
        """Say whether the token may come next; the end of the turn may where the grammar is satisfied."""
        if token in self._tools.control:
            if token not in self._tools.weights.ends and not self._tools.vocabulary.ends_turn(token):
                return False
            token = self._tools.end
        one = self._tools.one
        one.table["id"], one.table["logit"] = token, 1.0
        one.apply(self._pointer)
        return bool(one.table["logit"][0] > 0)

    def apply(self, candidates: Candidates) -> None:
        """Set the logits of refused candidates to minus infinity."""
        candidates.apply(self._pointer)

    def accept(self, token: int) -> None:
        """Go on with a token that `allows` allowed; the end of the turn moves nothing."""
        if token not in self._tools.control:
            llama_cpp.llama_sampler_accept(self._pointer, token)


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, tools: Tools, plan: Plan, *, sample_first: bool = True) -> None:
        self._tools, self._sample_first = tools, sample_first
        self._resources = ExitStack()
        self.likeliest = plan.temperature == 0 and plan.repeat_penalty == 1
        """Whether the token with the highest logit is taken."""
        self._chain = None if self.likeliest else self._chained(plan)
        self.grammar = Grammar.start(tools, plan.grammar) if plan.grammar else None
        if self.grammar:
            self._resources.callback(self.grammar.free)

    def close(self) -> None:
        """Give the memory back."""
        self._resources.close()

    def choose(self, logits: NDArray[np.float32], best: int) -> int:
        """Return the next token, which `accept` goes on with; `best` has the highest logit.

        Raises SysscanError when the logits are not finite or the grammar allows none.
        """
        if not np.isfinite(logits[best]):
            raise SysscanError("the model's logits are not finite; its weights are damaged, or they overflow on this machine")
        if self.grammar is None:
            return best if self.likeliest else self._sample(logits)
        return self._choose_within(self.grammar, logits, best)

    def accept(self, token: int) -> None:
        """Go on with a token that the grammar allows."""
        if self._chain:
            llama_cpp.llama_sampler_accept(self._chain, token)
        if self.grammar:
            self.grammar.accept(token)

    def _choose_within(self, grammar: Grammar, logits: NDArray[np.float32], best: int) -> int:
        if self._sample_first:
            token = best if self.likeliest else self._sample(logits)
            if grammar.allows(token):
                return token
            if self.likeliest and (found := self._shortlisted(grammar, logits)) is not None:
                return found
        token = self._masked(grammar, logits)
        if not grammar.allows(token):
            raise SysscanError("the grammar allows none of the model's tokens here")
        return token

    def _shortlisted(self, grammar: Grammar, logits: NDArray[np.float32]) -> int | None:
        """Return the likeliest token that the grammar allows, if it is among the likeliest of all."""
        size = min(SHORTLIST, len(logits))
        ids = np.argpartition(logits, len(logits) - size)[len(logits) - size :]
        ids = ids[np.argsort(-logits[ids], kind="stable")].astype(np.int32)
        candidates = self._tools.all
        candidates.fill(ids, logits[ids])
        grammar.apply(candidates)
        allowed = ids[np.isfinite(candidates.table["logit"][:size])]
        return next((int(token) for token in allowed if grammar.allows(int(token))), None)

    def _masked(self, grammar: Grammar, logits: NDArray[np.float32]) -> int:
        candidates = self._tools.all
        candidates.fill(self._tools.ids, logits)
        if refused := [token for token in self._tools.control if not grammar.allows(token)]:
            candidates.table["logit"][refused] = -np.inf
        grammar.apply(candidates)
        if self._chain is None or not np.isfinite(candidates.table["logit"]).any():
            return int(candidates.table["logit"].argmax())
        candidates.apply(self._chain)
        return candidates.selected()

    def _sample(self, logits: NDArray[np.float32]) -> int:
        candidates = self._tools.all
        candidates.fill(self._tools.ids, logits)
        candidates.apply(self._chain)
        return candidates.selected()

    def _chained(self, plan: Plan) -> Any:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._resources.callback(llama_cpp.llama_sampler_free, chain)
        for part in _parts(plan, self._tools.vocabulary.size):
            llama_cpp.llama_sampler_chain_add(chain, part)
        return chain


def _parts(plan: Plan, vocabulary: int) -> Sequence[Any]:
    parts = []
    if plan.repeat_penalty != 1:
        parts.append(llama_cpp.llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW, plan.repeat_penalty, 0.0, 0.0))
    if plan.temperature == 0:
        return [*parts, llama_cpp.llama_sampler_init_greedy()]
    parts.append(llama_cpp.llama_sampler_init_top_p(plan.top_p, 1))
    parts.append(llama_cpp.llama_sampler_init_temp(plan.temperature))
    parts.append(llama_cpp.llama_sampler_init_dist(plan.seed % RANDOM_SEED))
    return parts
