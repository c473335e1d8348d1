"""LangChain's standard suite on a real model of 135 million parameters, run by llama.cpp in this process.

What so small a model is too weak for is an expected failure here, with the reason, and passes in `test_standard_scripted.py`.
It is not strict: on another processor the model may just manage it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from engine_cases import model_file
from langchain_core.language_models import BaseChatModel
from standard_suite import SysscanIntegrationTests, SysscanUnitTests, benchmark  # noqa: F401 - a fixture

from sysscan_langgraph import LlamaCpp
from sysscan_langgraph.serving import Served
from sysscan_models.interfaces import ModelRef
from sysscan_models.roles import GENERALIST, SPECIALIST, Sampling

pytestmark = pytest.mark.slow

SAMPLING = Sampling(max_tokens=40)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file, folder = model_file(), tmp_path_factory.mktemp("models")
    refs = {}
    for role in (SPECIALIST, GENERALIST):
        path = folder / f"{role.name}_model_q4km.gguf"
        path.symlink_to(file)
        refs[role.name] = ModelRef(path, dataclasses.replace(role, sampling=SAMPLING))
    with Served(refs, LlamaCpp(threads=1, n_ctx=1024)) as served:
        yield served


@pytest.fixture(autouse=True)
def _models(request: pytest.FixtureRequest, models: Served) -> None:
    request.cls.models = models


def too_weak(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=False, reason=f"a model of 135M {reason}; passes in test_standard_scripted.py")


class TestUnit(SysscanUnitTests):
    pass


class TestIntegration(SysscanIntegrationTests):
    structured_output_kwargs = {"method": "function_calling", "max_tokens": 100}
    """By the method `json_schema`, which shows the model no schema, it repeats its first sentence to the end."""

    @too_weak("answers in words instead of calling a tool when it may choose")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @too_weak("makes up keys when no schema holds it to them")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @too_weak("calls the function with another number than the question's")
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @too_weak("calls the function with another number than the question's")
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)
