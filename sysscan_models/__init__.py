"""sysscan-models: the models of Sys-Scan-Graph, from an archive of documents to two verified GGUF files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysscan_models.hookspecs import hookimpl

if TYPE_CHECKING:
    from sysscan_models.plugins import plugin_manager
    from sysscan_models.roles import ModelRole

__all__ = ["ModelRole", "hookimpl", "plugin_manager"]


def __getattr__(name: str) -> object:
    """Import the public names when they are asked for, so that `--help` stays quick."""
    if name == "plugin_manager":
        from sysscan_models.plugins import plugin_manager

        return plugin_manager
    if name == "ModelRole":
        from sysscan_models.roles import ModelRole

        return ModelRole
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
