"""What is trained from a document, exactly, and the door that text passes through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sysscan_models.documents import Document
from sysscan_models.prompts import conversation, example, finding_document, user_turn
from sysscan_models.roles import GENERALIST, SPECIALIST


def document(**fields: Any) -> Document:
    return Document(id="d1", **fields)


def answer(made: Any) -> dict[str, Any]:
    assert made.messages[-1]["role"] == "assistant"
    return json.loads(made.messages[-1]["content"])


def test_title_and_description_ask_and_the_response_answers() -> None:
    made = example(
        SPECIALIST,
        document(
            title="SUID bash",
            description="A copy of bash is SUID root.",
            content="Anyone becomes root.",
            findings=("mode 4755",),
            labels={"severity": "critical", "risk_score": 95, "techniques": ["T1548.001"], "remediation": "chmod u-s"},
        ),
    )
    assert made.kind == "answer"
    assert [turn["role"] for turn in made.messages] == ["system", "user", "assistant"]
    assert made.messages[0]["content"] == SPECIALIST.system_prompt
    assert made.messages[1]["content"] == "SUID bash\n\nA copy of bash is SUID root."
    assert answer(made) == {
        "analysis": "Anyone becomes root.",
        "findings": ["mode 4755"],
        "severity": "critical",
        "risk_score": 95,
        "techniques": ["T1548.001"],
        "remediation": ["chmod u-s"],
    }


def test_fields_that_the_document_does_not_support_are_left_out() -> None:
    made = example(SPECIALIST, document(title="T", description="D", content="C"))
    assert answer(made) == {"analysis": "C"}


def test_labels_that_do_not_fit_the_contract_are_left_out_and_the_rest_kept() -> None:
    labels = {"severity": "terrible", "risk_score": 400, "techniques": ["not an id"], "controls": "AC-6", "colour": "red"}
    made = example(SPECIALIST, document(title="T", description="D", content="C", labels=labels))
    assert answer(made) == {"analysis": "C", "controls": ["AC-6"]}


def test_the_generalist_answers_with_a_report() -> None:
    made = example(
        GENERALIST,
        document(
            title="T", description="D", content="C", findings=("a", "b"), labels={"remediation": ["x"], "severity": "low"}
        ),
    )
    assert answer(made) == {"executive_summary": "C", "key_findings": ["a", "b"], "recommendations": ["x"]}


def test_without_content_the_description_answers_the_title() -> None:
    made = example(SPECIALIST, document(title="What is umask?", description="A mask of permission bits."))
    assert made.kind == "title"
    assert made.messages[1]["content"] == "What is umask?"
    assert answer(made) == {"analysis": "A mask of permission bits."}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": "only content"}, "only content"),
        ({"title": "only a title"}, "only a title"),
        ({"description": "only words", "findings": ("f",)}, "only words\n\nf"),
    ],
)
def test_nothing_to_answer_is_plain_text(fields: dict[str, Any], text: str) -> None:
    made = example(SPECIALIST, document(**fields))
    assert (made.kind, made.text, made.messages) == ("text", text, ())


def test_given_messages_are_used_as_they_are() -> None:
    turns = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
    made = example(SPECIALIST, document(title="ignored", description="x", content="y", messages=turns))
    assert made.kind == "messages"
    assert made.messages == turns


def test_a_finding_is_rendered_by_the_same_code_with_its_evidence_and_without_its_severity() -> None:
    finding = {
        "id": "/bin/x",
        "title": "SUID",
        "description": "A file.",
        "severity": "high",
        "metadata": {"mode": "4755", "n": 2, "e": ""},
    }
    turns = conversation(SPECIALIST, finding_document(finding))
    assert turns[0] == {"role": "system", "content": SPECIALIST.system_prompt}
    assert turns[1]["content"] == user_turn("SUID", "A file.\nmode: 4755\nn: 2")
    assert "high" not in turns[1]["content"]


def test_metadata_under_the_name_of_a_secret_is_one():
    shown = finding_document(
        {"title": "T", "metadata": {"password": ["correcthorse"], "api_key": "batterystaple", "path": "/etc"}}
    )
    assert "correcthorse" not in shown.description
    assert "path: /etc" in shown.description
