"""Drop-ins for four of the host's nodes: the same functions of the state, with the models' work in them.

A node takes the whole state and returns it, sync: LangGraph runs it in a thread under `ainvoke`, and it works inside a running
event loop, where the host's own async nodes lose their results. It never raises; what went wrong is a warning in the state
(only what is no state at all, having no keys, is refused with UserError).
Results stand under keys of the host's state, since its graph drops all others.

The specialist is asked once for all nodes of a run, in one batch; its answers are kept, as JSON, in the state's `cache`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson

from sysscan_langgraph.host import rules
from sysscan_langgraph.host.analyst import question
from sysscan_langgraph.host.asking import Answer, TimeLimit, checked_number, checked_seconds, fault
from sysscan_langgraph.host.assessment import compliance_check, risk_assessment
from sysscan_langgraph.host.findings import HostFinding, correlations_of, state_findings
from sysscan_langgraph.host.provider import SysscanProvider
from sysscan_langgraph.host.scan import Opinion, Scan
from sysscan_langgraph.host.shapes import HOST, listed, number
from sysscan_langgraph.serving import Served
from sysscan_models.errors import UserError

logger = logging.getLogger(__name__)

State = dict[str, Any]
Node = Callable[[State], State]
AsyncNode = Callable[[State], Awaitable[State]]

CACHE = "sysscan_models"
"""Where the specialist's answers are, in the state's `cache`."""
MOST_SUMMARIES = "AGENT_MAX_SUMMARY_ITERS"
"""The host's environment variable for how often one state may be summarized; 3 when it is not set."""

_ALL = ("correlated_findings", "enriched_findings", "raw_findings")


class HostNodes:
    """The four nodes on one set of models. Safe for any number of graphs at once.

    ``models`` are opened models or a package's folder, or a `SysscanProvider` whose models and sizes are then used.
    ``time_limit`` is in seconds for each node. ``max_findings`` is how many findings the specialist is asked about, the most
    severe first. Raises UserError for a number out of its range, and what `SysscanProvider` raises.
    """

    def __init__(
        self,
        models: SysscanProvider | Served | Path | str,
        *,
        host: str | ModuleType = HOST,
        time_limit: float = 120.0,
        max_findings: int = 50,
    ) -> None:
        self.time_limit = checked_seconds("time_limit", time_limit)
        self.max_findings = checked_number("max_findings", max_findings, 0, "findings")
        self.provider = models if isinstance(models, SysscanProvider) else SysscanProvider(models, host=host)
        self.analyst = self.provider.analyst

    def enhanced_summarize_host_state(self, state: State) -> State:
        """Write `summary`, as the host's `Summaries`, and count the iteration."""
        return _run(self._summarize, state, "enhanced_summarize", "summarize_duration")

    def enhanced_suggest_rules(self, state: State) -> State:
        """Write `suggested_rules`: patterns that no correlation explains, with the specialist's reasons."""
        return _run(self._suggest_rules, state, "enhanced_suggest_rules", "rule_suggest_duration")

    def risk_analyzer(self, state: State) -> State:
        """Write `risk_assessment`."""
        return _run(self._assess_risk, state, "risk_analyzer", "risk_analyzer_duration")

    def compliance_checker(self, state: State) -> State:
        """Write `compliance_check`."""
        return _run(self._check_compliance, state, "compliance_checker", "compliance_checker_duration")

    def nodes(self) -> dict[str, Node]:
        """Return the nodes by the host's names for them."""
        return {
            "enhanced_summarize_host_state": self.enhanced_summarize_host_state,
            "enhanced_suggest_rules": self.enhanced_suggest_rules,
            "risk_analyzer": self.risk_analyzer,
            "compliance_checker": self.compliance_checker,
        }

    def _summarize(self, state: State) -> None:
        done = number(state.get("iteration_count"))
        if done >= number(os.environ.get(MOST_SUMMARIES, 3), 3):
            _warn(state, "enhanced_summarize", "iteration_limit_reached", f"{MOST_SUMMARIES} sets the limit")
            return
        started, limit = time.monotonic(), TimeLimit(self.time_limit)
        findings = state_findings(state, *_ALL)
        opinions = self._opinions(state, findings, limit.part(0.7), again=True)
        scan = Scan(
            findings=tuple(sorted(findings, key=lambda finding: finding.rank)),
            correlations=tuple(correlations_of(state.get("correlations"))),
            baseline=_mapping(state.get("baseline_results")),
        )
        summary = self.analyst.summary(scan, opinions, limit)
        summaries, metadata = self.provider.summaries(summary, len(findings), started)
        state["summary"] = summaries.model_dump()
        state["iteration_count"] = done + 1
        state["metrics"] |= {"tokens_prompt": metadata.tokens_prompt, "tokens_completion": metadata.tokens_completion}
        _count(state, "summarize_calls")
        if summary.error:
            hint = "the summary is not the model's" if summary.fallback else "the summary rests on the other findings"
            _warn(state, "enhanced_summarize", summary.error, hint)

    def _suggest_rules(self, state: State) -> None:
        findings = state_findings(state, *_ALL)
        names = Scan(findings=tuple(findings)).aliases()
        explained = {id for correlation in correlations_of(state.get("correlations")) for id in correlation.finding_ids}
        suggested, members = rules.suggest(findings, names, explained)
        opinions = self._opinions(state, findings, TimeLimit(self.time_limit)) if suggested else []
        rules.refine(suggested, {id: [finding.title for finding in found] for id, found in members.items()})
        for rule in suggested:
            rules.explain(rule, rules.answer_for(members[rule["id"]], opinions))
        state["suggested_rules"] = suggested
        state.setdefault("monotonic_start", time.monotonic())  # for who calls the node himself; the host's graph drops it
        state["metrics"]["rule_suggest_count"] = len(suggested)
        state["metrics"] |= {"version": state["metrics"].get("version", "1.0"), "rule_suggest_version": "1.0"}
        _count(state, "rule_suggest_calls")

    def _assess_risk(self, state: State) -> None:
        findings = state_findings(state, "enriched_findings")
        opinions = self._opinions(state, findings, TimeLimit(self.time_limit))
        state["risk_assessment"] = risk_assessment(findings, correlations_of(state.get("correlations")), opinions)
        _count(state, "risk_analyzer_calls")

    def _check_compliance(self, state: State) -> None:
        findings = state_findings(state, "enriched_findings")
        opinions = self._opinions(state, findings, TimeLimit(self.time_limit))
        state["compliance_check"] = compliance_check(findings, opinions)
        _count(state, "compliance_checker_calls")

    def _opinions(
        self, state: State, findings: Sequence[HostFinding], limit: TimeLimit, *, again: bool = False
    ) -> list[Opinion]:
        """Return what the specialist says about the most severe findings; answers that are in the state cost no tokens now.

        What failed is asked again only where `again` says so, so that a model that is down holds a run up once.
        """
        chosen = sorted(findings, key=lambda finding: finding.rank)[: self.max_findings]
        names = Scan(findings=tuple(findings)).aliases()
        documents = [question(finding, names) for finding in chosen]
        keys = [self._key(document.title, document.description) for document in documents]
        cache = _mapping(state.get("cache"))
        known = {key: _mapping(values) for key, values in _mapping(cache.get(CACHE)).items()}
        missing = [place for place, key in enumerate(keys) if key not in known or (again and not known[key])]
        answers = self.analyst.ask_specialist([documents[place] for place in missing], limit)
        fresh = dict(zip(missing, answers, strict=True))
        known |= {keys[place]: dict(answer.values) for place, answer in fresh.items()}
        state["cache"] = {**cache, CACHE: known}
        return [(finding, fresh.get(place) or _kept(known[keys[place]])) for place, finding in enumerate(chosen)]

    def _key(self, title: str, text: str) -> str:
        """Return what an answer is kept under: the model and the question, so that equal findings share it."""
        asked = [self.analyst.models.model_name(self.analyst.specialist), self.analyst.max_tokens, title, text]
        return hashlib.sha256(orjson.dumps(asked)).hexdigest()[:32]


def asynchronous(node: Node) -> AsyncNode:
    """Return a node as the host's async ones are called; it runs in a thread, so the event loop goes on."""

    async def run(state: State) -> State:
        return await asyncio.to_thread(node, state)

    run.__name__ = run.__qualname__ = getattr(node, "__name__", "node")
    run.__doc__ = node.__doc__
    return run


def _run(work: Callable[[State], None], state: Mapping[str, Any], stage: str, duration: str) -> State:
    """Run a node's work on a copy of the state, and return that whatever happens."""
    if not isinstance(state, Mapping):
        raise UserError(f"{stage} was given {type(state).__name__}; expected a state of the host, with names and values")
    started = time.monotonic()
    after: State = {**state, "metrics": _mapping(state.get("metrics")), "warnings": listed(state.get("warnings"))}
    try:
        work(after)
    except Exception as error:  # noqa: BLE001 - a node never raises
        logger.error("%s failed: %s", stage, fault(error))
        _warn(after, stage, fault(error), "this node's part of the state is as it was before")
    after["metrics"][duration] = time.monotonic() - started
    return after


def _warn(state: State, stage: str, error: str, hint: str) -> None:
    state["warnings"].append({"module": "graph", "stage": stage, "error": error, "hint": hint})


def _count(state: State, name: str) -> None:
    state["metrics"][name] = number(state["metrics"].get(name)) + 1


def _kept(values: Mapping[str, Any]) -> Answer:
    return Answer(values, "stop") if values else Answer(error="the specialist gave no answer in this run")


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
