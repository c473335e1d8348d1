"""The host's provider on our models: it summarizes, triages and refines rules, and never raises.

It satisfies the host's protocol by its methods, not by inheritance: the host replaces every instance of its null provider at
each access. What the host throws away (the metadata) is told in the summary's metrics too, and a summary that no model wrote
says so in its first words. Methods are sync, as the protocol is; `asummarize` and its sisters do the same off the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

from sysscan_langgraph.host import rules
from sysscan_langgraph.host.aliases import Aliases
from sysscan_langgraph.host.analyst import WRITTEN_WITHOUT, Analyst, Summary
from sysscan_langgraph.host.asking import Answer, TimeLimit, checked_number, checked_seconds, fault
from sysscan_langgraph.host.findings import HostFinding
from sysscan_langgraph.host.scan import Scan
from sysscan_langgraph.host.shapes import HOST, ProviderMetadata, Summaries, classes, fields, listed
from sysscan_langgraph.serving import Served

logger = logging.getLogger(__name__)

UNCHANGED = "No material change; the models were not asked"
"""What a summary says or ends with when the host asks for none."""


class SysscanProvider:
    """A provider for the host, safe for any number of threads at once.

    ``models`` are opened models or a package's folder. ``host`` is the host's import name or module, whose classes the answers
    are made of; it is imported when something is first returned, and need not be there. ``time_limit`` is in seconds for each
    call; what is not answered then is left out, and said. ``triage_findings`` is how many findings the specialist is asked
    about; ``max_tokens`` and ``summary_tokens`` bound an answer of the specialist and of the generalist.

    Raises UserError for a package that cannot be opened, a missing role, or a number out of its range.
    """

    def __init__(
        self,
        models: Served | Path | str,
        *,
        host: str | ModuleType = HOST,
        time_limit: float = 60.0,
        triage_findings: int = 5,
        max_tokens: int = 256,
        summary_tokens: int = 512,
        specialist: str = "specialist",
        generalist: str = "generalist",
    ) -> None:
        self.host, self.time_limit = host, checked_seconds("time_limit", time_limit)
        self.triage_findings = checked_number("triage_findings", triage_findings, 0, "findings")
        self.analyst = Analyst(
            models, specialist=specialist, generalist=generalist, max_tokens=max_tokens, summary_tokens=summary_tokens
        )

    def summarize(
        self,
        reductions: Any,
        correlations: Any,
        actions: Any,
        *,
        skip: bool = False,
        previous: Any = None,
        skip_reason: str | None = None,
        baseline_context: Mapping[str, Any] | None = None,
    ) -> tuple[Summaries, ProviderMetadata]:
        """Return the host's `Summaries` of a scan. With `skip`, what `previous` said, or what is known without a model."""
        started, findings = time.monotonic(), 0
        try:
            scan = Scan.of_reductions(reductions, correlations, actions, baseline_context)
            findings = len(listed(fields(reductions).get("top_findings")))
            if skip:
                return self._skipped(scan, previous, skip_reason, started)
            limit = TimeLimit(self.time_limit)
            worst = scan.findings[: self.triage_findings]
            opinions = self.analyst.opinions(worst, scan.aliases(), limit.part(0.6))
            summary = self.analyst.summary(scan, opinions, limit)
        except Exception as error:  # noqa: BLE001 - the host would have one warning, and no summary
            failed = _failed("summarize", error)
            text = f"{WRITTEN_WITHOUT} ({failed}). The scan could not be read."
            summary = Summary({"executive_summary": text}, 0, 0, failed, fallback=True)
        return self.summaries(summary, findings, started)

    def triage(self, reductions: Any, correlations: Any) -> tuple[dict[str, Any], ProviderMetadata]:
        """Return `{top_findings: [{id, title, severity, risk_score, priority, ...}], correlation_count}`."""
        started = time.monotonic()
        try:
            scan = Scan.of_reductions(reductions, correlations, (), None)
            worst = scan.findings[: self.triage_findings]
            opinions = self.analyst.opinions(worst, scan.aliases(), TimeLimit(self.time_limit))
            triaged = scan.triage(opinions)
        except Exception as error:  # noqa: BLE001 - the protocol knows no other way to say it
            empty = {"top_findings": [], "correlation_count": len(listed(correlations))}
            return empty, self._told_by_specialist(started, [Answer(error=_failed("triage", error))])
        return triaged, self._told_by_specialist(started, [answer for _, answer in opinions])

    def refine_rules(
        self, suggestions: list[dict[str, Any]], examples: Mapping[str, Sequence[str]] | None = None
    ) -> tuple[list[dict[str, Any]], ProviderMetadata]:
        """Edit the rules in place, since the host drops what is returned here, and return them with the metadata."""
        started = time.monotonic()
        refined = suggestions if isinstance(suggestions, list) else listed(suggestions)
        try:
            rules.refine(refined, examples)
            asked = [rule for rule in refined if isinstance(rule, dict)][: rules.MOST_RULES]
            titles = [listed((examples or {}).get(str(rule.get("id") or ""))) for rule in asked]
            names = Aliases([HostFinding("", str(title)) for shown in titles for title in shown])
            documents = [rules.question(rule, shown, names) for rule, shown in zip(asked, titles, strict=True)]
            answers = self.analyst.ask_specialist(documents, TimeLimit(self.time_limit))
            for rule, answer in zip(asked, answers, strict=True):
                rules.explain(rule, answer)
        except Exception as error:  # noqa: BLE001 - the host would lose the rules that were there before
            answers = [Answer(error=_failed("refine_rules", error))]
        return refined, self._told_by_specialist(started, answers)

    async def asummarize(self, *args: Any, **kwargs: Any) -> tuple[Summaries, ProviderMetadata]:
        """Do what `summarize` does, without blocking the event loop."""
        return await asyncio.to_thread(self.summarize, *args, **kwargs)

    async def atriage(self, reductions: Any, correlations: Any) -> tuple[dict[str, Any], ProviderMetadata]:
        """Do what `triage` does, without blocking the event loop."""
        return await asyncio.to_thread(self.triage, reductions, correlations)

    async def arefine_rules(
        self, suggestions: list[dict[str, Any]], examples: Mapping[str, Sequence[str]] | None = None
    ) -> tuple[list[dict[str, Any]], ProviderMetadata]:
        """Do what `refine_rules` does, without blocking the event loop."""
        return await asyncio.to_thread(self.refine_rules, suggestions, examples)

    def summaries(self, summary: Summary, findings: int, started: float) -> tuple[Summaries, ProviderMetadata]:
        """Return a summary as the host's object, with tokens and truth in its metrics, where the host keeps them."""
        tokens = (summary.tokens_prompt, summary.tokens_completion)
        metadata = self._metadata(self.analyst.generalist, started, tokens, error=summary.error, fallback=summary.fallback)
        metrics = {
            "tokens_prompt": metadata.tokens_prompt,
            "tokens_completion": metadata.tokens_completion,
            "findings_count": findings,
            "latency_ms": metadata.latency_ms,
            "model_name": metadata.model_name,
            "fallback": metadata.fallback,
            **({"error_message": summary.error} if summary.error else {}),
        }
        made, _ = classes(self.host)
        return made(**{**summary.fields, "metrics": metrics}), metadata

    def _skipped(self, scan: Scan, previous: Any, reason: str | None, started: float) -> tuple[Summaries, ProviderMetadata]:
        """Return what the previous summary said; on the first run the host gives an empty one, and then wants text too."""
        before = {name: value for name, value in fields(previous).items() if name in Summaries.model_fields}
        said = str(before.get("executive_summary") or "").strip()
        text = said if said.endswith(UNCHANGED) else f"{said} | {UNCHANGED}" if said else f"{UNCHANGED}. {scan.summary()}"
        metrics = {
            "tokens_prompt": 0,
            "tokens_completion": 0,
            "findings_count": len(scan.findings),
            "latency_ms": 0,
            "skipped": True,
            "skip_reason": reason or "low_change",
        }
        made, _ = classes(self.host)
        known = before if said else {**before, "triage_summary": scan.triage(()), "action_narrative": scan.narrative(())}
        summaries = made(**{**known, "executive_summary": text, "metrics": {**fields(before.get("metrics")), **metrics}})
        return summaries, self._metadata(self.analyst.generalist, started, cached=bool(said))

    def _told_by_specialist(self, started: float, answers: Sequence[Answer]) -> ProviderMetadata:
        """Return the metadata of answers; a fallback is where none of those that were asked for came."""
        return self._metadata(
            self.analyst.specialist,
            started,
            (sum(answer.prompt_tokens for answer in answers), sum(answer.completion_tokens for answer in answers)),
            error=next((answer.error for answer in answers if answer.error), ""),
            fallback=bool(answers) and all(answer.error for answer in answers),
        )

    def _metadata(
        self,
        role: str,
        started: float,
        tokens: tuple[int, int] = (0, 0),
        *,
        cached: bool = False,
        fallback: bool = False,
        error: str = "",
    ) -> ProviderMetadata:
        _, made = classes(self.host)
        return made(
            model_name=self.analyst.models.model_name(role),
            provider_name="sysscan-models",
            latency_ms=round((time.monotonic() - started) * 1000),
            tokens_prompt=tokens[0],
            tokens_completion=tokens[1],
            cached=cached,
            fallback=fallback,
            error_message=error or None,
            temperature=self.analyst.models.role(role).sampling.temperature,
            timestamp=datetime.now(timezone.utc).isoformat(),
        )


def _failed(call: str, error: Exception) -> str:
    """Log that a call went wrong by our own fault, and return why; without a traceback, whose text nobody redacts."""
    message = fault(error)
    logger.error("%s failed: %s", call, message)
    return message
