"""What is trained from a document, exactly, and the door that text passes through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sysscan_models.documents import Document
from sysscan_models.prompts import conversation, example, finding_document, redact, redact_deep, user_turn
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


@pytest.mark.parametrize(
    ("secret", "placeholder"),
    [
        ("hf_" + "a1B2" * 8, "[HF_TOKEN]"),
        ("sk-" + "x9" * 15, "[SK_TOKEN]"),
        ("ghp_" + "Q7" * 18, "[GITHUB_TOKEN]"),
        ("AKIA" + "ABCD1234" * 2, "[AWS_KEY_ID]"),
        ("AIza" + "b" * 35, "[GOOGLE_KEY]"),
        ("xoxb-" + "1234567890-abc", "[SLACK_TOKEN]"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "[JWT]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----", "[PRIVATE_KEY]"),
    ],
)
def test_secrets_become_typed_placeholders_everywhere(secret: str, placeholder: str) -> None:
    assert redact(f"a {secret} b") == f"a {placeholder} b"
    made = example(
        SPECIALIST,
        document(
            title=f"T {secret}", description=secret, content=f"C {secret}", findings=(secret,), labels={"remediation": secret}
        ),
    )
    assert secret not in json.dumps(made.messages)


@pytest.mark.parametrize("line_end", ["\\n", "\\r\\n", "\\\\n", "\r\n", "\\u000a"])
def test_a_private_key_is_known_however_its_line_ends_are_written(line_end: str) -> None:
    key = line_end.join(
        ["-----BEGIN RSA PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED", "MIIB+/=", "-----END RSA PRIVATE KEY-----"]
    )
    assert redact(f"a {key}{line_end}b") == f"a [PRIVATE_KEY]{line_end}b"


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 8, "AKIA" + "ABCD1234" * 2, "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"])
def test_a_secret_behind_a_line_end_that_was_quoted_is_known(secret: str) -> None:
    assert secret not in redact(f"first\\n{secret}")
    assert secret not in redact(f"x-{secret}\\tlast")


def test_evidence_is_redacted_before_it_is_quoted() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----"
    token, url = "hf_" + "a1B2" * 8, 'https://u:it"s@host'
    metadata = {"list": [key, f"x\n{token}"], "deep": {f"of\n{token}": [{"url": url}]}, "n": [1, None]}
    shown = finding_document({"title": "t", "metadata": metadata}).description
    assert shown.splitlines() == [
        'list: ["[PRIVATE_KEY]","x\\n[HF_TOKEN]"]',
        'deep: {"of\\n[HF_TOKEN]":[{"url":"https://u:[PASSWORD]@host"}]}',
        "n: [1,null]",
    ]
    assert redact_deep({"a": (token, 1), 2: None}) == {"a": ["[HF_TOKEN]", 1], 2: None}


def test_a_password_in_a_url_is_hidden_and_the_rest_stays() -> None:
    assert redact("postgres://app:s3cret@db:5432/x") == "postgres://app:[PASSWORD]@db:5432/x"


@pytest.mark.parametrize(
    "kept",
    ["CVE-2021-4034", "d41d8cd98f00b204e9800998ecf8427e", "task-list-of-things", "http://127.0.0.1:8080/a@b", "10.1.2.3:22"],
)
def test_what_is_no_secret_stays(kept: str) -> None:
    assert redact(kept) == kept


@pytest.mark.parametrize(
    "bait",
    [
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\\n-a",
        "-----BEGIN PRIVATE KEY PRIVATE KEY",
        "a://",
        "a.b.c.d://u:",
        "eyJ",
        "eyJ-",
        "eyJaaaaaaaa.",
        "sk-",
        "sk-a-",
    ],
)
@pytest.mark.timeout(60)  # linear takes a second, what reads the text again from each place in it some minutes
def test_hostile_text_does_not_hang_redaction(bait: str) -> None:
    text = bait * ((12_000_000 if bait.endswith("KEY-----") else 2_000_000) // len(bait))
    assert len(redact(text)) <= len(text)
