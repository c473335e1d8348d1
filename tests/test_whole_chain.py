"""The demo recipe for real, with a small budget, and then the README's plain commands on what it made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    "roles.specialist.trainer.max_steps=2",
    "roles.generalist.trainer.max_steps=2",
    "package.sample_findings=1",
]

pytestmark = pytest.mark.slow


def sysscan(*words: str | Path, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sysscan_models", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "SYSSCAN_PROGRESS": ""},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the demo has run with a small budget."""
    folder = tmp_path_factory.mktemp("demo")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    done = sysscan("run", "--recipe", "demo", *settings, cwd=folder)
    assert re.search(r"specialist: valid JSON \d/1 -> \d/1", done.stdout)
    assert "all " in done.stdout
    assert "checks passed" in done.stdout
    return folder


def test_the_output_tree_is_the_originals(workplace: Path) -> None:
    models = workplace / "models"
    for name in ("specialist_model_fine_tuned", "generalist_model_lora_adapters", "generalist_model_merged"):
        assert (models / name / "config.json").is_file() or (models / name / "adapter_config.json").is_file()
    for folder in (models, models / "package"):
        for role in ("specialist", "generalist"):
            assert (folder / f"{role}_model_q4km.gguf").read_bytes()[:4] == b"GGUF"
    assert (models / "package" / "README.md").is_file()
    manifest = json.loads((models / "package" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"specialist_model_q4km.gguf", "generalist_model_q4km.gguf", "README.md"}
    assert str(workplace) not in (models / "package" / "manifest.json").read_text()
    for name in ("specialist_model_fine_tuned", "generalist_model_lora_adapters"):
        assert (models / name / "loss.png").read_bytes()[:4] == b"\x89PNG"
        assert not (models / name / "checkpoints").exists()


def test_a_second_run_of_a_moved_folder_does_nothing_again(workplace: Path) -> None:
    moved = workplace / "moved"
    (workplace / "models").rename(moved)
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
    settings = [word for setting in (*SMALL, "models_dir=moved", "package.sample_findings=0") for word in ("--set", setting)]
    try:
        done = sysscan("run", "--recipe", "demo", *settings, cwd=workplace)
    finally:
        moved.rename(workplace / "models")
    for stage in ("train specialist", "quantize specialist", "train generalist", "merge generalist", "quantize generalist"):
        assert f"{stage}: up to date" in done.stderr
    after = {path: path.stat().st_mtime_ns for path in (workplace / "models").rglob("*.safetensors")}
    assert sorted(before.values()) == sorted(after.values())


def test_every_stage_works_alone_on_plain_files(workplace: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "massive_datasets.tar.gz", "w:gz") as archive:
        archive.add(ROOT / "sysscan_models" / "samples" / "corpus", "data")
    sysscan("prepare", "massive_datasets.tar.gz", "--out", "data", cwd=tmp_path)
    for role in ("specialist", "generalist"):
        record = json.loads((tmp_path / "data" / role / "train.jsonl").read_text().splitlines()[0])
        assert record["messages"][-1]["role"] == "assistant"
        assert record["source"].startswith("data/")
    models = workplace / "models"
    (base,) = (path.parent for path in (models / "bases").glob("*/config.json"))
    sysscan("merge", "--base", base, "--adapter", models / "generalist_model_lora_adapters", "--out", "merged", cwd=tmp_path)
    merged = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert merged == (models / "generalist_model_merged" / "model.safetensors").read_bytes()
    sysscan("export", "merged", "b.gguf", "--type", "Q4_K_M", cwd=tmp_path)
    sysscan("export", models / "specialist_model_fine_tuned", "a.gguf", "--type", "Q8_0", cwd=tmp_path)
    sysscan("package", "--specialist", "a.gguf", "--generalist", "b.gguf", "--out", "package", cwd=tmp_path)
    assert "checks passed" in sysscan("verify", "package", cwd=tmp_path).stdout
    answer = sysscan("ask", "generalist", "What is umask?", "--package", "package", "--max-tokens", "16", cwd=tmp_path)
    assert answer.stdout.strip()
    with (tmp_path / "package" / "a.gguf").open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"damage")
    sysscan("verify", "package", cwd=tmp_path, expect=1)


def test_a_changed_option_redoes_what_depends_on_it(workplace: Path) -> None:
    changed = [*SMALL, "roles.generalist.trainer.rank=8", "package.sample_findings=0"]
    settings = [word for setting in changed for word in ("--set", setting)]
    done = sysscan("run", "--recipe", "demo", *settings, cwd=workplace)
    assert "train specialist: up to date" in done.stderr
    assert "quantize specialist: up to date" in done.stderr
    for stage in ("train generalist", "merge generalist", "quantize generalist"):
        assert f"{stage}: done" in done.stderr
