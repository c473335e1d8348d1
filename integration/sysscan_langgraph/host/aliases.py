"""The one door through which the host's text passes into prompts, and through which a model's text comes back.

In the host a finding's id is often a path below somebody's home, and only some titles are redacted. So a prompt calls findings
F1, F2, ... and correlations C1, C2, ..., and in all other text secrets, home folders, user names and anything that a chat
template or a terminal would take for a command are replaced. Answers get the ids back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sysscan_langgraph.host.findings import HostCorrelation, HostFinding
from sysscan_models.prompts import redact
from sysscan_models.terminal import printable

USER = "<user>"
"""What stands for a user's name; the host's own redaction writes the same."""
LONGEST = 6000
"""Characters of one piece of a finding's text; llama.cpp's context would hold no more of it anyway."""

_MARKERS = (  # what chat templates write between turns; a space inside makes them plain text for every server
    (re.compile(r"<\|"), "< |"),
    (re.compile(r"\|>"), "| >"),
    (re.compile(r"<(/?(?:s|bos|eos|unk|pad|start_of_turn|end_of_turn))>", re.IGNORECASE), r"< \1>"),
    (re.compile(r"\[(/?INST|/?AVAILABLE_TOOLS|/?TOOL_CALLS|/?TOOL_RESULTS)\]", re.IGNORECASE), r"[ \1]"),
    (re.compile(r"<<(/?SYS)>>", re.IGNORECASE), r"< <\1> >"),
    (re.compile("<\uff5c"), "< \uff5c"),
)
_HOME = re.compile(r"((?:/home|/Users|\\Users)[/\\]+)([^/\\\s:;,'\"<>|()\[\]{}]{1,64})", re.IGNORECASE)
_USER_KEYS = frozenset({"user", "username", "user_name", "owner", "login", "account", "uname", "sudo_user"})
_NO_PERSON = re.compile(
    r"root|daemon|bin|sys|sync|games|man|lp|mail|news|uucp|proxy|www-data|backup|list|irc|nobody|systemd-[a-z-]+|sshd|messagebus"
    r"|postgres|mysql|redis|nginx|apache|docker|users?|shared|public|default|guest|admin"
)


class Aliases:
    """The short names of some findings and correlations, and the users' names that are known from them."""

    def __init__(self, findings: Sequence[HostFinding] = (), correlations: Sequence[HostCorrelation] = ()) -> None:
        self._finding = _numbered("F", (finding.id for finding in findings))
        self._correlation = _numbered("C", (correlation.id for correlation in correlations))
        self._ids = {alias: id for names in (self._finding, self._correlation) for id, alias in names.items()}
        self._alias = re.compile(r"\b[FC]\d{1,5}\b")
        self._names = _names_pattern(findings, correlations)

    def finding(self, id: str) -> str:
        """Return how prompts call a finding; empty for one that is not known."""
        return self._finding.get(id, "")

    def correlation(self, id: str) -> str:
        """Return how prompts call a correlation; empty for one that is not known."""
        return self._correlation.get(id, "")

    def safe(self, text: str) -> str:
        """Return text that may stand in a prompt: no secrets, no user's name, no marker of a turn, nothing invisible."""
        text = printable(text[: 4 * LONGEST])
        for marker, harmless in _MARKERS:
            text = marker.sub(harmless, text)
        text = redact(text)[:LONGEST]  # in this order: half a key is not known for one
        text = _HOME.sub(lambda home: home[1] + USER, text)
        return self._names.sub(USER, text) if self._names else text

    def line(self, text: str, longest: int = 160) -> str:
        """Return safe text as one line, so that no title can pretend to be the next line of a prompt."""
        line = " ".join(self.safe(text).split())
        return line if len(line) <= longest else line[: longest - 1] + "\u2026"

    def safe_deep(self, value: Any) -> Any:
        """Return a value of JSON with all its text made safe, names of objects too; who owns something is left unsaid."""
        if isinstance(value, str):
            return self.safe(value)
        if isinstance(value, Mapping):
            return {
                self.safe(str(key)): USER if _names_user(key, item) else self.safe_deep(item) for key, item in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.safe_deep(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self.safe(str(value))

    def restore(self, text: str) -> str:
        """Return a model's text with the ids that its aliases stand for; other words that look like one stay."""
        return self._alias.sub(lambda match: self._ids.get(match[0], match[0]), printable(text)).strip()


def _numbered(letter: str, ids: Iterable[str]) -> dict[str, str]:
    return {id: f"{letter}{number}" for number, id in enumerate(dict.fromkeys(filter(None, ids)), 1)}


def _names_user(key: Any, value: Any) -> bool:
    return str(key).lower() in _USER_KEYS and isinstance(value, str) and not _NO_PERSON.fullmatch(value.lower())


def _names_pattern(findings: Sequence[HostFinding], correlations: Sequence[HostCorrelation]) -> re.Pattern[str] | None:
    """Return what finds, anywhere, the names of the users whose homes or accounts these findings tell."""
    names: set[str] = set()
    for finding in findings:
        texts = [finding.id, finding.title, finding.description, *map(str, finding.metadata.values())]
        names.update(home[2] for text in texts for home in _HOME.finditer(text[:LONGEST]))
        names.update(str(value) for key, value in finding.metadata.items() if _names_user(key, value))
    for correlation in correlations:
        texts = [correlation.id, correlation.title, correlation.rationale, *correlation.finding_ids]
        names.update(home[2] for text in texts for home in _HOME.finditer(text[:LONGEST]))
    known = sorted((name for name in names if len(name) > 2 and not _NO_PERSON.fullmatch(name.lower())), key=len, reverse=True)
    words = "|".join(re.escape(name) for name in known[:200])
    return re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE) if words else None
