"""Roles: what a model is for, and the contract that training and serving share.

The two built-in roles register like a plugin's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sysscan_models.hookspecs import hookimpl
from sysscan_models.prompts import GeneralistResponse, Response, SpecialistResponse


@dataclass(frozen=True)
class Sampling:
    """Defaults for serving. A temperature of 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    repeat_penalty: float = 1.0
    max_tokens: int = 512


@dataclass(frozen=True)
class ModelRole:
    """One role: its contract and its file names. Frozen; a plugin registers instances."""

    name: str
    """What the configuration and the command line call it: lower-case letters, digits, underscores."""
    description: str
    system_prompt: str
    response_model: type[Response]
    answer: Mapping[str, str]
    """Field of the response model -> where its value comes from: `content`, `findings`, or a label of the document."""
    context_length: int = 4096
    """Tokens: prompt and answer together, as the model is served."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        unknown = self.answer.keys() - self.response_model.model_fields.keys()
        if unknown:
            raise ValueError(f"role {self.name!r}: {sorted(unknown)} are not fields of {self.response_model.__name__}")


SPECIALIST = ModelRole(
    name="specialist",
    description="Deep analysis of a security finding: threat correlation, compliance controls, remediation, severity, risk",
    system_prompt=(
        "You are the specialist of Sys-Scan-Graph, a senior Linux security analyst. Analyse the finding you are given and "
        "answer with one JSON object: analysis, findings, severity (info, low, medium, high or critical), risk_score (0 to "
        "100), techniques (MITRE ATT&CK ids), controls, remediation. Leave out what the evidence does not support."
    ),
    response_model=SpecialistResponse,
    answer={
        "analysis": "content",
        "findings": "findings",
        "severity": "severity",
        "risk_score": "risk_score",
        "techniques": "techniques",
        "controls": "controls",
        "remediation": "remediation",
    },
    context_length=4096,
)

GENERALIST = ModelRole(
    name="generalist",
    description="Context and reports: executive summaries, key findings, recommendations",
    system_prompt=(
        "You are the generalist of Sys-Scan-Graph. Put what you are given into context for a reader who decides, and answer "
        "with one JSON object: executive_summary, key_findings, recommendations. Leave out what the text does not support."
    ),
    response_model=GeneralistResponse,
    answer={"executive_summary": "content", "key_findings": "findings", "recommendations": "remediation"},
    context_length=2048,
)


@hookimpl
def sysscan_register_roles() -> Sequence[ModelRole]:
    """Return the two roles of Sys-Scan-Graph."""
    return [SPECIALIST, GENERALIST]
