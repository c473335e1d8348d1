"""The two roles as nodes for a graph of one's own.

    graph.add_node("specialist", create_specialist_node(models), retry_policy=RetryPolicy(retry_on=retry_on))

A node reads one key of the state and writes one, plain JSON both, so any checkpointer stores it; the models stay outside of the
state. It runs in `invoke` and `ainvoke`, shows its tokens in `stream_mode="messages"` and its progress in
`stream_mode="custom"`. For a whole scan report there is `create_analysis_graph`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig, RunnableLambda

from sysscan_langgraph.analysis.answers import read_answer, read_points
from sysscan_langgraph.analysis.progress import teller
from sysscan_langgraph.analysis.questions import Asked, Questioner, retry_on
from sysscan_langgraph.analysis.records import FindingAnalysis
from sysscan_langgraph.analysis.schemas import answer_schema, report_schema
from sysscan_langgraph.analysis.steps import Call, in_thread, node
from sysscan_langgraph.analysis.summary import tell_findings
from sysscan_langgraph.serving import Served, served
from sysscan_models.errors import DataError, UserError, unknown_name
from sysscan_models.prompts import redact, user_turn
from sysscan_models.scan_report import SEVERITIES, document, severity_of

__all__ = ["cache_key", "create_generalist_node", "create_specialist_node", "retry_on"]

OnError = Literal["raise", "warn"]


def create_specialist_node(
    models: Served | Path | str,
    *,
    name: str = "specialist",
    role: str = "specialist",
    input_key: str = "finding",
    output_key: str = "analysis",
    warnings_key: str = "warnings",
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    on_error: OnError = "raise",
) -> RunnableLambda[Any, Any]:
    """Return the node that analyses one finding: an object with `title`, `description`, `metadata`, as scanners write it.

    It writes the role's response model as an object of all its fields (None where the model says nothing), with `model`,
    `finish_reason`, `prompt_tokens` and `completion_tokens`. `max_tokens` bounds the answer; None for the role's default. With
    `on_error="warn"` it raises nothing: it writes None, and a list of one warning `{"stage", "message", "finding_id"}` to
    `warnings_key`, which wants a reducer such as `operator.add`. Raises UserError for a wrong option or role.
    """
    questioner = _questioner(models, role, max_tokens, temperature, seed, on_error)
    model = questioner.response_model
    schema = answer_schema(model, questioner.max_tokens)

    def analyse(state: Any, config: RunnableConfig) -> Generator[Call, Any, Any]:
        finding = _finding(_value(state, input_key))
        shown = document(finding)
        asked = yield questioner.asking(user_turn(shown.title, shown.description), schema, config)
        return {**read_answer(asked.text, model, schema).model_dump(mode="json"), **_about(questioner, asked)}

    return _node(analyse, name, questioner, (input_key, output_key, warnings_key), on_error)


def create_generalist_node(
    models: Served | Path | str,
    *,
    name: str = "generalist",
    role: str = "generalist",
    input_key: str = "findings",
    output_key: str = "report",
    warnings_key: str = "warnings",
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    on_error: OnError = "raise",
) -> RunnableLambda[Any, Any]:
    """Return the node that reports on a list of findings: what scanners write, and what the specialist said of them.

    The generalist sees `title`, `severity`, `risk_score` and `analysis` (else `description`) of each, called F1, F2, ... in
    the list's order; ids never reach it. It writes `executive_summary`, and `key_findings` and `recommendations` as objects of
    `text`, `finding_ids` and `aliases`, with `model`, `finish_reason`, `prompt_tokens` and `completion_tokens`. The other
    arguments are the specialist node's.
    """
    questioner = _questioner(models, role, max_tokens, temperature, seed, on_error)
    model = questioner.response_model

    def report(state: Any, config: RunnableConfig) -> Generator[Call, Any, Any]:
        findings = _findings(_value(state, input_key), input_key)
        told = yield in_thread(tell_findings, findings, (), (), questioner.fits)
        schema = report_schema(model, questioner.max_tokens, told.aliases)
        asked = yield questioner.asking(told.text, schema, config)
        fields = read_answer(asked.text, model, schema).model_dump(mode="json")
        ids = {finding.alias: finding.finding_id for finding in findings}
        for key, texts in fields.items():
            if isinstance(texts, list):
                fields[key] = [point.model_dump(mode="json") for point in read_points(texts, ids)[0]]
        return {**fields, **_about(questioner, asked)}

    return _node(report, name, questioner, (input_key, output_key, warnings_key), on_error)


def cache_key(
    state: Any,
    *,
    models: Served | None = None,
    role: str = "specialist",
    input_key: str = "finding",
    **options: Any,
) -> str:
    """Return what a node's answer depends on, as LangGraph's `CachePolicy(key_func=...)` wants it: not the id of a finding.

    Give the models too, and the node's own options (`max_tokens`, `temperature`, `seed`) where a cache outlives them, so that
    what answers otherwise has another key: `CachePolicy(key_func=partial(cache_key, models=models, max_tokens=64))`.
    """
    value = _value(state, input_key)
    shown = [_shown(finding) for finding in value] if isinstance(value, (list, tuple)) else _shown(value)
    identity = _questioner(models, role, None, None, 0, "raise").identity if models else [role]
    return sha256(json.dumps([shown, identity, sorted(options.items())], default=str).encode()).hexdigest()


def _node(
    step: Callable[[Any, RunnableConfig], Generator[Call, Any, Any]],
    name: str,
    questioner: Questioner,
    keys: tuple[str, str, str],
    on_error: OnError,
) -> RunnableLambda[Any, Any]:
    """Return a step as a node that loads the model first, tells its progress, and warns where it may not raise."""
    input_key, output_key, warnings_key = keys

    def run(state: Any, config: RunnableConfig) -> Generator[Call, Any, dict[str, Any]]:
        tell = teller(name, config)
        tell(0, 1)
        try:
            yield in_thread(questioner.open)
            found = yield from step(state, config)
        except Exception as error:
            if on_error == "raise":
                raise
            message = redact(" ".join(str(error).split()) or type(error).__name__)
            return {output_key: None, warnings_key: [{"stage": name, "message": message, "finding_id": _id(state, input_key)}]}
        tell(1, 1)
        return {output_key: found}

    return node(run, name)


def _questioner(
    models: Served | Path | str, role: str, max_tokens: int | None, temperature: float | None, seed: int, on_error: str
) -> Questioner:
    if on_error not in ("raise", "warn"):
        raise UserError(unknown_name("on_error", on_error, ("raise", "warn")))
    opened = served(models)
    tokens = opened.role(role).sampling.max_tokens if max_tokens is None else max_tokens
    return Questioner(opened, role, tokens, temperature, seed)


def _about(questioner: Questioner, asked: Asked) -> dict[str, Any]:
    return {"model": questioner.model_name, **asked.cost}


def _value(state: Any, key: str) -> Any:
    """Return a key of a state, whether that is a mapping or an object; raise UserError when it is not there."""
    missing = object()
    value = state.get(key, missing) if isinstance(state, Mapping) else getattr(state, key, missing)
    if value is missing:
        keys = state if isinstance(state, Mapping) else vars(state) if hasattr(state, "__dict__") else ()
        raise UserError(f"input_key: {unknown_name('key of the state', key, map(str, keys))}")
    return value


def _finding(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not isinstance(value.get("title"), str):
        raise DataError(
            f"a finding is expected, an object with `title`, `description`, `metadata`; found {type(value).__name__}"
        )
    if not isinstance(value.get("metadata") or {}, Mapping):
        raise DataError(f"the finding's metadata is {type(value['metadata']).__name__}; expected names and values")
    return value


def _findings(value: Any, key: str) -> list[FindingAnalysis]:
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"`{key}` is {type(value).__name__ if value else 'empty'}; expected a list of findings")
    return [_told(f"F{number}", _finding(finding)) for number, finding in enumerate(value, 1)]


def _told(alias: str, finding: Mapping[str, Any]) -> FindingAnalysis:
    """Return a finding in whatever form as the record that summaries are made from."""
    severity, said = severity_of(finding.get("severity")), finding.get("analysis")
    if isinstance(said, Mapping):  # what the specialist's node wrote, beside the finding
        return _told(alias, {**finding, **{key: value for key, value in said.items() if value is not None}})
    risk = finding.get("risk_score")
    return FindingAnalysis(
        alias=alias,
        finding_id=str(finding.get("finding_id") or finding.get("id") or ""),
        title=redact(finding["title"]),
        analysis=redact(str(said or finding.get("description") or "")),
        severity=severity if severity in SEVERITIES else "info",
        risk_score=risk if isinstance(risk, int) and 0 <= risk <= 100 else None,
    )


def _shown(finding: Any) -> Any:
    """Return what of a finding reaches a prompt."""
    if not isinstance(finding, Mapping):
        return finding
    return {key: finding.get(key) for key in ("title", "description", "metadata", "severity", "analysis", "risk_score")}


def _id(state: Any, key: str) -> str:
    try:
        value = _value(state, key)
    except UserError:
        return ""
    return str(value.get("id", "")) if isinstance(value, Mapping) else ""
