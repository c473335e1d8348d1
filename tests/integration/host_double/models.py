"""The records that pass between the double and its provider."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Reductions(BaseModel):
    module_summary: dict[str, Any] | None = None
    suid_summary: dict[str, Any] | None = None
    network_summary: dict[str, Any] | None = None
    top_findings: list[dict[str, Any]] = Field(default_factory=list)
    top_risks: list[dict[str, Any]] | None = None


class Correlation(BaseModel):
    id: str
    title: str
    rationale: str
    related_finding_ids: list[str]
    risk_score_delta: int = 0
    tags: list[str] = Field(default_factory=list)
    severity: str | None = None


class ActionItem(BaseModel):
    priority: int
    action: str
    correlation_refs: list[str] = Field(default_factory=list)


class Summaries(BaseModel):
    executive_summary: str | None = None
    analyst: dict[str, Any] | None = None
    consistency_findings: list[Any] | None = None
    triage_summary: dict[str, Any] | None = None
    action_narrative: str | None = None
    metrics: dict[str, Any] | None = None
    causal_hypotheses: list[dict[str, Any]] | None = None
    attack_coverage: dict[str, Any] | None = None
