"""The host's risk assessment and compliance check: counts and totals from the findings, reasons from the specialist.

What decides (levels, totals, which standards are met) is computed from the findings, the same each time. The specialist's part
is why, what to do, and which controls a finding touches. It knows three standards, because the host does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sysscan_langgraph.analysis.compliance import compliance_gaps
from sysscan_langgraph.analysis.records import FindingAnalysis
from sysscan_langgraph.host.analyst import recommended
from sysscan_langgraph.host.asking import Answer
from sysscan_langgraph.host.findings import LEVELS, HostCorrelation, HostFinding, counts, worst
from sysscan_langgraph.host.scan import Opinion

_STATED = {
    "PCI DSS": re.compile(r"\bpci", re.IGNORECASE),
    "HIPAA": re.compile(r"\bhipaa\b", re.IGNORECASE),
    "ISO27001": re.compile(r"\biso(?:/iec)?[ _-]?2700[12]\b", re.IGNORECASE),
}


def risk_assessment(
    findings: Sequence[HostFinding], correlations: Sequence[HostCorrelation], opinions: Sequence[Opinion]
) -> dict[str, Any]:
    """Return the host's risk assessment, all fifteen keys of it."""
    level, total = worst(findings), sum(finding.risk_score for finding in findings)
    ranked = sorted(opinions, key=lambda opinion: opinion[0].rank)
    reasons = [f"{finding.title}: {first}" for finding, answer in ranked if (first := _first_sentence(answer.text("analysis")))]
    riskiest = sorted(findings, key=lambda finding: -finding.risk_score)[:5]
    return {
        "overall_risk_level": level,
        "overall_risk": level,
        "risk_level": level,
        "risk_factors": list(dict.fromkeys(reasons))[:5],
        "recommendations": recommended(opinions),
        "confidence_score": confidence(opinions),
        "counts": counts(findings),
        "total_risk_score": total + sum(correlation.risk_score_delta for correlation in correlations),
        "average_risk_score": total / len(findings) if findings else 0.0,
        "finding_count": len(findings),
        "top_findings": [
            {"id": one.id, "title": one.title, "risk_score": one.risk_score, "severity": one.severity} for one in riskiest
        ],
        "risk_trends": _trends(findings),
        "high_severity_count": sum(finding.severity in ("high", "critical") for finding in findings),
        "correlation_count": len(correlations),
    }


def confidence(opinions: Sequence[Opinion]) -> float:
    """Return the share of asked findings on whose severity scanner and specialist agree to one level, from 0.5 to 1.

    0.5 where nobody was asked or answered: the assessment then rests on the scanner alone.
    """
    agreed = sum(bool(said.severity) and abs(LEVELS.index(said.severity) - finding.rank[0]) <= 1 for finding, said in opinions)
    return round(0.5 + 0.5 * agreed / len(opinions), 3) if opinions else 0.5


def compliance_check(findings: Sequence[HostFinding], opinions: Sequence[Opinion]) -> dict[str, Any]:
    """Return the host's compliance check: which findings speak against which standard, and against which control of it.

    A finding speaks against the standards that its title, tags or metadata state, against those whose controls the specialist
    names, and by the table of `analysis.compliance`.
    """
    said = {id(finding): answer for finding, answer in opinions}
    numbered = {f"F{place}": finding for place, finding in enumerate(findings, 1)}
    gaps = compliance_gaps([_analysis(alias, one, said.get(id(one), Answer())) for alias, one in numbered.items()])
    touched = {}
    for standard, stated in _STATED.items():
        named = {alias for gap in gaps if gap.standard == standard for alias in gap.aliases}
        speaking = (one for alias, one in numbered.items() if alias in named or stated.search(_statement(one)))
        touched[standard] = list(dict.fromkeys(one.id for one in speaking))
    return {
        "standards": {name: {"finding_ids": ids, "count": len(ids)} for name, ids in touched.items()},
        "total_compliance_findings": sum(len(ids) for ids in touched.values()),
        "pci_dss_compliant": not touched["PCI DSS"],
        "hipaa_compliant": not touched["HIPAA"],
        "iso27001_compliant": not touched["ISO27001"],
        "compliance_gaps": [f"{gap.standard} {gap.control}" for gap in gaps],
        "remediation_priority": _priority(findings),
    }


def _analysis(alias: str, finding: HostFinding, answer: Answer) -> FindingAnalysis:
    """Return a finding as the analysis has it. Its severity is the scanner's: no model decides what is compliant."""
    evidence = (finding.description, *(f"{key}: {value}" for key, value in finding.metadata.items()))
    return FindingAnalysis(
        alias=alias,
        finding_id=finding.id,
        title=finding.title,
        severity="low" if finding.severity == "unknown" else finding.severity,
        evidence=evidence,
        techniques=tuple(answer.texts("techniques")),
        controls=tuple(answer.texts("controls")),
        remediation=tuple(answer.texts("remediation")),
    )


def _statement(finding: HostFinding) -> str:
    stated = (finding.title, finding.category, *finding.tags, str(finding.metadata.get("compliance_standard") or ""))
    return " ".join(stated).replace("_", " ")


def _priority(findings: Sequence[HostFinding]) -> str:
    found = counts(findings)
    if found["critical"]:
        return "immediate"
    return "high" if found["high"] > 2 else "medium" if found["high"] else "low"


def _trends(findings: Sequence[HostFinding]) -> dict[str, Any]:
    likely = sum(finding.probability_actionable > 0.7 for finding in findings)
    return {
        "high_priority_count": likely,
        "new_findings_count": sum(finding.baseline_status == "new" for finding in findings),
        "trending_up": likely > 0.3 * len(findings),
    }


def _first_sentence(text: str, longest: int = 200) -> str:
    line = " ".join(text.split())
    sentence = re.split(r"(?<=[.!?]) ", line, maxsplit=1)[0]
    return sentence if len(sentence) <= longest else sentence[: longest - 1] + "\u2026"
