"""People in text: e-mail addresses and the names of users in paths of home folders; public addresses of the Internet.

What looks like an address and names nobody stays: algorithms of SSH (`hmac-sha2-256-etm@openssh.com`), units of systemd
(`getty@tty1.service`), `git@` and `root@`, the domains that are reserved for examples, accounts that are no person's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from sysscan_models.redaction.spans import Span

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}([A-Za-z]{2,24}|xn--[a-z0-9-]{2,40})(?![A-Za-z0-9_@-])(?!\.[A-Za-z0-9])"
)
_NO_PERSONS = frozenset(
    re.findall(
        r"\S+",
        "git hg svn root user username you name youruser yourname your-name someone somebody user1 user2 foo bar me",
    )
)
_EXAMPLE = re.compile(
    r"(?:.{0,250}\.)?(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local|localdomain)"
    r"|(?:your|my)-?(?:domain|company|server|host|org|site)\.[a-z.]{2,12}|domain\.(?:com|tld|org|net)"
    r"|(?:.{0,250}\.)?(?:openssh\.com|libssh\.org|ssh\.com|lysator\.liu\.se|tinyssh\.org)",
    re.IGNORECASE,
)
_NO_DOMAINS = frozenset(
    re.findall(
        r"\S+",
        "service socket timer target mount automount swap slice scope path device conf d png jpg jpeg gif svg webp "
        "css js mjs ts jsx tsx py pyc so jar sh rb go rs cpp hpp html htm xml json yaml yml toml txt md log gz tgz "
        "bz2 xz zip tar deb rpm apk exe dll bin img iso key pem crt csr cfg ini lock map",
    )
)

_HOME = re.compile(
    r"(?:/(?:home|Users)/|(?:[A-Za-z]:|\\|\?)?[\\/]{1,4}(?:Users|users|Documents and Settings)[\\/]{1,4})"
    r"(?=([^\s/\\:;,'\"<>|()\[\]{}`*?$%&!#=~\u2026]{1,64}))"
)
_TILDE = re.compile(r"~(?=([A-Za-z_][A-Za-z0-9_.-]{1,31})/)")
_ACCOUNTS = frozenset(
    re.findall(
        r"\S+",
        "user users username user_name user-name youruser yourname your_username your-username your-user your_user "
        "name me you guest public shared default defaultuser defaultuser0 nobody root lost+found linuxbrew . .. ... "
        "administrator everyone all username> login someuser some_user someone myuser my_user xxx example",
    )
)
_PATH_END = re.compile(r"[^\s\"'`<>()\[\]{},;|=]{0,200}")
_SITE = re.compile(
    r"(?!file:|sftp:|ssh:|scp:|rsync:|nfs:|smb:)[a-z][a-z0-9+.-]{1,20}:/"
    r"|(?:[\w-]{1,63}\.){1,5}(?:com|org|net|io|edu|gov|dev|de|fr|uk|eu|info|co|us)(?:/|:\d+/|$)",
    re.IGNORECASE,
)


def home_users(text: str) -> Iterator[str]:
    """Yield the names of the users whose home folders a text names; accounts that are no person's are not among them."""
    if "ome/" in text or "sers" in text or "ettings" in text:
        yield from (text[start:end] for start, end in _homes(text))


def find_users(text: str, found: list[Span]) -> None:
    """Append the users' names in paths of home folders."""
    if "/home/" in text or "Users" in text or ("\\" in text and ("\\users" in text or "Documents and" in text)):
        found.extend((*span, "USER") for span in _homes(text))
    if "~" in text:
        found.extend((*match.span(1), "USER") for match in _TILDE.finditer(text) if _is_tilde(text, match))


def _homes(text: str) -> Iterator[tuple[int, int]]:
    for match in _HOME.finditer(text):
        name = match[1].rstrip(".")
        if name and name.lower() not in _ACCOUNTS and any(map(str.isalpha, name)) and _is_root(text, match):
            yield match.start(1), match.start(1) + len(name)


def _is_root(text: str, home: re.Match[str]) -> bool:
    """Return whether a path leads to a home folder and not into a site, as `https://host/home/start` does."""
    before = _PATH_END.match(text[max(0, home.start() - 200) : home.start()][::-1])
    written = before[0][::-1] if before else ""
    if "/users/" in home[0]:
        return False  # too common in sites and their interfaces
    return not _SITE.match(written)


def _is_tilde(text: str, match: re.Match[str]) -> bool:
    before = text[match.start() - 1 : match.start()]
    return (not before or before in " \t\n\"'`(=:") and match[1].lower() not in _ACCOUNTS


def find_emails(text: str, found: list[Span]) -> None:
    """Append the e-mail addresses in a text; the `@` may be written `%40`."""
    for sign in ("@", "%40"):
        at = text.find(sign)
        while at >= 0:
            end = at + len(sign)
            domain = _DOMAIN.match(text, end)
            if domain is not None:
                before = text[max(0, at - 65) : at]
                local = before[len(before.rstrip(_LOCAL)) :].lstrip(".%+-")
                if text[at - len(local) - 1 : at - len(local)] == "\\" and local[:1] in ("n", "r", "t"):
                    local = local[1:]  # a line end that was quoted
                if sign == "%40":
                    local = local.rsplit("%", 1)[-1]
                if _is_person(local, domain, text[domain.end() : domain.end() + 1]):
                    found.append((at - len(local), domain.end(), "EMAIL"))
            at = text.find(sign, end)


def _is_person(local: str, domain: re.Match[str], after: str) -> bool:
    if not local or local[-1] == "." or local.lower() in _NO_PERSONS or domain[1].lower() in _NO_DOMAINS:
        return False
    return _EXAMPLE.fullmatch(domain[0]) is None and not (after == ":" and local in ("git", "hg"))


_IPV4 = re.compile(r"(?<![\w.])(?<![\w.]-)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w]|\.\w|-\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]{0,4}:)[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}(?![\w:])")
_VERSION_BEFORE = re.compile(
    r"(?:version|release|ver\.?|v\.?|build|before|prior to|[<>=]=?|revision|upgrade to"
    r"|section|chapter|fixed in|os|emulator|firmware|kernel|driver|library|package)\s{0,3}\Z",
    re.IGNORECASE,
)


def find_addresses(text: str, found: list[Span]) -> None:
    """Append the public addresses of IPv4 and IPv6; private, local and documentation ranges and versions stay."""
    if text.count(".") > 2:
        for match in _IPV4.finditer(text):
            if _is_public(match[0]) and not _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()]):
                found.append((*match.span(), "PUBLIC_IP"))
    if text.count(":") > 1:
        found.extend((*match.span(), "PUBLIC_IP") for match in _IPV6.finditer(text) if _is_public(match[0]))


def _is_public(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written.rstrip(":"))
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved
