"""A real browser for tests: headless chromium, spoken to through its debugging pipe. It needs no driver and no network."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120.0
"""Longest wait for one answer: the machine may be busy."""


def browser_path() -> str | None:
    """Return where the browser is, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page in the browser. `events` holds what it reported while answers were awaited."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._read = to_browser, from_browser, b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params, **({"sessionId": self._session} if self._session else {})}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while (message := self._next()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message["error"]
        return message["result"]

    def show(self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file at a width in CSS pixels and a colour scheme, and wait until it has loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")

    def wait_for(self, event: str) -> None:
        """Read what the browser reports until the event has happened."""
        while not self.told(event):
            self.events.append(self._next())

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of one kind."""
        return [message["params"] for message in self.events if message.get("method") == event]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a script's expression; it runs as the debugger's, which no policy of the page forbids."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """Return a screenshot as PNG: of the whole page, or of what the window shows."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._from, 1 << 16) if ready else b""
            assert piece, "the browser ended" if ready else f"the browser said nothing for {SECONDS:.0f} s"
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def browser(path: str, folder: Path) -> Iterator[Tab]:
    """Start the browser with a profile of its own in `folder`, and end it."""
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
    ]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-background-networking", "--disable-extensions"]
    shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'  # chromium expects the pipe's ends there
    process = subprocess.Popen(
        ["bash", "-c", shell, path, *flags],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait()
        os.close(from_browser)


# What tests ask of every page -------------------------------------------------------------------------------------------

CONTRAST = """
(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = parts(color).map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = one => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (parts(color)[3] !== 0) return color;
    }
  };
  const faint = new Set();
  for (const one of document.querySelectorAll('body *')) {
    if (![...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.add(`${one.tagName}.${one.className} ${ratio.toFixed(2)}`);
  }
  return [...faint];
})()
"""
"""Texts whose contrast is below 4.5 to 1, which WCAG 2 asks for at level AA."""


def requests(tab: Tab) -> list[str]:
    """What was asked for beside the page itself."""
    urls = [event["request"]["url"] for event in tab.told("Network.requestWillBeSent")]
    return [url for url in urls if not url.endswith("/page.html")]


def complaints(tab: Tab) -> list[str]:
    logged = [event["entry"]["text"] for event in tab.told("Log.entryAdded")]
    return logged + [event["type"] for event in tab.told("Runtime.consoleAPICalled") + tab.told("Runtime.exceptionThrown")]
