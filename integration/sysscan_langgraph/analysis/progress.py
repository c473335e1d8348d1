"""Progress of a graph, written to LangGraph's stream (`stream_mode="custom"`) as `{"stage", "done", "total"}`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer

Teller = Callable[[int, int], None]
"""Is told how much is done, and of how much."""


def teller(stage: str, config: RunnableConfig) -> Teller:
    """Return what writes a stage's progress to the stream of the graph that runs it; nothing listens outside of one."""
    try:
        write: Callable[[Any], None] = get_stream_writer()
    except (RuntimeError, KeyError):  # no graph, or an event loop of Python 3.10, which keeps no context
        runtime = config.get("configurable", {}).get("__pregel_runtime")
        write = getattr(runtime, "stream_writer", None) or (lambda _: None)

    def tell(done: int, total: int) -> None:
        with suppress(RuntimeError):
            write({"stage": stage, "done": done, "total": total})

    return tell
