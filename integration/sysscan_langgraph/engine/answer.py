"""One answer in the making: what of its prompt is still to be read, what it has said, how it ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sysscan_langgraph.engine.call import Call
from sysscan_langgraph.engine.constraint import Constraint, Given
from sysscan_langgraph.engine.plan import Plan
from sysscan_langgraph.engine.sampling import Sampler, Tools
from sysscan_langgraph.engine.text import Text


@dataclass(frozen=True)
class Tuning:
    """What a benchmark switches off to show what it gains."""

    shared_prefix: bool = True
    forced_text: bool = True
    sample_first: bool = True


class Answer:
    """A request that has a stream of a context."""

    def __init__(self, tools: Tools, plan: Plan, call: Call, stream: int, tuning: Tuning) -> None:
        self.plan, self.call, self.stream = plan, call, stream
        self.unread = deque(plan.segments)
        """Segments of the prompt."""
        self.inherited = False
        """Whether it was looked for what others have read of the prompt."""
        self.undecoded: deque[int] = deque()
        """Tokens that it has said and the context has not seen."""
        self.tokens = 0
        self.said = ""
        """Text that nobody was told of yet."""
        self.finish = ""
        self._tools = tools
        self._text = Text(plan.stop)
        self._sampler = Sampler(tools, plan, sample_first=tuning.sample_first)
        self._constraint: Constraint | None = None
        if grammar := self._sampler.grammar:
            self._constraint = Constraint(tools, grammar, is_json=plan.is_json, forces=tuning.forced_text)
            self._take(self._constraint.given(plan.max_tokens))
            self.unread[-1] += tuple(self.undecoded)  # what an answer must begin with is read with the prompt
            self.undecoded.clear()

    def inherit(self, segments: int) -> None:
        """Leave out what the stream holds already."""
        self.inherited = True
        for _ in range(segments):
            self.unread.popleft()

    def go_on(self, logits: NDArray[np.float32], best: int) -> None:
        """Choose the next token and take what must follow it; `best` has the highest logit.

        Raises SysscanError when there is none to choose.
        """
        token = self._sampler.choose(logits, best)
        if token in self._tools.weights.ends or self._tools.vocabulary.ends_turn(token):
            self._end()
        elif self._constraint and not self._constraint.has_room(token, self.plan.max_tokens - self.tokens):
            self._take(self._constraint.closing())
        else:
            self._sampler.accept(token)
            self._add(token)
        if self._constraint and not self.finish:
            self._take(self._constraint.given(self.plan.max_tokens - self.tokens))

    def take(self, *, everything: bool = False) -> str:
        """Return the text that nobody was told of yet; with `everything`, also what might have become a stop string."""
        said, self.said = self.said + (self._text.rest() if everything else ""), ""
        return said

    def close(self) -> None:
        """Give the memory back."""
        self._sampler.close()

    def _take(self, given: Given) -> None:
        """Take tokens that were not the model's choice."""
        for token in given.tokens:
            if self._sampler.grammar and not self._sampler.grammar.allows(token):
                return  # never seen, for its bytes are allowed one by one; but to accept it would end the process
            self._sampler.accept(token)
            self._add(token)
            if self.finish:
                return
        if given.ended:
            self._end()

    def _add(self, token: int) -> None:
        """Say a token that was accepted."""
        piece = self._tools.vocabulary.piece(token)
        if self._constraint:
            self._constraint.add(piece)
        self.undecoded.append(token)
        self.tokens += 1
        text, stopped = self._text.add(piece)
        self.said += text
        if stopped:
            self.finish = "stop"
        elif self.tokens == self.plan.max_tokens:
            self.finish = "length"

    def _end(self) -> None:
        self.finish = "length" if self._constraint and self._constraint.shortened else "stop"
