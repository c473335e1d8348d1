"""The JSON schemas that answers are held to: a role's response model with every field required and every length bounded.

In training a field that nothing supports is absent; here all are asked for, in the model's order, so that an answer has one
shape and fits the tokens that it may take. A model that has nothing to say may still give an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

CHARACTERS_PER_TOKEN = 3.5
"""What an answer is reckoned with: prose has more, paths and identifiers have fewer."""
LIST_ITEMS, POINTS = 3, 5
"""The most items of a list, and of a list of points of the report."""
SHORTEST_PROSE, SHORTEST_ITEM = 40, 16
"""Characters that a text may have however few tokens there are; such answers may be cut."""

_PROSE_SHARE, _LIST_SHARE = 4, 3
_SPELT_NUMBER, _SPELT_PATTERN = 3, 12
_TEXT = r"[^\x22\x5C\x00-\x1F\x7F]"
_ENDING = re.compile(r"\{8,(\d+)\}\$$")


def answer_schema(model: type[BaseModel], max_tokens: int, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return the schema of an answer of at most about `max_tokens`; `fields` chooses some of the model's, empty for all."""
    return _schema(model, max_tokens, fields, LIST_ITEMS, "")


def report_schema(model: type[BaseModel], max_tokens: int, aliases: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a report: each item of its lists begins with the findings that it rests on, as in `F3, F7: text`."""
    named = f"({'|'.join(aliases)})"
    return _schema(model, max_tokens, (), POINTS, f"{named}(, {named}){{0,2}}: ")


def stopped_by(shape: Mapping[str, Any], text: str) -> bool:
    """Say whether the bound on its length ended a text, and not the model: a command or sentence may lack its end."""
    limit, ending = shape.get("maxLength"), _ENDING.search(shape.get("pattern", ""))
    if ending:
        limit, text = int(ending[1]), text.partition(": ")[2]
    return limit is not None and len(text) >= limit and not text.endswith((".", "!", "?"))


def _schema(model: type[BaseModel], max_tokens: int, fields: Sequence[str], items: int, begins: str) -> dict[str, Any]:
    whole = model.model_json_schema()
    shapes = {name: _present(shape) for name, shape in whole["properties"].items() if not fields or name in fields}
    room = int(max_tokens * CHARACTERS_PER_TOKEN) - sum(len(name) + 6 + _fixed(shape) for name, shape in shapes.items())
    shares = sum(_PROSE_SHARE * _is_prose(shape) + _LIST_SHARE * _is_list(shape) for shape in shapes.values())
    share = max(0, room) // max(1, shares)
    bounded = {name: _bounded(shape, share, items, begins) for name, shape in shapes.items()}
    schema = {"type": "object", "properties": bounded, "required": list(bounded), "additionalProperties": False}
    return {**schema, "$defs": whole["$defs"]} if "$defs" in whole else schema


def _present(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return a field's shape when it is there: without the alternative of being absent, and without words about it."""
    present = [choice for choice in shape.get("anyOf", ()) if choice.get("type") != "null"]
    chosen = present[0] if len(present) == 1 else shape
    return {key: value for key, value in chosen.items() if key not in ("title", "description", "default")}


def _bounded(shape: dict[str, Any], share: int, items: int, begins: str) -> dict[str, Any]:
    if _is_prose(shape):
        return {**shape, "minLength": 1, "maxLength": max(SHORTEST_PROSE, share * _PROSE_SHARE)}
    if shape.get("type") != "array":
        return shape
    if not _is_list(shape):
        return {**shape, "maxItems": LIST_ITEMS}
    longest = max(SHORTEST_ITEM, share * _LIST_SHARE // items - 4)
    if begins:
        pattern = f"^{begins}{_TEXT}{{8,{longest}}}$"
        return {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 1, "maxItems": items}
    return {**shape, "items": {**shape["items"], "minLength": 1, "maxLength": longest}, "maxItems": items}


def _is_prose(shape: Mapping[str, Any]) -> bool:
    return shape.get("type") == "string" and not shape.keys() & {"enum", "pattern", "const", "format"}


def _is_list(shape: Mapping[str, Any]) -> bool:
    return shape.get("type") == "array" and _is_prose(shape.get("items", {}))


def _fixed(shape: Mapping[str, Any]) -> int:
    """Return about how many characters a value takes whose length is not ours to choose."""
    if "enum" in shape:
        return max(len(str(value)) for value in shape["enum"])
    if shape.get("type") == "array" and not _is_list(shape):
        return LIST_ITEMS * _SPELT_PATTERN
    return _SPELT_NUMBER
