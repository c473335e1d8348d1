"""The two models at work on a scan of the host: the specialist on single findings, the generalist on the whole.

Provider and nodes share this. It keeps nothing between calls, so any number of threads may use it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sysscan_langgraph.analysis.answers import read_points
from sysscan_langgraph.host.aliases import Aliases
from sysscan_langgraph.host.asking import Answer, TimeLimit, ask, checked_number
from sysscan_langgraph.host.findings import HostFinding
from sysscan_langgraph.host.scan import Opinion, Scan
from sysscan_langgraph.serving import Served, serve
from sysscan_models.documents import Document
from sysscan_models.scan_report import document

logger = logging.getLogger(__name__)

_CUT = ("length", "deadline", "cancelled")

WRITTEN_WITHOUT = "Written without the model"
"""How a summary begins that no model wrote; the reason follows."""


@dataclass(frozen=True)
class Summary:
    """What the host's `Summaries` is filled with, and what became of the models."""

    fields: dict[str, Any]
    tokens_prompt: int
    tokens_completion: int
    error: str
    """Why the generalist, or the specialist on some findings, said nothing; empty where all went well."""
    fallback: bool
    """Whether the executive summary is not the model's."""


class Analyst:
    """Asks the roles of opened models; `models` are opened ones or a package's folder. Sizes are in tokens of an answer.

    Raises UserError where the models have no such role, or a number is out of its range.
    """

    def __init__(
        self,
        models: Served | Path | str,
        *,
        specialist: str = "specialist",
        generalist: str = "generalist",
        max_tokens: int = 256,
        summary_tokens: int = 512,
    ) -> None:
        self.max_tokens = checked_number("max_tokens", max_tokens, 1, "tokens")
        self.summary_tokens = checked_number("summary_tokens", summary_tokens, 1, "tokens")
        self.models = models if isinstance(models, Served) else opened(models)
        self.specialist, self.generalist = specialist, generalist
        for role in (specialist, generalist):
            self.models.role(role)

    def ask_specialist(self, documents: Sequence[Document], limit: TimeLimit) -> list[Answer]:
        """Return the specialist's answers about documents that are safe already."""
        return _told(self.specialist, ask(self.models, self.specialist, documents, limit=limit, max_tokens=self.max_tokens))

    def opinions(self, findings: Sequence[HostFinding], names: Aliases, limit: TimeLimit) -> list[Opinion]:
        """Ask the specialist about findings, all in one batch; each comes back with its answer."""
        answers = self.ask_specialist([question(finding, names) for finding in findings], limit)
        return list(zip(findings, answers, strict=True))

    def summary(self, scan: Scan, opinions: Sequence[Opinion], limit: TimeLimit) -> Summary:
        """Have the generalist write the summary of a scan, and put everything beside it that needs no model."""
        names = scan.aliases()
        shown = scan.brief(names, opinions)
        ids = {alias: finding.id for finding in scan.findings[:10] if (alias := names.finding(finding.id))}
        [written] = _told(
            self.generalist,
            ask(self.models, self.generalist, [shown], limit=limit, max_tokens=self.summary_tokens, aliases=list(ids)),
        )
        text = names.restore(written.text("executive_summary"))
        cut = f"the summary was cut short ({written.finish_reason})" if written.finish_reason in _CUT else ""
        error = cut if text else written.error or "the model wrote no executive summary"
        missing = [answer.error for _, answer in opinions if answer.error]
        lost = f"{len(missing)} of {len(opinions)} findings were not analysed: {missing[0]}" if missing else ""
        points = {name: _points(written.texts(name), ids, names) for name in ("key_findings", "recommendations")}
        asked = [answer for _, answer in opinions] + [written]
        return Summary(
            fields={
                "executive_summary": text or f"{WRITTEN_WITHOUT} ({error}). {scan.summary()}",
                "analyst": {
                    "correlation_count": len(scan.correlations),
                    "top_findings_count": len(scan.findings),
                    **points,
                },
                "consistency_findings": scan.inconsistencies(opinions),
                "triage_summary": scan.triage(opinions),
                "action_narrative": scan.narrative(recommended(opinions, points["recommendations"])),
                "causal_hypotheses": scan.hypotheses(opinions),
                "attack_coverage": scan.coverage(opinions),
            },
            tokens_prompt=sum(answer.prompt_tokens for answer in asked),
            tokens_completion=sum(answer.completion_tokens for answer in asked),
            error="; ".join(filter(None, (error, lost))),
            fallback=not text,
        )


def opened(package: Path | str) -> Served:
    """Open a package as the host wants it: its protocol says that the same arguments give the same answer."""
    return serve(package, reproducible=True)


def question(finding: HostFinding, names: Aliases) -> Document:
    """Return a finding as the specialist is asked about it: as in training, but safe and without its id."""
    return document(names.safe_deep(finding.document()))


def recommended(opinions: Sequence[Opinion], points: Sequence[Mapping[str, Any]] = (), longest: int = 8) -> list[str]:
    """Return what the models recommend, each once: the generalist's points, then the specialist's for the worst findings."""
    ranked = sorted(opinions, key=lambda opinion: opinion[0].rank)
    texts = [str(point["text"]) for point in points]
    texts += [text for _, answer in ranked for text in answer.texts("remediation")]
    return list(dict.fromkeys(texts))[:longest]


def _points(texts: Sequence[str], ids: Mapping[str, str], names: Aliases) -> list[dict[str, Any]]:
    """Return a list of the generalist as texts with the ids of the findings that they rest on; none where it names none."""
    points = []
    for text in texts:
        named, _ = read_points([text], ids)
        rest = [{"text": names.restore(point.text), "finding_ids": list(point.finding_ids)} for point in named]
        points += rest or [{"text": names.restore(text), "finding_ids": []}]
    return points


def _told(role: str, answers: list[Answer]) -> list[Answer]:
    """Log once what went wrong, however many answers it hit."""
    if errors := [answer.error for answer in answers if answer.error]:
        logger.warning("the %s gave no answer to %d of %d questions: %s", role, len(errors), len(answers), errors[0])
    return answers
