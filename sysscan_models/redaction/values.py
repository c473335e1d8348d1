"""Whether a value that stands where a secret would is one: not a reference, a type, a word of prose or of a document's example.

`password = ${DB_PASSWORD}` names a secret without telling it, `password: must be long` talks about one; neither is taken out.
Values that say themselves that they are no secret (`changeme`, `<password>`, `your-token-here`) stay as well: they are what a
security document warns of, everybody knows them, and a finding about a default password would make no sense without it.
"""

from __future__ import annotations

import re

_REFERENCE = re.compile(
    r"\$\{|\$\(|\$env:|\$\$|\{\{|\{[%\w.:-]{0,60}\}|\$[A-Za-z_]\w{0,60}(?:[.:\[\]/}\"',;)@\s-]|$)|\$[0-9@*#?]$"  # of shells
    r"|<|%\(|%[A-Za-z_]\w{0,60}%|%[sdv]\b|@[\w./-]{1,80}@?$|&\w+;?$|![a-z_]+$|\[|\]|\}|\\"  # of templates, YAML, lists
    r"|\*{2,}|x{3,}(?:[-_ .]x+)*$|\.{2,}|\u2026|\u2022|_{2,}$|-{1,2}$"  # masks
    r"|(?-i:/[a-z][a-z_.@-]{1,60}/)|/dev/|/etc|\.{1,2}/|~/|[A-Za-z]:\\"  # paths
    r"|(?:env|file|vault|ref|ssm|arn|https?|s3|gs|op|kms|base64):|ENC\[",  # where a secret is kept
    re.IGNORECASE,
)
_EXPRESSION = re.compile(
    r"(?:self|this|os|sys|config|cfg|settings|args|opts|options|params|env|process|request|req|ctx|conf|app|data|user|secrets?"
    r"|vars?|local|module|values?|creds?|credentials|event|props|state|form|body|input|obj|client|db|getpass)(?:\.|->|\[|::)"
    r"|[A-Za-z_][\w.:]{0,60}\(|(?:new|await|lambda|not|async|func|function|fn)$|[a-z_]{1,40}\[['\"\w]",
    re.IGNORECASE,
)
_METAVARIABLE = re.compile(
    r"(?:your|example|sample|dummy|fake|placeholder|insert|enter|replace)[-_ ]?[a-z_ -]{0,40}"
    r"|(?:my|the|some|a|an|new|old|put|change)[-_ ][a-z_ -]{1,40}|foo|bar|baz|foobar|foobared"
    r"|[A-Z]{2,}(?:_[A-Z]+)+|[A-Z]{3,12}"
    r"|[a-z_-]{0,30}(?:passwor[dt]|passwd|passphrase|secret|token|key|pwd)(?:[-_]?(?:here|value|string|file|name))?"
    r"|change[-_]?(?:me|it|this)\d{0,4}[!.]*|tests?[_./][\w./-]{1,60}|redacted|removed|hidden|masked|censored|omitted",
)
_WORDS = frozenset(
    re.findall(
        r"\S+",
        "required requisite sufficient optional include substack yes no on off true false none null nil undefined "
        "enabled enable disabled disable default prompt ask never always string str bytes byte int integer text bool "
        "boolean object char varchar password passwd passphrase secret secrets token tokens key keys value changeme "
        "changeit example sample todo tbd files compat db dns nis nisplus sss ldap winbind systemd mymachines any all "
        "empty blank unset expired locked plaintext plain hashed encrypted cleartext clear hash md5 sha1 sha256 "
        "sha512 bcrypt scrypt argon2 yescrypt des crypt pam unix peer trust ident cert basic bearer digest oauth "
        "oauth2 jwt saml kerberos negotiate ntlm publickey option optional keyboard-interactive argument parameter "
        "flag field input and or is are was the must should will can may not see use used using for with from opaque "
        "generic kubernetes vault keyring keychain env environment file stdin stdout manual automatic auto random "
        "generated get set put post weak strong simple complex short long username user name email host port minimum "
        "maximum min max length policy public private authentication auth login reset recovery manager change str|none string? "
        "option<string> self n/a",
    )
)
_PROSE = frozenset(
    re.findall(
        r"\S+",
        "the a an of is are be must should shall will would can may your you for to and or not in on at with that "
        "this it as from by if when has have was were no any all least than use used user users minimum characters "
        "enter please field de la le el du der die das und oder mit muss mindestens il di per con para au moins al menos",
    )
)
_ALGORITHM = re.compile(
    r"(?:sha|scram-sha|md|aes|rsa|dsa|ecdsa|hmac|hs|rs|es|ps|ed|bcrypt|scrypt|argon|pbkdf|oauth|saml|base|utf|ipv|http|tls|ssl|scram|crypt"
    r"|cve|cwe|ghsa|rhsa|rfc|iso|nist|kb|curve|ssh|des|blowfish|poly|chacha|pam|id|pkcs|x509|krb|ntlm|u2f|fido|win|k8s|log4j"
    r"|sql|mysql)[-_]?\d{1,6}(?:[a-z]{1,7}|[-_.][\w.-]{0,20})?$|[vt]\d{1,5}(?:\.\d{1,6}){0,4}$|(?-i:[A-Z]{2,10}(?:-\d{1,6}){1,3}$)",
    re.IGNORECASE,
)
_SYMBOLS = re.compile(r"[!@#$%^&*+=?~]")
_NUMBER = re.compile(r"[+-]?\d{1,3}(?:[.,]\d{1,6}|[a-zA-Z%]{1,2})?")


def tells_nothing(value: str) -> bool:
    """Return whether a value is too short, a reference, a number, a type, or a word that says there is no secret."""
    if len(value) < 3 or _REFERENCE.match(value) or _NUMBER.fullmatch(value):
        return True
    return value.lower() in _WORDS or (len(value) <= 80 and _METAVARIABLE.fullmatch(value) is not None) or len(set(value)) < 3


def is_expression(value: str) -> bool:
    """Return whether an unquoted value is code that fetches a secret, such as `os.environ[...]` or `getpass()`."""
    return _EXPRESSION.match(value) is not None


def is_prose(value: str) -> bool:
    """Return whether a value with spaces is a sentence about secrets."""
    words = value[:400].lower().split()
    return len(words) > 2 and (not _PROSE.isdisjoint(words) or len(words) > 8)


def is_strong(value: str, shortest: int = 8) -> bool:
    """Return whether a value looks like no word: digits among letters or symbols, or long with both cases; no algorithm."""
    if len(value) < shortest or _ALGORITHM.match(value):
        return False
    digits = sum(map(str.isdigit, value[:256]))
    letters = any(map(str.isalpha, value[:256]))
    if digits and (letters or digits >= 8):
        return True
    if letters and _SYMBOLS.search(value):
        return True
    return len(value) >= 20 and not value.islower() and not value.isupper() and "_" not in value and "-" not in value


_PIECES = re.compile(r"[^A-Za-z0-9]+")
_MEASURE = re.compile(
    r"\d{1,6}[- ]?[a-zA-Z%]{1,12}|[\d.:/TZ+-]{4,40}|[A-Za-z]{1,12}-?\d{1,2}(?:[/.-][\w.]{1,12})?|0x[0-9a-fA-F]+"
)
"""Measures ("12-character"), dates, and names with a number ("level-3", "TLS1.2")."""
_SETTING = re.compile(r"[A-Za-z_][\w.-]{0,40}=")
_INNER = re.compile(r"\w[!@#$%^&*+=?~]{1,8}\w")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def is_random(value: str, shortest: int) -> bool:
    """Return whether a value has a piece without dashes that looks drawn by lot; a UUID, which may be any id, is none."""
    if len(value) < shortest or tells_nothing(value) or _ALGORITHM.match(value) or _UUID.fullmatch(value):
        return False
    return any(_is_drawn(piece) for piece in _PIECES.split(value[:256]))


def _is_drawn(piece: str) -> bool:
    digits = sum(map(str.isdigit, piece))
    return len(piece) >= 8 and 2 <= digits < len(piece) and not _MEASURE.fullmatch(piece)


def is_telling(value: str, *, among_words: bool = False) -> bool:
    """Return whether a word in a sentence is a password: digits among letters, or symbols within, and no measure or version.

    Where nothing but a space leads up to it (`among_words`), it must look still less like a word.
    """
    if not 6 <= len(value) <= 256 or value[0] in "/.~-" or "://" in value or _ALGORITHM.match(value) or _UUID.fullmatch(value):
        return False
    if _SETTING.match(value):
        return False
    within = _INNER.search(value) is not None
    digits, letters = sum(map(str.isdigit, value)), any(map(str.isalpha, value))
    if not letters:
        return digits >= 6 and value.isdigit() and not among_words
    if not digits:
        return within and "@" not in value
    if within or (value[-1] in "!#$?*" and digits):
        return "(" not in value
    if _MEASURE.fullmatch(value) or (among_words and (digits < 2 or len(value) < 8 or not value.isalnum())):
        return False
    return any(len(piece) >= 5 and not piece.isdigit() and not piece.isalpha() for piece in _PIECES.split(value))


def is_word(value: str) -> bool:
    """Return whether a value consists of letters and dashes only."""
    return value.replace("-", "").replace("_", "").isalpha()
