"""LangChain's standard suite on a model that is good enough for all of it, because it is a script.

What it proves is ours: messages in, tools shown, constraints asked for, answers taken apart, in every way of calling. What a
real model makes of it is in `test_standard_llama.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
from standard_suite import SysscanIntegrationTests, SysscanUnitTests, benchmark  # noqa: F401 - a fixture

from sysscan_langgraph.serving import Served
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.roles import GENERALIST, SPECIALIST


class Scripted(Backend):
    """Opens a model that does what it is asked."""

    name: ClassVar[str] = "scripted"

    def open(self, model: ModelRef) -> Session:
        return ScriptedSession()


class ScriptedSession(Session):
    """Answers with an instance of the schema, with a call of the first tool, or with a sentence, by what it is asked."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in requests:
            words = re.findall(r"\s*\S+", answer(request))
            prompt = self.count_tokens(request.messages)
            for count, word in enumerate(words[:-1], 1):
                yield GenerationEvent(request.id, word, "", prompt, count)
            yield GenerationEvent(request.id, words[-1], "stop", prompt, len(words))

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def close(self) -> None:
        """There is nothing to close."""


def answer(request: GenerationRequest) -> str:
    asked = request.messages[-1]["content"]
    if request.json_schema:
        return orjson.dumps(instance(request.json_schema, asked)).decode()
    shown = re.search(r"<tools>\n(.*?)\n</tools>", request.messages[0]["content"], re.DOTALL)
    if request.grammar and shown and "<tool_response>" not in asked:
        tool = orjson.loads(shown[1].splitlines()[0])
        call = {"name": tool["name"], "arguments": instance(tool["parameters"], asked)}
        return f"I look it up. <tool_call>{orjson.dumps(call).decode()}</tool_call>"
    return f"You said: {asked}"


def instance(schema: Mapping[str, Any], asked: str) -> Any:
    """Return an instance of a schema made of the numbers and the quoted words of a question."""
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return instance(schema["anyOf"][0], asked)
    if schema.get("type") == "integer":
        return int((re.findall(r"-?\d+", asked) or ["7"])[0])
    if schema.get("type") == "string":
        return (re.findall(r"'(.+?)'", asked) or ["words"])[0]
    if "properties" in schema:
        return {name: instance(value, asked) for name, value in schema["properties"].items()}
    return dict.fromkeys(re.findall(r"'(\w+)'", asked), "words")  # any object: the keys that the question names


MODELS = Served(
    {role.name: ModelRef(Path(f"{role.name}_model_q4km.gguf"), role) for role in (SPECIALIST, GENERALIST)}, Scripted()
)


class TestUnit(SysscanUnitTests):
    models = MODELS


class TestIntegration(SysscanIntegrationTests):
    models = MODELS


class TestIntegrationByFunctionCalling(SysscanIntegrationTests):
    models = MODELS
    structured_output_kwargs = {"method": "function_calling"}
