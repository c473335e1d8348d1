"""Structured output: a schema in, a chat model that answers with instances of it out.

`json_schema` constrains the answer to the schema and leaves the messages as they are; `function_calling` shows the schema to
the model as a tool that it must call; `json_mode` constrains the answer to a JSON object of any shape, which the messages
describe. An answer that was cut off is an error, never half a result. LangChain's own parsers do the rest.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from sysscan_langgraph.tools import described
from sysscan_models.errors import UserError, unknown_name

if TYPE_CHECKING:
    from sysscan_langgraph.chat_model import ChatSysscan

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")

_JSON_SCHEMA_KEYS = frozenset({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"})


def structured(
    model: ChatSysscan,
    schema: Mapping[str, Any] | type | None,
    *,
    method: str = "json_schema",
    include_raw: bool = False,
    strict: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Runnable[LanguageModelInput, Any]:
    """Return the model with answers that follow the schema; `options` are those of each call, such as `max_tokens`.

    Raises UserError for an unknown method, and for a schema that is none. Calls raise OutputParserException for an answer that
    is not whole or does not validate.
    """
    _check(schema, method, strict)
    bound = {**(options or {}), "ls_structured_output_format": _traced(schema, method, strict)}
    parser: Runnable[Any, Any]
    if method == "function_calling":
        [form] = described([schema], strict)
        name = form["function"]["name"]
        llm = model.bind_tools([form], tool_choice={"type": "function", "function": {"name": name}}, **bound)
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)
            if _is_model(schema)
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        llm = model.bind(json_schema=constraint(schema if method == "json_schema" else None), **bound)
        parser = PydanticOutputParser(pydantic_object=schema) if _is_model(schema) else JsonOutputParser()
    whole: Runnable[Any, Any] = RunnableGenerator(_whole, _awhole, name="whole_answer")
    return _with_raw(llm, whole | parser) if include_raw else llm | whole | parser


def constraint(schema: Any) -> dict[str, Any]:
    """Return what an answer is constrained to: a class as JSON schema, a JSON schema as it is, any object for None."""
    if schema is None:
        return {"type": "object"}
    if isinstance(schema, Mapping) and _JSON_SCHEMA_KEYS & schema.keys() and schema.get("type") != "function":
        return dict(schema)
    if hasattr(schema, "model_json_schema"):
        return dict(schema.model_json_schema())
    try:
        return convert_to_json_schema(schema)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"with_structured_output: {schema!r} is no schema: {error}") from error


def _check(schema: Any, method: str, strict: bool | None) -> None:
    if method not in METHODS:
        raise UserError(f"with_structured_output: {unknown_name('method', str(method), METHODS)}")
    if schema is None and method != "json_mode":
        raise UserError(f"with_structured_output: method {method!r} needs a schema; only 'json_mode' can do without one")
    if strict is not None and method == "json_mode":
        raise UserError("with_structured_output: strict says nothing to method 'json_mode'; leave it out")


def _is_model(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _traced(schema: Any, method: str, strict: bool | None) -> dict[str, Any]:
    """Return what traces show of the schema; LangChain turns it into a JSON schema."""
    kwargs = {"method": method} if strict is None else {"method": method, "strict": strict}
    return {} if schema is None else {"kwargs": kwargs, "schema": schema}


def _with_raw(llm: Runnable[LanguageModelInput, Any], parser: Runnable[Any, Any]) -> Runnable[LanguageModelInput, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _whole(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    """Pass messages on, and raise at their end when they are not a whole answer together."""
    seen = _Seen()
    for message in messages:
        seen.add(message)
        yield message
    seen.check()


async def _awhole(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    seen = _Seen()
    async for message in messages:
        seen.add(message)
        yield message
    seen.check()


class _Seen:
    """What an answer's pieces came to."""

    def __init__(self) -> None:
        self._text, self._called, self._reason = "", False, ""

    def add(self, message: BaseMessage) -> None:
        content: Any = message.content
        blocks = [content] if isinstance(content, str) else content
        self._text += "".join(block if isinstance(block, str) else block.get("text", "") for block in blocks)
        self._called = self._called or bool(getattr(message, "tool_calls", None))
        self._reason = message.response_metadata.get("finish_reason", self._reason)

    def check(self) -> None:
        if self._called:
            return
        try:
            json.loads(self._text)
        except ValueError as error:
            raise OutputParserException(
                f"the answer is not whole JSON; it ended with the finish reason {self._reason!r} after "
                f"{len(self._text)} characters. Raise max_tokens, or the deadline",
                llm_output=self._text,
            ) from error
