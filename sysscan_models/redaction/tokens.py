"""Tokens whose shape gives them away: a known prefix, then many random characters.

Each prefix ends with `_`, `-` or `.`, so a text is searched for these characters only; what stands before is compared with the
table. Shapes are those that the vendors document, with some slack in length. Prefixes of publishable keys (`pk_live_`) are not
in the table: they are no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sysscan_models.redaction.gates import words
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


def _hex(run: str) -> bool:
    return not _NO_HEX.search(run)


_NO_HEX = re.compile("[^0-9a-f]")


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
    *(
        _Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9]{24,}", _drawn)
        for prefix in (
            "shpat_",
            "shpss_",
            "shpca_",
            "shppa_",
            "rubygems_",
            "figd_",
            "r8_",
            "lin_api_",
            "ntn_",
            "tfp_",
            "rnd_",
            "nfp_",
        )
    ),
    *(
        _Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9_=+/-]{32,}", random_looking)
        for prefix in (
            "glc_",
            "sntrys_",
            "sntryu_",
            "bkua_",
            "sgp_",
            "ops_",
            "pscale_tkn_",
            "pscale_pw_",
            "pscale_oauth_",
            "phx_",
        )
    ),
    *(
        _Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9_-]{32,}", random_looking)
        for prefix in (
            "CCIPAT_",
            "vercel_blob_rw_",
            "sbp_",
            "fo1_",
            "fm2_",
            "wandb_v1_",
            "duffel_live_",
            "shippo_live_",
            "live_pk_",
        )
    ),
    _Token("secret_", "SERVICE_TOKEN", r"[A-Za-z0-9]{43,}", _drawn),
    _Token("hf_oauth_", "HF_TOKEN", r"[A-Za-z0-9_-]{20,}", _drawn),
    _Token("sk-", "SK_TOKEN", r"[A-Za-z0-9_-]{20,}", _one_run_or_random),
    *(
        _Token(prefix, "GITLAB_TOKEN", r"[A-Za-z0-9_-]{20,}", _drawn)
        for prefix in ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glft-", "glsoat-", "glimt-", "glagent-", "glffct-")
    ),
    _Token("GOCSPX-", "GOOGLE_OAUTH", r"[A-Za-z0-9_-]{20,}"),
    *(_Token(f"xox{kind}-", "SLACK_TOKEN", r"[A-Za-z0-9-]{10,}", _digits) for kind in "abceoprs"),
    _Token("xapp-", "SLACK_TOKEN", r"[A-Za-z0-9-]{20,}", _digits),
    _Token("pypi-", "PYPI_TOKEN", r"[A-Za-z0-9_-]{40,}", random_looking),
    _Token("AGE-SECRET-KEY-", "PRIVATE_KEY", r"[A-Z0-9]{40,}"),
    _Token("nvapi-", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{40,}", random_looking),
    *(_Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9-]{32,}", random_looking) for prefix in ("PMAK-", "BBDC-", "pplx-", "xai-")),
    _Token("pul-", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{40,}", _hex),
    *(_Token(prefix, "SERVICE_TOKEN", r"[A-Za-z0-9_-]{19,}", _drawn) for prefix in ("NRAK-", "NRJS-", "sq0atp-", "sq0csp-")),
    _Token("tskey-", "SERVICE_TOKEN", r"[A-Za-z0-9-]{24,}", random_looking),
    _Token("key-", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{32,}", lambda run: len(run) == 32 and _hex(run)),
    _Token("ya29.", "GOOGLE_OAUTH", r"[A-Za-z0-9_-][A-Za-z0-9_.-]{18,}[A-Za-z0-9_-]", random_looking),
    _Token("SG.", "SENDGRID_KEY", r"[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,128}"),
    *(_Token(f"hv{kind}.", "SERVICE_TOKEN", r"[A-Za-z0-9_-]{24,}", _drawn) for kind in "sbr"),
    _Token("mfa.", "DISCORD_TOKEN", r"[A-Za-z0-9_-]{60,}", _drawn),
    _Token("atlasv1.", "SERVICE_TOKEN", r"[A-Za-z0-9_=-]{40,}", _drawn),
    *(
        _Token(f"dp.{kind}.", "SERVICE_TOKEN", r"[A-Za-z0-9_.-]{40,}", _drawn)
        for kind in ("pt", "st", "st.dev", "st.stg", "st.prd", "ct", "sa", "scim", "audit")
    ),
)
_OWN_WORDS = frozenset(
    ("github_pat_", "dop_v1_", "doo_v1_", "dor_v1_", "glpat-", "xoxb-", "xoxp-", "sk_live_", "rk_live_", "dckr_pat_")
)
"""Prefixes in which no word ends."""
_RUNS = {token.prefix: re.compile(token.run) for token in _TOKENS}
_LONGEST_PREFIX = max(len(token.prefix) for token in _TOKENS)
_ENDINGS = tuple(
    (ending, re.compile(after), tuple(token for token in _TOKENS if token.prefix.endswith(ending)))
    for ending, after in (("_", r"_(?=[A-Za-z0-9+/]{16})"), ("-", r"-(?=[A-Za-z0-9_-]{10})"), (".", r"\.(?=[A-Za-z0-9_-]{16})"))
)
_PREFIXES = {ending: tuple(token.prefix for token in tokens) for ending, _, tokens in _ENDINGS}

_WITH_A = re.compile(
    r"A(?:(?P<AWS_KEY_ID>(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}(?![A-Za-z0-9]))|(?P<GOOGLE_KEY>Iza[A-Za-z0-9_-]{35,64}(?![A-Za-z0-9_-]))"
    r"|(?P<SERVICE_TOKEN>(?:TATT3x|TCTT3x|TSTT3x)[A-Za-z0-9_=-]{60,400}|TBB[A-Za-z0-9]{32}(?![A-Za-z0-9])"
    r"|KID[A-Za-z0-9]{32}(?![A-Za-z0-9])))"
)
_OTHERS = (  # a literal that is searched for first, the token
    ("SK", re.compile(r"SK[0-9a-f]{32}(?![A-Za-z0-9])")),
    ("AC", re.compile(r"AC[0-9a-f]{32}(?::[0-9a-f]{32})?(?![A-Za-z0-9])")),
    ("LTAI", re.compile(r"LTAI[A-Za-z0-9]{12,24}(?![A-Za-z0-9])")),
    ("EAA", re.compile(r"EAA[A-Za-z0-9_-]{57,400}(?![A-Za-z0-9_+/-])")),
    ("EZAK", re.compile(r"EZAK[A-Za-z0-9]{54}(?![A-Za-z0-9])")),
    ("GR1348941", re.compile(r"GR1348941[A-Za-z0-9_-]{20,50}")),
    ("dapi", re.compile(r"dapi[0-9a-f]{32}(?:-\d)?(?![A-Za-z0-9])")),
    ("oy2", re.compile(r"oy2[a-z0-9]{43}(?![A-Za-z0-9])")),
    ("-us", re.compile(r"[0-9a-f]{32}-us\d{1,2}(?![A-Za-z0-9])")),
)
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


_KNOWN = words(
    (
        *(token.prefix for token in _TOKENS),
        *("AKIA", "ASIA", "ABIA", "ACCA", "AIza", "ATATT3x", "ATCTT3x", "ATSTT3x", "ATBB", "AKID", "eyJ", "1//0", "sig=", "Q~"),
        *("hooks.slack.com/", "/api/webhooks/", "AccountKey", "SharedAccessKey", "accountkey", "sharedaccesskey"),
        *(literal for literal, _ in _OTHERS if len(literal) > 2),
        *(f"{kind}{digit}" for kind in ("SK", "AC") for digit in "0123456789abcdef"),
    )
)


def find_tokens(text: str, found: list[Span]) -> None:
    """Append the tokens in a text, `(start, end, kind)` each; time grows with its length."""
    if ":" in text:
        found.extend(_telegrams(text))
    if "." in text:
        found.extend(_discords(text))
    if _KNOWN(text):
        _find_known(text, found)


def _find_known(text: str, found: list[Span]) -> None:
    for ending, anchor, _ in _ENDINGS:
        if ending in text:
            found.extend(_prefixed(text, ending, anchor))
    if "A" in text:
        found.extend(_with_a(text))
    if "J" in text:
        found.extend(_jwts(text))
    found.extend(_others(text))
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
            if start >= 0 and text.startswith(token.prefix, start):
                run = _RUNS[token.prefix].match(text, end)
                if run is not None:
                    done = run.end()  # whether it is one or not: what was read is not read again
                    if token.check(run[0]) and (begins(text, start) or _stands_out(token.prefix, run[0])):
                        yield start, done, token.kind
                    break


def _with_a(text: str) -> Iterator[Span]:
    for match in _WITH_A.finditer(text):
        kind, at = str(match.lastgroup), match.start()
        if (
            begins(text, at)
            or (kind == "AWS_KEY_ID" and text[at - 1].islower())
            or (kind == "GOOGLE_KEY" and _digits(match[0]))
        ):
            yield at, match.end(), kind


def _others(text: str) -> Iterator[Span]:
    for literal, pattern in _OTHERS:
        if literal in text:
            for match in pattern.finditer(text):
                if begins(text, match.start()) and _digits(match[0]):
                    yield *match.span(), "SERVICE_TOKEN"


def _stands_out(prefix: str, run: str) -> bool:
    """Return whether a token that follows a letter without a break is one all the same, and no part of a word."""
    if prefix in _OWN_WORDS:
        return True
    piece = max(re.split(r"[-_.]", run[:256]), key=len)
    return len(piece) >= 20 and _digits(piece) and not piece.islower() and not piece.isupper()


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
