"""From an archive to its members: a tar file, a folder or a single file is walked once, in one forward pass, within limits.

Archives come from strangers: nothing is unpacked to disk, no link is followed, no name from an archive is ever opened, and
members, bytes and ratios are counted while unpacking. What may not be read is set aside with a reason; a damaged archive is an
error. Nothing here parses a member or chooses its reader.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from sysscan_models.corpus.records import CONTROL
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
EXPECTED = "expected a tar archive (plain or compressed with gzip, bzip2 or xz), a folder, or a .json or .jsonl file (also .gz)"


@dataclass(frozen=True)
class LimitedMember(Member):
    """A member that also tells its reader how large a record may be. `size` is -1 for a compressed file outside a tar."""

    max_record_bytes: int = MAX_RECORD_BYTES


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
        if CONTROL.search(name):
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
        raise not_data(path, "it is neither a tar archive nor text")
    with _Unpacked(path, limits) as stream:
        yield from _tar(stream, limits) if is_tar else _single(path, plain_name(path), stream, limits)


def _is_tar(head: bytes) -> bool:
    if len(head) == tarfile.BLOCKSIZE and not head.strip(b"\0"):
        return True  # the end marker of an archive without members
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def plain_name(path: Path) -> str:
    """Return the name of a file without the ending that says how it is compressed."""
    return re.sub(r"\.(gz|bz2|xz)$", "", path.name, flags=re.IGNORECASE)


def not_data(path: Path, why: str) -> DataError:
    """Return the error of a file that is no data; it names what the file seems to be and its first bytes."""
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


def shown(name: str) -> str:
    """Return a name from an archive in a form that can be printed, logged and written: escaped, and not endless."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], name)[:1000]
