"""Taking secrets out of text: keys, tokens, passwords and people become typed placeholders, such as `[PASSWORD]`.

`redact` is the one door through which the text of documents and findings passes into prompts, files and logs; `prompts` offers
it too. What is taken out is known by its shape or by what stands before it; a secret without either (a bare word) is not found.
Digests, identifiers, versions, prose about passwords and the examples of documentation stay. Nothing here reads a file.

All of it is idempotent, never raises, and takes time in proportion to the text's length, however hostile the text is: literals
are searched for first, and no pattern reads a character more than a fixed number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sysscan_models.redaction.commands import find_commands
from sysscan_models.redaction.names import is_secret_value, names_secret
from sysscan_models.redaction.passwords import find_passwords
from sysscan_models.redaction.people import find_addresses, find_emails, find_users, home_users
from sysscan_models.redaction.private_keys import find_hashes, find_private_keys
from sysscan_models.redaction.sentences import find_told
from sysscan_models.redaction.sessions import find_sessions
from sysscan_models.redaction.spans import Span, folded, replaced, small
from sysscan_models.redaction.tokens import find_tokens

__all__ = ["KINDS", "home_users", "kinds_table", "redact", "redact_counted", "redact_deep"]

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "PRIVATE_KEY": "private key: PEM of any kind, OpenSSH, PGP, PuTTY, age; also one that was cut off, or is in base64",
        "HF_TOKEN": "Hugging Face token (`hf_`, `api_org_`)",
        "SK_TOKEN": "key of OpenAI, Anthropic and others (`sk-`, `sk-proj-`, `sk-ant-`)",
        "GITHUB_TOKEN": "GitHub token (`ghp_`, `gho_`, `ghu_`, `ghs_`, `ghr_`, `github_pat_`)",
        "GITLAB_TOKEN": "GitLab token (`glpat-` and its kin)",
        "AWS_KEY_ID": "id of an AWS access key (`AKIA`, `ASIA`)",
        "AWS_SECRET_KEY": "AWS secret access key, by its name",
        "GOOGLE_KEY": "Google API key (`AIza`)",
        "GOOGLE_OAUTH": "Google OAuth token or client secret (`ya29.`, `1//0`, `GOCSPX-`)",
        "SLACK_TOKEN": "Slack token (`xoxb-` and its kin, `xapp-`)",
        "SLACK_WEBHOOK": "the secret part of a Slack webhook's URL",
        "STRIPE_KEY": "Stripe secret key (`sk_live_`, `rk_live_`, `whsec_`)",
        "NPM_TOKEN": "npm token (`npm_`)",
        "PYPI_TOKEN": "PyPI token (`pypi-`)",
        "DIGITALOCEAN_TOKEN": "DigitalOcean token (`dop_v1_`, `doo_v1_`, `dor_v1_`)",
        "SENDGRID_KEY": "SendGrid key (`SG.`)",
        "TELEGRAM_TOKEN": "token of a Telegram bot",
        "DISCORD_TOKEN": "token of a Discord bot, or the secret part of a webhook's URL",
        "AZURE_KEY": "Azure `AccountKey=`, `SharedAccessKey=`, client secret, signature of a shared access URL",
        "SERVICE_TOKEN": "token of another service with a known prefix (Docker, Groq, Grafana, Shopify, Vault, ...)",
        "JWT": "JSON Web Token",
        "BEARER_TOKEN": "what an `Authorization` header carries: Bearer, Basic, token",
        "PASSWORD_HASH": "hash of a password: crypt(3) as in `/etc/shadow`, htpasswd, LDAP, Django, GRUB, Windows",
        "PASSWORD": "password: in a URL, under a name such as `password`, as a command's option, in SQL, .netrc, .pgpass",
        "SESSION": "what a cookie carries, the id of a session (`JSESSIONID`)",
        "SECRET": "random value under a name such as `secret`, `token` or `api_key`",
        "EMAIL": "e-mail address of a person",
        "USER": "name of a user in the path of a home folder",
        "PUBLIC_IP": "public address, IPv4 or IPv6; only on request (`data.redact_public_ips`)",
    }
)
"""Placeholder's kind -> what it stands for. Where two overlap, the first in this order names the placeholder."""
_RANKS = {kind: rank for rank, kind in enumerate(KINDS)}
_ROUNDS = 12
"""A round that changes something is followed by another, as a placeholder may set free what it stood beside; two mostly do."""


def redact(text: str, *, public_ips: bool = False, people: bool = True) -> str:
    """Return the text with typed placeholders in place of secrets, e-mail addresses and users' names in home paths.

    `public_ips` takes out public addresses too; without `people` only secrets go, for text that is compared and not shown.
    """
    return _redacted(text, None, public_ips, people)


def redact_counted(text: str, counts: Counter[str], *, public_ips: bool = False) -> str:
    """Do as `redact`, and add to `counts` how many of each kind were taken out."""
    return _redacted(text, counts, public_ips, True)


def _redacted(text: str, counts: Counter[str] | None, public_ips: bool, people: bool) -> str:
    for _ in range(_ROUNDS):
        before = text
        found: list[Span] = []
        _find_secrets(folded(text), found)
        if found:
            text = replaced(text, found, _RANKS, counts)
        if people:
            found = []
            _find_people(folded(text), found, public_ips)
            if found:
                text = replaced(text, found, _RANKS, counts)
        if text is before or text == before:
            break
    return text


def _find_secrets(view: str, found: list[Span]) -> None:
    lower = small(view)
    find_tokens(view, found)
    find_private_keys(view, found)
    find_hashes(view, found)
    find_passwords(view, lower, found)
    find_told(view, lower, found)
    find_sessions(view, lower, found)
    find_commands(view, found)


def _find_people(view: str, found: list[Span], public_ips: bool) -> None:
    if "@" in view or "%40" in view:
        find_emails(view, found)
    if "/" in view or "\\" in view:
        find_users(view, found)
    if public_ips:
        find_addresses(view, found)


def redact_deep(value: Any, counts: Counter[str] | None = None, *, public_ips: bool = False, people: bool = True) -> Any:
    """Return a value of JSON with all its text redacted, names of objects too, however deep it is.

    What stands under a name such as `password` is a secret even if it looks harmless. Text must pass here before it is written
    as JSON, whose quoting hides where a secret begins. Tuples become lists.
    """
    whole: list[Any] = [value]
    open_places: list[tuple[Any, Any, Any, str]] = [(whole, 0, value, "")]  # without recursion: nesting may be hostile
    while open_places:
        place, key, item, name = open_places.pop()
        if isinstance(item, Mapping):
            made: dict[Any, Any] = {}
            place[key] = made
            for inner, (shown, called) in zip(item.values(), _names(item, counts, public_ips, people), strict=True):
                made[shown] = None
                open_places.append((made, shown, inner, called))
        elif isinstance(item, (list, tuple)):
            place[key] = items = [None] * len(item)
            told = _as_one(item, counts) if len(item) > 1 and all(isinstance(inner, str) for inner in item) else item
            open_places.extend((items, index, inner, name) for index, inner in enumerate(told))
        elif name and is_secret_value(name, item):
            place[key] = f"[{_counted(name, counts)}]"
        else:
            place[key] = _redacted(item, counts, public_ips, people) if isinstance(item, str) else item
    return whole[0]


def _as_one(items: Sequence[str], counts: Counter[str] | None) -> Sequence[str]:
    """Return a list of texts without the secrets that only all of them tell: the lines of a key, the words of a command."""
    lines = any("PRIVATE KEY" in item for item in items)
    if not lines and not any(item.startswith("-") for item in items):
        return items
    made = list(items)
    for index, option in enumerate(items[:-1]):  # `--password` and its value, whatever it looks like
        kind = names_secret(option.lstrip("-")) if option.startswith("-") else ""
        if kind and not items[index + 1].startswith("-") and is_secret_value(kind, items[index + 1]):
            made[index + 1] = f"[{_counted(kind, counts)}]"
    found: list[Span] = []
    whole = folded(("\n" if lines else " ").join(made))
    (find_private_keys if lines else find_commands)(whole, found)
    return list(_divided(made, sorted(found), counts))


def _divided(items: Sequence[str], found: Sequence[Span], counts: Counter[str] | None) -> Iterator[str]:
    """Yield the items without what was found in all of them, joined by one character; what spans several is counted once."""
    at = first = 0
    for item in items:
        end = at + len(item)
        while first < len(found) and found[first][1] <= at:
            first += 1
        inside, last = [], first
        while last < len(found) and found[last][0] < end:
            inside.append((max(0, found[last][0] - at), min(len(item), found[last][1] - at), found[last][2]))
            last += 1
        begun = bool(inside) and found[first][0] >= at
        yield replaced(item, inside, _RANKS, counts if begun else None) if inside else item
        at = end + 1


def _names(item: Mapping[Any, Any], counts: Counter[str] | None, public_ips: bool, people: bool) -> Iterator[tuple[Any, str]]:
    """Yield how each name of an object is shown, and the kind of secret that it announces (empty for none)."""
    titles = [item.get(title) for title in ("name", "key")]
    pair = next((kind for title in titles if isinstance(title, str) and (kind := names_secret(title))), "")
    for name in item:
        if isinstance(name, str):
            yield _redacted(name, counts, public_ips, people), (pair if name == "value" else names_secret(name))
        else:
            yield name, ""


def _counted(kind: str, counts: Counter[str] | None) -> str:
    if counts is not None:
        counts[kind] += 1
    return kind


def kinds_table() -> str:
    """Return the kinds as a table for documentation."""
    rows = [f"| `[{kind}]` | {what} |" for kind, what in KINDS.items()]
    return "\n".join(["| placeholder | stands for |", "|---|---|", *rows]) + "\n"
