"""What preparing the splits counted, and the report of it: gathered while reading and writing, told as JSON and as a table.

Whoever gave the data must see what became of every record, so the counts are complete and the examples few; names of roles and
routing reasons are told apart only up to a limit, so that data cannot fill the memory. Nothing is read from the archive or
written here.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.corpus.containers import shown
from sysscan_models.documents import SetAside
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Decision
from sysscan_models.prompts import redact
from sysscan_models.spelling import counted, one_line
from sysscan_models.splits.advice import advice, set_aside
from sysscan_models.terminal import printable

SPLITS = ("train", "valid", "test")
REPORT = "report.json"
SET_ASIDE = "set_aside.jsonl"
REVIEW = "review.jsonl"
DROPPED = "dropped.jsonl"
PAGE = "data_report.html"
EXAMPLES = 5
"""Examples that the report names for each reason; SET_ASIDE, DROPPED and REVIEW name all."""
TERMS = 15
"""Routing terms that the report shows for each role."""
DISTINCT_REASONS = 20_000
"""Routing reasons that are counted one by one, so that endless ones cannot fill the memory."""
SAMPLES = 6
"""Documents that the report shows for each role, and for review."""
SCORES = 20
"""Steps of the histogram of how sure the router was."""
DISTINCT_ROLES = 50
"""Names of roles that are counted one by one, those of the configuration included; the data may bring any others."""
MORE_ROLES = "other names"
WIDTH = 80
"""Columns of the text for a terminal."""
SHOWN_KINDS = 5
"""Kinds of redactions that this text names; the others are counted."""
SHOWN_REASONS = 15
"""Reasons for setting aside that it names."""


@dataclass
class Tally:
    """What was read and where it went, counted while reading. `known` are the names of the configured roles."""

    known: frozenset[str] = frozenset()
    documents: int = 0
    redacted: int = 0
    review: int = 0
    redactions: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    """Documents that were read and set aside by what they are like."""
    held_out: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    routed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    review_samples: list[dict[str, Any]] = field(default_factory=list)

    def count_route(self, decision: Decision, line: Mapping[str, Any] | None = None, *, review: bool = False) -> None:
        """Count a decision; the data may name a role of its own in every document, and only so many are told apart.

        `line` is what is told about the document if it becomes a sample.
        """
        name = self._role_name(decision.role)
        self.routed[name] += 1
        self.review += review
        for reason in decision.reasons:
            if (name, reason) in self.reasons or len(self.reasons) < DISTINCT_REASONS:
                self.reasons[name, reason] += 1
        if line is not None:
            _append(self.review_samples if review else self.samples.setdefault(name, []), line)

    def wants_sample(self, decision: Decision, *, review: bool) -> bool:
        """Say whether there are too few samples of such decisions yet."""
        name = self._role_name(decision.role)
        return len(self.review_samples if review else self.samples.get(name, ())) < SAMPLES

    def _role_name(self, name: str) -> str:
        if name not in self.known and name not in self.routed and len(self.routed) >= DISTINCT_ROLES:
            return MORE_ROLES
        return name

    def count_set_aside(self, entry: SetAside) -> dict[str, str]:
        """Count what was set aside, keep it as an example while there are few, and return its line for SET_ASIDE, redacted."""
        named = {"source": redact(entry.source), "reason": entry.reason, "detail": redact(entry.detail)}
        self.set_aside[entry.reason] += 1
        told = {key: value for key, value in named.items() if value and key != "reason"}
        _append(self.examples.setdefault(entry.reason, []), told, limit=EXAMPLES)
        return named

    def add(self, other: Tally) -> None:
        """Add what a later batch counted."""
        self.documents += other.documents
        self.redacted += other.redacted
        self.judged += other.judged
        self.review += other.review
        self.redactions.update(other.redactions)
        self.held_out.update(other.held_out)
        self.set_aside.update(other.set_aside)
        for name, count in other.routed.items():
            self.routed[self._role_name(name)] += count
        for (name, reason), count in other.reasons.items():
            key = (self._role_name(name), reason)
            if key in self.reasons or len(self.reasons) < DISTINCT_REASONS:
                self.reasons[key] += count
        for reason, examples in other.examples.items():
            _append(self.examples.setdefault(reason, []), *examples, limit=EXAMPLES)
        for name, samples in other.samples.items():
            _append(self.samples.setdefault(self._role_name(name), []), *samples)
        _append(self.review_samples, *other.review_samples)

    def top_terms(self, role: str) -> dict[str, int]:
        """Return the most frequent routing reasons of a role with their counts, at most TERMS."""
        found = [(reason, count) for (name, reason), count in self.reasons.items() if name == role]
        return dict(sorted(found, key=lambda item: (-item[1], item[0]))[:TERMS])


def _append(shown: list[Any], *items: Any, limit: int = SAMPLES) -> None:
    shown.extend(items[: max(0, limit - len(shown))])


@dataclass
class RoleCounts:
    """What one role got."""

    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    kinds: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Examples by the largest power of two that their length in characters reaches."""
    scores: list[int] = field(default_factory=lambda: [0] * SCORES)
    """Examples by how sure the router was, from 0 to 1."""


@dataclass
class Divided:
    """What was kept, counted while writing."""

    roles: dict[str, RoleCounts]
    duplicates: int = 0
    duplicate_examples: list[dict[str, str]] = field(default_factory=list)
    near_copies: int = 0
    near_copy_examples: list[dict[str, Any]] = field(default_factory=list)
    other_role: int = 0
    largest_unit: int = 0
    """Documents of the largest group that is kept together because it is alike."""
    digest: str = ""

    @property
    def kept(self) -> int:
        """The number of examples in all splits of all roles."""
        return sum(sum(role.splits.values()) for role in self.roles.values())

    def count_duplicate(self, kept: str, dropped: str) -> None:
        """Count an exact copy, by the sources of both."""
        self.duplicates += 1
        _append(self.duplicate_examples, {"kept": kept, "dropped": dropped}, limit=EXAMPLES)

    def count_near_copy(self, kept: str, dropped: str, similarity: float) -> None:
        """Count a near copy, by the sources of both."""
        self.near_copies += 1
        shown = {"kept": kept, "dropped": dropped, "similarity": round(similarity, 2)}
        _append(self.near_copy_examples, shown, limit=EXAMPLES)


def report_of(archive: Path, digest: str, seed: int, tally: Tally, divided: Divided, *, review_below: float) -> dict[str, Any]:
    """Return the report on an archive, as plain JSON values; `digest` is the archive's SHA-256."""
    return {
        "archive": redact(shown(archive.name)),
        "archive_sha256": digest,
        "seed": seed,
        "read": tally.documents,
        "kept": divided.kept,
        "duplicates": divided.duplicates,
        "duplicate_examples": divided.duplicate_examples,
        "near_copies": divided.near_copies,
        "near_copy_examples": divided.near_copy_examples,
        "other_role": divided.other_role,
        "largest_unit": divided.largest_unit,
        "held_out": dict(sorted(tally.held_out.items())),
        "redacted": tally.redacted,
        "redactions": dict(sorted(tally.redactions.items())),
        "set_aside": {
            reason: {"count": count, "examples": tally.examples[reason]} for reason, count in sorted(tally.set_aside.items())
        },
        "roles": {
            name: {
                **role.splits,
                "kinds": dict(sorted(role.kinds.items())),
                "characters": role.characters,
                "lengths": {str(length): count for length, count in sorted(role.lengths.items())},
                "scores": role.scores,
            }
            for name, role in divided.roles.items()
        },
        "role_not_configured": {name: count for name, count in sorted(tally.routed.items()) if name not in divided.roles},
        "routing": {
            name: {"documents": count, "terms": tally.top_terms(name), "samples": tally.samples.get(name, [])}
            for name, count in sorted(tally.routed.items())
        },
        "review": tally.review,
        "review_below": review_below,
        "review_samples": tally.review_samples,
        "notes": [
            f"{name}: the {split} split is empty; give more documents or a larger data.{split}_fraction"
            for name, role in divided.roles.items()
            for split in ("valid", "test")
            if not role.splits[split]
        ],
    }


def read_report(root: Path) -> dict[str, Any]:
    """Return the report that `prepare` left in its output folder; raise UserError when there is none."""
    try:
        report = orjson.loads((Path(root) / REPORT).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{root} holds no readable {REPORT} ({error}); run `sysscan-models prepare` first") from error
    if not isinstance(report, dict):
        raise UserError(f"{Path(root) / REPORT} is not a report of `sysscan-models prepare`; run it again")
    return report


def set_aside_count(root: Path) -> int:
    """Return how many members and records were set aside."""
    return sum(reason["count"] for reason in read_report(root)["set_aside"].values())


def report_text(root: Path) -> str:
    """Return the report for a terminal or a pipe: what was read, kept, dropped and set aside, what each role got, and advice.

    Lines have at most WIDTH columns, but for the paths at the end, each on a line of its own.
    """
    report = read_report(root)
    rows = [*_read_rows(report), *_lost_rows(report)]
    width = max(len(name) for name, _, _ in rows)
    lines = [line for name, count, more in rows for line in _wrapped(f"{name:<{width}}  {count:>9,}", more)]
    width = max(len("role"), *(len(_name(name)) for name in report["roles"]))
    lines += ["", f"{'role':<{width}}" + "".join(f"{split:>10}" for split in SPLITS) + "  kinds"]
    for name, role in report["roles"].items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in role["kinds"].items())
        lines += _wrapped(f"{_name(name):<{width}}" + "".join(f"{role[split]:>10,}" for split in SPLITS), kinds)
    for note in advice(report):
        lines += ["", *textwrap.wrap(one_line(note, 1000), WIDTH, break_on_hyphens=False)]
    paths = [Path(root) / name for name in (PAGE, REPORT, SET_ASIDE, DROPPED, REVIEW)]
    lines += ["", "details:", *(f"  {path}" for path in paths if path.is_file() and path.stat().st_size)]
    return printable("\n".join(lines))


def _read_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield what was read and kept: name, count, and more about it."""
    found = sorted(report["redactions"].items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{kind} {count:,}" for kind, count in found[:SHOWN_KINDS]]
    more = [counted(len(found) - SHOWN_KINDS, "more kind")] if len(found) > SHOWN_KINDS else []
    yield "read", report["read"], ""
    yield "kept", report["kept"], ""
    yield "redacted", report["redacted"], ", ".join([*kinds, *more])
    if report["review"]:
        yield "review (near the threshold)", report["review"], ""


def _lost_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield what was dropped and what was set aside, in the same way."""
    yield "duplicates", report["duplicates"], ""
    yield "near copies", report["near_copies"], ""
    if report["other_role"]:
        yield "near copies in the other role", report["other_role"], ""
    for file, count in report["held_out"].items():
        yield f"overlaps with {one_line(file, 32)}", count, ""
    for name, count in report["role_not_configured"].items():
        yield f"for {_name(name)}, which is no role here", count, ""
    aside = list(set_aside(report).items())
    yield "set aside", sum(count for _, count in aside), ""
    for reason, count in aside[:SHOWN_REASONS]:
        yield f"  {one_line(reason, 40)}", count, ""
    if rest := aside[SHOWN_REASONS:]:
        yield f"  {counted(len(rest), 'other reason')}", sum(count for _, count in rest), ""


def _name(text: str) -> str:
    """Return a name that data chose, short enough for a table."""
    return one_line(text, 20)


def _wrapped(head: str, more: str) -> list[str]:
    """Return a line with something behind it, which goes on below itself where it is too long."""
    if not more:
        return [head]
    room = max(WIDTH - len(head) - 2, 20)
    first, *others = textwrap.wrap(one_line(more, 1000), room)
    return [f"{head}  {first}", *(f"{'':<{len(head)}}  {line}" for line in others)]
