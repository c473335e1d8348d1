"""What becomes of each document on its own, a batch at a time: read, redacted, judged, routed, and put into the spool.

This is the work of a worker process. Whether another document says the same is not known here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from sysscan_models.splits.spool import Writer, head_type
from sysscan_models.splits.words import word_hashes

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions

KINDS = ("answer", "labels", "title", "messages", "text")
"""Kinds of examples, in the order of their numbers in the spool; see prompts.Example."""
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


@dataclass
class Taken:
    """What became of a batch: counts, and lines for the lists that people read."""

    tally: Tally
    position: int = 0
    """How far into the archive the batch reaches."""
    set_aside: list[bytes] = field(default_factory=list)
    review: list[bytes] = field(default_factory=list)
    dropped: list[bytes] = field(default_factory=list)


class Intake:
    """Takes in batches, one after the other. A context manager."""

    def __init__(self, settings: Settings, spool: Path, number: int) -> None:
        self.settings = settings
        self._numbers = {role.name: place for place, role in enumerate(settings.roles)}
        self._writer = Writer(spool, number)

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def take(self, part: Part) -> Taken:
        """Read a part, write its documents to the spool, and say what became of it."""
        given = self.settings
        taken = Taken(Tally(known=frozenset(self._numbers)), part.position)
        entries = read_part(part, given.readers, given.options)
        documents = [document for entry in entries if (document := self._checked(entry, taken))]
        words = word_hashes([document.text for document in documents])
        signed = signatures(words)
        if given.held_out:
            overlaps = given.held_out.overlaps(words)
            self._drop_held_out(documents, overlaps, taken)
            clean = [place for place, name in enumerate(overlaps) if not name]
            documents, signed = [documents[place] for place in clean], signed[clean]
        decisions = given.router.route_all(documents)
        for document, decision in zip(documents, decisions, strict=True):
            self._count(document, decision, taken)
        ours = [place for place, decision in enumerate(decisions) if decision.role in self._numbers]
        self._write([documents[place] for place in ours], [decisions[place] for place in ours], signed[ours])
        return taken

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
            entry = SetAside(document.source, *fault)
        taken.set_aside.append(json_line(taken.tally.count_set_aside(entry)))
        return None

    def _drop_held_out(self, documents: Sequence[Document], overlaps: Sequence[str], taken: Taken) -> None:
        for document, name in zip(documents, overlaps, strict=True):
            if name:
                taken.tally.held_out[name] += 1
                taken.dropped.append(dropped_line(document.id, document.source, "in held-out data", of=name))

    def _count(self, document: Document, decision: Decision, taken: Taken) -> None:
        unsure = decision.score < REVIEW_BELOW
        line = decision_line(document, decision) if unsure or taken.tally.wants_sample(decision, review=False) else None
        taken.tally.count_route(decision, line, review=unsure)
        if line and unsure:
            taken.review.append(json_line(line))

    def _write(self, documents: Sequence[Document], decisions: Sequence[Decision], signed: Any) -> None:
        if not documents:
            return
        numbers = [self._numbers[decision.role] for decision in decisions]
        made = [
            redacted_example(self.settings.roles[number], document) for number, document in zip(numbers, documents, strict=True)
        ]
        heads = np.zeros(len(documents), head_type(signed.shape[1]))
        heads["key"] = [bytes.fromhex(content_hash(document)) for document in documents]
        heads["family"] = [family_hash(document.family) for document in documents]
        heads["role"] = numbers
        heads["sure"] = [bool(document.role) for document in documents]
        heads["score"] = [decision.score for decision in decisions]
        heads["kind"] = [KINDS.index(one.kind) for one in made]
        heads["characters"] = [min(len(document.text), 2**32 - 1) for document in documents]
        heads["signature"] = signed
        lines = [json_line(example_line(document, one)) for document, one in zip(documents, made, strict=True)]
        self._writer.write(heads, lines)


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


def dropped_line(name: str, source: str, reason: str, *, of: str, similarity: float = 1.0) -> bytes:
    """Return the line of DROPPED about a document that was read well and is not in the splits."""
    told = {"id": name, "source": source, "reason": reason, "of": of, "similarity": round(similarity, 2)}
    return json_line(told)


def json_line(value: Any) -> bytes:
    """Return a value as a line of JSON."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
