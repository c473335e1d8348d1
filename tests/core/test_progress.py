"""Progress says what is done: a live bar on a terminal, few lines elsewhere, nothing when it is off."""

from __future__ import annotations

import sys

import pytest

from sysscan_models import progress
from sysscan_models.progress import Progress


def work() -> None:
    with Progress("train specialist", total=4, unit="steps") as bar:
        bar.note("validation loss 2.5")
        for done in range(1, 5):
            bar.update(done, loss=1.23456, tokens_per_s=410)


def test_lines_are_few_and_say_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "on")
    work()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "train specialist: validation loss 2.5"
    assert last.startswith("train specialist: 4/4 steps, done in ")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    work()
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("train specialist: 1/4 steps  loss 1.235  tokens per s 410")
    assert lines[2].endswith(" left")


def test_off_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "off")
    work()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "on")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work()
    said = capsys.readouterr().err
    assert "validation loss 2.5" in said
    assert "train specialist" in said
    assert "4/4" in said
