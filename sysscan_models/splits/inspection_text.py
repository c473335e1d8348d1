"""Ways of documents (see `inspection`) as text for a terminal or a pipe: 80 columns, nothing in it steers the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sysscan_models.spelling import one_line
from sysscan_models.terminal import printable

if TYPE_CHECKING:
    from sysscan_models.splits.inspection import Way

WIDTH = 80
LABEL = 13
"""Columns of the names on the left."""
SHOWN_LINES = 8
"""Lines of a text that are shown."""


def as_text(ways: Sequence[Way], *, width: int = WIDTH) -> str:
    """Return the ways one after the other, at most `width` columns wide where words allow it."""
    return printable("\n\n".join("\n".join(_way(way, width)) for way in ways))


def _way(way: Way, width: int) -> Iterator[str]:
    yield f"{one_line(way.source)}{f'  (reader {way.reader})' if way.reader else ''}"
    for name, text in _steps(way):
        yield from _row(name, text, width)


def _steps(way: Way) -> Iterator[tuple[str, str]]:
    """Yield what is told: a name for the left column, empty where it goes on, and a text."""
    if way.id:
        yield "id", one_line(way.id)
    if way.characters:
        yield "read", _read(way)
    if way.labels:
        yield "labels", ", ".join(f"{name} {_plain(value)}" for name, value in way.labels.items())
    if way.characters:
        yield "redacted", ", ".join(f"[{kind}] {count:,}" for kind, count in way.redactions.items()) or "nothing"
    for name, text in way.text.items():
        yield f"  {name}", text
    if way.quality:
        yield "quality", way.quality
    if way.held_out:
        yield "held out", way.held_out
    if way.role:
        yield from _decision(way)
    if way.kind:
        yield "split", f"{way.split}, by its {one_line(way.unit, 100)}; near copies and ties of families may still move it"
        yield "becomes", f"an example of kind `{way.kind}`:"
        for turn in way.turns:
            shown = one_line(turn["content"], WIDTH - LABEL - 1) if turn["role"] == "system" else turn["content"]
            yield f"  {turn['role'] or 'text'}", shown
    yield "result", f"{way.fate}{f': {way.why}' if way.why else ''}"
    for place in way.prepared:
        yield "prepared", _place(place)


def _read(way: Way) -> str:
    lists = {"findings": "finding", "messages": "turn"}
    return ", ".join(
        f"{count:,} {lists[name]}{'' if count == 1 else 's'}" if name in lists else f"{name} of {count:,} characters"
        for name, count in way.characters.items()
    )


def _decision(way: Way) -> Iterator[tuple[str, str]]:
    threshold = f"; the router's threshold is {way.threshold:g}" if way.threshold is not None else ""
    review = "; near the threshold, so listed for review" if way.review else ""
    yield "role", f"{one_line(way.role)}, score {way.score:.2f} (0 at the threshold, 1 beyond doubt){threshold}{review}"
    yield "decided by", way.decided_by
    if way.reasons:
        yield "because of", ", ".join(one_line(reason, 80) for reason in way.reasons)


def _place(place: Mapping[str, Any]) -> str:
    where = f"{place['file']}, line {place['line']:,}"
    told = [one_line(str(place[key])) for key in ("reason", "detail") if key in place]
    if "of" in place:
        told.append(f"of {one_line(str(place['of']))}")
    if "similarity" in place:
        told.append(f"similarity {place['similarity']:.2f}")
    return f"{where}{': ' if told else ''}{', '.join(told)}"


def _plain(value: Any) -> str:
    return one_line(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _row(name: str, text: str, width: int) -> Iterator[str]:
    room = width - LABEL - 1
    lines = [
        part for line in printable(text).expandtabs(4).split("\n") if line.strip() for part in textwrap.wrap(line, room) or [""]
    ]
    if len(lines) > SHOWN_LINES:
        lines = [*lines[: SHOWN_LINES - 1], f"… ({len(lines) - SHOWN_LINES + 1} more lines)"]
    for place, line in enumerate(lines or [""]):
        yield f"{name if not place else '':<{LABEL}} {line}".rstrip()
