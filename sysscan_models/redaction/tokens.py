"""Tokens whose shape gives them away: a known prefix, then many random characters.

Each prefix ends with `_`, `-` or `.`, so a text is searched for these characters only; what stands before is compared with the
table. Shapes are those that the vendors document, with some slack in length. Prefixes of publishable keys (`pk_live_`) are not
in the table: they are no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sysscan_models.redaction.spans import Span, begins


def _any(_: str) -> bool:
    return True


def random_looking(run: str) -> bool:
    """Return whether characters look drawn by lot: a long enough piece without dashes that mixes digits and letters."""
    for piece in re.split(r"[-_.]", run):
        if len(piece) >= 10 and not piece.isdigit() and any(map(str.isdigit, piece)):
            return True
        if len(piece) >= 16 and _mixed_case(piece):
            return True
    return False


def _mixed_case(run: str) -> bool:
    return len(run) >= 30 or any(map(str.isdigit, run)) or (not run.islower() and not run.isupper() and not run.istitle())


def _one_run_or_random(run: str) -> bool:
    return run.isalnum() or random_looking(run)


def _digits(run: str) -> bool:
    return any(map(str.isdigit, run))


def _drawn(run: str) -> bool:
    return not run.islower() or _digits(run)


class _Token(NamedTuple):
    prefix: str
    kind: str
    run: str
    """What follows the prefix, as a pattern; it must take all characters that may follow, so that none is read twice."""
    check: Callable[[str], bool] = _any


_TOKENS = (
    _Token("hf_", "HF_TOKEN", r"[A-Za-z0-9]{20,}"),
    _Token("api_org_", "HF_TOKEN", r"[A-Za-z0-9]{20,}", _mixed_case),
    *(_Token(f"gh{kind}_", "GITHUB_TOKEN", r"[A-Za-z0-9_]{30,}", _mixed_case) for kind in "pousr"),
    _Token("github_pat_", "GITHUB_TOKEN", r"[A-Za-z0-9_]{22,}", _drawn),
    *(_Token(f"{kind}_{mode}_", "STRIPE_KEY", r"[A-Za-z0-9]{16,}") for kind in ("sk", "rk") for mode in ("live", "test")),
    _Token("whsec_", "STRIPE_KEY", r"[A-Za-z0-9+/=]{24,}", _mixed_case),
    _Token("npm_", "NPM_TOKEN", r"[A-Za-z0-9]{30,}"),
    *(_Token(f"do{kind}_v1_", "DIGITALOCEAN_TOKEN", r"[A-Za-z0-9]{40,}") for kind in "opr"),
    *(_Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9_-]{20,}", _drawn) for prefix in ("dckr_pat_", "gsk_", "glsa_")),
    *(_Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9]{24,}", _drawn) for prefix in ("shpat_", "rubygems_", "figd_", "r8_")),
    _Token("sk-", "SK_TOKEN", r"[A-Za-z0-9_-]{20,}", _one_run_or_random),
    *(
        _Token(prefix, "GITLAB_TOKEN", r"[A-Za-z0-9_-]{20,}", _drawn)
        for prefix in ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glft-", "glsoat-")
    ),
    _Token("GOCSPX-", "GOOGLE_OAUTH", r"[A-Za-z0-9_-]{20,}"),
    *(_Token(f"xox{kind}-", "SLACK_TOKEN", r"[A-Za-z0-9-]{10,}", _digits) for kind in "abeoprs"),
    _Token("xapp-", "SLACK_TOKEN", r"[A-Za-z0-9-]{20,}", _digits),
    _Token("pypi-", "PYPI_TOKEN", r"[A-Za-z0-9_-]{40,}", random_looking),
    _Token("AGE-SECRET-KEY-", "PRIVATE_KEY", r"[A-Z0-9]{40,}"),
    _Token("nvapi-", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{40,}", random_looking),
    _Token("tskey-", "SERVICE_TOKEN", r"[A-Za-z0-9-]{24,}", random_looking),
    _Token("ya29.", "GOOGLE_OAUTH", r"[A-Za-z0-9_-][A-Za-z0-9_.-]{18,}[A-Za-z0-9_-]", random_looking),
    _Token("SG.", "SENDGRID_KEY", r"[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,128}"),
    *(_Token(f"hv{kind}.", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{24,}", _drawn) for kind in "sbr"),
)
_RUNS = {token.prefix: re.compile(token.run) for token in _TOKENS}
_LONGEST_PREFIX = max(len(token.prefix) for token in _TOKENS)
_ENDINGS = tuple(
    (ending, re.compile(after), tuple(token for token in _TOKENS if token.prefix.endswith(ending)))
    for ending, after in (("_", r"_(?=[A-Za-z0-9+/]{16})"), ("-", r"-(?=[A-Za-z0-9_-]{10})"), (".", r"\.(?=[A-Za-z0-9_-]{16})"))
)
_PREFIXES = {ending: tuple(token.prefix for token in tokens) for ending, _, tokens in _ENDINGS}

_CLOUD_KEY = re.compile(r"A(?:((?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Za-z0-9]))|Iza[A-Za-z0-9_-]{35,64}(?![A-Za-z0-9_-]))")
_OAUTH_REFRESH = re.compile(r"1//0[A-Za-z0-9_-]{30,200}")
_SLACK_WEBHOOK = re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9_/-]{20,200})")
_DISCORD_WEBHOOK = re.compile(r"/api/webhooks/\d{15,22}/([A-Za-z0-9_-]{40,100})")
_TELEGRAM = re.compile(r":(?=(AA[A-Za-z0-9_-]{31,35}|[A-Za-z0-9_-]{35})(?![A-Za-z0-9_-]))")
_DISCORD = re.compile(r"\.[A-Za-z0-9_-]{6}\.(?=[A-Za-z0-9_-]{27})")
_AZURE = re.compile(r"(?:AccountKey|SharedAccessKey|sharedaccesskey|accountkey)[ \t]?=[ \t]?([A-Za-z0-9+/%]{20,200}={0,2})")
_AZURE_SIGNATURE = re.compile(r"[?&;]sig=([A-Za-z0-9%+/]{40,120}={0,2})")
_AZURE_CLIENT = re.compile(r"Q~[A-Za-z0-9_.~-]{31,34}(?![A-Za-z0-9_~-])")
_PART = re.compile(r"[A-Za-z0-9_-]+")
_DIGITS_BEFORE = re.compile(r"(?<!\d)\d{8,10}\Z")
_ID_BEFORE = re.compile(r"[MNO](?=[A-Za-z0-9_-]{22,28}\Z)")


def find_tokens(text: str, found: list[Span]) -> None:
    """Append the tokens in a text, `(start, end, kind)` each; time grows with its length."""
    for ending, anchor, _ in _ENDINGS:
        if ending in text:
            found.extend(_prefixed(text, ending, anchor))
    if "A" in text:
        _cloud(text, found)
    if "J" in text:
        found.extend(_jwts(text))
    if ":" in text:
        found.extend(_telegrams(text))
    if "." in text:
        found.extend(_discords(text))
    if "/" in text:
        _by_path(text, found)
    if "=" in text:
        found.extend((match.start(1), match.end(1), "AZURE_KEY") for match in _signatures(text))


def _prefixed(text: str, ending: str, anchor: re.Pattern[str]) -> Iterator[Span]:
    prefixes, done = _PREFIXES[ending], 0
    for match in anchor.finditer(text):
        end = match.end()
        if end <= done or not text.endswith(prefixes, max(0, end - _LONGEST_PREFIX), end):
            continue
        for token in _TOKENS:
            start = end - len(token.prefix)
            if start >= 0 and text.startswith(token.prefix, start) and begins(text, start):
                run = _RUNS[token.prefix].match(text, end)
                if run is not None:
                    done = run.end()  # whether it is one or not: what was read is not read again
                    if token.check(run[0]):
                        yield start, done, token.kind
                    break


def _cloud(text: str, found: list[Span]) -> None:
    for match in _CLOUD_KEY.finditer(text):
        if begins(text, match.start()):
            found.append((match.start(), match.end(), "AWS_KEY_ID" if match[1] else "GOOGLE_KEY"))


def _jwts(text: str) -> Iterator[Span]:
    """Yield three (or five) parts with dots between, of which the first two are JSON in base64url or at least long."""
    at = text.find("eyJ")
    while at >= 0:
        ends = [_part_end(text, at)]
        while len(ends) < 5 and text[ends[-1] : ends[-1] + 1] == "." and _part_end(text, ends[-1] + 1) > ends[-1] + 1:
            ends.append(_part_end(text, ends[-1] + 1))
        if len(ends) == 2 and text[ends[1] : ends[1] + 1] == ".":
            ends.append(ends[1] + 1)  # an unsigned token ends with a dot
        if len(ends) >= 3 and ends[0] - at >= 11 and ends[1] - ends[0] >= 9:
            yield at, ends[-1], "JWT"
        at = text.find("eyJ", ends[-1] if len(ends) != 2 else ends[0])


def _part_end(text: str, at: int) -> int:
    part = _PART.match(text, at)
    return part.end() if part else at


def _telegrams(text: str) -> Iterator[Span]:
    for match in _TELEGRAM.finditer(text):
        at = match.start()
        number = _DIGITS_BEFORE.search(text[max(0, at - 12) : at])
        if number and begins(text, at - len(number[0])) and _drawn(match[1]):
            yield at - len(number[0]), match.end(1), "TELEGRAM_TOKEN"


def _discords(text: str) -> Iterator[Span]:
    for match in _DISCORD.finditer(text):
        first = max(0, match.start() - 32)
        for before in _ID_BEFORE.finditer(text[first : match.start()]):
            if begins(text, first + before.start()):
                yield first + before.start(), _part_end(text, match.end()), "DISCORD_TOKEN"
                break


def _by_path(text: str, found: list[Span]) -> None:
    for literal, pattern, kind in (
        ("hooks.slack.com/", _SLACK_WEBHOOK, "SLACK_WEBHOOK"),
        ("/api/webhooks/", _DISCORD_WEBHOOK, "DISCORD_TOKEN"),
    ):
        if literal in text:
            found.extend((match.start(1), match.end(1), kind) for match in pattern.finditer(text))
    if "1//0" in text:
        found.extend((match.start(), match.end(), "GOOGLE_OAUTH") for match in _OAUTH_REFRESH.finditer(text))


def _signatures(text: str) -> Iterator[re.Match[str]]:
    if "ey" in text:
        yield from _AZURE.finditer(text)
    if "sig=" in text:
        yield from _AZURE_SIGNATURE.finditer(text)
