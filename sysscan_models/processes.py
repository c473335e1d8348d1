"""Whether this process is one of several that were started together to train one model; torchrun tells by the environment.

All of them run the same program; the first one tells the user about it and writes what is not sharded.
"""

from __future__ import annotations

import os


def count() -> int:
    """Return how many processes there are."""
    given = os.environ.get("WORLD_SIZE", "")
    return int(given) if given.isdecimal() and int(given) > 1 else 1


def number() -> int:
    """Return this process's number among them, from 0."""
    given = os.environ.get("RANK", "")
    return int(given) if count() > 1 and given.isdecimal() else 0
