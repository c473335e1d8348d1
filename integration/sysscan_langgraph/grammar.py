"""JSON schemas as grammars of llama.cpp.

llama-cpp-python's converter does the work. Here is only what it gets wrong: regular expressions with escapes (for digits, for
a point) give a grammar that does not parse, ranges of integers are ignored, and strings may hold raw control characters, which
is not JSON. And JSON has no blanks here, as in what the models are trained to say: blanks cost tokens, and without them much of
the text has no alternative, so that it needs no model. It still ignores uniqueItems, patternProperties and ranges of other
numbers, so an answer is validated all the same.

llama.cpp's own parser is only called within bounds: past them it ends the process instead of refusing.
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

LARGEST_COUNTS = {"minLength": 900, "maxLength": 900, "minItems": 400, "maxItems": 400}
"""Largest bounds of lengths that go into a grammar. The converter nests one level for each; maxima above are left open."""
LARGEST_REPETITION = 2000
"""Largest number in the `{m,n}` of a grammar in GBNF."""
LARGEST_GRAMMAR = 100_000
"""Bytes of a grammar in GBNF."""
LARGEST_SCHEMA_GRAMMAR = 1_000_000
"""Bytes of a grammar that a schema leads to."""
DEEPEST_GRAMMAR = 200
"""Parentheses of a grammar in GBNF that may be open at once."""
DEEPEST_SCHEMA_GRAMMAR = 1000
"""Parentheses of a grammar of a schema that may be open at once."""

_ANY_CHARACTER = r'[^"\\]'
_ANY_JSON_CHARACTER = r'[^"\\\x7F\x00-\x1F]'
_BLANKS = re.compile(r"^space ::= .*$", re.MULTILINE)
_PATTERN_PART = re.compile(r"\\(.)|(\[\^?)|(\])|(\(\?:)|[^\\]", re.DOTALL)
_PATTERN_COUNT = re.compile(r"(?<!\\)\{(\d*),?(\d*)\}")
_GBNF_PART = re.compile(r'"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?|<[^>]*>?|#[^\r\n]*|\{([^}]*)\}?|([()])', re.DOTALL)
_SCHEMAS_BY_NAME = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_DATA = frozenset(("const", "enum", "default", "examples", "required"))
_ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"))
_ANY_VALUE = {"type": "value"}
"""Any JSON, as the converter's own rules call it."""
_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}


def schema_text(schema: Any) -> str:
    """Return a JSON schema as JSON; raise UserError when it is none: sets, keys that are no text, lone surrogates, too deep."""
    try:
        return orjson.dumps(schema).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"the JSON schema cannot be written as JSON ({error}); expected dicts with texts as keys, lists, texts in Unicode, "
            "numbers of 64 bits, booleans and None, nested less than 250 deep"
        ) from error


def grammar_of(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a grammar in GBNF with the rule `root`; raise UserError when it cannot be expressed."""
    try:
        plain = _expressible(_resolved(schema)) if schema else schema  # an empty one stands for any object
        grammar: str = json_schema_to_gbnf(schema_text(plain))
    except UserError:
        raise
    except Exception as error:  # the converter raises whatever the schema's shape leads to
        raise UserError(f"the JSON schema cannot be turned into a grammar ({type(error).__name__}: {error})") from error
    return _BLANKS.sub('space ::= ""', grammar.replace(_ANY_CHARACTER, _ANY_JSON_CHARACTER))


def encoded_grammar(grammar: str, what: str, *, of_schema: bool = False) -> bytes:
    """Return a grammar in GBNF as llama.cpp's parser takes it; raise UserError when it is past what that parser survives."""
    try:
        data = grammar.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not Unicode: it has a lone surrogate at character {error.start}; write whole characters"
        ) from error
    if (end := data.find(0)) >= 0:
        raise UserError(f"{what} has a NUL character at byte {end}; write it as \\x00")
    largest = LARGEST_SCHEMA_GRAMMAR if of_schema else LARGEST_GRAMMAR
    if len(data) > largest:
        raise UserError(f"{what} has {len(data)} bytes; expected at most {largest}. Make it smaller")
    _check_parts(grammar, what, DEEPEST_SCHEMA_GRAMMAR if of_schema else DEEPEST_GRAMMAR)
    return data


def _check_parts(grammar: str, what: str, deepest: int) -> None:
    depth = 0
    for part in _GBNF_PART.finditer(grammar):
        counts, parenthesis = part.groups()
        if parenthesis:
            depth += 1 if parenthesis == "(" else -1
        if depth > deepest:
            raise UserError(
                f"{what} has more than {deepest} parentheses open at once; put the inner ones in rules of their own"
            )
        _check_repetition(counts or "", what, LARGEST_REPETITION)


def _check_repetition(counts: str, what: str, largest: int) -> None:
    for count in re.findall(r"[0-9]+", counts):
        if len(count) > 9 or int(count) > largest:
            raise UserError(
                f"{what} repeats {{{counts[:40]}}}; expected at most {largest} repetitions, or none named, as in {{1,}}"
            )


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema with a reference at its top replaced by what it names: the converter fails on one that recurs."""
    seen: set[str] = set()
    while isinstance(schema, Mapping) and isinstance(ref := schema.get("$ref"), str) and ref not in seen:
        place, _, name = ref.removeprefix("#/").partition("/")
        definitions = schema.get(place) if place in ("$defs", "definitions") else None
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(definitions, Mapping) or not isinstance(definitions.get(name), Mapping):
            return schema
        seen.add(ref)
        schema = {**{key: value for key, value in schema.items() if key != "$ref"}, **definitions[name]}
    return schema


def _expressible(schema: Any) -> Any:
    """Return the schema with patterns, ranges and bounds written so that the converter keeps them."""
    if isinstance(schema, list):
        return [_expressible(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if (values := _range(schema)) is not None:
        return {"enum": list(values)}
    if schema.keys() <= _ANNOTATIONS:
        return _ANY_VALUE
    plain = {key: _expressible_at(key, value) for key, value in schema.items() if not _is_open(key, value)}
    if isinstance(pattern := schema.get("pattern"), str):
        for count in _PATTERN_COUNT.finditer(pattern):
            _check_repetition(count[0][1:-1], f"the pattern {pattern[:100]!r} of the JSON schema", LARGEST_COUNTS["maxLength"])
        plain["pattern"] = _plain_pattern(pattern)
    if schema.get("type") == "array" and not isinstance(schema.get("items"), Mapping) and not schema.get("prefixItems"):
        plain["items"] = plain.get("items") if isinstance(schema.get("items"), list) else _ANY_VALUE
    return plain


def _expressible_at(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
        return {name: _expressible(schema) for name, schema in value.items()}
    return _expressible(value)


def _is_open(key: str, value: Any) -> bool:
    """Say whether a bound is left out of the grammar; raise UserError for one that can be neither kept nor left out."""
    if key not in LARGEST_COUNTS or not isinstance(value, int | float) or value <= LARGEST_COUNTS[key]:
        return False
    if key.startswith("min"):
        raise UserError(f"the JSON schema has {key} {value}; expected at most {LARGEST_COUNTS[key]} in a grammar")
    return True


def _range(schema: Mapping[str, Any]) -> range | None:
    if schema.get("type") != "integer":
        return None
    bounds = {key: number for key, number in schema.items() if isinstance(number, int) and not isinstance(number, bool)}
    lows = [bounds[key] + step for key, step in (("minimum", 0), ("exclusiveMinimum", 1)) if key in bounds]
    highs = [bounds[key] - step for key, step in (("maximum", 0), ("exclusiveMaximum", 1)) if key in bounds]
    if not lows or not highs:
        return None
    low, high = max(lows), min(highs)
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
