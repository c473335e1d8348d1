"""JSON schemas as grammars of llama.cpp.

llama-cpp-python's converter does the work. Here is only what it gets wrong: regular expressions with escapes (for digits, for
a point) give a grammar that does not parse, ranges of integers are ignored, and strings may hold raw control characters, which
is not JSON. And JSON has no blanks here, as in what the models are trained to say: blanks cost tokens, and without them much of
the text has no alternative, so that it needs no model. It still ignores uniqueItems, patternProperties and ranges of other
numbers, so an answer is validated all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from llama_cpp.llama_grammar import json_schema_to_gbnf

from sysscan_models.errors import UserError

WIDEST_RANGE = 1000
"""Values that a range of integers may have to be spelt out in the grammar."""

_ANY_CHARACTER = r'[^"\\]'
_ANY_JSON_CHARACTER = r'[^"\\\x7F\x00-\x1F]'
_BLANKS = re.compile(r"^space ::= .*$", re.MULTILINE)
_PATTERN_PART = re.compile(r"\\(.)|(\[\^?)|(\])|(\(\?:)|[^\\]", re.DOTALL)
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}


def grammar_of(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a grammar in GBNF with the rule `root`; raise UserError when it cannot be expressed."""
    try:
        grammar: str = json_schema_to_gbnf(orjson.dumps(_expressible(schema)).decode())
    except Exception as error:  # the converter raises whatever the schema's shape leads to
        raise UserError(f"the JSON schema cannot be turned into a grammar ({type(error).__name__}: {error})") from error
    return _BLANKS.sub('space ::= ""', grammar.replace(_ANY_CHARACTER, _ANY_JSON_CHARACTER))


def _expressible(schema: Any) -> Any:
    """Return the schema with patterns and ranges written so that the converter keeps them."""
    if isinstance(schema, list):
        return [_expressible(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if (values := _range(schema)) is not None:
        return {"enum": list(values)}
    plain = {key: _expressible(value) for key, value in schema.items()}
    if isinstance(pattern := schema.get("pattern"), str):
        plain["pattern"] = _plain_pattern(pattern)
    return plain


def _range(schema: Mapping[str, Any]) -> range | None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("type") != "integer" or not isinstance(low, int) or not isinstance(high, int):
        return None
    return range(low, high + 1) if 0 <= high - low < WIDEST_RANGE else None


def _plain_pattern(pattern: str) -> str:
    """Return a regular expression with its escapes written as character classes."""
    written, inside = [], False
    for part in _PATTERN_PART.finditer(pattern):
        escaped, opening, closing, group = part.groups()
        if escaped in _CLASSES:
            written.append(_CLASSES[escaped] if inside else f"[{_CLASSES[escaped]}]")
        elif escaped and not escaped.isalnum():
            written.append(_escaped(escaped) if inside else f"[{_escaped(escaped)}]")
        else:
            inside = (inside or bool(opening)) and not closing
            written.append("(" if group and not inside else part[0])
    return "".join(written)


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02X}" if ord(character) < 256 else character
