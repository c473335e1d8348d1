"""The process's provider. Trap: whatever is a NullLLMProvider, by inheritance too, is replaced at every access."""

from __future__ import annotations

from typing import Any, NamedTuple

from host_double.models import Summaries


class ProviderMetadata(NamedTuple):
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


class NullLLMProvider:
    """Answers with nothing that a model said."""

    def summarize(self, reductions: Any, correlations: Any, actions: Any, **_: Any) -> tuple[Summaries, ProviderMetadata]:
        return Summaries(executive_summary="null", metrics={}), _nothing()

    def refine_rules(self, suggestions: list[Any], examples: Any = None) -> tuple[list[Any], ProviderMetadata]:
        return suggestions, _nothing()

    def triage(self, reductions: Any, correlations: Any) -> tuple[dict[str, Any], ProviderMetadata]:
        return {"top_findings": [], "correlation_count": 0}, _nothing()


_PROVIDER: Any = NullLLMProvider()
accesses = 0
"""How often the null provider was replaced: the real host loads a model of gigabytes then."""


def get_llm_provider() -> Any:
    global _PROVIDER, accesses
    if isinstance(_PROVIDER, NullLLMProvider):
        accesses += 1
        _PROVIDER = NullLLMProvider()
    return _PROVIDER


def set_llm_provider(provider: Any) -> None:
    global _PROVIDER
    _PROVIDER = provider


def _nothing() -> ProviderMetadata:
    return ProviderMetadata("null", "null", 0, 0, 0)
