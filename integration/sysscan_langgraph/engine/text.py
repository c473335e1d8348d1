"""An answer's bytes become text: whole characters only, and nothing that may turn out to begin a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Text:
    """Puts the bytes of one answer's tokens together."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._held = stop, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is certain now, and whether a stop string ended the answer."""
        text = self._held + self._decoder.decode(piece)
        if not self._stop:
            return text, False
        found = [place for word in self._stop if (place := text.find(word)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        kept = max((_overlap(text, word) for word in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def rest(self) -> str:
        """Return what was held back; bytes of an unfinished character are dropped."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """Return the length of the longest end of the text that begins the word."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
