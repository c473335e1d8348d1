"""A request becomes a plan: checked, encoded, divided. What is wrong with a request is said here, before anything is decoded.

A prompt is read in segments, each ending where the text of a user turn begins: so the part that requests share (the system
prompt, the turns before) has the same ids and the same division for all of them, and is read once. The division depends on the
request alone, for another division would change the last bits of the logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from sysscan_langgraph.engine.weights import Weights
from sysscan_langgraph.grammar import schema_text
from sysscan_models.errors import UserError
from sysscan_models.interfaces import GenerationRequest
from sysscan_models.roles import Sampling

Turns = tuple[tuple[str, str], ...]
_LONGEST_TOKEN = 32
"""Characters a token has at most, nearly: text is cut to this many per token of the context before its tokens are counted."""
_NOTE = "\n[... {} characters left out]"


@dataclass(frozen=True)
class Plan:
    """A checked request. `segments` are the prompt's ids, divided; `grammar` is empty for free text."""

    id: str
    segments: tuple[tuple[int, ...], ...]
    max_tokens: int
    temperature: float
    top_p: float
    repeat_penalty: float
    seed: int
    stop: tuple[str, ...]
    grammar: str
    is_json: bool
    """Whether the grammar is one of a JSON schema."""
    deadline: float
    """Of `time.monotonic`."""

    @property
    def prompt_tokens(self) -> int:
        """Return the prompt's length."""
        return sum(map(len, self.segments))

    @property
    def room(self) -> int:
        """Return the tokens that prompt and answer may take."""
        return self.prompt_tokens + self.max_tokens


class Planner:
    """Plans requests for one model, one context length and one role's sampling. Used by any thread."""

    def __init__(self, weights: Weights, n_ctx: int, sampling: Sampling) -> None:
        self.weights, self._n_ctx, self._sampling = weights, n_ctx, sampling
        self._before = lru_cache(maxsize=256)(self._ids_before_text)

    def plan(self, request: GenerationRequest) -> Plan:
        """Return the plan of a request; raise UserError when it is malformed or does not fit the context."""
        now, name, sampling = time.monotonic(), f"request {request.id!r}", self._sampling
        turns = _turns(request.messages, name)
        _check_types(request, name)
        max_tokens = sampling.max_tokens if request.max_tokens is None else request.max_tokens
        temperature = sampling.temperature if request.temperature is None else request.temperature
        top_p = sampling.top_p if request.top_p is None else request.top_p
        if max_tokens < 1:
            raise UserError(f"{name} has max_tokens {max_tokens}; expected 1 or more")
        if not 0 <= temperature < math.inf:
            raise UserError(f"{name} has temperature {temperature}; expected 0 (greedy) or more")
        if not 0 < top_p <= 1:
            raise UserError(f"{name} has top_p {top_p}; expected more than 0 and at most 1")
        if request.deadline is not None and math.isnan(request.deadline):
            raise UserError(f"{name} has the deadline nan; expected seconds")
        grammar = self._grammar(request, name)
        turns, ids = self._fitted(turns, max_tokens, name) if request.shorten else (turns, self.encode(turns))
        if len(ids) >= self._n_ctx:
            raise UserError(
                f"{name} has {len(ids)} prompt tokens and the context has {self._n_ctx}, answer included. "
                "Send less text, let it be shortened (shorten=True), or raise the backend's n_ctx"
            )
        return Plan(
            id=request.id,
            segments=self._divided(turns, ids),
            max_tokens=min(max_tokens, self._n_ctx - len(ids)),
            temperature=temperature,
            top_p=top_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=request.seed,
            stop=tuple(word for word in request.stop if word),
            grammar=grammar,
            is_json=request.json_schema is not None,
            deadline=math.inf if request.deadline is None else now + request.deadline,
        )

    def encode(self, turns: Turns) -> list[int]:
        """Return the ids that ask for the next assistant turn."""
        return self.weights.encoder.prompt([{"role": role, "content": content} for role, content in turns])

    def _grammar(self, request: GenerationRequest, name: str) -> str:
        if request.json_schema is None:
            return self.weights.checked_grammar(request.grammar) if request.grammar else ""
        if request.grammar:
            raise UserError(f"{name} has a json_schema and a grammar; expected one of them")
        return self.weights.grammar_of_schema(schema_text(request.json_schema))

    def _divided(self, turns: Turns, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return the ids in segments; the last one is never empty."""
        cuts = {0, len(ids)}
        for place, (role, _) in enumerate(turns):
            if role == "user" or place == len(turns) - 1:
                cuts.add(min(_common(ids, self._before(turns[:place], role)), len(ids) - 1))
        places = sorted(cuts)
        return tuple(tuple(ids[start:end]) for start, end in pairwise(places))

    def _ids_before_text(self, before: Turns, role: str) -> tuple[int, ...]:
        """Return the ids of a conversation whose next turn says nothing; they begin as those of one that says something."""
        return tuple(self.encode((*before, (role, ""))))

    def _fitted(self, turns: Turns, max_tokens: int, name: str) -> tuple[Turns, list[int]]:
        """Cut the end of the last turn's text until prompt and answer fit; a note says how many characters are left out.

        Characters stay whole, and so do the turns before and the template's markers. An answer is left its `max_tokens`, but
        not more than a quarter of the context where that would cost text.
        """
        limit = self._n_ctx - min(max_tokens, max(1, self._n_ctx // 4))
        (role, text), before = turns[-1], turns[:-1]
        text = text.strip()

        def cut(kept: int) -> Turns:
            return (*before, (role, text[:kept].rstrip() + _NOTE.format(len(text) - kept)))

        longest = min(len(text), limit * _LONGEST_TOKEN)
        if longest == len(text) and len(ids := self.encode(turns)) <= limit:
            return turns, ids
        if len(ids := self.encode(cut(0))) > limit:
            raise UserError(
                f"{name} has {len(ids)} prompt tokens without its last turn's text and the context has {self._n_ctx}, "
                f"{self._n_ctx - limit} of them for the answer. Send shorter turns before it, or raise the backend's n_ctx"
            )
        low, high = 0, longest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self.encode(cut(middle))) <= limit else (low, middle - 1)
        return cut(low), self.encode(cut(low))


def _check_types(request: GenerationRequest, name: str) -> None:
    """Raise UserError for a value of another kind than the engine computes with: it would fail much later."""
    for field in ("seed", "max_tokens", "temperature", "top_p", "deadline"):
        value, whole = getattr(request, field), field in ("seed", "max_tokens")
        if value is None and field != "seed":
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise UserError(f"{name} has {field} {value!r}; expected a{' whole' if whole else ''} number")
    if isinstance(request.stop, str) or not all(isinstance(word, str) for word in request.stop):
        raise UserError(f"{name} has stop {request.stop!r}; expected a sequence of texts")


def _turns(messages: object, name: str) -> Turns:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{name} ends with no turn to answer; expected messages that end with a user turn")
    for turn in messages:
        if not (isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)):
            raise UserError(f"{name} has a message that is no turn; expected a role and a content, both text")
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{name} ends with no turn to answer; expected messages that end with a user turn")
    return tuple((turn["role"], turn["content"]) for turn in messages)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of what two sequences of ids begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))
