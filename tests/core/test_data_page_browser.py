"""data_report.html in a real browser: it fits every width, loads nothing, runs nothing, and can be read on screen and paper."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CONTRAST, Tab, browser, browser_path, complaints, requests
from data_page_cases import HOSTILE, empty, hostile, ordinary

from sysscan_models.splits.page import data_page

pytestmark = pytest.mark.slow

WIDTHS = (390, 1280)
CLIPPED = """
[...document.querySelectorAll('main h2, main h3, main td, main th, main li, main p, main dd')]
  .filter(one => one.checkVisibility() && !one.closest('.scroll'))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth)
  .map(one => one.tagName + ' ' + one.textContent.slice(0, 40))
"""
"""Texts that go beyond the right edge of the window, where nothing scrolls."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    path = browser_path()
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with browser(path, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def show(tab: Tab, tmp_path: Path) -> Callable[..., Tab]:
    def show(report: dict[str, Any], **how: Any) -> Tab:
        file = tmp_path / "page.html"
        file.write_text(data_page(report))
        tab.show(file, **how)
        return tab

    return show


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("report", [ordinary(), empty(), hostile()], ids=["ordinary", "empty", "hostile"])
def test_it_fits_loads_nothing_and_runs_nothing(show: Callable[..., Tab], report: dict[str, Any], width: int) -> None:
    tab = show(report, width=width)
    assert tab.evaluate("document.compatMode") == "CSS1Compat"
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CLIPPED) == []
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(CLIPPED) == []
    assert tab.evaluate("document.title").startswith("Data report of ")
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"
    for selector in ("script", "img", "link", "a:not([href^='#'])", "[onload]", "[onerror]", "[style]", "style ~ style"):
        assert tab.evaluate(f"document.querySelectorAll({selector!r}).length") == 0, selector
    assert (requests(tab), complaints(tab)) == ([], [])


def test_hostile_text_is_shown_as_text(show: Callable[..., Tab]) -> None:
    shown = show(hostile()).evaluate("document.querySelector('main').innerText")
    assert HOSTILE[1] in shown
    assert "\\u202etxe.exe" in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("report", [ordinary(), empty(), hostile()], ids=["ordinary", "empty", "hostile"])
def test_every_text_stands_out_from_what_is_behind_it(show: Callable[..., Tab], report: dict[str, Any], scheme: str) -> None:
    tab = show(report, scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert tab.evaluate(CONTRAST) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(244, 246, 248)", "dark": "rgb(14, 18, 23)"}[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_in_figures_has_colours_of_the_scheme(show: Callable[..., Tab], scheme: str) -> None:
    """SVG paints text by `fill`, which the contrast of `color` does not tell."""
    tab = show(ordinary(), scheme=scheme)
    ink, soft = {"light": ("rgb(26, 32, 39)", "rgb(85, 96, 108)"), "dark": ("rgb(228, 233, 238)", "rgb(158, 171, 184)")}[scheme]
    fills = set(tab.evaluate("[...document.querySelectorAll('svg text')].map(one => getComputedStyle(one).fill)"))
    assert {ink, soft} <= fills
    assert len(fills) == 3  # and the word in the review zone


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_drawn_and_their_labels_stay_inside(show: Callable[..., Tab], width: int) -> None:
    tab = show(ordinary(), width=width)
    sizes = tab.evaluate("[...document.querySelectorAll('svg[role=img]')].map(one => one.getBoundingClientRect().width)")
    assert len(sizes) == 5
    assert min(sizes) > 300
    outside = """
    [...document.querySelectorAll('svg[role=img]')].flatMap(svg => [...svg.querySelectorAll('text')].filter(one => {
      const [inner, outer] = [one.getBoundingClientRect(), svg.getBoundingClientRect()];
      return inner.right > outer.right + 1 || inner.left < outer.left - 1 || inner.bottom > outer.bottom + 1;
    }).map(one => one.textContent))
    """
    assert tab.evaluate(outside) == []
    small = "Math.min(...[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height))"
    assert tab.evaluate(small) > 9


def test_paper_shows_what_is_folded_on_the_screen(show: Callable[..., Tab]) -> None:
    tab = show(ordinary(), scheme="dark")
    folded = "[...document.querySelectorAll('details.more:not([open]) table')].map(one => one.checkVisibility())"
    assert set(tab.evaluate(folded)) == {False}
    tab.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert set(tab.evaluate(folded)) == {True}
        assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate("getComputedStyle(document.querySelector('rect.all')).fill") == "rgb(195, 204, 214)"
        assert base64.b64decode(tab.ask("Page.printToPDF")["data"]).startswith(b"%PDF")
    finally:
        tab.ask("Emulation.setEmulatedMedia", media="")


def test_a_big_report_stays_readable(show: Callable[..., Tab]) -> None:
    assert show(ordinary(), width=1280).evaluate("document.documentElement.scrollHeight") < 9_000
    assert show(ordinary(), width=390).evaluate("document.documentElement.scrollHeight") < 16_000
