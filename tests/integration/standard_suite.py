"""LangChain's standard suite for ChatSysscan: what is the same whatever model answers.

The suite skips what a model says it cannot do, and lets a test be overridden only as an expected failure with a reason. Here
each such test is overridden by one that shows the refusal, so that nothing is skipped and every reason is checked.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError
from pytest_benchmark.fixture import BenchmarkFixture

from sysscan_langgraph import ChatSysscan
from sysscan_langgraph.serving import Served
from sysscan_models.errors import UserError

text_only = pytest.mark.xfail(
    raises=UserError, strict=True, reason="the roles' models read text only; another block is refused by name"
)


@pytest.fixture
def benchmark(benchmark: BenchmarkFixture) -> BenchmarkFixture:
    """Run what is to be timed once; nothing is timed here."""
    benchmark.disabled = True
    return benchmark


class SysscanUnitTests(ChatModelUnitTests):
    """The unit tests. `models` is what answers."""

    models: Served

    @property
    def chat_model_class(self) -> type[ChatSysscan]:
        return ChatSysscan

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"models": self.models}

    @pytest.mark.xfail(raises=ValidationError, strict=True, reason="nothing is read from the environment: a package is given")
    def test_init_from_env(self) -> None:
        self.chat_model_class()  # type: ignore[call-arg]

    @pytest.mark.xfail(raises=AssertionError, strict=True, reason="a package's folder and weights do not travel in JSON")
    def test_serdes(self) -> None:  # type: ignore[override]
        assert self.chat_model_class.is_lc_serializable()


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # not where there is no cassette
class SysscanIntegrationTests(ChatModelIntegrationTests):
    """The integration tests. `models` is what answers."""

    models: Served
    supports_json_mode = True  # type: ignore[assignment]
    supports_anthropic_inputs = True  # type: ignore[assignment]
    model_override_value = "generalist"  # type: ignore[assignment]
    enable_vcr_tests = True  # type: ignore[assignment]  # there is no cassette, so that any connection would fail

    @property
    def chat_model_class(self) -> type[ChatSysscan]:
        return ChatSysscan

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"models": self.models}

    @text_only
    def test_pdf_inputs(self, model: BaseChatModel) -> None:
        model.invoke([HumanMessage([{"type": "file", "base64": "JVBERi0=", "mime_type": "application/pdf"}])])

    @text_only
    def test_audio_inputs(self, model: BaseChatModel) -> None:
        model.invoke([HumanMessage([{"type": "audio", "base64": "UklGRg==", "mime_type": "audio/wav"}])])

    @text_only
    def test_image_inputs(self, model: BaseChatModel) -> None:
        model.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}])])

    @text_only
    def test_image_tool_message(self, model: BaseChatModel) -> None:
        invoke_with_output(model, {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"})

    @text_only
    def test_pdf_tool_message(self, model: BaseChatModel) -> None:
        invoke_with_output(model, {"type": "file", "base64": "JVBERi0=", "mime_type": "application/pdf"})


def invoke_with_output(model: BaseChatModel, block: dict[str, Any]) -> None:
    call = {"type": "tool_call", "id": "1", "name": "draw", "args": {}}
    model.invoke([HumanMessage("Draw."), AIMessage("", tool_calls=[call]), ToolMessage([block], tool_call_id="1", name="draw")])
