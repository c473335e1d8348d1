"""Reading what a model answered: JSON as far as it goes, held to the role's response model.

An answer that was cut (too long, out of time) is used as far as it is whole: a list loses the item that it breaks off in, a
text gets an ellipsis, a number that may not be finished is dropped, as is whatever does not fit the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from json import JSONDecoder
from typing import Any, TypeVar

import orjson
from langchain_core.exceptions import OutputParserException
from pydantic import ValidationError

from sysscan_langgraph.analysis.records import Point
from sysscan_langgraph.analysis.schemas import stopped_by
from sysscan_models.errors import SysscanError
from sysscan_models.prompts import Response, redact

Answer = TypeVar("Answer", bound=Response)

_DECODER = JSONDecoder(strict=False)
_MEMBER = re.compile(r'[\s{,]*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*")\s*:\s*')
_BEGUN_TEXT = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})*')
_REFERENCES = re.compile(r"\s*\(?((?:F\d{1,6}\b[\s,;&]*(?:and\b\s*)?)+)\)?\s*[:.-]?\s*")


def read_answer(text: str, model: type[Answer], schema: Mapping[str, Any] | None = None) -> Answer:
    """Return an answer's fields that have something to say, redacted; texts that the `schema` ended get an ellipsis.

    Raises OutputParserException when it is no JSON object, or when nothing of it can be used.
    """
    shapes = (schema or {}).get("properties", {})
    fields = {name: _said(_ended(value, shapes.get(name, {}))) for name, value in _object(text).items()}
    fields = {name: value for name, value in fields.items() if not _says_nothing(value)}
    while fields:
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            wrong = {str(fault["loc"][0]): fault["loc"][1:] for fault in error.errors() if fault["loc"]}
            if not wrong.keys() & fields.keys():
                break
            fields = {name: value for name, value in _without(fields, wrong).items() if value != []}
    reason = SysscanError(f"the model's answer says nothing that can be used: {_shown(text)}")
    raise OutputParserException(reason, llm_output=text)


def _says_nothing(value: Any) -> bool:
    return value in (None, "", []) or (isinstance(value, str) and not any(map(str.isalnum, value)))


def read_points(texts: Sequence[str], finding_ids: Mapping[str, str]) -> tuple[list[Point], int]:
    """Return the points that name findings, such as `F3, F7: text`, and how many name none; `finding_ids` is by alias."""
    points = []
    for text in texts:
        head = _REFERENCES.match(text)
        named = re.findall(r"F\d+", head[1] if head else "") or re.findall(r"\bF\d+\b", text)
        aliases = tuple(dict.fromkeys(alias for alias in named if alias in finding_ids))
        said = text[head.end() :].strip() if head else text.strip()
        if aliases and said:
            points.append(Point(text=said, aliases=aliases, finding_ids=tuple(finding_ids[alias] for alias in aliases)))
    return points, len(texts) - len(points)


def _object(text: str) -> dict[str, Any]:
    begin = text.find("{")
    try:
        found = _DECODER.raw_decode(text[begin:])[0] if begin >= 0 else None
    except (ValueError, RecursionError):
        found = _begun_object(text[begin:])
    if not isinstance(found, dict):
        raise OutputParserException(SysscanError(f"the model's answer is no JSON object: {_shown(text)}"), llm_output=text)
    return found


def _begun_object(text: str) -> dict[str, Any]:
    """Return the members of an object that breaks off."""
    found: dict[str, Any] = {}
    while member := _MEMBER.match(text):
        name, text = orjson.loads(member[1]), text[member.end() :]
        try:
            value, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            value, end = _begun_value(text), len(text)
        if end == len(text) and not isinstance(value, (str, list)):
            break
        found[name], text = value, text[end:]
    return found


def _begun_value(text: str) -> Any:
    """Return what there is of a text, with an ellipsis, or the whole items of a list; None of anything else."""
    if text.startswith('"'):
        whole = _BEGUN_TEXT.match(text)
        said = orjson.loads(f'{whole[0]}"').rstrip() if whole else ""
        return f"{said} …" if said else None
    items = []
    while text.startswith(("[", ",")):
        text = text[1:].lstrip()
        try:
            item, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            break
        if end == len(text) and not isinstance(item, (str, list)):
            break
        items.append(item)
        text = text[end:].lstrip()
    return items or None


def _ended(value: Any, shape: Mapping[str, Any]) -> Any:
    """Mark a text, or the items of a list, that the schema's bound has ended."""
    if isinstance(value, str):
        return f"{value.rstrip()} …" if stopped_by(shape, value) else value
    return [_ended(item, shape.get("items", {})) for item in value] if isinstance(value, list) else value


def _said(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value).encode("utf-8", "replace").decode().strip()
    if isinstance(value, list):
        return [said for item in value if (said := _said(item)) not in (None, "", [])]
    return value


def _without(fields: Mapping[str, Any], wrong: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Drop what a response model refuses: an item of a list where only that is wrong, else the field."""
    kept = {}
    for name, value in fields.items():
        place = next((part for part in wrong.get(name, ()) if isinstance(part, int)), None)
        if name not in wrong:
            kept[name] = value
        elif isinstance(value, list) and place is not None:
            kept[name] = [*value[:place], *value[place + 1 :]]
    return kept


def _shown(text: str) -> str:
    return repr(redact(text.strip())[:80]) if text.strip() else "it is empty"
