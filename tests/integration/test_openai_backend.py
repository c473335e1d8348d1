"""The backend `openai`: against a real server of llama.cpp on this machine, and a double that records and misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engine_cases import model_file
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from sysscan_langgraph import ChatSysscan, OpenAICompatible, serve
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.plugins import plugin_manager
from sysscan_models.roles import SPECIALIST

KEY = "not-a-real-key-5f2c"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_ORG_ID", "OPENAI_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def opened(base_url: str, **options: Any) -> Session:
    return OpenAICompatible(base_url=base_url, **options).open(ModelRef(Path(), SPECIALIST))


def request(text: str = "Say hi.", **options: Any) -> GenerationRequest:
    return GenerationRequest(options.pop("id", "r"), ({"role": "user", "content": text},), **{"max_tokens": 8, **options})


def said(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events)


# A double of a server

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Keeps what it is asked, and answers as the test says."""

    server: Double

    def do_GET(self) -> None:
        self.send_json(200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": self.server.owned_by}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.reply(self, asked)

    def send_json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_chunks(self, *pieces: str, finish: str | None = "stop", usage: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            self.send_event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if finish:
            self.send_event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage:
            self.send_event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, event: dict[str, Any]) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", **event}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class Double(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.owned_by = "llamacpp"
        self.reply: Reply = lambda handler, asked: handler.send_chunks("Hello", " there")

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def failing(status: int, message: str) -> Reply:
    return lambda handler, asked: handler.send_json(status, {"error": {"message": message, "type": "x", "code": None}})


def failure(session: Session, **options: Any) -> Exception:
    [event] = list(session.generate([request(**options)]))
    assert event.finish_reason == "error"
    assert event.error is not None
    return event.error


# What is asked


def test_a_request_is_asked_as_the_role_says(double: Double) -> None:
    with opened(double.base_url) as session:
        events = list(session.generate([request("Why?", max_tokens=None)]))
    assert said(events) == "Hello there"
    assert (events[-1].finish_reason, events[-1].prompt_tokens, events[-1].completion_tokens) == ("stop", 11, 22)
    [asked] = double.asked
    assert asked["messages"] == [{"role": "user", "content": "Why?"}]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["top_p"]) == ("specialist", 512, 0.0, 1.0)
    assert (asked["seed"], asked["stream"], asked["stream_options"]) == (0, True, {"include_usage": True})
    assert not {"stop", "response_format", "grammar", "tools", "max_completion_tokens", "repeat_penalty"} & asked.keys()


def test_options_of_a_request_are_asked(double: Double) -> None:
    options = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "seed": 9, "stop": ("END", "")}
    with opened(double.base_url, model="big-one") as session:
        list(session.generate([request(**options, json_schema={"type": "integer"})]))
        list(session.generate([request(grammar='root ::= "a"')]))
    first, second = double.asked
    assert (first["model"], first["max_tokens"], first["temperature"], first["top_p"]) == ("big-one", 5, 0.5, 0.25)
    assert (first["seed"], first["stop"]) == (9, ["END"])
    assert first["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "integer"}}}
    assert second["grammar"] == 'root ::= "a"'


def test_what_looks_like_a_control_token_is_sent_as_text(double: Double) -> None:
    with opened(double.base_url) as session:
        list(
            session.generate(
                [request("a<|im_end|>b</s><s>[INST]c[/INST]<start_of_turn><\uff5cUser\uff5c>< b> <script> x<y|z>")]
            )
        )
    assert double.asked[0]["messages"][0]["content"] == (
        "a< |im_end|>b< /s>< s>[ INST]c[ /INST]< start_of_turn>< \uff5cUser\uff5c>< b> <script> x<y|z>"
    )


def test_a_server_that_counts_nothing_gives_integers(double: Double) -> None:
    double.reply = lambda handler, asked: handler.send_chunks("a", "b", "c", finish="length", usage=False)
    with opened(double.base_url) as session:
        last = list(session.generate([request()]))[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", 0, 3)
    assert session.count_tokens([]) is None
    assert session.n_ctx == 0


def test_another_form_of_schema_is_tried_once_and_kept(double: Double) -> None:
    def picky(handler: Handler, asked: dict[str, Any]) -> None:
        if asked["response_format"]["type"] == "json_schema":
            handler.send_json(422, {"error": {"message": "response_format: expected 'json_object'"}})
        else:
            handler.send_chunks("3")

    double.reply = picky
    with opened(double.base_url) as session:
        for _ in range(2):
            assert said(list(session.generate([request(json_schema={"type": "integer"})]))) == "3"
        double.reply = failing(400, "response_format is not supported")
        assert "refuses the request: response_format is not supported" in str(failure(session, json_schema={}))
    forms = [asked["response_format"]["type"] for asked in double.asked]
    assert forms == ["json_schema", "json_object", "json_object", "json_object"]


def test_a_grammar_is_for_servers_that_take_it(double: Double) -> None:
    double.owned_by = "vllm"
    with opened(double.base_url) as session:
        error = failure(session, grammar='root ::= "a"')
        assert isinstance(error, UserError)
        assert "is not known to take llama.cpp's grammars: its models are signed 'vllm'" in str(error)
        assert said(list(session.generate([request()]))) == "Hello there"
    assert len(double.asked) == 1


# Many at once


def test_requests_are_under_way_at_once_and_no_more_than_allowed(double: Double) -> None:
    busy, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3, timeout=20)

    def slow(handler: Handler, asked: dict[str, Any]) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        together.wait()  # three at once, or the test fails
        time.sleep(0.05)
        with lock:
            busy -= 1
        handler.send_chunks(asked["messages"][0]["content"])

    double.reply = slow
    texts = {f"{number}": "" for number in range(9)}
    with opened(double.base_url, n_parallel=3) as session:
        for event in session.generate([request(text, id=text) for text in texts]):
            texts[event.id] += event.text
    assert texts == {text: text for text in texts}
    assert most == 3


def test_threads_and_event_loops_share_a_session(double: Double) -> None:
    double.reply = lambda handler, asked: handler.send_chunks(asked["messages"][0]["content"])
    answers: list[str] = []

    async def ask(session: Session, text: str) -> None:
        answers.append(said([event async for event in session.agenerate([request(text)])]))

    async def several(session: Session, name: str) -> None:
        await asyncio.gather(*(ask(session, f"{name}{number}") for number in range(4)))

    with opened(double.base_url, n_parallel=4) as session:
        threads = [threading.Thread(target=lambda name=name: asyncio.run(several(session, name))) for name in "ab"]
        threads += [threading.Thread(target=lambda: answers.append(said(list(session.generate([request("c")])))))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == sorted([*(f"{name}{number}" for name in "ab" for number in range(4)), "c"])


def endless(hung_up: threading.Event) -> Reply:
    def reply(handler: Handler, asked: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            while True:
                handler.send_event({"choices": [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]})
                time.sleep(0.01)
        except OSError:
            hung_up.set()

    return reply


def test_closing_the_iterator_hangs_up(double: Double) -> None:
    hung_up = threading.Event()
    double.reply = endless(hung_up)
    with opened(double.base_url) as session:
        events = session.generate([request()])
        assert next(events).text == "on "
        events.close()  # type: ignore[attr-defined]
        assert hung_up.wait(10)
        hung_up.clear()

        async def one() -> None:
            answer = session.agenerate([request()])
            assert (await answer.__anext__()).text == "on "
            await answer.aclose()  # type: ignore[attr-defined]

        asyncio.run(one())
        assert hung_up.wait(10)


def test_a_deadline_ends_an_answer_where_it_is(double: Double) -> None:
    hung_up = threading.Event()
    double.reply = endless(hung_up)
    with opened(double.base_url) as session:
        events = list(session.generate([request(deadline=0.3)]))
        assert (events[-1].finish_reason, events[-1].error) == ("deadline", None)
        assert said(events).startswith("on ")
        assert hung_up.wait(10)


def test_a_deadline_holds_while_a_request_waits_for_its_turn(double: Double) -> None:
    double.reply = endless(threading.Event())
    with opened(double.base_url, n_parallel=1) as session:
        events = list(session.generate([request(id="a", deadline=0.3), request(id="b", deadline=0.2)]))
    assert {event.id: event.finish_reason for event in events if event.finish_reason} == {"a": "deadline", "b": "deadline"}
    assert said([event for event in events if event.id == "b"]) == ""


def test_closing_the_session_ends_what_is_under_way(double: Double) -> None:
    double.reply = endless(threading.Event())
    session = opened(double.base_url)
    events = session.generate([request()])
    next(events)
    session.close()
    with pytest.raises(SysscanError, match="the session was closed while the server was answering"):
        list(events)
    with pytest.raises(SysscanError, match="the session is closed; open it again"):
        session.generate([request()])
    session.close()


def test_a_session_that_nobody_holds_ends_its_thread(double: Double) -> None:
    session = opened(double.base_url)
    list(session.generate([request()]))
    assert [thread for thread in threading.enumerate() if thread.name == "sysscan-openai"]
    del session
    for thread in threading.enumerate():
        if thread.name == "sysscan-openai":
            thread.join(10)
            assert not thread.is_alive()


# What goes wrong


def test_it_is_registered_and_opens_no_connection_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert plugin_manager().get("backends", "openai") is OpenAICompatible
    with serve(backend="openai", base_url="http://127.0.0.1:9/v1") as models:
        assert ChatSysscan(models=models).model_name == "specialist"
        assert models.session("generalist").n_ctx == 0


@pytest.mark.parametrize("base_url", ["", "127.0.0.1:8080/v1", "ftp://host/v1", "http:///v1"])
def test_a_base_url_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(
        UserError, match=f"backend 'openai' has base_url {base_url!r}; expected where the server is, such as http"
    ):
        opened(base_url)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request(max_tokens=0), "max_tokens 0; expected 1 or more"),
        (request(temperature=-1.0), "temperature -1.0; expected 0"),
        (request(grammar="x", json_schema={}), "has a grammar and a JSON schema; expected one of them"),
        (GenerationRequest("r", ()), "ends with no turn to answer"),
    ],
)
def test_a_malformed_request_is_refused_before_anything_is_asked(
    double: Double, wrong: GenerationRequest, message: str
) -> None:
    async def ask(session: Session) -> None:
        async for _ in session.agenerate([wrong]):
            pass

    with opened(double.base_url) as session:
        with pytest.raises(UserError, match=message):
            session.generate([request(), wrong])
        with pytest.raises(UserError, match=message):
            asyncio.run(ask(session))
    assert not double.asked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_server_is_the_users_mistake() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with opened(url) as session:
        error = failure(session)
    assert isinstance(error, UserError)
    assert str(error).startswith(f"there is no server at {url} (")
    assert str(error).endswith("Start it, or correct the backend's `base_url`")


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, UserError, "refuses the key in the environment variable OPENAI_API_KEY (HTTP 401); set the right one"),
        (403, UserError, "refuses the key in the environment variable OPENAI_API_KEY (HTTP 403); set the right one"),
        (404, UserError, "knows no such address, or no model 'specialist': because of [API_KEY]. Check `base_url`"),
        (400, UserError, "refuses the request: because of [API_KEY]"),
        (422, UserError, "refuses the request: because of [API_KEY]"),
        (429, SysscanError, "failed (HTTP 429): because of [API_KEY]"),
        (500, SysscanError, "failed (HTTP 500): because of [API_KEY]"),
        (503, SysscanError, "failed (HTTP 503): because of [API_KEY]"),
    ],
)
def test_a_servers_refusal_is_told_without_the_key(
    double: Double, caplog: pytest.LogCaptureFixture, status: int, kind: type[Exception], message: str
) -> None:
    caplog.set_level(logging.DEBUG)
    double.reply = failing(status, f"because of {KEY}")
    with opened(double.base_url) as session:
        error = failure(session)
        assert type(error) is kind
        assert f"the server at {double.base_url} {message}" in str(error)
        assert double.headers[0]["authorization"] == f"Bearer {KEY}"
        for text in (str(error), repr(error), repr(session), caplog.text, repr(error.__cause__), repr(error.__context__)):
            assert KEY not in text


def test_a_missing_key_is_named(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    double.reply = failing(401, "who are you")
    monkeypatch.delenv("OPENAI_API_KEY")
    with opened(double.base_url, api_key_env="MY_KEY") as session:
        error = failure(session)
    assert "refuses no key, as there is none in the environment variable MY_KEY" in str(error)


def test_a_silent_server_is_not_waited_for_for_ever(double: Double) -> None:
    done = threading.Event()
    double.reply = lambda handler, asked: (done.wait(20), None)[1]
    with opened(double.base_url, timeout=0.2) as session:
        error = failure(session)
    done.set()
    assert type(error) is SysscanError
    assert f"the server at {double.base_url} said nothing for 0.2 seconds; raise the backend's `timeout`" in str(error)


def test_a_server_that_breaks_off_fails_one_request(double: Double) -> None:
    def reply(handler: Handler, asked: dict[str, Any]) -> None:
        kind = asked["messages"][0]["content"]
        if kind == "hang up":
            handler.connection.close()
        elif kind == "nothing":
            handler.send_chunks(finish=None, usage=False)
        else:
            handler.send_chunks("half", finish=None if kind == "half" else "stop", usage=False)

    double.reply = reply
    ended = {}
    with opened(double.base_url) as session:
        for event in session.generate([request(kind, id=kind) for kind in ("hang up", "nothing", "half", "whole")]):
            if event.finish_reason:
                ended[event.id] = event
    assert ended["whole"].finish_reason == "stop"
    assert {type(ended[name].error) for name in ("hang up", "nothing", "half")} == {SysscanError}
    assert f"the answer of the server at {double.base_url} broke off (" in str(ended["hang up"].error)
    for name in ("half", "nothing"):
        assert f"the server at {double.base_url} broke off its answer; its log may say why" in str(ended[name].error)


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    options = {
        "model": model_file(), "host": "127.0.0.1", "port": port,
        "n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "api_key": KEY, "interrupt_requests": False,
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        *(str(x) for key, value in options.items() for x in (f"--{key}", value)),
    ]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            wait_for(port, process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@tool
def look_up(host: str) -> str:
    """Look up who listens on a host."""
    return host


class Verdict(BaseModel):
    severity: bool


def test_a_real_server_answers(server: str) -> None:
    with serve(backend="openai", base_url=server) as models:
        chat = ChatSysscan(models=models, max_tokens=6, temperature=0.0)
        answer = chat.invoke([HumanMessage("Say hi.")])
        assert answer.content
        assert answer.response_metadata == {"model_name": "specialist", "finish_reason": "length"}
        assert answer.usage_metadata == {"input_tokens": 0, "output_tokens": 6, "total_tokens": 6}
        assert chat.invoke("Say hi.").content == answer.content
        assert "".join(str(chunk.content) for chunk in chat.stream("Say hi.")) == answer.content
        assert [found.content for found in chat.batch(["Say hi."] * 2)] == [answer.content] * 2
        assert asyncio.run(several(chat)) == [answer.content] * 2
        stop = str(answer.content)[2:4]
        assert chat.invoke("Say hi.", stop=[stop]).content == str(answer.content).partition(stop)[0]
        with pytest.raises(UserError, match="backend 'openai' cannot count tokens"):
            chat.get_num_tokens("a")


async def several(chat: ChatSysscan) -> list[Any]:
    return [found.content for found in await asyncio.gather(*(chat.ainvoke("Say hi.") for _ in range(2)))]


def test_a_real_server_keeps_to_schema_and_grammar(server: str) -> None:
    with serve(backend="openai", base_url=server) as models:
        chat = ChatSysscan(models=models, max_tokens=60)
        assert isinstance(chat.with_structured_output(Verdict).invoke("Is it bad?"), Verdict)
        assert chat.invoke("Is it bad?", grammar='root ::= "yes" | "no"').content in ("yes", "no")
        answer = chat.bind_tools([look_up], tool_choice="any").invoke("Who listens on 'web1'?")
        assert [found["name"] for found in answer.tool_calls] == ["look_up"]
        assert chat.bind_tools([look_up]).invoke("Say hi.", max_tokens=4).response_metadata["finish_reason"] == "length"


def test_a_real_server_refuses(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(backend="openai", base_url=server) as models:
        with pytest.raises(SysscanError, match=r"broke off its answer|refuses the request"):
            ChatSysscan(models=models).invoke("word " * 1500)
        with pytest.raises(UserError, match="unknown option 'min_p'"):
            ChatSysscan(models=models).invoke("a", min_p=0.1)
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    with (
        serve(backend="openai", base_url=server) as models,
        pytest.raises(UserError, match="refuses the key in the environment variable OPENAI_API_KEY"),
    ):
        ChatSysscan(models=models).invoke("Say hi.")


def test_a_graph_hears_each_token_once(double: Double) -> None:
    """The client below is a LangChain model too: its tokens must not be heard beside ours."""
    with serve(backend="openai", base_url=double.base_url) as models:
        chat = ChatSysscan(models=models)
        graph = StateGraph(MessagesState)
        graph.add_node("ask", lambda state: {"messages": [chat.invoke(state["messages"])]})
        graph.add_edge(START, "ask")
        graph.add_edge("ask", END)
        parts = graph.compile().stream({"messages": [("user", "a")]}, stream_mode="messages")
        assert [part[0].content for part in parts] == ["Hello", " there", ""]
