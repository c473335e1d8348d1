"""What preparing the splits counted, and the report of it: gathered while reading and writing, told as JSON and as a table.

Whoever gave the data must see what became of every record, so the counts are complete and the examples few; names of roles and
routing reasons are told apart only up to a limit, so that data cannot fill the memory. Nothing is read from the archive or
written here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.documents import SetAside
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Decision
from sysscan_models.prompts import redact
from sysscan_models.terminal import printable

SPLITS = ("train", "valid", "test")
REPORT = "report.json"
SET_ASIDE = "set_aside.jsonl"
REVIEW = "review.jsonl"
EXAMPLES = 5
"""Examples that the report names for each reason; SET_ASIDE and REVIEW name all."""
TERMS = 15
"""Routing terms that the report shows for each role."""
DISTINCT_REASONS = 20_000
"""Routing reasons that are counted one by one, so that endless ones cannot fill the memory."""
DISTINCT_ROLES = 50
"""Names of roles that are counted one by one, those of the configuration included; the data may bring any others."""
MORE_ROLES = "other names"


@dataclass
class Tally:
    """What was read and where it went, counted while reading. `known` are the names of the configured roles."""

    known: frozenset[str] = frozenset()
    documents: int = 0
    redacted: int = 0
    review: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    routed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count_route(self, decision: Decision) -> None:
        """Count a decision; the data may name a role of its own in every document, and only so many are told apart."""
        name = decision.role
        if name not in self.known and name not in self.routed and len(self.routed) >= DISTINCT_ROLES:
            name = MORE_ROLES
        self.routed[name] += 1
        for reason in decision.reasons:
            if (name, reason) in self.reasons or len(self.reasons) < DISTINCT_REASONS:
                self.reasons[name, reason] += 1

    def count_set_aside(self, entry: SetAside) -> dict[str, str]:
        """Count what was set aside, keep it as an example while there are few, and return its line for SET_ASIDE, redacted."""
        named = {"source": redact(entry.source), "reason": entry.reason, "detail": redact(entry.detail)}
        self.set_aside[entry.reason] += 1
        shown = self.examples.setdefault(entry.reason, [])
        if len(shown) < EXAMPLES:
            shown.append({key: value for key, value in named.items() if value and key != "reason"})
        return named

    def top_terms(self, role: str) -> dict[str, int]:
        """Return the most frequent routing reasons of a role with their counts, at most TERMS."""
        found = [(reason, count) for (name, reason), count in self.reasons.items() if name == role]
        return dict(sorted(found, key=lambda item: (-item[1], item[0]))[:TERMS])


@dataclass
class Divided:
    """What was kept, counted while writing."""

    counts: dict[str, dict[str, int]]
    kinds: dict[str, Counter[str]]
    duplicates: int = 0
    duplicate_examples: list[dict[str, str]] = field(default_factory=list)
    digest: str = ""

    @property
    def kept(self) -> int:
        """The number of examples in all splits of all roles."""
        return sum(sum(counts.values()) for counts in self.counts.values())


def report_of(archive: Path, digest: str, seed: int, tally: Tally, divided: Divided) -> dict[str, Any]:
    """Return the report on an archive, as plain JSON values; `digest` is the archive's SHA-256."""
    return {
        "archive": redact(archive.name),
        "archive_sha256": digest,
        "seed": seed,
        "read": tally.documents,
        "kept": divided.kept,
        "duplicates": divided.duplicates,
        "duplicate_examples": divided.duplicate_examples,
        "redacted": tally.redacted,
        "set_aside": {
            reason: {"count": count, "examples": tally.examples[reason]} for reason, count in sorted(tally.set_aside.items())
        },
        "roles": {
            name: {**counts, "kinds": dict(sorted(divided.kinds[name].items()))} for name, counts in divided.counts.items()
        },
        "role_not_configured": {name: count for name, count in sorted(tally.routed.items()) if name not in divided.counts},
        "routing": {name: {"documents": count, "terms": tally.top_terms(name)} for name, count in sorted(tally.routed.items())},
        "review": tally.review,
        "notes": [
            f"{name}: the {split} split is empty; give more documents or a larger data.{split}_fraction"
            for name, counts in divided.counts.items()
            for split in ("valid", "test")
            if not counts[split]
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
    """Return the report as a table in plain text: what was read, kept, set aside, and what each role got."""
    report = read_report(root)
    rows = [(name, report[name]) for name in ("read", "kept", "duplicates", "redacted")]
    rows += [(f"for {name}, which is no role here", count) for name, count in report["role_not_configured"].items()]
    rows += [("review (near the threshold)", report["review"])] if report["review"] else []
    rows += [("set aside", set_aside_count(root))]
    rows += [(f"  {reason}", found["count"]) for reason, found in report["set_aside"].items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>9,}" for name, count in rows]
    width = max(len("role"), *(len(name) for name in report["roles"]))
    lines += ["", f"{'role':<{width}}" + "".join(f"{split:>10}" for split in SPLITS) + "  kinds"]
    for name, role in report["roles"].items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in role["kinds"].items())
        lines.append(f"{name:<{width}}" + "".join(f"{role[split]:>10,}" for split in SPLITS) + f"  {kinds}")
    lines += ["", *report["notes"]] if report["notes"] else []
    listed = [name for name, count in ((SET_ASIDE, report["set_aside"]), (REVIEW, report["review"])) if count]
    return printable("\n".join([*lines, "", f"details: {', '.join(str(Path(root) / name) for name in (REPORT, *listed))}"]))
