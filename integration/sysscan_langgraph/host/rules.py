"""Rules that the host could add: patterns in the titles of findings that no correlation explains yet.

Conditions are counted, never written by a model: a rule decides about scores, and a finding's text could talk a model into one.
The specialist only adds why a pattern matters. Rules are edited in place, because the host drops what a provider returns here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sysscan_langgraph.host.aliases import USER, Aliases
from sysscan_langgraph.host.asking import Answer
from sysscan_langgraph.host.findings import HostFinding, worst
from sysscan_langgraph.host.scan import Opinion
from sysscan_langgraph.host.shapes import listed
from sysscan_models.documents import Document

LEAST_RISK, LEAST_FINDINGS, MOST_RULES = 10, 2, 10
"""What a finding must risk to matter here, how many findings make a pattern, and how many patterns are enough."""

Pattern = tuple[tuple[str, ...], list[HostFinding]]
"""Words, and the findings whose titles have them."""

_WORD = re.compile(r"[a-z][a-z0-9_-]{3,}")
_DELTAS = {"critical": 15, "high": 10}


def suggest(
    findings: Sequence[HostFinding], names: Aliases, explained: Collection[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, list[HostFinding]]]:
    """Return rules for what recurs, the most frequent first, and by the id of each rule the findings that it is made of.

    `explained` are the ids of findings that correlations refer to.
    """
    left = [finding for finding in findings if _matters(finding) and finding.id not in explained]
    words = {id(finding): _words(finding.title, names) for finding in left}
    groups: list[Pattern] = []
    for key in (lambda finding: words[id(finding)], lambda finding: words[id(finding)][:1]):
        whole = _grouped(left, key)
        groups += whole
        taken = {id(finding) for _, members in whole for finding in members}
        left = [finding for finding in left if id(finding) not in taken]
    groups += _sharing(left, words)
    rules, members_of = [], {}
    for shared, members in sorted(groups, key=lambda group: (-len(group[1]), group[0]))[:MOST_RULES]:
        rule = _rule(shared, members)
        rules.append(rule)
        members_of[rule["id"]] = members
    return rules, members_of


def refine(suggestions: Sequence[Any], examples: Mapping[str, Sequence[str]] | None = None) -> None:
    """Add, in place, what all example titles of a rule have in common, and the tag `refined`. What is no rule is left alone."""
    for rule in suggestions:
        if not isinstance(rule, dict):
            continue
        titles = [str(title) for title in listed((examples or {}).get(str(rule.get("id") or "")))]
        conditions = [condition for condition in listed(rule.get("conditions")) if isinstance(condition, dict)]
        known = {str(condition.get("contains")).lower() for condition in conditions}
        shared = set.intersection(*(set(_WORD.findall(title.lower())) for title in titles)) if titles else set()
        added = sorted(shared - known)[:3]
        rule["conditions"] = [*conditions, *({"field": "title", "contains": word} for word in added)]
        rule.setdefault("logic", "all")
        if added:
            rule["rationale"] = _joined(rule.get("rationale"), f"all examples say: {', '.join(added)}")
        rule["tags"] = list(dict.fromkeys([*map(str, listed(rule.get("tags"))), "refined"]))


def explain(rule: dict[str, Any], answer: Answer) -> None:
    """Add, in place, why the specialist thinks that a pattern matters, and the techniques that it named."""
    if analysis := answer.text("analysis"):
        rule["rationale"] = _joined(rule.get("rationale"), f"specialist: {' '.join(analysis.split())[:300]}")
    techniques = [f"attack:{name}" for name in answer.texts("techniques")]
    rule["tags"] = list(dict.fromkeys([*map(str, listed(rule.get("tags"))), *techniques]))


def question(rule: Mapping[str, Any], examples: Sequence[str], names: Aliases) -> Document:
    """Return a rule as the specialist is asked about it: the pattern and some titles that it matches."""
    conditions = [condition for condition in listed(rule.get("conditions")) if isinstance(condition, Mapping)]
    pattern = "; ".join(names.line(" contains ".join(map(str, condition.values()))) for condition in conditions[:6])
    titles = "\n".join(names.line(str(title)) for title in examples[:5])
    parts = (f"Several findings match: {pattern}" if pattern else "", titles)
    return Document(id="", title=names.line(str(rule.get("title") or "")), description="\n".join(filter(None, parts)))


def answer_for(members: Sequence[HostFinding], opinions: Sequence[Opinion]) -> Answer:
    """Return what the specialist said about the worst of a rule's findings that it was asked about."""
    said = {id(finding): answer for finding, answer in opinions if answer.values}
    known = [said[id(finding)] for finding in sorted(members, key=lambda finding: finding.rank) if id(finding) in said]
    return known[0] if known else Answer()


def _matters(finding: HostFinding) -> bool:
    explained = finding.correlated or any(tag.startswith("rule:") for tag in finding.tags)
    return not explained and (finding.severity in ("high", "critical") or finding.risk_score >= LEAST_RISK)


def _words(title: str, names: Aliases) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_WORD.findall(names.safe(title).replace(USER, " ").lower())))


def _grouped(findings: Sequence[HostFinding], key: Any) -> list[Pattern]:
    groups: dict[tuple[str, ...], list[HostFinding]] = {}
    for finding in findings:
        groups.setdefault(key(finding), []).append(finding)
    return [(words, members) for words, members in groups.items() if words and len(members) >= LEAST_FINDINGS]


def _sharing(findings: Sequence[HostFinding], words: Mapping[int, tuple[str, ...]]) -> list[Pattern]:
    """Group what is left by the words that most of it shares, each finding once."""
    left = list(findings)
    groups: list[Pattern] = []
    while True:
        frequent = Counter(word for finding in left for word in words[id(finding)]).most_common()
        word, count = min(frequent, key=lambda item: (-item[1], item[0]), default=("", 0))
        if count < LEAST_FINDINGS:
            return groups
        groups.append(((word,), [finding for finding in left if word in words[id(finding)]]))
        left = [finding for finding in left if word not in words[id(finding)]]


def _rule(words: Sequence[str], members: Sequence[HostFinding]) -> dict[str, Any]:
    chosen = list(words[:3])
    return {
        "id": f"gap_{'_'.join(words)}"[:44],
        "title": f"Recurring: {' '.join(chosen)}",
        "rationale": f"{len(members)} findings that no correlation explains, the worst of them {worst(members)}",
        "conditions": [{"field": "title", "contains": word} for word in chosen],
        "logic": "all",
        "risk_score_delta": _DELTAS.get(worst(members), 5),
        "tags": ["auto_suggested", "gap_candidate"],
    }


def _joined(rationale: Any, more: str) -> str:
    return " | ".join(filter(None, (str(rationale or ""), more)))
