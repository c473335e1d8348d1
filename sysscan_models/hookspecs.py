"""The hooks of sysscan-models and the two markers. Every hook is called once, when a plugin manager is built.

Backends are registered by name and chosen by name in the configuration; they never race for the first result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from sysscan_models.interfaces import Backend, Evaluator, Quantizer, Reader, Router, Source, Trainer
    from sysscan_models.roles import ModelRole

PROJECT = "sysscan_models"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sysscan_register_roles() -> Sequence[ModelRole]:  # type: ignore[empty-body]
    """Return the roles that this plugin adds; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_readers() -> Sequence[type[Reader]]:  # type: ignore[empty-body]
    """Return readers of dataset formats; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_routers() -> Sequence[type[Router]]:  # type: ignore[empty-body]
    """Return routers, which decide the role of a document; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_sources() -> Sequence[type[Source]]:  # type: ignore[empty-body]
    """Return sources of base models, chosen by the scheme of `base`; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_trainers() -> Sequence[type[Trainer]]:  # type: ignore[empty-body]
    """Return trainers; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_quantizers() -> Sequence[type[Quantizer]]:  # type: ignore[empty-body]
    """Return quantizers; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_evaluators() -> Sequence[type[Evaluator]]:  # type: ignore[empty-body]
    """Return evaluators; called once, when the plugin manager is built."""


@hookspec
def sysscan_register_backends() -> Sequence[type[Backend]]:  # type: ignore[empty-body]
    """Return backends, which serve a packaged model; called once, when the plugin manager is built."""
