"""A model behind a server with OpenAI's interface: llama-server, `python -m llama_cpp.server`, vLLM.

langchain-openai asks; here the requests of all threads and event loops meet in one event loop of their own, at most
`n_parallel` at once, and every failure becomes an error that says what to do. No connection is made before the first request.

The server renders the chat template, so it decides what is a control token; what looks like one in a turn's text is defused
before it is sent. It does not count tokens, and `shorten` means nothing here: what does not fit is the server's refusal.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import openai
from langchain_core.messages import AIMessageChunk, convert_to_messages
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, ModelRef, Session
from sysscan_models.prompts import redact

if TYPE_CHECKING:
    from sysscan_langgraph.backends import OpenAICompatible

GRAMMAR_SERVERS = {"llamacpp": "llama-server", "me": "llama_cpp.server"}
"""How servers that take llama.cpp's grammars sign their list of models."""

_REFUSALS = (400, 422, 500)
"""Statuses with which servers refuse a form of `response_format` that they do not know; llama_cpp.server's is 500."""
_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")
_BAR = r"[|\uff5c]"
_CONTROL = re.compile(
    rf"([<\[])(?={_BAR}[^<>|\uff5c]{{1,64}}{_BAR}>|/?(?:INST\]|s>|SYS>)|(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>)"
)
"""What the usual templates' markers look like; a space after the first character makes plain text of them."""
_LONGEST_MESSAGE = 500

_Put = Callable[["GenerationEvent | None"], None]


class OpenAISession(Session):
    """A server that is asked. Any number of threads and event loops may share it."""

    takes_grammar = False
    """Not every server does, so nobody should ask for one who can do without."""

    def __init__(self, model: ModelRef, options: OpenAICompatible) -> None:
        if not re.match(r"https?://[^/\s]", options.base_url):
            raise UserError(
                f"backend 'openai' has base_url {redact(options.base_url)!r}; expected where the server is, such as "
                "http://127.0.0.1:8080/v1"
            )
        self._role, self._options = model.role, options
        self._model = options.model or model.role.name
        self._key = os.environ.get(options.api_key_env, "")
        self._lock = threading.Lock()
        self._closed = False
        self._loop: _Loop | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._schema_form = 0
        self._signed: str | None = None

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Answer many requests at once; closing the iterator cancels what is left. Raises UserError for a malformed one."""
        for request in requests:
            self._check(request)
        return self._generate(requests, self._running())

    async def agenerate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[GenerationEvent]:
        """Do the same without blocking the event loop, and without a thread for each call."""
        for request in requests:
            self._check(request)
        caller, events = asyncio.get_running_loop(), asyncio.Queue[GenerationEvent | None]()

        def put(event: GenerationEvent | None) -> None:
            with suppress(RuntimeError):  # the loop is gone, and nobody listens
                caller.call_soon_threadsafe(events.put_nowait, event)

        asked, left = self._running().submit(self._answers(requests, put)), len(requests)
        try:
            while left:
                event = self._there(await events.get())
                left -= bool(event.finish_reason)
                yield event
        finally:
            asked.cancel()

    def close(self) -> None:
        """End what is under way with SysscanError, and close the connections."""
        with self._lock:
            self._closed = True
            finalizer, self._finalizer, self._loop = self._finalizer, None, None
        if finalizer:
            finalizer()

    def _generate(self, requests: Sequence[GenerationRequest], loop: _Loop) -> Iterator[GenerationEvent]:
        events: queue.SimpleQueue[GenerationEvent | None] = queue.SimpleQueue()
        asked, left = loop.submit(self._answers(requests, events.put)), len(requests)
        try:
            while left:
                event = self._there(events.get())
                left -= bool(event.finish_reason)
                yield event
        finally:
            asked.cancel()

    def _there(self, event: GenerationEvent | None) -> GenerationEvent:
        if event is None:
            raise SysscanError("the session was closed while the server was answering; open it again")
        return event

    def _running(self) -> _Loop:
        """Return the loop that asks, started when it is first needed."""
        with self._lock:
            if self._closed:
                raise SysscanError("the session is closed; open it again")
            if self._loop is None:
                self._loop = _Loop(self._options, self._model, self._key)
                self._finalizer = weakref.finalize(self, self._loop.close)
            return self._loop

    def _check(self, request: GenerationRequest) -> None:
        name = f"request {request.id!r}"
        if not request.messages or request.messages[-1]["role"] == "assistant":
            raise UserError(f"{name} ends with no turn to answer; expected messages that end with a user turn")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UserError(f"{name} has max_tokens {request.max_tokens}; expected 1 or more")
        if request.temperature is not None and not 0 <= request.temperature < float("inf"):
            raise UserError(f"{name} has temperature {request.temperature}; expected 0 (greedy) or more")
        if request.grammar and request.json_schema is not None:
            raise UserError(f"{name} has a grammar and a JSON schema; expected one of them")

    # In the loop

    async def _answers(self, requests: Sequence[GenerationRequest], put: _Put) -> None:
        started = time.monotonic()
        try:
            await asyncio.gather(*(self._answer(request, put, started) for request in requests))
        finally:
            put(None)

    async def _answer(self, request: GenerationRequest, put: _Put, started: float) -> None:
        """Ask for one answer within its deadline; whatever goes wrong is an event."""
        progress = _Progress(request, put)
        left = None if request.deadline is None else max(0.0, request.deadline - (time.monotonic() - started))
        asking = asyncio.ensure_future(self._ask(request, progress))
        try:
            done, _ = await asyncio.wait([asking], timeout=left)
            if not done:
                progress.end("deadline")
            else:
                asking.result()
        except Exception as error:  # noqa: BLE001 - the other requests go on
            progress.end("error", self._explained(error))
        finally:
            asking.cancel()
            await asyncio.wait([asking])  # not `await asking`: cancelled twice, the HTTP client would leave the connection open
            if not asking.cancelled():
                asking.exception()  # it has been told, or came too late

    async def _ask(self, request: GenerationRequest, progress: _Progress) -> None:
        loop = self._running()
        async with loop.slots:
            grammar = await self._grammar(request, loop.client)
            for form in range(self._schema_form, len(_SCHEMA_FORMS)):
                try:
                    await self._stream(request, loop.client, progress, {**grammar, **_schema(request, form)})
                except openai.APIStatusError as error:
                    if form + 1 == len(_SCHEMA_FORMS) or not _refuses_schema(request, error):
                        raise
                    self._schema_form = form + 1  # and never that form again
                else:
                    return

    async def _stream(
        self, request: GenerationRequest, client: ChatOpenAI, progress: _Progress, constraint: Mapping[str, Any]
    ) -> None:
        sampling = self._role.sampling
        body: dict[str, Any] = {"max_tokens": request.max_tokens or sampling.max_tokens, **constraint}
        if sampling.repeat_penalty != 1:
            body["repeat_penalty"] = sampling.repeat_penalty
        turns = [(turn["role"], _CONTROL.sub(r"\1 ", turn["content"])) for turn in request.messages]
        chunks = (
            client._astream(  # `astream` would trace a second model, and leave a cancelled stream open until it is collected
                convert_to_messages(turns),
                stop=[word for word in request.stop if word] or None,
                temperature=sampling.temperature if request.temperature is None else request.temperature,
                top_p=sampling.top_p if request.top_p is None else request.top_p,
                seed=request.seed,
                extra_body=body,
            )
        )
        async with aclosing(cast(AsyncGenerator[ChatGenerationChunk, None], chunks)):
            async for chunk in chunks:
                progress.add(chunk)
        if not progress.reason:
            raise SysscanError(
                f"the server at {self._where} broke off its answer; its log may say why. llama_cpp.server does that to an "
                "answer when another request comes in, unless it is started with --interrupt_requests false"
            )
        progress.end("length" if progress.reason == "length" else "stop")

    async def _grammar(self, request: GenerationRequest, client: ChatOpenAI) -> dict[str, str]:
        """Return the field that constrains to a grammar; raise UserError for a server that would ignore it."""
        if not request.grammar:
            return {}
        if self._signed is None:
            listed = [model async for model in client.root_async_client.models.list()]
            self._signed = listed[0].owned_by if listed else ""
        if self._signed not in GRAMMAR_SERVERS:
            raise UserError(
                f"the server at {self._where} is not known to take llama.cpp's grammars: its models are signed "
                f"{self._signed!r}, expected those of {' or '.join(GRAMMAR_SERVERS.values())}. Use json_schema"
            )
        return {"grammar": request.grammar}

    # Errors

    @property
    def _where(self) -> str:
        return redact(self._options.base_url)

    def _explained(self, error: Exception) -> SysscanError:
        """Return what a failure means to the user, without the API key."""
        if isinstance(error, SysscanError):
            return error
        said, where, kinds = self._scrubbed(error), self._where, _kinds(error)
        if isinstance(error, (openai.APITimeoutError, TimeoutError)) or "ReadTimeout" in kinds:
            seconds = f"{self._options.timeout:g} seconds"
            return SysscanError(f"the server at {where} said nothing for {seconds}; raise the backend's `timeout`, or ask less")
        if kinds & {*_NO_CONNECTION}:
            return UserError(f"there is no server at {where} ({said}). Start it, or correct the backend's `base_url`")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            found = "the key in" if self._key else "no key, as there is none in"
            variable = f"the environment variable {self._options.api_key_env}"
            return UserError(f"the server at {where} refuses {found} {variable} (HTTP {error.status_code}); set the right one")
        if isinstance(error, openai.NotFoundError):
            missing = f"no such address, or no model {self._model!r}"
            return UserError(
                f"the server at {where} knows {missing}: {said}. Check `base_url`, which usually ends in /v1, and `model`"
            )
        if isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
            return UserError(f"the server at {where} refuses the request: {said}")
        if isinstance(error, openai.APIStatusError):
            return SysscanError(f"the server at {where} failed (HTTP {error.status_code}): {said}")
        return SysscanError(f"the answer of the server at {where} broke off ({type(error).__name__}): {said}")

    def _scrubbed(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        told = body.get("message") if isinstance(body, Mapping) else None
        text = redact(str(told or error.__cause__ or error))
        text = text.replace(self._key, "[API_KEY]") if self._key else text
        return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " [...]"


class _Loop:
    """An event loop in a thread, and the client that lives in it. It knows no session, so that a forgotten one is collected."""

    def __init__(self, options: OpenAICompatible, model: str, key: str) -> None:
        extra = {"stream_chunk_timeout": None} if "stream_chunk_timeout" in ChatOpenAI.model_fields else {}
        self._connections = openai.DefaultAsyncHttpxClient()
        self.client = ChatOpenAI(
            base_url=options.base_url,
            model=model,
            api_key=SecretStr(key or "none"),
            timeout=options.timeout,
            max_retries=1,
            stream_usage=True,
            http_async_client=self._connections,
            **extra,
        )
        self.slots = asyncio.Semaphore(options.n_parallel)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sysscan-openai", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Run a coroutine in the loop; raise SysscanError when it is closed."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise SysscanError("the session is closed; open it again") from error

    def close(self) -> None:
        """Cancel what is under way, close the connections, end the thread."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:  # a session may be collected in this very thread
            self._thread.join(timeout=5)

    def _run(self) -> None:
        self._loop.run_forever()
        with suppress(Exception):
            self._loop.run_until_complete(self._wind_up())
        self._loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.aclose()


class _Progress:
    """Turns chunks into events. A server that does not count gets one token for each piece of text, and no prompt."""

    def __init__(self, request: GenerationRequest, put: _Put) -> None:
        self._id, self._put = request.id, put
        self._prompt, self._count = 0, 0
        self.reason = ""

    def add(self, chunk: ChatGenerationChunk) -> None:
        self.reason = (chunk.generation_info or {}).get("finish_reason") or self.reason
        message = cast(AIMessageChunk, chunk.message)
        if usage := message.usage_metadata:
            self._prompt, self._count = usage["input_tokens"], usage["output_tokens"]
        if message.content:
            self._count += not usage
            self._put(GenerationEvent(self._id, str(message.content), "", self._prompt, self._count))

    def end(self, reason: str, error: Exception | None = None) -> None:
        self._put(GenerationEvent(self._id, "", reason, self._prompt, self._count, error))


_SCHEMA_FORMS: tuple[Callable[[Mapping[str, Any]], dict[str, Any]], ...] = (
    lambda schema: {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}},
    lambda schema: {"type": "json_object", "schema": dict(schema)},
)
"""How a server may want to be told a schema: as OpenAI and vLLM do, and as llama_cpp.server does."""


def _schema(request: GenerationRequest, form: int) -> dict[str, Any]:
    return {} if request.json_schema is None else {"response_format": _SCHEMA_FORMS[form](request.json_schema)}


def _refuses_schema(request: GenerationRequest, error: openai.APIStatusError) -> bool:
    said = json.dumps(error.body, default=str) + str(error)
    concerned = request.json_schema is not None and ("response_format" in said or "json_schema" in said)
    return concerned and error.status_code in _REFUSALS


def _kinds(error: BaseException | None) -> set[str]:
    """Return the names of an error's types and of what caused it; the HTTP library's name differs between versions."""
    names: set[str] = set()
    while error is not None:
        names |= {kind.__name__ for kind in type(error).__mro__}
        error = error.__cause__ or error.__context__
    return names
