"""The chat model: one of the roles' models as a LangChain `BaseChatModel`.

It writes messages as turns, asks the session of its role, and makes messages of the events. Batching, queueing and sampling are
the session's: every call joins the batch that the model is running, from whatever thread or event loop it comes. Messages go to
the model as they are; the caller brings the system prompt (`sysscan_models.prompts.conversation`).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config
from pydantic import ConfigDict, Field, field_validator, model_validator

from sysscan_langgraph.serving import Served, served
from sysscan_langgraph.structured_output import Method, structured
from sysscan_langgraph.tools import CallReader, Toolbox, chosen, described
from sysscan_langgraph.turns import turns
from sysscan_models.errors import SysscanError, UserError, unknown_name
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, Session, cancelled_at_end

USUAL_PARALLEL = 16
"""Threads of `batch` where the backend does not say how many requests it answers at once."""

_CONVENTIONS = frozenset({"api_key", "max_retries", "streaming", "timeout"})
"""Options that LangChain's models usually have; they mean nothing here and are let pass."""


class ChatSysscan(BaseChatModel):
    """One role's model as a chat model: `ChatSysscan(models=serve(PACKAGE), role="specialist")`.

    Each call takes, beside LangChain's own arguments: `temperature`, `top_p`, `max_tokens`, `seed`, `stop`, `json_schema` (a
    dict), `grammar` (GBNF), `deadline` (seconds), `shorten` (cut a prompt that does not fit) and `model` (another role of the
    package). A request that fails raises what the backend says; a deadline is no failure: the answer is what there is, with the
    finish reason `deadline`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, use_attribute_docstrings=True)

    models: Served | str | Path = Field(exclude=True, repr=False)
    """The served package, or its folder, which is then opened. Never serialized, shown or traced."""
    role: str = "specialist"
    """Whose model answers."""
    temperature: float | None = None
    """0 is greedy; None for the role's default."""
    top_p: float | None = None
    """None for the role's default."""
    max_tokens: int | None = None
    """Tokens of an answer; None for the role's default."""
    seed: int = 0
    """The same seed gives the same answer where the temperature is not 0."""
    stop: list[str] | None = None
    """Texts that end an answer; they are not part of it."""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_option(cls, options: Any) -> Any:
        """Refuse a misspelt option, which LangChain's models ignore."""
        valid = {*cls.model_fields, *(info.alias for info in cls.model_fields.values() if info.alias), *_CONVENTIONS}
        for name in options if isinstance(options, Mapping) else ():
            if name not in valid:
                raise UserError(f"ChatSysscan: {unknown_name('option', str(name), _own_options())}")
        return options

    @field_validator("models", mode="before")
    @classmethod
    def _opened(cls, models: Any) -> Served:
        return served(models)

    @field_validator("stop", mode="before")
    @classmethod
    def _several_stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _role_is_there(self) -> ChatSysscan:
        self._served.role(self.role)
        return self

    @property
    def _served(self) -> Served:
        assert isinstance(self.models, Served)
        return self.models

    @property
    def model_name(self) -> str:
        """What answers are attributed to."""
        return self._served.model_name(self.role)

    @property
    def _llm_type(self) -> str:
        return "sysscan"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What decides an answer, for caches and traces; the package is told by a digest, never by its path."""
        sampling = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
        return {"role": self.role, "model_name": self.model_name, "package": _digest(self._served, self.role), **sampling}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        asked = {**self._identifying_params, **{key: value for key, value in kwargs.items() if value is not None}}
        params = LangSmithParams(ls_provider="sysscan", ls_model_type="chat")
        params["ls_model_name"] = str(asked.get("model") or self.model_name)
        if asked["temperature"] is not None:
            params["ls_temperature"] = float(asked["temperature"])
        if asked["max_tokens"] is not None:
            params["ls_max_tokens"] = int(asked["max_tokens"])
        if stops := stop or self.stop:
            params["ls_stop"] = stops
        return params

    # Answers

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question = self._question(messages, stop, kwargs)
        answer = _Whole(question)
        with cancelled_at_end(question.session.generate([question.request])) as events:
            for event in events:
                answer.add(event)
        return answer.result()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question = self._question(messages, stop, kwargs)
        answer = _Whole(question)
        events = question.session.agenerate([question.request])
        try:
            async for event in events:
                answer.add(event)
        finally:
            await _aclose(events)
        return answer.result()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        question = self._question(messages, stop, kwargs)
        pieces = _Pieces(question)
        with cancelled_at_end(question.session.generate([question.request])) as events:
            for event in events:
                for chunk in pieces.add(event):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        question = self._question(messages, stop, kwargs)
        pieces = _Pieces(question)
        events = question.session.agenerate([question.request])
        try:
            async for event in events:
                for chunk in pieces.add(event):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        finally:
            await _aclose(events)

    def batch(self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> list[Any]:
        """Answer many inputs at once, by as many threads as the backend answers requests, unless `max_concurrency` is given."""
        return super().batch(inputs, self._at_once(config), return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(self, inputs: Any, config: Any = None, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """Do what `batch` does, giving out each answer with its number when it is there."""
        yield from super().batch_as_completed(inputs, self._at_once(config), **kwargs)

    def _at_once(self, config: Any) -> Any:
        if isinstance(config, Sequence):
            return [self._at_once(config[0]), *config[1:]] if config else config
        wanted = (config or {}).get("max_concurrency") or ensure_config().get("max_concurrency")
        parallel = wanted or getattr(self._served.backend, "n_parallel", USUAL_PARALLEL)
        return {**(config or {}), "max_concurrency": parallel}

    # Tokens

    def get_num_tokens(self, text: str) -> int:
        """Return how many tokens a text adds to a prompt as the user's turn; blanks at its ends do not count, as in prompts."""
        return self.get_num_tokens_from_messages([HumanMessage(text)]) - self.get_num_tokens_from_messages([HumanMessage("")])

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return how many prompt tokens the messages have when they are sent, the template's own included; exactly."""
        if not messages and not tools:
            return 0
        prompt = Toolbox(tuple(described(tools))).prompt() if tools else ""
        count = self._served.session(self.role).count_tokens(turns(messages, prompt))
        if count is None:
            raise UserError(f"backend {self._served.backend.name!r} cannot count tokens; 'llama_cpp' can")
        return count

    def get_token_ids(self, text: str) -> list[int]:
        """Refuse: which ids a text has depends on what stands around it; `get_num_tokens` counts."""
        raise UserError("ChatSysscan gives out no token ids; use get_num_tokens or get_num_tokens_from_messages")

    # Tools and structure

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may, must (`tool_choice="any"` or a name) or must not (`none`) call.

        A forced answer is one call that follows its tool's schema, or a list of up to 8 with `parallel_tool_calls=True`.
        `strict` goes to LangChain's conversion of the tools; arguments are constrained either way.
        """
        forms = described(tools, strict)
        bound: dict[str, Any] = {"tools": forms, "tool_choice": chosen(tool_choice, forms)}
        if parallel_tool_calls is not None:
            bound["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**bound, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return the model with answers that are instances of a schema: a pydantic or TypedDict class, or a JSON schema.

        `method` says how (see `sysscan_langgraph.structured_output`). With `include_raw` the answer is a dict of `raw`,
        `parsed` and `parsing_error`.
        """
        return structured(self, schema, method=method, include_raw=include_raw, strict=strict, options=kwargs)

    # One call

    def _question(self, messages: Sequence[BaseMessage], stop: list[str] | str | None, given: Mapping[str, Any]) -> _Question:
        options = _CallOptions.of(given)
        role = self._role_of(options.model)
        toolbox = options.toolbox()
        session = self._served.session(role)
        constraint = _constraint(toolbox, options, session)
        stops = [stop] if isinstance(stop, str) else stop if stop is not None else self.stop or []
        request = GenerationRequest(
            id=uuid.uuid4().hex,
            messages=turns(messages, toolbox.prompt()),
            max_tokens=self.max_tokens if options.max_tokens is None else options.max_tokens,
            temperature=self.temperature if options.temperature is None else options.temperature,
            top_p=self.top_p if options.top_p is None else options.top_p,
            seed=self.seed if options.seed is None else options.seed,
            stop=tuple(stops),
            deadline=options.deadline,
            shorten=options.shorten,
            **constraint,
        )
        reader = toolbox.reader() if toolbox.offered else None
        return _Question(session, request, self._served.model_name(role), reader)

    def _role_of(self, model: str | None) -> str:
        """Return the role that a call's `model` names: by itself, or by the name of its model."""
        if model is None:
            return self.role
        names = {**{self._served.model_name(role): role for role in self._served}, **{role: role for role in self._served}}
        if model not in names:
            raise UserError(unknown_name("model", model, names))
        return names[model]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChatSysscan:
        """Return a copy that asks the same models: those cannot be copied, and need not be."""
        return self.model_copy()


def _own_options() -> list[str]:
    return ["models", "role", "temperature", "top_p", "max_tokens", "seed", "stop"]


def _digest(models: Served, role: str) -> str:
    """Return what tells one model from another without telling where it is: file, size, time, and the backend's options."""
    parts: list[Any] = [role, models.backend.keyed()]
    for path in (models.models[role].base_gguf, models.models[role].adapter_gguf):
        found = path.stat() if path and path.is_file() else None
        parts.append([str(path), found.st_size, found.st_mtime_ns] if found else str(path))
    return sha256(orjson.dumps(parts)).hexdigest()[:16]


@dataclass(frozen=True)
class _CallOptions:
    """What one call may be given."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    json_schema: Mapping[str, Any] | None = None
    grammar: str = ""
    deadline: float | None = None
    shorten: bool = False
    model: str | None = None
    tools: Sequence[Any] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _CallOptions:
        """Check a call's options; raise UserError for one that there is not."""
        valid = [item.name for item in fields(cls)]
        for name in given:
            if name not in valid and name not in ("stream", "stop"):
                raise UserError(f"a call of ChatSysscan: {unknown_name('option', name, [*valid, 'stop'])}")
        return cls(**{name: value for name, value in given.items() if name in valid and value is not None})

    def toolbox(self) -> Toolbox:
        tools = described(self.tools)
        return Toolbox(tuple(tools), chosen(self.tool_choice, tools), self.parallel_tool_calls)


def _constraint(toolbox: Toolbox, options: _CallOptions, session: Session) -> dict[str, Any]:
    """Return what the answer is constrained to; raise UserError where two things would constrain it."""
    own: dict[str, Any] = {}
    if options.json_schema is not None:
        own["json_schema"] = options.json_schema
    if options.grammar:
        own["grammar"] = options.grammar
    if own and toolbox.offered:
        raise UserError(f"{' and '.join(own)} cannot be given together with tools; leave one out, or use tool_choice='none'")
    if len(own) > 1:
        raise UserError("json_schema and grammar cannot be given together; leave one out")
    if toolbox.offered and toolbox.forced:
        return {"json_schema": toolbox.schema()}
    if toolbox.offered and session.takes_grammar:
        return {"grammar": toolbox.grammar()}
    return own


@dataclass(frozen=True)
class _Question:
    """One call, ready to be asked. Without a reader the answer is text as it is."""

    session: Session
    request: GenerationRequest
    model_name: str
    reader: CallReader | None

    def parts(self, event: GenerationEvent) -> list[str | ToolCall]:
        """Return what an event brings; raise what went wrong for the finish reason `error`."""
        if event.finish_reason == "error":
            raise event.error or SysscanError(f"{self.model_name} failed, and its backend gave no reason")
        if self.reader is None:
            return [event.text] if event.text else []
        parts = self.reader.add(event.text)
        return parts + self.reader.rest() if event.finish_reason else parts

    def metadata(self, event: GenerationEvent) -> dict[str, Any]:
        """Return what the last event says about the whole answer."""
        usage = UsageMetadata(
            input_tokens=event.prompt_tokens,
            output_tokens=event.completion_tokens,
            total_tokens=event.prompt_tokens + event.completion_tokens,
        )
        named = {"model_name": self.model_name, "finish_reason": event.finish_reason}
        return {"usage_metadata": usage, "response_metadata": named}


@dataclass
class _Whole:
    """Puts an answer together."""

    question: _Question
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    last: GenerationEvent | None = None

    def add(self, event: GenerationEvent) -> None:
        for part in self.question.parts(event):
            if isinstance(part, str):
                self.text.append(part)
            else:
                self.calls.append(part)
        if event.finish_reason:
            self.last = event

    def result(self) -> ChatResult:
        if self.last is None:
            raise SysscanError(f"{self.question.model_name}: the answer ended without a reason")
        metadata = self.question.metadata(self.last)
        message = AIMessage(content="".join(self.text), tool_calls=self.calls, **metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])


@dataclass
class _Pieces:
    """Makes chunks of an answer's events; the last one carries the usage, the names, and nothing else."""

    question: _Question
    calls: int = 0

    def add(self, event: GenerationEvent) -> Iterator[ChatGenerationChunk]:
        for part in self.question.parts(event):
            if isinstance(part, str):
                yield ChatGenerationChunk(message=AIMessageChunk(content=part))
            else:
                arguments = orjson.dumps(part["args"]).decode()
                piece = tool_call_chunk(name=part["name"], args=arguments, id=part["id"], index=self.calls)
                self.calls += 1
                yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[piece]))
        if event.finish_reason:
            place = {"chunk_position": "last"} if "chunk_position" in AIMessageChunk.model_fields else {}
            yield ChatGenerationChunk(message=AIMessageChunk(content="", **self.question.metadata(event), **place))


async def _aclose(events: AsyncIterator[GenerationEvent]) -> None:
    aclose = getattr(events, "aclose", None)
    if aclose:
        await aclose()
