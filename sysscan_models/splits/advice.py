"""What a person should look at in a report on prepared data, and which option changes it: one sentence each.

Told in the terminal and on the page alike. Nothing is judged here that the report does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SMALL_SHARE = 0.05
"""Share of the kept documents below which a role is called small."""
MANY_COPIES = 0.2
"""Share of what could be learnt from, above which copies are called many."""
MANY_SET_ASIDE = 0.1
"""The same for records that were set aside."""
MANY_TO_REVIEW = 0.15
"""The same for documents near the router's threshold."""

OPTIONS: Mapping[str, str] = {
    "data.valid_fraction, data.test_fraction": "how many documents (or families) are held out of training",
    "data.family_key": "which key of a record names the origin that splits must not divide",
    "data.near_copies": "how alike two documents must be for one of them to be dropped; 1 drops exact copies only",
    "data.kept_together": "how alike two documents must be to share a split and a role",
    "data.held_out, data.held_out_words": "which files must not be learnt from, and how many words in a row are an overlap",
    "data.quality": "how long, how textual and how varied a document must be; the others are set aside",
    "data.redact_public_ips": "whether public IP addresses become placeholders too",
    "data.max_member_bytes, data.max_record_bytes": "how large a member or a record may be",
    "router.threshold": "how sure the router must be to send a document to the specialist",
    "router.allow, router.deny": "words that decide for or against the specialist, whatever the rest says",
    '"role" in a record': "which role learns from it, whatever the router thinks",
    "seed": "which documents are held out",
}
"""What changes a report like this: option -> what it decides."""


def dropped(report: Mapping[str, Any]) -> dict[str, int]:
    """Return how many documents were read but not kept, by the reason; what was set aside is not among them."""
    return {
        "exact copies": report["duplicates"],
        "near copies": report["near_copies"],
        "near copies (other role)": report["other_role"],
        "held-out overlaps": sum(report["held_out"].values()),
        "role not configured": sum(report["role_not_configured"].values()),
    }


def set_aside(report: Mapping[str, Any]) -> dict[str, int]:
    """Return how many records were set aside, by the reason, the most frequent first."""
    counts = {reason: found["count"] for reason, found in report["set_aside"].items()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def role_total(role: Mapping[str, Any]) -> int:
    """Return how many documents a role got in all of its splits."""
    return int(role["train"] + role["valid"] + role["test"])


def advice(report: Mapping[str, Any]) -> list[str]:
    """Return what deserves a look, the report's own notes first; empty when all is well."""
    return [*report["notes"], *_of_roles(report), *_of_losses(report)]


def _of_roles(report: Mapping[str, Any]) -> Iterator[str]:
    kept = report["kept"]
    for name, role in report["roles"].items():
        total = role_total(role)
        if not role["train"]:
            yield f"{name}: no training example; give documents for it, or move router.threshold"
        elif total < SMALL_SHARE * kept:
            yield (
                f"{name}: only {total:,} of {kept:,} documents ({share(total, kept)}); look at the samples of the other roles, "
                f"and move router.threshold if its documents are among them"
            )
    for name, count in report["role_not_configured"].items():
        yield f"{name}: the data name this role for {_documents(count)}, but the configuration has none of that name"


def _of_losses(report: Mapping[str, Any]) -> Iterator[str]:
    aside, lost = sum(set_aside(report).values()), dropped(report)
    whole = report["kept"] + sum(lost.values())
    copies = report["duplicates"] + report["near_copies"] + report["other_role"]
    if copies > MANY_COPIES * whole:
        yield (
            f"{_documents(copies)} ({share(copies, whole)}) were copies of others; if they should have counted, "
            f"raise data.near_copies (1 drops exact copies only)"
        )
    if report["other_role"]:
        yield (
            f"{_documents(report['other_role'])} were nearly the same as one of the other role and were dropped, so that no "
            f'text is learnt by both; a "role" in the records says whose they are'
        )
    if aside > MANY_SET_ASIDE * (whole + aside):
        reason = next(iter(set_aside(report)))
        yield f"{share(aside, whole + aside)} of the records were set aside, most of them for: {reason}"
    if report["review"] > MANY_TO_REVIEW * whole:
        yield (
            f"{_documents(report['review'])} ({share(report['review'], whole)}) are near the router's threshold: read some in "
            f"review.jsonl, and label such documents or fit the router to your own labels"
        )


def share(part: int, whole: int) -> str:
    """Return a share for a reader: `12%`, `0.4%`, `under 0.1%`; what is not all is never called 100%."""
    percent = 100 * part / whole if whole else 0.0
    if percent and percent < 0.1:
        return "under 0.1%"
    if 99 < percent < 100:
        return f"{percent:.1f}%" if percent < 99.95 else "over 99.9%"
    return f"{percent:.0f}%" if percent >= 10 or percent == int(percent) else f"{percent:.1f}%"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"
