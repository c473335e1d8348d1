"""What the documents promise exists: every command line parses, every link leads somewhere, the tree is as drawn."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sysscan_models import hookspecs
from sysscan_models.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / name
    for name in ("README.md", "plugins/README.md", "integration/README.md", "tests/benchmarks/README.md", "docs/devices.md")
]
BLOCKS = [(page, block) for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
LINES = [(page.name, line.partition("#")[0].strip()) for page, block in BLOCKS for line in block.splitlines()]
INLINE = [("inline", line) for page in PAGES for line in re.findall(r"`(sysscan-models [a-z][^`]*)`", page.read_text())]


@pytest.mark.parametrize(("page", "line"), [pair for pair in LINES + INLINE if pair[1].startswith("sysscan-models ")])
def test_every_command_line_of_the_documents_parses(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words.pop(0))
        assert found, f"{page}: {line}"
        command = found
    known = {flag for option in command.params for flag in option.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, f"{page}: {line}"


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    spans = (ROOT / "README.md").read_text().split("`")
    named = {name for text in spans for name in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_hook_is_in_the_plugin_authors_page() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("sysscan_register_")]
    page = (ROOT / "plugins" / "README.md").read_text()
    assert hooks
    assert [hook for hook in hooks if hook not in page] == []


def test_the_changelog_names_the_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
