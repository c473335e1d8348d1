"""What becomes of each document on its own, a batch at a time: read, redacted, judged, routed, and put into the spool.

This is the work of a worker process. Whether another document says the same is not known here.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson

from sysscan_models.corpus.portions import Part, read_part
from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.interfaces import Decision, Reader, Router
from sysscan_models.prompts import Example, redacted_example
from sysscan_models.redaction import redact_counted, redact_deep
from sysscan_models.roles import ModelRole
from sysscan_models.splits import quality
from sysscan_models.splits.contamination import HeldOut
from sysscan_models.splits.duplicates import signatures
from sysscan_models.splits.report import Tally
from sysscan_models.splits.spool import HEAD, Writer
from sysscan_models.splits.words import word_hashes

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

KINDS = ("answer", "labels", "title", "messages", "text")
"""Kinds of examples, in the order of their numbers in the spool; see prompts.Example."""
TOGETHER, TOGETHER_CHARS = 500, 2**20
"""Documents, or characters of them, that are taken together."""
LISTED_BYTES = 2**20
"""Lines of a list that are held in memory."""
REVIEW_BELOW = 0.2
"""Documents are listed for review when the router is less sure than this (0 is at its threshold, 1 beyond doubt)."""


@dataclass(frozen=True)
class Settings:
    """What a worker must know."""

    roles: tuple[ModelRole, ...]
    """Sorted by their names."""
    router: Router
    readers: tuple[Reader, ...]
    options: DataOptions
    held_out: HeldOut | None = None


class Listing:
    """Lines that people read, from one part: held in memory while they are few, else in a file of the spool."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines, self._size, self._spilt = path, list[bytes](), 0, False

    def add(self, line: bytes) -> None:
        """Append a line."""
        self._lines.append(line)
        self._size += len(line)
        if self._size > LISTED_BYTES:
            with self._path.open("ab") as stream:
                stream.writelines(self._lines)
            self._lines, self._size, self._spilt = [], 0, True

    def pour(self, stream: IO[bytes]) -> None:
        """Write all lines to a stream, and forget them."""
        if self._spilt:
            with self._path.open("rb") as spilt:
                shutil.copyfileobj(spilt, stream)
            self._path.unlink()
        stream.writelines(self._lines)
        self._lines, self._size, self._spilt = [], 0, False


@dataclass
class Taken:
    """What became of a part: counts, and lines for the lists that people read."""

    tally: Tally
    position: int
    """How far into the archive the part reaches."""
    set_aside: Listing
    review: Listing
    dropped: Listing


class Intake:
    """Takes in parts, one after the other. A context manager."""

    def __init__(self, settings: Settings, spool: Path, number: int) -> None:
        self.settings = settings
        self._numbers = {role.name: place for place, role in enumerate(settings.roles)}
        self._writer = Writer(spool, number)
        self._lists = (spool / f"{number:03d}.{part}" for part in itertools.count())

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def take(self, part: Part) -> Taken:
        """Read a part, write its documents to the spool, and say what became of it.

        A part of a megabyte may hold a million tiny records: some hundreds are in memory at a time.
        """
        path = next(self._lists)
        lists = (Listing(path.with_suffix(f"{path.suffix}.{name}")) for name in ("set_aside", "review", "dropped"))
        taken = Taken(Tally(known=frozenset(self._numbers)), part.position, *lists)
        documents: list[Document] = []
        families: list[int] = []
        characters = 0
        for entry in read_part(part, self.settings.readers, self.settings.options):
            if document := self._checked(entry, taken):
                documents.append(document)
                families.append(family_hash(entry.family) if isinstance(entry, Document) else 0)
                characters += len(document.text)
            if len(documents) >= TOGETHER or characters >= TOGETHER_CHARS:
                self._take_some(documents, families, taken)
                documents, families, characters = [], [], 0
        self._take_some(documents, families, taken)
        return taken

    def _take_some(self, documents: Sequence[Document], families: Sequence[int], taken: Taken) -> None:
        """Compare with held-out data, route, and write. Families were hashed before redaction made them alike."""
        given = self.settings
        words = word_hashes([document.compared for document in documents])
        overlaps = given.held_out.overlaps(words) if given.held_out else [""] * len(documents)
        self._drop_held_out(documents, overlaps, taken)
        places = [place for place, name in enumerate(overlaps) if not name]
        decisions = given.router.route_all([documents[place] for place in places])
        ours = []
        for place, decision in zip(places, decisions, strict=True):
            self._count(documents[place], decision, taken)
            if decision.role in self._numbers:
                ours.append((place, decision))
        chosen = [place for place, _ in ours]
        self._write(
            [documents[place] for place in chosen],
            [families[place] for place in chosen],
            [decision for _, decision in ours],
            signatures(words)[chosen],
        )

    def _checked(self, entry: Document | SetAside, taken: Taken) -> Document | None:
        """Return the document without its secrets, or None when it was set aside."""
        options = self.settings.options
        if isinstance(entry, Document):
            taken.tally.documents += 1
            document, found = redacted(entry, public_ips=options.redact_public_ips)
            taken.tally.redacted += bool(found)
            taken.tally.redactions.update(found)
            if not (fault := quality.fault(document, options.quality)):
                return document
            taken.tally.judged += 1
            entry = SetAside(document.source, *fault)
        taken.set_aside.add(json_line(taken.tally.count_set_aside(entry)))
        return None

    def _drop_held_out(self, documents: Sequence[Document], overlaps: Sequence[str], taken: Taken) -> None:
        held_out = self.settings.held_out
        for document, name in zip(documents, overlaps, strict=True):
            if name and held_out:
                taken.tally.held_out[name] += 1
                quote = held_out.quotation(document.compared)
                taken.dropped.add(dropped_line(document.id, document.source, "in held-out data", of=name, quote=quote))

    def _count(self, document: Document, decision: Decision, taken: Taken) -> None:
        unsure = decision.score < REVIEW_BELOW
        line = decision_line(document, decision) if unsure or taken.tally.wants_sample(decision, review=False) else None
        taken.tally.count_route(decision, line, review=unsure)
        if line and unsure:
            taken.review.add(json_line(line))
        if decision.role not in self._numbers:
            reason = "for a role that is not configured"
            taken.dropped.add(dropped_line(document.id, document.source, reason, of=decision.role[:200], similarity=0.0))

    def _write(
        self, documents: Sequence[Document], families: Sequence[int], decisions: Sequence[Decision], signed: Any
    ) -> None:
        if not documents:
            return
        numbers = [self._numbers[decision.role] for decision in decisions]
        made = [
            redacted_example(self.settings.roles[number], document) for number, document in zip(numbers, documents, strict=True)
        ]
        heads = np.zeros(len(documents), HEAD)
        heads["key"] = [bytes.fromhex(content_hash(document)) for document in documents]
        heads["family"] = families
        heads["role"] = numbers
        heads["sure"] = [bool(document.role) for document in documents]
        heads["score"] = [decision.score for decision in decisions]
        heads["kind"] = [KINDS.index(one.kind) for one in made]
        heads["characters"] = [min(len(document.text), 2**32 - 1) for document in documents]
        lines = [json_line(example_line(document, one)) for document, one in zip(documents, made, strict=True)]
        self._writer.write(heads, signed, lines)


def redacted(document: Document, *, public_ips: bool = False) -> tuple[Document, Counter[str]]:
    """Return the document with all of its text passed through `redact`, and what was found by kind.

    From here on no secret is seen, not even in reports.
    """
    found: Counter[str] = Counter()
    said = [document.id, document.text, *_label_texts(document.labels), document.family, document.source, document.role]
    whole = "\n".join(said)
    if (
        redact_counted(whole, found, public_ips=public_ips) == whole
    ):  # nearly all documents; once is cheaper than field by field
        return document, Counter()

    found = Counter()

    def clean(text: str) -> str:
        return redact_counted(text, found, public_ips=public_ips)

    without = replace(
        document,
        id=clean(document.id),
        title=clean(document.title),
        description=clean(document.description),
        content=clean(document.content),
        findings=tuple(map(clean, document.findings)),
        labels=redact_deep(document.labels, found, public_ips=public_ips),
        messages=tuple({**turn, "content": clean(turn["content"])} for turn in document.messages),
        family=clean(document.family),
        source=clean(document.source),
        role=clean(document.role),
    )
    return without, found


def _label_texts(labels: Any) -> list[str]:
    listed = [value if isinstance(value, (list, tuple)) else [value] for value in labels.values()]
    return [item for items in listed for item in items if isinstance(item, str)]


def family_hash(family: str) -> int:
    """Return the first 8 bytes of a family's SHA-256 as a number, 0 for no family."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") or 1 if family else 0


def example_line(document: Document, made: Example) -> dict[str, Any]:
    """Return an example as it is written to a split."""
    line: dict[str, Any] = {"id": document.id, "source": document.source}
    if document.family:
        line["family"] = document.family
    line["kind"] = made.kind
    return {**line, "text": made.text} if made.kind == "text" else {**line, "messages": [dict(turn) for turn in made.messages]}


def decision_line(document: Document, decision: Decision) -> dict[str, Any]:
    """Return what is written about a document that was routed."""
    return {
        "id": document.id,
        "source": document.source,
        "title": document.title[:200],
        "role": decision.role,
        "score": round(decision.score, 4),
        "reasons": list(decision.reasons),
    }


def dropped_line(name: str, source: str, reason: str, *, of: str, similarity: float = 1.0, quote: str = "") -> bytes:
    """Return the line of DROPPED about a document that was read well and is not in the splits; `quote` is what it shares."""
    told = {"id": name, "source": source, "reason": reason, "of": of, "similarity": round(similarity, 2)}
    return json_line({**told, "quote": quote} if quote else told)


def json_line(value: Any) -> bytes:
    """Return a value as a line of JSON."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
