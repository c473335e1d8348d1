"""data_report.html: what became of the data, for a person, made from report.json alone.

One page with its style inside, without script and without the network, the same bytes for the same report. Everything that
documents and archives say is shown as text of one line, never as markup and never as a link. Nothing is counted here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sysscan_models import markup
from sysscan_models.markup import NOTHING, Html, element, joined
from sysscan_models.spelling import counted, one_line
from sysscan_models.splits import advice
from sysscan_models.splits.drawing import Branch, bar, flow, histogram

COLOURS = 6
"""Roles that have a colour of their own; further ones begin again."""
SHOWN_REASONS = 5
"""Reasons for setting aside that the picture of the flow tells apart."""
SHOWN_ROWS = 12
"""Rows of a table that are shown at once; the others are a click away."""
SPLITS = ("train", "valid", "test")


def data_page(report: Mapping[str, Any]) -> str:
    """Return the page of a report as `report_of` makes it: redacted, with every key there."""
    text = _Text(report["redactions"])
    sections = {
        "flow": ("What became of the records", _flow_section(report, text)),
        "lengths": ("Lengths", _lengths_section(report, text)),
        "routing": ("Which role learns from what", _routing_section(report, text)),
        "dropped": ("Dropped and set aside, and why", _dropped_section(report, text)),
        "redactions": ("Redactions", _redactions_section(report, text)),
        "options": ("Which option changes what", _options_section()),
    }
    contents = (element("li", element("a", title, href=f"#{name}")) for name, (title, _) in sections.items())
    header = element(
        "header",
        element("p", "sysscan-models · data report", class_="eyebrow"),
        element("h1", text(report["archive"], 120) or "Unnamed archive", class_="bidi"),
        element(
            "p", "SHA-256 ", element("code", text(report["archive_sha256"])), f" · seed {report['seed']}", class_="soft small"
        ),
        element("nav", element("ul", *contents), class_="contents", aria_label="Contents"),
        class_="top",
    )
    body = (element("section", element("h2", title), content, id=name) for name, (title, content) in sections.items())
    main = element("main", _glance(report), _advice_section(report, text), joined(body), id="content")
    whole = joined(
        [element("a", "Skip to the report", class_="skip", href="#content"), element("div", header, main, class_="page")]
    )
    css = markup.stylesheet("sysscan_models.splits", "page.css")
    return markup.page(f"Data report of {one_line(report['archive'], 80)}", whole, css)


class _Text:
    """Makes markup of what documents say: one line, cut, and the placeholders of redaction marked."""

    def __init__(self, kinds: Iterable[str]) -> None:
        names = "|".join(re.escape(kind) for kind in sorted(kinds, key=len, reverse=True))
        self._placeholder = re.compile(rf"\[(?:{names})\]") if names else None

    def __call__(self, text: object, longest: int = 200) -> Html:
        line = one_line(str(text), longest)
        if self._placeholder is None:
            return markup.escaped(line)
        parts, end = [], 0
        for found in self._placeholder.finditer(line):
            parts += [line[end : found.start()], element("mark", found[0])]
            end = found.end()
        return joined([*parts, line[end:]], "")


def _bidi(content: str) -> Html:
    return element("span", content, class_="bidi")


def _number(count: int) -> str:
    return f"{count:,}"


# Tables --------------------------------------------------------------------------------------------------------------------


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Iterable[int] = (), flow: bool = False
) -> Html:
    """Return a table whose first column heads its rows; rows beyond SHOWN_ROWS are folded. `flow`: stacked when narrow."""
    if not rows:
        return NOTHING
    shown = _rows(caption, heads, rows[:SHOWN_ROWS], frozenset(numbers), flow)
    if len(rows) <= SHOWN_ROWS:
        return shown
    folded = _rows(f"{caption} (continued)", heads, rows[SHOWN_ROWS:], frozenset(numbers), flow)
    return joined([shown, _more(f"{counted(len(rows) - SHOWN_ROWS, 'more row')}", folded)])


def _rows(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int], flow: bool) -> Html:
    def row(cells: Sequence[str]) -> Html:
        first = element("th", cells[0], role="rowheader", scope="row")
        made = (
            element("td", cell, role="cell", data_head=name if flow else False, class_="number" if place in numbers else False)
            for place, (name, cell) in enumerate(zip(heads[1:], cells[1:], strict=True), 1)
        )
        return element("tr", first, *made, role="row")

    head = (
        element("th", name, role="columnheader", scope="col", class_="number" if place in numbers else False)
        for place, name in enumerate(heads)
    )
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        element("tbody", joined(map(row, rows)), role="rowgroup"),
        role="table",
        class_="flow" if flow else False,
    )


def _more(summary: str, content: Html) -> Html:
    return element("details", element("summary", summary), content, class_="more")


def _scrolled(table: Html, label: str) -> Html:
    """Return a table that is moved sideways where it is too wide; it can be reached with the keyboard for that."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _card(title: str, *content: str) -> Html:
    return element("div", element("h3", title), *content, class_="card")


def _colour(place: int) -> str:
    return f"role-{place % COLOURS}"


# At a glance ---------------------------------------------------------------------------------------------------------------


def _glance(report: Mapping[str, Any]) -> Html:
    aside = sum(advice.set_aside(report).values())
    lost = advice.dropped(report)
    copies = lost["exact copies"] + lost["near copies"] + lost["near copies (other role)"]
    figures = [
        ("Documents read", report["read"], ""),
        ("Kept", report["kept"], _of(report["kept"], report["kept"] + sum(lost.values()) + aside, "of all records")),
        ("Copies dropped", copies, f"{lost['exact copies']:,} exact, {copies - lost['exact copies']:,} near"),
        ("Set aside", aside, f"for {counted(len(report['set_aside']), 'reason')}" if aside else ""),
        ("Documents with redactions", report["redacted"], _of(report["redacted"], report["read"], "of those read")),
        ("To review", report["review"], "near the router's threshold" if report["review"] else ""),
    ]
    cells = (
        element("div", element("dt", name), element("dd", _number(count), element("small", note) if note else NOTHING))
        for name, count, note in figures
    )
    return element("section", element("dl", *cells, class_="card glance"), aria_label="At a glance")


def _of(part: int, whole: int, of_what: str) -> str:
    return f"{advice.share(part, whole)} {of_what}" if whole else ""


def _advice_section(report: Mapping[str, Any], text: _Text) -> Html:
    found = advice.advice(report)
    if not found:
        return NOTHING
    shown, rest = (
        [element("li", _bidi(text(note, 600))) for note in notes] for notes in (found[:SHOWN_ROWS], found[SHOWN_ROWS:])
    )
    folded = _more(counted(len(rest), "more note"), element("ul", *rest, class_="points")) if rest else NOTHING
    return element(
        "section",
        element("h2", "Worth a look"),
        element("ul", *shown, class_="points"),
        folded,
        id="notes",
        class_="card notes",
    )


# What became of the records ------------------------------------------------------------------------------------------------


def _flow_section(report: Mapping[str, Any], text: _Text) -> Html:
    kept = [
        Branch(
            name,
            advice.role_total(role),
            _colour(place),
            " · ".join(f"{split} {role[split]:,}" for split in SPLITS),
            tuple((split, role[split]) for split in SPLITS),
        )
        for place, (name, role) in enumerate(report["roles"].items())
    ]
    lost = _lost(report)
    whole = sum(branch.count for branch in (*lost, *kept))
    told = "; ".join(f"{branch.label} {branch.count:,}" for branch in (*lost, *kept))
    picture = flow(lost, kept, title="What became of the records", description=one_line(f"{whole:,} records: {told}.", 2000))
    if not whole:
        picture = element("p", "The archive held no record that could be read.", class_="soft")
    cards = element("div", _splits_card(report, text), _fates_card(report, text), class_="stack")
    return element("div", _card("From the archive to the splits", picture), cards, class_="columns")


def _lost(report: Mapping[str, Any]) -> list[Branch]:
    aside = list(advice.set_aside(report).items())
    shown = [Branch(f"set aside: {reason}", count) for reason, count in aside[:SHOWN_REASONS]]
    if rest := aside[SHOWN_REASONS:]:
        shown.append(Branch(f"set aside: {counted(len(rest), 'other reason')}", sum(count for _, count in rest)))
    return shown + [Branch(name, count) for name, count in advice.dropped(report).items() if count]


def _splits_card(report: Mapping[str, Any], text: _Text) -> Html:
    rows, kinds = [], []
    for place, (name, role) in enumerate(report["roles"].items()):
        total, key = advice.role_total(role), element("span", class_=f"key {_colour(place)}")
        rows.append([joined([key, _bidi(text(name, 60))], " "), *(_number(role[split]) for split in SPLITS), _number(total)])
        mean = role["characters"] / total if total else 0
        made = ", ".join(f"{text(kind, 60)} {count:,}" for kind, count in role["kinds"].items()) or "none"
        kinds.append([_bidi(text(name, 60)), Html(made), f"{role['characters']:,}", f"{mean:,.0f}"])
    whole = [sum(role[split] for role in report["roles"].values()) for split in SPLITS]
    if len(rows) > 1:
        rows.append([element("b", "all roles"), *map(_number, whole), _number(sum(whole))])
    counts = _table("Training examples by role and split", ["Role", *SPLITS, "all"], rows, numbers=(1, 2, 3, 4))
    what = _table(
        "What they are: answer (a question with its answer), labels (a question that labels alone answer), title (explain the "
        "title), messages (given chats), text (plain)",
        ["Role", "Kinds", "Characters", "mean"],
        kinds,
        numbers=(2, 3),
    )
    return _card("Per role and split", element("div", counts, element("div", what, class_="kinds"), class_="stack"))


def _fates_card(report: Mapping[str, Any], text: _Text) -> Html:
    """Return the picture of the flow as a table, with every reason."""
    aside = [(f"set aside: {reason}", count) for reason, count in advice.set_aside(report).items()]
    fates = [("kept", report["kept"]), *((name, count) for name, count in advice.dropped(report).items() if count), *aside]
    whole = sum(count for _, count in fates)
    rows = [[_bidi(text(name, 120)), _number(count), advice.share(count, whole)] for name, count in fates]
    caption = f"Of {counted(whole, 'record')} found, {report['read']:,} were read as documents"
    return _card("Where they went", _table(caption, ["Fate", "Records", "Share"], rows, numbers=(1, 2)))


# Lengths -------------------------------------------------------------------------------------------------------------------


def _lengths_section(report: Mapping[str, Any], text: _Text) -> Html:
    roles = report["roles"]
    bounds = _bounds(role["lengths"] for role in roles.values())
    if not bounds:
        return element("p", "No document was kept.", class_="soft")
    figures = []
    for place, (name, role) in enumerate(roles.items()):
        counts = [(_length(bound), role["lengths"].get(str(bound), 0)) for bound in bounds]
        picture = histogram(
            counts,
            colour=_colour(place),
            title=f"Lengths of the documents of {one_line(name, 60)}",
            description="Characters, each bar twice as long as the one before: "
            + ", ".join(f"from {bound:,} {count:,}" for bound, (_, count) in zip(bounds, counts, strict=True) if count),
        )
        caption = element(
            "figcaption", "Documents by their number of characters, from the number below each bar", class_="small soft"
        )
        figures.append(element("figure", element("h3", _bidi(text(name, 60))), picture, caption, class_="card"))
    rows = [
        [
            f"{bound:,} to {max(2 * bound, bounds[1] if len(bounds) > 1 else 64) - 1:,}",
            *(_number(role["lengths"].get(str(bound), 0)) for role in roles.values()),
        ]
        for bound in bounds
    ]
    heads = ["Characters", *(text(name, 30) for name in roles)]
    table = _rows("Documents by length and role", heads, rows, frozenset(range(1, len(heads))), False)
    return joined(
        [
            element("div", *figures, class_="columns"),
            _more("The same as a table", _scrolled(table, "Documents by length and role")),
        ]
    )


def _bounds(found: Iterable[Mapping[str, int]]) -> list[int]:
    """Return the lower bounds of all buckets from the first to the last that hold something, empty ones between included."""
    held = sorted({int(bound) for lengths in found for bound, count in lengths.items() if count})
    if not held:
        return []
    bounds = [held[0]]
    while bounds[-1] < held[-1]:
        following = bounds[-1] * 2 or min(64, held[1])
        bounds.append(min(following, next(bound for bound in held if bound > bounds[-1])))
    return bounds


def _length(bound: int) -> str:
    """Return a bucket's bound in few characters: `64`, `1k`, `16k`, `1M`."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if bound >= size:
            return f"{bound / size:.3g}{unit}"
    return str(bound)


# Routing -------------------------------------------------------------------------------------------------------------------


def _routing_section(report: Mapping[str, Any], text: _Text) -> Html:
    roles, found_roles = list(report["roles"]), report["routing"]
    routing = {name: found_roles[name] for name in dict.fromkeys([*roles, *found_roles]) if name in found_roles}
    if not routing:
        return element("p", "No document was routed.", class_="soft")
    longest = max(found["documents"] for found in routing.values())
    colour = {name: _colour(place) for place, name in enumerate(roles)}
    rows = [
        [_bidi(text(name, 60)), _number(found["documents"]), bar(found["documents"], longest, colour.get(name, "lost"))]
        for name, found in routing.items()
    ]
    went = _table(
        "Documents by the role that they were sent to, before copies were dropped",
        ["Role", "Documents", ""],
        rows,
        numbers=(1,),
    )
    scores = [_scores(name, report, text, colour[name]) for name in roles]
    terms = [_terms(name, found, text, colour.get(name, "lost")) for name, found in routing.items() if found["terms"]]
    samples = [
        _samples(f"Sent to {one_line(name, 60)}", found["samples"], text) for name, found in routing.items() if found["samples"]
    ]
    if report["review_samples"]:
        samples.append(
            _samples(
                f"Near the threshold: {counted(report['review'], 'document')} in review.jsonl, some of them here",
                report["review_samples"],
                text,
                role=True,
            )
        )
    parts = [
        _card("Documents by role", element("div", went, class_="terms")),
        element("div", *scores, class_="columns"),
        element("div", *terms, class_="columns"),
        _card("Samples of the decisions", element("div", *samples, class_="stack")) if samples else NOTHING,
    ]
    return element("div", *parts, class_="stack")


def _scores(name: str, report: Mapping[str, Any], text: _Text, colour: str) -> Html:
    scores: Sequence[int] = report["roles"][name]["scores"]
    below = float(report["review_below"])
    marked = sum(place / max(len(scores), 1) < below - 1e-9 for place in range(len(scores)))
    columns = [(f"{place / len(scores):.2f}".rstrip("0").rstrip("."), count) for place, count in enumerate(scores)]
    picture = histogram(
        columns,
        colour=colour,
        title=f"How sure the router was of the documents of {one_line(name, 60)}",
        description=f"Scores from 0, at the threshold, to 1, beyond doubt; {sum(scores[:marked]):,} of {sum(scores):,} "
        f"documents are below {below:g}, to be reviewed.",
        marked=marked,
        mark="review",
    )
    caption = element(
        "figcaption",
        "Documents by score: 0 is at the threshold, 1 beyond doubt; the shaded ones are listed for review",
        class_="small soft",
    )
    heading = element("h3", "How sure: ", _bidi(text(name, 60)))
    return element("figure", heading, picture, caption, class_="card")


def _terms(name: str, found: Mapping[str, Any], text: _Text, colour: str) -> Html:
    longest = max(found["terms"].values())
    rows = [
        [_bidi(text(term, 60)), _number(count), bar(count, longest, colour)]
        for term, count in sorted(found["terms"].items(), key=lambda item: (-item[1], item[0]))
    ]
    heading = joined(["Terms that decided for ", _bidi(text(name, 60))], "")
    return _card(
        heading,
        element(
            "div",
            _table("In how many documents each spoke for it", ["Term", "Documents", ""], rows, numbers=(1,)),
            class_="terms",
        ),
    )


def _samples(caption: str, samples: Sequence[Mapping[str, Any]], text: _Text, *, role: bool = False) -> Html:
    rows = []
    for sample in samples:
        title = _bidi(text(sample["title"], 120) or text(sample["id"], 80) or "(no title)")
        reasons = element("ul", *(element("li", _bidi(text(reason, 80))) for reason in sample["reasons"][:8]), class_="tags")
        where = element("code", text(sample["source"], 100), class_="bidi soft")
        cells = [title, f"{sample['score']:.2f}", reasons, where]
        rows.append([*cells[:1], _bidi(text(sample.get("role", ""), 60)), *cells[1:]] if role else cells)
    heads = ["Document", *(["Role"] if role else []), "Score", "Because of", "Source"]
    return element("div", _table(caption, heads, rows, flow=True), class_="samples")


# Dropped and set aside -----------------------------------------------------------------------------------------------------


def _dropped_section(report: Mapping[str, Any], text: _Text) -> Html:
    parts = [_set_aside_card(report, text), _copies_card(report, text), _held_out_card(report, text), _roles_card(report, text)]
    found = [part for part in parts if part]
    return element("div", *found, class_="stack") if found else element("p", "Nothing was dropped or set aside.", class_="soft")


def _set_aside_card(report: Mapping[str, Any], text: _Text) -> Html:
    rows = []
    for reason, count in advice.set_aside(report).items():
        examples = (
            element(
                "li",
                element("code", text(one.get("source", ""), 120), class_="bidi"),
                " ",
                _bidi(text(one.get("detail", ""), 160)),
            )
            for one in report["set_aside"][reason]["examples"]
        )
        rows.append([_bidi(text(reason, 120)), _number(count), element("ul", *examples, class_="examples")])
    if not rows:
        return NOTHING
    table = _table("set_aside.jsonl lists all of them", ["Reason", "Records", "Examples"], rows, numbers=(1,), flow=True)
    return _card("Set aside", element("div", table, class_="reasons"))


def _copies_card(report: Mapping[str, Any], text: _Text) -> Html:
    def code(value: object) -> Html:
        return element("code", text(value, 120), class_="bidi")

    exact = [[code(pair["dropped"]), code(pair["kept"])] for pair in report["duplicate_examples"]]
    near = [[code(pair["dropped"]), code(pair["kept"]), f"{pair['similarity']:.2f}"] for pair in report["near_copy_examples"]]
    counts = [
        (_copies(report["duplicates"], "exact"), report["duplicates"]),
        (_copies(report["near_copies"], "near"), report["near_copies"]),
        (f"{_copies(report['other_role'], 'near')} of a document of the other role", report["other_role"]),
    ]
    told = ", ".join(words for words, count in counts if count)
    if not told:
        return NOTHING
    return _card(
        "Copies",
        element("p", f"{told} dropped; of each text one stays, in one split of one role.", class_="soft small caption"),
        element(
            "div",
            _table("Exact copies, some of them", ["Dropped", "Copy of"], exact, flow=True),
            _table(
                "Near copies, some of them, with their similarity (1 is equal)",
                ["Dropped", "Near copy of", "Similarity"],
                near,
                flow=True,
            ),
            class_="stack copies",
        ),
    )


def _copies(count: int, kind: str) -> str:
    return f"{count:,} {kind} {'copy' if count == 1 else 'copies'}"


def _held_out_card(report: Mapping[str, Any], text: _Text) -> Html:
    rows = [[element("code", text(file, 120), class_="bidi"), _number(count)] for file, count in report["held_out"].items()]
    if not rows:
        return NOTHING
    caption = "Documents that share a sequence of words with a file that must stay unseen"
    return _card("Overlap with held-out data", _table(caption, ["File", "Documents"], rows, numbers=(1,)))


def _roles_card(report: Mapping[str, Any], text: _Text) -> Html:
    rows = [[_bidi(text(name, 80)), _number(count)] for name, count in report["role_not_configured"].items()]
    if not rows:
        return NOTHING
    caption = "Documents whose role is none of the configuration's"
    return _card("For roles that are not configured", _table(caption, ["Role", "Documents"], rows, numbers=(1,)))


# Redactions and options ----------------------------------------------------------------------------------------------------


def _redactions_section(report: Mapping[str, Any], text: _Text) -> Html:
    found = sorted(report["redactions"].items(), key=lambda item: (-item[1], item[0]))
    if not found:
        return element("p", "Nothing that looks like a secret was found.", class_="soft")
    longest = found[0][1]
    rows = [[element("mark", f"[{text(kind, 60)}]"), _number(count), bar(count, longest, "lost")] for kind, count in found]
    caption = (
        f"{counted(sum(count for _, count in found), 'secret')} in {counted(report['redacted'], 'document')} gave way to these "
        f"placeholders, before anything was written"
    )
    return _card("By kind", element("div", _table(caption, ["Placeholder", "Times", ""], rows, numbers=(1,)), class_="terms"))


def _options_section() -> Html:
    rows = [[element("code", option), what] for option, what in advice.OPTIONS.items()]
    table = _rows("In the configuration, or with --set KEY=VALUE", ["Option", "What it decides"], rows, frozenset(), True)
    ask = element("p", "How one document went: ", element("code", "sysscan-models inspect FILE|ID"), class_="small")
    return element("div", element("div", table, class_="options"), ask, class_="card stack")
