"""Taking secrets out of text: keys, tokens, passwords become typed placeholders.

`redact` is the one door through which the text of documents and findings passes into prompts, files and logs; `prompts` offers
it too. Nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KEY_TEXT = r"[A-Za-z0-9+/=\s:,\\]"
"""What a key in PEM consists of; a backslash, because quoting may have written its line ends as `\n`."""
_PRIVATE_KEY = re.compile(rf"-----BEGIN ([A-Z ]{{0,40}}PRIVATE KEY)-----{_KEY_TEXT}*(?:-(?!----){_KEY_TEXT}*)*-----END \1-----")
_TOKENS = re.compile(
    r"(?:\b|(?<=\\[nrt]))(?:(hf_[A-Za-z0-9]{20,})|(sk-[A-Za-z0-9_-]{20,})|(gh[pousr]_[A-Za-z0-9]{30,})|((?:AKIA|ASIA)[A-Z0-9]{16})"
    r"|(AIza[A-Za-z0-9_-]{35})|(xox[abprs]-[A-Za-z0-9-]{10,}))"
)
_TOKEN_KINDS = ("HF_TOKEN", "SK_TOKEN", "GITHUB_TOKEN", "AWS_KEY_ID", "GOOGLE_KEY", "SLACK_TOKEN")
_JWT = re.compile(  # looked for once in each run of its characters, so that a long run is not read again from every place in it
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"
    r"([A-Za-z0-9_-]*?)eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"
)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,128}:)([^\s/@]{1,256})(@)")


def redact(text: str) -> str:
    """Replace secrets with typed placeholders: private keys, tokens of known shapes, passwords in URLs.

    The time it takes grows with the length of the text and no faster, however hostile the text is.
    """
    text = _PRIVATE_KEY.sub("[PRIVATE_KEY]", text)
    text = _TOKENS.sub(lambda match: f"[{_TOKEN_KINDS[(match.lastindex or 1) - 1]}]", text)
    text = _JWT.sub(r"\1[JWT]", text)
    return _URL_PASSWORD.sub(r"\1[PASSWORD]\3", text)


def redact_deep(value: Any) -> Any:
    """Return a value of JSON with all its text redacted, names of objects too.

    Text must pass here before it is written as JSON, whose quoting hides where a secret begins.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redact_deep(item) for key, item in value.items()}
    return [redact_deep(item) for item in value] if isinstance(value, (list, tuple)) else value
