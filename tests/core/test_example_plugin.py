"""The example plugin as a stranger uses it: built, installed as wheels beside the project's, and run by the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from sysscan_models.packaging import load_package, verify
from sysscan_models.testing import sample_documents, stub_config, write_archive

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_plugin"


def wheel(project: Path, out: Path) -> Path:
    """Build a wheel with the build backend that is installed here; nothing is fetched."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", str(out)]
    done = subprocess.run([*command, str(project)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob(f"{project.name.replace('-', '_')}*.whl"), None) or next(out.glob("*.whl"))


@dataclass(frozen=True)
class Scratch:
    """An environment with both wheels in it, and this one's third-party libraries."""

    root: Path
    wheels: tuple[Path, ...]

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SYSSCAN_PROGRESS")}
        command = [str(self.root / "bin" / words[0]), *words[1:]]
        return subprocess.run(
            command, cwd=cwd or self.root, env={**environment, "COLUMNS": "200"}, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    folder = tmp_path_factory.mktemp("scratch")
    wheels = (wheel(ROOT, folder / "project"), wheel(EXAMPLE, folder / "example"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", *map(str, wheels)], check=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    # A path file adds the libraries of this environment and none of its path files: an editable install stays out of sight.
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    stubs = site / "stubs-1.0.dist-info"
    stubs.mkdir()
    (stubs / "METADATA").write_text("Metadata-Version: 2.1\nName: stubs\nVersion: 1.0\n")
    (stubs / "entry_points.txt").write_text("[sysscan_models]\nstubs = sysscan_models.testing:stub_plugin\n")
    return Scratch(folder / "venv", wheels)


def test_the_wheel_brings_three_packages_and_nothing_else(scratch: Scratch) -> None:
    with zipfile.ZipFile(scratch.wheels[0]) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    packages = {"sysscan_models", "sysscan_plugins", "sysscan_langgraph"}
    assert packages <= top
    assert [name for name in top - packages if not re.fullmatch(r"sysscan_models-[\d.]+\.dist-info", name)] == []
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    for recipe in ("demo", "gpu", "tpu"):
        assert f"sysscan_models/recipes/{recipe}.toml" in names
    assert "sysscan_models/samples/report.json" in names
    assert sum(name.startswith("sysscan_models/samples/corpus/") for name in names) >= 10
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_the_example_is_about_twenty_lines_of_code() -> None:
    lines = (EXAMPLE / "sysscan_noise_trainer.py").read_text().splitlines()
    assert sum(1 for line in lines if line.strip() and not line.strip().startswith('"""')) <= 25


def test_the_installed_wheels_are_what_runs(scratch: Scratch) -> None:
    done = scratch.run(
        "python", "-c", "import sysscan_models, sysscan_noise_trainer as t; print(sysscan_models.__file__, t.__file__)"
    )
    assert all(Path(file).is_relative_to(scratch.root) for file in done.stdout.split()), done.stdout + done.stderr


def test_the_command_line_lists_the_plugin(scratch: Scratch) -> None:
    done = scratch.run("sysscan-models", "plugins")
    assert re.search(r"^trainer +noise +noise_trainer +Adds noise to every weight\.$", done.stdout, re.MULTILINE), done.stderr


def test_its_option_is_checked_like_those_of_the_bundled_trainers(scratch: Scratch, tmp_path: Path) -> None:
    (tmp_path / "sysscan-models.toml").write_text(stub_config(tmp_path / "data.tar.gz", trainer="noise"))
    shown = scratch.run("sysscan-models", "config", "show", cwd=tmp_path)
    assert "scale = 0.01" in shown.stdout, shown.stderr
    wrong = scratch.run("sysscan-models", "config", "show", "--set", "roles.specialist.trainer.scael=1", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "unknown key 'scael'. Did you mean 'scale'?" in wrong.stderr


def test_the_command_line_runs_the_plugin_from_archive_to_package(scratch: Scratch, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "massive_datasets.tar.gz", sample_documents(64))
    (tmp_path / "sysscan-models.toml").write_text(stub_config(archive, trainer="noise") + "\n[package]\nsample_findings = 0\n")
    command = ("sysscan-models", "run", "--set", "roles.specialist.trainer.scale=0.25")
    done = scratch.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "models" / "package"
    assert verify(folder).ok
    training = load_package(folder).manifest.roles["specialist"].training
    assert training is not None
    assert training.options == {"name": "noise", "version": "1", "scale": 0.25}
    assert "train specialist: up to date" in scratch.run(*command, cwd=tmp_path).stderr


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "plugins" / "README.md").read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "def test_" in block]
    (tmp_path / "test_mine.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout
