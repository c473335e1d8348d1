from __future__ import annotations

from typing import Any

import pytest

from sysscan_models.errors import DataError
from sysscan_models.scan_report import FindingFault, findings, readable_findings


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
