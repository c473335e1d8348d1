"""Passwords and other secrets that are known by what stands before them: a name, a header, a command's option, a URL's user.

Names are looked for as words ("password", "api_key"), then what follows must be an assignment in one of the notations of
configuration files, JSON, YAML, XML, shells, connection strings and programs, and the value must be one that tells something
(`values`). Prose about passwords stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sysscan_models.redaction.gates import pattern
from sysscan_models.redaction.literals import BARE, JUDGED, Value, accepted, value_at
from sysscan_models.redaction.names import CODE_PREFIX, Sure, kind_of, names_in
from sysscan_models.redaction.sentences import told_after
from sysscan_models.redaction.spans import PLACEHOLDER, Span
from sysscan_models.redaction.values import is_expression, is_strong, is_word, tells_nothing

_QUOTES = "\"'`"
_TYPE = r"(?:str|string|String|bytes|SecretStr|Optional\[str\]|&str|&'static str)(?: ?\| ?None)?"
_ASSIGN = re.compile(
    rf"(?P<close>\\{{0,3}}[{_QUOTES}]\]?|(?<=['\"])\]|\}})?"
    rf"(?:[ \t]{{0,24}}:[ \t]{{0,4}}{_TYPE}[ \t]{{0,4}}=|[ \t]{{0,24}}(?:=>|:=|[!=]==?|=|:)"
    rf"|(?:,|/)?\s{{0,40}}\\{{0,3}}[\"']?value\\{{0,3}}[\"']?[ \t]{{0,4}}[:=](?=[ \t]*\S))[ \t]{{0,24}}"
)
_ELEMENT = re.compile(r">([^<>\s][^<>\n]{0,400})</")
_DIRECT = ("require", "bind", "root", "wpa-", "master")
"""Beginnings of names in configuration files that have a space before the value: requirepass, bindpw, rootpw, masterauth."""
_BRACKETS = frozenset("()[]{}")
_REST_IS_EMPTY = re.compile(r"[ \t]{0,40}(?:$|[\r\n#,;}\]&|`\"'\\]|//|</)")
_NAME_BEFORE = re.compile(
    r"(?:^|\n|\\[nrt]|\\u000[aAdD])[ \t\"'#;>*`\\{$-]{0,40}"
    r"(?:(?:export|set|env|setenv|ENV|ARG|const|let|var|define)[ \t]{1,4})?[\w.$:\"'\[-]{0,60}\Z"
)
_LOGIN_BEFORE = re.compile(r"\blogin\s{1,8}\S{1,128}\s{1,8}\Z")
_MACHINE_BEFORE = re.compile(r"\b(?:machine\s{1,8}\S{1,128}|default)\s{1,8}login")
_MACHINE = re.compile(r"(?:^|\n)[ \t]{0,8}machine\s{1,8}\S{1,128}\s{1,8}(?:(?:login|account)\s{1,8}\S{1,128}\s{1,8}){0,2}\Z")
_OPTION_BEFORE = re.compile(r"(?:^|[\s\"'`(\[])--?[A-Za-z-]{0,30}\Z")
_FLAG_VALUE = re.compile(r"[ \t]{1,8}(?![-<{\[$|/(])")
_SQL = re.compile(r"\s{0,4}\(?\s{0,4}(?=N?')")
_PAIR = re.compile(r"[\"'](?:[ \t]{0,4},\s{0,40}|[ \t]{0,4}\n[ \t]{0,40}- )(?=[\"'])|\n[ \t]{0,40}- (?=[^\s-])")
_ARGUMENT_BEFORE = re.compile(r"[\"'\s]--?[\w-]{0,40}\Z")
_MAY_GO_ON = frozenset((" ", "\t", ",", "\n"))
_DEFINE_BEFORE = re.compile(r"\b(?:define|setenv|putenv|set)\([ \t]{0,4}[\"'][\w.]{0,40}\Z", re.IGNORECASE)
_SPACED = re.compile(r"\s{1,8}(?:--(?:plaintext|iscrypted)[ \t]{1,4})?(?=[^\s,;])")


def find_passwords(text: str, lower: str, found: list[Span]) -> None:
    """Append the secrets that a name or a URL announces; `lower` is the text in small letters, of the same length."""
    if "://" in text and "@" in text:
        found.extend(_in_urls(text))
    for stem, names in names_in(lower).items():
        if stem in lower:
            for name, sure in names:
                found.extend(_assigned(text, lower, stem, name, sure))
    if "identified" in lower:
        found.extend(_quoted_after(text, _IDENTIFIED))
    if ":" in text and _FIELDS(text):
        found.extend(_pgpass(text))


def _assigned(text: str, lower: str, stem: str, name: re.Pattern[str], sure: Sure) -> Iterator[Span]:
    at, done = lower.find(stem), 0
    while at >= 0:
        known = name.match(lower, at) if at >= done else None
        if known is None or not _ends_a_name(text, known.end()):
            at = lower.find(stem, at + len(stem))
            continue
        value = _value_after(text, at, known.end(), sure)
        if value is not None:
            done = _whole_end(text, value)
            yield value.start, done, kind_of(lower[max(0, at - 24) : known.end()], sure)
        at = lower.find(stem, max(known.end(), done))


def _whole_end(text: str, value: Value) -> int:
    """Return where a value ends; one without quotes may be longer than what it was judged by."""
    if value.quoted or value.end - value.start < JUDGED - 8:
        return value.end
    rest = BARE.match(text, value.end)
    return rest.end() if rest else value.end


def _ends_a_name(text: str, end: int) -> bool:
    """Return whether a name ends here, and not another one that begins like it (passwordFile, token_type)."""
    after = text[end : end + 1]
    return not (after.isalnum() or after in ("_", "-") or (after == "." and text[end + 1 : end + 2].isalpha()))


def _value_after(text: str, at: int, end: int, sure: Sure) -> Value | None:
    """Return the secret that the name at `at` to `end` announces, None where none follows."""
    if assign := _ASSIGN.match(text, end):
        value = value_at(text, assign.end())
        return value if value and _announced(text, at, assign, value, sure) else None
    if element := _ELEMENT.match(text, end):
        value = Value(*element.span(1), element[1], True)
        return value if accepted(value, sure) else None
    before = text[max(0, at - 160) : at]
    if pair := _PAIR.match(text, end):
        value = value_at(text, pair.end())
        argument = _ARGUMENT_BEFORE.search(before)
        told = value and not value.text.startswith("-") and (argument or _DEFINE_BEFORE.search(before))
        return value if value and told and accepted(value, Sure.ANY if argument else sure) else None
    if _SPACED.match(text, end) and (value := _after_space(text, end, before, text[at:end])):
        return value
    if text[at:end].isupper() and (sql := _SQL.match(text, end)):
        value = value_at(text, sql.end())
        return value if value and accepted(value, Sure.ANY) else None
    if text[end : end + 1] in _MAY_GO_ON:
        return told_after(text, end, password=kind_of(text[at:end].lower(), sure) == "PASSWORD", verb=sure is Sure.STRONG)
    return None


def _after_space(text: str, end: int, before: str, name: str) -> Value | None:
    """Return a secret that only a space divides from its name: netrc, an option of a command, SQL."""
    if name.isupper() and (sql := _SQL.match(text, end)):
        value = value_at(text, sql.end())
        return value if value and accepted(value, Sure.ANY) else None
    if name == "password" and (_LOGIN_BEFORE.search(before) or _MACHINE.search(before)):
        value = value_at(text, _SPACED.match(text, end).end())  # type: ignore[union-attr]  # the caller has seen it
        if value is None or tells_nothing(value.text):
            return None
        told = not is_word(value.text) or _MACHINE_BEFORE.search(before) or _MACHINE.search(before)
        return value if told else None
    if _OPTION_BEFORE.search(before[-40:]) and (flag := _FLAG_VALUE.match(text, end)):
        value = value_at(text, flag.end())
        if value and accepted(value, Sure.ANY) and (value.quoted or not is_word(value.text) or _ends_command(text, value)):
            return value
    if (name.startswith("community") or before.endswith(_DIRECT)) and text[end : end + 1] in " \t":
        value = value_at(text, _SPACED.match(text, end).end())  # type: ignore[union-attr]
        return value if value and accepted(value, Sure.ANY) else None
    return None


def _ends_command(text: str, value: Value) -> bool:
    """Return whether what follows an option's value belongs to a command; a plain word in a sentence is no password."""
    after = text[value.end : value.end + 3]
    return (
        value.text.islower() and len(value.text) > 5 and (after[:2] == " -" or after[:3] in (" &&", " ||") or after[:1] == "`")
    )


def _announced(text: str, at: int, assign: re.Match[str], value: Value, sure: Sure) -> bool:
    """Return whether an assignment, and not a sentence with a colon in it, gives the name this value."""
    before = text[max(0, at - 100) : at]
    if before[-1:] == "[" and not assign["close"]:
        return False  # a placeholder, or the name of a section
    if text[at : assign.start()] == "PASS" and ":" in assign[0] and before[-1:] not in ("_", '"', "'"):
        return False  # the report of a test
    if text[at : assign.start()].lower() == "pwd" and value.text.startswith(("/", "~", "./", "../")):
        return False  # where a shell is
    if CODE_PREFIX.search(before[-12:]) and not is_strong(value.text):
        return False
    if not value.quoted and assign[0] == ":" and (before[-1:] == ":" or value.text[0] == ":"):
        return False  # fields of a record, a name in C++
    if not value.quoted and not sure and not _BRACKETS.isdisjoint(value.text):
        return False
    if value.quoted:
        return accepted(value, sure) and not _is_comparison_of_words(assign[0], value)
    if is_expression(value.text) or not accepted(value, sure):
        return False
    if not is_word(value.text):
        return is_strong(value.text, 5) or "=" in assign[0]
    return _lone_word(text, before, assign[0], value, sure)


def _is_comparison_of_words(assign: str, value: Value) -> bool:
    return ("==" in assign or "!=" in assign) and is_word(value.text) and len(value.text) < 6


def _lone_word(text: str, before: str, assign: str, value: Value, sure: Sure) -> bool:
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
    if sure is Sure.TOLD:
        return False
    return value.text.islower() and len(value.text) > 4 and _NAME_BEFORE.search(before) is not None


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


_IDENTIFIED = re.compile(
    r"identified\s{1,4}(?:with\s{1,4}\S{1,64}\s{1,4})?(?:by|as)\s{1,4}(?:password\s{1,4})?(?=['\"\\])", re.IGNORECASE
)


def _quoted_after(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    for match in pattern.finditer(text):
        value = value_at(text, match.end())
        if value and not tells_nothing(value.text):
            yield value.start, value.end, "PASSWORD"


_PGPASS = re.compile(
    r":(?:5432|\*|\d{4,5}):(?!\d{1,8}:)[^:\s]{1,63}:[^:\s]{1,63}:((?:[^\s\\\"':]|\\[:\\]){3,256})(?![^\s\\\"'])"
)
_FIELDS = pattern(r":(?:\*|[0-9]{4,5}):[^:\s]{1,63}:[^:\s]{1,63}:[^:\s]")
_HOST_BEFORE = re.compile(r"(?:^|[\s\"'`]|\\n)[\w.*/-]{1,253}\Z")


def _pgpass(text: str) -> Iterator[Span]:
    for match in _PGPASS.finditer(text):
        known = text.startswith((":5432:", ":*:"), match.start()) or is_strong(match[1], 6)
        host = _HOST_BEFORE.search(text[max(0, match.start() - 254) : match.start()])
        if known and host and not tells_nothing(match[1]):
            yield *match.span(1), "PASSWORD"
