"""The one door through which the host's text passes into prompts, and through which a model's text comes back.

In the host a finding's id is often a path below somebody's home, and only some titles are redacted. So a prompt calls findings
F1, F2, ... and correlations C1, C2, ..., and in all other text secrets and users' names (`redact`, and the names that findings
tell, wherever they stand) and anything that a chat template or a terminal would take for a command are replaced. Answers get
the ids back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sysscan_langgraph.host.findings import HostCorrelation, HostFinding
from sysscan_models.prompts import redact
from sysscan_models.redaction import home_users
from sysscan_models.terminal import printable

USER = "[USER]"
"""What stands for a user's name; `redact` writes the same."""
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
_USER_KEYS = frozenset({"user", "username", "user_name", "owner", "login", "account", "uname", "sudo_user"})
_NO_PERSON = re.compile(
    r"root|daemon|bin|sys|sync|games|man|lp|mail|news|uucp|proxy|www-data|backup|list|irc|nobody|systemd-[a-z-]+|sshd|messagebus"
    r"|postgres|mysql|redis|nginx|apache|docker|users?|shared|public|default|guest|admin"
)
_LONGEST_NAME = 64
"""Characters of a user's name; Linux allows 32."""
_WORD_START = re.compile(r"(?<![A-Za-z0-9])(?=[^\s])")


class Aliases:
    """The short names of some findings and correlations, and the users' names that are known from them."""

    def __init__(self, findings: Sequence[HostFinding] = (), correlations: Sequence[HostCorrelation] = ()) -> None:
        self._finding = _numbered("F", (finding.id for finding in findings))
        self._correlation = _numbered("C", (correlation.id for correlation in correlations))
        self._ids = {alias: id for names in (self._finding, self._correlation) for id, alias in names.items()}
        self._alias = re.compile(r"\b[FC]\d{1,5}\b")
        self._names = frozenset(name.lower() for name in _known_names(findings, correlations))
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)

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
        return self._without_names(text)

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
                self.safe(str(key)): self.safe_deep(_unnamed(item) if _tells_user(key) else item) for key, item in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.safe_deep(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, float)) else self.safe(str(value))

    def restore(self, text: str) -> str:
        """Return a model's text with the ids that its aliases stand for, each on one line; other words that look like one stay.

        The text is for people: nothing in an id steers a terminal, so it may differ from the id that lists hold.
        """
        return self._alias.sub(lambda match: self._shown(match[0]), printable(text)).strip()

    def _shown(self, alias: str) -> str:
        return " ".join(printable(self._ids.get(alias, alias)).splitlines())

    def _without_names(self, text: str) -> str:
        """Return text with the names that are known masked wherever they stand as a word, however many there are."""
        parts, done = [], 0
        for start in _WORD_START.finditer(text) if self._names else ():
            if start.start() >= done and (end := self._name_end(text, start.start())):
                parts += [text[done : start.start()], USER]
                done = end
        return "".join([*parts, text[done:]])

    def _name_end(self, text: str, start: int) -> int:
        """Return where the longest name ends that begins here; 0 where none does."""
        for length in self._lengths:
            end = start + length
            if text[start:end].lower() in self._names and not (text[end : end + 1].isascii() and text[end : end + 1].isalnum()):
                return end
        return 0


def _numbered(letter: str, ids: Iterable[str]) -> dict[str, str]:
    return {id: f"{letter}{number}" for number, id in enumerate(dict.fromkeys(filter(None, ids)), 1)}


def _tells_user(key: Any) -> bool:
    return str(key).lower() in _USER_KEYS


def _unnamed(value: Any) -> Any:
    """Return who something belongs to without saying who it is; accounts of the system stay."""
    if isinstance(value, str):
        return value if _NO_PERSON.fullmatch(value.lower()) else USER
    return [_unnamed(item) for item in value] if isinstance(value, (list, tuple, set, frozenset)) else value


def _known_names(findings: Sequence[HostFinding], correlations: Sequence[HostCorrelation]) -> Iterator[str]:
    """Yield the names of the users whose homes or accounts these findings tell."""
    for finding in findings:
        yield from _names_in([finding.id, finding.title, finding.description, finding.metadata])
    for correlation in correlations:
        yield from _names_in([correlation.id, correlation.title, correlation.rationale, correlation.finding_ids])


def _names_in(value: Any, *, owner: bool = False) -> Iterator[str]:
    """Yield the names in a value of JSON; `owner` says that it stands where a user is named."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _names_in(str(key))
            yield from _names_in(item, owner=_tells_user(key))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _names_in(item, owner=owner)
    elif isinstance(value, str):
        names = [*home_users(value[:LONGEST]), *([value] if owner else [])]
        yield from (name for name in names if 2 < len(name) <= _LONGEST_NAME and not _NO_PERSON.fullmatch(name.lower()))
