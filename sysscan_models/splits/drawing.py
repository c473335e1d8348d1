"""The figures of the data report, as SVG inside the page: what became of the records, and histograms.

Colours come from the page's stylesheet by class, so that light, dark and paper each have their own. Every figure says in words
what it shows; the numbers stand in tables beside it. Text is cut to what fits, the tables have it whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sysscan_models.markup import NOTHING, Html, element, joined
from sysscan_models.spelling import one_line

WIDTH = 380
"""Units across the picture of the flow: about the pixels of a narrow screen, so that its text is never tiny."""
TRUNK, LEFT, LABELS, BEND = 96.0, 4.0, 150.0, 9.0
"""Width of all records together, where they begin, where the labels begin, and the radius of a bend; in units."""
LABEL = 27
"""Characters of a label that fit."""
THINNEST = 1.2
"""Width in units of what would be too thin to see."""
SEAM = 0.6
"""Units by which pieces of the stream overlap, so that no line shows between them."""


@dataclass(frozen=True)
class Branch:
    """Where some records went. `parts` divide it further: class of the colour, and count."""

    label: str
    count: int
    colour: str = "lost"
    detail: str = ""
    parts: tuple[tuple[str, int], ...] = ()


def flow(lost: Sequence[Branch], kept: Sequence[Branch], *, title: str, description: str) -> Html:
    """Return a stream of all records from which branches leave, each as wide as its count, down to what is kept."""
    left = whole = sum(branch.count for branch in (*lost, *kept))
    scale = TRUNK / max(whole, 1)
    drawn, y = [_label(f"{whole:,}", "records found", LABELS, 16), _trunk(LEFT, TRUNK, 4, 22, "all")], 26.0
    for place, branch in enumerate([*lost, *kept]):
        if place == len(lost):
            drawn.append(_label(f"{left:,}", "kept", LABELS, y + 14))
            drawn.append(_trunk(LEFT, left * scale, y, 22, "all"))
            y += 22
        width = branch.count * scale
        height = max(46.0 if branch.parts else 36.0, width + BEND + 14)
        left -= branch.count
        drawn.append(_branch(branch, LEFT + left * scale, width, y))
        drawn.append(_stream(kept if place >= len(lost) else (), left * scale, y, height, kept[place - len(lost) + 1 :]))
        y += height
    svg = element("svg", _words(title, description), joined(drawn), viewBox=f"0 0 {WIDTH} {y + 4:.0f}", role="img")
    return element("figure", svg, class_="stream")


def _stream(kept: Sequence[Branch], width: float, y: float, height: float, rest: Sequence[Branch]) -> Html:
    """Return what goes on beside a branch: grey while records are lost, in the colours of the roles after that."""
    if not kept:
        return _trunk(LEFT, width, y, height, "all")
    whole, edge, drawn = sum(branch.count for branch in rest), LEFT + width, []
    for branch in rest:
        own = width * branch.count / max(whole, 1)
        edge -= own
        drawn.append(_trunk(edge, own, y, height, branch.colour))
    return joined(drawn)


def _trunk(x: float, width: float, y: float, height: float, colour: str) -> Html:
    if width <= 0:
        return NOTHING
    return element("rect", x=x, y=y, width=max(width, THINNEST), height=height + SEAM, class_=colour)


def _branch(branch: Branch, x: float, width: float, y: float) -> Html:
    """Return a ribbon that leaves the right edge of the stream and bends to its label."""
    thick = max(width, THINNEST)
    edge, end, top = x + width, LABELS - 8, y + BEND
    ribbon = (
        f"M{edge:.1f} {y:.1f}Q{edge:.1f} {top:.1f} {edge + BEND:.1f} {top:.1f}H{end}V{top + thick:.1f}"
        f"H{edge + BEND:.1f}Q{edge - thick:.1f} {top + thick:.1f} {edge - thick:.1f} {y:.1f}Z"
    )
    middle = top + thick / 2
    base = middle + (-3 if branch.detail else 4.5)
    drawn = [_label(f"{branch.count:,}", branch.label, LABELS, base)]
    if branch.count:
        drawn.insert(0, element("path", d=ribbon, class_=branch.colour))
    if branch.detail:
        drawn.append(element("text", one_line(branch.detail, 36), x=LABELS, y=base + 15, class_="detail"))
    if branch.parts and branch.count:
        drawn.append(_strip(branch, LABELS, base + 21, WIDTH - LABELS - 8))
    return element("g", *drawn)


def _strip(branch: Branch, x: float, y: float, width: float) -> Html:
    drawn = []
    for colour, count in branch.parts:
        own = width * count / branch.count
        drawn.append(_trunk(x, own, y, 6, f"{branch.colour} {colour}") if count else NOTHING)
        x += own
    return joined(drawn)


def _label(count: str, text: str, x: float, y: float) -> Html:
    shown = element("tspan", one_line(text, LABEL), class_="bidi")
    return element("text", element("tspan", count, class_="count"), Html(" "), shown, x=x, y=y)


def _words(title: str, description: str) -> Html:
    return joined([element("title", title), element("desc", description)])


def histogram(
    columns: Sequence[tuple[str, int]], *, colour: str, title: str, description: str, marked: int = 0, mark: str = ""
) -> Html:
    """Return a bar for each (label, count); the first `marked` stand in a shaded zone that is called `mark`.

    Labels are left out where they would touch, and the highest bar has its count above.
    """
    width, height, top, bottom = 360.0, 150.0, 18.0, 20.0
    step = (width - 4) / max(len(columns), 1)
    highest = max((count for _, count in columns), default=0)
    drawn = (
        [element("rect", x=2, y=top - 16, width=marked * step, height=height - top - bottom + 16, class_="zone")]
        if marked
        else []
    )
    every = max(1, -(-len(columns) * 34 // int(width)))
    tallest = next((place for place, (_, count) in enumerate(columns) if count == highest), 0)
    for place, (label, count) in enumerate(columns):
        tall = (height - top - bottom) * count / max(highest, 1)
        x, tall = 2 + place * step, max(tall, 1.0) if count else 0.0
        bar = element("title", f"{label}: {count:,}")
        drawn.append(element("rect", bar, x=x + 1, y=height - bottom - tall, width=step - 2, height=tall, class_=colour))
        if place % every == 0:
            drawn.append(element("text", label, x=x + step / 2, y=height - 5, class_="tick"))
        if place == tallest and count:
            drawn.append(element("text", f"{count:,}", x=min(max(x + step / 2, 16), width - 16), y=top - 5, class_="tick"))
    if marked and mark:
        drawn.append(element("text", mark, x=5, y=top + 8, class_="tick first"))
    drawn.append(element("rect", x=0, y=height - bottom, width=width, height=1, class_="axis"))
    return element("svg", _words(title, description), joined(drawn), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img")


def bar(count: int, longest: int, colour: str) -> Html:
    """Return a bar beside a number, of which something can always be seen; the number says it for who cannot see."""
    length = max(100 * count / max(longest, 1), 1.5 if count else 0)
    track = element("rect", width="100%", height=8, rx=4, class_="track")
    filled = element("rect", width=f"{length:.1f}%", height=8, rx=4, class_=colour)
    return element("svg", track, filled, height=8, aria_hidden="true", focusable="false")
