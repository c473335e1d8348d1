"""What all tests share: a quiet, offline environment, and a skip that counts as a failure where nothing may be skipped."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures when SYSSCAN_NO_SKIP is set, as CI does: a skipped check has checked nothing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SYSSCAN_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which SYSSCAN_NO_SKIP forbids: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep a developer's token, cache and terminal out of the tests."""
    for name in ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_ENDPOINT", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SYSSCAN_PROGRESS", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
