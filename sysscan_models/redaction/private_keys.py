"""Private keys in PEM, OpenSSH, PGP and PuTTY form, and hashes of passwords.

A key that was cut off before its END line is taken out as far as it goes; a header that is only talked about, without a key
behind it, stays. A digest of a file (MD5, SHA) is no hash of a password and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sysscan_models.redaction.gates import pattern, words
from sysscan_models.redaction.spans import Span, begins

_HEADER = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_HEADING_LINES = re.compile(
    r"(?:\s|\\+[nr]|\\+u000[adAD])*(?:[A-Z][A-Za-z-]{2,20}: [^\n\\]{0,200}(?:\n|\\+n|\\+r\\+n|\\+u000a)){1,8}"
)
_KEY_TEXT = r"[A-Za-z0-9+/=\s:,\\\"'>|#*]"
"""What a key in PEM consists of; a backslash and quotes, because its line ends may be written as `\n` and its lines quoted."""
_BODY = re.compile(rf"{_KEY_TEXT}*(?:-(?!---){_KEY_TEXT}*)*")
_FOOTER = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_CUT_OFF = re.compile(
    r"(?:(?:[\s\"'+,>|#*]|\\+[nrt]|\\+u000[adAD]|\\){0,24}[A-Za-z0-9+/=]{24,})+(?:(?:\s|\\+[nr])[A-Za-z0-9+/]{1,80}={1,2})?"
)
_PUTTY = re.compile(
    r"Private-Lines: \d{1,3}\s{1,4}((?:[A-Za-z0-9+/=]{1,80}(?![\w+/=:-])\s{1,4})*[A-Za-z0-9+/=]{1,80}(?![\w+/=:-]))"
)
_IN_BASE64 = re.compile(r"LS0tLS1CRUdJTi(?:BQUklWQVRF|BSU0Eg|BFQyBQ|BPUEVO|BFTkNS|BEU0Eg|BQR1Ag)[A-Za-z0-9+/=]{24,}")

_OPENSSH = re.compile(r"b3BlbnNzaC1rZXktdjEA(?:\s{0,4}[A-Za-z0-9+/=]{16,80}){2,}")
_NUMBERS = re.compile(
    r"<(?:D|P|Q|DP|DQ|InverseQ)>([A-Za-z0-9+/=\s]{40,2048})</|\"d\"\s{0,4}:\s{0,4}\"([A-Za-z0-9_-]{40,2048})\""
)
"""The secret numbers of keys in XML and in JSON (JWK)."""

_CRYPT = re.compile(
    r"\$(?:[1568]|2[abxy]?|y|gy|7|apr1|sha1|md5|P|S|H|argon2(?:id|i|d)|scrypt|pbkdf2(?:-sha\d{1,3})?|bcrypt-sha256|krb5[a-z0-9]{3,12})"
    r"\$[A-Za-z0-9./+=,$*@_-]{15,}[A-Za-z0-9/+=](?:\.(?=[:\"'\\]))?"
)
_DIRECTORY = re.compile(
    r"\{(?:SSHA|SHA|SMD5|MD5|CRYPT|PBKDF2|ARGON2|BCRYPT|SSHA(?:256|384|512)|SHA(?:256|512))[0-9A-Z-]{0,8}\}[A-Za-z0-9+/=$.,{}_-]{20,}"
)
_FRAMEWORK = re.compile(
    r"(?:pbkdf2_sha\d{1,3}|pbkdf2:sha\d{1,3}(?::\d{1,8})?|scrypt:\d{1,8}:\d{1,3}:\d{1,3})\$[A-Za-z0-9./+=$]{20,}"
)
_GRUB = re.compile(r"grub\.pbkdf2\.sha512\.\d{1,8}\.[0-9A-Fa-f]{32,}(?:\.[0-9A-Fa-f]{32,})?")
_WINDOWS = re.compile(r":([0-9A-Fa-f]{32}:[0-9A-Fa-f]{32}):::")
_NETWORK = re.compile(r"::[\w.-]{0,64}:([0-9A-Fa-f]{16,48}:[0-9A-Fa-f]{32,48}:[0-9A-Fa-f]{16,2048})")
_CACHED = re.compile(r"\$DCC2?\$(?:\d{1,6}#)?[^#\s]{1,64}#([0-9a-fA-F]{32})")
_SCRAM = re.compile(r"SCRAM-SHA-(?:1|256|512)\$\d{3,7}:[A-Za-z0-9+/=]{16,}\$[A-Za-z0-9+/=]{20,}:[A-Za-z0-9+/=]{20,}")
_OLD = re.compile(r":([./0-9A-Za-z]{13}):(?=\d{4,5}:\d{0,5}:\d{0,5}:|\d{1,6}:\d{1,6}:)")
"""The oldest crypt(3), 13 characters without a mark, in a line of /etc/shadow or /etc/passwd."""


_KEYS = words(("PRIVATE KEY", "Private-Lines: ", "LS0tLS1CRUdJTi", "b3BlbnNzaC1rZXktdjEA", "<RSAKeyValue", '"kty"'))
_HASHES = pattern(r"::|SCRAM-SHA-|grub\.pbkdf2|\$DCC|:[./0-9A-Za-z]{13}:[0-9]")


def find_private_keys(text: str, found: list[Span]) -> None:
    """Append the private keys in a text; time grows with its length."""
    if not _KEYS(text):
        return
    if "PRIVATE KEY" in text:
        found.extend(_pem_keys(text))
    if "Private-Lines: " in text:
        found.extend((match.start(1), match.end(1), "PRIVATE_KEY") for match in _PUTTY.finditer(text))
    if "b3BlbnNzaC1rZXktdjEA" in text:
        found.extend((*match.span(), "PRIVATE_KEY") for match in _OPENSSH.finditer(text))
    if "<RSAKeyValue" in text or '"kty"' in text:
        found.extend((*match.span(match.lastindex or 0), "PRIVATE_KEY") for match in _NUMBERS.finditer(text))
    if "LS0tLS1CRUdJTi" in text:
        found.extend((*match.span(), "PRIVATE_KEY") for match in _IN_BASE64.finditer(text))


def _pem_keys(text: str) -> Iterator[Span]:
    at = 0
    while header := _HEADER.search(text, at):
        body, at = header.end(), header.end()
        if heading := _HEADING_LINES.match(text, body):
            body = heading.end()
        end = _BODY.match(text, body).end()  # type: ignore[union-attr]  # it matches nothing, too
        if footer := _FOOTER.match(text, end):
            at = footer.end()
            yield header.start(), at, "PRIVATE_KEY"
        elif cut := _CUT_OFF.match(text, body):
            at = cut.end()
            yield header.start(), at, "PRIVATE_KEY"


def find_hashes(text: str, found: list[Span]) -> None:
    """Append the hashes of passwords in a text: crypt(3), directories, frameworks, boot loaders, Windows."""
    if "$" in text:
        found.extend((*match.span(), "PASSWORD_HASH") for match in _CRYPT.finditer(text))
        if "pbkdf2" in text or "scrypt:" in text:
            found.extend((*match.span(), "PASSWORD_HASH") for match in _FRAMEWORK.finditer(text) if begins(text, match.start()))
    if "}" in text:
        found.extend((*match.span(), "PASSWORD_HASH") for match in _DIRECTORY.finditer(text))
    if _HASHES(text):
        _find_fields(text, found)


def _find_fields(text: str, found: list[Span]) -> None:
    if ":::" in text:
        found.extend((*match.span(1), "PASSWORD_HASH") for match in _WINDOWS.finditer(text))
    if "::" in text:
        found.extend((*match.span(1), "PASSWORD_HASH") for match in _NETWORK.finditer(text))
    if "$DCC" in text:
        found.extend((*match.span(1), "PASSWORD_HASH") for match in _CACHED.finditer(text))
    if "SCRAM-SHA-" in text:
        found.extend((*match.span(), "PASSWORD_HASH") for match in _SCRAM.finditer(text))
    found.extend((*match.span(1), "PASSWORD_HASH") for match in _OLD.finditer(text) if not match[1].isalpha())
    if "grub.pbkdf2" in text:
        found.extend((*match.span(), "PASSWORD_HASH") for match in _GRUB.finditer(text))
