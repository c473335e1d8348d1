"""`sysscan-models analyze` as a user meets it: what it writes where, its exit codes, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import commands_cases
import orjson
import ormsgpack
import pytest
from engine_cases import model_file

from sysscan_langgraph import commands
from sysscan_langgraph.analysis.records import AnalysisReport
from sysscan_models import packaging
from sysscan_models.cli import cli
from sysscan_models.samples import sample_report

PROGRAM = [sys.executable, commands_cases.__file__]
BY_HAND = ["--backend", "by_hand"]


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, in a folder of its own, with the backend `by_hand`."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Done:
        code = commands_cases.run_main(monkeypatch, *words)
        return Done(code, *capsys.readouterr())

    return run


def scan(path: Path, *severities: str) -> str:
    findings = [{"id": f"/bin/f{n}", "title": f"Finding f{n}.", "severity": word} for n, word in enumerate(severities, 1)]
    path.write_bytes(
        orjson.dumps({"meta": {"hostname": "host.example"}, "results": [{"scanner": "suid", "findings": findings}]})
    )
    return str(path)


@pytest.fixture
def report(tmp_path: Path) -> str:
    return scan(tmp_path / "report.json", "high", "low", "info")


def logged(path: Path, role: str = "specialist") -> list[dict[str, Any]]:
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [line for line in lines if line["role"] == role]


@pytest.mark.parametrize("verb", ["analyze", "chat"])
def test_help_imports_no_heavy_library(verb: str) -> None:
    program = (
        f"import sys\nsys.argv = ['sysscan-models', '{verb}', '--help']\nfrom sysscan_models.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('pydantic', 'rich', 'numpy', 'langgraph', 'llama_cpp', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [commands.analyze, commands.chat])
def test_every_option_explains_itself(command: Any) -> None:
    assert command.help
    assert [option.name for option in command.params if option.param_type_name == "option" and not option.help] == []


def test_the_verbs_are_installed() -> None:
    assert {"analyze", "chat"} <= set(cli.list_commands(None))  # type: ignore[arg-type]


def test_the_summary_goes_to_stdout_and_progress_to_stderr(run: Run, report: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "on")
    done = run("analyze", report, *BY_HAND)
    assert done.code == 0
    assert "Security analysis of host.example" in done.out
    assert "The host needs care." in done.out
    assert "HIGH  F1  Finding f1." in done.out
    assert "analyze: 3/3 findings, done in" in done.err
    assert "writing the summary" in done.err


@pytest.mark.parametrize(
    ("name", "begins"),
    [("a.html", "<!doctype html>"), ("a.md", "# Security"), ("a.json", "{"), ("a.txt", "Security"), ("a", "Security")],
)
def test_the_files_name_says_the_format(run: Run, report: str, tmp_path: Path, name: str, begins: str) -> None:
    done = run("analyze", report, *BY_HAND, "--out", name)
    assert done.code == 0
    assert (tmp_path / name).read_text().startswith(begins)
    assert "Security analysis of host.example" in done.out


def test_the_format_can_be_given(run: Run, report: str, tmp_path: Path) -> None:
    assert run("analyze", report, *BY_HAND, "--out", "a.txt", "--format", "md").code == 0
    assert (tmp_path / "a.txt").read_text().startswith("# Security")


@pytest.mark.parametrize("words", [["--format", "json"], ["--format", "json", "--out", "-"]])
def test_json_on_stdout_is_only_json(run: Run, report: str, words: list[str]) -> None:
    analysis = AnalysisReport.model_validate(orjson.loads(run("analyze", report, *BY_HAND, *words).out))
    assert [one.finding_id for one in analysis.analyses] == ["/bin/f1", "/bin/f2", "/bin/f3"]


def test_html_goes_to_a_pipe_but_not_to_a_terminal(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("analyze", report, *BY_HAND, "--format", "html").out.startswith("<!doctype html>")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    log = tmp_path / "log"
    done = run("analyze", report, *BY_HAND, "--set", f"log={log}", "--format", "html")
    assert (done.code, logged(log)) == (2, [])
    assert "a page of HTML is not for a terminal; name a file with --out FILE" in done.err


def test_options_reach_the_analysis(run: Run, report: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run("analyze", report, *BY_HAND, "--set", f"log={log}", "--min-severity", "low", "--max-findings", "1", "--top", "0")
    assert "1 finding analysed" in done.out
    assert "beyond the 1 most severe (max_findings): F2" in done.out
    assert "HIGH  F1" not in done.out
    assert "Finding f1." in logged(log)[0]["messages"][-1]["content"]


def test_a_time_budget_leaves_out_what_it_has_no_time_for(run: Run, report: str) -> None:
    words = ["--set", "seconds=1", "--set", "n_parallel=1", "--time-budget", "0.3", "--fail-on", "high"]
    done = run("analyze", report, *BY_HAND, *words)
    assert "time budget" in done.out
    assert done.code == 3  # the high one was left out, and counts
    without = run("analyze", report, *BY_HAND, "--time-budget", "0.000001")
    assert without.code == 1
    assert "could be analysed in time; raise --time-budget" in without.err


# Exit codes


@pytest.mark.parametrize(
    ("severities", "fail_on", "code"),
    [
        (("high", "low"), "high", 3),
        (("high", "low"), "critical", 0),
        (("info",), "low", 3),  # the specialist says low
        (("info",), "medium", 0),
        (("critical",), "info", 3),
    ],
)
def test_fail_on_takes_the_worse_of_specialist_and_scanner(
    run: Run, tmp_path: Path, severities: tuple[str, ...], fail_on: str, code: int
) -> None:
    done = run("analyze", scan(tmp_path / "r.json", *severities), *BY_HAND, "--fail-on", fail_on)
    assert done.code == code
    assert ("--fail-on" in done.err) == (code == 3)


def test_fail_on_counts_what_was_left_out(run: Run, tmp_path: Path) -> None:
    words = ["--max-findings", "1", "--fail-on", "medium"]
    done = run("analyze", scan(tmp_path / "r.json", "medium", "medium"), *BY_HAND, *words)
    assert done.code == 3
    assert "--fail-on medium: 2 findings at least so severe, the worst is medium: Finding f1." in done.err


def test_work_that_failed_for_every_finding_is_a_failure(run: Run, report: str) -> None:
    done = run("analyze", report, *BY_HAND, "--set", "fails=true", "--fail-on", "critical")
    assert done.code == 1
    assert "error: not one of 3 findings could be analysed: the model is broken" in done.err
    assert "3 findings, failed: F1, F2, F3" in done.out


def test_a_report_without_findings_is_no_failure(run: Run, tmp_path: Path) -> None:
    assert run("analyze", scan(tmp_path / "r.json"), *BY_HAND, "--fail-on", "info").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "nope"], "unknown backend 'nope'"),
        ([], "models/package"),
        (["--package", "nowhere"], "nowhere"),
        ([*BY_HAND, "--set", "n_ctx"], "--set 'n_ctx': expected KEY=VALUE, such as n_ctx=2048"),
        ([*BY_HAND, "--set", "nctx=1"], "backend 'by_hand': nctx: Extra inputs are not permitted; it takes answer, seconds"),
        ([*BY_HAND, "--out", "nowhere/a.html"], "there is no folder"),
        ([*BY_HAND, "--fail-on", "bad"], "'bad' is not one of"),
        ([*BY_HAND, "--time-budget", "0"], "0.0 is not in the range x>0"),
        ([*BY_HAND, "--time-budget", "inf"], "time_budget is inf; expected seconds"),
        ([*BY_HAND, "--max-tokens", "100000000"], "its context has 4096, question and answer together"),
        (["--set", "threads=100000"], "threads: Input should be less than or equal to 512"),
        (["--set", "n_batch=100000"], "n_batch: Input should be less than or equal to 65536"),
    ],
)
def test_a_users_mistake_ends_with_a_message_and_2(run: Run, report: str, words: list[str], message: str) -> None:
    done = run("analyze", report, *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_report_that_is_none_ends_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("{}")
    assert "is not JSON" in (done := run("analyze", "a.json", *BY_HAND)).err
    assert done.code == 2
    assert "schema v2" in (done := run("analyze", "b.json", *BY_HAND)).err
    assert done.code == 2


def test_text_that_the_terminal_cannot_encode_is_replaced(report: str, tmp_path: Path) -> None:
    words = ["analyze", report, *BY_HAND, "--set", 'answer={"analysis":"größer 日本","severity":"low"}']
    done = subprocess.run(
        [*PROGRAM, *words], cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "größer ??" in done.stdout.decode("latin-1")


# Checkpoints and Ctrl-C


def asked_about(log: Path) -> set[str]:
    said = [line["messages"][-1]["content"] for line in logged(log)]
    return {text for text in said if text.startswith("Finding f")}


def started(on_sigint: Any, *words: str) -> subprocess.Popen[str]:
    """Start the program with what it inherits for SIGINT: tests that run in the background would ignore it."""
    return subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, on_sigint),
    )  # fmt: skip


def interrupted(number: signal.Signals, log: Path, *words: str) -> tuple[int, str]:
    """Start the program, send it a signal when six findings have been asked about, and return its code and stderr."""
    process = started(signal.default_int_handler, *words)
    while len(logged(log)) < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    return process.returncode, told


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    report = scan(tmp_path / "report.json", *["medium"] * 12)
    log, checkpoint = tmp_path / "log", tmp_path / "kept.sqlite"
    common = ["analyze", report, *BY_HAND, "--set", f"log={log}", "--set", "n_parallel=1"]
    common += ["--set", "seconds=0.3", "--checkpoint", str(checkpoint)]
    code, told = interrupted(signal.SIGINT, log, *common)
    assert code == 130
    assert "of 12 findings; the same command goes on from there" in told
    before = asked_about(log)
    log.unlink()
    done = subprocess.run([*PROGRAM, *common, "--format", "json"], capture_output=True, check=True)
    analysis = AnalysisReport.model_validate(orjson.loads(done.stdout))
    assert [len(analysis.analyses), len(analysis.left_out)] == [12, 0]
    again = asked_about(log)
    assert len(again) < 12
    assert before | again == {f"Finding f{number}." for number in range(1, 13)}


def test_without_a_checkpoint_ctrl_c_says_what_would_help(tmp_path: Path) -> None:
    report, log = scan(tmp_path / "report.json", *["medium"] * 40), tmp_path / "log"
    words = ["analyze", report, *BY_HAND, "--set", f"log={log}", "--set", "seconds=900", "--set", "n_parallel=2"]
    code, told = interrupted(signal.SIGTERM, log, *words)  # which waits for less than one answer takes
    assert code == 130
    assert "stopped before the first finding was analysed; with --checkpoint FILE it could go on" in told


def test_a_background_job_ignores_the_ctrl_c_that_its_script_ignores(tmp_path: Path) -> None:
    report, log = scan(tmp_path / "report.json", *["medium"] * 8), tmp_path / "log"
    process = started(signal.SIG_IGN, "analyze", report, *BY_HAND, "--set", f"log={log}", "--set", "seconds=0.3")
    while len(logged(log)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert len({line["messages"][-1]["content"] for line in logged(log)}) >= 8


def test_ctrl_c_before_the_work_does_not_speak_of_another_command(
    run: Run, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sysscan_models.scan_report.read_report", stopped)
    done = run("analyze", report, *BY_HAND)
    assert (done.code, done.err) == (130, "error: stopped\n")


def test_another_report_in_the_same_checkpoint_begins_anew(run: Run, tmp_path: Path) -> None:
    for name, severity in (("a.json", "high"), ("b.json", "low")):
        out = run("analyze", scan(tmp_path / name, severity), *BY_HAND, "--checkpoint", "kept.sqlite", "--format", "json").out
        assert [one["reported_severity"] for one in orjson.loads(out)["analyses"]] == [severity]


def test_a_checkpoint_that_is_no_database_is_refused(run: Run, report: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes, and no database\n" * 50)
    done = run("analyze", report, *BY_HAND, "--checkpoint", "notes.txt")
    assert done.code == 2
    assert "--checkpoint notes.txt cannot be used: file is not a database" in done.err
    assert (tmp_path / "notes.txt").read_text().startswith("these are my notes")


def test_a_checkpoint_without_its_library_says_how_to_get_it(run: Run, report: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if "sqlite" in name else found(name, *more))
    done = run("analyze", report, *BY_HAND, "--checkpoint", "kept.sqlite")
    assert done.code == 2
    assert "--checkpoint needs the Python package 'langgraph-checkpoint-sqlite'" in done.err


def test_a_checkpoint_is_nobody_elses_to_read(run: Run, report: str, tmp_path: Path) -> None:
    assert run("analyze", report, *BY_HAND, "--checkpoint", "kept.sqlite").code == 0
    assert (tmp_path / "kept.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_of_somebody_else_runs_nothing(run: Run, report: str, tmp_path: Path) -> None:
    words, marker = ["analyze", report, *BY_HAND, "--checkpoint", "kept.sqlite"], tmp_path / "ran"
    assert run(*words).code == 0
    call = ormsgpack.packb(("os", "system", f"touch {marker}"))
    lc = {"lc": 2, "type": "constructor", "id": ["os", "system"], "args": [f"touch {marker}"]}
    with closing(sqlite3.connect("kept.sqlite")) as database:
        database.execute("UPDATE checkpoints SET metadata = ?", (orjson.dumps({"step": lc}),))
        database.commit()
    assert run(*words).code == 2
    assert not marker.exists()
    for kind, value in (("msgpack", ormsgpack.packb(ormsgpack.Ext(0, call))), ("json", orjson.dumps(lc)), ("pickle", b"x")):
        with closing(sqlite3.connect("kept.sqlite")) as database:
            database.execute("UPDATE checkpoints SET type = ?, checkpoint = ?, metadata = '{}'", (kind, value))
            database.commit()
        done = run(*words)
        assert not marker.exists()
        assert done.code == 2
        told = "what the checkpointer holds" if kind == "json" else "--checkpoint kept.sqlite cannot be used: it holds what no"
        assert told in done.err


def test_a_report_that_msgpack_cannot_hold_is_kept_too(run: Run, tmp_path: Path) -> None:
    nested: Any = {}
    for _ in range(300):
        nested = {"a": nested}
    findings = [{"id": "a", "title": "Finding f1.", "severity": "low"}, {"id": "b", "title": "Deep", "metadata": nested}]
    (tmp_path / "deep.json").write_text(json.dumps({"results": [{"scanner": "s", "findings": findings}]}))
    done = run("analyze", "deep.json", *BY_HAND, "--checkpoint", "kept.sqlite")
    assert done.code == 0, done.err
    assert "Finding f1." in done.out


def test_a_report_that_can_be_read_only_once_has_a_checkpoint(report: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ["analyze", str(tmp_path / "pipe"), *BY_HAND, "--checkpoint", str(tmp_path / "kept.sqlite")]
    script = 'cat "$0" > "$1" & shift; exec "$@"'
    done = subprocess.run(["sh", "-c", script, report, str(tmp_path / "pipe"), *PROGRAM, *words], timeout=60, check=False)
    assert done.returncode == 0


# Where the analysis goes


def test_out_is_refused_before_the_models_are_asked(run: Run, report: str, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(report)
    log = tmp_path / "log"
    for out, message in (
        ("", "--out names no file"),
        ("x" * 300 + ".html", "File name too long"),
        ("/proc/x.html", "cannot be written to"),
        (report, "is the report itself"),
        ("link.json", "is the report itself"),
        ("kept.sqlite", "is the checkpoint itself"),
    ):
        done = run("analyze", report, *BY_HAND, "--set", f"log={log}", "--checkpoint", "kept.sqlite", "--out", out)
        assert (done.code, message in done.err, log.exists()) == (2, True, False), done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "report.json"]


def test_what_leads_to_stdout_is_stdout(report: str, tmp_path: Path) -> None:
    """As /dev/stdout does; a link of our own, since a fault here would replace the machine's."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    words = ["analyze", report, *BY_HAND, "--format", "json", "--out", str(tmp_path / "stdout")]
    done = subprocess.run([*PROGRAM, *words], stdout=subprocess.PIPE, check=True)
    assert len(orjson.loads(done.stdout)["analyses"]) == 3


def test_a_file_that_cannot_be_written_costs_the_file_alone(run: Run, report: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("sysscan_models.artifacts.write_atomically", full)
    done = run("analyze", report, *BY_HAND, "--out", "a.html")
    assert (done.code, "The host needs care." in done.out) == (1, True)
    assert "--out a.html cannot be written to: No space left on device. Choose another place" in done.err
    assert "kept" not in done.err


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_stdout_is_told_without_a_promise(report: str) -> None:
    for verb in (["analyze", report], ["chat", "specialist"]):
        with Path("/dev/full").open("wb") as full:  # opened, never named: a fault could replace it
            ended = subprocess.run([*PROGRAM, *verb, *BY_HAND], input=b"hello\n", stdout=full, stderr=-1, check=False)
        assert ended.returncode == 1
        assert b"No space left on device" in ended.stderr
        assert b"kept" not in ended.stderr


def test_a_closed_stdout_is_no_fault(report: str) -> None:
    for more in ([], ["--format", "html"]):
        words = [*PROGRAM, "analyze", report, *BY_HAND, *more]
        done = subprocess.run(["sh", "-c", 'exec "$0" "$@" >&-', *words], stderr=-1, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


# The real thing


@pytest.mark.slow
def test_a_real_model_analyses_the_sample_report(run: Run, tmp_path: Path) -> None:
    model = model_file()
    packaging.package_files({"specialist": model, "generalist": model}, tmp_path / "models" / "package")
    (tmp_path / "report.json").write_bytes(orjson.dumps(sample_report()))
    words = ["--set", "threads=1", "--max-findings", "3", "--max-tokens", "48", "--out", "page.html", "--fail-on", "critical"]
    done = run("analyze", "report.json", *words)
    assert done.code == 3, done.err
    assert "39 findings, beyond the 3 most severe" in done.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
