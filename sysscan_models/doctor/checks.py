"""What a check is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One check: its verdict, what was found, and what to do (empty when there is nothing to do)."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""
