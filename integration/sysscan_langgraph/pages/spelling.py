"""How text and figures are spelt on a page: the core's rules for text of unknown origin, and durations."""

from __future__ import annotations

from sysscan_models.spelling import counted, cut, one_line, visible

__all__ = ["counted", "cut", "duration", "one_line", "visible"]


def duration(seconds: float) -> str:
    """Return seconds for a reader: `0.4 s`, `12 s`, `3 min 5 s`, `1 h 2 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
