"""Engines in memory: shared, unloaded, given back; processes that end, fork or are cut off."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from engine_cases import model_file, opened, request, said

from sysscan_langgraph import LlamaCpp
from sysscan_langgraph.engine.weights import _loaded
from sysscan_langgraph.llama_cpp_backend import LlamaCppSession
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import ModelRef
from sysscan_models.roles import GENERALIST, SPECIALIST


def loaded(session: LlamaCppSession) -> bool:
    return session._engine.scheduler is not None


# Sharing


def test_sessions_of_one_model_share_an_engine_and_of_one_file_the_weights() -> None:
    with opened(model_file()) as one, opened(model_file(), dataclasses.replace(GENERALIST, context_length=4096)) as other:
        assert one._engine is other._engine
        with opened(model_file(), n_ctx=64) as shorter:
            assert shorter._engine is not one._engine
            assert shorter._engine.weights is one._engine.weights
            assert len(_loaded) == 1
            assert said(shorter.generate([request(max_tokens=4)])) == said(one.generate([request(max_tokens=4)]))
        one.close()
        assert said(other.generate([request(max_tokens=4)]))
        with pytest.raises(SysscanError, match="the session is closed"):
            one.count_tokens(request().messages)
    assert not _loaded


def test_a_new_file_under_an_old_name_is_another_model(tmp_path: Path) -> None:
    path = Path(shutil.copy(model_file(), tmp_path / "model.gguf"))
    with opened(path, n_ctx=64) as before:
        os.utime(path, (1, 1))
        with opened(path, n_ctx=64) as after:
            assert before._engine is not after._engine


def test_closing_one_session_ends_its_answers_and_not_anothers() -> None:
    with opened(model_file(), n_parallel=2) as stays:
        goes = opened(model_file(), n_parallel=2)
        mine, other = (
            stays.generate([request(max_tokens=60)]),
            goes.generate([request(max_tokens=600), request(max_tokens=600)]),
        )
        next(mine)
        next(other)
        goes.close()
        with pytest.raises(SysscanError, match="the session is closed; open the model again"):
            list(other)
        assert list(mine)[-1].finish_reason


def test_closing_ends_who_waits_in_a_thread_or_a_loop() -> None:
    session = opened(model_file(), n_parallel=1, n_ctx=256)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            list(session.generate([request(max_tokens=200)]))
        except SysscanError as error:
            errors.append(error)

    async def wait() -> None:
        async for _ in session.agenerate([request(max_tokens=200)] * 2):
            pass

    async def closed() -> None:
        task = asyncio.create_task(wait())
        while session._engine.scheduler is None or session._engine.scheduler._pending < 5:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(session.close)
        with pytest.raises(SysscanError, match="the session is closed"):
            await task

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    asyncio.run(closed())
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3


# Memory


LOADS = """
    import ctypes, os, threading
    from pathlib import Path
    from engine_cases import model_file, opened, request, said

    def held():
        ctypes.CDLL(None).malloc_trim(0)  # or the allocator's free lists are measured, 60 megabytes at some times
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    for cycle in range(60):
        if cycle == 10:
            before = held()
        with opened(model_file(), n_ctx=256, n_parallel=2) as session:
            said(session.generate([request(max_tokens=2), request(max_tokens=2, json_schema={"type": "boolean"})]))
            session.score([1, 2, 3])
    print(held() - before, threading.active_count())
"""


@pytest.mark.slow
def test_opening_and_closing_fifty_times_keeps_no_memory() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOADS)], env=environment, capture_output=True, text=True, check=True
    )
    more, threads = map(float, done.stdout.split())
    assert more < 5  # one load holds more than 100, one context 20
    assert threads == 1


def test_a_budget_unloads_the_least_recently_used(tmp_path: Path) -> None:
    files = [Path(shutil.copy(model_file(), tmp_path / f"{name}.gguf")) for name in "abc"]
    size = files[0].stat().st_size // 10**6
    options = {"n_ctx": 64, "n_parallel": 1, "memory_budget_mb": 3 * size + 100}
    first = opened(files[0], **options)
    second = opened(files[1], **options)
    assert loaded(first)
    assert loaded(second)
    answer = said(first.generate([request(max_tokens=4)]))
    with opened(files[2], **options) as third:
        assert [loaded(first), loaded(second), loaded(third)] == [True, False, True]
        assert said(second.generate([request(max_tokens=4)])) == answer  # loaded again
        assert [loaded(first), loaded(second), loaded(third)] == [False, True, True]
        assert first.n_ctx == 64
    assert first.count_tokens(request().messages) > 4
    assert said(first.generate([request(max_tokens=4)])) == answer
    first.close()
    second.close()


@pytest.mark.slow
def test_who_is_answering_is_not_unloaded_and_who_waits_gets_a_turn(tmp_path: Path) -> None:
    files = [Path(shutil.copy(model_file(), tmp_path / f"{name}.gguf")) for name in "ab"]
    options = {"n_ctx": 512, "n_parallel": 1, "memory_budget_mb": files[0].stat().st_size // 10**6 + 200}
    with opened(files[0], **options) as first:
        running = first.generate([request("Tell me a story.", max_tokens=100)])
        next(running)
        with opened(files[1], **options) as second:  # waits until the first has answered
            assert not loaded(first)
            assert list(running)[-1].finish_reason
            stopped = threading.Event()

            def keep_busy() -> None:
                while not stopped.is_set():
                    said(first.generate([request(max_tokens=8)]))

            threads = [threading.Thread(target=keep_busy) for _ in range(3)]
            for thread in threads:
                thread.start()
            while not loaded(first):
                time.sleep(0.01)
            assert all(said(second.generate([request(max_tokens=2)])) for _ in range(2))
            stopped.set()
            for thread in threads:
                thread.join(60)


def test_a_budget_that_is_too_small_is_an_error() -> None:
    with pytest.raises(UserError, match=r"needs about \d+ MB and memory_budget_mb is 50; raise it"):
        opened(model_file(), memory_budget_mb=50)


# Processes


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = f"""
        import asyncio, os, sys, threading
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from engine_cases import model_file, opened, request, said
        from sysscan_models.errors import SysscanError
    """
    source = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "ending",
    [
        "next(session.generate([request(max_tokens=600)] * 3))",
        "events = session.generate([request(max_tokens=600)] * 3); next(events); sys.exit(0)",
        "events = session.generate([request(max_tokens=600)] * 3); events.self = events; next(events)",
        "threading.Thread(target=lambda: said(session.generate([request(max_tokens=60)]))).start()",
        "events = session.generate([request(max_tokens=600)]); next(events);"
        "threading.Thread(target=lambda: said(events), daemon=True).start()",
        "asyncio.run(anext(aiter(session.agenerate([request(max_tokens=600)]))))",
    ],
)
def test_a_process_ends_cleanly_with_a_live_engine(ending: str) -> None:
    done = run(f"session = opened(model_file(), n_parallel=2)\n{ending}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_is_told_and_the_parent_goes_on() -> None:
    done = run(
        """
        session = opened(model_file(), n_parallel=2, n_ctx=256)
        events = session.generate([request(max_tokens=40)])
        next(events)
        child = os.fork()
        if not child:
            told = 0
            async def ask():
                async for _ in session.agenerate([request()]):
                    pass
            for call in (lambda: session.generate([request()]), lambda: session.score([1]), lambda: asyncio.run(ask()),
                         lambda: session.count_tokens(request().messages)):
                try:
                    call()
                except SysscanError as error:
                    told += "opened by another process, of which this one is a fork" in str(error)
            session.close()
            del session
            os._exit(0 if told == 4 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert list(events)[-1].finish_reason
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_backend_is_its_options() -> None:
    session = LlamaCpp(n_ctx=64, n_parallel=3, queue_size=7, threads=1).open(ModelRef(model_file(), SPECIALIST))
    assert isinstance(session, LlamaCppSession)
    scheduler = session._engine.scheduler
    assert scheduler is not None
    assert (scheduler.settings.n_parallel, scheduler.settings.queue_size, scheduler.settings.threads) == (3, 7, 1)
    assert scheduler._wide.limit == 3
    session.close()
