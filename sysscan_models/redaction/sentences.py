"""Secrets that a sentence tells: "the password is ...", "log in with password ...", "credentials: admin / ...".

A sentence mostly talks about passwords and tells none, so a value here must look like no word: digits among letters, or symbols
within. Behind "is" a word in quotes counts too. `passwords` finds the names; here is what stands between them and their values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sysscan_models.redaction.gates import words
from sysscan_models.redaction.literals import Value
from sysscan_models.redaction.spans import PLACEHOLDER, Span, places
from sysscan_models.redaction.values import is_random, is_telling, is_word, tells_nothing

_COPULA = (
    "is|was|are|were|be|been|has|had|have|set|changed|reset|now|then|currently|still|simply|just|equals|to|as"  # English
    "|ist|war|lautet|wurde|auf|es|era|fue|est|était|è|é|e'|foi|jest|это|был|"  # German, Spanish, French, Italian, Portuguese
    "теперь|равен|je|är|er|on"
)
_OWNER = (
    r"(?:for|of|del|de|du|do|da|von|für|per|для|пользователя)\s"
    r"(?:the\s|user\s|account\s|usuario\s|utente\s){0,2}[\w.@$'-]{1,64}"
)
_LINK = re.compile(
    rf"(?P<owner>[ \t]{{1,4}}{_OWNER})?(?P<link>(?:\s{{1,4}}(?:{_COPULA})(?![\w-])){{1,5}})?"
    r"(?P<mark>[ \t]{0,2}(?:[:=]|[\u2014\u2013-](?=[ \t]))(?(link)\s{0,4}|[ \t]{0,4})|,? \(?|[ \t]{1,4})(?:[057] )?",
    re.IGNORECASE,
)
_OPENING = {
    '"': '"',
    "'": "'",
    "`": "`",
    "\u201c": "\u201d",
    "\u201e": "\u201c",
    "\u00ab": "\u00bb",
    "\u2018": "\u2019",
    "*": "*",
}
_BARE = re.compile(r"[^\s\"'`<>\u201c\u201d\u00ab\u00bb]{4,256}")
_TRAILING = ".,;:)]}"


def told_after(text: str, end: int, *, password: bool, verb: bool) -> Value | None:
    """Return the secret that a sentence tells behind a name that ends at `end`; a key or token must look drawn by lot.

    `verb` says that the name may be one ("pass"), so that only what it *is* counts.
    """
    link = _LINK.match(text, end)
    if link is None:
        return None
    value = _value(text, link.end())
    if value is None or tells_nothing(value.text) or PLACEHOLDER.match(value.text):
        return None
    if not password:
        return value if is_random(value.text, 16) else None
    if verb and (link["link"] or "").strip().lower() not in ("is", "was"):
        return None
    assigned = link["link"] is not None or link["mark"].strip(" ,(\t\n") != ""
    if value.quoted and link["link"] and is_word(value.text) and not value.ticked:
        return value if len(value.text) > 4 else None
    return value if is_telling(value.text, among_words=not assigned) else None


def _value(text: str, at: int) -> Value | None:
    """Return one word of a sentence, with quotes or marks of emphasis around it or without."""
    opening = text[at : at + 1]
    if closing := _OPENING.get(opening):
        end = text.find(closing, at + 1, at + 130)
        inner = text[at + 1 : end]
        if end > at + 1 and not any(map(str.isspace, inner)):
            return Value(at + 1, end, inner, True, opening in "`*")
        return None
    word = _BARE.match(text, at)
    kept = word[0].rstrip(_TRAILING) if word else ""
    return Value(at, at + len(kept), kept, False) if kept else None


_CREDENTIALS = re.compile(
    r"(?:credentials|zugangsdaten|identifiants|credenciales|credenciais|credenziali|login|log(?:ged)? in|logon)"
    r"(?:[ \t]{1,4}(?:are|were|is|was|with|as|using)){0,2}[ \t]{0,2}[:=]?[ \t]{1,4}"
    r"[\"'`]?[\w.@-]{1,64}[\"'`]?[ \t]?[:/][ \t]?[\"'`]?(?=[^\s/])",
    re.IGNORECASE,
)
_EAST_ASIAN = re.compile(
    "(?:密码|密碼|口令|パスワード|暗証番号|合言葉|비밀번호|암호|密钥|密鑰)"
    r"(?:[\"'\u300d\u300f]|[^\n\x21-\x7e]){0,8}[:=]?[ \t\"'\u300c\u300e]{0,4}([!#-&(-~]{6,256})"
)


_USERS = (
    "credentials",
    "zugangsdaten",
    "identifiants",
    "credenciales",
    "credenciais",
    "credenziali",
    "login",
    "log in",
    "logged in",
    "logon",
)
_LOGINS = words(_USERS)


def find_told(text: str, lower: str, found: list[Span]) -> None:
    """Append passwords behind a user's name, and those behind the names that East Asian languages have for them."""
    if _LOGINS(lower):
        found.extend(_credentials(text, lower))
    if not text.isascii():
        found.extend(_east_asian(text))


def _credentials(text: str, lower: str) -> Iterator[Span]:
    for at in places(lower, _USERS):
        match = _CREDENTIALS.match(text, at)
        value = _value(text, match.end()) if match else None
        if value and not tells_nothing(value.text) and is_telling(value.text, among_words=True):
            yield value.start, value.end, "PASSWORD"


def _east_asian(text: str) -> Iterator[Span]:
    for match in _EAST_ASIAN.finditer(text):
        told = match[1].rstrip(_TRAILING)
        if not tells_nothing(told) and not PLACEHOLDER.match(told) and (is_telling(told) or told.isdigit()):
            yield match.start(1), match.start(1) + len(told), "PASSWORD"
