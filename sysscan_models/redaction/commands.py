"""Passwords on command lines: as an option of a program that takes one (`sshpass -p`, `curl -u user:`), or at a fixed place.

`-p` is a port, a path or a protocol to most programs, so an option counts only behind the name of a program that means a
password by it. The words of a command may also be those of a list (`["sshpass", "-p", "x"]`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sysscan_models.redaction.gates import pattern, words
from sysscan_models.redaction.literals import Value, value_at
from sysscan_models.redaction.spans import Span
from sysscan_models.redaction.values import is_expression, tells_nothing

_PROGRAMS = {  # letters of the option -> programs, how the value may follow (attached, spaced), a user stands before it
    "p": (
        r"mysql(?:dump|admin|import|show|check|_\w+)?|mariadb(?:-dump|-admin)?|7z[ar]?|(?:un)?rar|sshpass",
        r"sshpass|(?:docker|podman|buildah|skopeo|nerdctl|helm|oc|cf|az)[ \t][^\n]{0,80}?login|mongo\w*|smbmap"
        r"|crackmapexec|cme|nxc|netexec|evil-winrm|psexec\w*"
        r"|rdesktop|ncftp\w*|hydra|medusa|useradd|usermod|influx|arangosh|vncdo\w*|kinit",
    ),
    "hp": (r"rar", ""),
    "pw": ("", r"plink|pscp|psftp|putty|kitty|plink\.exe"),
    "P": (r"sqlcmd|osql|isql|bcp", r"sqlcmd|osql|isql|bcp|zip|unzip|ipmitool|mosquitto_\w+|hydra"),
    "a": ("", r"redis-cli|http|https"),
    "w": (r"ldap\w+", r"ldap\w+"),
    "A": ("", r"snmp\w+"),
    "X": ("", r"snmp\w+"),
    "k": ("", r"openssl"),
}
_BEFORE = r"(?:^|[\s\"'`/\\(\[$])(?:%s)(?:\.exe)?(?:[\"',\s]|$)"
_ATTACHED = {option: re.compile(_BEFORE % attached) for option, (attached, _) in _PROGRAMS.items() if attached}
_SPACED = {option: re.compile(_BEFORE % spaced) for option, (_, spaced) in _PROGRAMS.items() if spaced}
_OPTION = re.compile(
    r"-(?<=[\s\"'].)(?:(hp|p(?!w[ \"'])|P|w(?='))(?=[^\s\"',-]{3}|['\"][^\s,\]:)])"
    r"|(pw|[pPaAwXk])(?:[\"'],[ \t]{0,4}|[ \t]{1,4})(?=[^\s-]))"
)
_USER = re.compile(
    r"-(?<=[\s\"'].)(?:[a-zA-Z]{0,6}u|-user|-proxy-user|U|a|-auth)"
    r"(?:[\"'],[ \t]{0,4}|[ \t=]{0,2})[\"']?([^\s:'\"%,/{$]{1,64})([:%,])(?=[^\s/])"
)
_LOGINS = {
    ":": re.compile(_BEFORE % r"curl|https?|xh"),
    "%": re.compile(_BEFORE % r"smbclient|rpcclient|net|smbget|wmic"),
    ",": re.compile(_BEFORE % r"lftp"),
}
_WINDOW = 200
"""Characters before an option among which its program's name is looked for."""
_PLACES = (
    ("net use", re.compile(r"\bnet use\b[^\n]{0,160}?[ \t]/user:[^\s]{1,80}[ \t]{1,4}(?=[^\s/*])", re.IGNORECASE)),
    ("net use", re.compile(r"\bnet use[ \t]{1,4}(?:[A-Za-z*]:?[ \t]{1,4})?\\\\[^\s]{1,160}[ \t]{1,4}"
     r"(?=[^\s/*][^\n]{0,80}/user:)", re.IGNORECASE)),
    ("net user", re.compile(r"\bnet user[ \t]{1,4}[^\s/]{1,64}[ \t]{1,4}(?=[^\s/*])", re.IGNORECASE)),
    ("chpasswd", re.compile(r"\b(?:echo|printf)[ \t]{1,4}(?:-[ne][ \t]{1,4})?['\"]?[\w.-]{1,64}:"
     r"(?=[^\n|]{3,200}\|[ \t]{0,4}(?:sudo[ \t]{1,4})?chpasswd)")),
    ("passwd --stdin", re.compile(r"\b(?:echo|printf)[ \t]{1,4}(?:-[ne][ \t]{1,4})?"
     r"(?=[^\n|]{3,200}\|[ \t]{0,4}(?:sudo[ \t]{1,4})?passwd\b)")),
    ("sudo -S", re.compile(r"\b(?:echo|printf)[ \t]{1,4}(?:-[ne][ \t]{1,4})?(?=[^\n|]{3,200}\|[ \t]{0,4}sudo -S)")),
    (
        "htpasswd",  # with -n there is no file
        re.compile(
            r"\bhtpasswd[ \t]{1,4}(?=-\w{0,6}b)-(?:(?=\w{0,6}n)\w{1,8}(?:[ \t]{1,4}\d\d?)?"
            r"|\w{1,8}(?:[ \t]{1,4}\d\d?)?[ \t]{1,4}\S{1,128})"
            r"[ \t]{1,4}\S{1,64}[ \t]{1,4}(?=\S)"
        ),
    ),
    ("wget", re.compile(r"\bwget\b[^\n|;`]{0,240}?\s--(?:http-|ftp-|proxy-)?password[ =]")),
    ("pass:", re.compile(r"(?:-pass(?:in|out)?|-[kK])[ \t]{1,4}['\"]?pass:")),
    ("mysqladmin", re.compile(r"\bmysqladmin\b[^\n|;&`]{0,160}?\spassword[ \t]{1,4}(?=[^\s-])")),
    ("nmcli", re.compile(r"\bnmcli\b[^\n|;&`]{0,160}?\spassword[ \t]{1,4}(?=\S)")),
    ("openssl passwd", re.compile(r"\bopenssl passwd(?:[ \t]{1,2}-(?:[156]|apr1|salt \S{1,32})){1,3}"
     r"[ \t]{1,4}(?=[^\s<>|&;-])")),
    ("rabbitmqctl", re.compile(r"\brabbitmqctl[ \t]{1,4}(?:add_user|change_password)[ \t]{1,4}\S{1,64}[ \t]{1,4}(?=\S)")),
    ("wpa_passphrase", re.compile(r"\bwpa_passphrase[ \t]{1,4}(?:\"[^\"\n]{1,32}\"|[^\s\"=]{1,32})[ \t]{1,4}(?=[^\s|>&;])")),
    ("/rp ", re.compile(r"\bschtasks\b[^\n]{0,200}?[ \t]/rp[ \t]{1,4}(?=\S)", re.IGNORECASE)),
    (" /p:", re.compile(r"\b[a-z]{0,2}freerdp\d?\b[^\n]{0,200}?[ \t]/p:(?=\S)")),
    ("SecureString", re.compile(r"\bConvertTo-SecureString[ \t]{1,4}(?:-String[ \t]{1,4})?(?=['\"])", re.IGNORECASE)),
    ("<<<", re.compile(r"\b(?:kinit|vncpasswd|passwd|cryptsetup)\b[^\n|;&`]{0,120}?<<<[ \t]{0,4}(?=\S)")),
    ("sqlplus", re.compile(r"\bsqlplus[ \t]{1,4}(?:-[A-Za-z]{1,2}[ \t]{1,4})?[\w$#.]{1,64}/(?=[^\s/@]{1,128}@)")),
    ("jdbc:oracle", re.compile(r"\bjdbc:oracle:\w{1,8}:[\w$#.]{1,64}/(?=[^\s/@]{1,128}@)")),
    ("configure set", re.compile(r"\baws configure set[ \t]{1,4}aws_(?:secret_access_key|session_token)[ \t]{1,4}(?=\S)")),
)  # fmt: skip


_OPTIONS = pattern(r"[\s\"']-(?:(?:[a-zA-Z]{0,6}u|U|a|-user|-proxy-user|-auth)[\"' =,A-Za-z]|hp|pw|[pPaAwXk][\"' ]|[pP][^\s-])")
_KNOWN = words({literal for literal, _ in _PLACES})


def find_commands(text: str, found: list[Span]) -> None:
    """Append the passwords on command lines; time grows with the text's length."""
    if _OPTIONS(text):
        found.extend(_by_option(text))
        found.extend(_by_user(text))
    if not _KNOWN(text):
        return
    for literal, place in _PLACES:
        if literal in text:
            found.extend(_spans(text, (match.end() for match in place.finditer(text))))


def _by_option(text: str) -> Iterator[Span]:
    for match in _OPTION.finditer(text):
        option, programs = (match[1], _ATTACHED) if match[1] else (match[2], _SPACED)
        if option in programs and programs[option].search(_command(text, match.start())):
            yield from _spans(text, [match.end()])


def _by_user(text: str) -> Iterator[Span]:
    for match in _USER.finditer(text):
        if _LOGINS[match[2]].search(_command(text, match.start())):
            value = value_at(text, match.end())
            quote = text[match.start(1) - 1]
            if quote in "'\"" and (end := text.find(quote, match.end(), match.end() + 256)) > 0:
                value = Value(match.end(), end, text[match.end() : end], True)
            if value and _tells(value):
                yield value.start, value.end, "PASSWORD"


def _command(text: str, at: int) -> str:
    """Return what stands before an option on its command line, as far as it is looked at."""
    before = text[max(0, at - _WINDOW) : at]
    return before[max(map(before.rfind, "\n;|&")) + 1 :]


def _spans(text: str, starts: Iterator[int] | list[int]) -> Iterator[Span]:
    for start in starts:
        value = value_at(text, start)
        if value and _tells(value):
            end = text.find("@", value.start, value.end) if text[start - 1] == "/" else value.end  # user/password@host
            yield value.start, end if end > value.start else value.end, "PASSWORD"


def _tells(value: Value) -> bool:
    if tells_nothing(value.text) or value.text.startswith(("{", "-", "!", "*")):
        return False
    return value.quoted or not is_expression(value.text)
