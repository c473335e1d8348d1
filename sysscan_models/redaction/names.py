"""Names that announce a secret: `password`, `api_key`, `secret`, and what other languages call a password.

A name says more or less: whatever stands under `password` is one, under `token` only what looks drawn by lot. Where names and
their values stand in a text is for `passwords`; names of environment variables and options end in these words, too.
"""

from __future__ import annotations

import re
from enum import IntEnum

from sysscan_models.redaction.gates import words
from sysscan_models.redaction.spans import PLACEHOLDER
from sysscan_models.redaction.values import is_prose, is_strong, is_word, tells_nothing


class Sure(IntEnum):
    """How sure it is that what stands under a name is a secret."""

    STRONG = 0
    """Only if it looks like no word."""
    TOLD = 1
    """Unless it is a plain word, without quotes and alone: a word of a language whose prose is not known here."""
    ANY = 2


_STEMS: tuple[tuple[str, re.Pattern[str], Sure], ...] = (
    # what is searched for, the whole name from there on, how sure it is
    ("pass", re.compile(r"pass(?:word|wd|wort|phrase|code|wrd|_?key)(?:_?\d{1,2})?(?![a-z0-9])"), Sure.ANY),
    ("pass", re.compile(r"(?<!by)(?<!com)(?<!tres)(?<!sur)(?<!under)(?<!over)pass(?:_?\d{1,2})?(?![a-z0-9])"), Sure.STRONG),
    ("pass", re.compile(r"(?<=require)pass(?![a-z0-9])"), Sure.ANY),
    (
        "pass",
        re.compile(r"(?<=mot de )passe?\b|(?<=mot_de_)passe|(?<=mot-de-)passe|(?<=motde)passe|(?<=palavra[_-])passe|passord\b"),
        Sure.TOLD,
    ),
    (
        "pw",
        re.compile(r"(?<!old)pwd(?![a-z0-9])|(?<=bind)pwd?(?![a-z])|(?<=root)pwd?(?![a-z])|(?<![a-z])pw(?![a-z0-9])"),
        Sure.ANY,
    ),
    ("secret", re.compile(r"secret(?:[_-]?access[_-]?key|[_ -]?key(?:[_-]?base)?)?(?:_?\d{1,2})?(?![a-z0-9])"), Sure.STRONG),
    ("token", re.compile(r"token(?:_?\d{1,2})?(?![a-z0-9])"), Sure.STRONG),
    (
        "key",
        re.compile(
            r"(?:(?<=api)|(?<=api[_ .-])|(?<=access)|(?<=access[_ .-])|(?<=private)|(?<=private[_.-])|(?<=auth)|(?<=auth[_.-])"
            r"|(?<=encryption)|(?<=encryption[_.-])|(?<=encrypt[_.-])|(?<=signing)|(?<=signing[_.-])|(?<=master)|(?<=master[_.-])"
            r"|(?<=account)|(?<=account[_.-])|(?<=shared)|(?<=shared[_.-])|(?<=storage[_.-])|(?<=license[_.-])|(?<=service[_.-])"
            r"|(?<=app[_.-])|(?<=client[_.-])|(?<=session[_.-])|(?<=consumer[_.-])|(?<=deploy[_.-])|(?<=fernet[_.-]))"
            r"key(?:_?\d{1,2})?(?:-data)?(?![a-z0-9])"
        ),
        Sure.STRONG,
    ),
    ("psk", re.compile(r"(?<![a-z])psk(?![a-z0-9])"), Sure.STRONG),
    ("shared", re.compile(r"(?<=pre)shared[_ -]?key(?![a-z0-9])|(?<=pre[_ -])shared[_ -]?key(?![a-z0-9])"), Sure.STRONG),
    ("auth", re.compile(r"(?:(?<![a-z-])auth(?:tok(?:en)?)?|(?<=master)auth)(?![a-z0-9])"), Sure.STRONG),
    ("community", re.compile(r"(?<=r[ow])community6?(?![a-z0-9])|(?<=snmp-server )community(?![a-z0-9])"), Sure.STRONG),
    *(
        (stem, re.compile(rf"(?<![a-z]){name}(?!\w)"), sure)
        for stem, name, sure in (
            ("kennwort", "kennwort", Sure.TOLD),
            ("contrase", "contrase[ñn]as?", Sure.TOLD),
            ("senha", "senha", Sure.TOLD),
            ("wachtwoord", "wachtwoord", Sure.TOLD),
            ("mdp", "mdp", Sure.TOLD),
            ("clave", "clave(?: secreta)?", Sure.STRONG),
            ("parola", "parola(?: chiave| d'ordine| d'accesso)?", Sure.STRONG),
            ("geheimnis", "geheimnis", Sure.STRONG),
            ("haslo", "haslo", Sure.TOLD),
            ("heslo", "heslo", Sure.TOLD),
        )
    ),
)
_FURTHER: tuple[tuple[str, re.Pattern[str], Sure], ...] = tuple(
    (stem, re.compile(rf"(?<![^\W_]){name}(?!\w)"), sure)
    for stem, name, sure in (
        ("парол", "парол(?:ь|я|ю|ем|и|ей)", Sure.TOLD),
        ("hasło", "hasło", Sure.TOLD),
        ("lösenord", "lösenord", Sure.TOLD),
        ("jelszó", "jelszó", Sure.TOLD),
        ("şifre", "şifre(?:si)?", Sure.STRONG),
        ("schlüssel", "schlüssel", Sure.STRONG),
        ("secrète", "secrète", Sure.STRONG),
    )
)
"""Names that are looked for only in text that is not all ASCII."""
Names = dict[str, tuple[tuple[re.Pattern[str], Sure], ...]]


def _by_stem(stems: tuple[tuple[str, re.Pattern[str], Sure], ...]) -> Names:
    return {stem: tuple((name, sure) for other, name, sure in stems if other == stem) for stem, _, _ in stems}


_COMMON = frozenset(("pass", "pw", "secret", "token", "key", "auth"))
_RARE = words(stem for stem, _, _ in _STEMS if stem not in _COMMON)
_ALL, _ASCII = _by_stem(_STEMS + _FURTHER), _by_stem(_STEMS)
_FEW = {stem: names for stem, names in _ASCII.items() if stem in _COMMON}
CODE_PREFIX = re.compile(
    r"(?:no|empty|require[sd]?|allow|permit|max|min|show|hide|has|is|old|use|force|skip|disable|enable|with|without|num|n|count)[_-]?\Z",
    re.IGNORECASE,
)


def names_in(lower: str) -> Names:
    """Return what to look for in a text in small letters: what is searched for first -> names that begin with it."""
    if lower.isascii():
        return _ASCII if _RARE(lower) else _FEW
    return _ALL


def names_secret(name: str) -> str:
    """Return the kind of secret that the name of an object's member announces; empty for none."""
    lower = name.strip().lower()
    for stem, pattern, sure in _STEMS if lower.isascii() else _STEMS + _FURTHER:
        known = pattern.match(lower, lower.rfind(stem)) if stem in lower else None
        if known and known.end() == len(lower) and not CODE_PREFIX.search(lower[: known.start()]):
            return kind_of(lower, sure)
    return ""


def is_secret_value(kind: str, value: object) -> bool:
    """Return whether a value under a name of this kind is a secret, however harmless it looks by itself."""
    if isinstance(value, str):
        told = not tells_nothing(value) and not PLACEHOLDER.match(value) and not is_prose(value)
        return told and (kind == "PASSWORD" or is_strong(value, 6) or not is_word(value))
    return kind == "PASSWORD" and isinstance(value, int) and not isinstance(value, bool) and value >= 1000


def kind_of(name: str, sure: Sure) -> str:
    """Return the kind of secret that stands under a name."""
    if "secret" in name and "access" in name and "key" in name:
        return "AWS_SECRET_KEY"
    return "PASSWORD" if sure is not Sure.STRONG or name.endswith("pass") else "SECRET"
