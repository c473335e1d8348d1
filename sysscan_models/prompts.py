"""The role contract's text: how a document or a finding becomes a conversation, and what an answer looks like.

Training, GGUF metadata, evaluation and serving all read this module, so that what a model was trained on is what a node sends.
`redact` is the one door through which the text of documents and findings passes into prompts, files and logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sysscan_models.documents import Document
from sysscan_models.redaction import redact as redact  # the door is reached here too
from sysscan_models.redaction import redact_deep as redact_deep

if TYPE_CHECKING:
    from sysscan_models.roles import ModelRole

Severity = Literal["info", "low", "medium", "high", "critical"]
Message = Mapping[str, str]
"""One turn: `role` is system, user or assistant; `content` is its text."""


def _one_or_many(value: object) -> object:
    """Accept one string where a list of strings is expected, as datasets often have it."""
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_one_or_many)]


class Response(BaseModel):
    """The base of response models: every field may be absent, unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def to_json(self) -> str:
        """Return the fields that are set, in the model's order, as one line of JSON; this is what a model is trained to say."""
        return orjson.dumps(self.model_dump(mode="json", exclude_none=True)).decode()


class SpecialistResponse(Response):
    """What the specialist answers about one finding or document."""

    analysis: str | None = None
    """What it means, why it matters or is benign, how it would be abused, what to check next."""
    findings: Texts | None = None
    """Short factual statements that the analysis rests on."""
    severity: Severity | None = None
    """How bad it is on this host."""
    risk_score: Annotated[int, Field(ge=0, le=100)] | None = None
    """0 (harmless) to 100 (act now)."""
    techniques: Annotated[list[Annotated[str, Field(pattern=r"^T\d{4}(\.\d{3})?$")]], BeforeValidator(_one_or_many)] | None = (
        None
    )
    """MITRE ATT&CK technique ids, such as T1548.001."""
    controls: Texts | None = None
    """Compliance controls that it touches, such as NIST SP 800-53 AC-6."""
    remediation: Texts | None = None
    """What to do, most important first."""


class GeneralistResponse(Response):
    """What the generalist answers: context and report."""

    executive_summary: str | None = None
    """The whole in a few sentences, for a reader who decides."""
    key_findings: Texts | None = None
    """The points that matter, most important first."""
    recommendations: Texts | None = None
    """What to do next."""


@dataclass(frozen=True)
class Example:
    """What is trained from one document.

    ``kind`` is `answer` (title and description ask, the response answers), `labels` (no content: they ask, the labels alone
    answer), `title` (neither: the description answers the title), `messages` (given chat data) or `text` (nothing to answer:
    plain text, every token supervised).
    """

    kind: Literal["answer", "labels", "title", "messages", "text"]
    messages: tuple[Message, ...] = ()
    text: str = ""


def user_turn(title: str, description: str = "") -> str:
    """Render a title and a description as the user's turn; both training and serving use this."""
    return _paragraphs(redact(title).strip(), redact(description).strip())


def finding_document(finding: Mapping[str, Any]) -> Document:
    """Return a scanner finding (schema v2: id, title, description, metadata) as a document with its evidence as text.

    Metadata follows the description as `key: value` lines, in the order given. The scanner's own severity is left out: it is
    what the specialist is asked for.
    """
    metadata = finding.get("metadata") or {}
    evidence = [
        f"{key}: {_plain(redact_deep({key: value})[key])}" for key, value in metadata.items() if value not in (None, "", [], {})
    ]
    description = "\n".join(part for part in (str(finding.get("description") or "").strip(), *evidence) if part)
    return Document(id=str(finding.get("id", "")), title=str(finding.get("title", "")), description=description)


def conversation(role: ModelRole, document: Document) -> list[Message]:
    """Return the turns that ask a role about a document or finding: what serving sends, what training began with."""
    return with_system(role.system_prompt, [{"role": "user", "content": user_turn(document.title, document.description)}])


def with_system(system_prompt: str, turns: Sequence[Message]) -> list[Message]:
    """Put the system prompt first, unless the turns bring one of their own."""
    if not system_prompt or (turns and turns[0]["role"] == "system"):
        return list(turns)
    return [{"role": "system", "content": system_prompt}, *turns]


def example(role: ModelRole, document: Document) -> Example:
    """Return what this role learns from a document, by the rules that `Example` lists."""
    without = replace(
        document,
        title=redact(document.title),
        description=redact(document.description),
        content=redact(document.content),
        findings=tuple(map(redact, document.findings)),
        labels=redact_deep(document.labels),
        messages=tuple({**turn, "content": redact(turn["content"])} for turn in document.messages),
    )
    return redacted_example(role, without)


def redacted_example(role: ModelRole, document: Document) -> Example:
    """Return what `example` does, from a document whose text went through `redact` already."""
    if document.messages:
        given = [{"role": turn["role"], "content": turn["content"].strip()} for turn in document.messages]
        return Example("messages", messages=tuple(given))
    title, description, content = document.title.strip(), document.description.strip(), document.content.strip()
    question = _paragraphs(title, description)
    if content and question:
        return _asked(role, "answer", question, _response(role, document, content))
    if question and not content and (labelled := _response(role, document, "")).model_fields_set & _labels_of(role, document):
        return _asked(role, "labels", question, labelled)
    if title and description:
        return _asked(role, "title", title, _response(role, document, description))
    return Example("text", text=_paragraphs(title, description, content, *document.findings))


def _asked(role: ModelRole, kind: Literal["answer", "labels", "title"], question: str, answer: Response) -> Example:
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer.to_json()}]
    return Example(kind, messages=tuple(with_system(role.system_prompt, asked)))


def _labels_of(role: ModelRole, document: Document) -> set[str]:
    """Return the fields of the role's answer that the document's labels, and not its text, would fill."""
    return {field for field, key in role.answer.items() if key in document.labels}


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _response(role: ModelRole, document: Document, analysis: str) -> Response:
    """Fill the role's response model with what the document supports; labels that do not fit the model are left out."""
    offered: dict[str, Any] = {"content": analysis, "findings": list(document.findings), **document.labels}
    fields = {name: _stripped(offered[key]) for name, key in role.answer.items() if offered.get(key) not in (None, "", [], ())}
    while True:
        try:
            return role.response_model.model_validate(fields)
        except ValidationError as error:
            wrong = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
            if not wrong & fields.keys():
                raise
            fields = {name: value for name, value in fields.items() if name not in wrong}


def _stripped(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def _plain(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
