"""Opening a package for serving: lazily, once for each role, with clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import sysscan_langgraph
from sysscan_langgraph.serving import Served, serve, served
from sysscan_models import hookimpl
from sysscan_models.errors import IntegrityError, UserError
from sysscan_models.interfaces import Backend, ModelRef, Session
from sysscan_models.packaging import package_files
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.testing import StubBackend, StubSession, stub_plugin


class ServerBackend(Backend):
    """Asks some server, and needs no file."""

    name: ClassVar[str] = "server"
    serves_files: ClassVar[bool] = False
    address: str = ""

    def open(self, model: ModelRef) -> Session:
        return StubSession(model)


class Plugin:
    @hookimpl
    def sysscan_register_backends(self) -> list[type[Backend]]:
        return [ServerBackend]


@pytest.fixture
def registry() -> Registry:
    return plugin_manager(stub_plugin, Plugin(), entry_points=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("specialist", "generalist"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(60))
    return package_files({name: tmp_path / f"{name}.gguf" for name in ("specialist", "generalist")}, tmp_path / "package").root


def test_a_role_is_opened_when_it_is_first_asked_for_and_once(package: Path, registry: Registry) -> None:
    opened = []

    class Noting(StubBackend):
        name: ClassVar[str] = "noting"

        def open(self, model: ModelRef) -> StubSession:
            opened.append(model.role.name)
            return super().open(model)

    with serve(package, backend=Noting(), registry=registry) as models:
        assert opened == []
        first = models.session("specialist")
        assert models.session("specialist") is first
        assert opened == ["specialist"]
        assert sorted(models) == ["generalist", "specialist"]
        assert models.model_name("specialist") == "specialist"
        assert models.role("generalist").name == "generalist"
        assert served(models) is models
    assert isinstance(first, StubSession)
    assert first.closed
    with pytest.raises(UserError, match="closed; open them again"):
        models.session("specialist")


def test_a_server_needs_no_package_and_may_have_one(package: Path, registry: Registry) -> None:
    with serve(backend="server", registry=registry, address="here") as models:
        assert isinstance(models.backend, ServerBackend)
        assert models.backend.address == "here"
        assert sorted(models) == ["generalist", "specialist"]
        assert models.model_name("specialist") == "specialist"
        assert models.session("specialist")
    assert isinstance(serve(package, backend="server", registry=registry), Served)


def test_what_cannot_be_served_is_refused(package: Path, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="serves the files of a package"):
        serve(backend="stub", registry=registry)
    with pytest.raises(UserError, match=r"unknown backend 'stubb'.*Did you mean 'stub'"):
        serve(package, backend="stubb", registry=registry)
    with pytest.raises(UserError, match=r"backend 'server': port: Extra inputs.*it takes address"):
        serve(package, backend="server", registry=registry, port=1)
    with pytest.raises(UserError, match="give them to the backend itself"):
        serve(package, backend=StubBackend(), registry=registry, port=1)
    with pytest.raises(UserError, match=r"unknown role 'analyst'.*generalist, specialist"):
        serve(package, backend="stub", registry=registry).session("analyst")
    with pytest.raises(UserError, match="manifest"):
        serve(tmp_path / "nothing", backend="stub", registry=registry)
    with (package / "specialist.gguf").open("ab") as file:
        file.write(b"!")
    with pytest.raises(IntegrityError):
        serve(package, backend="stub", registry=registry)


def test_importing_the_package_costs_nothing_and_every_public_name_is_there() -> None:
    heavy = ("llama_cpp", "numpy", "torch", "langgraph", "langchain_core", "pydantic")
    program = f"import sys, sysscan_langgraph; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
    for name in sysscan_langgraph.__all__:
        assert getattr(sysscan_langgraph, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sysscan_langgraph.nothing  # noqa: B018 - reading it is the test
    assert set(sysscan_langgraph.__all__) <= set(dir(sysscan_langgraph))


def test_serving_brings_no_torch() -> None:
    program = (
        "import sys, sysscan_langgraph\n"
        "for name in sysscan_langgraph.__all__: getattr(sysscan_langgraph, name)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
