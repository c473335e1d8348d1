"""The analysis in its four formats: complete, and with nothing in it that a finding could run, load or break out of."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import orjson
import pytest
from markdown_it import MarkdownIt
from pages_cases import HOSTILE, analysed, hostile, many

from sysscan_langgraph.analysis.records import AnalysisReport, ComplianceGap, Correlation, FindingAnalysis, LeftOut
from sysscan_langgraph.pages import FORMATS, figures, redacted, render
from sysscan_langgraph.pages.markdown import escaped, fenced
from sysscan_langgraph.pages.spelling import cut, duration, one_line, visible
from sysscan_langgraph.pages.summary import as_text
from sysscan_models.errors import MissingExtra

VOID = {"meta", "input", "br", "link", "img", "rect"}
REPORTS = {"sample": analysed, "part": lambda: analysed(keep=12), "hostile": hostile, "empty": AnalysisReport}


class Page(HTMLParser):
    """What a page consists of: tags with their attributes, text by tag, and whether every tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text, self.style = "", ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_loads_nothing_and_runs_nothing(name: str) -> None:
    page = Page(render(REPORTS[name](), "html"))
    assert not page.of("script", "link", "iframe", "object", "embed", "img", "form", "base", "video", "audio", "image", "use")
    for tag, attributes in page.tags:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on"), (tag, attribute)
            assert attribute not in ("src", "srcset", "style", "action", "formaction", "data", "poster", "xlink:href", "ping")
            assert attribute != "href" or (value or "").startswith("#")
    assert not re.search(r"url\(|@import|expression", page.style)


@pytest.mark.parametrize("name", REPORTS)
def test_the_pages_own_policy_allows_its_stylesheet_and_nothing_else(name: str) -> None:
    page = Page(render(REPORTS[name](), "html"))
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert len(page.of("style")) == 1


@pytest.mark.parametrize("name", REPORTS)
def test_every_link_leads_to_one_place_on_the_page(name: str) -> None:
    page = Page(render(REPORTS[name](), "html"))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) <= {1}
    assert {str(link["href"])[1:] for link in page.of("a")} <= ids.keys()


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_can_be_read_by_a_machine(name: str) -> None:
    page = Page(render(REPORTS[name](), "html"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert page.of("html") == [{"lang": "en"}]
    assert all("scope" in header for header in page.of("th"))
    assert all(drawing.get("aria-hidden") == "true" or drawing.get("role") == "img" for drawing in page.of("svg"))
    labels = [tag for tag, _ in page.tags if tag == "label"]
    assert len(labels) == len(page.of("input", "select"))


def test_the_page_holds_the_whole_analysis() -> None:
    report = analysed(keep=12)
    page = Page(render(report, "html"))
    text = " ".join(page.text.split())
    for one in report.analyses:
        wanted = [one.title, one.finding_id, *one.evidence, *one.remediation, *one.techniques, *one.controls]
        assert all(" ".join(piece.split()) in text for piece in wanted)
    assert report.correlations[0].rationale in text
    assert "30 findings: time budget" in text
    assert "specialist_model_q4km" in text
    assert "48,211 read, 15,020 written" in text
    assert "1 min 23 s" in text
    assert "specialist: medium, scanner: high" in text
    assert [summary for summary in page.of("details") if "open" in summary]
    assert "1 critical, 4 high, 3 medium, 4 low, 0 info" in [drawing.get("aria-label") for drawing in page.of("svg")]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_shows_as_text(number: int) -> None:
    page = Page(render(hostile(), "html"))
    shown, text = " ".join(page.text.split()), one_line(HOSTILE[number], 2000)
    assert shown.count(text) >= 5  # summary, points, analysis, facts, evidence


def test_nothing_invisible_is_left_in_any_format() -> None:
    for form in ("html", "md", "text"):
        made = render(hostile(), form)
        made.encode()  # a half character would raise
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\U000e0041]", made)
        assert "\\u202e" in made


def test_a_template_that_forgets_a_filter_still_escapes_and_spells() -> None:
    from sysscan_langgraph.pages.page import _environment

    made = _environment().from_string("{{ a }}{{ a|upper }}").render(a="<b>\u202e'")
    assert made == "&lt;b&gt;\\u202e&#39;&lt;B&gt;\\u202e&#39;"


def test_a_report_of_real_size_is_a_small_page() -> None:
    made = render(many(234), "html")
    assert len(made.encode()) < 1_500_000
    assert made.count('<details class="finding ') == 234


def test_endless_text_is_cut_and_says_so() -> None:
    one = analysed(keep=1).analyses[0].model_copy(update={"evidence": ("x" * 2_000_000,), "title": "y" * 100_000})
    made = render(AnalysisReport(analyses=(one,)), "html")
    assert len(made) < 100_000
    assert "(1,996,000 more characters)" in made


def test_html_without_jinja2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("sysscan_langgraph.pages.page.find_spec", lambda name: None if name == "jinja2" else found(name))
    with pytest.raises(MissingExtra, match=r"the HTML page needs the Python package 'jinja2'.*sysscan-models\[langgraph\]"):
        render(AnalysisReport(), "html")


# Markdown


def tokens(made: str) -> list[Any]:
    top = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(made)
    return [token for block in top for token in (block, *(block.children or ()))]


@pytest.mark.parametrize("name", REPORTS)
def test_markdown_holds_no_markup_of_a_finding(name: str) -> None:
    report = REPORTS[name]()
    found = tokens(render(report, "md"))
    kinds = {token.type for token in found}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "code_block", "hr", "blockquote_open"}
    assert not kinds & {"em_open", "strong_open", "s_open"}
    titles = [b.content for a, b in pairwise(found) if a.type == "heading_open" and a.tag in ("h1", "h2")]
    own = ["Executive summary", "Findings by severity", "Key findings", "Recommendations", "Findings by technique"]
    own += ["Findings by control", "Correlations", "Compliance gaps", "Findings", "Left out", "Warnings", "About this analysis"]
    assert set(titles[1:]) <= set(own)
    fences = [token.content for token in found if token.type == "fence"]
    assert fences == [f"{cut(chr(10).join(g.lead.evidence), 4000)}\n" for g in figures.groups(report) if g.lead.evidence]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "1. one", "2) two", "-x", "+ y", "a_b _c_", "#x", "===", "~/bin & &amp; C:\\x", ">q"]
)
def test_escaped_markdown_reads_as_what_it_was(text: str) -> None:
    top = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(escaped(text))
    assert [token.type for token in top] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in top[1].children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in top[1].children or ()) == one_line(text, 2000)


@pytest.mark.parametrize(
    "text", ["@octocat", "see @octocat", "\u00e9@org/team", "a@b.example", "#12", "owner/repo#12", "GH-7", "gh-7"]
)
def test_markdown_calls_nobody_and_no_issue(text: str) -> None:
    top = MarkdownIt("commonmark").parse(escaped(text))
    shown = "".join(child.content for child in top[1].children or ())
    assert shown.replace("\u200b", "") == text
    assert not re.search(r"@\w|#\d|GH-\d", shown, re.IGNORECASE)


def test_markdown_makes_no_links_of_addresses_where_bare_ones_are_linked() -> None:
    made = render(hostile(), "md")
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", made, flags=re.DOTALL | re.MULTILINE)
    assert r"http\://" in outside
    assert "http://" not in outside
    assert "www.ex" not in outside


def test_a_fence_is_longer_than_any_in_it() -> None:
    assert fenced("a\n`````\nb").splitlines() == ["``````text", "a", "`````", "b", "``````"]


def test_markdown_holds_the_whole_analysis() -> None:
    report = analysed(keep=12)
    made = render(report, "md")
    assert "### F1: Process runs from a deleted file in shared memory (critical, risk 94)" in made
    assert "Specialist: medium, scanner: high." in made
    assert "did not finish this answer (length)" in made
    assert "30 findings: time budget." in made
    assert "| 11.5.2 | critical | F1 | Watch critical files for changes. Compare them weekly. |" in made


# JSON and text


def test_json_is_the_record() -> None:
    report = analysed()
    assert AnalysisReport.model_validate(orjson.loads(render(report, "json"))) == report


@pytest.mark.parametrize("form", FORMATS)
def test_secrets_are_redacted_in_every_format(form: Any) -> None:
    token = "hf_" + "a1B2" * 8
    one = (
        analysed(keep=1).analyses[0].model_copy(update={"analysis": f"It holds {token}.", "title": token, "evidence": (token,)})
    )
    made = render(AnalysisReport(analyses=(one,), executive_summary=token), form)
    assert token not in made
    assert "HF_TOKEN" in made


def test_the_text_says_what_matters() -> None:
    made = as_text(analysed(keep=12), top=2)
    assert re.search(r"^critical +█+ +1 +1 +1$", made, re.MULTILINE)
    assert re.search(r"^high +█{32} +4 +3 +4$", made, re.MULTILINE)
    assert "CRITICAL  F1  Process runs from a deleted file in shared memory" in made
    assert "The 2 worst of 12 different findings" in made
    assert "HIGH  F3" not in made
    assert "30 findings, time budget: F13, F14, F15, F16, F17, F18, F19, F20 and 22 more" in made
    assert "PCI DSS 11.5.2: critical  [F1]" in made
    assert "the answer is not finished (length)" in made
    assert "specialist: an answer was no JSON  [/dev/shm/.x/upd (deleted):3120]" in made
    assert max(map(len, made.splitlines())) <= 100


def test_the_text_has_colours_only_where_they_are_wanted() -> None:
    assert "\x1b[" not in as_text(analysed())
    assert "\x1b[1;31mCRITICAL\x1b[0m" in as_text(analysed(), colour=True)


def test_rich_interprets_nothing_in_the_text() -> None:
    report = AnalysisReport(host="[red]x[/red] :smile:", executive_summary="[link=http://x]y[/link] [/] :bomb:")
    made = as_text(report, colour=True)
    assert "[red]x[/red] :smile:" in made
    assert "[link=http://x]y[/link] [/] :bomb:" in made


# Figures and spelling


def one(alias: str, severity: Any, reported: str, **fields: Any) -> FindingAnalysis:
    return FindingAnalysis(alias=alias, finding_id=alias, severity=severity, reported_severity=reported, **fields)


@pytest.mark.parametrize(
    ("said", "reported", "rated"),
    [
        ("info", "critical", "critical"),
        ("high", "low", "high"),
        ("low", "none", "low"),
        ("info", " HIGH ", "high"),
        ("info", "", "info"),
    ],
)
def test_a_finding_is_rated_by_the_worse_of_both(said: Any, reported: str, rated: str) -> None:
    assert figures.rating(one("F1", said, reported)) == rated


def test_findings_at_least_so_severe_count_those_that_were_left_out() -> None:
    left = LeftOut(alias="F3", finding_id="3", title="late", severity="critical", reason="time budget")
    odd = LeftOut(alias="", finding_id="", title="odd", severity="?", reason="failed")
    report = AnalysisReport(analyses=(one("F1", "info", "high", title="a"), one("F2", "low", "low")), left_out=(left, odd))
    assert figures.at_least(report, "high") == [("critical", "late"), ("high", "a")]
    assert figures.at_least(report, "critical") == [("critical", "late")]
    assert len(figures.at_least(report, "info")) == 3


def test_equal_findings_are_one_group_as_severe_as_the_worst() -> None:
    report = AnalysisReport(
        analyses=(one("F1", "high", "high", risk_score=3), one("F2", "low", "low"), one("F3", "low", "critical", same_as="F2"))
    )
    assert [(group.aliases, group.severity) for group in figures.groups(report)] == [
        (("F2", "F3"), "critical"),
        (("F1",), "high"),
    ]


def test_what_rests_on_findings_is_rated_as_the_worst_of_them() -> None:
    shared = {"finding_ids": (), "aliases": ("F1", "F9")}
    groups = tuple(
        Correlation(id=name, kind="path", value="/x", title="t", severity="low", finding_ids=(), aliases=aliases)
        for name, aliases in (("C1", ("F9",)), ("C2", ("F1", "F9")))
    )
    gap = ComplianceGap(standard="CIS", control="1", severity="low", **shared)
    report = AnalysisReport(analyses=(one("F1", "low", "critical"),), correlations=groups, compliance_gaps=(gap,))
    assert [(severity, group.id) for severity, group in figures.correlations(report)] == [("critical", "C2"), ("low", "C1")]
    assert figures.gaps_by_standard(report) == [("CIS", [("critical", gap)])]


def test_bars_count_a_finding_once_and_take_the_worst_rating() -> None:
    report = AnalysisReport(
        analyses=(one("F1", "low", "low", techniques=("T1", "T1", " ")), one("F2", "info", "high", techniques=("T1", "T2")))
    )
    assert figures.by_technique(report) == [figures.Bar("T1", ("F1", "F2"), "high"), figures.Bar("T2", ("F2",), "high")]


def test_spelling() -> None:
    assert visible("a\x1b[31m\u202e\r\n\tb\ud800👩\u200d🔬é") == "a\\x1b[31m\\u202e\n\tb\\ud800👩\u200d🔬é"
    assert visible("a\u3164\u115f\u2800\ufe0f\U000e0100") == "a\\u3164\\u115f\\u2800\\ufe0f\\U000e0100"
    assert visible("\u26a0\ufe0f\ufe0f") == "\u26a0\ufe0f\\ufe0f"
    assert one_line("a\n  b" + "c" * 300, 6) == "a bcc…"
    assert cut("abc", 2) == "ab… (1 more characters)"
    assert [duration(s) for s in (0.44, 12.3, 83, 3725)] == ["0.4 s", "12 s", "1 min 23 s", "1 h 2 min"]


def test_redacting_keeps_everything_else() -> None:
    assert redacted(analysed()) == analysed()
