"""What HTTP carries to say who asks: `Authorization` headers, cookies, ids of sessions, signatures of URLs.

A session id that is a UUID stays, as logs are full of them and few open anything. Cookies that hold a word (`theme=dark`) stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sysscan_models.redaction.gates import words
from sysscan_models.redaction.literals import value_at
from sysscan_models.redaction.spans import Span
from sysscan_models.redaction.values import is_random, is_strong, is_word, tells_nothing

_HEADER = re.compile(
    r"(?:authorization\\{0,3}[\"']?\s{0,4}[:=]\s{0,4}\\{0,3}[\"']?\s{0,4}(?:(?:bearer|basic|token|apikey|negotiate|key|splunk|bot)\s{1,4})?"
    r"|\bbearer\s{1,4}(?:token\s{1,4})?[\"']?)([A-Za-z0-9._~+/=:-]{8,})",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"\bresponse=\"?([0-9a-f]{32,64})\b", re.IGNORECASE)
_SIGNED = re.compile(r"(?:X-Amz-(?:Signature|Security-Token)|\bSignature)=([A-Za-z0-9%+/=]{32,2048})")
_PAIR_OF_CODE = re.compile(
    r"(?:\bauth[ \t]?=[ \t]?|(?:Basic|Digest)Auth)\([ \t]{0,4}['\"][^'\"\n]{1,128}['\"],[ \t]{0,4}(?=['\"])", re.IGNORECASE
)


_KNOWN = words(
    ("authorization", "bearer", "auth=(", "auth =", "auth(", "signature=", "x-amz-s", "cookie", "sess", "connect.sid", " -b ")
)


def find_sessions(text: str, lower: str, found: list[Span]) -> None:
    """Append what headers, cookies and session ids carry; `lower` is the text in small letters, of the same length."""
    if not _KNOWN(lower):
        return
    if "authorization" in lower or "bearer" in lower:
        found.extend(_headers(text))
    if "auth" in lower:
        found.extend(_credentials(text))
    if "ignature=" in text or "X-Amz-S" in text:
        found.extend((*match.span(1), "SECRET") for match in _SIGNED.finditer(text))
    if "cookie" in lower or "curl" in lower:
        found.extend(_cookies(text))
    if "sess" in lower:
        found.extend(_ids(text, _SESSION))
    if "connect.sid" in text:
        found.extend(_ids(text, _CONNECT))


def _headers(text: str) -> Iterator[Span]:
    for match in _HEADER.finditer(text):
        told, named = match[1].rstrip(".:"), match[0][:1] in "Aa"
        basic = "basic" in match[0].lower()
        if (
            basic and (is_strong(told) or told.endswith("=") or not (is_word(told) and (told.islower() or told.istitle())))
        ) or (not basic and len(told) >= (8 if named else 12) and is_strong(told)):
            yield match.start(1), match.start(1) + len(told), "BEARER_TOKEN"
    if "esponse=" in text:
        yield from ((*match.span(1), "BEARER_TOKEN") for match in _DIGEST.finditer(text))


def _credentials(text: str) -> Iterator[Span]:
    for match in _PAIR_OF_CODE.finditer(text):
        value = value_at(text, match.end())
        if value and value.quoted and not tells_nothing(value.text):
            yield value.start, value.end, "PASSWORD"


_COOKIE = re.compile(
    r"cookie\d?\\{0,3}[\"']?\s{0,4}[:=]\s{0,4}\\{0,3}[\"']?(?=[\w.-]{1,80}=)|(?:-b|--cookie)[ =][\"'](?=[\w.-]{1,80}=)",
    re.IGNORECASE,
)
_CRUMB = re.compile(r"([\w.$-]{1,80})=([^\s;,\"'\\<>]{1,4096})(?:; ?)?")
_TELLING = re.compile(r"sess|sid\b|auth|tok|remember|login|jwt|csrf|xsrf|secret|key|user|id\b", re.IGNORECASE)
_MOST_CRUMBS = 64


def _cookies(text: str) -> Iterator[Span]:
    for header in _COOKIE.finditer(text):
        at = header.end()
        for _ in range(_MOST_CRUMBS):
            crumb = _CRUMB.match(text, at)
            if crumb is None:
                break
            at = crumb.end()
            if is_random(crumb[2], 8 if _TELLING.search(crumb[1]) else 16):
                yield *crumb.span(2), "SESSION"


_SESSION = re.compile(
    r"sess(?:ion)?(?:[_-]?(?:id|key|cookie))?(?:[A-Z]{8})?\d?(?![A-Za-z_-])"
    r"\\{0,3}[\"']?\]?[ \t]{0,4}[:=][ \t]{0,4}\\{0,3}[\"']?"
    r"([A-Za-z0-9%_.+/=~-]{16,4096})",
    re.IGNORECASE,
)
_CONNECT = re.compile(r"connect\.sid=(s(?:%3A|:)[A-Za-z0-9%_.+/=-]{20,512})")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def _ids(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        told = match[1].rstrip(".")
        if (is_random(told, 16) or (told.isupper() and told.isalpha())) and not _UUID.fullmatch(told):
            yield match.start(1), match.start(1) + len(told), "SESSION"
