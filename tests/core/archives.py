"""Archives made in memory or streamed to a scratch file, as strangers might send them; none of them is kept."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

GOOD = 6
"""Documents of `good`."""


def doc(number: int = 0, **fields: object) -> dict[str, object]:
    return {"title": f"Title {number}", "description": f"Description {number}", "content": f"Content {number}", **fields}


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def good() -> bytes:
    """JSON Lines with documents that nothing is wrong with."""
    topics = (
        "the umask of root",
        "a recipe for bread",
        "an open port",
        "the history of a river",
        "a kernel module",
        "a garden",
    )
    return lines(
        *(
            {
                "title": f"About {topic}",
                "description": f"What should people know about {topic} before they begin with it?",
                "content": f"Whoever looks at {topic} for the first time sees little; afterwards {topic} explains itself. " * 2,
            }
            for topic in topics
        )
    )


def header(**fields: object) -> bytes:
    """One block of a tar header, with any field set to anything."""
    info = tarfile.TarInfo(str(fields.pop("name", "x.json")))
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def entry(name: str, data: bytes = b"", **fields: object) -> bytes:
    """A member as it lies in a tar archive: header and content."""
    return header(name=name, **{"size": len(data), **fields}) + padded(data)


def pax(records: dict[str, str], *, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header with these records, for the member that follows."""
    body = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        body += str(length).encode() + text
    return entry("./PaxHeaders/x", body, type=kind)


def raw_header(name: bytes, size_field: bytes, *, kind: bytes = b"0", checksum: str = "{:06o}\0 ") -> bytes:
    """A header with a size field of one's own, such as base-256, and a checksum that fits."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148], block[156:157] = size_field.ljust(12, b"\0")[:12], b"00000000000\0", kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = checksum.format(sum(block)).encode().ljust(8, b" ")[:8]
    return bytes(block)


def tar(*members: bytes, end: bytes = bytes(1024)) -> bytes:
    """A tar archive that begins with good documents, then has these members."""
    return entry("good.jsonl", good()) + b"".join(members) + end


def gzipped(data: bytes, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)


def streamed(path: Path, chunks: Iterable[bytes], pack: Callable[[Path], object] | None = None) -> Path:
    """Write an archive of any size without holding it."""
    with gzip.open(path, "wb", 6) if pack is None else pack(path) as stream:  # type: ignore[attr-defined]
        for chunk in chunks:
            stream.write(chunk)
    return path


def repeated(unit: bytes, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes that repeat a unit."""
    block = unit * ((1 << 20) // len(unit))
    while size > 0:
        yield block[:size]
        size -= len(block)


def huge_member(name: str, size: int, content: Iterable[bytes], begin: bytes = b"", end: bytes = b"") -> Iterator[bytes]:
    """The chunks of a tar archive of good documents and one member of `size` bytes of content between begin and end."""
    total = len(begin) + size + len(end)
    yield tar(end=b"")
    yield header(name=name, size=total)
    yield begin
    yield from content
    yield end + bytes(-total % 512) + bytes(1024)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzipped,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "plain": bytes,
}


def special(name: str, kind: bytes, target: str = "", **fields: object) -> bytes:
    return entry(name, type=kind, linkname=target, **fields)


def buffer(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)
