"""A scan as the host knows it when it asks for a summary, and everything about it that needs no model.

Counts, totals, the order of findings, actions and inconsistencies are computed here, the same each time; what the specialist
thought of single findings only adds to them. The texts are ours; the shapes are the host's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sysscan_langgraph.host.aliases import Aliases
from sysscan_langgraph.host.asking import Answer
from sysscan_langgraph.host.findings import (
    LEVELS,
    HostCorrelation,
    HostFinding,
    correlations_of,
    counts,
    findings_of,
)
from sysscan_langgraph.host.shapes import fields, listed, number
from sysscan_models.documents import Document
from sysscan_models.terminal import printable

Opinion = tuple[HostFinding, Answer]
"""A finding and what the specialist said about it."""

PRIORITIES = {"critical": "immediate", "high": "high", "medium": "medium"}
"""How soon a finding wants attention, by its severity; `low` for the rest."""


@dataclass(frozen=True)
class Action:
    """Something that the host proposes to do."""

    priority: int
    action: str
    correlations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """Findings, the most severe first, and what else the host knows. `complete` says whether these are all findings."""

    findings: tuple[HostFinding, ...] = ()
    correlations: tuple[HostCorrelation, ...] = ()
    actions: tuple[Action, ...] = ()
    baseline: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    complete: bool = True
    issues: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of_reductions(cls, reductions: Any, correlations: Any, actions: Any, baseline: Any) -> Scan:
        """Read what the host gives its provider: only its top findings, and counts of the rest."""
        reduced = fields(reductions)
        found = findings_of(reduced.get("top_findings") or reduced.get("top_risks"))
        return cls(
            findings=tuple(sorted(found, key=lambda finding: finding.rank)),
            correlations=tuple(correlations_of(correlations)),
            actions=tuple(_action(fields(action)) for action in listed(actions)),
            baseline=baseline if isinstance(baseline, Mapping) else {},
            facts=tuple(_facts(reduced)),
            complete=False,
            issues=tuple(_module_issues(fields(reduced.get("module_summary")))),
        )

    def aliases(self) -> Aliases:
        """Return the short names of these findings and correlations."""
        return Aliases(self.findings, self.correlations)

    def counted(self) -> str:
        """Return in words how many findings there are of each severity."""
        if not self.findings:
            return "no findings"
        levels = [f"{count} {level}" for level, count in counts(self.findings).items() if count]
        noun = "finding" if len(self.findings) == 1 else "findings"
        return f"{len(self.findings)} {noun if self.complete else f'top {noun}'} ({', '.join(levels)})"

    def known(self) -> list[str]:
        """Return what else is known, as short sentences without an end."""
        states = Counter(str(fields(result).get("status") or "unknown") for result in self.baseline.values())
        seen = [f"{count} {state}" for state, count in sorted(states.items())]
        return [*self.facts, *([f"baseline lookups: {len(self.baseline)} ({', '.join(seen)})"] if seen else [])]

    def summary(self) -> str:
        """Return a summary that no model wrote; never empty, and the same for the same scan."""
        names = self.aliases()
        top = "; ".join(f"{names.line(finding.title, 80)} ({finding.severity})" for finding in self.findings[:3])
        parts = [f"The scan reports {self.counted()}", *([f"first to look at: {top}"] if top else [])]
        if self.correlations:
            titles = "; ".join(names.line(correlation.title, 80) for correlation in self.correlations[:3])
            parts.append(f"{len(self.correlations)} correlated: {titles}")
        return ". ".join([*parts, *self.known()]) + "."

    def inconsistencies(self, opinions: Sequence[Opinion]) -> list[dict[str, Any]]:
        """Return what does not fit together, in the host's shape: `{issue, details}`."""
        found = list(self.issues)
        ids = {finding.id for finding in self.findings}
        for correlation in self.correlations:
            unknown = [id for id in correlation.finding_ids if id not in ids]
            if not correlation.finding_ids:
                found.append({"issue": "empty_correlation", "details": {"id": correlation.id}})
            elif self.complete and unknown:
                found.append(
                    {"issue": "correlation_of_unknown_findings", "details": {"id": correlation.id, "finding_ids": unknown}}
                )
        for finding, answer in opinions:
            if answer.severity and abs(LEVELS.index(answer.severity) - finding.rank[0]) > 1 and finding.severity != "unknown":
                details = {"id": finding.id, "reported": finding.severity, "specialist": answer.severity}
                found.append({"issue": "severity_disagreement", "details": details})
        return found

    def triage(self, opinions: Sequence[Opinion], longest: int = 5) -> dict[str, Any]:
        """Return the findings to look at first, with the specialist's severity and risk where it gave them.

        The specialist can put a finding further up but never down: text in a finding could have talked it into that.
        """
        said = {id(finding): answer for finding, answer in opinions}
        judged = [(finding, said.get(id(finding), Answer())) for finding in self.findings]
        judged.sort(key=lambda pair: (_worse(*pair), -max(pair[0].risk_score, pair[1].risk_score or 0)))
        rows = [_triaged(finding, answer) for finding, answer in judged[:longest]]
        return {"top_findings": rows, "correlation_count": len(self.correlations)}

    def narrative(self, recommendations: Sequence[str]) -> str:
        """Return what to do, a numbered line each: the host's actions, then what the models recommend."""
        lines = []
        for action in self.actions:
            refs = f" (corr {', '.join(action.correlations)})" if action.correlations else ""
            lines.append(printable(f"{action.priority}. {action.action}{refs}"))
        after = max((action.priority for action in self.actions), default=0)
        return "\n".join([*lines, *(f"{after + place}. {text}" for place, text in enumerate(recommendations, 1))])

    def coverage(self, opinions: Sequence[Opinion]) -> dict[str, Any]:
        """Return the ATT&CK techniques that the specialist named, and the tags of the findings it named them for."""
        by_finding = {finding.id: answer.texts("techniques") for finding, answer in opinions if answer.texts("techniques")}
        by_tag: dict[str, set[str]] = {}
        for finding, answer in opinions:
            for tag in finding.tags if answer.texts("techniques") else ():
                if ":" not in tag:  # severity:high, baseline:new: nothing that a technique goes with
                    by_tag.setdefault(tag, set()).update(answer.texts("techniques"))
        techniques = sorted({technique for named in by_finding.values() for technique in named})
        return {
            "technique_count": len(techniques),
            "techniques": techniques,
            "tag_hits": {tag: sorted(named) for tag, named in sorted(by_tag.items())},
            "finding_hits": by_finding,
        }

    def hypotheses(self, opinions: Sequence[Opinion], longest: int = 3) -> list[dict[str, Any]]:
        """Return common causes that correlations hint at; all of low confidence and marked as speculative."""
        said = {finding.id: answer for finding, answer in opinions}
        found: list[dict[str, Any]] = []
        for correlation in self.correlations:
            techniques = sorted({name for id in correlation.finding_ids if id in said for name in said[id].texts("techniques")})
            if len(correlation.finding_ids) < 2:
                continue
            reasons = [correlation.rationale, f"techniques: {', '.join(techniques)}" if techniques else ""]
            found.append(
                {
                    "id": f"hyp_{len(found) + 1}",
                    "summary": f"{len(correlation.finding_ids)} findings may have one cause: {correlation.title}",
                    "rationale": [reason for reason in reasons if reason],
                    "confidence": "low",
                    "speculative": True,
                }
            )
        return found[:longest]

    def brief(self, names: Aliases, opinions: Sequence[Opinion], longest: int = 10) -> Document:
        """Return what the generalist is asked to summarise; every word of the host has passed through `names`."""
        said = {id(finding): answer for finding, answer in opinions}
        lines = [f"The scan reports {self.counted()}."]
        for finding in self.findings[:longest]:
            lines += _told(finding, said.get(id(finding), Answer()), names)
        if len(self.findings) > longest:
            lines.append(f"{len(self.findings) - longest} further findings are less severe.")
        for correlation in self.correlations[:longest]:
            members = ", ".join(filter(None, (names.finding(id) for id in correlation.finding_ids[:8])))
            reason = names.line(correlation.rationale)
            lines.append(f"{names.correlation(correlation.id)} {names.line(correlation.title)}: {reason} [{members}]")
        for action in self.actions[:longest]:
            lines.append(f"Proposed: {names.line(action.action)}")
        lines += [names.line(fact, 300) for fact in self.known()]
        return Document(id="scan", title="Security scan of a Linux host", description="\n".join(lines))


def _told(finding: HostFinding, answer: Answer, names: Aliases) -> list[str]:
    title = names.line(finding.title or finding.description)
    risk = f", risk {finding.risk_score}" if finding.risk_score else ""
    lines = [f"{names.finding(finding.id) or 'F0'} [{finding.severity}{risk}] {title}"]
    if analysis := answer.text("analysis"):
        lines.append(f"  {names.line(analysis, 160)}")
    return lines


def _worse(finding: HostFinding, answer: Answer) -> int:
    """Return the place of the worse of both severities, the scanner's and the specialist's."""
    return min(finding.rank[0], LEVELS.index(answer.severity) if answer.severity else len(LEVELS))


def _triaged(finding: HostFinding, answer: Answer) -> dict[str, Any]:
    return {
        "id": finding.id,
        "title": finding.title,
        "severity": answer.severity or finding.severity,
        "risk_score": finding.risk_score if answer.risk_score is None else answer.risk_score,
        "priority": PRIORITIES.get(LEVELS[_worse(finding, answer)], "low"),
        "reported_severity": finding.severity,
        "reported_risk_score": finding.risk_score,
    }


def _action(given: Mapping[str, Any]) -> Action:
    refs = tuple(str(ref) for ref in listed(given.get("correlation_refs")))
    return Action(number(given.get("priority"), 1), str(given.get("action") or ""), refs)


def _facts(reduced: Mapping[str, Any]) -> list[str]:
    """Return what the host counted, without the lists of paths that it keeps beside the counts."""
    modules, suid, network = (fields(reduced.get(f"{name}_summary")) for name in ("module", "suid", "network"))
    facts = []
    if modules:
        notable = ", ".join(map(str, listed(modules.get("notable_modules"))[:10]))
        facts.append(f"kernel modules: {number(modules.get('module_count'))}{f', notable: {notable}' if notable else ''}")
    if suid:
        facts.append(f"unexpected SUID programs: {len(listed(suid.get('unexpected_suid')))}")
    if network:
        facts.append(f"listening ports: {number(network.get('listen_count'))}")
    return facts


def _module_issues(modules: Mapping[str, Any]) -> list[dict[str, Any]]:
    count, distinct = modules.get("module_count"), modules.get("distinct_modules")
    if isinstance(count, int) and isinstance(distinct, int) and count < distinct:
        return [{"issue": "module_count_lt_distinct", "details": {"module_count": count, "distinct": distinct}}]
    return []
