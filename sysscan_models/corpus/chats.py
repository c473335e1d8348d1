"""Conversations in a record, in the shapes that data sets have: messages, ShareGPT, and questions with their answers.

A record with a title, description or content of its own is a document, and only `messages` make a chat of it. Other fields
of a record are not looked at here, and no text is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sysscan_models.corpus.fields import BadRecord, clean, kind_of, text_of
from sysscan_models.redaction import redact

OWN_TEXT = ("title", "description", "content")
"""Keys with which a record is a document of its own."""
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
"""Keys of a question and of its answer, in the order in which they are looked for."""
_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{
        "developer": "system",
        "human": "user",
        "gpt": "assistant",
        "model": "assistant",
        "bot": "assistant",
        "chatgpt": "assistant",
    },
}
"""Role in the data -> the role that the templates of our models know: OpenAI's `developer`, ShareGPT's, Gemma's."""
_TOOLS = frozenset(
    ("tool", "function", "ipython", "observation", "function_call", "function_response", "tool_call", "tool_response")
)
"""Roles of programs that a model calls. No template here has a place for them, and without them the answers hang in the air."""
Turn = Mapping[str, str]


def messages(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return a record's turns, none when it is no chat; raise BadRecord when it is one that cannot be used."""
    if (given := record.get("messages")) not in (None, []):
        return _answered(_turns(given, "messages"))
    if any(record.get(key) not in (None, "", []) for key in OWN_TEXT):
        return ()
    if (given := record.get("conversations")) not in (None, []):
        return _answered(_system(record) + _turns(given, "conversations"))
    for asked, answered in PAIRS:
        if asked in record and answered in record:
            question, answer = _side(record, asked, "user"), _side(record, answered, "assistant")
            question = _with_input(question, record, asked)
            if not any(turn["content"] for turn in question):
                raise BadRecord("chat without a question", f"{asked} says nothing")
            return _answered(_system(record) + question + answer)
    return ()


def is_chat(record: Mapping[str, Any]) -> bool:
    """Say whether lists in a record are its turns, so that it is one record and no wrapper around several."""
    turns = record.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    shared = isinstance(first, dict) and (
        "from" in first or (isinstance(first.get("role"), str) and first["role"].lower() in _ROLES)
    )
    return shared or any(asked in record and answered in record for asked, answered in PAIRS)


def _answered(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if not any(turn["role"] == "assistant" and turn["content"] for turn in turns):
        raise BadRecord("chat without an answer", "no turn of the assistant says anything")
    return turns


def _system(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    text = text_of(record.get("system"), "system")
    return ({"role": "system", "content": text},) if text else ()


def _side(record: Mapping[str, Any], key: str, role: str) -> tuple[Turn, ...]:
    """Return a question or an answer, which is text or itself a list of turns."""
    value = record[key]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _turns(value, key)
    return ({"role": role, "content": text_of(value, key)},)


def _with_input(question: tuple[Turn, ...], record: Mapping[str, Any], asked: str) -> tuple[Turn, ...]:
    """Return the question with the `input` that an instruction is about."""
    given = text_of(record.get("input"), "input") if asked == "instruction" else ""
    if not given:
        return question
    *before, last = question
    return (*before, {**last, "content": "\n\n".join(filter(None, (last["content"], given)))})


def _turns(value: Any, field: str) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise BadRecord("field of the wrong type", f"{field} is {kind_of(value)}, expected a list")
    return tuple(_turn(item, f"{field}[{index}]") for index, item in enumerate(value))


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise BadRecord("field of the wrong type", f"{where} is {kind_of(item)}, expected an object")
    shared = "role" not in item and "from" in item
    key = "from" if shared else "role"
    role = _role(item.get(key), f"{where}.{key}")
    if not item.get("content") and (item.get("tool_calls") or item.get("function_call")):
        raise BadRecord("chat with calls of tools", f"{where} calls a tool and says nothing")
    text_key = "value" if shared and "content" not in item else "content"
    return {"role": role, "content": _content(item.get(text_key), f"{where}.{text_key}")}


def _role(said: Any, field: str) -> str:
    name = clean(said).lower() if isinstance(said, str) else ""
    if name in _TOOLS:
        raise BadRecord("chat with calls of tools", f"{field} is {name}; only {', '.join(_ROLES)} can be trained on")
    if name not in _ROLES:
        found = redact(clean(said))[:40] if isinstance(said, str) else kind_of(said)
        raise BadRecord("unknown chat role", f"{field} is {found}; expected {', '.join(_ROLES)}")
    return _ROLES[name]


def _content(value: Any, field: str) -> str:
    """Return what a turn says: text, or the texts of its parts, as newer interfaces write them."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        value = [part.get("text") for part in value]
    return text_of(value, field)
