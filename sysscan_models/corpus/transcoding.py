"""Text that is not UTF-8 but says so: files that begin with a byte order mark of UTF-16 or UTF-32, as Windows writes them.

They are read as UTF-8, a block at a time. Nothing is guessed: without a mark text is UTF-8 or is not read.
"""

from __future__ import annotations

import codecs
import io
from typing import Any, BinaryIO, cast

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def marked_encoding(head: bytes) -> str:
    """Return the encoding that a byte order mark names, or the empty string for none and for that of UTF-8."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "")


def head_as_utf8(head: bytes) -> bytes:
    """Return the beginning of a text, or all of it, as UTF-8; half a character at its end becomes U+FFFD."""
    encoding = marked_encoding(head)
    return head.decode(encoding, "replace").encode() if encoding else head


def joined(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Return a stream of what was read already and of the rest."""
    return cast(BinaryIO, io.BufferedReader(_Joined(head, stream), 1 << 18))


def as_utf8(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Return a stream of what was read already and of the rest, as UTF-8; what is no text in a marked one becomes U+FFFD."""
    whole, encoding = joined(head, stream), marked_encoding(head)
    return cast(BinaryIO, io.BufferedReader(_Transcoded(whole, encoding), 1 << 18)) if encoding else whole


class _Joined(io.RawIOBase):
    """Bytes that were read already, and then the rest of their stream."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._head, self._stream = io.BytesIO(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(io.RawIOBase):
    """A stream in another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        super().__init__()
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)("replace")
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._stream.read(1 << 16)
            self._ended = not data
            self._ready = self._decoder.decode(data, final=self._ended).encode("utf-8", "replace")
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
