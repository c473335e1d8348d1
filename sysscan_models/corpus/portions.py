"""An archive in parts: cut up by the process that reads it, made into documents by any process, in the archive's order.

Unpacking is one stream and cannot be divided; parsing can. So the reading process does as little as possible for each
document: small members are passed on as bytes, and of a large file of JSON Lines blocks of whole lines. Nothing here parses.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sysscan_models.corpus.containers import LimitedMember, nested, not_data, walk
from sysscan_models.corpus.readers import JsonLinesReader, line_too_long, read_lines
from sysscan_models.corpus.transcoding import as_utf8, head_as_utf8, joined
from sysscan_models.documents import Document, SetAside
from sysscan_models.errors import SysscanError
from sysscan_models.interfaces import Member, Reader

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

PART_BYTES = 2**20
"""Unpacked bytes from which a part is complete."""
PART_PIECES = 500
"""Members or documents from which a part is complete."""
HEAD_BYTES = 2**16
"""The beginning of a member, by which its reader recognises it."""


@dataclass(frozen=True)
class Whole:
    """A whole member."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Lines:
    """Whole lines out of a member of JSON Lines, the first of them with this number."""

    name: str
    data: bytes
    first: int


@dataclass(frozen=True)
class Part:
    """A part of an archive, which can be pickled: what `read_part` makes documents of, in any process.

    `position` is how many bytes of the archive, as it lies on the disk, had been read; `packed_bytes` tells how many there
    are. Pieces come in the archive's order; documents among them were read already, as their member cannot be cut up.
    """

    pieces: tuple[Whole | Lines | Document | SetAside, ...]
    position: int


def parts(archive: Path, readers: Sequence[Reader], options: DataOptions) -> Iterator[Part]:
    """Yield the parts of an archive, in its order, each of about PART_BYTES.

    Raises what `read_documents` does; only what a reader fails on may be raised by `read_part` instead.
    """
    held = _Held()
    for entry in walk(archive, options):
        if isinstance(entry, SetAside):
            held.add(entry)
        else:
            held.position = entry.position()
            yield from _member(entry, archive, readers, held)
        if held.complete:
            yield held.part()
    if held.pieces:
        yield held.part()


def read_part(part: Part, readers: Sequence[Reader], options: DataOptions) -> Iterator[Document | SetAside]:
    """Yield the documents of a part and what must be set aside; `readers` and `options` are those that `parts` was given.

    Raises SysscanError when a reader fails.
    """
    for piece in part.pieces:
        if isinstance(piece, Whole):
            yield from _whole(piece, readers, options)
        elif isinstance(piece, Lines):
            data = io.BytesIO(piece.data)
            yield from read_lines(
                piece.name, data, options.max_record_bytes, options.family_key, first=piece.first, whole=False
            )
        else:
            yield piece


class _Held:
    """The part that is being filled."""

    def __init__(self) -> None:
        self.pieces: list[Whole | Lines | Document | SetAside] = []
        self.position = self._bytes = 0

    def add(self, piece: Whole | Lines | Document | SetAside) -> None:
        self.pieces.append(piece)
        self._bytes += len(piece.data) if isinstance(piece, (Whole, Lines)) else 0

    @property
    def complete(self) -> bool:
        return self._bytes >= PART_BYTES or len(self.pieces) >= PART_PIECES

    def part(self) -> Part:
        made = Part(tuple(self.pieces), self.position)
        self.pieces, self._bytes = [], 0
        return made


def _member(entry: LimitedMember, archive: Path, readers: Sequence[Reader], held: _Held) -> Iterator[Part]:
    """Add a member to the part that is being filled, and yield the parts that are complete before its end."""
    if isinstance(entry.stream, io.BytesIO) and not entry.alone:
        held.add(Whole(entry.name, entry.stream.getvalue()))
        return
    head = entry.stream.read(HEAD_BYTES) if any(reader.reads(entry.name) for reader in readers) else b""
    reader = _chosen(entry.name, head, readers)
    if reader is None:
        if entry.alone:
            names = ", ".join(reader.name for reader in readers)
            raise not_data(Path(archive), f"no reader ({names}) takes a file of this name")
        held.add(_unread(entry.name))
        return
    stream = joined(head, entry.stream)
    pieces: Iterable[Whole | Lines | Document | SetAside]
    if type(reader) is JsonLinesReader:
        pieces = _blocks(entry.name, as_utf8(head, entry.stream), entry.max_record_bytes)
    elif len(data := stream.read(entry.max_record_bytes + 1)) <= entry.max_record_bytes:
        pieces = (Whole(entry.name, data),)
    else:
        pieces = _read(reader, replace(entry, stream=joined(data, stream)))
    for piece in pieces:
        held.add(piece)
        if held.complete:
            held.position = entry.position()
            yield held.part()


def _blocks(name: str, stream: BinaryIO, limit: int) -> Iterator[Lines | SetAside]:
    """Yield JSON Lines in blocks of whole lines, without a look at the lines; what is too long for a record is skipped."""
    first, said, rest = 1, False, bytearray()
    while block := stream.read(PART_BYTES):
        cut = block.rfind(b"\n") + 1
        if cut:
            data, rest = bytes(rest) + block[:cut], bytearray(block[cut:])
            said = said or not data.isspace()
            yield Lines(name, data, first)
            first += data.count(b"\n")
            continue
        rest += block
        if len(rest) > limit + 2:
            yield line_too_long(name, first, limit)
            said, rest = True, bytearray()
            while (line := stream.readline(PART_BYTES)) and not line.endswith(b"\n"):
                pass
            first += 1
    if rest:
        said = said or not rest.isspace()
        yield Lines(name, bytes(rest), first)
    if not said:
        yield SetAside(name, "empty file")


def _whole(piece: Whole, readers: Sequence[Reader], options: DataOptions) -> Iterator[Document | SetAside]:
    reader = _chosen(piece.name, piece.data, readers)
    if reader is None:
        yield _unread(piece.name)
        return
    size = len(piece.data)
    yield from _read(
        reader, LimitedMember(piece.name, size, io.BytesIO(piece.data), options.max_record_bytes, options.family_key)
    )


def _chosen(name: str, data: bytes, readers: Sequence[Reader]) -> Reader | None:
    """Return the first reader that takes a member, by its name and by what it begins with."""
    head = b""
    for reader in readers:
        if reader.reads(name):
            head = head or head_as_utf8(data[:HEAD_BYTES])
            if reader.recognises(head):
                return reader
    return None


def _unread(name: str) -> SetAside:
    return SetAside(name, "nested archive" if nested(name) else "no reader takes such a file")


def _read(reader: Reader, member: Member) -> Iterator[Document | SetAside]:
    try:
        yield from reader.read(member)
    except (SysscanError, GeneratorExit):
        raise
    except Exception as error:
        raise SysscanError(f"reader {reader.name!r} failed on {member.name}: {type(error).__name__}: {error}") from error
