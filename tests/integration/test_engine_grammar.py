"""Grammars and schemas that llama.cpp's parser would not survive, and schemas that its converter does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine_cases import model_file

from sysscan_langgraph.engine.sampling import Grammar, Tools
from sysscan_langgraph.engine.weights import Weights, open_weights
from sysscan_langgraph.grammar import grammar_of, schema_text
from sysscan_models.errors import UserError

NODE = {"type": "object", "properties": {"v": {"enum": ["a"]}, "k": {"type": "array", "items": {"$ref": "#/$defs/N"}}}}
RECURSIVE = {"$ref": "#/$defs/N", "$defs": {"N": {**NODE, "required": ["v", "k"], "additionalProperties": False}}}


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    opened = open_weights(model_file(), 0)
    yield opened
    opened.release()


def allows(weights: Weights, schema: dict[str, Any], text: str) -> bool:
    tools = Tools(weights)
    grammar = Grammar.start(tools, weights.grammar_of_schema(schema_text(schema)))
    try:
        for token in map(tools.byte_token, text.encode()):
            if not grammar.allows(token):
                return False
            grammar.accept(token)
        return grammar.allows(tools.end)
    finally:
        grammar.free()


@pytest.mark.parametrize("longest", [900, 901, 2000, 10_000, 20_000, 65_536, 10**7])
def test_long_maxima_are_accepted(weights: Weights, longest: int) -> None:
    assert allows(weights, {"type": "string", "maxLength": longest}, '"abc"')
    assert allows(weights, {"type": "array", "items": {"type": "boolean"}, "maxItems": longest}, "[true,false]")


def test_maxima_within_the_limit_are_kept(weights: Weights) -> None:
    assert not allows(weights, {"type": "string", "maxLength": 2}, '"abc"')
    assert not allows(weights, {"type": "array", "items": {"type": "boolean"}, "maxItems": 1}, "[true,false]")


@pytest.mark.parametrize(("key", "limit"), [("minLength", 900), ("minItems", 400)])
def test_long_minima_are_refused(weights: Weights, key: str, limit: int) -> None:
    kind = {"type": "string"} if key == "minLength" else {"type": "array", "items": {"type": "null"}}
    assert weights.grammar_of_schema(schema_text({**kind, key: limit}))
    with pytest.raises(UserError, match=f"has {key} 20000; expected at most {limit}"):
        grammar_of({**kind, key: 20_000})


@pytest.mark.parametrize("count", ["{901}", "{0,20000}", "{20000,}", "{1,99999999999}"])
def test_long_repetitions_of_a_pattern_are_refused(count: str) -> None:
    with pytest.raises(UserError, match=r"the pattern .* of the JSON schema repeats .*at most 900"):
        grammar_of({"type": "string", "pattern": f"^[a-z]{count}$"})


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000, "more than 200 parentheses open"),
        ('root ::= <"> ' + "(" * 40_000, "more than 200 parentheses open"),
        ('root ::= "a" # ' + "a" * 100_000, "has 100015 bytes; expected at most 100000"),
        ('root ::= "a"{0,2001}', r"repeats \{0,2001\}; expected at most 2000"),
        ('root ::= "a"{' + "9" * 5000 + "}", "expected at most 2000"),
        ('root ::= "\ud800"', "lone surrogate at character 10"),
        ('root ::= "a\0b"', "NUL character at byte 11"),
    ],
)
def test_grammars_past_the_bounds_are_refused(weights: Weights, grammar: str, message: str) -> None:
    with pytest.raises(UserError, match=f"the grammar .*{message}"):
        weights.checked_grammar(grammar)


def test_text_of_a_grammar_is_not_counted(weights: Weights) -> None:
    text = 'root ::= "' + "(" * 300 + '{5000}\\"(" [({5000}\\]]{2} ("a"{2000})? # {5000}'
    assert weights.checked_grammar(text) == text


@pytest.mark.parametrize("schema", [{"enum": [{1}]}, {1: 2}, {"enum": ["\ud800"]}, {"const": 2**70}])
def test_what_is_no_json_is_refused(schema: Any) -> None:
    with pytest.raises(UserError, match="the JSON schema cannot be written as JSON"):
        schema_text(schema)


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(UserError, match="nested less than"):
        schema_text(schema)


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        (RECURSIVE, '{"v":"a","k":[{"v":"a","k":[]}]}', True),
        (RECURSIVE, '{"v":"a","k":[{"v":"b","k":[]}]}', False),
        ({"type": "array"}, '[1,"a",{"b":[null]}]', True),
        ({"type": "array", "items": {}}, '[1,"a"]', True),
        ({"type": "array", "items": {"title": "Any"}, "maxItems": 1}, "[1,2]", False),
        ({"type": "object", "properties": {"a": {"title": "A"}}, "required": ["a"]}, '{"a":[1]}', True),
        ({"type": "object", "properties": {"items": {"type": "null"}}, "required": ["items"]}, '{"items":null}', True),
        ({"const": {"type": "array", "maxLength": 5000}}, '{"type": "array", "maxLength": 5000}', True),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5}, "4", True),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5}, "5", False),
        ({"type": "integer", "exclusiveMinimum": 0, "maximum": 5}, "0", False),
        ({"type": "object", "properties": {"maxLength": {"const": 1}}, "required": ["maxLength"]}, '{"maxLength":1}', True),
    ],
)
def test_schemas_that_the_converter_does_not_know(weights: Weights, schema: dict[str, Any], text: str, allowed: bool) -> None:
    assert allows(weights, schema, text) is allowed
