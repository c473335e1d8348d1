"""The HTML page in a real browser: it renders at every width, loads nothing, and runs nothing that a finding holds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import CONTRAST, Tab, browser, browser_path, complaints, requests
from pages_cases import HOSTILE, analysed, hostile, many

from sysscan_langgraph.analysis.records import AnalysisReport
from sysscan_langgraph.pages import render

pytestmark = pytest.mark.slow

WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    path = browser_path()
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with browser(path, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def show(tab: Tab, tmp_path: Path) -> Callable[..., Tab]:
    def show(page: str, **how: object) -> Tab:
        file = tmp_path / "page.html"
        file.write_text(page)
        tab.show(file, **how)  # type: ignore[arg-type]
        return tab

    return show


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders(show: Callable[..., Tab], width: int, scheme: str) -> None:
    tab = show(render(analysed(), "html"), width=width, scheme=scheme)
    assert tab.evaluate("document.compatMode") == "CSS1Compat"
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.title") == "Security analysis of sample-host.example.org"
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(244, 246, 248)", "dark": "rgb(14, 18, 23)"}[scheme]
    assert tab.evaluate("document.querySelector('.finding .body').getBoundingClientRect().height") > 100
    assert tab.evaluate("document.querySelector('td.bar svg').getBoundingClientRect().width") > 300
    picture = tab.picture()
    assert struct.unpack(">II", picture[16:24])[0] == width
    assert len(picture) > 50_000
    assert (requests(tab), complaints(tab)) == ([], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_what_findings_hold_neither_runs_nor_loads(show: Callable[..., Tab], width: int) -> None:
    tab = show(render(hostile(), "html"), width=width)
    assert tab.evaluate("document.title").startswith("Security analysis of </title><script>")
    for selector in ("script", "img", "link", "a[href^='javascript']", "[onload]", "[onmouseover]", "[style]", "style ~ style"):
        assert tab.evaluate(f"document.querySelectorAll({selector!r}).length") == 0, selector
    assert tab.evaluate("getComputedStyle(document.body).display") == "block"
    shown = tab.evaluate("document.querySelector('#summary').innerText")
    assert HOSTILE[0] in shown
    assert "\\u202etxe.exe" in shown
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert (requests(tab), complaints(tab)) == ([], [])


def test_the_browser_would_have_told(show: Callable[..., Tab]) -> None:
    """The same text without escapes runs and loads, so the test before can fail."""
    tab = show(f"<!doctype html><title>Security {HOSTILE[0]}{HOSTILE[4]}<img src=http://127.0.0.1:9/>")
    assert tab.evaluate("document.title") == "OWNED"
    assert {"http://127.0.0.1:9/", "http://127.0.0.1:9/y"} <= set(requests(tab))


def test_the_pages_policy_holds_where_an_escape_would_fail(show: Callable[..., Tab]) -> None:
    page = render(analysed(), "html").replace(
        "</main>", "".join((*HOSTILE[1:3], "<script>document.title='OWNED'</script></main>"))
    )
    page = page.replace("</main>", '<p style="color:red">x</p><img src="http://127.0.0.1:9/z.png"></main>')
    tab = show(page)
    assert tab.evaluate("document.title") == "Security analysis of sample-host.example.org"
    assert tab.evaluate("document.querySelectorAll('img').length") == 2
    told = complaints(tab)
    for refused in ("inline script", "inline event handler", "inline style", "the image"):
        assert any(refused in text for text in told), (refused, told)


def test_a_link_unfolds_the_finding_that_it_leads_to(show: Callable[..., Tab]) -> None:
    tab = show(render(many(234), "html"))
    place = "document.querySelector('#finding-200')"
    assert tab.evaluate(f"{place}.checkVisibility({{contentVisibilityAuto: true}})") is False
    tab.evaluate("location.hash = '#finding-200'")
    assert tab.evaluate(f"{place}.checkVisibility({{contentVisibilityAuto: true}})") is True
    assert tab.evaluate(f"{place}.closest('.fold').open") is True


def test_filters_work_without_a_script(show: Callable[..., Tab]) -> None:
    tab = show(render(analysed(), "html"))
    visible = "[...document.querySelectorAll('.finding')].filter(one => one.checkVisibility()).length"
    everything = tab.evaluate(visible)
    tab.evaluate("document.querySelector('#show-low').click()")
    without_low = tab.evaluate(visible)
    assert everything - without_low == tab.evaluate("document.querySelectorAll('.finding.is-low').length") > 0
    tab.evaluate("document.querySelector('#scanner').value = '0'")
    assert 0 < tab.evaluate(visible) < without_low


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_of_real_size_stays_readable(show: Callable[..., Tab], width: int) -> None:
    tab = show(render(many(234), "html"), width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.documentElement.scrollHeight") < 16_000


def test_print_shows_what_is_collapsed_on_the_screen(show: Callable[..., Tab]) -> None:
    tab = show(render(analysed(), "html"))
    closed = "[...document.querySelectorAll('.finding.is-medium:not([open]) .body')].map(one => one.checkVisibility())"
    assert set(tab.evaluate(closed)) == {False}
    tab.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert set(tab.evaluate(closed)) == {True}
        assert tab.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
    finally:
        tab.ask("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(show: Callable[..., Tab], scheme: str) -> None:
    tab = show(render(analysed(keep=30), "html"), scheme=scheme)
    assert tab.evaluate(CONTRAST) == []


def test_an_empty_analysis_is_a_page(show: Callable[..., Tab]) -> None:
    tab = show(render(AnalysisReport(), "html"), width=390)
    assert tab.evaluate("document.querySelector('h1').innerText") == "Unnamed host"
    assert complaints(tab) == []
