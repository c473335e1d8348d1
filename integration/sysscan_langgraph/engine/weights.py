"""Weights of models: loaded once per GGUF file in a process, shared by all contexts on them, freed with the last one.

With them goes what depends on the file alone: the vocabulary, the chat template's encoder, LoRA adapters, checked grammars.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import llama_cpp
import orjson

from sysscan_langgraph.engine import log
from sysscan_langgraph.grammar import encoded_grammar, grammar_of
from sysscan_langgraph.vocabulary import NO_SPACE_PREFIX, Vocabulary, metadata
from sysscan_models.encoding import ChatEncoder, choose_template
from sysscan_models.errors import UserError

_Key = tuple[str, int, int, int]
_loaded: dict[_Key, Weights] = {}
_lock = threading.RLock()


class Weights:
    """An open GGUF file. `open_weights` gives them out, `release` gives them back."""

    def __init__(self, path: Path, n_gpu_layers: int, key: _Key) -> None:
        self.path, self.key, self.holders = path, key, 0
        self._resources = ExitStack()
        try:
            self.pointer = _load(path, n_gpu_layers, self._resources)
            self.vocabulary = Vocabulary(self.pointer)
            existing = metadata(self.pointer, "tokenizer.chat_template", "")
            bos = self.vocabulary.begins_with_bos
            template = choose_template(existing, self.vocabulary.control_tokens, False, begins_with_bos=bos)
            self.encoder = ChatEncoder(self.vocabulary, template)
        except BaseException:
            self._resources.close()
            raise
        self.byte_tokens = _byte_tokens(self.vocabulary)
        """The tokens that are one byte, by byte."""
        self.ends = frozenset(self.encoder.end_tokens())
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self.pointer)
        self.size: int = llama_cpp.llama_model_size(self.pointer)
        self._adapters: dict[tuple[str, int], Any] = {}
        self.grammar_of_schema = lru_cache(maxsize=64)(self._grammar_of_schema)
        self.checked_grammar = lru_cache(maxsize=64)(self._checked_grammar)

    @property
    def cell_size(self) -> int:
        """Bytes that a token takes in a KV cache of 16-bit floats."""
        model = self.pointer
        width = llama_cpp.llama_model_n_embd(model) // max(1, llama_cpp.llama_model_n_head(model))
        return int(4 * llama_cpp.llama_model_n_layer(model) * llama_cpp.llama_model_n_head_kv(model) * width)

    def adapter(self, path: Path) -> Any:
        """Return a LoRA adapter for these weights, which is freed with them; raise UserError when it does not fit them."""
        if not path.is_file():
            raise UserError(f"there is no adapter file {path}")
        key = (str(path.resolve()), path.stat().st_mtime_ns)
        with _lock:
            if key not in self._adapters:
                log.forget()
                adapter = llama_cpp.llama_adapter_lora_init(self.pointer, os.fsencode(path))
                if not adapter:
                    raise UserError(
                        f"llama.cpp cannot load the adapter {path}: {log.reason()}. Check that it belongs to this base model"
                    )
                self._adapters[key] = adapter
            return self._adapters[key]

    def release(self) -> None:
        """Give the weights back; the last one frees them."""
        with _lock:
            self.holders -= 1
            if not self.holders:
                _loaded.pop(self.key, None)
                self._resources.close()

    def _grammar_of_schema(self, schema: str) -> str:
        return self._compiled(grammar_of(orjson.loads(schema)), "the grammar of the JSON schema", of_schema=True)

    def _checked_grammar(self, grammar: str) -> str:
        return self._compiled(grammar, "the grammar")

    def _compiled(self, grammar: str, what: str, *, of_schema: bool = False) -> str:
        """Return a grammar that llama.cpp accepts; raise UserError when it does not."""
        text = encoded_grammar(grammar, what, of_schema=of_schema)
        log.forget()
        sampler = llama_cpp.llama_sampler_init_grammar(self.vocabulary.pointer, text, b"root")
        if not sampler:  # a NULL pointer object, not None
            raise UserError(f"llama.cpp refuses {what}: {log.reason()}")
        llama_cpp.llama_sampler_free(sampler)
        return grammar


def _byte_tokens(vocabulary: Vocabulary) -> dict[int, int]:
    control, tokens = frozenset(vocabulary.control_tokens.values()), dict[int, int]()
    for token in range(vocabulary.size):
        if token not in control and len(piece := vocabulary.piece(token)) == 1:
            tokens.setdefault(piece[0], token)
    return tokens


def open_weights(path: Path, n_gpu_layers: int) -> Weights:
    """Return the weights of a file, loaded if nobody has them open; raise UserError when it is missing or no model."""
    if not path.is_file():
        raise UserError(f"there is no model file {path}; give the path of a GGUF file (the first one, when it is in shards)")
    found = path.stat()
    key = (str(path.resolve()), found.st_mtime_ns, found.st_size, n_gpu_layers)
    with _lock:
        if key not in _loaded:
            _loaded[key] = Weights(path, n_gpu_layers, key)
        _loaded[key].holders += 1
        return _loaded[key]


def forget_all() -> None:
    """Forget what is loaded, without freeing it: a forked child owns none of it."""
    global _lock
    _lock = threading.RLock()
    _loaded.clear()


def _load(path: Path, n_gpu_layers: int, resources: ExitStack) -> Any:
    log.listen()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    params.use_extra_bufts = not _computes_with_amx()
    overrides = (llama_cpp.llama_model_kv_override * 2)()  # the second one, empty, ends the list
    overrides[0].tag, overrides[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL, NO_SPACE_PREFIX
    overrides[0].value.val_bool = False
    params.kv_overrides = overrides
    log.forget()
    pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not pointer:
        raise UserError(f"llama.cpp cannot load {path}: {log.reason()}. Check that the file is a whole GGUF model")
    resources.callback(llama_cpp.llama_model_free, pointer)
    return pointer


def _computes_with_amx() -> bool:
    """Say whether llama.cpp would move weights into its AMX buffers, whose matrix product ends the process with SIGSEGV.

    Seen with 0.3.36 on Q4_1 and reported as ggml-org/llama.cpp#20824, without a fix. Elsewhere the buffers make prompts faster.
    """
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
