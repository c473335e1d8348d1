"""From a tokenizer on disk to the vocabulary of a GGUF file: tokens, types, scores or merges, special ids, chat template.

Two kinds are known to llama.cpp's `llama` architecture and to us: byte-level BPE, whose way of splitting text must be one that
llama.cpp implements (it is recognised by its rules in tokenizer.json, never guessed), and SentencePiece BPE with byte fallback,
from tokenizer.json or, where there is none, from tokenizer.model. What llama.cpp would tokenize differently is refused.
Whether both sides really agree is for parity.py to try out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.gguf_export.checkpoint import read_json

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((f"split {_LLAMA3_SPLIT}", "bytes"), True): "llama-bpe",
    ((f"split {_LLAMA3_SPLIT}", "bytes"), False): "smaug-bpe",
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
}
"""llama.cpp's name for each way to split text: the steps of tokenizer.json, and whether whole words skip the merges."""

_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
SPACE_PREFIX_KEY = "sysscan.tokenizer.space_prefix"
"""Our own metadata: `Vocabulary.space_prefix`, for a loader that takes more care than llama.cpp."""

_SPACE = "\u2581"
_UNREACHED = -1e6  # score of a piece that no merge makes; below every rank


@dataclass(frozen=True)
class Token:
    """One entry: its text as llama.cpp holds it, type, and score (SentencePiece only)."""

    text: str
    kind: TokenType = TokenType.NORMAL
    score: float = 0.0


@dataclass(frozen=True)
class Vocabulary:
    """Everything about the tokenizer that a GGUF file states."""

    model: str
    """`gpt2` for byte-level BPE, `llama` for SentencePiece."""
    pre: str
    """llama.cpp's name of the way text is split before BPE; `default` for SentencePiece."""
    tokens: tuple[Token, ...]
    merges: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    """Id of each special token, by `bos`, `eos`, `eot`, `eom`, `pad`, `unk`."""
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: str = ""
    """Where the tokenizer puts a space before text: `first` (text that begins a sequence) or `always` (after control tokens
    too), both unless one is there already; `prepend` (as `always`, even before a space: all that llama.cpp does); or empty."""
    chat_template: str = ""

    @classmethod
    def of(cls, path: Path, vocab_size: int | None = None) -> Vocabulary:
        """Read the tokenizer of a model folder; rows that it does not name up to `vocab_size` become unused padding tokens.

        Raises UserError when there is no tokenizer, when it is of a kind that llama.cpp cannot follow, and when it has more
        tokens than the model has rows.
        """
        if (path / "tokenizer.json").is_file():
            definition = read_json(path / "tokenizer.json")
            found = _byte_level(definition) if _is_byte_level(definition) else _sentencepiece_json(definition)
            added = definition.get("added_tokens") or []
        elif (path / "tokenizer.model").is_file():
            found, added, definition = _sentencepiece_model(path / "tokenizer.model"), _added_to_slow(path), {}
        else:
            raise UserError(
                f"{path} has no tokenizer.json and no tokenizer.model; save the base model's tokenizer beside its weights"
            )
        template = _chat_template(path)
        named = _with_added({index: token for index, token in enumerate(found.tokens) if token.text}, added, template)
        found = replace(found, tokens=_padded(path, named, vocab_size), chat_template=template)
        return _with_special_ids(found, path, definition)

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the vocabulary to a GGUF file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([token.text for token in self.tokens])
        if self.model == "llama":
            writer.add_token_scores([token.score for token in self.tokens])
            writer.add_add_space_prefix(bool(self.space_prefix))
            writer.add_string(SPACE_PREFIX_KEY, self.space_prefix)
        writer.add_token_types([int(token.kind) for token in self.tokens])
        if self.merges:
            writer.add_token_merges(list(self.merges))
        for name, token_id in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)

    @property
    def control_texts(self) -> list[str]:
        """Texts of the tokens that only a template may produce."""
        return [token.text for token in self.tokens if token.kind == TokenType.CONTROL]


def _is_byte_level(definition: Mapping[str, Any]) -> bool:
    model = definition.get("model") or {}
    if model.get("type") != "BPE":
        raise UserError(
            f"tokenizer.json holds a {model.get('type')} model; supported are BPE, byte-level or with byte fallback"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"tokenizer.json has {key} = {model[key]!r}, which llama.cpp does not do; supported is none")
    return not model.get("byte_fallback")


def _byte_level(definition: Mapping[str, Any]) -> Vocabulary:
    model = definition["model"]
    if _steps(definition.get("normalizer"), "normalizers"):
        raise UserError(
            f"tokenizer.json has the normalizer {_types(definition['normalizer'])}; llama.cpp normalizes no text for BPE"
        )
    steps = tuple(_split_step(step) for step in _steps(definition.get("pre_tokenizer"), "pretokenizers"))
    pre = _SPLITS.get((steps, bool(model.get("ignore_merges"))))
    if pre is None:
        raise UserError(
            f"tokenizer.json splits text by {' then '.join(steps) or 'nothing'}"
            f"{', whole words first' if model.get('ignore_merges') else ''}, which is not one of the ways that can be "
            f"exported: {', '.join(sorted(_SPLITS.values()))}. As another it would read text differently from its training"
        )
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    if any(merge.count(" ") != 1 for merge in merges):
        raise UserError("tokenizer.json has merges of parts with spaces, which a GGUF file cannot hold")
    return Vocabulary("gpt2", pre, _in_order(model["vocab"]), merges)


def _split_step(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "gpt2" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return f"split {(step.get('pattern') or {}).get('Regex')}"
    return str(dict(step))


def _sentencepiece_json(definition: Mapping[str, Any]) -> Vocabulary:
    model = definition["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    tokens = _in_order(model["vocab"])
    tokens = tuple(replace(token, score=-float(ranks[token.text]) if token.text in ranks else _UNREACHED) for token in tokens)
    tokens = tuple(replace(token, kind=TokenType.BYTE, score=0.0) if _is_byte(token.text) else token for token in tokens)
    unknown = model.get("unk_token")
    tokens = tuple(replace(token, kind=TokenType.UNKNOWN) if token.text == unknown else token for token in tokens)
    return Vocabulary("llama", "default", tokens, space_prefix=_space_prefix(definition))


def _space_prefix(definition: Mapping[str, Any]) -> str:
    """Say where a space is put before text; raise UserError when text is changed in another way than SentencePiece's."""
    normalizers = _steps(definition.get("normalizer"), "normalizers")
    splitters = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    prepends = [step for step in normalizers if step == {"type": "Prepend", "prepend": _SPACE}]
    replaces = [step for step in normalizers if step == {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    metaspaces = [step for step in splitters if step.get("type") == "Metaspace" and step.get("replacement") == _SPACE]
    known = len(prepends) + len(replaces) == len(normalizers) and len(metaspaces) == len(splitters)
    if not known or len(replaces) + len(metaspaces) != 1 or any(step.get("split", True) for step in metaspaces):
        raise UserError(
            f"tokenizer.json normalizes by {_types(definition.get('normalizer'))} and splits by "
            f"{_types(definition.get('pre_tokenizer'))}; expected SentencePiece's rules as Llama 2 and Mixtral have them: "
            "spaces become U+2581, nothing else changes"
        )
    if prepends:
        return "prepend"
    scheme = metaspaces[0].get("prepend_scheme", "always") if metaspaces else "never"
    return "" if scheme == "never" else str(scheme)


def _sentencepiece_model(file: Path) -> Vocabulary:
    """Read a SentencePiece file. Source: sentencepiece_model.proto; only what is needed of it."""
    tokens: list[Token] = []
    unigram, prefix, normalizer = True, True, ""
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                tokens.append(Token(piece[1].decode(), TokenType(piece.get(3, 1)), score))
            elif number == 2:
                unigram = dict(_fields(value)).get(3, 1) != 2
            elif number == 3:
                rules = dict(_fields(value))
                prefix, normalizer = bool(rules.get(3, 1)), rules.get(1, b"").decode()
                if rules.get(4, 1):
                    normalizer += " with whitespace removed"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise IntegrityError(f"{file} is not a whole SentencePiece model ({error!r})") from error
    if unigram or normalizer != "identity" or not any(token.kind == TokenType.BYTE for token in tokens):
        raise UserError(
            f"{file} is a SentencePiece {'unigram' if unigram else 'BPE'} model with the normalizer {normalizer!r}; supported "
            "is BPE with byte fallback and the normalizer 'identity'"
        )
    conventional = {"<s>": "bos", "</s>": "eos"}  # transformers' LlamaTokenizer takes them, whatever the file's own ids say
    ids = {conventional[token.text]: index for index, token in enumerate(tokens) if token.text in conventional}
    return Vocabulary("llama", "default", tuple(tokens), ids=ids, space_prefix="prepend" if prefix else "")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of one protocol buffer message: int for varints, bytes for the rest."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            value: int | bytes
            value, position = _varint(message, position)
        else:
            sizes = {1: 8, 5: 4}
            size, position = (sizes[tag & 7], position) if tag & 7 in sizes else _varint(message, position)
            value, position = message[position : position + size], position + size
            if position > len(message) or tag & 7 not in (1, 2, 5):
                raise ValueError("cut off inside a field")
        yield tag >> 3, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return value, position


def _added_to_slow(path: Path) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer without tokenizer.json, in the form that tokenizer.json has."""
    file = path / "tokenizer_config.json"
    listed = read_json(file).get("added_tokens_decoder", {}) if file.is_file() else {}
    added = {int(token_id): {**entry, "id": int(token_id)} for token_id, entry in listed.items()}
    file = path / "added_tokens.json"
    for text, token_id in (read_json(file) if file.is_file() else {}).items():
        added.setdefault(token_id, {"id": token_id, "content": text, "special": False})
    return list(added.values())


def _in_order(vocabulary: Mapping[str, int]) -> tuple[Token, ...]:
    texts = [""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token_id in vocabulary.items():
        texts[token_id] = text
    return tuple(Token(text) for text in texts)


def _with_added(tokens: dict[int, Token], added: Iterable[Mapping[str, Any]], template: str) -> dict[int, Token]:
    for entry in added:
        text, special = str(entry["content"]), bool(entry.get("special"))
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
        if flags and (not special or text in template):
            raise UserError(
                f"the tokenizer's added token {text!r} has {' and '.join(flags)}, which llama.cpp does not do; save it "
                "without, or the model would read other tokens than it was trained on"
            )
        known = tokens.get(int(entry["id"]))
        if known and known.kind == TokenType.UNKNOWN:
            continue
        tokens[int(entry["id"])] = Token(text, TokenType.CONTROL if special else TokenType.USER_DEFINED, _UNREACHED)
    return tokens


def _padded(path: Path, tokens: Mapping[int, Token], vocab_size: int | None) -> tuple[Token, ...]:
    largest = max(tokens, default=-1)
    if vocab_size is not None and largest >= vocab_size:
        raise UserError(
            f"{path}: the tokenizer has token {largest} ({tokens[largest].text!r}), but config.json's vocab_size is "
            f"{vocab_size}; the embedding was not resized with the tokenizer. Use the tokenizer that belongs to these weights"
        )
    texts = {token.text for token in tokens.values()}
    if len(texts) != len(tokens):
        raise UserError(
            f"{path}: the tokenizer gives {len(tokens) - len(texts)} texts to two ids each, which a GGUF file cannot hold"
        )
    complete = []
    for token_id in range(largest + 1 if vocab_size is None else vocab_size):
        padding = f"[PAD{token_id}]"
        while padding in texts:
            padding = f"[{padding}]"
        complete.append(tokens.get(token_id, Token(padding, TokenType.UNUSED, _UNREACHED)))
    return tuple(complete)


def _chat_template(path: Path) -> str:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    file = path / "tokenizer_config.json"
    template = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template or ""


def _with_special_ids(found: Vocabulary, path: Path, definition: Mapping[str, Any]) -> Vocabulary:
    by_text = {token.text: index for index, token in enumerate(found.tokens)}
    config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    ids = {**found.ids, **dict(_model_ids(path, len(found.tokens)))}
    for name in ("bos", "eos", "pad", "unk"):
        text = config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text is None:
            continue
        if text not in by_text:
            raise UserError(f"{path}: tokenizer_config.json names {text!r} as {name}_token, which the tokenizer does not have")
        ids[name] = by_text[text]
    controls = set(found.control_texts)
    turns = [text for text in _END_OF_TURN if text in controls]
    # llama.cpp would take any of them; of several, the template's own one ends a turn
    if turns := sorted(turns, key=lambda text: text not in found.chat_template):
        ids["eot"] = by_text[turns[0]]
    if "<|eom_id|>" in controls:
        ids["eom"] = by_text["<|eom_id|>"]
    if definition:
        first, last = _template_ends(definition)
        add_bos, add_eos = by_text.get(first, -1) == ids.get("bos"), by_text.get(last, -1) == ids.get("eos")
    else:
        add_bos, add_eos = (
            config.get("add_bos_token", True) and "bos" in ids,
            config.get("add_eos_token", False) and "eos" in ids,
        )
    ordered: dict[str, int] = {name: ids[name] for name in ("bos", "eos", "eot", "eom", "unk", "pad") if name in ids}
    return replace(found, ids=ordered, add_bos=bool(add_bos), add_eos=bool(add_eos))


def _model_ids(path: Path, size: int) -> Iterator[tuple[str, int]]:
    """Yield the special ids that config.json and generation_config.json state, the later over the earlier."""
    for file in (path / "config.json", path / "generation_config.json"):
        config = read_json(file) if file.is_file() else {}
        for name in ("bos", "eos", "pad"):
            value = config.get(f"{name}_token_id")
            values = value if isinstance(value, list) else [value]
            usable = [token_id for token_id in values if isinstance(token_id, int) and 0 <= token_id < size]
            if usable:
                yield name, usable[0]
            if name == "eos" and len(usable) > 1:
                yield "eot", usable[1]


def _template_ends(definition: Mapping[str, Any]) -> tuple[str, str]:
    """Return the special tokens that tokenizer.json puts before and after a text, empty where there is none."""
    for step in _steps(definition.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing" and (parts := step.get("single")):
            first, last = (part.get("SpecialToken", {}).get("id", "") for part in (parts[0], parts[-1]))
            return str(first), str(last)
    return "", ""


def _steps(rule: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if not rule:
        return []
    return list(rule.get(key) or []) if rule.get("type") == "Sequence" else [rule]


def _types(rule: Mapping[str, Any] | None) -> str:
    if not rule:
        return "nothing"
    nested = rule.get("normalizers") or rule.get("pretokenizers") or [rule]
    return " then ".join(str(step.get("type")) for step in nested)


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
