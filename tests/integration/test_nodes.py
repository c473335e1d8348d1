from __future__ import annotations

import asyncio
import json
import operator
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, RetryPolicy
from pydantic import BaseModel, ValidationError
from scripted import ANALYSIS, REPORT, Reply, backend_of, scripted, usual

from sysscan_langgraph import cache_key, create_generalist_node, create_specialist_node, retry_on
from sysscan_models.errors import DataError, IntegrityError, Interrupted, MissingExtra, SysscanError, UserError
from sysscan_models.interfaces import GenerationRequest

FINDING = {
    "id": "/home/alice/x",
    "title": "SUID binary",
    "description": "text",
    "metadata": {"mode": "4755"},
    "severity": "high",
}


class State(TypedDict, total=False):
    finding: Any
    analysis: Any
    findings: Any
    report: Any
    warnings: Annotated[list[Any], operator.add]


def graph_of(node: Any, name: str = "node", *, checkpointer: Any = None, cache: Any = None, **policies: Any) -> Any:
    graph: Any = StateGraph(State)
    graph.add_node(name, node, **policies)
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return graph.compile(checkpointer=checkpointer, cache=cache)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_specialist_node_analyses_a_finding(way: str) -> None:
    models = scripted()
    graph = graph_of(create_specialist_node(models), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    found = (
        graph.invoke({"finding": FINDING}, config)
        if way == "sync"
        else asyncio.run(graph.ainvoke({"finding": FINDING}, config))
    )
    told = {"model": "specialist", "finish_reason": "stop", "completion_tokens": 7}
    assert found["analysis"] == {**ANALYSIS, **told, "prompt_tokens": found["analysis"]["prompt_tokens"]}
    assert found["analysis"]["prompt_tokens"] > 0
    assert backend_of(models).texts() == ["SUID binary\n\ntext\nmode: 4755"]
    json.dumps(graph.get_state(config).values)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_generalist_node_reports_on_findings_by_alias(way: str) -> None:
    models = scripted()
    node = create_generalist_node(models)
    given = {"findings": [{**FINDING, "analysis": ANALYSIS}, {"id": "b", "title": "Plain", "description": "As scanned. More."}]}
    found = node.invoke(given) if way == "sync" else asyncio.run(node.ainvoke(given))
    assert found["report"]["executive_summary"] == REPORT["executive_summary"]
    assert found["report"]["recommendations"] == [
        {"text": "repair it", "finding_ids": ["/home/alice/x", "b"], "aliases": ["F1", "F2"]}
    ]
    [text] = backend_of(models).texts("generalist")
    assert "F1 [medium, risk 50] SUID binary: It can be abused." in text
    assert "F2 [info] Plain: As scanned." in text
    assert "alice" not in text


def test_keys_names_and_options_are_the_users() -> None:
    models = scripted()
    node = create_specialist_node(
        models, name="look", input_key="it", output_key="said", max_tokens=99, temperature=0.5, seed=7
    )
    assert node.get_name() == "look"
    assert node.invoke({"it": FINDING}).keys() == {"said"}
    [request] = backend_of(models).asked()
    assert (request.max_tokens, request.temperature, request.seed) == (99, 0.5, 7)


def test_a_state_may_be_a_model() -> None:
    class Model(BaseModel):
        finding: dict[str, Any]

    assert create_specialist_node(scripted()).invoke(Model(finding=FINDING))["analysis"]["severity"] == "medium"


@pytest.mark.parametrize("way", ["sync", "async"])
def test_tokens_and_progress_are_streamed(way: str) -> None:
    graph = graph_of(create_specialist_node(scripted(), name="specialist"), "specialist")
    modes: Any = ["custom", "messages"]

    async def streamed() -> list[Any]:
        return [piece async for piece in graph.astream({"finding": FINDING}, stream_mode=modes)]

    pieces = list(graph.stream({"finding": FINDING}, stream_mode=modes)) if way == "sync" else asyncio.run(streamed())
    assert [piece for mode, piece in pieces if mode == "custom"] == [
        {"stage": "specialist", "done": done, "total": 1} for done in (0, 1)
    ]
    tokens = [piece[0].content for mode, piece in pieces if mode == "messages"]
    assert json.loads("".join(tokens)) == ANALYSIS
    assert len([token for token in tokens if token]) > 1


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, "input_key: unknown key of the state 'finding'"),
        ({"findin": 1}, r"unknown key of the state 'finding'\. Did you mean 'findin'\?"),
        ({"finding": "text"}, "a finding is expected, an object with `title`, `description`, `metadata`; found str"),
        ({"finding": {"id": "x"}}, "a finding is expected"),
        ({"finding": {"title": "x", "metadata": [1]}}, "the finding's metadata is list; expected names and values"),
    ],
)
def test_a_wrong_state_is_told(state: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        create_specialist_node(scripted()).invoke(state)


@pytest.mark.parametrize(("value", "told"), [([], "`findings` is empty"), ("x", "is str; expected a list"), ([1], "found int")])
def test_a_wrong_list_of_findings_is_told(value: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        create_generalist_node(scripted()).invoke({"findings": value})


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown on_error 'warm'\. Did you mean 'warn'\?"):
        create_specialist_node(scripted(), on_error="warm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown role 'analyst'"):
        create_specialist_node(scripted(), role="analyst")
    with pytest.raises(UserError, match="max_tokens of the specialist is 0; expected 1 or more"):
        create_specialist_node(scripted(), max_tokens=0)
    with pytest.raises(UserError, match="max_tokens of the specialist is 'x'; expected 1 or more"):
        create_specialist_node(scripted(), max_tokens="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="max_tokens of the specialist is 5000; its context has 4096"):
        create_specialist_node(scripted(), max_tokens=5000).invoke({"finding": FINDING})


def test_errors_are_warnings_where_that_is_wanted() -> None:
    graph = graph_of(create_specialist_node(scripted(lambda role, request: SysscanError("it broke")), on_error="warn"))
    found = graph.invoke({"finding": FINDING, "warnings": ["earlier"]})
    warning = {"stage": "specialist", "message": "it broke", "finding_id": "/home/alice/x"}
    assert found["warnings"] == ["earlier", warning]
    assert found["analysis"] is None
    assert create_specialist_node(scripted(), on_error="warn").invoke({})["warnings"][0]["finding_id"] == ""


# Retrying and caching


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OutputParserException("no JSON"), True),
        (json.JSONDecodeError("no", "", 0), True),
        (SysscanError("the decoder broke"), True),
        (ConnectionError(), True),
        (TimeoutError(), True),
        (UserError("wrong"), False),
        (DataError("bad"), False),
        (MissingExtra("x", "y", "z"), False),
        (IntegrityError("damaged"), False),
        (Interrupted("stopped"), False),
        (ValueError("ours"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_is_worth_asking_again(error: BaseException, again: bool) -> None:
    assert retry_on(error) is again


def test_an_answer_that_does_not_fit_is_worth_asking_again() -> None:
    class Model(BaseModel):
        x: int

    with pytest.raises(ValidationError) as error:
        Model(x="y")  # type: ignore[arg-type]
    assert retry_on(error.value)


@pytest.mark.parametrize(("reply", "times"), [("nonsense", 2), (SysscanError("no"), 2), (UserError("no"), 1)])
def test_langgraph_retries_what_is_worth_it(reply: Reply, times: int) -> None:
    def script(role: str, request: GenerationRequest) -> Reply:
        return reply if len(backend_of(models).asked()) == 1 else usual(role, request)

    models = scripted(script)
    policy = RetryPolicy(retry_on=retry_on, initial_interval=0.001, jitter=False)
    graph = graph_of(create_specialist_node(models), retry_policy=policy)
    if times == 1:
        with pytest.raises(UserError, match="no"):
            graph.invoke({"finding": FINDING})
    else:
        assert graph.invoke({"finding": FINDING})["analysis"]["severity"] == "medium"
    assert len(backend_of(models).asked()) == times


def test_langgraph_caches_by_what_the_prompt_depends_on() -> None:
    models = scripted()
    policy: Any = CachePolicy(key_func=partial(cache_key, models=models))
    graph = graph_of(create_specialist_node(models), cache=InMemoryCache(), cache_policy=policy)
    first = graph.invoke({"finding": FINDING})
    assert graph.invoke({"finding": {**FINDING, "id": "another"}, "warnings": ["w"]})["analysis"] == first["analysis"]
    assert len(backend_of(models).asked()) == 1
    graph.invoke({"finding": {**FINDING, "title": "Other"}})
    assert len(backend_of(models).asked()) == 2


def test_the_cache_key_tells_models_and_options_apart() -> None:
    state = {"finding": FINDING, "findings": [FINDING, {"title": "x", "metadata": {"huge": 10**30}}]}
    keys = [
        cache_key(state),
        cache_key(state, models=scripted()),
        cache_key(state, models=scripted(n_ctx=100)),
        cache_key(state, models=scripted(), role="generalist"),
        cache_key(state, models=scripted(), max_tokens=5),
        cache_key(state, input_key="findings"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[1] == cache_key({"finding": {**FINDING, "id": "y", "base_severity_score": 9}}, models=scripted())
