from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from sysscan_models.errors import DataError
from sysscan_models.scan_report import DEEPEST, FindingFault, findings, parse_report, read_report, readable_findings


def report(*listed: Any) -> dict[str, Any]:
    return {"results": [{"scanner": "s", "findings": list(listed)}]}


def test_what_cannot_be_read_is_told_and_the_rest_is_read() -> None:
    bad_metadata = {"id": "m", "title": "t", "severity": "high", "metadata": [1]}
    mixed = report({"id": "1", "title": "low", "severity": "low"}, "text", {"id": 7}, bad_metadata, {"title": "no more"})
    mixed["results"] += [{"scanner": "broken"}, 5, {"findings": [{"id": "2", "title": "high", "severity": "high"}]}]
    found, faults = readable_findings(mixed)
    assert [(finding["title"], finding["scanner"]) for finding in found] == [("high", ""), ("low", "s"), ("no more", "s")]
    assert [fault.where for fault in faults] == [
        "results[0].findings[1]", "results[0].findings[2]", "results[0].findings[3]", "results[1]", "results[2]",
    ]  # fmt: skip
    assert faults[2] == FindingFault(
        "results[0].findings[3]",
        "results[0].findings[3].metadata is no object; expected names and values",
        finding_id="m",
        title="t",
        severity="high",
    )
    assert all(fault.message.startswith(fault.where) for fault in faults)
    with pytest.raises(DataError, match=r"results\[0\].findings\[1\] is no finding; expected an object"):
        findings(mixed)


@pytest.mark.parametrize("whole", [None, [], "text", {}, {"results": {}}])
def test_what_is_no_report_at_all_is_refused(whole: Any) -> None:
    with pytest.raises(DataError, match="expected a scan report in schema v2"):
        readable_findings(whole)


@pytest.mark.parametrize("score", ["much", None, [], float("nan"), float("inf"), 10**400])
def test_a_score_that_is_no_number_counts_as_none(score: Any) -> None:
    odd = {"title": "odd", "severity": "low", "base_severity_score": score}
    found = findings(
        report({"title": "a", "severity": "low"}, odd, {"title": "b", "severity": "low", "base_severity_score": "1"})
    )
    assert [finding["title"] for finding in found] == ["b", "a", "odd"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"/tmp/\xff\xfe", "/tmp/\ufffd\ufffd"),
        (rb"/tmp/\ud800x", "/tmp/\ufffdx"),
        (rb"\udc00\ud83d\ude00\\ud800", "\ufffd\U0001f600\\ud800"),
    ],
)
def test_a_file_name_that_is_no_text_costs_its_own_characters_and_one_line(
    written: bytes, read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SYSSCAN_PROGRESS", raising=False)
    path = tmp_path / "report.json"
    path.write_bytes(orjson.dumps(report({"title": "a", "id": "HERE"}, {"title": "HERE"})).replace(b"HERE", written))
    assert [(finding["title"], finding.get("id")) for finding in findings(read_report(path))] == [("a", read), (read, None)]
    assert capsys.readouterr().err == f"report {path} holds characters that are no valid Unicode; they are shown as \ufffd\n"


@pytest.mark.parametrize("written", [b"", b"{", b"\xff", rb'"\ud800', b'{"a": \xff}', rb'{"a": \ud800}'])
def test_what_is_no_json_stays_none(written: bytes) -> None:
    with pytest.raises(DataError, match=r"the report is not JSON .*expected a scan report"):
        parse_report(written, "the report")


@pytest.mark.parametrize(
    ("said", "read"), [(" CRITICAL ", "critical"), ("High", "high"), (None, ""), (["low"], ""), (4, ""), ("Odd", "odd")]
)
def test_a_severity_is_spelt_one_way(said: Any, read: str) -> None:
    whole = report({"title": "b", "severity": "medium"}, {"title": "a", "severity": said}, {"severity": said})
    found, [fault] = readable_findings(whole)
    assert {finding["title"]: finding["severity"] for finding in found} == {"a": read, "b": "medium"}
    assert found[0]["title"] == ("a" if read in ("critical", "high") else "b")
    assert fault.severity == read
    assert readable_findings(report({"title": "a"}))[0][0]["severity"] == ""


def nested(levels: int) -> Any:
    """Return a finding of so many levels, its own and its metadata's among them."""
    value: Any = "x"
    for level in range(levels - 2):
        value = [value] if level % 2 else {"a": value}
    return {"id": "deep", "title": "t", "severity": "high", "metadata": {"m": value}}


def test_a_finding_that_is_nested_without_end_is_set_aside() -> None:
    cyclic: dict[str, Any] = {"title": "in itself", "metadata": {}}
    cyclic["metadata"]["a"] = cyclic["metadata"]["b"] = cyclic["metadata"]
    found, faults = readable_findings(report(nested(DEEPEST), nested(DEEPEST + 1), cyclic, {"title": "b"}))
    assert [finding["title"] for finding in found] == ["t", "b"]
    assert [fault.finding_id for fault in faults] == ["deep", ""]
    assert faults[0].message == (
        "results[0].findings[1] is nested more than 64 levels deep; expected a finding as the scanner writes them"
    )
