"""Reading the host's findings, and the door through which their text passes: nothing in one finding costs the others."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from host_double.scripted import assert_safe, scripted

from sysscan_langgraph.host import SysscanProvider
from sysscan_langgraph.host.aliases import USER, Aliases
from sysscan_langgraph.host.findings import HostFinding, correlations_of, findings_of, severity_of
from sysscan_langgraph.host.shapes import DEEPER, DEEPEST, plain


class Silent:
    """An object that does not even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Closed(dict[str, Any]):
    """A mapping that cannot be read."""

    def items(self) -> Any:
        raise RuntimeError("no")


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = value["b"] = [value, value]
    return value


BAD: dict[str, dict[str, Any]] = {
    "endless probability": {"probability_actionable": 10**400},
    "endless risk": {"risk_score": 10**400},
    "endless number": {"metadata": {"n": 10**400, "m": -(10**5000)}},
    "cyclic": {"metadata": cyclic()},
    "deep": {"metadata": deep(2000)},
    "silent": {"metadata": {"o": Silent(), "l": [Silent()]}, "description": Silent()},
    "closed": {"metadata": Closed(a=1)},
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_finding_costs_nothing_else(name: str) -> None:
    models, backend = scripted()
    good = {"id": "g", "title": "Port 23 open", "severity": "high", "risk_score": 70}
    bad = {"id": "b", "title": "bad", "severity": "critical", **BAD[name]}
    summaries, metadata = SysscanProvider(models, host="host_double").summarize({"top_findings": [bad, good]}, [], [])
    assert (metadata.fallback, metadata.error_message) == (False, None)
    assert len(backend.asked("specialist")) == 2
    assert "Port 23 open" in backend.asked("generalist")[0].messages[-1]["content"]
    assert summaries.analyst["top_findings_count"] == 2


def test_a_finding_that_cannot_be_read_is_counted_and_says_so() -> None:
    class Torn:
        @property
        def __dict__(self) -> Any:
            raise RuntimeError("no")

    read = findings_of([Torn(), {"title": "a", "metadata": Closed(a=1)}, {"title": "b"}, None, 5])
    assert [finding.title for finding in read] == [
        "A finding that cannot be read (RuntimeError)", "A finding that cannot be read (RuntimeError)", "b",
    ]  # fmt: skip
    assert [one.title for one in correlations_of([Torn(), {"title": "c"}])] == ["Cannot be read (RuntimeError)", "c"]


def test_any_value_becomes_what_json_can_hold() -> None:
    read = plain({1: {"a"}, "t": (1, None, True, 0.5), "o": Silent(), "big": 2**64, "cyclic": cyclic()})
    assert read["1"] == ["a"]
    assert read["t"] == [1, None, True, 0.5]
    assert read["o"] == "(Silent that cannot be shown: RuntimeError)"
    assert read["big"] == "18446744073709551616"
    assert read["cyclic"] == {"a": [DEEPER, DEEPER], "b": [DEEPER, DEEPER]}
    written = orjson.dumps(plain(deep(2000))).decode()
    assert (written.count("{"), written.count(DEEPER)) == (DEEPEST, 1)
    assert plain(deep(DEEPEST - 1)) == deep(DEEPEST - 1)


@pytest.mark.parametrize(("said", "read"), [(" HIGH ", "high"), (None, "unknown"), (["high"], "unknown"), ("odd", "unknown")])
def test_a_severity_is_one_of_the_six(said: Any, read: str) -> None:
    assert severity_of(said) == read


def test_an_id_in_text_steers_no_terminal_and_is_exact_in_lists() -> None:
    id = "/home/alice/\x1b[31mx\u202e\nF2"
    names = Aliases([HostFinding(id=id, title="t")])
    assert names.restore("F1 is bad") == "/home/alice/x F2 is bad"
    models, _ = scripted()
    reductions, actions = {"top_findings": [{"id": id, "title": "t", "severity": "high"}]}, [{"correlation_refs": [id]}]
    summaries, _ = SysscanProvider(models, host="host_double").summarize(reductions, [], actions)
    assert "/home/alice/x F2 is the worst" in summaries.executive_summary
    assert "\x1b" not in summaries.executive_summary + summaries.action_narrative
    assert summaries.analyst["key_findings"][0]["finding_ids"] == [id]


def test_however_many_users_there_are_each_is_masked() -> None:
    found = [HostFinding(id=f"/home/longusername{number:04d}/a", title="t") for number in range(3000)]
    names = Aliases([*found, HostFinding(id="/home/eve1/x", title="t")])
    assert names.safe("eve1 and LongUserName2999, but not eve12 or longusername29990") == (
        f"{USER} and {USER}, but not eve12 or longusername29990"
    )


@pytest.mark.parametrize(
    "metadata",
    [{"username": ["mallory-weiss", "root"]}, {"a": [{"Owner": "mallory-weiss"}]}, {"a": {"b": ["/home/mallory-weiss/x"]}}],
)
def test_a_name_is_known_wherever_in_the_metadata_it_stands(metadata: dict[str, Any]) -> None:
    names = Aliases([HostFinding(id="1", title="t", metadata=metadata)])
    assert names.safe("/var/lib/mallory-weiss_backup of Mallory-Weiss") == f"/var/lib/{USER}_backup of {USER}"
    shown = orjson.dumps(names.safe_deep(metadata)).decode()
    assert_safe([shown])
    assert ("root" in shown) == ("username" in metadata)
    assert USER in shown
