"""What an analysis consists of: frozen records that become JSON. The graph makes them, pages and the host read them.

Graph state holds their `model_dump(mode="json")`, never the records themselves, so that any checkpointer can store it. Text in
them was written by a model or quotes a finding: it is data, and whoever shows it escapes it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sysscan_models.prompts import Severity


class Record(BaseModel):
    """The base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FindingAnalysis(Record):
    """What the specialist says about one finding."""

    alias: str
    """How prompts call the finding: F1, F2, ..., the most severe first. Unique, where a report's own ids need not be."""
    finding_id: str
    """The report's own id, which may hold a path or a user's name; it never reaches a prompt."""
    scanner: str = ""
    title: str = ""
    reported_severity: str = ""
    """What the scanner said."""
    evidence: tuple[str, ...] = ()
    """The lines that the specialist was shown, redacted."""
    analysis: str = ""
    findings: tuple[str, ...] = ()
    severity: Severity
    """What the specialist says; the scanner's where it says nothing."""
    risk_score: int | None = None
    """0 to 100; None where the specialist gave none."""
    techniques: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    remediation: tuple[str, ...] = ()
    same_as: str = ""
    """Alias of a finding with the same prompt, whose answer this is; empty when it was asked itself."""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Correlation(Record):
    """Findings that belong together, and why."""

    id: str
    """C1, C2, ..."""
    kind: str
    """What they share: `technique`, `control`, `scanner`, `path`, `user`, ..."""
    value: str
    """The shared thing itself, such as T1548.001."""
    title: str
    severity: Severity
    finding_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    rationale: str = ""


class ComplianceGap(Record):
    """A control of a standard that findings speak against."""

    standard: str
    """`PCI DSS`, `HIPAA`, `ISO27001`, `NIST SP 800-53`, `CIS`, ..."""
    control: str
    finding_ids: tuple[str, ...]
    aliases: tuple[str, ...]
    severity: Severity
    remediation: tuple[str, ...] = ()


class Point(Record):
    """A sentence of the report and the findings that it rests on."""

    text: str
    finding_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class LeftOut(Record):
    """A finding that was not analysed."""

    alias: str
    finding_id: str
    title: str
    severity: str
    reason: str
    """`time budget`, `failed`, or the selection that left it out."""


class AnalysisWarning(Record):
    """Something that went wrong without stopping the analysis."""

    stage: str
    message: str
    finding_id: str = ""


class AnalysisReport(Record):
    """The whole analysis of one scan report."""

    version: int = 1
    host: str = ""
    scanned: str = ""
    """When or by what the scan was made, as its `meta` says."""
    executive_summary: str = ""
    key_findings: tuple[Point, ...] = ()
    recommendations: tuple[Point, ...] = ()
    analyses: tuple[FindingAnalysis, ...] = ()
    """The most severe first."""
    correlations: tuple[Correlation, ...] = ()
    compliance_gaps: tuple[ComplianceGap, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[AnalysisWarning, ...] = ()
    models: dict[str, str] = {}
    """Role -> name of the model that answered."""
    tokens_prompt: int = 0
    tokens_completion: int = 0
    seconds: float = 0.0
