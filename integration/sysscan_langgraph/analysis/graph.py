"""The analysis of a scan report as a LangGraph graph: select, specialist, correlate, compliance, report.

State is plain JSON, one key per thing that a step finds out, so any checkpointer stores it; the clock is not stored, and an
analysis that goes on after a kill has its whole time again. Single findings and the models may fail: that is told as warnings
of the report. What raises is a wrong option, a report that is none, and a specialist that cannot be loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Annotated, Any, TypedDict

from langchain_core.exceptions import OutputParserException
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.channels import UntrackedValue
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from sysscan_langgraph.analysis.answers import read_answer, read_points
from sysscan_langgraph.analysis.compliance import compliance_gaps
from sysscan_langgraph.analysis.correlation import correlate, questions, worth_asking
from sysscan_langgraph.analysis.fanout import FAILED, TIME_BUDGET, Answers, Fanout, Run, failure
from sysscan_langgraph.analysis.progress import teller
from sysscan_langgraph.analysis.questions import Asked, Questioner
from sysscan_langgraph.analysis.records import (
    AnalysisReport,
    AnalysisWarning,
    ComplianceGap,
    Correlation,
    FindingAnalysis,
    LeftOut,
    Record,
)
from sysscan_langgraph.analysis.schemas import answer_schema, report_schema
from sysscan_langgraph.analysis.selection import Entry, checked_selection, left, select
from sysscan_langgraph.analysis.steps import Call, in_thread, node, together
from sysscan_langgraph.analysis.summary import plain_points, plain_summary, tell_findings
from sysscan_langgraph.serving import Served, served
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.prompts import GeneralistResponse, Severity, redact
from sysscan_models.scan_report import SEVERITIES

SPECIALIST, GENERALIST = "specialist", "generalist"
SPECIALIST_TOKENS, REPORT_TOKENS, RATIONALE_TOKENS = 320, 640, 120
"""Tokens of an answer about one finding, of the report, and of the reason why findings belong together."""
RATIONALES = 3
"""Correlations that the specialist is asked about."""
SPECIALIST_SHARE, CORRELATE_SHARE = 0.7, 0.85
"""When, as a share of the time budget, findings and correlations are no longer asked about; the rest is the report's."""

_NO_TIME = "the time budget was used up"
_RATINGS = ("severity", "risk_score")
_SAID = ("analysis", "findings", "risk_score", "techniques", "controls", "remediation")


class AnalysisInput(TypedDict, total=False):
    """What the graph takes: a scan report (schema v2), and seconds that it may take, instead of those it was made with.

    `identity` is kept in the state for who goes on with an analysis, to tell whether it is still the same; `analyze` does so.
    """

    report: Any
    time_budget: float | None
    identity: str


class AnalysisOutput(TypedDict, total=False):
    """What the graph gives: `AnalysisReport.model_dump(mode="json")`."""

    analysis: dict[str, Any]


class AnalysisState(AnalysisInput, AnalysisOutput, total=False):
    """What the steps find out, as plain JSON: the dumps of the records, and the selection's entries."""

    started: Annotated[float, UntrackedValue]
    entries: list[Entry]
    left_out: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    analyses: list[dict[str, Any]]
    correlations: list[dict[str, Any]]
    compliance_gaps: list[dict[str, Any]]
    tokens: dict[str, int]


def create_analysis_graph(
    models: Served | Path | str,
    *,
    min_severity: Severity = "info",
    max_findings: int | None = None,
    time_budget: float | None = None,
    max_tokens: int = SPECIALIST_TOKENS,
    report_tokens: int = REPORT_TOKENS,
    rationales: int = RATIONALES,
    temperature: float | None = None,
    seed: int = 0,
    checkpointer: Any = None,
    name: str = "sysscan_analysis",
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return the compiled graph: `{"report": ...}` in, `{"analysis": ...}` out (`AnalysisReport` as JSON).

    `min_severity` and `max_findings` choose findings by the scanner's severity. `time_budget` is in seconds of one run: then
    the report says what there is, the most severe findings first, and what was left out. `max_tokens` and `report_tokens`
    bound an answer about a finding and the report. `rationales` correlations are explained by the specialist. With a
    `checkpointer`, `invoke(None, config)` of the same thread goes on with what is missing (not with `durability="exit"`,
    which saves nothing before the end).

    Stream modes: `custom` tells progress as `{"stage", "done", "total"}`; `messages` shows the tokens, those about findings
    with `subgraphs=True`. `max_concurrency` in the configuration bounds the requests that are under way. A synchronous run
    has a thread for each finding of a wave (256 at most); for many runs at once use `ainvoke`.

    Raises UserError for a wrong option or a package without a specialist.
    """
    options = _Options(min_severity, max_findings, time_budget, rationales)
    steps = _Steps(served(models), options, max_tokens, report_tokens, temperature, seed)
    graph = StateGraph(AnalysisState, input_schema=AnalysisInput, output_schema=AnalysisOutput)
    graph.add_node("select", RunnableLambda(steps.select, name="select"))
    graph.add_node(SPECIALIST, node(steps.specialist, SPECIALIST))
    graph.add_node("correlate", node(steps.correlate, "correlate"))
    graph.add_node("compliance", RunnableLambda(steps.compliance, name="compliance"))
    graph.add_node("report", node(steps.report, "report"))
    for before, after in pairwise((START, "select", SPECIALIST, "correlate", "compliance", "report", END)):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=checkpointer, name=name)


@dataclass(frozen=True)
class _Options:
    min_severity: str
    max_findings: int | None
    time_budget: float | None
    rationales: int

    def __post_init__(self) -> None:
        checked_selection(self.min_severity, self.max_findings)
        _checked_budget(self.time_budget)
        if self.rationales < 0:
            raise UserError(f"rationales is {self.rationales}; expected 0 or more")


class _Steps:
    """The nodes: each takes the state and returns what it found out."""

    def __init__(
        self, models: Served, options: _Options, max_tokens: int, report_tokens: int, temperature: float | None, seed: int
    ) -> None:
        self.models, self.options = models, options
        specialist = Questioner(models, SPECIALIST, max_tokens, temperature, seed)
        model = models.role(SPECIALIST).response_model
        self.fanout = Fanout(specialist, answer_schema(model, max_tokens))
        self.explainer = Questioner(models, SPECIALIST, RATIONALE_TOKENS, temperature, seed)
        self.why = answer_schema(model, RATIONALE_TOKENS, ("analysis",))
        self.reporter = (
            Questioner(models, GENERALIST, report_tokens, temperature, seed) if GENERALIST in models.models else None
        )

    def select(self, state: AnalysisState, config: RunnableConfig) -> AnalysisState:
        """Choose findings; everything that an earlier report left in the state is replaced."""
        _checked_budget(state.get("time_budget"))
        chosen = select(state.get("report"), self.options.min_severity, self.options.max_findings)
        teller("select", config)(1, 1)
        return {
            "started": time.monotonic(),
            "entries": list(chosen.entries),
            "left_out": [_plain(record) for record in chosen.left_out],
            "warnings": [_plain(warning) for warning in chosen.warnings],
            "tokens": {"prompt": 0, "completion": 0},
            "analysis": {},
        }

    def specialist(self, state: AnalysisState, config: RunnableConfig) -> Generator[Call, Any, AnalysisState]:
        """Ask about every finding that is not like one before it."""
        started = _started(state)
        yield in_thread(self.fanout.specialist.open)  # what cannot be loaded raises here, and not once per finding
        questions = [entry for entry in state["entries"] if not entry["same_as"]]
        run = Run(self.fanout.gate, teller(SPECIALIST, config), self._end(state, started, SPECIALIST_SHARE))
        answers: Answers = yield self.fanout.asking(questions, run, config)
        analyses, left_out, told = [], [], _Warnings(SPECIALIST)
        for entry in state["entries"]:
            answer = answers.get(entry["same_as"] or entry["alias"]) or {"error": "", "reason": TIME_BUDGET}
            if "fields" in answer:
                analyses.append(_plain(_analysis(entry, answer)))
                continue
            left_out.append(_plain(left(entry, answer["reason"])))
            if answer["reason"] == FAILED and not entry["same_as"]:
                told.add(answer["error"], entry["finding_id"])
        return {
            "started": started,
            "analyses": analyses,
            "left_out": [*state["left_out"], *left_out],
            "warnings": [*state["warnings"], *told.records()],
            "tokens": _added(state["tokens"], answers.values()),
        }

    def correlate(self, state: AnalysisState, config: RunnableConfig) -> Generator[Call, Any, AnalysisState]:
        """Group the findings, and ask why the most important groups belong together."""
        started, told, tell = _started(state), _Warnings("correlate"), teller("correlate", config)
        analyses = _analyses(state)
        shares = {entry["alias"]: entry["shares"] for entry in state["entries"]}
        groups: list[Correlation] = yield in_thread(correlate, analyses, shares)
        seconds = self._left(state, started, CORRELATE_SHARE)
        asked: list[Any] = []
        texts = questions(worth_asking(groups, self.options.rationales), analyses)
        if texts and (seconds is None or seconds > 0):
            tell(0, len(texts))
            asked = yield together([self.explainer.asking(text, self.why, config, seconds) for text in texts])
        for place, answer in enumerate(asked):
            try:
                rationale = _read(answer, self.explainer, self.why).analysis or ""
            except Exception as error:  # noqa: BLE001 - a group without a reason is still a group
                told.add(f"{groups[place].id} has no rationale: {failure(error)['error']}")
            else:
                groups[place] = groups[place].model_copy(update={"rationale": rationale})
        tell(len(asked), len(asked))
        return {
            "started": started,
            "correlations": [_plain(group) for group in groups],
            "warnings": [*state["warnings"], *told.records()],
            "tokens": _added(state["tokens"], (answer.cost for answer in asked if isinstance(answer, Asked))),
        }

    def compliance(self, state: AnalysisState, config: RunnableConfig) -> AnalysisState:
        """Find the controls that findings speak against."""
        gaps = compliance_gaps(_analyses(state))
        teller("compliance", config)(1, 1)
        return {"started": _started(state), "compliance_gaps": [_plain(gap) for gap in gaps]}

    def report(self, state: AnalysisState, config: RunnableConfig) -> Generator[Call, Any, AnalysisState]:
        """Have the generalist write the report, or put a summary together that says why it did not."""
        started, told, tell = _started(state), _Warnings("report"), teller("report", config)
        analyses, left_out = _analyses(state), [LeftOut.model_validate(record) for record in state["left_out"]]
        tell(0, 1)
        asked: Asked | None = None
        written: dict[str, Any] = {}
        try:
            question, schema = yield from self._report_question(state, analyses, left_out)
            seconds = self._left(state, started, 1.0)
            if seconds is not None and seconds <= 0:
                raise SysscanError(_NO_TIME)
            asked = yield self._reporter().asking(question, schema, config, seconds)
            written = _written(_read(asked, self._reporter(), schema), analyses, told)
        except Exception as error:  # noqa: BLE001 - a summary of our own is better than no report
            reason = failure(error)["error"]
            told.add(f"the generalist wrote no summary: {reason}")
            key, steps = plain_points(analyses)
            written = {
                "executive_summary": plain_summary(analyses, left_out, reason),
                "key_findings": key,
                "recommendations": steps,
            }
        tokens = _added(state["tokens"], [asked.cost] if asked else [])
        report = AnalysisReport(
            **_about_the_scan(state.get("report")),
            **written,
            analyses=analyses,
            correlations=[Correlation.model_validate(group) for group in state["correlations"]],
            compliance_gaps=[ComplianceGap.model_validate(gap) for gap in state["compliance_gaps"]],
            left_out=left_out,
            warnings=[AnalysisWarning.model_validate(warning) for warning in [*state["warnings"], *told.records()]],
            models={role: self.models.model_name(role) for role in (SPECIALIST, GENERALIST) if role in self.models.models},
            tokens_prompt=tokens["prompt"],
            tokens_completion=tokens["completion"],
            seconds=round(time.monotonic() - started, 3),
        )
        tell(1, 1)
        return {"started": started, "analysis": _plain(report), "tokens": tokens}

    def _report_question(
        self, state: AnalysisState, analyses: Sequence[FindingAnalysis], left_out: Sequence[LeftOut]
    ) -> Generator[Call, Any, tuple[str, dict[str, Any]]]:
        """Return what the generalist is asked, and the schema of its answer."""
        reporter = self._reporter()
        if not analyses:
            raise SysscanError("there is no analysis to report on")
        groups = [Correlation.model_validate(group) for group in state["correlations"]]
        told = yield in_thread(tell_findings, analyses, groups, left_out, reporter.fits)
        return told.text, report_schema(reporter.response_model, reporter.max_tokens, told.aliases)

    def _reporter(self) -> Questioner:
        if self.reporter is None:
            raise SysscanError("the package has none")
        return self.reporter

    def _end(self, state: AnalysisState, started: float, share: float) -> float | None:
        """Return when a step must stop asking, by the monotonic clock; None for never."""
        budget = state.get("time_budget")
        seconds = self.options.time_budget if budget is None else budget
        return None if seconds is None else started + min(seconds, TIMEOUT_MAX) * share

    def _left(self, state: AnalysisState, started: float, share: float) -> float | None:
        end = self._end(state, started, share)
        return None if end is None else end - time.monotonic()


class _Warnings:
    """Collects a step's warnings; the same message about many findings is one."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._found: dict[str, list[str]] = {}

    def add(self, message: str, finding_id: str = "") -> None:
        self._found.setdefault(message, []).append(finding_id)

    def records(self) -> list[dict[str, Any]]:
        """Return them as plain JSON, in the order of their first occurrence."""
        return [
            _plain(AnalysisWarning(stage=self._stage, message=f"{message}{_and_more(len(ids) - 1)}", finding_id=ids[0]))
            for message, ids in self._found.items()
        ]


def _and_more(number: int) -> str:
    return f" (and {number} more)" if number else ""


def _plain(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json")


def _started(state: AnalysisState) -> float:
    """Return when this run began; one that goes on after a kill begins when it goes on."""
    return state.get("started") or time.monotonic()


def _analyses(state: AnalysisState) -> list[FindingAnalysis]:
    return [FindingAnalysis.model_validate(record) for record in state["analyses"]]


def _analysis(entry: Entry, answer: Mapping[str, Any]) -> FindingAnalysis:
    """Return what the specialist said about an entry; one that is like another cost nothing.

    Ratings of an answer that was cut short are not its own: what was left of the room chose them.
    """
    cut = _RATINGS if answer["finish_reason"] == "length" else ()
    said, own = {name: value for name, value in answer["fields"].items() if name not in cut}, not entry["same_as"]
    reported = entry["severity"] if entry["severity"] in SEVERITIES else "info"
    return FindingAnalysis(
        alias=entry["alias"],
        finding_id=entry["finding_id"],
        scanner=entry["scanner"],
        title=entry["title"],
        reported_severity=entry["severity"],
        evidence=tuple(line for line in entry["text"].splitlines() if line.strip()),
        severity=said.get("severity") or reported,
        same_as=entry["same_as"],
        finish_reason=answer["finish_reason"],
        prompt_tokens=answer["prompt_tokens"] if own else 0,
        completion_tokens=answer["completion_tokens"] if own else 0,
        **{name: said[name] for name in _SAID if name in said},
    )


def _read(asked: Asked | Exception | None, questioner: Questioner, schema: Mapping[str, Any]) -> Any:
    """Return an answer as its role's response model; raise what went wrong."""
    if not isinstance(asked, Asked):
        raise asked or SysscanError("nothing was asked")
    try:
        return read_answer(asked.text, questioner.response_model, schema)
    except OutputParserException as error:
        raise (SysscanError(_NO_TIME) if asked.finish_reason == "deadline" else error) from error


def _written(response: Any, analyses: Sequence[FindingAnalysis], told: _Warnings) -> dict[str, Any]:
    """Return the report's own words, each point with the findings it rests on; raise SysscanError without a summary."""
    if not isinstance(response, GeneralistResponse) or not response.executive_summary:
        raise SysscanError("its answer holds no executive summary")
    ids = {analysis.alias: analysis.finding_id for analysis in analyses}
    key, unfounded = read_points(response.key_findings or [], ids)
    steps, unfounded_steps = read_points(response.recommendations or [], ids)
    if lost := unfounded + unfounded_steps:
        told.add(f"{lost} of the generalist's points name no finding and were left out")
    own_key, own_steps = plain_points(analyses)
    return {
        "executive_summary": response.executive_summary,
        "key_findings": key or own_key,
        "recommendations": steps or own_steps,
    }


def _added(tokens: Mapping[str, int], costs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    sums = dict(tokens)
    for cost in costs:
        sums["prompt"] += cost.get("prompt_tokens", 0)
        sums["completion"] += cost.get("completion_tokens", 0)
    return sums


def _about_the_scan(report: Any) -> dict[str, str]:
    """Return which host was scanned, and when or by what."""
    meta, summary = (report.get(key) if isinstance(report.get(key), Mapping) else {} for key in ("meta", "summary"))
    when = summary.get("finished_at") or summary.get("started_at") or meta.get("cmdline") or ""
    told = {"host": meta.get("hostname") or "", "scanned": when}
    return {key: redact(str(value)).encode("utf-8", "replace").decode().strip() for key, value in told.items()}


def _checked_budget(seconds: Any) -> None:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < math.inf):
        raise UserError(f"time_budget is {seconds!r}; expected seconds, more than 0, or None for no limit")
