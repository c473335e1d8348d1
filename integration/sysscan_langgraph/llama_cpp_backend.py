"""A GGUF model served by llama.cpp in this process: conversations in, streamed answers and logits out.

Weights and context are opened once per session, and the requests of a call are answered one after the other. llama.cpp's
own functions do the work: tokenizing, decoding, sampling, grammars. The chat template is rendered by
`sysscan_models.encoding`, as in training, so the ids are those that the model was trained on, and what a document says never
becomes a control token.

It neither batches requests nor shares weights between sessions.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import orjson
from numpy.typing import NDArray

from sysscan_langgraph.grammar import grammar_of
from sysscan_langgraph.vocabulary import NO_SPACE_PREFIX, Vocabulary, metadata
from sysscan_models.encoding import ChatEncoder, choose_template
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import GenerationEvent, GenerationRequest, ModelRef, Session

if TYPE_CHECKING:
    from sysscan_langgraph.backends import LlamaCpp

PENALTY_WINDOW = 64
"""Tokens of the answer that the repeat penalty looks back on; llama.cpp's default."""
RANDOM_SEED = 0xFFFFFFFF
"""The seed that llama.cpp takes for "draw one"; it is never given."""

_errors: deque[str] = deque(maxlen=8)
_ERROR_LEVEL = 4


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, _: object) -> None:
    if level == _ERROR_LEVEL:
        _errors.append(text.decode("utf-8", "replace").strip())


class LlamaCppSession(Session):
    """An open model. One call of `generate` at a time; `close` may be called from any thread."""

    def __init__(self, model: ModelRef, options: LlamaCpp) -> None:
        self.role = model.role
        self._lock = threading.RLock()
        self._answering = False
        resources = ExitStack()
        self._finalizer = weakref.finalize(self, resources.close)
        self._finalizer.atexit = False  # the process's end frees it all
        try:
            self._weights = _load(model.base_gguf, options, resources)
            self._context = _Context(self._weights, model, options, resources)
            self._vocabulary = Vocabulary(self._weights)
            template = metadata(self._weights, "tokenizer.chat_template", "")
            chosen = choose_template(
                template,
                self._vocabulary.control_tokens,
                False,
                begins_with_bos=self._vocabulary.begins_with_bos,
            )
            self.encoder = ChatEncoder(self._vocabulary, chosen)
            self._ends = frozenset(self.encoder.end_tokens())
            self._grammar = lru_cache(maxsize=32)(partial(_compiled, self._vocabulary))
        except BaseException:
            self._finalizer()
            raise

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._context.size

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Answer the requests in their order; closing the iterator cancels what is left.

        The same request gets the same answer, whatever was asked before it, on the same processor with as many threads:
        llama.cpp divides attention by threads, which changes the last bits of the logits.

        Raises UserError, before anything is decoded, when a request is malformed or does not fit the context.
        """
        with self._step():
            plans = [self._plan(request) for request in requests]
        return self._answers(plans)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits at every position, [T, V] float32; raise UserError for more tokens than the context has."""
        ids = list(token_ids)
        if len(ids) > self.n_ctx:
            raise UserError(f"{len(ids)} tokens cannot be scored: the context has {self.n_ctx}. Raise n_ctx or send fewer")
        if wrong := [token for token in ids if not 0 <= token < self._vocabulary.size]:
            raise UserError(f"token id {wrong[0]} is not in the vocabulary of {self._vocabulary.size} tokens")
        with self._step(), self._alone():
            return self._context.score(ids, self._vocabulary.size)

    def close(self) -> None:
        """Free the model; an answer that is under way ends with SysscanError at its next step."""
        with self._lock:
            self._finalizer()

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Hold the model for one native call; without it, another thread's `close` would pull the memory away."""
        with self._lock:
            if not self._finalizer.alive:
                raise SysscanError("the session is closed; open the model again")
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._answering:
            raise SysscanError("the session is answering already; finish or close that iterator, or open a second session")
        self._answering = True
        try:
            yield
        finally:
            self._answering = False

    def _plan(self, request: GenerationRequest) -> _Plan:
        """Check a request and encode its conversation; raise UserError when it cannot be answered."""
        name, sampling = f"request {request.id!r}", self.role.sampling
        temperature = sampling.temperature if request.temperature is None else request.temperature
        max_tokens = sampling.max_tokens if request.max_tokens is None else request.max_tokens
        if not request.messages or request.messages[-1]["role"] == "assistant":
            raise UserError(f"{name} ends with no turn to answer; expected messages that end with a user turn")
        if max_tokens < 1:
            raise UserError(f"{name} has max_tokens {max_tokens}; expected 1 or more")
        if not 0 <= temperature < float("inf"):
            raise UserError(f"{name} has temperature {temperature}; expected 0 (greedy) or more")
        ids = self.encoder.prompt(request.messages)
        if len(ids) >= self.n_ctx:
            raise UserError(
                f"{name} has {len(ids)} prompt tokens and the context has {self.n_ctx}, answer included. "
                "Send less text, or raise the backend's n_ctx"
            )
        return _Plan(
            id=request.id,
            ids=ids,
            shared=self._shared_length(request.messages, ids),
            max_tokens=min(max_tokens, self.n_ctx - len(ids)),
            temperature=temperature,
            top_p=sampling.top_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=request.seed,
            stop=tuple(word for word in request.stop if word),
            grammar=self._grammar(orjson.dumps(request.json_schema).decode()) if request.json_schema is not None else "",
        )

    def _shared_length(self, messages: Sequence[Mapping[str, str]], ids: Sequence[int]) -> int:
        """Return how many ids come before the last turn's text: the same for every finding that a role is asked about.

        It depends on the request alone. A prompt is always read in these two parts, so that an answer never depends on what
        was asked before (another division would change the last bits of the logits).
        """
        bare = self.encoder.prompt([*messages[:-1], {**messages[-1], "content": ""}])
        pairs = zip(ids[:-1], bare, strict=False)
        return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(ids) - 1, len(bare)))

    def _answers(self, plans: Sequence[_Plan]) -> Iterator[GenerationEvent]:
        with self._alone():
            for plan in plans:
                yield from self._answer(plan)

    def _answer(self, plan: _Plan) -> Iterator[GenerationEvent]:
        text, finish, count = _Text(plan.stop), "", 0
        with ExitStack() as resources:
            with self._step():
                sampler = _Sampler(self._vocabulary, plan, resources)
                self._context.read(plan.ids, plan.shared)
            while True:
                with self._step():
                    token = sampler.choose(self._context.logits(self._vocabulary.size))
                    if token in self._ends or self._vocabulary.ends_turn(token):
                        finish, piece = "stop", text.rest()
                    else:
                        count += 1
                        piece, stopped = text.add(self._vocabulary.piece(token))
                        if stopped:
                            finish = "stop"
                        elif count == plan.max_tokens:
                            finish, piece = "length", piece + text.rest()
                    if not finish:
                        self._context.append(token)
                if piece or finish:
                    yield GenerationEvent(plan.id, piece, finish, len(plan.ids), count)
                if finish:
                    return


@dataclass(frozen=True)
class _Plan:
    """A checked request. `shared` ids are kept in the cache for the next one; `grammar` is empty for free text."""

    id: str
    ids: list[int]
    shared: int
    max_tokens: int
    temperature: float
    top_p: float
    repeat_penalty: float
    seed: int
    stop: tuple[str, ...]
    grammar: str


class _Text:
    """Puts an answer's bytes together: whole characters only, and nothing that may turn out to begin a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._held = stop, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is certain now, and whether a stop string ended the answer."""
        text = self._held + self._decoder.decode(piece)
        found = [place for word in self._stop if (place := text.find(word)) >= 0]
        if found:
            return text[: min(found)], True
        kept = max((_overlap(text, word) for word in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def rest(self) -> str:
        """Return what was held back; bytes of an unfinished character are dropped."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """Return the length of the longest end of the text that begins the word."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)


def _load(path: Path, options: LlamaCpp, resources: ExitStack) -> Any:
    """Load a model's weights; raise UserError when the file is missing or no model."""
    if not path.is_file():
        raise UserError(f"there is no model file {path}; give the path of a GGUF file (the first one, when it is in shards)")
    llama_cpp.llama_log_set(_listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.use_extra_bufts = not _computes_with_amx()
    overrides = (llama_cpp.llama_model_kv_override * 2)()  # the second one, empty, ends the list
    overrides[0].tag, overrides[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL, NO_SPACE_PREFIX
    overrides[0].value.val_bool = False
    params.kv_overrides = overrides
    _errors.clear()
    weights = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not weights:
        raise UserError(f"llama.cpp cannot load {path}: {_reason()}. Check that the file is a whole GGUF model")
    resources.callback(llama_cpp.llama_model_free, weights)
    return weights


def _computes_with_amx() -> bool:
    """Say whether llama.cpp would move weights into its AMX buffers, whose matrix product ends the process with SIGSEGV.

    Seen with 0.3.36 on Q4_1 and reported as ggml-org/llama.cpp#20824, without a fix. Elsewhere the buffers make prompts faster.
    """
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def _reason() -> str:
    return "; ".join(dict.fromkeys(_errors)) or "it gave no reason"


class _Context:
    """The KV cache of one sequence, and the decoding into it."""

    def __init__(self, weights: Any, model: ModelRef, options: LlamaCpp, resources: ExitStack) -> None:
        trained: int = llama_cpp.llama_model_n_ctx_train(weights)
        self.size = options.n_ctx or min(model.role.context_length, trained or model.role.context_length)
        threads = options.threads or _cores()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.size, options.n_batch, min(options.n_batch, 512)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        _errors.clear()
        self._pointer = llama_cpp.llama_init_from_model(weights, params)
        if not self._pointer:
            raise UserError(
                f"llama.cpp cannot open a context of {self.size} tokens for {model.base_gguf}: {_reason()}. Lower n_ctx"
            )
        resources.callback(llama_cpp.llama_free, self._pointer)
        if model.adapter_gguf:
            _adapt(self._pointer, weights, model.adapter_gguf)
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._room = options.n_batch
        self._batch = llama_cpp.llama_batch_init(self._room, 0, 1)
        resources.callback(llama_cpp.llama_batch_free, self._batch)
        self._shared: list[int] = []
        self._length = 0

    def read(self, ids: Sequence[int], shared: int) -> None:
        """Read a prompt; its first `shared` ids are taken from the cache when the prompt before began with the same ones."""
        begins = list(ids[:shared])
        kept = begins == self._shared and llama_cpp.llama_memory_seq_rm(self._memory, 0, shared, -1)
        if kept:
            self._length = shared
        else:
            self._forget()
            self._decode(begins)
            self._shared = begins
        self._decode(ids[shared:])

    def append(self, token: int) -> None:
        """Add one token to the sequence."""
        self._decode([token])

    def logits(self, vocabulary: int) -> NDArray[np.float32]:
        """Return the logits after the last token, [V]: llama.cpp's own memory, valid until the next decoding."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._pointer, -1), shape=(vocabulary,))

    def score(self, ids: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
        """Return the logits at every position of a sequence of its own, [T, V]."""
        scores = np.empty((len(ids), vocabulary), dtype=np.float32)
        self._forget()
        for start in range(0, len(ids), self._room):
            piece = ids[start : start + self._room]
            self._decode(piece, every=True)
            rows = llama_cpp.llama_get_logits(self._pointer)
            scores[start : start + len(piece)] = np.ctypeslib.as_array(rows, shape=(len(piece), vocabulary))
        self._forget()
        return scores

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)
        self._shared, self._length = [], 0

    def _decode(self, ids: Sequence[int], *, every: bool = False) -> None:
        """Decode ids at the end of the sequence; logits are kept for the last of them, or for `every` one."""
        for start in range(0, len(ids), self._room):
            piece = ids[start : start + self._room]
            batch = self._batch
            batch.n_tokens = len(piece)
            for place, token in enumerate(piece):
                batch.token[place], batch.pos[place] = token, self._length + place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = every or place == len(piece) - 1
            _errors.clear()
            code = llama_cpp.llama_decode(self._pointer, batch)
            if code:
                self._forget()
                raise SysscanError(f"llama.cpp failed to decode {len(piece)} tokens (code {code}): {_reason()}")
            self._length += len(piece)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _adapt(context: Any, weights: Any, path: Path) -> None:
    """Apply a LoRA adapter to a context; llama.cpp frees it with the weights. Raises UserError when it does not fit them."""
    if not path.is_file():
        raise UserError(f"there is no adapter file {path}")
    _errors.clear()
    adapter = llama_cpp.llama_adapter_lora_init(weights, os.fsencode(path))
    if not adapter:
        raise UserError(f"llama.cpp cannot load the adapter {path}: {_reason()}. Check that it belongs to this base model")
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    if code := llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise UserError(f"llama.cpp cannot apply the adapter {path} (code {code}): {_reason()}")


class _Sampler:
    """Chooses the tokens of one answer with llama.cpp's samplers, within a grammar if there is one.

    The grammar is asked about the one token that was sampled, and applied to the whole vocabulary only where it refuses that
    token, as llama.cpp's own programs do: a hundred times as cheap.
    """

    def __init__(self, vocabulary: Vocabulary, plan: _Plan, resources: ExitStack) -> None:
        self._vocabulary = vocabulary
        self._likeliest = plan.temperature == 0 and plan.repeat_penalty == 1
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        resources.callback(llama_cpp.llama_sampler_free, self._chain)
        parts = []
        if plan.repeat_penalty != 1:
            penalties = (PENALTY_WINDOW, plan.repeat_penalty, 0.0, 0.0)
            parts.append(llama_cpp.llama_sampler_init_penalties(vocabulary.size, *penalties))
        if plan.temperature == 0:
            parts.append(llama_cpp.llama_sampler_init_greedy())
        else:
            parts.append(llama_cpp.llama_sampler_init_top_p(plan.top_p, 1))
            parts.append(llama_cpp.llama_sampler_init_temp(plan.temperature))
            parts.append(llama_cpp.llama_sampler_init_dist(plan.seed % RANDOM_SEED))
        for part in parts:
            llama_cpp.llama_sampler_chain_add(self._chain, part)
        self._grammar = _grammar_sampler(vocabulary, plan.grammar, resources) if plan.grammar else None
        self._candidates = (llama_cpp.llama_token_data * vocabulary.size)()
        self._table = np.ctypeslib.as_array(self._candidates)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next token; raise SysscanError when the logits are not finite or the grammar allows none."""
        if not np.isfinite(logits.max()):
            raise SysscanError("the model's logits are not finite; its weights are damaged, or they overflow on this machine")
        token = self._sample(logits, masked=False)
        if self._grammar is None:
            llama_cpp.llama_sampler_accept(self._chain, token)
            return token
        if not self._allowed(token):
            token = self._sample(logits, masked=True)
            if not self._allowed(token):  # to accept such a token would abort the process
                raise SysscanError("the grammar of the JSON schema allows none of the model's tokens here")
        llama_cpp.llama_sampler_accept(self._chain, token)
        if not self._vocabulary.ends_turn(token):
            llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _sample(self, logits: NDArray[np.float32], *, masked: bool) -> int:
        if self._likeliest and not masked:
            return int(logits.argmax())
        self._table["id"], self._table["logit"], self._table["p"] = np.arange(len(logits)), logits, 0
        array = llama_cpp.llama_token_data_array(self._candidates, len(logits), -1, False)
        if masked:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        single = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 1.0, 0.0))
        array = llama_cpp.llama_token_data_array(single, 1, -1, False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(np.isfinite(single[0].logit))


def _compiled(vocabulary: Vocabulary, schema: str) -> str:
    """Return a JSON schema as a grammar that llama.cpp accepts; raise UserError when there is none."""
    grammar = grammar_of(orjson.loads(schema))
    with ExitStack() as resources:
        _grammar_sampler(vocabulary, grammar, resources)
    return grammar


def _grammar_sampler(vocabulary: Vocabulary, grammar: str, resources: ExitStack) -> Any:
    _errors.clear()
    sampler = llama_cpp.llama_sampler_init_grammar(vocabulary.pointer, grammar.encode(), b"root")
    if not sampler:  # a NULL pointer object, not None
        raise UserError(f"llama.cpp refuses the grammar of the JSON schema: {_reason()}")
    resources.callback(llama_cpp.llama_sampler_free, sampler)
    return sampler
