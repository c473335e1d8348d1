"""Analyses to make pages of, written by hand: one of the sample report, one of any size, one in which every text is hostile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sysscan_langgraph.analysis.records import (
    AnalysisReport,
    AnalysisWarning,
    ComplianceGap,
    Correlation,
    FindingAnalysis,
    LeftOut,
    Point,
)
from sysscan_models.samples import document, findings, sample_report

TECHNIQUES = {
    "suid_sgid": ("T1548.001",),
    "modules": ("T1547.006",),
    "ioc": ("T1059.004", "T1036.005"),
    "network": ("T1021.004",),
}
CONTROLS = {
    "suid_sgid": ("NIST SP 800-53 AC-6", "CIS 6.1.13"),
    "modules": ("NIST SP 800-53 CM-7",),
    "world_writable": ("PCI DSS 7.2.1",),
    "kernel_params": ("CIS 1.5.3", "ISO27001 A.8.9"),
}
SCORES = {"critical": 94, "high": 78, "medium": 51, "low": 24, "info": 6}


def analysed(report: Mapping[str, Any] | None = None, *, keep: int | None = None) -> AnalysisReport:
    """Return what an analysis of a scan report (the sample report's by default) could look like; `keep` findings of it."""
    report = report or sample_report()
    found = findings(report)
    analyses = tuple(finding_analysis(place, finding) for place, finding in enumerate(found[:keep], 1))
    worst = analyses[:4]
    aliases, ids = tuple(one.alias for one in worst), tuple(one.finding_id for one in worst)
    shared = tuple(one for one in analyses if one.techniques == ("T1547.006",))
    return AnalysisReport(
        host=report["meta"]["hostname"],
        scanned=report.get("summary", {}).get("finished_at", "2025-01-14"),
        executive_summary=(
            "One program runs from a deleted file in a world-writable folder, which legitimate software hardly ever does. "
            "Until it is explained, treat the host as compromised.\n"
            "The other findings are the ordinary hardening debt of a server."
        ),
        key_findings=tuple(
            Point(text=f"{one.title}: it would make a local user root.", finding_ids=(one.finding_id,), aliases=(one.alias,))
            for one in worst
        ),
        recommendations=(
            Point(text="Isolate the host and capture the memory of the process first.", aliases=aliases[:1]),
            Point(text="Remove the set-user-id bit where no user needs it.", aliases=aliases[1:], finding_ids=ids[1:]),
        ),
        analyses=analyses,
        correlations=(
            Correlation(
                id="C1", kind="technique", value="T1548.001", title="Ways to become root", severity="high", finding_ids=ids,
                aliases=aliases, rationale="Each of these gives a local user another way to root; together they make one path.",
            ),
            Correlation(
                id="C2", kind="scanner", value="modules", title="Kernel modules outside of the distribution", severity="medium",
                finding_ids=tuple(one.finding_id for one in shared), aliases=tuple(one.alias for one in shared),
            ),
        ),
        compliance_gaps=(
            ComplianceGap(standard="PCI DSS", control="7.2.1", finding_ids=ids[:2], aliases=aliases[:2], severity="high",
                          remediation=("Give each role only the access that its work needs.",)),
            ComplianceGap(standard="PCI DSS", control="11.5.2", finding_ids=ids[:1], aliases=aliases[:1], severity="critical",
                          remediation=("Watch critical files for changes.", "Compare them weekly.")),
            ComplianceGap(standard="ISO27001", control="A.8.9", finding_ids=ids[2:], aliases=aliases[2:], severity="medium"),
        ),
        left_out=tuple(
            LeftOut(
                alias=f"F{place}", finding_id=finding["id"], title=finding["title"], severity=finding["severity"],
                reason="time budget",
            )
            for place, finding in enumerate(found, 1)
            if keep is not None and place > keep
        ),
        warnings=(AnalysisWarning(stage="specialist", message="an answer was no JSON", finding_id=ids[0]),),
        models={"specialist": "specialist_model_q4km", "generalist": "generalist_model_q4km"},
        tokens_prompt=48_211,
        tokens_completion=15_020,
        seconds=83.4,
    )  # fmt: skip


def finding_analysis(place: int, finding: Mapping[str, Any]) -> FindingAnalysis:
    """Return what a specialist could say about a finding."""
    asked = document(finding)
    severity = finding["severity"]
    return FindingAnalysis(
        alias=f"F{place}",
        finding_id=finding["id"],
        scanner=finding["scanner"],
        title=finding["title"],
        reported_severity=severity,
        evidence=tuple(asked.description.splitlines()),
        analysis=(
            f"{finding['title']} stands out on this host. {finding.get('description', '')}. An attacker with a local account "
            "could use it to gain a foothold or keep one; whether that happened here, the evidence alone does not say.\n"
            "Check who put it there and when, and whether the distribution's package manager knows it."
        ),
        findings=("The file belongs to root.", "No package owns it."),
        severity="medium" if place == 3 else severity,
        risk_score=SCORES[severity] if place % 7 else None,
        techniques=TECHNIQUES.get(finding["scanner"], ()),
        controls=CONTROLS.get(finding["scanner"], ()),
        remediation=("Ask the owner of the host whether it is wanted.", "If not, remove it and look for what installed it."),
        same_as="F30" if place in (32, 33) else "",
        finish_reason="length" if place == 2 else "stop",
        prompt_tokens=320,
        completion_tokens=96,
    )


HOSTILE = (
    "</title><script>document.title = 'OWNED'</script>",
    '"><img src=x onerror="document.title=\'OWNED\'">',
    "<svg onload=\"document.title='OWNED'\"><a href=\"javascript:document.title='OWNED'\">x</a>",
    "' onmouseover='document.title=1' style='background:url(http://127.0.0.1:9/x)' x='",
    "</style><style>body{display:none}</style><link rel=stylesheet href=http://127.0.0.1:9/y>",
    "{{ 7 * 7 }}{% for a in b %} ${7*7} #{7*7} <%= 7*7 %>",
    "![img](http://127.0.0.1:9/z.png) [click](javascript:alert(1)) <http://127.0.0.1:9/> http://127.0.0.1:9/ www.example.com",
    "\n\n# Owned heading\n\n===\n\n---\n\n```\n````\n~~~\nout of the fence\n\n    indented\n"
    "> quote\n- item\n1. one\n| a | b |\n|---|---|\n",
    "gpj.\u202etxe.exe \u2066hidden\u2069 \x1b]0;OWNED\x07\x1b[2Jclear \x00\x08\x9b31m \u200b\ufeff\U000e0041 \ud800",
    "&lt;b&gt; &amp;copy; &#60;script&#62; <!-- --> <![CDATA[ x ]]> </pre></details></html> *a* _b_ ~~c~~ `d` $x$",
)


def hostile() -> AnalysisReport:
    """Return an analysis in which every text is hostile, one kind in each finding and all of them elsewhere."""
    everything = " ".join(HOSTILE)
    analyses = tuple(
        FindingAnalysis(
            alias=f"F{place}", finding_id=text, scanner=text, title=text, reported_severity=text, evidence=(text, everything),
            analysis=text, findings=(text,), severity="high", risk_score=50, techniques=(text,), controls=(text,),
            remediation=(text,), finish_reason=text,
        )
        for place, text in enumerate(HOSTILE, 1)
    )  # fmt: skip
    point = Point(text=everything, finding_ids=(everything,), aliases=("F1", everything))
    return AnalysisReport(
        host=everything, scanned=everything, executive_summary=everything, key_findings=(point,), recommendations=(point,),
        analyses=analyses,
        correlations=(
            Correlation(
                id=everything, kind=everything, value=everything, title=everything, severity="low", finding_ids=(everything,),
                aliases=("F1", everything), rationale=everything,
            ),
        ),
        compliance_gaps=(
            ComplianceGap(standard=everything, control=everything, finding_ids=(everything,), aliases=("F2", everything),
                          severity="low", remediation=(everything,)),
        ),
        left_out=(LeftOut(alias=everything, finding_id=everything, title=everything, severity=everything, reason=everything),),
        warnings=(AnalysisWarning(stage=everything, message=everything, finding_id=everything),),
        models={everything: everything},
    )  # fmt: skip


def many(count: int) -> AnalysisReport:
    """Return an analysis of so many findings, most of them info, as real reports have them."""
    shown = analysed()
    analyses = [
        shown.analyses[place % 42].model_copy(
            update={
                "alias": f"F{place + 1}",
                "finding_id": f"/usr/lib/modules/{place}",
                "same_as": "",
                **({"severity": "info", "reported_severity": "info"} if place > 24 else {}),
            }
        )
        for place in range(count)
    ]
    return shown.model_copy(update={"analyses": tuple(analyses)})
