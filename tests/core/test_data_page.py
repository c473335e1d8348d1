"""data_report.html: everything that the report counts is on it, and nothing that documents hold is more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from data_page_cases import HOSTILE, empty, hostile, ordinary, role

from sysscan_models.markup import Html, element, escaped, joined, page
from sysscan_models.spelling import counted, one_line, visible
from sysscan_models.splits.advice import OPTIONS, advice, share
from sysscan_models.splits.page import SHOWN_ROWS, data_page

VOID = {"meta"}
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "a", "div", "header", "main", "nav", "section", "h1", "h2", "h3", "p",
    "ul", "li", "dl", "dt", "dd", "small", "b", "code", "mark", "span", "figure", "figcaption", "details", "summary", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "path", "text", "tspan", "desc",
}  # fmt: skip


class Page(HTMLParser):
    """What a parser finds: elements with their attributes, text by element, and whether all is nested well."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(written)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text.setdefault(tag, []).append(data)

    def said(self, tag: str = "body") -> str:
        return " ".join(" ".join(self.text.get(tag, [])).split())


def values(found: Page, name: str) -> list[str]:
    return [attributes[name] or "" for _, attributes in found.elements if name in attributes]


def test_every_count_of_the_report_is_on_the_page() -> None:
    said = Page(data_page(ordinary())).said()
    for text in (
        "massive_datasets.tar.gz", "3f" * 32, "seed 17", "Documents read 330", "Kept 200", "92 60 exact, 32 near",
        "Set aside 21",
        "specialist 90 5 5 100", "all roles 180 10 10 200", "answer 75, text 25", "70,000", "700", "too short 20",
        "4 characters, from [EMAIL]", "symbolic link 1 latest", "part.jsonl:9", "0.93", "benchmark.jsonl 8", "auditor 9",
        "[EMAIL] 9", "[HF_TOKEN] 4", "13 secrets in 12 documents", "specialist word 0 40", "Document number 3",
        "0.83 sudo umask",
        "20 documents in review.jsonl", "data.near_copies", "router.threshold", "sysscan-models inspect FILE|ID",
        "30 near copies", "60 exact copies", "2 near copies of a document of the other role",
    ):  # fmt: skip
        assert text in said, text


def test_the_flow_adds_up_to_all_records() -> None:
    said = Page(data_page(ordinary())).said("svg")
    assert "330 records found" in said  # 200 + 60 + 30 + 2 + 8 + 9 + 21
    for branch in ("20 set aside: too short", "60 exact copies", "30 near copies", "8 held-out overlaps", "100 specialist"):
        assert branch in said
    assert said.index("set aside: too short") < said.index("exact copies") < said.index("held-out") < said.index("200 kept")


def test_ribbons_are_as_wide_as_their_counts() -> None:
    written = data_page(ordinary())
    heights = [
        float(down) - float(top) for top, down in re.findall(r"Q[\d.]+ ([\d.]+) [\d.]+ [\d.]+H\d+\.?\d*V([\d.]+)H", written)
    ]
    assert heights == pytest.approx(
        [1.2 if n * 96 / 330 < 1.2 else n * 96 / 330 for n in (20, 1, 60, 30, 2, 8, 9, 100, 100)], abs=0.11
    )


def test_the_length_histogram_has_a_bar_for_every_bucket_between() -> None:
    found = Page(data_page(ordinary()))
    described = [text for text in found.text["desc"] if text.startswith("Characters")]
    assert described == ["Characters, each bar twice as long as the one before: from 64 25, from 512 25, from 2,048 50"] * 2
    for bucket in ("64: 25", "128: 0", "256: 0", "512: 25", "1k: 0", "2k: 50"):
        assert bucket in found.said("title")


def test_the_review_zone_covers_the_scores_that_are_reviewed() -> None:
    written = data_page(ordinary(review_below=0.3))
    found = Page(written)
    assert "10 of 100 documents are below 0.3, to be reviewed." in found.said("desc")
    zones = [attributes for tag, attributes in found.elements if tag == "rect" and attributes.get("class") == "zone"]
    assert [float(zone["width"] or 0) for zone in zones] == pytest.approx([6 * 356 / 20] * 2)


@pytest.mark.parametrize("report", [ordinary(), empty(), hostile()], ids=["ordinary", "empty", "hostile"])
def test_the_page_is_well_formed_and_asks_for_nothing(report: dict[str, Any]) -> None:
    written = data_page(report)
    found = Page(written)
    assert written.startswith("<!doctype html>\n")
    assert {tag for tag, _ in found.elements} <= KNOWN
    assert values(found, "src") == values(found, "style") == []
    assert all(link.startswith("#") for link in values(found, "href"))
    assert {link[1:] for link in values(found, "href")} <= set(values(found, "id"))
    assert len(set(values(found, "id"))) == len(values(found, "id"))
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert [text for text in values(found, "content") if "default-src 'none'" in text]
    assert "OWNED" not in "".join(found.text["style"])


@pytest.mark.parametrize("report", [ordinary(), hostile()], ids=["ordinary", "hostile"])
def test_it_can_be_read_without_seeing_it(report: dict[str, Any]) -> None:
    found = Page(data_page(report))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.count("caption") == tags.count("table") > 5
    pictures = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert all(picture.get("role") == "img" or picture.get("aria-hidden") == "true" for picture in pictures)
    named = sum(picture.get("role") == "img" for picture in pictures)
    assert named == len(re.findall(r'role="img"><title>[^<]+</title>\s*<desc>[^<]+</desc>', data_page(report)))
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in found.elements if tag == "th")


def test_what_data_say_is_text_of_one_line() -> None:
    written = data_page(hostile())
    said = Page(written).said()
    assert HOSTILE[0] in said
    assert HOSTILE[1] in said
    assert "\\u202etxe.exe\\u2066 \\x1b[31mred" in said
    assert "line one line two line three" in said
    assert "{{ 7 * 7 }} %s %(x)s ${x} {0}" in said
    assert "W" * 601 not in said
    assert not set("\x1b\x07\u202e\u2066") & set(written)
    assert "<script" not in written


def test_200_reasons_are_counted_but_not_all_shown_at_once() -> None:
    report = hostile()
    found = Page(data_page(report))
    assert len(report["set_aside"]) == 204
    assert "199 other reasons" in found.said("svg")
    assert f"{204 - SHOWN_ROWS} more rows" in found.said("summary")
    assert len(data_page(report)) < 3_000_000


def test_roles_come_in_one_order() -> None:
    headings = Page(data_page(ordinary())).said("h3")
    for words in ("How sure: {}", "Terms that decided for {}"):
        assert headings.index(words.format("specialist")) < headings.index(words.format("generalist"))


def test_rows_that_are_folded_are_all_there() -> None:
    said = Page(data_page(ordinary())).said()
    assert all(said.count(f"specialist word {number} {40 - number}") == 1 for number in range(15))


def test_placeholders_stand_out() -> None:
    written = data_page(ordinary())
    assert "from <mark>[EMAIL]</mark>" in written
    assert "<mark>[NOTE]" not in data_page(ordinary(notes=["[NOTE] this"]))


def test_an_empty_report_is_a_page() -> None:
    said = Page(data_page(empty())).said()
    for text in (
        "no record that could be read",
        "No document was kept",
        "Nothing was dropped",
        "No document was routed",
        "specialist 0 0 0 0",
    ):
        assert text in said, text
    assert "specialist: no training example" in said


def test_the_same_report_gives_the_same_bytes_whatever_the_order_of_equal_counts() -> None:
    report = ordinary()
    turned = {**report, "set_aside": dict(reversed(report["set_aside"].items()))}
    turned["redactions"] = dict(reversed(report["redactions"].items()))
    assert data_page(report) == data_page(turned) == data_page(report)


# Advice --------------------------------------------------------------------------------------------------------------------


def advised(**changes: Any) -> str:
    quiet = ordinary(duplicates=2, near_copies=1, other_role=0, set_aside={}, role_not_configured={}, review=3)
    return "\n".join(advice({**quiet, **changes}))


def test_a_good_report_needs_no_advice() -> None:
    assert advised() == ""
    assert "Worth a look" not in data_page(
        ordinary(duplicates=2, near_copies=1, other_role=0, set_aside={}, role_not_configured={}, review=3)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"notes": ["specialist: the valid split is empty"]}, "specialist: the valid split is empty"),
        ({"roles": {"specialist": role(3, 0, 0), "generalist": role(180, 9, 8)}}, "specialist: only 3 of 200 documents (1.5%)"),
        ({"roles": {"specialist": role(0, 2, 0), "generalist": role()}}, "specialist: no training example"),
        ({"role_not_configured": {"auditor": 1}}, "auditor: the data name this role for 1 document,"),
        ({"near_copies": 60}, "62 documents (23%) were copies of others"),
        ({"other_role": 2}, "2 documents were nearly the same as one of the other role"),
        ({"set_aside": {"too short": {"count": 90, "examples": []}}}, "set aside, most of them for: too short"),
        ({"review": 80}, "80 documents (38%) are near the router's threshold"),
    ],
)  # fmt: skip
def test_advice(changes: dict[str, Any], words: str) -> None:
    assert words in advised(**changes)


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 0, "0%"),
        (0, 5, "0%"),
        (1, 10_000, "under 0.1%"),
        (3, 200, "1.5%"),
        (1, 50, "2%"),
        (1, 3, "33%"),
        (7, 7, "100%"),
        (1, 1000, "0.1%"),
        (2018, 2025, "99.7%"),
        (99_999, 100_000, "over 99.9%"),
    ],
)
def test_share(part: int, whole: int, said: str) -> None:
    assert share(part, whole) == said


def test_every_option_that_is_named_exists() -> None:
    from sysscan_models.config import DataOptions

    named = [key for line in OPTIONS for key in line.split(", ") if key.startswith("data.")]
    assert {key.removeprefix("data.") for key in named} <= set(DataOptions.model_fields)


# Markup --------------------------------------------------------------------------------------------------------------------


def test_elements_escape_all_that_is_no_markup() -> None:
    made = element("p", "<b>", element("b", '"&'), class_='x" onload="y', hidden=True, open=False, x=0.5)
    assert made == '<p class="x&quot; onload=&quot;y" hidden x="0.5">&lt;b&gt;<b>&quot;&amp;</b></p>'
    assert element("p", "a\u202eb", title="\x07") == '<p title="\\x07">a\\u202eb</p>'
    assert joined(["<", Html("<br>")], "") == "&lt;<br>"
    assert escaped(escaped("<")) == "&lt;"


def test_a_page_allows_its_own_style_alone() -> None:
    import base64
    import hashlib

    written = page("<x>", Html("<p>y</p>"), "p { color: red; }")
    style = written.split("<style>")[1].split("</style>")[0]
    assert style.endswith("p { color: red; }")
    assert f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}" in written.replace("&#x27;", "'")
    assert "<title>&lt;x&gt;</title>" in written


def test_spelling() -> None:
    assert visible("a\u202eb\u2028c\x00\ud800") == "a\\u202eb\nc\\x00\\ud800"
    assert one_line(" a \n b " + "c" * 300, 10) == "a b ccccc\u2026"
    assert (counted(1, "role"), counted(2000, "role")) == ("1 role", "2,000 roles")
