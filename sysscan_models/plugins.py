"""Finding plugins and choosing from what they register.

`plugin_manager()` builds a fresh manager at each call, so that tests need no clean-up and two callers never share state.
A plugin that fails to import is kept as `broken`, harms nobody else, and is named when somebody chooses it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from sysscan_models import hookspecs, interfaces
from sysscan_models.errors import SysscanError, UserError, unknown_name
from sysscan_models.roles import ModelRole

KINDS: Mapping[str, type] = {
    "roles": ModelRole,
    "readers": interfaces.Reader,
    "routers": interfaces.Router,
    "sources": interfaces.Source,
    "trainers": interfaces.Trainer,
    "quantizers": interfaces.Quantizer,
    "evaluators": interfaces.Evaluator,
    "backends": interfaces.Backend,
}
"""What can be registered: the end of the hook's name, and the class that it must return (an instance of ModelRole)."""


@dataclass(frozen=True)
class BrokenPlugin:
    """An installed plugin that could not be imported: its entry point, what it needs, and the traceback."""

    name: str
    value: str
    reason: str
    missing_module: str
    traceback: str


@dataclass
class Registry:
    """Everything that the plugins of one manager registered, by kind and name, with who registered it."""

    manager: pluggy.PluginManager
    broken: tuple[BrokenPlugin, ...] = ()
    found: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    owners: dict[tuple[str, str], str] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Return the registered names of one kind (a key of KINDS), sorted."""
        return sorted(self.found[kind])

    def get(self, kind: str, name: str) -> Any:
        """Return the class (or role) registered under a name; raise UserError with the valid choices otherwise."""
        if name in self.found[kind]:
            return self.found[kind][name]
        for plugin in self.broken:
            if name in (plugin.name, plugin.value.partition(":")[0].rpartition(".")[2]):
                raise UserError(
                    f"{kind.removesuffix('s')} {name!r} comes from the plugin {plugin.name!r}, which is broken: "
                    f"{plugin.reason}. `sysscan-models plugins` shows its traceback"
                )
        raise UserError(unknown_name(kind.removesuffix("s"), name, self.found[kind]))


def plugin_manager(*plugins: object, entry_points: bool = True) -> Registry:
    """Build a fresh manager from installed entry points and the given plugin objects, and collect what they register.

    Raises UserError when a name is registered twice, and when a plugin has a hook that does not exist or that takes
    arguments which the hook does not give.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    from sysscan_models import roles, routing  # the built-in plugins, registered like any other

    manager.register(roles, "sysscan_models.roles")
    manager.register(routing, "sysscan_models.routing")
    manager.register(_core_reader(), "sysscan_models.corpus")
    broken = _register_entry_points(manager) if entry_points else ()
    for plugin in plugins:
        _register(manager, plugin, getattr(plugin, "__name__", None))
    registry = Registry(manager, broken)
    for kind in KINDS:
        _collect(registry, kind)
    return registry


def _core_reader() -> object:
    from sysscan_models import corpus

    return corpus


def _register(manager: pluggy.PluginManager, plugin: object, name: str | None) -> None:
    unmarked = [
        hook
        for hook, function in vars(plugin).items()
        if hook.startswith("sysscan_register_") and callable(function) and not hasattr(function, f"{hookspecs.PROJECT}_impl")
    ]
    if unmarked:
        raise UserError(f"plugin {name or plugin!r}: {unmarked[0]} lacks the decorator @sysscan_models.hookimpl")
    registered = None
    try:
        registered = manager.register(plugin, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        if registered:
            manager.unregister(name=registered)
        hooks = [hook for hook in vars(manager.hook) if hook.startswith("sysscan_")]
        misspelt = re.search(r"unknown hook '(\w+)'", str(error))
        advice = unknown_name("hook", misspelt[1], hooks) if misspelt else str(error).replace("\n", " ")
        raise UserError(f"plugin {name or plugin!r} cannot be registered: {advice}") from error


def _register_entry_points(manager: pluggy.PluginManager) -> tuple[BrokenPlugin, ...]:
    broken = []
    for point in sorted(metadata.entry_points(group=hookspecs.PROJECT), key=lambda point: (point.name, point.value)):
        try:
            _register(manager, point.load(), point.name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may fail in any way
            missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, SysscanError) else str(error)
            broken.append(BrokenPlugin(point.name, point.value, reason, missing, traceback.format_exc()))
    return tuple(broken)


def _collect(registry: Registry, kind: str) -> None:
    expected = KINDS[kind]
    hook = getattr(registry.manager.hook, f"sysscan_register_{kind}")
    for impl in sorted(hook.get_hookimpls(), key=lambda impl: impl.plugin_name):
        for item in impl.function() or ():
            owner = impl.plugin_name
            right = isinstance(item, expected) if kind == "roles" else isinstance(item, type) and issubclass(item, expected)
            name = getattr(item, "name", None)
            if not right or not isinstance(name, str) or not name:
                raise UserError(
                    f"plugin {owner!r}: sysscan_register_{kind} returned {item!r}; expected "
                    f"{'instances' if kind == 'roles' else 'subclasses'} of {expected.__name__} with a `name`"
                )
            if name in registry.found[kind]:
                first = registry.owners[kind, name]
                raise UserError(
                    f"{kind.removesuffix('s')} {name!r} is registered twice, by {first!r} and by {owner!r}; "
                    f"uninstall one of the two or rename one"
                )
            registry.found[kind][name] = item
            registry.owners[kind, name] = owner
