"""Figures as people read them: bytes in decimal units, counts, durations."""

from __future__ import annotations


def size(count: float) -> str:
    """Return bytes in words, decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(count) >= scale:
            return f"{count / scale:.1f} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def between(low: int, high: int) -> str:
    """Return what is known about a count that lies between two bounds."""
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"


def duration(seconds: float) -> str:
    """Return hours and minutes, at least one minute."""
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
