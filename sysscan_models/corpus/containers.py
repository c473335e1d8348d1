"""From an archive to its members: a tar file, a folder or a single file is walked once, in one forward pass, within limits.

Archives come from strangers: nothing is unpacked to disk, no link is followed, no name from an archive is ever opened, and
members, bytes and ratios are counted while unpacking. What may not be read is set aside with a reason; a damaged archive is an
error. Nothing here parses a member or chooses its reader.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from isal import igzip, isal_zlib

from sysscan_models.corpus.fields import CONTROL, HIDDEN
from sysscan_models.corpus.transcoding import marked_encoding
from sysscan_models.documents import SetAside
from sysscan_models.errors import DataError
from sysscan_models.interfaces import Member

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

MAX_RECORD_BYTES = 16 * 2**20
"""Limit of a record where nothing else was said, in bytes."""
RATIO_FREE_BYTES = 64 * 2**20
"""Unpacked bytes that `max_ratio` does not judge: short runs of zeros compress beyond any sensible ratio."""
HEADER_BYTES = 2**20
"""Limit of one member's tar headers together: tarfile reads a long name or a pax header into memory whole."""
COMPRESSED_BYTES = 64 * 2**20
"""Limit of a compressed member of an archive, packed and unpacked: it is unpacked in memory, and once only."""
_GZIP = b"\x1f\x8b"
SMALL_BYTES = 2**20
"""Members up to here are held in memory whole."""
BLOCK_BYTES = 2**20
"""Unpacked bytes that are read at once."""
XZ_MEMORY_BYTES = 256 * 2**20
"""What unpacking xz may take: its files name the size of the window themselves, up to 4 GB."""
ISAL_ERROR = cast("type[Exception]", isal_zlib.IsalError)
"""What isal raises for a damaged stream; its type stub calls it something else."""
EXPECTED = "expected a tar archive (plain or compressed with gzip, bzip2 or xz), a folder, or a .json or .jsonl file (also .gz)"


@dataclass(frozen=True)
class LimitedMember(Member):
    """A member with what its reader must know. `size` is -1 for a compressed file outside a tar."""

    max_record_bytes: int = MAX_RECORD_BYTES
    """How large a record may be, in bytes."""
    family_key: str = "family"
    """The key of a record that names its family."""
    alone: bool = False
    """Whether it is the archive itself, a single file: then no reader for it is an error."""
    position: Callable[[], int] = int
    """Returns how many bytes of the archive, as it lies on the disk, have been read; see `packed_bytes`."""


def walk(archive: Path, options: DataOptions) -> Iterator[LimitedMember | SetAside]:
    """Yield every regular file of a tar archive, a folder (sorted) or a single file, in one forward pass.

    A member of at most SMALL_BYTES and known size comes in memory, as a BytesIO; the stream of a larger one is valid until
    the next one is asked for. Links, devices, unsafe and repeated names and members beyond `max_member_bytes` are yielded as
    SetAside. Raises DataError when the archive is missing, empty, damaged or no archive, when it changes meanwhile, and when
    its unpacked size, its compression ratio or its number of members goes beyond the options.
    """
    archive = Path(archive)
    limits = _Limits(archive, options)
    seen = _Seen()
    entry: LimitedMember | SetAside | None = None
    for entry in _folder(archive, limits) if archive.is_dir() else _file(archive, limits):
        if isinstance(entry, LimitedMember) and not seen.add(entry.name):
            yield SetAside(entry.name, "repeated name")
        else:
            yield entry
    if entry is None:
        raise DataError(f"{archive} holds no file; {EXPECTED} with documents in it")


def packed_bytes(archive: Path) -> int:
    """Return the bytes that an archive takes on the disk: what `LimitedMember.position` and `Part.position` go up to."""
    archive = Path(archive)
    try:
        if not archive.is_dir():
            return archive.stat().st_size
        return sum(status.st_size for _, _, status in files_of(archive) if stat.S_ISREG(status.st_mode))
    except OSError as error:
        raise DataError(f"{archive} cannot be read ({error.strerror}); {EXPECTED}") from error


class _Seen:
    """Which names there were, in 16 to 32 bytes for each: a table of 64-bit hashes, as sets would take 5 times as much."""

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, name: str) -> bool:
        """Take a name; say whether it is new."""
        if self._count * 2 >= len(self._slots):
            former, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for key in filter(None, former):
                self._slots[self._place(key)] = key
        key = hash(name) & _HASH_MASK or 1
        place = self._place(key)
        new = not self._slots[place]
        self._slots[place] = key
        self._count += new
        return new

    def _place(self, key: int) -> int:
        mask = len(self._slots) - 1
        place = key & mask
        while (found := self._slots[place]) and found != key:
            place = (place + 1) & mask
        return place


_HASH_MASK = (1 << 64) - 1


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
        if slashed.startswith("/") or slashed[1:3] == ":/":
            return "absolute path"
        if ".." in slashed and ".." in slashed.split("/"):
            return "path leaves the archive"
        if not name.isprintable() and _UNSAFE_NAME.search(name):
            return "control character in the name"
        return "member too large" if size > self.options.max_member_bytes else ""

    def member(
        self, name: str, size: int, stream: BinaryIO, position: Callable[[], int], *, alone: bool = False
    ) -> LimitedMember:
        options = self.options
        return LimitedMember(name, size, stream, options.max_record_bytes, options.family_key, alone, position)


_UNSAFE_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Source(Protocol):
    """Unpacked bytes: at most `size` of them, none at the end."""

    def read(self, size: int, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of one file: counted, forward only, with every fault told as a DataError."""

    def __init__(self, path: Path, limits: _Limits, before: int = 0) -> None:
        super().__init__()
        self.path, self._limits, self._before = path, limits, before
        try:
            self._packed = path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); {EXPECTED}") from error
        self._found = os.fstat(self._packed.fileno())
        self.size = self._found.st_size
        self._source = _decompressor(self._packed)
        self.compressed = self._source is not self._packed
        self._block, self._at, self._end = b"", 0, 0
        self.header_bytes_left: int | None = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._end - len(self._block) + self._at

    def packed_position(self) -> int:
        """Bytes of the archive that were read, those of the files before this one included."""
        return self._before + self._packed.tell()

    def peek(self, size: int) -> bytes:
        """Return the next bytes, fewer only at the end, and stay before them."""
        if len(self._block) - self._at < size:
            blocks, held = [self._block[self._at :]], len(self._block) - self._at
            while held < size and (more := self._unpack()):
                blocks.append(more)
                held += len(more)
            self._block, self._at = b"".join(blocks), 0
        return self._block[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        """Return exactly so many bytes of a member and go behind them."""
        data = self.peek(size)
        if len(data) < size:
            raise self.damaged("it ends in the middle of a member")
        self._at += size
        return data

    def read(self, size: int = -1) -> bytes:
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size
            if size < 0 or self.header_bytes_left < 0:
                raise self.damaged(f"the headers of one member take more than {HEADER_BYTES:,} bytes")
        elif self._at == len(self._block):
            self._block, self._at = self._unpack(), 0
            size = min(size, len(self._block)) if size >= 0 else len(self._block)
        data = self.peek(size) if self.header_bytes_left is not None else self._block[self._at : self._at + size]
        self._at += len(data)
        return data

    def _unpack(self) -> bytes:
        try:
            data = self._source.read(BLOCK_BYTES)
        except EOFError as error:
            raise self.damaged("the compressed stream is cut off, or something else was appended to it") from error
        except (OSError, zlib.error, ISAL_ERROR, lzma.LZMAError) as error:
            raise self.damaged(str(error)) from error
        self._end += len(data)
        self._limits.count_bytes(len(data))
        if self.compressed:
            self._limits.check_ratio(self._end, self._packed.tell())
        if not data:
            self._refuse_changed()
        return data

    def _refuse_changed(self) -> None:
        now, then = os.fstat(self._packed.fileno()), self._found
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise DataError(f"{self.path} changed while it was being read; wait until it is complete, then run again")

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go forward to a position: over what nobody read."""
        left = offset - self.tell()
        if whence != 0 or left < 0:
            raise self.damaged("a header points backwards")
        while left > len(self._block) - self._at:
            left -= len(self._block) - self._at
            self._block, self._at = self._unpack(), 0
            if not self._block:
                raise self.damaged("it ends in the middle of a member")
        self._at += left
        return offset

    def finish(self) -> None:
        """Check a file that was read as far as somebody wanted: the rest of a compressed one, and that it did not change."""
        if self.compressed and self.tell():
            self.drain()
        else:
            self._refuse_changed()

    def drain(self) -> int:
        """Read to the end, for the checksum of the compressed stream; return how many bytes are not padding."""
        found = 0
        while data := self.read(BLOCK_BYTES):
            found += len(data.strip(b"\0"))
        return found

    def close(self) -> None:
        self._packed.close()
        super().close()

    def damaged(self, how: str) -> DataError:
        return DataError(
            f"{self.path} is damaged or truncated: {how} (after {self.tell():,} unpacked bytes). "
            f"Nothing was kept of it; bring or make the archive again"
        )


_MAGIC: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive; unpack it and give the folder",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first (zstd -d)",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the folder",
    b"Rar!": "a rar archive; unpack it and give the folder",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
    b"<!DOCTYPE": "a web page, probably an error page that was saved instead of the archive",
    b"<html": "a web page, probably an error page that was saved instead of the archive",
}


def _decompressor(packed: IO[bytes]) -> _Source:
    """Return the unpacked bytes, by what the file begins with; all of them check lengths and checksums to the last byte."""
    head = packed.read(6)
    packed.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(_Source, cast(Any, igzip.IGzipFile)(fileobj=packed, mode="rb"))
    if head.startswith(b"BZh"):
        return _Streams(packed, bz2.BZ2Decompressor)
    if head == b"\xfd7zXZ\x00":
        return _Streams(packed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES))
    return cast(_Source, packed)


class _Streams:
    """Streams of bzip2 or xz, one after the other. The library's own files are silent about garbage behind them."""

    def __init__(self, packed: IO[bytes], create: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._packed, self._create = packed, create
        self._stream: bz2.BZ2Decompressor | lzma.LZMADecompressor | None = create()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._stream is None or self._stream.eof:
                self._stream = self._next()
                if self._stream is None:
                    return b""
            if not self._rest and self._stream.needs_input:
                self._rest = self._packed.read(1 << 16)
                if not self._rest:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            data, self._rest = self._stream.decompress(self._rest, size), b""
            if data:
                return data

    def _next(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor | None:
        """Return what unpacks the next stream, or None at the end; zeros between streams are padding."""
        self._rest = self._stream.unused_data.lstrip(b"\0") if self._stream else b""
        while not self._rest and (more := self._packed.read(1 << 16)):
            self._rest = more.lstrip(b"\0")
        return self._create() if self._rest else None


def _file(path: Path, limits: _Limits) -> Iterator[LimitedMember | SetAside]:
    if not path.exists():
        raise DataError(f"{path} does not exist; {EXPECTED}")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; {EXPECTED}")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty (0 bytes); {EXPECTED}")
    with _Unpacked(path, limits) as stream:
        head = stream.peek(tarfile.BLOCKSIZE)
        if _is_tar(head):
            yield from _tar(stream, limits)
        elif not head or (b"\0" in head and not marked_encoding(head)):
            raise not_data(path, "it is neither a tar archive nor text")
        else:
            yield from _single(plain_name(path.name), stream, limits, alone=True)


def _is_tar(head: bytes) -> bool:
    if head == _END:
        return True  # the end marker of an archive without members
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def plain_name(name: str) -> str:
    """Return the name of a file without the ending that says how it is compressed."""
    return re.sub(r"\.(gz|bz2|xz)$", "", name, flags=re.IGNORECASE)


_NESTED = re.compile(r"(\.tar(\.(gz|bz2|xz|zst))?|\.(tgz|tbz2?|txz|zst|zip|7z|rar))$", re.IGNORECASE)


def nested(name: str) -> bool:
    """Say whether a member's name is that of an archive or compressed file that is not unpacked inside another."""
    return bool(_NESTED.search(name) or name != plain_name(name))


def not_data(path: Path, why: str) -> DataError:
    """Return the error of a file that is no data; it names what the file seems to be and its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(32)
    what = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")
    return DataError(f"{path} cannot be used: {why}. Found {what + ', ' if what else ''}first bytes {head[:16]!r}; {EXPECTED}")


def _single(name: str, stream: _Unpacked, limits: _Limits, *, alone: bool = False) -> Iterator[LimitedMember | SetAside]:
    """Yield a file that is no tar archive; `name` is without the ending of its compression."""
    size = -1 if stream.compressed else stream.size
    if alone:
        limits.count_member()
    if reason := limits.refuse(name, size):
        yield SetAside(shown(name), reason, f"{size:,} bytes" if reason == "member too large" else "")
    elif 0 <= size <= SMALL_BYTES:
        data = stream.take(size)
        stream.finish()
        yield limits.member(shown(name), size, io.BytesIO(data), stream.packed_position, alone=alone)
    else:
        whole = io.BufferedReader(stream, 1 << 18)
        yield limits.member(shown(name), size, cast(BinaryIO, whole), stream.packed_position, alone=alone)
        whole.detach()
        stream.finish()


def _folder(folder: Path, limits: _Limits) -> Iterator[LimitedMember | SetAside]:
    before = 0
    for name, path, status in files_of(folder):
        limits.count_member()
        if stat.S_ISLNK(status.st_mode):
            yield SetAside(shown(name), "symbolic link")
        elif not stat.S_ISREG(status.st_mode):
            yield SetAside(shown(name), "device, fifo or socket")
        elif _NESTED.search(name):
            yield SetAside(shown(name), "nested archive")
        else:
            with _Unpacked(path, limits, before) as stream:
                yield from _single(plain_name(name), stream, limits)
            before += status.st_size


def _tar(stream: _Unpacked, limits: _Limits) -> Iterator[LimitedMember | SetAside]:
    for info in _headers(stream):
        limits.count_member()
        name = info.name
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        if reason := info.kind or limits.refuse(name, info.size):
            if reason != "folder":
                yield SetAside(shown(name), reason, f"{info.size:,} bytes" if reason == "member too large" else "")
        elif info.size <= COMPRESSED_BYTES and not _NESTED.search(name) and stream.peek(2) == _GZIP[: info.size]:
            yield _compressed_member(name, stream.take(info.size), stream, limits)
        elif info.size <= SMALL_BYTES:
            data = io.BytesIO(stream.take(info.size))
            yield limits.member(shown(name), info.size, data, stream.packed_position)
        else:
            part = io.BufferedReader(_Part(stream, info.size), 1 << 18)
            yield limits.member(shown(name), info.size, cast(BinaryIO, part), stream.packed_position)
            part.detach()
    if trailing := stream.drain():
        yield SetAside(
            stream.path.name, "data behind the end of the archive", f"{trailing:,} bytes; were archives joined with cat?"
        )


def _compressed_member(name: str, packed: bytes, stream: _Unpacked, limits: _Limits) -> LimitedMember | SetAside:
    """Return a member of an archive that is itself compressed by gzip (`x.json.gz`, or `x.json` that is so), unpacked."""
    try:
        data: bytes = cast(Any, igzip.IGzipFile)(fileobj=io.BytesIO(packed), mode="rb").read(COMPRESSED_BYTES + 1)
    except (OSError, EOFError, zlib.error, ISAL_ERROR) as error:
        return SetAside(shown(name), "damaged compressed member", str(error))
    limits.count_bytes(len(data))
    if len(data) > COMPRESSED_BYTES:
        return SetAside(shown(name), "compressed member too large", f"unpacks to more than {COMPRESSED_BYTES:,} bytes")
    return limits.member(shown(plain_name(name)), len(data), io.BytesIO(data), stream.packed_position)


@dataclass(slots=True)
class _Header:
    """What a tar header says of a member: `kind` is why it is no ordinary file, `following` the place of the next header."""

    name: str
    size: int
    kind: str
    following: int


_END = bytes(tarfile.BLOCKSIZE)


def _headers(stream: _Unpacked) -> Iterator[_Header]:
    """Yield the header of every member. Ordinary ones are read here, 5 times as fast as by tarfile, which gets the others."""
    while True:
        block = stream.peek(tarfile.BLOCKSIZE)
        if block == _END:
            return
        if len(block) < tarfile.BLOCKSIZE:
            raise stream.damaged("it ends without the end marker of a tar archive")
        info = _ordinary(block, stream) or _unusual(stream)
        yield info
        stream.seek(info.following)


def _ordinary(block: bytes, stream: _Unpacked) -> _Header | None:
    """Read the header of a regular file with a short name, or return None."""
    if block[156] not in b"0\0" or block[345] or block[257:262] != b"ustar":
        return None
    digits, check = block[124:136].rstrip(b" \0"), block[148:156].rstrip(b" \0")
    name = block[:100].partition(b"\0")[0]
    if not digits.isdigit() or not check.isdigit() or not name or name.endswith(b"/"):
        return None
    try:
        size, wanted, text = int(digits, 8), int(check, 8), name.decode()
    except ValueError:
        return None
    if wanted != sum(block) - sum(block[148:156]) + 256:  # the checksum counts its own field as 8 blanks
        return None
    stream.take(tarfile.BLOCKSIZE)
    return _Header(text, size, "", stream.tell() + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)


def _unusual(stream: _Unpacked) -> _Header:
    """Read the headers of one member with tarfile: long names, pax, GNU's own, links, folders, sparse and damaged ones."""
    stream.header_bytes_left = HEADER_BYTES
    try:
        archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream), mode="w", encoding="utf-8")  # "w" reads nothing by itself
        info = tarfile.TarInfo.fromtarfile(archive)
    except (
        tarfile.TarError, struct.error, ArithmeticError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        checksum = str(error) == "bad checksum"
        raise stream.damaged(
            "the checksum of a tar header is wrong" if checksum else f"a tar header is wrong ({error})"
        ) from error
    finally:
        stream.header_bytes_left = None
    if info.size < 0:
        raise stream.damaged("a header gives a negative size")
    return _Header(info.name, info.size, _kind(info), archive.offset)


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym():
        return "symbolic link"
    if info.islnk():
        return "hard link"
    if info.isdir():
        return "folder"
    if info.isdev():
        return "device, fifo or socket"
    if not info.isreg():
        return "unknown kind of member"
    return "sparse file" if info.issparse() else ""


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


def shown(name: str) -> str:
    """Return a name from an archive in a form that can be printed, logged and written: escaped, and not endless."""
    if not name.isprintable():
        name = _SHOWN.sub(lambda match: repr(match[0])[1:-1], name)
    return name if len(name) <= _NAME_LENGTH else f"{name[:700]}...{name[-200:]}"


_SHOWN = re.compile(f"[\t\n]|{CONTROL.pattern}|{HIDDEN.pattern}")
_NAME_LENGTH = 1000
