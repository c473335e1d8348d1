"""The role contract's text: how a document or a finding becomes a conversation, and what an answer looks like.

Training, GGUF metadata, evaluation and serving all read this module, so that what a model was trained on is what a node sends.
`redact` is the one door through which the text of documents and findings passes into prompts, files and logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    ``kind`` is `answer` (title and description ask, the response answers), `title` (no content: the description answers the
    title), `messages` (given chat data) or `text` (nothing to answer: plain text, every token supervised).
    """

    kind: Literal["answer", "title", "messages", "text"]
    messages: tuple[Message, ...] = ()
    text: str = ""


def user_turn(title: str, description: str = "") -> str:
    """Render a title and a description as the user's turn; both training and serving use this."""
    return "\n\n".join(part for part in (redact(title).strip(), redact(description).strip()) if part)


def finding_document(finding: Mapping[str, Any]) -> Document:
    """Return a scanner finding (schema v2: id, title, description, metadata) as a document with its evidence as text.

    Metadata follows the description as `key: value` lines, in the order given. The scanner's own severity is left out: it is
    what the specialist is asked for.
    """
    metadata = finding.get("metadata") or {}
    evidence = [f"{key}: {_plain(redact_deep(value))}" for key, value in metadata.items() if value not in (None, "", [], {})]
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
    if document.messages:
        given = [{"role": turn["role"], "content": redact(turn["content"]).strip()} for turn in document.messages]
        return Example("messages", messages=tuple(given))
    title, description = redact(document.title).strip(), redact(document.description).strip()
    content = redact(document.content).strip()
    if content and (title or description):
        kind, question, analysis = "answer", user_turn(title, description), content
    elif title and description:
        kind, question, analysis = "title", title, description
    else:
        return Example(
            "text", text="\n\n".join(part for part in (title, description, content, *map(redact, document.findings)) if part)
        )
    answer = response(role, document, analysis).to_json()
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    turns = with_system(role.system_prompt, asked)
    return Example("answer" if kind == "answer" else "title", messages=tuple(turns))


def response(role: ModelRole, document: Document, analysis: str) -> Response:
    """Fill the role's response model with what the document supports; labels that do not fit the model are left out."""
    offered: dict[str, Any] = {"content": analysis, "findings": [redact(text) for text in document.findings], **document.labels}
    told = {name: offered[key] for name, key in role.answer.items() if offered.get(key) not in (None, "", [], ())}
    fields = {name: _stripped(redact_deep(value)) for name, value in told.items()}
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
