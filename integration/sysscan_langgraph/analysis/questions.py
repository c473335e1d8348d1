"""Asking a role: one turn in, what the model said out, with what it cost.

The chat model does the work, so LangGraph's streams, callbacks and traces see every call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from pydantic import ValidationError

from sysscan_langgraph.analysis.steps import Call
from sysscan_langgraph.chat_model import ChatSysscan
from sysscan_langgraph.serving import Served
from sysscan_models.errors import IntegrityError, Interrupted, SysscanError, UserError
from sysscan_models.prompts import Response, with_system


@dataclass(frozen=True)
class Asked:
    """What a model said: the text, why it ended (`stop`, `length`, `deadline`), and tokens."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def cost(self) -> dict[str, Any]:
        """The reason and the tokens, as records and states hold them."""
        return {
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True)
class Questioner:
    """Asks one role of the served models."""

    models: Served
    role: str
    max_tokens: int
    """Tokens of an answer."""
    temperature: float | None = None
    seed: int = 0
    chat: ChatSysscan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise UserError(f"max_tokens of the {self.role} is {self.max_tokens!r}; expected 1 or more")
        object.__setattr__(self, "chat", ChatSysscan(models=self.models, role=self.role))

    def open(self) -> None:
        """Load the model; raise UserError when an answer may be as long as its whole context."""
        n_ctx = self.models.session(self.role).n_ctx
        if n_ctx and self.max_tokens >= n_ctx:
            raise UserError(
                f"max_tokens of the {self.role} is {self.max_tokens}; its context has {n_ctx}, question and answer together. "
                "Give fewer, or raise the backend's n_ctx"
            )

    @property
    def model_name(self) -> str:
        """What answers are attributed to."""
        return self.models.model_name(self.role)

    @property
    def response_model(self) -> type[Response]:
        """What the role answers."""
        return self.models.role(self.role).response_model

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides answers beside the text: the model's file, its backend and the options."""
        return self.chat._identifying_params

    def messages(self, text: str) -> list[dict[str, str]]:
        """Return the conversation that asks about a text, as the role was trained on it."""
        turns = with_system(self.models.role(self.role).system_prompt, [{"role": "user", "content": text}])
        return [dict(turn) for turn in turns]

    def fits(self, text: str) -> bool:
        """Say whether a turn leaves room for the answer in the context."""
        session, role = self.models.session(self.role), self.models.role(self.role)
        count = session.count_tokens(self.messages(text))
        prompt = (len(text) + len(role.system_prompt)) // 3 + 16 if count is None else count
        return prompt + self.max_tokens <= (session.n_ctx or role.context_length)

    def asking(
        self, text: str, schema: Mapping[str, Any], config: RunnableConfig | None = None, deadline: float | None = None
    ) -> Call:
        """Return the call that asks about a text and brings `Asked`; `deadline` is in seconds from then.

        It raises UserError and SysscanError as the backend does.
        """
        messages, options = self.messages(text), self._options(schema, deadline)

        async def later() -> Asked:
            return _asked(await self.chat.ainvoke(messages, config, **options))

        return Call(lambda: _asked(self.chat.invoke(messages, config, **options)), later)

    def _options(self, schema: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
        options = {"json_schema": dict(schema), "max_tokens": self.max_tokens, "seed": self.seed, "shorten": True}
        given = {"temperature": self.temperature, "deadline": deadline}
        return {**options, **{name: value for name, value in given.items() if value is not None}}


def retry_on(error: BaseException) -> bool:
    """Say whether asking again may help: for LangGraph's `RetryPolicy`, whose default retries none of these.

    Yes for an answer that is no JSON or does not fit the response model, and for a failure of the backend. No for what the user
    asked wrongly, a damaged file, an interruption.
    """
    if isinstance(error, (UserError, IntegrityError, Interrupted)):
        return False
    return isinstance(
        error, (OutputParserException, ValidationError, json.JSONDecodeError, SysscanError, ConnectionError, TimeoutError)
    )


def _asked(message: Any) -> Asked:
    assert isinstance(message, AIMessage)
    usage = message.usage_metadata or {"input_tokens": 0, "output_tokens": 0}
    return Asked(
        text=str(message.content),
        finish_reason=str(message.response_metadata.get("finish_reason") or "stop"),
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
    )
