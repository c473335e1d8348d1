"""Putting provider and nodes into the host, and taking them out again.

The provider goes through the host's own setter. The nodes are module attributes of the host: its graph module calls them
through sync wrappers that lose the result of an async node inside a running event loop, so the wrappers are replaced too, and
the graph that the host compiled when it was imported is built anew. Nothing is changed before all that is needed was found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module, reload
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from sysscan_langgraph.host.analyst import opened
from sysscan_langgraph.host.nodes import HostNodes, asynchronous
from sysscan_langgraph.host.provider import SysscanProvider
from sysscan_langgraph.host.shapes import HOST
from sysscan_langgraph.serving import Served
from sysscan_models.errors import UserError

_WRAPPERS = {
    "enhanced_summarize_host_state": "summarize_host_state",
    "enhanced_suggest_rules": "suggest_rules",
    "risk_analyzer": "risk_analyzer_sync",
    "compliance_checker": "compliance_checker_sync",
}
"""The host's async nodes, and the sync functions that its graph is built from."""
_RENAMED = {
    "enhanced_summarize_host_state": "scaffold_summarize",
    "enhanced_suggest_rules": "scaffold_suggest_rules",
    "risk_analyzer": "scaffold_risk_analyzer",
    "compliance_checker": "scaffold_compliance_checker",
}
"""What the host's module `graph_nodes_enhanced` calls them."""
_BUILT = ("workflow", "app", "BaselineQueryGraph")
"""What the host's graph module made of them when it was imported."""
_MISSING: Any = object()

_installed: dict[tuple[str, str], list[Installation]] = {}
_lock = threading.RLock()


class Installation:
    """Provider and nodes inside a host, until `uninstall`. A context manager."""

    def __init__(self, host: str, models: Served, provider: SysscanProvider, nodes: HostNodes, parts: tuple[str, ...]) -> None:
        self.host, self.models, self.provider, self.nodes, self.parts = host, models, provider, nodes, parts
        self._undo = ExitStack()
        self._active = True

    def uninstall(self) -> None:
        """Put back exactly what was there. A second call does nothing; raises UserError while a later one lies on top."""
        with _lock:
            if not self._active:
                return
            for part in self.parts:
                if _installed[self.host, part][-1] is not self:
                    raise UserError(
                        f"{self.host}: another installation was put on top of this {part}; uninstall that one first"
                    )
            for part in self.parts:
                _installed[self.host, part].pop()
            self._active = False
            self._undo.close()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.uninstall()


def install(
    models: Served | Path | str,
    *,
    host: str | ModuleType = HOST,
    provider: bool = True,
    nodes: bool = True,
    replace: bool = False,
    time_limit: float = 120.0,
    max_findings: int = 50,
    max_tokens: int = 256,
    summary_tokens: int = 512,
) -> Installation:
    """Put the provider, the nodes or both into the host, and return what takes them out again.

    ``models`` are opened models, or a package's folder; that is opened for reproducible answers, as the host's protocol asks,
    and closed by `uninstall`. ``host`` is the host's package. ``time_limit`` is in seconds for each call of the provider and
    each node; ``max_findings`` is how many findings the nodes ask about; the tokens bound an answer of the specialist and of
    the generalist. ``replace`` allows another installation on top of one. Raises UserError when the host cannot be imported,
    has another shape, or holds an installation already.
    """
    name = host if isinstance(host, str) else host.__name__
    parts = tuple(part for part, wanted in (("provider", provider), ("nodes", nodes)) if wanted)
    if not parts:
        raise UserError("nothing to install: provider and nodes are both False; expected one of them or both")
    with _lock, ExitStack() as unfinished:
        _refuse_twice(name, parts, replace)
        modules = _modules(name, parts)
        ready = models if isinstance(models, Served) else unfinished.enter_context(opened(models))
        asked = SysscanProvider(ready, host=name, time_limit=time_limit, max_tokens=max_tokens, summary_tokens=summary_tokens)
        installation = Installation(
            name, ready, asked, HostNodes(asked, time_limit=time_limit, max_findings=max_findings), parts
        )
        with ExitStack() as undo:
            if not isinstance(models, Served):
                undo.callback(ready.close)
            if provider:
                _put_provider(modules["llm_provider"], asked, undo)
            if nodes:
                _put_nodes(modules, installation.nodes, undo)
            installation._undo = undo.pop_all()
        unfinished.pop_all()
        for part in parts:
            _installed.setdefault((name, part), []).append(installation)
        return installation


def uninstall(host: str | ModuleType = HOST) -> None:
    """Take everything out of a host that was installed into it, the latest first; nothing is no error."""
    name = host if isinstance(host, str) else host.__name__
    with _lock:
        while found := [stack[-1] for (where, _), stack in _installed.items() if where == name and stack]:
            top = [one for one in found if all(_installed[name, part][-1] is one for part in one.parts)]
            top[0].uninstall()


def _refuse_twice(name: str, parts: tuple[str, ...], replace: bool) -> None:
    held = [part for part in parts if _installed.get((name, part))]
    if held and not replace:
        raise UserError(
            f"{name}: {' and '.join(held)} of sysscan-models are installed already; call uninstall() first, "
            "or put these on top with replace=True"
        )


def _modules(name: str, parts: tuple[str, ...]) -> dict[str, ModuleType]:
    """Import what is needed of the host, and refuse a host that lacks any of it."""
    needed = {"llm_provider": ("get_llm_provider", "set_llm_provider", "ProviderMetadata"), "models": ("Summaries",)}
    if "nodes" in parts:  # in this order: the host's graph stays empty when its nodes are imported first
        needed["graph"] = (*_WRAPPERS, *_WRAPPERS.values(), "build_workflow", "app")
        needed["graph_nodes_scaffold"] = tuple(_WRAPPERS)
    modules = {module: _imported(name, module) for module in needed}
    if "nodes" in parts and getattr(modules["graph"], "app", None) is None:  # somebody did import them first
        modules["graph"] = reload(modules["graph"])
    lacking = [
        f"{module}.{attribute}"
        for module, attributes in needed.items()
        for attribute in attributes
        if getattr(modules[module], attribute, None) is None
    ]
    if lacking:
        raise UserError(
            f"the host {name!r} has another shape: it lacks {', '.join(lacking)}. Expected Sys-Scan-Graph's agent 5, with "
            "langgraph installed; or pass nodes=False to install the provider alone"
        )
    return modules


def _imported(name: str, module: str) -> ModuleType:
    try:
        import_module(name)
    except ImportError as error:
        raise UserError(
            f"the host {name!r} cannot be imported ({error}); install it beside sysscan-models, put its folder on the Python "
            "path, or name another package with host="
        ) from error
    try:
        return import_module(f"{name}.{module}")
    except ImportError as error:
        raise UserError(
            f"the host {name!r} has no module {module!r} that can be imported ({error}); expected Sys-Scan-Graph's agent 5"
        ) from error


def _put_provider(module: ModuleType, provider: SysscanProvider, undo: ExitStack) -> None:
    before = getattr(module, "_PROVIDER", _MISSING)  # not through the getter: that would load the host's own model
    before = module.get_llm_provider() if before is _MISSING else before

    def put_back() -> None:
        if getattr(module, "_PROVIDER", provider) is provider:
            module.set_llm_provider(before)

    undo.callback(put_back)
    module.set_llm_provider(provider)


def _put_nodes(modules: Mapping[str, ModuleType], nodes: HostNodes, undo: ExitStack) -> None:
    graph, scaffold = modules["graph"], modules["graph_nodes_scaffold"]
    enhanced = _optional(f"{graph.__name__.rpartition('.')[0]}.graph_nodes_enhanced")
    for name, node in nodes.nodes().items():
        coroutine = asynchronous(node)
        _put(scaffold, name, coroutine, undo)
        _put(graph, name, coroutine, undo)
        _put(graph, _WRAPPERS[name], node, undo)
        if enhanced is not None and hasattr(enhanced, _RENAMED[name]):
            _put(enhanced, _RENAMED[name], coroutine, undo)
    workflow, app = graph.build_workflow()
    if app is None:
        raise UserError(f"the host's {graph.__name__}.build_workflow() made no graph; is langgraph installed?")
    for name, made in zip(_BUILT, (workflow, app, app), strict=True):
        if hasattr(graph, name):
            _put(graph, name, made, undo)


def _optional(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


def _put(module: ModuleType, name: str, value: Any, undo: ExitStack) -> None:
    """Set a module's attribute, to be set back if it is still ours then: the host's module may have been loaded anew."""
    before: Callable[..., Any] | Any = getattr(module, name)

    def put_back() -> None:
        if getattr(module, name, _MISSING) is value:
            setattr(module, name, before)

    undo.callback(put_back)
    setattr(module, name, value)
