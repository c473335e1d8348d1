"""From the archive to documents: containers are walked safely, once, for all readers, and records become documents.

Nothing is unpacked to disk, no link is followed and no name from the archive is ever opened; what cannot be used is set aside
with a counted reason. A damaged archive is an error. This module does not judge what a document says, nor where it goes.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

import orjson

from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.errors import DataError, SysscanError
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Member, Reader

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

MAX_RECORD_BYTES = 16 * 2**20
"""Limit of a record where nothing else was said, in bytes."""
RATIO_FREE_BYTES = 64 * 2**20
"""Unpacked bytes that `max_ratio` does not judge: short runs of zeros compress beyond any sensible ratio."""
HEADER_BYTES = 2**20
"""Limit of one member's tar headers together: tarfile reads a long name or a pax header into memory whole."""
EXPECTED = "expected a tar archive (plain or compressed with gzip, bzip2 or xz), a folder, or a .json or .jsonl file (also .gz)"


@dataclass(frozen=True)
class LimitedMember(Member):
    """A member that also tells its reader how large a record may be. `size` is -1 for a compressed file outside a tar."""

    max_record_bytes: int = MAX_RECORD_BYTES


def read_documents(archive: Path, readers: Sequence[Reader], options: DataOptions) -> Iterator[Document | SetAside]:
    """Yield every document of the archive, and a SetAside for each member or record that cannot be used.

    A member goes to the first reader that takes its name. Raises DataError when the archive is damaged, is none, or goes
    beyond the limits of the options, and SysscanError when a reader fails.
    """
    for entry in walk(archive, options):
        if isinstance(entry, SetAside):
            yield entry
            continue
        reader = next((reader for reader in readers if reader.reads(entry.name)), None)
        if reader is not None:
            yield from _read(reader, entry)
        elif Path(archive).is_file() and entry.name == _plain_name(Path(archive)):
            raise _not_data(Path(archive), f"no reader ({_names(readers)}) takes a file of this name")
        else:
            nested = _COMPRESSED.search(entry.name) or entry.name.lower().endswith(".tar")
            yield SetAside(entry.name, "nested archive" if nested else "no reader takes such a file")


def _read(reader: Reader, member: Member) -> Iterator[Document | SetAside]:
    try:
        yield from reader.read(member)
    except (SysscanError, GeneratorExit):
        raise
    except Exception as error:
        raise SysscanError(f"reader {reader.name!r} failed on {member.name}: {type(error).__name__}: {error}") from error


def _names(items: Iterable[Reader]) -> str:
    return ", ".join(item.name for item in items)


# Containers ----------------------------------------------------------------------------------------------------------------


def walk(archive: Path, options: DataOptions) -> Iterator[Member | SetAside]:
    """Yield every regular file of a tar archive, a folder (sorted) or a single file, in one forward pass.

    A member's stream is valid until the next one is asked for. Links, devices, unsafe and repeated names and members beyond
    `max_member_bytes` are yielded as SetAside. Raises DataError when the archive is missing, empty, damaged or no archive,
    and when its unpacked size, its compression ratio or its number of members goes beyond the options.
    """
    archive = Path(archive)
    limits = _Limits(archive, options)
    seen: set[bytes] = set()
    entry: Member | SetAside | None = None
    for entry in _folder(archive, limits) if archive.is_dir() else _file(archive, limits):
        if isinstance(entry, SetAside):
            yield entry
            continue
        digest = hashlib.blake2b(entry.name.encode(), digest_size=8).digest()
        if digest in seen:
            yield SetAside(entry.name, "repeated name")
        else:
            seen.add(digest)
            yield entry
    if entry is None:
        raise DataError(f"{archive} holds no file; {EXPECTED} with documents in it")


def files_of(folder: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Yield relative name, path and status (of a link itself) of everything below a folder that is no folder, sorted."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(parent) / name
            yield path.relative_to(folder).as_posix(), path, path.lstat()


class _Limits:
    """What one archive may cost. Every member and every unpacked byte is counted here."""

    def __init__(self, archive: Path, options: DataOptions) -> None:
        self.archive, self.options = archive, options
        self.members = self.unpacked = 0

    def count_member(self) -> None:
        self.members += 1
        if self.members > self.options.max_members:
            raise self._refusal(f"holds more than {self.options.max_members:,} members", "max_members")

    def count_bytes(self, count: int) -> None:
        self.unpacked += count
        if self.unpacked > self.options.max_total_bytes:
            raise self._refusal(f"unpacks to more than {self.options.max_total_bytes:,} bytes", "max_total_bytes")

    def check_ratio(self, unpacked: int, packed: int) -> None:
        if unpacked > RATIO_FREE_BYTES and unpacked > self.options.max_ratio * max(packed, 1):
            what = f"unpacks to {unpacked:,} bytes from {packed:,}, more than {self.options.max_ratio} times as many"
            raise self._refusal(what, "max_ratio")

    def _refusal(self, what: str, option: str) -> DataError:
        return DataError(f"{self.archive} {what}; it was refused. If you trust it, raise data.{option}")

    def refuse(self, name: str, size: int) -> str:
        """Return why a regular member may not be read by its name and size, or the empty string."""
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or re.match(r"[A-Za-z]:/", slashed):
            return "absolute path"
        if ".." in slashed.split("/"):
            return "path leaves the archive"
        if _CONTROL.search(name):
            return "control character in the name"
        return "member too large" if size > self.options.max_member_bytes else ""

    def member(self, name: str, size: int, stream: BinaryIO) -> LimitedMember:
        return LimitedMember(name, size, stream, self.options.max_record_bytes)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of one file: counted, forward only, with every fault told as a DataError."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        super().__init__()
        self.path, self._limits = path, limits
        try:
            self._packed = path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); {EXPECTED}") from error
        self._source = _decompressor(self._packed)
        self._position = 0
        self.header_bytes_left: int | None = None
        self.last_header = b""

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size
            if size < 0 or self.header_bytes_left < 0:
                raise self.damaged(f"the headers of one member take more than {HEADER_BYTES:,} bytes")
        try:
            data = self._source.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise self.damaged(str(error)) from error
        self.last_header = data
        self._position += len(data)
        self._limits.count_bytes(len(data))
        if self._source is not self._packed:
            self._limits.check_ratio(self._position, self._packed.tell())
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go forward to a position; tarfile skips what nobody read."""
        if whence != 0 or offset < self._position:
            raise self.damaged("a header points backwards")
        allowance, self.header_bytes_left = self.header_bytes_left, None
        while self._position < offset:
            if not self.read(min(offset - self._position, 1 << 20)):
                raise self.damaged("it ends in the middle of a member")
        self.header_bytes_left = allowance
        return self._position

    def close(self) -> None:
        if self._source is not self._packed:
            self._source.close()
        self._packed.close()
        super().close()

    def damaged(self, how: str) -> DataError:
        return DataError(
            f"{self.path} is damaged or truncated: {how} (after {self._position:,} unpacked bytes). "
            f"Nothing was kept of it; bring or make the archive again"
        )


_COMPRESSED = re.compile(r"\.(gz|tgz|bz2|tbz2|xz|txz|zst|zip|7z|rar)$", re.IGNORECASE)
_MAGIC: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive; unpack it and give the folder",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first (zstd -d)",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the folder",
    b"Rar!": "a rar archive; unpack it and give the folder",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
    b"<!DOCTYPE": "a web page, probably an error page that was saved instead of the archive",
    b"<html": "a web page, probably an error page that was saved instead of the archive",
}


def _decompressor(packed: IO[bytes]) -> IO[bytes]:
    """Return a stream of the unpacked bytes, by what the file begins with; GzipFile checks lengths and checksums."""
    head = packed.read(6)
    packed.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=packed))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    return lzma.LZMAFile(packed) if head == b"\xfd7zXZ\x00" else packed


def _file(path: Path, limits: _Limits) -> Iterator[Member | SetAside]:
    if not path.exists():
        raise DataError(f"{path} does not exist; {EXPECTED}")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; {EXPECTED}")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty (0 bytes); {EXPECTED}")
    with _Unpacked(path, _Limits(path, limits.options)) as stream:
        head = stream.read(tarfile.BLOCKSIZE)
    is_tar = _is_tar(head)
    if not is_tar and (b"\0" in head or not head):
        raise _not_data(path, "it is neither a tar archive nor text")
    with _Unpacked(path, limits) as stream:
        yield from _tar(stream, limits) if is_tar else _single(path, _plain_name(path), stream, limits)


def _is_tar(head: bytes) -> bool:
    if len(head) == tarfile.BLOCKSIZE and not head.strip(b"\0"):
        return True  # the end marker of an archive without members
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _plain_name(path: Path) -> str:
    return re.sub(r"\.(gz|bz2|xz)$", "", path.name, flags=re.IGNORECASE)


def _not_data(path: Path, why: str) -> DataError:
    with path.open("rb") as stream:
        head = stream.read(32)
    what = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")
    return DataError(f"{path} cannot be used: {why}. Found {what + ', ' if what else ''}first bytes {head[:16]!r}; {EXPECTED}")


def _single(path: Path, name: str, stream: _Unpacked, limits: _Limits) -> Iterator[Member | SetAside]:
    limits.count_member()
    size = path.stat().st_size if name == path.name else -1
    if reason := limits.refuse(name, size):
        yield SetAside(shown(name), reason, f"{size:,} bytes" if reason == "member too large" else "")
    else:
        yield limits.member(name, size, io.BufferedReader(stream, 1 << 18))


def _folder(folder: Path, limits: _Limits) -> Iterator[Member | SetAside]:
    for name, path, status in files_of(folder):
        if stat.S_ISLNK(status.st_mode):
            yield SetAside(shown(name), "symbolic link")
        elif not stat.S_ISREG(status.st_mode):
            yield SetAside(shown(name), "device, fifo or socket")
        elif name.lower().endswith(".gz") and not name.lower().endswith(".tar.gz"):
            with _Unpacked(path, limits) as stream:
                yield from _single(path, name[:-3], stream, limits)
        else:
            with _Unpacked(path, limits) as stream:
                yield from _single(path, name, stream, limits)


def _tar(stream: _Unpacked, limits: _Limits) -> Iterator[Member | SetAside]:
    for info in _headers(stream):
        limits.count_member()
        name = info.name
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        if info.isdir():
            continue
        if reason := _refuse_kind(info) or limits.refuse(name, info.size):
            yield SetAside(shown(name), reason, f"{info.size:,} bytes" if reason == "member too large" else "")
            continue
        part = io.BufferedReader(_Part(stream, info.size), 1 << 18)
        yield limits.member(shown(name), info.size, part)
        part.detach()
    if trailing := _drain(stream):
        yield SetAside(
            stream.path.name, "data behind the end of the archive", f"{trailing:,} bytes; were archives joined with cat?"
        )


def _drain(stream: _Unpacked) -> int:
    """Read what follows the end marker, for the checksum of the compressed stream; return how many bytes are not padding."""
    found = 0
    while data := stream.read(1 << 20):
        found += len(data.strip(b"\0"))
    return found


def _refuse_kind(info: tarfile.TarInfo) -> str:
    if info.issym():
        return "symbolic link"
    if info.islnk():
        return "hard link"
    if not info.isreg():
        return "device, fifo or socket"
    return "sparse file" if info.issparse() else ""


def _headers(stream: _Unpacked) -> Iterator[tarfile.TarInfo]:
    """Yield the header of every member. tarfile alone would end silently at a damaged header, and would trust its sizes."""
    archive: tarfile.TarFile | None = None
    while True:
        stream.header_bytes_left = HEADER_BYTES
        try:
            archive = archive or tarfile.TarFile(fileobj=cast(IO[bytes], stream))
            info = archive.next()
        except (tarfile.TarError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise stream.damaged(f"a tar header is wrong ({error})") from error
        stream.header_bytes_left = None
        cast(Any, archive).members.clear()  # tarfile would keep them all
        archive.pax_headers = {}
        if info is None:
            break
        if info.size < 0:
            raise stream.damaged("a header gives a negative size")
        yield info
    if len(stream.last_header) < tarfile.BLOCKSIZE:
        raise stream.damaged("it ends without the end marker of a tar archive")
    if stream.last_header.strip(b"\0"):
        raise stream.damaged("the checksum of a tar header is wrong")


class _Part(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: _Unpacked, size: int) -> None:
        super().__init__()
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise self._stream.damaged("it ends in the middle of a member")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


# Readers -------------------------------------------------------------------------------------------------------------------


class JsonReader(Reader):
    """Reads .json: one object, a list of objects, or a wrapper object with one list of objects; also lines of objects."""

    name: ClassVar[str] = "json"

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .json."""
        return name.lower().endswith(".json")

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each object. Only a list may be larger than one record."""
        limit = record_limit(member)
        data = member.stream.read(limit + 1)
        if len(data) > limit:
            rest = cast(BinaryIO, io.BufferedReader(_Joined(data, member.stream), 1 << 18))
            listed = data.lstrip(codecs.BOM_UTF8 + _BLANKS).startswith(b"[")
            yield from _large_list(member.name, rest, limit) if listed else _lines(member.name, rest, limit)
            return
        try:
            value = parse(data)
        except BadRecord as bad:
            first = data.lstrip(codecs.BOM_UTF8 + _BLANKS).split(b"\n", 1)
            if len(first) == 2 and _is_object(first[0]):
                yield from _lines(member.name, io.BytesIO(data), limit)
            else:
                yield SetAside(member.name, bad.reason, bad.detail)
            return
        items = _items(value)
        if items is None:
            yield document(value, member.name)
        elif not items:
            yield SetAside(member.name, "empty list")
        else:
            yield from (document(item, f"{member.name}[{index}]") for index, item in enumerate(items))


class JsonLinesReader(Reader):
    """Reads .jsonl and .ndjson: one object on each line, blank lines left out."""

    name: ClassVar[str] = "jsonl"

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .jsonl or .ndjson."""
        return name.lower().endswith((".jsonl", ".ndjson"))

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each line; a line that is too long is skipped without being held in memory."""
        return _lines(member.name, member.stream, record_limit(member))


def record_limit(member: Member) -> int:
    """Return the largest record of a member that a reader may hold in memory, in bytes."""
    return member.max_record_bytes if isinstance(member, LimitedMember) else MAX_RECORD_BYTES


_BLANKS = b" \t\r\n"


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


def _lines(name: str, stream: BinaryIO, limit: int) -> Iterator[Document | SetAside]:
    number, said = 0, False
    while line := stream.readline(limit + 2):
        number += 1
        source = f"{name}:{number}"
        if len(line.rstrip(b"\r\n")) > limit:
            while line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)
            said = True
            yield SetAside(source, "record too large", f"more than {limit:,} bytes")
        elif line.strip():
            said = True
            try:
                value = parse(line)
            except BadRecord as bad:
                yield SetAside(source, bad.reason, bad.detail)
            else:
                yield document(value, source)
    if not said:
        yield SetAside(name, "empty file")


def _large_list(name: str, stream: BinaryIO, limit: int) -> Iterator[Document | SetAside]:
    """Yield the objects of a list that is larger than a record, holding no more than one of them at a time."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    index = -1
    try:
        for index, value in enumerate(_elements(text, limit)):
            yield document(value, f"{name}[{index}]")
    except BadRecord as bad:
        yield SetAside(f"{name}[{index + 1}]", bad.reason, "the rest of the list was not read")
    except UnicodeDecodeError:
        yield SetAside(f"{name}[{index + 1}]", "not UTF-8 text", "the rest of the list was not read")
    except RecursionError:
        yield SetAside(f"{name}[{index + 1}]", "nested too deeply", "the rest of the list was not read")
    finally:
        text.detach()


def _elements(text: io.TextIOWrapper, limit: int) -> Iterator[Any]:
    buffer, step = "", 1 << 16
    while not buffer:
        buffer = text.read(step).lstrip()
    buffer = buffer.removeprefix("[")
    position = 0
    while True:
        position = cast(re.Match[str], _BETWEEN.match(buffer, position)).end()
        if buffer.startswith("]", position):
            return
        try:
            value, end = _DECODER.raw_decode(buffer, position)
        except json.JSONDecodeError:
            end = len(buffer)
        if end < len(buffer):  # a number at the very end may go on
            yield value
            position, step = end, 1 << 16
            continue
        if len(buffer) - position > limit:
            raise BadRecord("record too large")
        if not (more := text.read(step)):
            raise BadRecord("not JSON")
        buffer, position, step = buffer[position:] + more, 0, step * 2


_BETWEEN = re.compile(r"[\s,]*")


class BadRecord(Exception):
    """A record is not JSON; the reason is counted, the detail is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def _integer(digits: str) -> int | float:
    """Parse an integer of any length: Python refuses 4,300 digits and more, and orjson writes no more than 64 bits."""
    return int(digits) if len(digits) < 19 else float(digits)


_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None, parse_int=_integer)


def parse(data: bytes) -> Any:
    """Parse one JSON value: strictly and fast, else leniently (NaN, lone surrogates, control characters, huge numbers).

    Raises BadRecord for what is no JSON, no UTF-8, empty, or nested too deeply.
    """
    data = data.removeprefix(codecs.BOM_UTF8).strip()
    if not data:
        raise BadRecord("empty file")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        fault = error
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8 text", f"byte {error.start}: {error.reason}") from None
    except json.JSONDecodeError:
        raise BadRecord("not JSON", f"{fault.msg} (line {fault.lineno}, column {fault.colno})") from None
    except RecursionError:
        raise BadRecord("nested too deeply") from None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except BadRecord:
        return False


def _items(value: Any) -> list[Any] | None:
    """Return the list that a value is or wraps, or None when it is one record itself."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or any(value.get(key) not in (None, "", []) for key in _SAYS):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and any(isinstance(inner, dict) for inner in item)]
    return lists[0] if len(lists) == 1 else None


# Records -------------------------------------------------------------------------------------------------------------------

_SAYS = ("title", "description", "content", "findings", "messages")
_CHAT_ROLES = ("system", "user", "assistant")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ID_LENGTH = 200


def document(record: Any, source: str) -> Document | SetAside:
    """Return the document of one record, or why it cannot be used. Never raises, whatever the record is.

    Numbers become text, one text becomes a list of one, findings that are objects their title and description. Any other
    wrong type sets the record aside; unknown keys are ignored.
    """
    if not isinstance(record, dict):
        return SetAside(source, "not an object", f"found {_kind(record)}")
    try:
        made = Document(
            id=_line(record, "id")[:_ID_LENGTH],
            title=_text(record.get("title"), "title"),
            description=_text(record.get("description"), "description"),
            content=_text(record.get("content"), "content"),
            findings=_findings(record.get("findings")),
            labels=_labels(record),
            messages=_messages(record.get("messages")),
            family=_line(record, "family"),
            source=source,
            role=_line(record, "role").lower(),
        )
    except BadRecord as bad:
        return SetAside(source, bad.reason, bad.detail)
    if not made.text.strip():
        keys = ", ".join(clean(str(key))[:40] for key in list(record)[:6]) or "none"
        return SetAside(source, "empty document", f"no text in {', '.join(_SAYS)}; its keys: {keys}")
    return made if made.id else replace(made, id=content_hash(made)[:16])


def clean(text: str) -> str:
    """Return text without control characters (newlines and tabs stay) and lone surrogates, and without blanks around it."""
    if _CONTROL.search(text):
        text = _CONTROL.sub(lambda match: "\ufffd" if "\ud800" <= match[0] <= "\udfff" else "", _NEWLINES.sub("\n", text))
    return text.strip()


def shown(name: str) -> str:
    """Return a name from an archive in a form that can be printed, logged and written: escaped, and not endless."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], name)[:1000]


def _text(value: Any, field: str) -> str:
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean("\n".join(value))
    raise BadRecord("field of the wrong type", f"{field} is {_kind(value)}, expected text")


def _line(record: Mapping[str, Any], field: str) -> str:
    """Return a short field, such as an id, as one line."""
    value = record.get(field)
    if isinstance(value, list):
        raise BadRecord("field of the wrong type", f"{field} is a list, expected text")
    return " ".join(_text(value, field).split())


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def _texts(value: Any, field: str, item_text: Callable[[Any, str], str]) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(text for text in (item_text(item, f"{field}[{index}]") for index, item in enumerate(items)) if text)


def _findings(value: Any) -> tuple[str, ...]:
    def finding(item: Any, field: str) -> str:
        if not isinstance(item, dict):
            return _text(item, field)
        said = [_text(item.get(key), f"{field}.{key}") for key in ("title", "description", "text")]
        if not any(said):
            raise BadRecord("field of the wrong type", f"{field} is an object without title, description or text")
        return ": ".join(text for text in said if text)

    return _texts(value, "findings", finding)


def _labels(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels that the role contracts know, typed as they expect them; an unusable risk score is left out."""
    labels: dict[str, Any] = {}
    if severity := _line(record, "severity").lower():
        labels["severity"] = severity
    if (score := _risk_score(record.get("risk_score"))) is not None:
        labels["risk_score"] = score
    for field in ("techniques", "controls", "remediation"):
        if texts := _texts(record.get(field), field, _text):
            labels[field] = list(texts)
    return labels


def _risk_score(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, type(None))):
        raise BadRecord("field of the wrong type", f"risk_score is {_kind(value)}, expected a number from 0 to 100")
    try:
        score = float(value if value is not None else "nan")
    except (ValueError, OverflowError):
        return None
    return round(score) if 0 <= score <= 100 else None


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    if value in (None, []):
        return ()
    if not isinstance(value, list):
        raise BadRecord("field of the wrong type", f"messages is {_kind(value)}, expected a list")
    turns = tuple(_turn(item, index) for index, item in enumerate(value))
    if not any(turn["role"] == "assistant" and turn["content"] for turn in turns):
        raise BadRecord("chat without an answer", "no turn of the assistant says anything")
    return turns


def _turn(item: Any, index: int) -> Mapping[str, str]:
    if not isinstance(item, dict):
        raise BadRecord("field of the wrong type", f"messages[{index}] is {_kind(item)}, expected an object")
    role = item.get("role")
    if role not in _CHAT_ROLES:
        found = clean(role)[:40] if isinstance(role, str) else _kind(role)
        raise BadRecord("unknown chat role", f"messages[{index}].role is {found}; expected {', '.join(_CHAT_ROLES)}")
    return {"role": role, "content": _text(item.get("content"), f"messages[{index}].content")}


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


@hookimpl
def sysscan_register_readers() -> Sequence[type[Reader]]:
    """Return the readers of JSON and JSON Lines."""
    return [JsonReader, JsonLinesReader]
