"""The host's objects: how they are read, and what the provider gives back.

The host's own classes are used where the host is there. Where it is not (a test, another agent), twins with the same fields
take their place. Nothing here imports the host before something has to be returned to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, cast

from pydantic import BaseModel

HOST = "sys_scan_graph_agent"
"""The host's import name."""
DEEPEST, DEEPER = 32, "(nested too deeply to be shown)"
"""Levels of objects and lists that are read, and what stands for the rest."""


class ProviderMetadata(NamedTuple):
    """What one call of the provider took; field by field the host's record of that name."""

    model_name: str
    provider_name: str
    latency_ms: int
    tokens_prompt: int
    tokens_completion: int
    cached: bool = False
    fallback: bool = False
    error_message: str | None = None
    retry_count: int = 0
    cost_estimate: float | None = None
    temperature: float | None = None
    timestamp: str | None = None


class Summaries(BaseModel):
    """What the host shows about a scan; field by field the host's record of that name."""

    executive_summary: str | None = None
    analyst: dict[str, Any] | None = None
    consistency_findings: list[Any] | None = None
    triage_summary: dict[str, Any] | None = None
    action_narrative: str | None = None
    metrics: dict[str, Any] | None = None
    causal_hypotheses: list[dict[str, Any]] | None = None
    attack_coverage: dict[str, Any] | None = None


def classes(host: str | ModuleType) -> tuple[type[Summaries], type[ProviderMetadata]]:
    """Return the host's classes of these names, or the twins where the host cannot be imported."""
    name = host if isinstance(host, str) else host.__name__
    try:
        summaries = import_module(f"{name}.models").Summaries
        metadata = import_module(f"{name}.llm_provider").ProviderMetadata
    except (ImportError, AttributeError):
        return Summaries, ProviderMetadata
    return cast("type[Summaries]", summaries), cast("type[ProviderMetadata]", metadata)


def fields(thing: Any) -> dict[str, Any]:
    """Return the fields of a host's object, be it a dict, a pydantic model or any other; empty for None."""
    if isinstance(thing, Mapping):
        return {str(key): value for key, value in thing.items()}
    if isinstance(thing, BaseModel):
        return {name: getattr(thing, name) for name in type(thing).model_fields}
    return dict(getattr(thing, "__dict__", {}))


def listed(value: Any) -> list[Any]:
    """Return what is in a list, tuple or set, one thing as a list of it, and nothing for None."""
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return [value]


def number(value: Any, default: int = 0) -> int:
    """Return a number as the host's reports have it (`"30"`, 30.0, None) as an int."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return default


def text(value: Any) -> str:
    """Return a value as text: empty for None, and a note where it cannot say what it is."""
    try:
        return "" if value is None else str(value)
    except Exception as error:  # noqa: BLE001 - any object of the host's may stand here
        return f"({type(value).__name__} that cannot be shown: {type(error).__name__})"


def plain(value: Any, within: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON can hold it: other objects as text, and a note for what is in itself or deeper than `DEEPEST`.

    `within` are the ids of what the value is in.
    """
    if value is None or isinstance(value, (str, bool, float)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else text(value)
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return text(value)
    if id(value) in within or len(within) >= DEEPEST:
        return DEEPER
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return {text(key): plain(item, within) for key, item in value.items()}
    return [plain(item, within) for item in value]
