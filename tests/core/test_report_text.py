"""The table that `prepare` ends with: every count, at most 80 columns, nothing in it steers the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from data_page_cases import empty, hostile, ordinary

from sysscan_models.splits.report import REPORT, SHOWN_REASONS, report_text


def told(folder: Path, report: dict[str, Any]) -> str:
    (folder / REPORT).write_bytes(orjson.dumps(report))
    return report_text(folder)


def test_every_count_is_told(tmp_path: Path) -> None:
    words = " ".join(told(tmp_path, ordinary()).split())
    for part in (
        "read 330", "kept 200", "redacted 12 EMAIL 9, HF_TOKEN 4", "review (near the threshold) 20", "duplicates 60",
        "near copies 30", "near copies in the other role 2", "overlaps with benchmark.jsonl 8",
        "for auditor, which is no role here 9", "set aside 21", "too short 20", "symbolic link 1",
        "role train valid test kinds",
        "specialist 90 5 5 answer 75, text 25", "generalist 90 5 5 answer 75, text 25",
        "auditor: the data name this role for 9 documents", str(tmp_path / REPORT),
    ):  # fmt: skip
        assert part in words, part


def test_the_lists_that_were_written_are_named(tmp_path: Path) -> None:
    assert told(tmp_path, ordinary()).splitlines()[-2:] == ["details:", f"  {tmp_path / REPORT}"]
    (tmp_path / "dropped.jsonl").write_text("{}")
    (tmp_path / "data_report.html").write_text("<!doctype html>")
    (tmp_path / "review.jsonl").touch()  # nothing is in it
    listed = told(tmp_path, ordinary()).splitlines()[-3:]
    assert [Path(line.strip()).name for line in listed] == ["data_report.html", REPORT, "dropped.jsonl"]


@pytest.mark.parametrize("report", [ordinary(), empty(), hostile()], ids=["ordinary", "empty", "hostile"])
def test_it_fits_80_columns_and_cannot_steer_the_terminal(tmp_path: Path, report: dict[str, Any]) -> None:
    text = told(tmp_path, report)
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert not set("\x1b\x07\r\u202e\u2066") & set(text)


def test_a_folders_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[2Jdata"
    folder.mkdir()
    assert "\x1b" not in told(folder, ordinary())


def test_many_reasons_and_kinds_are_counted(tmp_path: Path) -> None:
    words = " ".join(told(tmp_path, hostile()).split())
    assert f"{204 - SHOWN_REASONS} other reasons" in words
    kinds = {f"KIND_{n}": 20 - n for n in range(9)}
    assert "KIND_0 20, KIND_1 19, KIND_2 18, KIND_3 17, KIND_4 16, 4 more kinds" in " ".join(
        told(tmp_path, ordinary(redactions=kinds)).split()
    )
