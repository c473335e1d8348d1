"""The two models of Sys-Scan-Graph inside a LangGraph graph: in process, offline, many findings at a time.

What is public is named here and imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sysscan_langgraph.analysis.graph import create_analysis_graph
    from sysscan_langgraph.analysis.records import AnalysisReport
    from sysscan_langgraph.analysis.run import analyze
    from sysscan_langgraph.backends import LlamaCpp, OpenAICompatible
    from sysscan_langgraph.chat_model import ChatSysscan
    from sysscan_langgraph.host import SysscanProvider, install, uninstall
    from sysscan_langgraph.nodes import cache_key, create_generalist_node, create_specialist_node, retry_on
    from sysscan_langgraph.serving import Served, serve

_PUBLIC = {
    "AnalysisReport": "analysis.records",
    "ChatSysscan": "chat_model",
    "LlamaCpp": "backends",
    "OpenAICompatible": "backends",
    "Served": "serving",
    "SysscanProvider": "host",
    "analyze": "analysis.run",
    "cache_key": "nodes",
    "create_analysis_graph": "analysis.graph",
    "create_generalist_node": "nodes",
    "create_specialist_node": "nodes",
    "install": "host",
    "retry_on": "nodes",
    "serve": "serving",
    "uninstall": "host",
}

__all__ = [
    "AnalysisReport", "ChatSysscan", "LlamaCpp", "OpenAICompatible", "Served", "SysscanProvider", "analyze", "cache_key",
    "create_analysis_graph", "create_generalist_node", "create_specialist_node", "install", "retry_on", "serve", "uninstall",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
