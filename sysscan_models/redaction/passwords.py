"""Passwords and other secrets that are known by what stands before them: a name, a header, a command's option, a URL's user.

Names are looked for as words ("password", "api_key"), then what follows must be an assignment in one of the notations of
configuration files, JSON, YAML, XML, shells, connection strings and programs, and the value must be one that tells something
(`values`). Prose about passwords stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sysscan_models.redaction.spans import PLACEHOLDER, Span
from sysscan_models.redaction.values import is_expression, is_prose, is_strong, is_word, tells_nothing

_LEFT = r"(?<![a-z])"
_STEMS: tuple[tuple[str, re.Pattern[str], bool], ...] = (
    # what is searched for, the whole name from there on, whether any value under the name is a secret
    ("pass", re.compile(r"pass(?:word|wd|wort|phrase|code|wrd|_?key)(?:_?\d{1,2})?(?![a-z0-9])"), True),
    ("pass", re.compile(r"(?<!by)(?<!com)(?<!tres)(?<!sur)(?<!under)(?<!over)pass(?:_?\d{1,2})?(?![a-z0-9])"), False),
    ("pass", re.compile(r"(?<=require)pass(?![a-z0-9])"), True),
    ("pw", re.compile(r"(?<!old)pwd(?![a-z0-9])|(?<=bind)pwd?(?![a-z])|(?<=root)pwd?(?![a-z])|(?<![a-z])pw(?![a-z0-9])"), True),
    ("secret", re.compile(r"secret(?:[_-]?access[_-]?key|[_-]?key(?:[_-]?base)?)?(?:_?\d{1,2})?(?![a-z0-9])"), False),
    ("token", re.compile(r"token(?:_?\d{1,2})?(?![a-z0-9])"), False),
    (
        "key",
        re.compile(
            r"(?:(?<=api)|(?<=api[_ .-])|(?<=access)|(?<=access[_.-])|(?<=private)|(?<=private[_.-])|(?<=auth)|(?<=auth[_.-])"
            r"|(?<=encryption)|(?<=encryption[_.-])|(?<=encrypt[_.-])|(?<=signing)|(?<=signing[_.-])|(?<=master)|(?<=master[_.-])"
            r"|(?<=account)|(?<=account[_.-])|(?<=shared)|(?<=shared[_.-])|(?<=storage[_.-])|(?<=license[_.-])|(?<=service[_.-])"
            r"|(?<=app[_.-])|(?<=client[_.-])|(?<=session[_.-])|(?<=consumer[_.-])|(?<=deploy[_.-]))key(?:_?\d{1,2})?(?![a-z0-9])"
        ),
        False,
    ),
    ("psk", re.compile(rf"{_LEFT}psk(?![a-z0-9])"), False),
    ("auth", re.compile(r"(?<![a-z-])(?:masterauth|auth(?:tok(?:en)?)?)(?![a-z0-9])"), False),
)
_NAMES = {stem: tuple((name, always) for other, name, always in _STEMS if other == stem) for stem, _, _ in _STEMS}
_QUOTES = "\"'`"
_TYPE = r"(?:str|string|String|bytes|SecretStr|Optional\[str\]|&str|&'static str)(?: ?\| ?None)?"
_ASSIGN = re.compile(
    rf"(?P<close>\\{{0,3}}[{_QUOTES}]\]?|(?<=['\"])\]|\}})?"
    rf"(?:[ \t]{{0,24}}:[ \t]{{0,4}}{_TYPE}[ \t]{{0,4}}=|[ \t]{{0,24}}(?:=>|:=|[!=]==?|=|:)"
    rf"|(?:,|/)?\s{{0,40}}\\{{0,3}}[\"']?value\\{{0,3}}[\"']?[ \t]{{0,4}}[:=](?=[ \t]*\S))[ \t]{{0,24}}"
)
_ELEMENT = re.compile(r">([^<>\s][^<>\n]{0,400})</")
_OPENING = re.compile(r"(?:[rbfuLN@]{1,2}(?=[\"']))?(\\{0,3})([\"'`])")
_DOUBLE = re.compile(r"[^\"\\\r\n]{0,4096}(?:\\.[^\"\\\r\n]{0,4096}){0,256}(?=\")")
_SINGLE = re.compile(r"[^'\r\n]{0,4096}(?:''[^'\r\n]{1,4096}){0,64}(?=')")
_TICKED = re.compile(r"[^`\r\n]{0,4096}(?=`)")
_BARE = re.compile(  # a separator ends the value if another name, a quote or nothing follows it
    r"(?:[^\s\"'`,;&|<>\\]+|[,;&|](?!\s|[\"'`\\]|[\w.-]{1,40}[ \t]?[=:]|\Z)|\\(?![nrtu\"'\\]|\Z)|"
    r"[\"'](?=[^\s\"'`,;:&|<>)\]}\\]))+"
)
_JUDGED = 512
"""Characters by which a value without quotes is judged; only one that is a secret is read to its end."""
_BRACKETS = frozenset("()[]{}")
_REST_IS_EMPTY = re.compile(r"[ \t]{0,40}(?:$|[\r\n#,;}\]&|`\"'\\]|//|</)")
_NAME_BEFORE = re.compile(
    r"(?:^|\n|\\[nrt]|\\u000[aAdD])[ \t\"'#;>*`\\{$-]{0,40}"
    r"(?:(?:export|set|env|setenv|ENV|ARG|const|let|var|define)[ \t]{1,4})?[\w.$:\"'\[-]{0,60}\Z"
)
_CODE_PREFIX = re.compile(
    r"(?:no|empty|require[sd]?|allow|permit|max|min|show|hide|has|is|old|use|force|skip|disable|enable|with|without|num|n|count)[_-]?\Z",
    re.IGNORECASE,
)
_LOGIN_BEFORE = re.compile(r"\blogin\s{1,8}\S{1,128}\s{1,8}\Z")
_MACHINE_BEFORE = re.compile(r"\b(?:machine\s{1,8}\S{1,128}|default)\s{1,8}login")
_OPTION_BEFORE = re.compile(r"(?:^|[\s\"'`(\[])--?[A-Za-z-]{0,30}\Z")
_FLAG_VALUE = re.compile(r"[ \t]{1,8}(?![-<{\[$|/(])")
_SQL = re.compile(r"\s{0,4}\(?\s{0,4}(?=N?')")
_PAIR = re.compile(r"[\"'][ \t]{0,4},[ \t]{0,4}(?=[\"'])")
_DEFINE_BEFORE = re.compile(r"\b(?:define|setenv|putenv|set)\([ \t]{0,4}[\"'][\w.]{0,40}\Z", re.IGNORECASE)
_SPACED = re.compile(r"\s{1,8}(?=[^\s,;])")


class _Value(NamedTuple):
    start: int
    end: int
    text: str
    quoted: bool
    ticked: bool = False
    """Whether the quotes are backticks, as documents put around commands."""


def find_passwords(text: str, found: list[Span]) -> None:
    """Append the secrets that a name, a header, a command or a URL announces; time grows with the text's length."""
    if "://" in text and "@" in text:
        found.extend(_in_urls(text))
    lower = text.lower()
    if len(lower) != len(text):  # one capital (I with a dot) has two characters when small
        lower = text.translate(_SMALL)
    for stem, names in _NAMES.items():
        if stem in lower:
            for name, always in names:
                found.extend(_assigned(text, lower, stem, name, always))
    if "auth" in lower or "bearer" in lower:
        found.extend(_headers(text))
    if "identified" in lower:
        found.extend(_quoted_after(text, _IDENTIFIED))
    if " -" in text or "chpasswd" in lower:
        for literal, pattern in _COMMANDS:
            if literal in text:
                found.extend(_by_command(text, pattern))
    if ":5432:" in text or ":*:" in text:
        found.extend(_pgpass(text))


_SMALL = {ord(capital): capital.lower() for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def _assigned(text: str, lower: str, stem: str, name: re.Pattern[str], always: bool) -> Iterator[Span]:
    at, done = lower.find(stem), 0
    while at >= 0:
        known = name.match(lower, at) if at >= done else None
        if known is None or not _ends_a_name(text, known.end()):
            at = lower.find(stem, at + len(stem))
            continue
        value = _value_after(text, at, known.end(), always)
        if value is not None:
            done = _whole_end(text, value)
            yield value.start, done, _kind(lower[max(0, at - 24) : known.end()], always)
        at = lower.find(stem, max(known.end(), done))


def _whole_end(text: str, value: _Value) -> int:
    """Return where a value ends; one without quotes may be longer than what it was judged by."""
    if value.quoted or value.end - value.start < _JUDGED - 8:
        return value.end
    rest = _BARE.match(text, value.end)
    return rest.end() if rest else value.end


def names_secret(name: str) -> str:
    """Return the kind of secret that the name of an object's member announces; empty for none."""
    lower = name.strip().lower()
    for stem, pattern, always in _STEMS:
        known = pattern.match(lower, lower.rfind(stem)) if stem in lower else None
        if known and known.end() == len(lower) and not _CODE_PREFIX.search(lower[: known.start()]):
            return _kind(lower, always)
    return ""


def is_secret_value(kind: str, value: object) -> bool:
    """Return whether a value under a name of this kind is a secret, however harmless it looks by itself."""
    if isinstance(value, str):
        told = not tells_nothing(value) and not PLACEHOLDER.match(value) and not is_prose(value)
        return told and (kind == "PASSWORD" or is_strong(value, 6) or not is_word(value))
    return kind == "PASSWORD" and isinstance(value, int) and not isinstance(value, bool) and value >= 1000


def _ends_a_name(text: str, end: int) -> bool:
    """Return whether a name ends here, and not another one that begins like it (passwordFile, token_type)."""
    after = text[end : end + 1]
    return not (after.isalnum() or after in ("_", "-") or (after == "." and text[end + 1 : end + 2].isalpha()))


def _kind(name: str, always: bool) -> str:
    if "secret" in name and "access" in name and "key" in name:
        return "AWS_SECRET_KEY"
    return "PASSWORD" if always or name.endswith("pass") else "SECRET"


def _value_after(text: str, at: int, end: int, always: bool) -> _Value | None:
    """Return the secret that the name at `at` to `end` announces, None where none follows."""
    if assign := _ASSIGN.match(text, end):
        value = _value(text, assign.end())
        return value if value and _announced(text, at, assign, value, always) else None
    if element := _ELEMENT.match(text, end):
        value = _Value(*element.span(1), element[1], True)
        return value if _accepted(value, always) else None
    before = text[max(0, at - 160) : at]
    if (pair := _PAIR.match(text, end)) and _DEFINE_BEFORE.search(before):
        value = _value(text, pair.end())
        return value if value and _accepted(value, always) else None
    if _SPACED.match(text, end):
        return _after_space(text, end, before, text[at:end])
    if text[at:end].isupper() and (sql := _SQL.match(text, end)):
        value = _value(text, sql.end())
        return value if value and _accepted(value, True) else None
    return None


def _after_space(text: str, end: int, before: str, name: str) -> _Value | None:
    """Return a secret that only a space divides from its name: netrc, an option of a command, SQL."""
    if name.isupper() and (sql := _SQL.match(text, end)):
        value = _value(text, sql.end())
        return value if value and _accepted(value, True) else None
    if _LOGIN_BEFORE.search(before) and name == "password":
        value = _value(text, _SPACED.match(text, end).end())  # type: ignore[union-attr]  # the caller has seen it
        if value is None or tells_nothing(value.text):
            return None
        return value if (not is_word(value.text) or _MACHINE_BEFORE.search(before)) else None
    if _OPTION_BEFORE.search(before[-40:]) and (flag := _FLAG_VALUE.match(text, end)):
        value = _value(text, flag.end())
        if value and _accepted(value, True) and (value.quoted or not is_word(value.text) or _ends_command(text, value)):
            return value
    if (name == "masterauth" or before.endswith(("require", "bind", "root"))) and text[end : end + 1] in " \t":
        value = _value(text, _SPACED.match(text, end).end())  # type: ignore[union-attr]
        return value if value and _accepted(value, True) else None
    return None


def _ends_command(text: str, value: _Value) -> bool:
    """Return whether what follows an option's value belongs to a command; a plain word in a sentence is no password."""
    after = text[value.end : value.end + 3]
    return (
        value.text.islower() and len(value.text) > 5 and (after[:2] == " -" or after[:3] in (" &&", " ||") or after[:1] == "`")
    )


def _announced(text: str, at: int, assign: re.Match[str], value: _Value, always: bool) -> bool:
    """Return whether an assignment, and not a sentence with a colon in it, gives the name this value."""
    before = text[max(0, at - 100) : at]
    if before[-1:] == "[" and not assign["close"]:
        return False  # a placeholder, or the name of a section
    if text[at : assign.start()].lower() == "pwd" and value.text.startswith(("/", "~", "./", "../")):
        return False  # where a shell is
    if _CODE_PREFIX.search(before[-12:]) and not is_strong(value.text):
        return False
    if not value.quoted and assign[0] == ":" and (before[-1:] == ":" or value.text[0] == ":"):
        return False  # fields of a record, a name in C++
    if not value.quoted and not always and not _BRACKETS.isdisjoint(value.text):
        return False
    if value.quoted:
        return _accepted(value, always) and not _is_comparison_of_words(assign[0], value)
    if is_expression(value.text) or not _accepted(value, always):
        return False
    if not is_word(value.text):
        return is_strong(value.text, 5) or "=" in assign[0]
    return _lone_word(text, before, assign[0], value)


def _is_comparison_of_words(assign: str, value: _Value) -> bool:
    return ("==" in assign or "!=" in assign) and is_word(value.text) and len(value.text) < 6


def _lone_word(text: str, before: str, assign: str, value: _Value) -> bool:
    """Return whether a plain word is a value all the same: alone on its line, or without spaces around its equals sign."""
    if not _REST_IS_EMPTY.match(text, value.end):
        return (
            "=" in assign
            and assign.strip() == assign
            and not assign.startswith(("==", "!"))
            and text[value.end : value.end + 1] != "."
        )
    if "=" in assign and assign.strip() == assign:
        return True
    return value.text.islower() and len(value.text) > 4 and _NAME_BEFORE.search(before) is not None


def _accepted(value: _Value, always: bool) -> bool:
    """Return whether a value tells a secret; under names such as `token` only one that looks like no word does."""
    if tells_nothing(value.text) or PLACEHOLDER.match(value.text):
        return False
    if value.quoted and any(map(str.isspace, value.text)) and (is_prose(value.text) or value.ticked):
        return False
    return always or is_strong(value.text)


def _value(text: str, at: int) -> _Value | None:
    """Return the value that begins at `at`, without its quotes; None where there is none."""
    if opening := _OPENING.match(text, at):
        start = opening.end()
        end = _closing(text, start, opening[1], opening[2])
        if end > start:
            return _Value(start, end, text[start:end], True, opening[2] == "`")
        if end == start:
            return None
        at = start
    bare = _BARE.match(text, at, at + _JUDGED)
    if bare is None:
        return None
    kept = bare[0].rstrip(")]}.,:" if "(" not in bare[0] else ".,:")
    return _Value(at, at + len(kept), kept, False) if kept else None


def _closing(text: str, start: int, slashes: str, quote: str) -> int:
    """Return where a quoted value ends, -1 where it does not in a few thousand characters of its line."""
    if not slashes:
        match = {'"': _DOUBLE, "'": _SINGLE, "`": _TICKED}[quote].match(text, start)
        return match.end() if match else -1
    end = text.find(slashes + quote, start, start + 4096)
    while end > start and text[end - 1] == "\\":  # a quote within the value has more backslashes before it
        end = text.find(slashes + quote, end + len(slashes) + 1, start + 4096)
    return end


_URL = re.compile(r"://([^\s/:@\"'<>]{0,128}):((?:[^\s/@\"'<>]|[\"'](?![\s,:;>)\]}])){1,512})@(?=[\w\[$%{.-])")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}\Z")
_URL_WORDS = frozenset(("password", "passwd", "pass", "pwd", "pw", "secret", "token", "username", "xxx"))


def _in_urls(text: str) -> Iterator[Span]:
    for match in _URL.finditer(text):
        if _SCHEME.search(text[max(0, match.start() - 21) : match.start()]) and not _is_url_example(match[2]):
            yield *match.span(2), "PASSWORD"


def _is_url_example(password: str) -> bool:
    if password.lower() in _URL_WORDS or password.startswith(("${", "$(", "{{", "%(", "***")) or PLACEHOLDER.match(password):
        return True
    return password.startswith(("$", "{")) and password.strip("${}").replace("_", "").isalpha()


_HEADER = re.compile(
    r"(?:authorization\\{0,3}[\"']?\s{0,4}[:=]\s{0,4}\\{0,3}[\"']?\s{0,4}(?:(?:bearer|basic|token|apikey|negotiate|key|splunk|bot)\s{1,4})?"
    r"|\bbearer\s{1,4}(?:token\s{1,4})?[\"']?)([A-Za-z0-9._~+/=:-]{8,})",
    re.IGNORECASE,
)


def _headers(text: str) -> Iterator[Span]:
    for match in _HEADER.finditer(text):
        told, named = match[1].rstrip(".:"), match[0][:1] in "Aa"
        basic = "basic" in match[0].lower()
        if (
            basic and (is_strong(told) or told.endswith("=") or not (is_word(told) and (told.islower() or told.istitle())))
        ) or (not basic and len(told) >= (8 if named else 12) and is_strong(told)):
            yield match.start(1), match.start(1) + len(told), "BEARER_TOKEN"


_IDENTIFIED = re.compile(
    r"identified\s{1,4}(?:with\s{1,4}\S{1,64}\s{1,4})?(?:by|as)\s{1,4}(?:password\s{1,4})?(?=['\"\\])", re.IGNORECASE
)


def _quoted_after(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        value = _value(text, match.end())
        if value and not tells_nothing(value.text):
            yield value.start, value.end, "PASSWORD"


_COMMANDS = (
    ("mysql", re.compile(r"\bmysql(?:dump|admin|import|show|check)?\b[^\n|;&`]{0,200}?\s-p(?=['\"]|[^\s'\"-]{4})")),
    ("mariadb", re.compile(r"\bmariadb(?:-dump|-admin)?\b[^\n|;&`]{0,200}?\s-p(?=['\"]|[^\s'\"-]{4})")),
    ("sshpass", re.compile(r"\bsshpass\s{1,4}-p\s{0,4}")),
    ("redis-cli", re.compile(r"\bredis-cli\b[^\n|;&`]{0,160}?\s-a\s{1,4}")),
    ("ldap", re.compile(r"\bldap(?:search|add|modify|passwd|delete|whoami)\b[^\n|;&`]{0,240}?\s-w\s{0,4}(?!-)")),
    ("pass:", re.compile(r"(?:-pass(?:in|out)?|-[kK])\s{1,4}['\"]?pass:")),
    (
        "chpasswd",
        re.compile(r"\becho\s{1,4}(?:-[ne]\s{1,4})?['\"]?[\w.-]{1,64}:(?=[^\n|]{3,200}\|\s{0,4}(?:sudo\s{1,4})?chpasswd)"),
    ),
    ("curl", re.compile(r"\bcurl\b[^\n|;`]{0,240}?\s(?:-u|--user|--proxy-user|-U)[ =]{0,2}['\"]?[^\s:'\"]{1,64}:")),
    ("wget", re.compile(r"\bwget\b[^\n|;`]{0,240}?\s--(?:http-|ftp-|proxy-)?password[ =]")),
    ("htpasswd", re.compile(r"\bhtpasswd\s{1,4}-[a-zA-Z]{0,6}b[a-zA-Z]{0,6}\s{1,4}\S{1,128}\s{1,4}\S{1,64}\s{1,4}")),
    ("smbclient", re.compile(r"\bsmbclient\b[^\n|;&`]{0,160}?\s-U\s{0,4}['\"]?[\w.\\/-]{1,64}%")),
)


def _by_command(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        value = _value(text, match.end())
        if value and not tells_nothing(value.text) and not value.text.startswith(("{", "-")):
            end = value.end
            yield value.start, end, "PASSWORD"


_PGPASS = re.compile(
    r"(?:^|(?<=\n)|(?<=\\n))[^:\s\\]{1,253}:(?:5432|\*):[^:\s]{1,63}:[^:\s]{1,63}:((?:[^\s\\\"']|\\[:\\]){3,256})"
)


def _pgpass(text: str) -> Iterator[Span]:
    for match in _PGPASS.finditer(text):
        if not tells_nothing(match[1]):
            yield *match.span(1), "PASSWORD"
