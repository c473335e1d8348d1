"""Whether this process is one of several that train one model together, as the environment tells.

torchrun starts processes on one machine or more; the workers of a TPU slice each run the same command. The first of them tells
the user about it and writes what is not sharded.
"""

from __future__ import annotations

import os


def count() -> int:
    """Return how many processes torchrun has started."""
    given = os.environ.get("WORLD_SIZE", "")
    return int(given) if given.isdecimal() and int(given) > 1 else 1


def number() -> int:
    """Return this process's number, from 0: among torchrun's, or among the workers of a TPU slice."""
    if count() > 1:
        given = os.environ.get("RANK", "")
    else:
        given = os.environ.get("TPU_WORKER_ID", "") if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") else ""
    return int(given) if given.isdecimal() else 0
