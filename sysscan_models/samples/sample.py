"""The scan report that comes with the package."""

from __future__ import annotations

from importlib import resources
from typing import Any

import orjson


def sample_report() -> dict[str, Any]:
    """Return the sample report: schema v2, 42 findings of a made-up host."""
    text = (resources.files("sysscan_models") / "samples" / "report.json").read_bytes()
    report: dict[str, Any] = orjson.loads(text)
    return report
