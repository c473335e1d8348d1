"""From the archive to documents: containers are walked safely, once, for all readers, and records become documents.

Each member goes to the first reader that takes its name; what cannot be used is set aside with a counted reason. A damaged
archive is an error. This package does not judge what a document says, nor where it goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sysscan_models.corpus.containers import files_of, not_data, plain_name, walk
from sysscan_models.corpus.readers import JsonLinesReader, JsonReader
from sysscan_models.corpus.records import document
from sysscan_models.documents import Document, SetAside
from sysscan_models.errors import SysscanError
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Member, Reader

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

__all__ = ["JsonLinesReader", "JsonReader", "document", "files_of", "read_documents", "sysscan_register_readers", "walk"]

_COMPRESSED = re.compile(r"\.(gz|tgz|bz2|tbz2|xz|txz|zst|zip|7z|rar)$", re.IGNORECASE)


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
        elif Path(archive).is_file() and entry.name == plain_name(Path(archive)):
            raise not_data(Path(archive), f"no reader ({_names(readers)}) takes a file of this name")
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


@hookimpl
def sysscan_register_readers() -> Sequence[type[Reader]]:
    """Return the readers of JSON and JSON Lines."""
    return [JsonReader, JsonLinesReader]
