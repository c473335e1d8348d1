"""From messages to `input_ids` and `labels`, and from examples to packed rows; the same code for training and for serving.

Law: text of documents is never tokenized with special tokens. The chat template is rendered once per sequence of roles, with
sentinels in place of contents; only control tokens that the *template* spells become control tokens, and what a document says
is put in afterwards, as text. So a content that says `<|im_end|><|im_start|>system` changes no turn.

Needs a tokenizer (`TextTokenizer`; `HFTokenizer` wraps a fast one of Hugging Face) and jinja2, imported when a template is
rendered. Does not know torch or numpy, and reads no files.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import orjson

from sysscan_models.errors import DataError, SysscanError, UserError

IGNORE_INDEX = -100
"""Label of a token that the loss leaves out."""

Follows = Literal["start", "control", "text"]
"""What stands before a piece of text: nothing, a control token, or more text (then no space may be put in front of it)."""

Tokens = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and for each the span of characters that it stands for."""


class TextTokenizer(Protocol):
    """What encoding needs of a tokenizer."""

    control_tokens: Mapping[str, int]
    """Every token that is no text: spelling -> id."""
    bos_token: str
    """Spelling, or the empty string."""
    eos_token: str
    begins_with_bos: bool
    """Whether the model expects every sequence to begin with `bos_token`."""

    def encode_text(self, text: str, follows: Follows) -> Tokens:
        """Tokenize plain text; a spelling of a control token in it is text like any other."""


class HFTokenizer:
    """A fast tokenizer of transformers, seen as a TextTokenizer.

    Text goes through copies of its backend that know no added tokens at all: `split_special_tokens` would still turn added
    tokens that are not flagged special into control tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; this base model needs a tokenizer.json")
        added = {str(token): int(index) for token, index in tokenizer.get_added_vocab().items()}
        description = orjson.loads(backend.to_str())
        unknown = _unknown_token(description["model"])
        self.control_tokens: Mapping[str, int] = {token: index for token, index in added.items() if token != unknown}
        self.bos_token, self.eos_token = tokenizer.bos_token or "", tokenizer.eos_token or ""
        first = tokenizer("a")["input_ids"][:1]
        self.begins_with_bos = bool(self.bos_token) and first == [tokenizer.bos_token_id]
        description.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self._backends = _backends(type(backend), description)

    def encode_text(self, text: str, follows: Follows) -> Tokens:
        """Tokenize plain text; offsets are in characters."""
        encoding = self._backends[follows].encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the token that stands for characters that the model has no other for; None when it can spell everything."""
    if model.get("byte_fallback"):
        return None
    if model.get("type") == "Unigram":
        return str(model["vocab"][model["unk_id"]][0]) if model.get("unk_id") is not None else None
    return model.get("unk_token")


def _backends(kind: Any, description: dict[str, Any]) -> dict[Follows, Any]:
    """Return a backend for what a text may follow; most are one and the same, and building one takes a while."""
    built: dict[bytes, Any] = {}
    backends: dict[Follows, Any] = {}
    for follows in ("start", "control", "text"):
        parts = {key: _spaced(description.get(key), follows) for key in ("normalizer", "pre_tokenizer")}
        key = orjson.dumps(parts)
        if key not in built:
            built[key] = kind.from_str(orjson.dumps({**description, **parts}).decode())
        backends[follows] = built[key]
    return backends


def _spaced(node: Any, follows: Follows) -> Any:
    """Return a part of a tokenizer's JSON that puts a space in front of a text only where the original does after `follows`."""
    if isinstance(node, list):
        return [part for item in node if (part := _spaced(item, follows)) is not None]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend" and follows == "text":
        return None
    if kind == "ByteLevel" and follows == "text":
        return {**node, "add_prefix_space": False}
    if kind == "Metaspace":
        scheme = node.get("prepend_scheme", "always")
        never = follows == "text" or (follows == "control" and scheme == "first")
        return {
            "type": kind,
            "replacement": node["replacement"],
            "split": node.get("split", True),
            "prepend_scheme": "never" if never else scheme,
        }
    return {key: _spaced(value, follows) for key, value in node.items()}


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ '### System:\\n' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\\n' + message['content'] }}"
    "{% else %}{{ '### Assistant:\\n' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)
"""Markers of ordinary text for models whose control tokens cannot be trained; look-alikes in contents are defused."""

_BOS = "{{ bos_token }}"
_PLAIN_MARKER = re.compile(r"^(?=### (?:System|User|Assistant):)", re.MULTILINE)


def choose_template(
    existing: str | None, control_tokens: Mapping[str, int], trains_embeddings: bool, *, begins_with_bos: bool = False
) -> str:
    """Return the chat template to train and serve a base model with, as jinja source.

    A template that the model has wins. One that we add uses only tokens that the training method can train: ChatML or Llama 3's
    headers when the vocabulary has their control tokens and the embeddings are trained, markers of plain text otherwise.
    """
    if existing:
        return existing
    bos = _BOS if begins_with_bos else ""
    if trains_embeddings and {"<|im_start|>", "<|im_end|>"} <= control_tokens.keys():
        return bos + CHATML
    if trains_embeddings and {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= control_tokens.keys():
        return bos + LLAMA3
    return bos + PLAIN


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sequence and their labels: the id itself where supervised, IGNORE_INDEX elsewhere and at the start."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


Outcome = Literal["whole", "cut", "too long", "refused"]


@dataclass(frozen=True)
class EncodedExample:
    """What became of one example: its sequences (a long plain text gives several, a dropped example none), and how."""

    pieces: tuple[Encoded, ...]
    outcome: Outcome
    """`cut`: the user's turn was shortened; `too long`: nothing left to cut; `refused`: no conversation for this template."""
    detail: str = ""


_Kind = Literal["text", "control", "content", "open", "close"]
_Part = tuple[_Kind, str]
"""A piece of a rendered template: literal text, a control token's spelling, a content's number, or where an answer begins and
ends (`open` stands exactly where the generation prompt ends)."""


class ChatEncoder:
    """Encodes conversations and plain texts for one tokenizer and chat template."""

    def __init__(self, tokenizer: TextTokenizer, template: str, *, supervise: Literal["answers", "all"] = "answers") -> None:
        if not tokenizer.eos_token or tokenizer.eos_token not in tokenizer.control_tokens:
            raise UserError("the base model's tokenizer has no EOS token; set eos_token in its tokenizer_config.json")
        self.tokenizer, self.template, self.supervise = tokenizer, template, supervise
        self._eos = tokenizer.control_tokens[tokenizer.eos_token]
        self._control_ids = frozenset(tokenizer.control_tokens.values())
        self._plain = template.removeprefix(_BOS) == PLAIN
        self._skeleton = lru_cache(maxsize=256)(self._parse)
        self._renderer = _renderer(template)
        spellings = sorted(tokenizer.control_tokens, key=lambda token: (-len(token), token))
        self._marker = re.compile("|".join([_SENTINEL.pattern, *map(re.escape, spellings)]))
        self.takes_system = self._takes_system()
        self._end_of_turn = self._ending()
        self._bos = self._first_token()

    def prompt(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int = 0) -> list[int]:
        """Return the ids that ask for the next assistant turn: an exact prefix of what training saw.

        With `max_tokens`, the longest user turn is cut until the prompt fits; DataError when it cannot.
        """

        def encode(turns: Sequence[Mapping[str, str]]) -> list[int]:
            return self._assemble(turns, prompt=True)[0]

        ids = encode(messages)
        if max_tokens and len(ids) > max_tokens:
            fitted = _fit(messages, lambda turns: len(encode(turns)), max_tokens)
            if fitted is None:
                raise DataError(f"the conversation has {len(ids)} tokens and cannot be cut to {max_tokens}; send a shorter one")
            ids = encode(fitted)
        return ids

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> Encoded:
        """Return a conversation's ids, supervised in its assistant turns and the tokens that end them.

        Raises DataError when the template refuses the conversation or it holds no assistant turn.
        """
        if not any(turn["role"] == "assistant" for turn in messages):
            raise DataError("the conversation has no assistant turn to learn from")
        ids, supervised = self._assemble(messages, prompt=False)
        return _encoded(ids, supervised if self.supervise == "answers" else [True] * len(ids))

    def text(self, text: str, max_seq_length: int) -> list[Encoded]:
        """Return a plain text as sequences of at most `max_seq_length` tokens, every token supervised, EOS at the end."""
        ids = [*self._bos, *self._text_tokens(text.strip(), "control" if self._bos else "start")[0], self._eos]
        pieces = [ids[start : start + max_seq_length] for start in range(0, len(ids), max_seq_length)]
        return [_encoded(piece, [True] * len(piece)) for piece in pieces if len(piece) > 1]

    def example(self, record: Mapping[str, Any], max_seq_length: int) -> EncodedExample:
        """Encode one line of a split (`messages`, or `text` when its kind is `text`) into what fits `max_seq_length`."""
        messages, text = record.get("messages"), record.get("text")
        if record.get("kind") == "text" or not messages:
            if not isinstance(text, str) or not text.strip():
                return EncodedExample((), "refused", "it has neither messages nor text")
            return EncodedExample(tuple(self.text(text, max_seq_length)), "whole")
        if not _are_turns(messages):
            return EncodedExample((), "refused", "its messages are no list of objects with a role and a content, both text")
        try:
            encoded = self.conversation(messages)
            if len(encoded.ids) <= max_seq_length:
                return EncodedExample((encoded,), "whole")
            fitted = _fit(messages, lambda turns: len(self.conversation(turns).ids), max_seq_length)
        except DataError as error:
            return EncodedExample((), "refused", str(error))
        if fitted is None:
            return EncodedExample((), "too long", f"{len(encoded.ids)} tokens")
        return EncodedExample((self.conversation(fitted),), "cut", f"{len(encoded.ids)} tokens")

    def end_tokens(self) -> list[int]:
        """Return the ids that end an answer: the template's end of turn, and EOS."""
        parts = self._skeleton(("user", "assistant"), False)
        end = next(place for place, (kind, _) in enumerate(parts) if kind == "close")
        kind, token = parts[end - 1]
        closing = [self.tokenizer.control_tokens[token]] if kind == "control" else []
        return list(dict.fromkeys([*closing, self._eos]))

    def _assemble(self, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> tuple[list[int], list[bool]]:
        """Put the contents into the template's skeleton; return ids, and which of them are answers."""
        turns = self._turns(messages)
        ids: list[int] = []
        supervised: list[bool] = []
        run, answering = "", False
        marks: list[tuple[int, str]] = []
        follows: Follows = "start"

        def flush() -> None:
            nonlocal run, marks, answering
            tokens, places = self._run_tokens(run, marks, follows)
            for place, token in enumerate(tokens):
                for at, kind in places:
                    answering = kind == "open" if at == place else answering
                ids.append(token)
                supervised.append(answering)
            for at, kind in places:
                answering = kind == "open" if at >= len(tokens) else answering
            run, marks = "", []

        for kind, value in self._skeleton(tuple(role for role, _ in turns), prompt):
            if kind == "control":
                flush()
                ids.append(self.tokenizer.control_tokens[value])
                supervised.append(answering)
                follows = "control"
            elif kind in ("open", "close"):
                marks.append((len(run), kind))
            else:
                run += turns[int(value)][1] if kind == "content" else value
        flush()
        return ids, supervised

    def _run_tokens(
        self, run: str, marks: Sequence[tuple[int, str]], follows: Follows
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """Tokenize text between two control tokens, at once; return ids and the token that each mark stands before.

        The text before an `open` mark is what a prompt ends with, so its tokens must be a prefix; where they are not (a token
        would reach across), the text is tokenized in two parts.
        """
        ids, offsets = self._text_tokens(run, follows) if run else ([], [])
        places = []
        for at, kind in marks:
            if kind == "close" or at in (0, len(run)):
                place = next((place for place, (start, _) in enumerate(offsets) if start >= at), len(ids)) if at else 0
            else:
                before, before_offsets = self._text_tokens(run[:at], follows)
                place = len(before)
                if ids[:place] != before:
                    rest, rest_offsets = self._text_tokens(run[at:], "text")
                    ids, offsets = before + rest, before_offsets + [(start + at, end + at) for start, end in rest_offsets]
            places.append((place, kind))
        return ids, places

    def _text_tokens(self, text: str, follows: Follows) -> Tokens:
        """Tokenize text and make sure that no control token came out, which some vocabularies' merges can do."""
        ids, offsets = self.tokenizer.encode_text(text, follows)
        if self._control_ids.isdisjoint(ids):
            return list(ids), list(offsets)
        cuts = [0]
        for start, end in (span for token, span in zip(ids, offsets, strict=True) if token in self._control_ids):
            if end - start < 2:
                raise SysscanError(f"the tokenizer turns the text {text[start:end]!r} into a control token")
            cuts.append(start + 1)
        divided: Tokens = ([], [])
        for start, end in pairwise([*cuts, len(text)]):
            tokens, spans = self._text_tokens(text[start:end], "text" if start else follows)
            divided[0].extend(tokens)
            divided[1].extend((a + start, b + start) for a, b in spans)
        return divided

    def _turns(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
        """Return (role, content) with contents stripped, look-alikes of plain markers defused, the system prompt placed."""
        turns = [(turn["role"], turn["content"].strip()) for turn in messages]
        if self._plain:
            turns = [(role, _PLAIN_MARKER.sub(" ", content)) for role, content in turns]
        if turns and turns[0][0] == "system" and not self.takes_system:
            system, rest = turns[0][1], turns[1:]
            if not rest or rest[0][0] != "user":
                raise DataError("the chat template takes no system turn, and no user turn follows that could carry it")
            turns = [("user", f"{system}\n\n{rest[0][1]}".strip()), *rest[1:]]
        return turns

    def _takes_system(self) -> bool:
        try:
            return _sentinel(0) in self._render(("system", "user"), True)
        except DataError:
            return False

    def _render(self, roles: tuple[str, ...], prompt: bool) -> str:
        return self._renderer(roles, prompt, self.tokenizer.bos_token, self.tokenizer.eos_token)

    def _parse(self, roles: tuple[str, ...], prompt: bool) -> tuple[_Part, ...]:
        """Render the template for a sequence of roles and split it into parts."""
        rendered = self._render(roles, prompt)
        opens = {self._prompt_end(roles, turn, rendered): turn for turn, role in enumerate(roles) if role == "assistant"}
        parts: list[_Part] = []
        done = 0
        for match in self._marker.finditer(rendered):
            parts += _literal(rendered, done, match.start(), opens)
            parts.append(("content", match[1]) if match[1] else ("control", match[0]))
            done = match.end()
        parts += _literal(rendered, done, len(rendered), opens)
        if done in opens and done == len(rendered):
            parts.append(("open", ""))
        contents = [int(value) for kind, value in parts if kind == "content"]
        if contents != list(range(len(roles))):
            raise DataError(f"the chat template does not show every turn of {', '.join(roles)} once and in order")
        return tuple(self._closed(parts, roles))

    def _prompt_end(self, roles: tuple[str, ...], turn: int, rendered: str) -> int:
        """Return where in the rendered template the generation prompt of an assistant turn ends."""
        prompt = self._render(roles[:turn], True) if turn else ""
        if turn and rendered.startswith(prompt):
            return len(prompt)
        if turn and turn == len(roles) - 1:
            raise UserError(
                "the chat template asks for an answer with another text than it shows before one: "
                f"{prompt[-40:]!r} is not how its assistant turn begins. Correct the base model's chat template"
            )
        return rendered.index(_sentinel(turn))

    def _closed(self, parts: list[_Part], roles: tuple[str, ...]) -> list[_Part]:
        """Put the `close` marks after the token that ends each answer; append EOS where the template ends none."""
        closed: list[_Part] = []
        ends: dict[int, int] = {}
        for place, (kind, value) in enumerate(parts):
            if kind == "content" and roles[int(value)] == "assistant":
                ends[self._end(parts, place)] = int(value)
        for place, part in enumerate(parts):
            closed.append(part)
            if place in ends:
                if part[0] != "control" and ends[place] == len(roles) - 1:
                    return [*closed, ("control", self.tokenizer.eos_token), ("close", "")]
                closed.append(("close", ""))
        return closed

    def _end(self, parts: list[_Part], content: int) -> int:
        """Return the place of the control token that ends the answer, or of the answer itself when none does."""
        after = content + 1
        while after < len(parts) and parts[after][0] == "text" and not parts[after][1].strip():
            after += 1
        if after == len(parts) or parts[after][0] != "control" or parts[after][1] == self.tokenizer.bos_token:
            return content
        return after if parts[after][1] == self._end_of_turn else content

    def _first_token(self) -> list[int]:
        """Return BOS when every sequence begins with it: the tokenizer says so, or the template writes it, once."""
        bos = self.tokenizer.bos_token
        rendered = self._render(("user",), True)
        written = bool(bos) and rendered.startswith(bos) and rendered.count(bos) == 1
        return [self.tokenizer.control_tokens[bos]] if written or self.tokenizer.begins_with_bos else []

    def _ending(self) -> str:
        """Return the control token after the content of an assistant turn that comes last, or the empty string."""
        rendered = self._render(("user", "assistant"), False)
        tail = rendered[rendered.index(_sentinel(1)) + len(_sentinel(1)) :].lstrip()
        match = self._marker.match(tail)
        return match[0] if match else ""


_SENTINEL = re.compile("\ue000(\\d+)\ue001")


def _sentinel(number: int) -> str:
    return f"\ue000{number}\ue001"


def _literal(rendered: str, start: int, end: int, opens: Mapping[int, int]) -> list[_Part]:
    """Return the literal text between two places, divided where generation prompts end."""
    parts: list[_Part] = []
    for cut in [*sorted(at for at in opens if start <= at < end), end]:
        if cut > start:
            parts.append(("text", rendered[start:cut]))
        if cut in opens and (cut < end or cut == end != len(rendered)):
            parts.append(("open", ""))
        start = cut
    return parts


def _are_turns(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )


def _encoded(ids: Sequence[int], supervised: Sequence[bool]) -> Encoded:
    labels = [
        token if learnt and place else IGNORE_INDEX for place, (token, learnt) in enumerate(zip(ids, supervised, strict=True))
    ]
    return Encoded(tuple(ids), tuple(labels))


_CUT = "\n[...]\n"
_KEPT = 64
"""Characters that a user turn keeps at least; a conversation that needs fewer is dropped."""


def _fit(
    messages: Sequence[Mapping[str, str]], count: Callable[[Sequence[Mapping[str, str]]], int], limit: int
) -> list[Mapping[str, str]] | None:
    """Return the messages with the longest user turn cut in its middle so that `count` of them is at most `limit`, or None."""
    users = [place for place, turn in enumerate(messages) if turn["role"] == "user"]
    if not users:
        return None
    place = max(users, key=lambda place: len(messages[place]["content"]))
    content = messages[place]["content"].strip()

    def cut(kept: int) -> list[Mapping[str, str]]:
        head = kept * 2 // 3
        shortened = content[:head].rstrip() + _CUT + content[len(content) - (kept - head) :].lstrip()
        return [{**turn, "content": shortened} if at == place else turn for at, turn in enumerate(messages)]

    low, high = _KEPT, len(content) - len(_CUT)
    if high < low or count(cut(low)) > limit:
        return None
    while high - low > max(8, low // 64):  # near enough: within 2% of what would still fit
        middle = (low + high) // 2
        low, high = (middle, high) if count(cut(middle)) <= limit else (low, middle)
    return cut(low)


@lru_cache(maxsize=16)
def _renderer(template: str) -> Callable[[tuple[str, ...], bool, str, str], str]:
    """Compile a chat template as transformers does: sandboxed, with `raise_exception`, `strftime_now` and loop controls.

    The date is a fixed one, so that the same inputs give the same bytes, in training and in serving.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        from sysscan_models.errors import MissingExtra

        raise MissingExtra("rendering chat templates", "jinja2", "train") from error

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **_: orjson.dumps(value).decode()
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime(2024, 7, 26).strftime(form)
    source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
    try:
        compiled = environment.from_string(source)
    except TemplateError as error:
        raise UserError(f"the base model's chat template is no valid jinja2: {error}") from error

    def render(roles: tuple[str, ...], prompt: bool, bos_token: str, eos_token: str) -> str:
        messages = [{"role": role, "content": _sentinel(number)} for number, role in enumerate(roles)]
        special = {name: token for name, token in (("bos_token", bos_token), ("eos_token", eos_token)) if token}
        try:
            return compiled.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **special)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the chat template refuses the turns {', '.join(roles)}: {error}") from error

    return render


WINDOW = 4096
"""Examples that are packed together; best-fit over more gains next to nothing."""


def pack(lengths: Sequence[int], max_seq_length: int, seed: int) -> list[tuple[int, ...]]:
    """Return rows of example numbers whose lengths add up to at most `max_seq_length`, in an order drawn from the seed.

    Best-fit decreasing within windows of a shuffled order: deterministic, and about as full as rows get. Every example is in
    one row.
    """
    if lengths and max(lengths) > max_seq_length:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit a row of {max_seq_length}")
    order = list(range(len(lengths)))
    generator = random.Random(seed)  # noqa: S311 - an order, not a secret
    generator.shuffle(order)
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        room: list[tuple[int, int]] = []  # (tokens left, row), sorted
        for item in sorted(order[start : start + WINDOW], key=lambda item: -lengths[item]):
            place = bisect_left(room, (lengths[item], -1))
            left, row = room.pop(place) if place < len(room) else (max_seq_length, len(rows))
            if row == len(rows):
                rows.append([])
            rows[row].append(item)
            if left > lengths[item]:
                insort(room, (left - lengths[item], row))
    generator.shuffle(rows)
    return [tuple(row) for row in rows]
