"""From the archive to documents: containers are walked safely, once, for all readers, and records become documents.

Each member goes to the first reader that takes it; what cannot be used is set aside with a counted reason. A damaged archive
is an error. Reading can be divided: `parts` cuts an archive up, `read_part` makes documents of a part, in any process. This
package does not judge what a document says, nor where it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sysscan_models.corpus.containers import files_of, packed_bytes, walk
from sysscan_models.corpus.portions import Part, parts, read_part
from sysscan_models.corpus.readers import JsonLinesReader, JsonReader
from sysscan_models.corpus.records import document
from sysscan_models.corpus.reports import ReportReader
from sysscan_models.corpus.synthetic import SyntheticReader
from sysscan_models.documents import Document, SetAside
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Reader

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

__all__ = [
    "JsonLinesReader",
    "JsonReader",
    "Part",
    "ReportReader",
    "SyntheticReader",
    "document",
    "files_of",
    "packed_bytes",
    "parts",
    "read_documents",
    "read_part",
    "sysscan_register_readers",
    "walk",
]


def read_documents(archive: Path, readers: Sequence[Reader], options: DataOptions) -> Iterator[Document | SetAside]:
    """Yield every document of the archive, and a SetAside for each member or record that cannot be used.

    A member goes to the first reader that takes its name and recognises its beginning. Raises DataError when the archive is
    damaged, is none, or goes beyond the limits of the options, and SysscanError when a reader fails.
    """
    for part in parts(archive, readers, options):
        yield from read_part(part, readers, options)


@hookimpl
def sysscan_register_readers() -> Sequence[type[Reader]]:
    """Return the readers of scan reports, of the host's synthetic data sets, of JSON and of JSON Lines."""
    return [ReportReader, SyntheticReader, JsonReader, JsonLinesReader]
