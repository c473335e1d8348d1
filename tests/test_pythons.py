"""Every Python version that pyproject.toml declares installs the core without torch and runs the pipeline on stubs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSIONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())

PYTEST_PLUGINS = ["pytest-timeout", "pytest-asyncio"]
"""What the options in pyproject.toml belong to."""


def interpreter(version: str) -> str | None:
    """Return a Python of this version that runs: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    shim = shutil.which(f"python{version}")
    beside = (
        [str(path) for path in Path(shim).resolve().parent.parent.glob(f"versions/{version}.*/bin/python{version}")]
        if shim
        else []
    )
    for candidate in [shim, *beside, *map(str, pyenv.glob(f"{version}.*/bin/python{version}"))]:
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_core_and_its_stubs_run_on(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    scratch = tmp_path / "venv" / "bin" / "python"
    pip = [scratch, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[testing]", *PYTEST_PLUGINS], check=True)
    listed = subprocess.run([scratch, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|transformers|langgraph|llama.cpp.python) ", listed, re.MULTILINE)
    tests = ["test_prompts.py", "test_stub_pipeline.py", "test_plugins.py", "test_artifacts.py"]
    done = subprocess.run(
        [scratch, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not generated_parts"]
        + [str(ROOT / "tests" / "core" / name) for name in tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
