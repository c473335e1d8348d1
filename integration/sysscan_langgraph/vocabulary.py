"""A GGUF model's vocabulary, seen as the tokenizer that `sysscan_models.encoding` asks for.

llama.cpp tokenizes; this module only takes from it the two things that it would do on its own and that change ids: the space
that SentencePiece vocabularies put in front of a text (the caller says what the text follows, so it is put there here, and
models are loaded with NO_SPACE_PREFIX), and user-defined tokens, which llama.cpp recognises even in plain text. It opens no
files.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Any

import llama_cpp

from sysscan_models.encoding import Follows, Tokens

NO_SPACE_PREFIX = b"tokenizer.ggml.add_space_prefix"
"""Metadata that a model must be loaded with as `false`, whatever its file says."""
SPACE_PREFIX = "sysscan.tokenizer.space_prefix"
"""Metadata that says how the tokenizer of Hugging Face, which training used, puts that space: `first` (in front of a text that
begins a sequence), `always` (after control tokens too), both unless a space is there already; `prepend` (as `always`, even
before a space), which is llama.cpp's own habit and holds where a file does not say."""

_NO_TEXT = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED


class Vocabulary:
    """The tokens of a loaded model; valid while the model is. Satisfies `encoding.TextTokenizer`."""

    def __init__(self, model: Any) -> None:
        self.pointer = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self.pointer)
        self.bos_token = self._spelling(llama_cpp.llama_vocab_bos(self.pointer))
        self.eos_token = self._spelling(llama_cpp.llama_vocab_eos(self.pointer))
        self.begins_with_bos: bool = llama_cpp.llama_vocab_get_add_bos(self.pointer)
        ends = {llama_cpp.llama_vocab_bos(self.pointer), llama_cpp.llama_vocab_eos(self.pointer)}
        attributes = {token: llama_cpp.llama_vocab_get_attr(self.pointer, token) for token in range(self.size)}
        control = [token for token, attribute in attributes.items() if attribute & _NO_TEXT or token in ends]
        self.control_tokens: Mapping[str, int] = {self._spelling(token): token for token in control}
        self._recognised = _occurrences(
            self._spelling(token)
            for token, attribute in attributes.items()
            if attribute & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        )
        sentencepiece = llama_cpp.llama_vocab_type(self.pointer) == llama_cpp.LLAMA_VOCAB_TYPE_SPM
        spaced = sentencepiece and metadata(model, NO_SPACE_PREFIX.decode(), "true") == "true"
        self._space_prefix = metadata(model, SPACE_PREFIX, "prepend") if spaced else ""

    def encode_text(self, text: str, follows: Follows) -> Tokens:
        """Tokenize plain text; a spelling of a control token in it is text like any other.

        A text that spells a user-defined token is tokenized in two parts, cut inside the spelling.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        cuts = [match.start() + 1 for match in self._recognised.finditer(text)] if self._recognised else []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part = text[start:end]
            prefix = " " if not start and self._takes_space(part, follows) else ""
            tokens = self._tokenize(prefix + part)
            ids += tokens
            spans += [(a + start, b + start) for a, b in self._spans(part, tokens, shift=len(prefix))]
        return ids, spans

    def piece(self, token: int) -> bytes:
        """Return a token's bytes, which may be a part of a character; none for a control token."""
        return self._bytes(token, special=False)

    def ends_turn(self, token: int) -> bool:
        """Say whether llama.cpp takes the token for the end of a turn or text."""
        return bool(llama_cpp.llama_vocab_is_eog(self.pointer, token))

    def _takes_space(self, text: str, follows: Follows) -> bool:
        if not self._space_prefix or not text or follows == "text":
            return False
        if self._space_prefix == "prepend":
            return True
        return not text.startswith((" ", "\u2581")) and (follows == "start" or self._space_prefix == "always")

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 2
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.pointer, data, len(data), tokens, room, False, False)
        return list(tokens[:count])

    def _spans(self, text: str, tokens: list[int], *, shift: int) -> list[tuple[int, int]]:
        """Return the characters that each token stands for; tokens that share a character both get it."""
        characters = [place for place, character in enumerate(text) for _ in character.encode("utf-8", "replace")]
        ends = list(accumulate((len(self._bytes(token, special=True)) for token in tokens), initial=0))
        spans = []
        for first, last in pairwise(ends):
            first, last = max(0, first - shift), max(0, last - shift)
            start = characters[first] if first < len(characters) else len(text)
            end = characters[min(last, len(characters)) - 1] + 1 if last > 0 and characters else start
            spans.append((start, max(start, end)))
        return spans

    def _spelling(self, token: int) -> str:
        return self._bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _bytes(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = (ctypes.c_char * room)()
            count = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


def _occurrences(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds every place where one of the spellings begins, overlapping ones too; None when there are none."""
    found = sorted(spelling for spelling in spellings if len(spelling) > 1)
    return re.compile(f"(?={'|'.join(map(re.escape, found))})") if found else None


def metadata(model: Any, key: str, default: str) -> str:
    """Return a metadata value of a loaded model's file as text, or the default when it is absent."""
    size = llama_cpp.llama_model_meta_val_str(model, key.encode(), None, 0)
    if size < 0:
        return default
    buffer = (ctypes.c_char * (size + 1))()
    llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return bytes(buffer.value).decode("utf-8", "replace")
