"""An analysis whose process is killed in the middle goes on, in another process, with what is missing."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from scripted import backend_of, scan, scripted

from sysscan_langgraph import create_analysis_graph
from sysscan_langgraph.analysis.run import analyze
from sysscan_models.errors import SysscanError

FINDINGS, PARALLEL = 64, 2
ALL = [f"F{number}" for number in range(1, FINDINGS + 1)]
UNDER_WAY, WAVE = 4 * PARALLEL, 16 * PARALLEL
CONFIG: Any = {"configurable": {"thread_id": "t"}}

CHILD = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_analysis_resume import run
run(*sys.argv[1:])
"""


def run(way: str, folder: str, seconds: str) -> dict[str, Any]:
    """Analyse, or go on; what is asked is logged to `asked`."""
    models = scripted(seconds=float(seconds), n_parallel=PARALLEL, log=Path(folder) / "asked")
    database = str(Path(folder) / "checkpoints.sqlite")
    given = None if (Path(folder) / "begun").exists() else {"report": scan(*["low"] * FINDINGS)}
    (Path(folder) / "begun").touch()

    config = {**CONFIG, "max_concurrency": 3} if way.endswith("few at once") else CONFIG

    async def in_a_loop() -> Any:
        async with AsyncSqliteSaver.from_conn_string(database) as saver:
            return await create_analysis_graph(models, checkpointer=saver).ainvoke(given, config)

    if way.startswith("async"):
        found = asyncio.run(in_a_loop())
    else:
        with SqliteSaver.from_conn_string(database) as saver:
            found = create_analysis_graph(models, checkpointer=saver).invoke(given, config)
    return dict(found["analysis"])


def asked(folder: Path) -> Counter[str]:
    """Return how often each finding was asked about, by alias."""
    log = folder / "asked"
    lines = log.read_text().splitlines() if log.exists() else []
    texts = [text for role, text in map(json.loads, lines) if role == "specialist" and text.startswith("Finding f")]
    return Counter(f"F{text.removeprefix('Finding f').partition('.')[0]}" for text in texts)


def saved(folder: Path) -> set[str]:
    """Return the aliases of the findings whose answers the checkpointer has stored."""
    if not (folder / "checkpoints.sqlite").exists():
        return set()
    with closing(sqlite3.connect(f"file:{folder / 'checkpoints.sqlite'}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT type, value FROM writes WHERE channel = 'answers'").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return set()
    return {alias for row in rows for alias in JsonPlusSerializer().loads_typed(row)}


@pytest.mark.parametrize("way", ["sync", "sync, few at once", "async", "async, few at once"])
def test_a_killed_analysis_goes_on_with_what_is_missing(way: str, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, way, str(tmp_path), "0.4"])
    limit = time.monotonic() + 60
    while len(saved(tmp_path)) < 3 and child.poll() is None:
        assert time.monotonic() < limit, "the child saved nothing"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before, kept = asked(tmp_path), saved(tmp_path)
    assert len(before) < WAVE - UNDER_WAY, "answers are saved long after they came"

    analysis = run(way, str(tmp_path), "0")
    assert asked(tmp_path) == Counter(ALL) + Counter(before.keys() - kept)
    assert [one["alias"] for one in analysis["analyses"]] == ALL
    assert analysis["executive_summary"]
    assert not analysis["warnings"]


def test_a_failed_run_goes_on_in_the_same_process(tmp_path: Path) -> None:
    """The clock of the first run is over; the second has its whole time."""
    report = scan(*["low"] * 20)
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as saver:
        models = scripted(log=tmp_path / "asked")
        options: Any = {"checkpointer": saver, "thread_id": "t", "time_budget": 30}

        def interrupt(progress: Any) -> None:
            if progress["stage"] == "correlate":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            analyze(report, models, on_progress=interrupt, **options)
        assert len(asked(tmp_path)) == 20
        found = analyze(report, models, **options)
        assert max(asked(tmp_path).values()) == 1
        assert len(found.analyses) == 20
        assert not found.left_out
        other = analyze(scan("high"), models, **options)
        assert len(other.analyses) == 1


@pytest.mark.parametrize(
    ("other", "options"),
    [({}, {"max_findings": 1}), ({}, {"seed": 1}), ({"n_ctx": 2048}, {}), ({}, {"seed": 0, "time_budget": 60})],
)
def test_an_analysis_goes_on_only_with_the_same_models_and_options(other: dict[str, Any], options: dict[str, Any]) -> None:
    same, report = "time_budget" in options, scan("low", "low", "low")
    common: Any = {"checkpointer": InMemorySaver(), "thread_id": "t"}

    def interrupt(progress: Any) -> None:
        if progress["stage"] == "correlate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(report, scripted(), on_progress=interrupt, **common)
    models = scripted(**other)
    found = analyze(report, models, **common, **options)
    assert len(found.analyses) == options.get("max_findings", 3)
    about_findings = [text for text in backend_of(models).texts() if text.startswith("Finding f")]
    assert len(about_findings) == (0 if same else len(found.analyses))
    anew = "what was begun under this thread_id was asked of other models or with other options; it was begun anew"
    assert [warning.message for warning in found.warnings] == ([] if same else [anew])


def test_a_report_that_the_checkpointer_cannot_store_is_told_before_the_models_are_asked() -> None:
    nested: Any = {}
    for _ in range(300):
        nested = {"a": nested}
    models = scripted()
    with pytest.raises(SysscanError, match="the checkpointer cannot store the report"):
        analyze({**scan("low"), "more": nested}, models, checkpointer=InMemorySaver(), thread_id="t")
    assert not backend_of(models).asked()
