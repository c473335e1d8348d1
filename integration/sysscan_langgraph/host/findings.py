"""Findings and correlations as the host's state and reductions hold them, read without ever failing.

What is missing or has another type becomes the default: the host's own nodes drop or crash on such findings, ours count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sysscan_langgraph.host.shapes import fields, listed, number, plain, text
from sysscan_models import scan_report

T = TypeVar("T")

LEVELS = (*scan_report.SEVERITIES, "unknown")
"""The host's six counts, the most severe first."""


@dataclass(frozen=True)
class HostFinding:
    """One finding. `id` and `title` are the host's own text: they may hold paths, user names, anything."""

    id: str
    title: str
    severity: str = "unknown"
    """One of `LEVELS`."""
    risk_score: int = 0
    description: str = ""
    scanner: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    correlated: bool = False
    """Whether a correlation refers to it."""
    baseline_status: str = ""
    probability_actionable: float = 0.0

    @property
    def rank(self) -> tuple[int, int]:
        """What findings are sorted by: the most severe first, then the riskiest."""
        return LEVELS.index(self.severity), -self.risk_score

    def document(self) -> dict[str, Any]:
        """Return it as a scanner's finding, without what would tell the specialist the answer or name a user by an id."""
        metadata = dict(self.metadata)
        if self.tags and not self.metadata:
            metadata["tags"] = ", ".join(tag for tag in self.tags if not tag.startswith(("severity:", "rule:")))
        return {"title": self.title, "description": self.description, "metadata": metadata, "scanner": self.scanner}


@dataclass(frozen=True)
class HostCorrelation:
    """Findings that the host found to belong together."""

    id: str
    title: str = ""
    rationale: str = ""
    finding_ids: tuple[str, ...] = ()
    risk_score_delta: int = 0
    tags: tuple[str, ...] = ()
    severity: str = ""


def findings_of(things: Any) -> list[HostFinding]:
    """Return the findings of a list as the host has it (dicts or models); what is no object is left out.

    One that cannot be read is there all the same, and says so in its title.
    """
    return list(_read(things, _finding, lambda why: HostFinding(id="", title=f"A finding that cannot be read ({why})")))


def state_findings(state: Mapping[str, Any], *keys: str) -> list[HostFinding]:
    """Return the findings under the first of the keys that holds any."""
    return next((found for key in keys if (found := findings_of(state.get(key)))), [])


def correlations_of(things: Any) -> list[HostCorrelation]:
    """Return the correlations of a list as the host has it (dicts or models)."""
    return list(_read(things, _correlation, lambda why: HostCorrelation(id="", title=f"Cannot be read ({why})")))


def counts(findings: Iterable[HostFinding]) -> dict[str, int]:
    """Return how many findings there are of each level; all six are always there."""
    found = [finding.severity for finding in findings]
    return {level: found.count(level) for level in LEVELS}


def worst(findings: Sequence[HostFinding]) -> str:
    """Return the highest severity; `info` where there is none."""
    level = min((finding.rank[0] for finding in findings), default=LEVELS.index("info"))
    return LEVELS[level]


def severity_of(value: Any) -> str:
    """Return a severity as one of `LEVELS`."""
    said = scan_report.severity_of(value)
    return said if said in LEVELS else "unknown"


def _read(things: Any, read: Callable[[Mapping[str, Any]], T], unreadable: Callable[[str], T]) -> Iterator[T]:
    for thing in listed(things):
        try:
            if given := fields(thing):
                yield read(given)
        except Exception as error:  # noqa: BLE001 - one of them must not cost what the others are read for
            yield unreadable(type(error).__name__)


def _finding(given: Mapping[str, Any]) -> HostFinding:
    scores = (given.get(name) for name in ("risk_score", "risk_total", "base_severity_score"))
    metadata = given.get("metadata")
    metadata = plain(metadata) if isinstance(metadata, Mapping) else {}
    try:
        probability = float(given.get("probability_actionable") or 0)
    except (TypeError, ValueError, OverflowError):
        probability = 0.0
    return HostFinding(
        id=text(given.get("id")),
        title=text(given.get("title")),
        severity=severity_of(given.get("severity")),
        risk_score=number(next((score for score in scores if score is not None), 0)),
        description=text(given.get("description")),
        scanner=text(given.get("scanner") or metadata.get("scanner")),
        category=text(given.get("category")),
        tags=tuple(map(text, listed(given.get("tags")))),
        metadata=metadata,
        correlated=bool(given.get("correlation_refs")),
        baseline_status=text(given.get("baseline_status")),
        probability_actionable=probability,
    )


def _correlation(given: Mapping[str, Any]) -> HostCorrelation:
    return HostCorrelation(
        id=text(given.get("id")),
        title=text(given.get("title")),
        rationale=text(given.get("rationale")),
        finding_ids=tuple(map(text, listed(given.get("related_finding_ids")))),
        risk_score_delta=number(given.get("risk_score_delta")),
        tags=tuple(map(text, listed(given.get("tags")))),
        severity=text(given.get("severity")),
    )
