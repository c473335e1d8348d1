from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException

from sysscan_langgraph.analysis.answers import read_answer, read_points
from sysscan_langgraph.analysis.schemas import LIST_ITEMS, POINTS, answer_schema, report_schema
from sysscan_models.prompts import GeneralistResponse, SpecialistResponse

WHOLE = (
    '{"analysis": "A \\"quoted\\" thing", "findings": ["one", "two"], "severity": "high", "risk_score": 75, '
    '"techniques": ["T1548.001"], "controls": [], "remediation": ["do x", "do y"]}'
)


def said(text: str) -> dict[str, Any]:
    return read_answer(text, SpecialistResponse).model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ('{"analysis": "A \\"quo', {"analysis": 'A "quo …'}),
        ('{"analysis": "A \\', {"analysis": "A …"}),
        ('{"analysis": "A \\u00', {"analysis": "A …"}),
        ('{"analysis": "A", "fin', {"analysis": "A"}),
        ('{"analysis": "A", "findings":', {"analysis": "A"}),
        ('{"analysis": "A", "findings": ["one", "tw', {"analysis": "A", "findings": ["one"]}),
        ('{"analysis": "A", "findings": ["one"', {"analysis": "A", "findings": ["one"]}),
        ('{"analysis": "A", "severity": "hi', {"analysis": "A"}),
        ('{"analysis": "A", "risk_score": 7', {"analysis": "A"}),
        ('{"analysis": "A", "risk_score": 7,', {"analysis": "A", "risk_score": 7}),
        ('{"analysis": "A", "techniques": ["T1548.001", "T15', {"analysis": "A", "techniques": ["T1548.001"]}),
    ],
)
def test_a_cut_answer_is_used_as_far_as_it_is_whole(cut: str, kept: dict[str, Any]) -> None:
    assert said(cut) == kept


def test_every_cut_of_an_answer_gives_a_part_of_the_whole_or_an_error() -> None:
    whole = said(WHOLE)
    for end in range(len(WHOLE)):
        try:
            part = said(WHOLE[:end])
        except OutputParserException:
            continue
        for name, value in part.items():
            if isinstance(value, list):
                assert value == whole[name][: len(value)]
            elif isinstance(value, str) and value.endswith(" …"):
                assert whole[name].startswith(value.removesuffix(" …"))
            else:
                assert value == whole[name]


def test_what_does_not_fit_the_model_is_dropped_and_the_rest_kept() -> None:
    odd = {"analysis": " x ", "techniques": ["T1", "T1548.001", 5], "risk_score": 400, "severity": "dire", "other": 1}
    assert said(json.dumps(odd)) == {"analysis": "x", "techniques": ["T1548.001"]}


def test_text_around_the_object_does_not_matter_and_secrets_are_redacted() -> None:
    assert said(f"Sure: {WHOLE} I hope")["severity"] == "high"
    assert said('{"analysis": "key hf_abcdefghijklmnopqrstuvwx1"}') == {"analysis": "key [HF_TOKEN]"}


def test_texts_that_the_schema_ended_are_marked() -> None:
    schema = answer_schema(SpecialistResponse, 64)
    longest = schema["properties"]["remediation"]["items"]["maxLength"]
    steps = ["x" * longest, "y" * (longest - 1), "z" * (longest - 1) + "."]
    said = read_answer(json.dumps({"remediation": steps}), SpecialistResponse, schema).remediation
    assert said == [f"{steps[0]} …", *steps[1:]]
    report = report_schema(GeneralistResponse, 64, ["F1"])
    points = ["F1: " + "x" * 500, "F1: short"]
    written = read_answer(json.dumps({"key_findings": points}), GeneralistResponse, report).key_findings
    assert written == [f"{points[0]} …", points[1]]


@pytest.mark.parametrize("text", ["", "no", "[1]", '{"analysis": ""}', '{"analysis": "', "{", '{"a": ' + "[" * 100_000, "{}"])
def test_an_answer_that_says_nothing_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(OutputParserException, match=r"the model's answer (is no JSON object|says nothing that can be used): "):
        read_answer(text, SpecialistResponse)


def test_points_name_findings_and_their_ids() -> None:
    ids = {"F1": "/a", "F2": "/b", "F3": "c", "F12": "d"}
    texts = ["F1, F12: both", "F3 and F9 - hello", "(F1, F1) once", "no reference", "F1:", "about F2 it is", "F9: unknown"]
    points, lost = read_points(texts, ids)
    assert [(point.text, point.aliases, point.finding_ids) for point in points] == [
        ("both", ("F1", "F12"), ("/a", "d")),
        ("hello", ("F3",), ("c",)),
        ("once", ("F1",), ("/a",)),
        ("about F2 it is", ("F2",), ("/b",)),
    ]
    assert lost == 3


def test_the_schema_asks_for_every_field_in_order_and_bounds_it() -> None:
    schema = answer_schema(SpecialistResponse, 320)
    assert schema["required"] == list(schema["properties"]) == list(SpecialistResponse.model_fields)
    assert schema["properties"]["severity"]["enum"] == ["info", "low", "medium", "high", "critical"]
    longest = {name: shape["maxLength"] for name, shape in schema["properties"].items() if "maxLength" in shape}
    assert set(longest) == {"analysis"}
    listed = [shape for shape in schema["properties"].values() if shape.get("type") == "array"]
    assert all(shape["maxItems"] == LIST_ITEMS for shape in listed)
    small, large = answer_schema(SpecialistResponse, 64), answer_schema(SpecialistResponse, 1000)
    assert small["properties"]["analysis"]["maxLength"] < longest["analysis"] < large["properties"]["analysis"]["maxLength"]
    assert list(answer_schema(SpecialistResponse, 64, ("analysis",))["properties"]) == ["analysis"]


def test_points_of_the_report_begin_with_the_findings_there_are() -> None:
    import re

    schema = report_schema(GeneralistResponse, 640, ["F1", "F12"])
    points = schema["properties"]["key_findings"]
    assert (points["minItems"], points["maxItems"]) == (1, POINTS)
    pattern = re.compile(points["items"]["pattern"])
    assert pattern.search("F1: eight letters")
    assert pattern.search("F12, F1: eight letters")
    assert not pattern.search("F2: eight letters")
    assert not pattern.search("eight letters")
    assert not pattern.search('F1: "quoted" text')
