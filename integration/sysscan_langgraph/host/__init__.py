"""The two models inside the host, Sys-Scan-Graph's agent: a provider, drop-ins for its nodes, and one line that puts them in.

What is public is imported when it is first used: importing this package loads neither the host nor a model's library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sysscan_langgraph.host.installation import Installation, install, uninstall
    from sysscan_langgraph.host.nodes import HostNodes
    from sysscan_langgraph.host.provider import SysscanProvider

_PUBLIC = {
    "HostNodes": "nodes",
    "Installation": "installation",
    "SysscanProvider": "provider",
    "install": "installation",
    "uninstall": "installation",
}

__all__ = ["HostNodes", "Installation", "SysscanProvider", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
