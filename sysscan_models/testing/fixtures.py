"""pytest fixtures on the stubs; loaded by `pytest_plugins = ["sysscan_models.testing"]` and never by themselves.

PYTEST_DONT_REWRITE: a test module may import `ConfigFactory` before pytest loads this as a plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from sysscan_models.config import RunConfig, parse_config
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.testing import sample_documents, stub_config, stub_plugin, write_archive

if TYPE_CHECKING:
    from sysscan_models.pipeline import Pipeline


class PipelineFactory(Protocol):
    """What the fixture `sysscan_stub_pipeline` gives."""

    def __call__(self, *overrides: str, plugins: tuple[object, ...] = (), trainer: str = "stub") -> Pipeline:
        """Return the pipeline of the stub configuration with KEY=VALUE overrides, with further plugins."""


class ConfigFactory(Protocol):
    """What the fixture `sysscan_stub_config` gives."""

    def __call__(self, *overrides: str, plugins: tuple[object, ...] = (), trainer: str = "stub") -> RunConfig:
        """Return the stub configuration with KEY=VALUE overrides, resolved with further plugins."""


@pytest.fixture
def sysscan_stub_registry() -> Registry:
    """Register the built-in plugins and the stubs; installed plugins are left out."""
    return plugin_manager(stub_plugin, entry_points=False)


@pytest.fixture
def sysscan_archive(tmp_path: Path) -> Path:
    """Write a dataset archive of 64 documents of the sample corpus."""
    return write_archive(tmp_path / "massive_datasets.tar.gz", sample_documents(64))


@pytest.fixture
def sysscan_stub_config(tmp_path: Path, sysscan_archive: Path) -> ConfigFactory:
    """Give a function that returns a configuration of the whole pipeline on stubs, in the test's own folder."""

    def create(*overrides: str, plugins: tuple[object, ...] = (), trainer: str = "stub") -> RunConfig:
        registry = plugin_manager(stub_plugin, *plugins, entry_points=False)
        text = stub_config(sysscan_archive, trainer=trainer)
        return parse_config(text, source="stub configuration", folder=tmp_path, overrides=overrides, registry=registry)

    return create


@pytest.fixture
def sysscan_stub_pipeline(sysscan_stub_config: ConfigFactory) -> PipelineFactory:
    """Give a function that returns the whole pipeline on stubs, in the test's own folder.

    To try a trainer of your own: ``sysscan_stub_pipeline(plugins=(my_plugin,), trainer="mine").run()``.
    """
    from sysscan_models.pipeline import Pipeline

    def create(*overrides: str, plugins: tuple[object, ...] = (), trainer: str = "stub") -> Pipeline:
        config = sysscan_stub_config(*overrides, plugins=plugins, trainer=trainer)
        return Pipeline(config, plugin_manager(stub_plugin, *plugins, entry_points=False))

    return create


@pytest.fixture(scope="session")
def sysscan_stub_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a package of both roles once, by the whole pipeline on stubs. Read it; do not write to it."""
    from sysscan_models.pipeline import Pipeline

    folder = tmp_path_factory.mktemp("sysscan_stub_package")
    registry = plugin_manager(stub_plugin, entry_points=False)
    archive = write_archive(folder / "massive_datasets.tar.gz", sample_documents(64))
    config = parse_config(stub_config(archive), source="stub configuration", folder=folder, registry=registry)
    return Pipeline(config, registry).run().root
