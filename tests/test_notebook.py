"""The Colab notebook: its first screen says what the plan says, no output is stored, and its cells run one after the other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sysscan_models.planning import slices

NOTEBOOK = Path(__file__).parent.parent / "docs" / "colab.ipynb"
SMALL = [
    "roles.specialist.trainer.max_steps=2",
    "roles.generalist.trainer.max_steps=2",
    "package.sample_findings=1",
]
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for source in json.load(sys.stdin):
    print("@@ cell", flush=True)
    exec(compile(source, "<cell>", "exec"), namespace)
print("@@ end")
"""


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_first_screen_says_which_roles_fit_which_runtime() -> None:
    assert slices.runtimes_table(slices.role_trainings()) in source(cells("markdown")[0])


def test_no_outputs_are_stored_and_every_cell_is_plain_python() -> None:
    for cell in cells("code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        ast.parse(source(cell))
    names = [cell["id"] for kind in ("code", "markdown") for cell in cells(kind)]
    assert len(set(names)) == len(names)


def test_the_demo_is_the_default_and_needs_nothing() -> None:
    found: dict[str, Any] = {}
    parameters = next(cell for cell in cells("code") if "parameters" in cell["metadata"].get("tags", []))
    exec(source(parameters), found)
    assert (found["RECIPE"], found["ARCHIVE"], found["SETTINGS"]) == ("demo", "", [])


@pytest.mark.slow
@pytest.mark.training
def test_the_cells_run_one_after_the_other(tmp_path: Path) -> None:
    """Run as Jupyter would, in one namespace, with a budget of two steps set after the cell of parameters."""
    texts = []
    for cell in cells("code"):
        texts.append(source(cell))
        if "parameters" in cell["metadata"].get("tags", []):
            texts.append(f"SETTINGS = {SMALL!r}")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(texts),
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("@@ cell") == len(texts)
    assert done.stdout.rstrip().endswith("@@ end")
    assert "checks passed" in done.stdout
    assert (tmp_path / "models/before_and_after.md").read_text() in done.stdout
    with zipfile.ZipFile(tmp_path / "sysscan-models-package.zip") as packed:
        assert {"specialist_model_q4km.gguf", "generalist_model_q4km.gguf", "manifest.json"} <= set(packed.namelist())
