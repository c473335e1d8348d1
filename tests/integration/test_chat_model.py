"""ChatSysscan over a recorded session: what is asked, what becomes of the events, in every way of calling."""

from __future__ import annotations

import asyncio
import copy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField
from langgraph.graph import END, START, MessagesState, StateGraph

from sysscan_langgraph import ChatSysscan
from sysscan_langgraph.serving import Served
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import Backend, GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.roles import GENERALIST, SPECIALIST

Answer = Callable[[GenerationRequest], Iterator[GenerationEvent]]


class Recorded(Backend):
    """Opens sessions that keep what they are asked."""

    name: ClassVar[str] = "recorded"
    n_parallel: int = 12

    def open(self, model: ModelRef) -> Session:
        return RecordedSession(model.role.name)


class RecordedSession(Session):
    def __init__(self, role: str) -> None:
        self.role = role
        self.asked: list[GenerationRequest] = []
        self.left = 0
        self.answer: Answer = lambda request: words(request, "One two three.")

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        for request in requests:
            self.asked.append(request)
            self.left += 1
            yield from self.answer(request)
            self.left -= 1

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(2 + len(message["content"].split()) for message in messages)

    def close(self) -> None:
        pass


def words(request: GenerationRequest, text: str, finish: str = "stop") -> Iterator[GenerationEvent]:
    pieces = text.split(" ")
    for count, piece in enumerate(pieces, 1):
        yield GenerationEvent(request.id, piece + " " * (count < len(pieces)), "", 7, count)
    yield GenerationEvent(request.id, "", finish, 7, len(pieces))


@pytest.fixture
def models(tmp_path: Path) -> Served:
    refs = {role.name: ModelRef(tmp_path / f"{role.name}_model_q4km.gguf", role) for role in (SPECIALIST, GENERALIST)}
    return Served(refs, Recorded(), f"package {tmp_path}")


@pytest.fixture
def session(models: Served) -> RecordedSession:
    session = models.session("specialist")
    assert isinstance(session, RecordedSession)
    return session


@pytest.fixture
def chat(models: Served) -> ChatSysscan:
    return ChatSysscan(models=models)


def streamed(chunks: Iterator[Any]) -> AIMessageChunk:
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


# Asking


def test_messages_go_to_the_model_as_they_are(chat: ChatSysscan, session: RecordedSession) -> None:
    chat.invoke([SystemMessage("Be brief. "), HumanMessage(" Why?\n")])
    [request] = session.asked
    assert request.messages == ({"role": "system", "content": "Be brief. "}, {"role": "user", "content": " Why?\n"})
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (None, None, None, 0)
    assert (request.stop, request.json_schema, request.grammar, request.deadline) == ((), None, "", None)


def test_options_of_the_model_and_of_the_call(models: Served, session: RecordedSession) -> None:
    chat = ChatSysscan(models=models, temperature=0.5, top_p=0.9, max_tokens=9, seed=3, stop="END")
    chat.invoke("a")
    chat.invoke("b", temperature=0.0, top_p=0.1, max_tokens=1, seed=0, stop=["x"], deadline=2.5, shorten=True)
    chat.bind(json_schema={"type": "integer"}).invoke("c")
    chat.invoke("d", grammar='root ::= "a"', stop=[])
    first, second, third, fourth = session.asked
    assert (first.temperature, first.top_p, first.max_tokens, first.seed, first.stop) == (0.5, 0.9, 9, 3, ("END",))
    assert (second.temperature, second.top_p, second.max_tokens, second.seed, second.stop) == (0.0, 0.1, 1, 0, ("x",))
    assert (second.deadline, second.shorten) == (2.5, True)
    assert third.json_schema == {"type": "integer"}
    assert (fourth.grammar, fourth.stop) == ('root ::= "a"', ())
    assert len({request.id for request in session.asked}) == 4


def test_a_call_may_go_to_another_role(chat: ChatSysscan, models: Served, session: RecordedSession) -> None:
    for name in ("generalist", "generalist_model_q4km"):
        assert chat.invoke("a", model=name).response_metadata["model_name"] == "generalist_model_q4km"
    assert not session.asked
    with pytest.raises(UserError, match=r"unknown model 'generalst'\. Did you mean 'generalist'"):
        chat.invoke("a", model="generalst")


def test_a_misspelt_option_is_refused(models: Served) -> None:
    with pytest.raises(UserError, match=r"ChatSysscan: unknown option 'temprature'\. Did you mean 'temperature'\?"):
        ChatSysscan(models=models, temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"a call of ChatSysscan: unknown option 'max_token'\. Did you mean 'max_tokens'\?"):
        ChatSysscan(models=models).invoke("a", max_token=3)
    with pytest.raises(UserError, match=r"unknown role 'specalist'\. Did you mean 'specialist'\?"):
        ChatSysscan(models=models, role="specalist")
    assert ChatSysscan(models=models, timeout=3, api_key="k", max_retries=1, streaming=True)  # type: ignore[call-arg]


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        ChatSysscan(models=tmp_path)


def test_two_constraints_are_refused(chat: ChatSysscan) -> None:
    with pytest.raises(UserError, match="json_schema and grammar cannot be given together"):
        chat.invoke("a", json_schema={}, grammar='root ::= "a"')


# Answers


def check_answer(message: BaseMessage) -> None:
    assert isinstance(message, AIMessage)
    assert message.content == "One two three."
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert message.response_metadata == {"model_name": "specialist_model_q4km", "finish_reason": "stop"}


def test_every_way_of_calling_gives_the_same_answer(chat: ChatSysscan) -> None:
    async def alone() -> list[BaseMessage]:
        chunks = [chunk async for chunk in chat.astream("a")]
        return [await chat.ainvoke("a"), streamed(iter(chunks)), *await chat.abatch(["a"] * 3)]

    for message in [chat.invoke("a"), streamed(chat.stream("a")), *chat.batch(["a"] * 3), *asyncio.run(alone())]:
        check_answer(message)
    done = dict(chat.batch_as_completed(["a"] * 3))
    assert sorted(done) == [0, 1, 2]
    check_answer(done[2])  # type: ignore[arg-type]


def test_only_the_last_chunk_carries_usage_and_names(chat: ChatSysscan) -> None:
    chunks = list(chat.stream("a"))
    assert [chunk.content for chunk in chunks] == ["One ", "two ", "three.", ""]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False, False, False, True]
    assert [bool(chunk.response_metadata) for chunk in chunks] == [False, False, False, True]
    if "chunk_position" in AIMessageChunk.model_fields:
        assert [chunk.chunk_position for chunk in chunks] == [None, None, None, "last"]  # type: ignore[attr-defined]


def test_a_stream_that_is_closed_cancels(chat: ChatSysscan, session: RecordedSession) -> None:
    closed = threading.Event()

    def endless(request: GenerationRequest) -> Iterator[GenerationEvent]:
        try:
            while True:
                yield GenerationEvent(request.id, "on ")
        finally:
            closed.set()

    session.answer = endless
    chunks = chat.stream("a")
    assert next(chunks).content == "on "
    chunks.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    closed.clear()

    async def one() -> None:
        async for _ in chat.astream("a"):
            break

    asyncio.run(one())
    assert closed.wait(10)


def test_a_failure_is_raised_as_what_it_is(chat: ChatSysscan, session: RecordedSession) -> None:
    class Broken(SysscanError):
        pass

    session.answer = lambda request: iter([GenerationEvent(request.id, "", "error", error=Broken("the disk is on fire"))])
    with pytest.raises(Broken, match="the disk is on fire"):
        chat.invoke("a")
    with pytest.raises(Broken):
        list(chat.stream("a"))
    with pytest.raises(Broken):
        asyncio.run(chat.ainvoke("a"))  # type: ignore[arg-type]
    [failed] = chat.batch(["a"], return_exceptions=True)
    assert isinstance(failed, Broken)
    session.answer = lambda request: iter([GenerationEvent(request.id, "", "error")])
    with pytest.raises(SysscanError, match="specialist_model_q4km failed, and its backend gave no reason"):
        chat.invoke("a")
    session.answer = lambda request: iter([])
    with pytest.raises(SysscanError, match="the answer ended without a reason"):
        chat.invoke("a")


@pytest.mark.parametrize("reason", ["deadline", "length", "cancelled"])
def test_a_deadline_is_no_failure(chat: ChatSysscan, session: RecordedSession, reason: str) -> None:
    session.answer = lambda request: words(request, "One two", reason)
    for message in (chat.invoke("a"), streamed(chat.stream("a"))):
        assert message.content == "One two"
        assert message.response_metadata["finish_reason"] == reason


def test_a_batch_is_asked_at_once(chat: ChatSysscan, session: RecordedSession) -> None:
    together = threading.Barrier(12, timeout=20)

    def meet(request: GenerationRequest) -> Iterator[GenerationEvent]:
        together.wait()
        yield from words(request, request.messages[0]["content"])

    session.answer = meet
    asked = [str(number) for number in range(24)]
    assert [message.content for message in chat.batch(asked)] == asked
    assert [message.content for message in chat.with_config(tags=["x"]).batch(asked)] == asked
    assert [message.content for message in chat.batch(asked, [{"tags": ["x"]}] * 24)] == asked
    assert [message.content for message in asyncio.run(abatch(chat, asked))] == asked
    assert len([done for _, done in chat.batch_as_completed(asked)]) == 24


async def abatch(chat: ChatSysscan, asked: list[str]) -> list[AIMessage]:
    return await chat.abatch(asked)  # type: ignore[arg-type]


def test_a_batch_keeps_to_the_callers_limit(chat: ChatSysscan, session: RecordedSession) -> None:
    most = 0

    def count(request: GenerationRequest) -> Iterator[GenerationEvent]:
        nonlocal most
        most = max(most, session.left)
        yield from words(request, "a")

    session.answer = count
    chat.batch(["a"] * 6, {"max_concurrency": 1})
    assert most == 1


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.started: list[dict[str, Any]] = []
        self.serialized: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.serialized.append(serialized)
        self.started.append(kwargs)

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)


def test_callbacks_hear_each_token_once(chat: ChatSysscan) -> None:
    listener = Listener()
    list(chat.stream("a", {"callbacks": [listener]}))
    assert listener.tokens == ["One ", "two ", "three.", ""]
    listener = Listener()
    asyncio.run(drained(chat, listener))
    assert listener.tokens == ["One ", "two ", "three.", ""]


async def drained(chat: ChatSysscan, listener: Listener) -> None:
    async for _ in chat.astream("a", {"callbacks": [listener]}):
        pass


def test_a_graph_streams_the_tokens_of_a_node_that_invokes(chat: ChatSysscan) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [chat.invoke(state["messages"])]})
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    said = [part[0].content for part in graph.compile().stream({"messages": [("user", "a")]}, stream_mode="messages")]
    assert said == ["One ", "two ", "three.", ""]


# What is told about it


def test_nothing_tells_where_the_package_is(models: Served, tmp_path: Path) -> None:
    chat, listener = ChatSysscan(models=models, temperature=0.5), Listener()
    chat.invoke("a", {"callbacks": [listener]})
    shown = [repr(chat), str(chat), dumps(chat), str(chat._identifying_params), str(chat._get_ls_params())]
    for text in [
        *shown,
        str(chat._get_invocation_params()),
        str(listener.serialized),
        str(listener.started),
        str(chat.model_dump()),
    ]:
        assert str(tmp_path) not in text
        assert "Served" not in text
    assert not ChatSysscan.is_lc_serializable()
    assert listener.started[0]["invocation_params"]["temperature"] == 0.5


def test_traces_name_model_and_sampling(models: Served) -> None:
    params = ChatSysscan(models=models, temperature=1, max_tokens=5, stop=["a"])._get_ls_params()
    assert params == {
        "ls_provider": "sysscan", "ls_model_type": "chat", "ls_model_name": "specialist_model_q4km", "ls_temperature": 1.0,
        "ls_max_tokens": 5, "ls_stop": ["a"],
    }  # fmt: skip
    params = ChatSysscan(models=models)._get_ls_params(stop=["b"], model="generalist", temperature=0)
    assert (params["ls_model_name"], params["ls_temperature"], params["ls_stop"]) == ("generalist", 0.0, ["b"])


def test_a_cached_answer_belongs_to_one_package_and_one_sampling(models: Served, tmp_path: Path) -> None:
    (tmp_path / "specialist_model_q4km.gguf").write_bytes(b"GGUF")
    keys = {ChatSysscan(models=models, seed=seed)._get_llm_string() for seed in (0, 0, 1)}
    (tmp_path / "specialist_model_q4km.gguf").write_bytes(b"GGUF, trained anew")
    keys.add(ChatSysscan(models=models)._get_llm_string())
    keys.add(ChatSysscan(models=Served(models.models, Recorded(n_parallel=2)))._get_llm_string())
    assert len(keys) == 4


def test_copies_ask_the_same_models(chat: ChatSysscan, session: RecordedSession) -> None:
    copies = [copy.copy(chat), copy.deepcopy(chat), chat.model_copy(update={"seed": 5})]
    changeable = chat.configurable_fields(seed=ConfigurableField(id="seed"))
    for one in copies:
        one.invoke("a")
    changeable.with_config(configurable={"seed": 8}).invoke("a")
    assert [request.seed for request in session.asked] == [0, 0, 5, 8]


# Tokens


def test_tokens_are_counted_by_the_session(chat: ChatSysscan) -> None:
    assert chat.get_num_tokens("one two") == 2
    assert chat.get_num_tokens("") == 0
    assert chat.get_num_tokens_from_messages([SystemMessage("be"), HumanMessage("one two")]) == 7
    assert chat.get_num_tokens_from_messages([]) == 0
    with_tools = chat.get_num_tokens_from_messages(
        [HumanMessage("one two")], tools=[{"title": "a", "description": "b", "type": "object", "properties": {}}]
    )
    assert with_tools > 20
    with pytest.raises(UserError, match="gives out no token ids"):
        chat.get_token_ids("a")


def test_a_backend_that_cannot_count_says_so(
    chat: ChatSysscan, session: RecordedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "count_tokens", lambda messages: None)
    with pytest.raises(UserError, match="backend 'recorded' cannot count tokens; 'llama_cpp' can"):
        chat.get_num_tokens("a")


# Where it reaches


def test_it_opens_no_connection(chat: ChatSysscan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    chat.invoke("a")
    list(chat.stream("a"))
    chat.batch(["a"] * 3)
    asyncio.run(chat.ainvoke("a"))  # type: ignore[arg-type]


def test_it_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'openai', 'langchain_openai', 'llama_cpp', 'numpy'}"
    code = f"import sys, sysscan_langgraph.chat_model; sys.exit(str({heavy} & sys.modules.keys() or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
