"""The command line as a user meets it: in a process of its own, exit codes and messages included."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sysscan_models.cli import _system_refusal, cli


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
    verbs = ["init", "fetch", "prepare", "inspect", "fit-router"]
    verbs += ["train", "merge", "quantize", "export", "package", "run", "verify", "ask"]
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
    recipes = {line.split()[0] for line in sysscan("config", "recipes").stdout.splitlines()}
    assert recipes == {"demo", "demo-full", "gpu", "gpu-fsdp", "tpu", "tpu-v5e-1", "tpu-v5e-8", "tpu-v5e-16"}


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
        (["merge", "specialist", "--base", "x"], "not both"),
        (["package", "--out", "x"], "--out needs models"),
        (["package", "--model", "specialist", "--out", "x"], "expected ROLE=FILE"),
        (["package", "--model", "a=x", "--model", "a=y", "--out", "x"], "two models are given for a: x and y"),
        (["export", ".", "model.bin"], "ends in .gguf"),
        (["ask", "specialist", "--max-tokens", "0"], "is not in the range x>=1"),
        (["run", "--recipe", "demo", "-c", "mine.toml"], "--config mine.toml and --recipe demo are both given"),
        (["run", "--recipe", "demo", "--set", "models_dir=''"], "models_dir: expected a path; got ''"),
        (["run", "--recipe", "demo", "--set", "models_dir=~nobody-here/x"], "whom this machine does not know"),
        (["run", "--recipe", "demo", "--set", 'data.archive="a\\u0000b"'], "data.archive: expected a path"),
        (["prepare", "/dev/zero"], "/dev/zero is a device, fifo or socket"),
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


def test_what_the_system_refuses_ends_with_one_message_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = sysscan("init", "file/below", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: file/below: Not a directory. Look at what is there; what was finished is kept, and the same command goes on "
        "from there\n",
    )


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "model"))
    assert _system_refusal(full).startswith(f"{tmp_path / 'model'}: No space left on device. Free some space")
    assert "Give yourself the permission" in _system_refusal(PermissionError(errno.EACCES, "Permission denied", "x"))


def test_errors_show_neither_secrets_nor_escape_sequences(tmp_path: Path) -> None:
    secret = "hf_" + "a1B2c3D4e5" * 3
    done = sysscan("run", "--recipe", "demo", "--set", f'device="{secret}"', cwd=tmp_path)
    assert (done.returncode, "[HF_TOKEN]" in done.stderr, secret in done.stderr) == (2, True, False)
    assert secret not in sysscan("doctor", "--recipe", "demo", "--set", f'device="{secret}"', cwd=tmp_path).stdout
    (tmp_path / "\x1b[31mred.jsonl").write_text("{}")
    done = sysscan("prepare", "\x1b[31mred.jsonl", cwd=tmp_path)
    assert (done.returncode, "\x1b" in done.stderr, "red.jsonl" in done.stderr) == (2, False, True)


def test_prepare_of_a_plain_archive_may_leave_a_role_empty(tmp_path: Path) -> None:
    lines = [
        json.dumps({"title": f"CVE in sudo {n}", "description": f"CVE-2021-{n}", "content": f"text {n}"}) for n in range(60)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    done = sysscan("prepare", "docs.jsonl", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "specialist" / "train.jsonl").read_text()
    assert (tmp_path / "out" / "generalist" / "train.jsonl").read_text() == ""


def test_one_option_can_be_set_without_a_configuration(tmp_path: Path) -> None:
    lines = [json.dumps({"title": f"CVE in sudo {n}", "content": f"text {n}"}) for n in range(60)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    done = sysscan("prepare", "docs.jsonl", "--out", "out", "--set", "data.test_fraction=0.3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "specialist" / "test.jsonl").read_text().splitlines()) > 10
    wrong = sysscan("prepare", "docs.jsonl", "--set", "data.test_fractoin=0.3", cwd=tmp_path)
    assert (wrong.returncode, "Did you mean 'test_fraction'?" in wrong.stderr) == (2, True)


def test_what_overlaps_with_held_out_data_is_dropped_with_what_it_shares(tmp_path: Path) -> None:
    question = "Which capability lets a process read every file on the host without owning any of them, and how is it dropped?"
    records = [{"title": f"CVE in sudo {n}", "content": f"text {n} of many"} for n in range(40)]
    records.append({"id": "leak", "title": "Exam", "content": f"Before it. {question} After it."})
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "bench.jsonl").write_text(json.dumps({"title": "Question", "content": question}))
    done = sysscan("prepare", "docs.jsonl", "--out", "out", "--set", "data.held_out=['bench.jsonl']", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, (tmp_path / "out" / "dropped.jsonl").read_text().splitlines())
    assert (line["id"], line["reason"], line["of"]) == ("leak", "in held-out data", "bench.jsonl")
    assert line["quote"] in question.rstrip("?") or question in line["quote"]


def test_the_configuration_that_lies_here_holds_for_a_given_archive_too(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"title": "CVE in sudo", "content": "text"}))
    (tmp_path / "sysscan-models.toml").write_text("seed = 'seventeen'")
    done = sysscan("prepare", "docs.jsonl", cwd=tmp_path)
    assert (done.returncode, "seed" in done.stderr) == (2, True)


def test_a_tpu_without_torch_xla_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    done = sysscan("run", "--force", "--recipe", "demo", "--set", "device=tpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs torch_xla, which is not installed" in done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "background"])
def test_sigterm_stops_as_cleanly_as_ctrl_c(inherited: signal.Handlers) -> None:
    """A script's background job inherits an ignored SIGINT; it must end on SIGTERM all the same."""
    program = "import time, sysscan_models.cli as c\nc.cli.commands['plugins'].callback = lambda **_: time.sleep(60)\nc.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "plugins"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, inherited),
    )
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip() == "stopped; what `sysscan-models run` has finished is kept, and it goes on from there"


# verbs of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a package with three verbs, of which one works; return the path that makes it importable."""
    greet = "import click\n\n@click.command()\ndef greet():\n    'Say hello.'\n    click.echo('hello')\n"
    (tmp_path / "verbs.py").write_text(greet)
    (tmp_path / "verbs_broken.py").write_text("import a_library_that_nobody_has\n")
    info = tmp_path / "verbs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verbs\nVersion: 1.0\n")
    points = "greet = verbs:greet\nbroken = verbs_broken:x\nwrong = verbs:__name__\nrun = verbs:greet\n"
    (info / "entry_points.txt").write_text(f"[sysscan_models.commands]\n{points}")
    return str(tmp_path)


def test_other_packages_add_verbs(install: str) -> None:
    assert sysscan("greet", PYTHONPATH=install).stdout == "hello\n"
    listed = sysscan("--help", PYTHONPATH=install).stdout
    assert "Say hello." in listed
    assert listed.index("  ask") < listed.index("  greet") < listed.index("  plugins")
    assert "Do all that is missing" in sysscan("run", "--help", PYTHONPATH=install).stdout  # no stranger replaces a verb


@pytest.mark.parametrize(("verb", "reason"), [("broken", "a_library_that_nobody_has"), ("wrong", "expected a click command")])
def test_a_verb_that_cannot_be_imported_says_why_and_harms_no_other(install: str, verb: str, reason: str) -> None:
    done = sysscan(verb, "--some", "option", PYTHONPATH=install)
    assert done.returncode == 1
    assert reason in done.stderr
    assert f"'{verb}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"  {verb}" in sysscan("--help", PYTHONPATH=install).stdout


def test_a_plan_for_another_machine(tmp_path: Path) -> None:
    planned = sysscan("plan", "--recipe", "tpu", "--on", "v6e-8", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    refused = sysscan("plan", "--recipe", "tpu", "--on", "v2-8", cwd=tmp_path)
    assert refused.returncode == 2
    unknown = sysscan("plan", "--recipe", "tpu", "--on", "v9-8", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "v9-8" in unknown.stderr


def test_of_several_processes_the_first_one_speaks(tmp_path: Path) -> None:
    other = sysscan("config", "recipes", RANK="1", WORLD_SIZE="2")
    assert (other.returncode, other.stdout) == (0, "")
    failed = sysscan("train", "nobody", "--recipe", "demo", cwd=tmp_path, RANK="1", WORLD_SIZE="2")
    assert "error in process 1:" in failed.stderr
