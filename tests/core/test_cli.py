"""The command line as a user meets it: in a process of its own, exit codes and messages included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sysscan_models.cli import cli


def sysscan(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sysscan_models", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_imports_no_heavy_library_and_lists_every_verb() -> None:
    program = (
        "import sys\nsys.argv = ['sysscan-models', '--help']\nfrom sysscan_models.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'rich', 'numpy', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    verbs = ["init", "fetch", "prepare", "train", "merge", "quantize", "export", "package", "run", "verify", "ask"]
    verbs += ["plugins", "plan", "doctor", "config"]
    assert set(verbs) == set(cli.commands)
    assert all(f"  {verb} " in done.stdout for verb in verbs)


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_explains_itself_and_its_options(verb: str) -> None:
    command = cli.commands[verb]
    assert command.help
    undocumented = [option.name for option in command.params if option.param_type_name == "option" and not option.help]
    assert not undocumented


def test_init_writes_a_configuration_once(tmp_path: Path) -> None:
    done = sysscan("init", "--recipe", "tpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sysscan-models plan" in done.stdout
    again = sysscan("init", cwd=tmp_path)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert sysscan("config", "show", cwd=tmp_path).stdout.count("meta-llama/Meta-Llama-3-8B") == 1


def test_config_show_schema_and_recipes(tmp_path: Path) -> None:
    shown = sysscan("config", "show", "--recipe", "demo", "--set", "seed=5", cwd=tmp_path).stdout
    assert "seed = 5" in shown
    assert "max_grad_norm" in shown
    schema = json.loads(sysscan("config", "schema").stdout)
    assert "roles" in schema["properties"]
    assert {line.split()[0] for line in sysscan("config", "recipes").stdout.splitlines()} == {"demo", "demo-full", "gpu", "tpu"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "no configuration at sysscan-models.toml"),
        (["run", "--recipe", "nope"], "unknown recipe 'nope'"),
        (["train", "nobody", "--recipe", "demo"], "unknown role 'nobody'"),
        (["train", "specialist", "--recipe", "demo"], "is not a finished prepare artifact"),
        (["run", "--recipe", "demo", "--set", "sead=1"], "unknown key 'sead'. Did you mean 'seed'?"),
        (["prepare", "nowhere.tar.gz"], "does not exist"),
        (["merge"], "merge takes a ROLE"),
        (["package", "--out", "x"], "--out needs models"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_users_mistake_ends_with_one_message_and_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    done = sysscan(*words, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_prepare_works_on_a_plain_archive_without_configuration(tmp_path: Path) -> None:
    lines = [
        json.dumps({"title": f"CVE in sudo {n}", "description": f"CVE-2021-{n}", "content": f"text {n}"}) for n in range(50)
    ]
    lines += [
        json.dumps({"title": f"Bread {n}", "description": f"loaf {n}", "content": f"flour and water {n}"}) for n in range(50)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join([*lines, "not json"]))
    done = sysscan("prepare", "docs.jsonl", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for role in ("specialist", "generalist"):
        for split in ("train", "valid", "test"):
            assert (tmp_path / "out" / role / f"{split}.jsonl").is_file()
    record = json.loads((tmp_path / "out" / "specialist" / "train.jsonl").read_text().splitlines()[0])
    assert {"id", "source", "kind", "messages"} <= record.keys()
    strict = sysscan("prepare", "docs.jsonl", "--out", "out", "--strict", cwd=tmp_path)
    assert (strict.returncode, "set aside" in strict.stderr) == (2, True)


def test_sigterm_stops_as_cleanly_as_ctrl_c() -> None:
    program = "import time, sysscan_models.cli as c\nc.cli.commands['plugins'].callback = lambda **_: time.sleep(60)\nc.main()"
    process = subprocess.Popen([sys.executable, "-c", program, "plugins"], stderr=subprocess.PIPE, text=True)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "sysscan-models run" in errors
