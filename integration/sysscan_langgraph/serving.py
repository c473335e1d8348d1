"""A package, opened for serving: one session per role, opened when it is first asked for.

Nodes, chat models and the host's provider all take a `Served`; what opens the models is a backend plugin.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from sysscan_models.errors import UserError, unknown_name
from sysscan_models.interfaces import Backend, ModelRef, Session
from sysscan_models.packaging import load_package
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.roles import ModelRole


class Served:
    """The models of a package, by role. A context manager; `close()` gives back what was opened."""

    def __init__(self, models: Mapping[str, ModelRef], backend: Backend, source: str = "") -> None:
        self.models, self.backend, self.source = dict(models), backend, source
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = False

    def session(self, role: str) -> Session:
        """Return the session of a role, the same one at each call; raise UserError for a role that is not there."""
        model = self._model(role)
        with self._lock:
            if self._closed:
                raise UserError(f"{self.source or 'these models'}: closed; open them again with serve()")
            if role not in self._sessions:
                self._sessions[role] = self.backend.open(model)
            return self._sessions[role]

    def role(self, name: str) -> ModelRole:
        """Return the contract that a role's model was packaged with."""
        return self._model(name).role

    def model_name(self, role: str) -> str:
        """Return what answers are attributed to: the name of the GGUF file, or of the role where a server answers."""
        return self._model(role).base_gguf.stem or role

    def close(self) -> None:
        """Close every session; calls that are under way end with SysscanError."""
        with self._lock:
            self._closed = True
            sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close()

    def _model(self, role: str) -> ModelRef:
        if role not in self.models:
            raise UserError(f"{self.source or 'these models'}: {unknown_name('role', role, self.models)}")
        return self.models[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.models)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve(
    package: Path | str | None = None,
    *,
    backend: str | Backend = "llama_cpp",
    registry: Registry | None = None,
    **options: object,
) -> Served:
    """Open a package for serving.

    `backend` is an instance, or the name of one, whose fields are then `options`. A backend that asks a server needs no
    package; without one, every registered role can be asked. Models are loaded when they are first asked for. Raises UserError
    for a missing package, an unknown backend or a wrong option, IntegrityError when a file is not what the manifest says.
    """
    registry = registry or plugin_manager()
    server = _backend(backend, registry, options)
    if package is not None:
        return Served(load_package(package, registry=registry).models, server, f"package {package}")
    if server.serves_files:
        raise UserError(f"backend {server.name!r} serves the files of a package; expected the folder of one")
    roles = (registry.get("roles", name) for name in registry.names("roles"))
    return Served({role.name: ModelRef(Path(), role) for role in roles}, server)


def served(models: Served | Path | str) -> Served:
    """Return opened models as they are, and open a package's folder; what nodes do with their first argument."""
    return models if isinstance(models, Served) else serve(models)


def _backend(backend: str | Backend, registry: Registry, options: Mapping[str, object]) -> Backend:
    if isinstance(backend, Backend):
        if options:
            raise UserError(f"options {sorted(options)} are given beside a backend; give them to the backend itself")
        return backend
    chosen: type[Backend] = registry.get("backends", backend)
    try:
        return chosen.model_validate(options)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise UserError(f"backend {backend!r}: {'; '.join(faults)}; it takes {', '.join(chosen.model_fields)}") from error
