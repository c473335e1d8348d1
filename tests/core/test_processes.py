"""One of several processes knows itself: by torchrun's two variables and not by one of them, or as a TPU slice's worker."""

from __future__ import annotations

import pytest

from sysscan_models import processes


@pytest.mark.parametrize(
    ("world", "rank", "expected"),
    [("", "", (1, 0)), ("4", "3", (4, 3)), ("1", "0", (1, 0)), ("", "3", (1, 0)), ("four", "3", (1, 0)), ("2", "", (2, 0))],
)
def test_processes(monkeypatch: pytest.MonkeyPatch, world: str, rank: str, expected: tuple[int, int]) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    assert (processes.count(), processes.number()) == expected


@pytest.mark.parametrize(("hosts", "expected"), [("a,b", 1), ("a", 0), ("", 0)])
def test_workers_of_a_tpu_slice(monkeypatch: pytest.MonkeyPatch, hosts: str, expected: int) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    assert (processes.count(), processes.number()) == (1, expected)
