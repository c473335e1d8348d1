"""Progress of long work: a live bar on a terminal, plain lines elsewhere, nothing with SYSSCAN_PROGRESS=off.

Everything goes to standard error. `note` says what a user should know even when no bar is wanted to be seen.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from sysscan_models import processes

LINE_SECONDS = 10.0
"""Least time between two plain lines."""


class Progress:
    """One piece of work, from entering to leaving the context.

        with Progress("train specialist", total=steps, unit="steps") as bar:
            bar.update(done, loss=1.23, rate="410 tokens/s")

    `total` may be 0 when it is not known. Work that is counted in `bytes` is shown in MB.
    """

    def __init__(self, title: str, *, total: int = 0, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self._mode = _mode()
        self._bar: Any = None
        self._task: Any = None
        self._started = self._last_line = time.monotonic()
        self._first: int | None = None
        self._done = 0

    def __enter__(self) -> Progress:
        if self._mode == "bar":
            self._bar = _live_bar(in_bytes=self.unit == "bytes")
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total or None, fields="")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._mode == "lines" and kind is None and self._first is not None:
            self._line(f"{self._count()}, done in {_duration(time.monotonic() - self._started)}")

    def update(self, done: int, **fields: object) -> None:
        """Say how much is done and what else is worth seeing: `fields` are shown as `name value` (floats with 4 digits)."""
        self._done = done
        shown = "  ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in fields.items())
        now = time.monotonic()
        if self._first is None:  # work done before (a resumed run) must not count for the rate
            self._first, self._started = done, self._started if done <= 1 else now
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total or None, fields=shown)
        elif self._mode == "lines" and (now - self._last_line >= LINE_SECONDS):
            self._last_line = now
            left = self._left(now)
            self._line("  ".join(part for part in (self._count(), shown, left) if part))

    def note(self, text: str) -> None:
        """Show a message of its own."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._mode != "off":
            self._line(text)

    def _count(self) -> str:
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        done, total = (f"{count / scale:.1f}" if scale > 1 else f"{count}" for count in (self._done, self.total))
        return f"{done}{f'/{total}' if self.total else ''} {unit}".strip()

    def _left(self, now: float) -> str:
        worked = self._done - (self._first or 0)
        if not self.total or worked <= 0:
            return ""
        return f"{_duration((now - self._started) / worked * (self.total - self._done))} left"

    def _line(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the module that prints


def _mode() -> str:
    if processes.number():
        return "off"  # the first one tells
    if os.environ.get("SYSSCAN_PROGRESS", "").lower() in ("off", "0", "no"):
        return "off"
    return "bar" if sys.stderr.isatty() else "lines"


def _live_bar(*, in_bytes: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TextColumn("{task.fields[fields]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def say(text: str) -> None:
    """Tell the user one line about a stage, on standard error; silent with SYSSCAN_PROGRESS=off."""
    if _mode() != "off":
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the module that prints
