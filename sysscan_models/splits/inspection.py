"""One document's way, explained: what was read, what was taken out, which role learns it and why, and what it becomes.

The same functions work here as in `prepare`, on one document at a time, so that what is told is what happens. What needs all
other documents (copies, near copies) is not worked out again: it is looked up in the folder that `prepare` wrote. Nothing is
written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from sysscan_models.corpus import read_documents
from sysscan_models.corpus.containers import plain_name
from sysscan_models.corpus.records import as_id
from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Decision, Member, Reader
from sysscan_models.progress import Progress
from sysscan_models.prompts import example
from sysscan_models.redaction import redact
from sysscan_models.splits import quality
from sysscan_models.splits.division import split_of
from sysscan_models.splits.intake import REVIEW_BELOW, Settings, redacted
from sysscan_models.splits.report import DROPPED, REVIEW, SET_ASIDE, SPLITS, read_report
from sysscan_models.splits.words import word_hashes

if TYPE_CHECKING:
    from sysscan_models.config import RunConfig

LISTS = (REVIEW, SET_ASIDE, DROPPED)
"""What `prepare` writes beside the splits, of which each line names a document."""
SHOWN_CHARS = 400
"""Characters of a text that are kept to be shown."""
NEAR_IDS = 5
"""Ids that an error about an unknown one names."""
CANDIDATES = 2_000
"""Ids that are compared with an unknown one."""


@dataclass(frozen=True)
class Way:
    """What became of one record. All text is redacted, and cut to SHOWN_CHARS; empty is what was not reached."""

    source: str
    fate: str
    """`kept` (if it is no copy), `set aside`, `dropped`, `for a role that is not configured`; or `not read`."""
    why: str = ""
    """Why it was set aside or dropped."""
    reader: str = ""
    id: str = ""
    characters: dict[str, int] = field(default_factory=dict)
    """Field -> its length as it was read; lists are told by their number of items."""
    labels: dict[str, Any] = field(default_factory=dict)
    redactions: dict[str, int] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    """Field -> its text after redaction."""
    quality: str = ""
    held_out: str = ""
    role: str = ""
    score: float | None = None
    threshold: float | None = None
    reasons: list[str] = field(default_factory=list)
    decided_by: str = ""
    review: bool = False
    split: str = ""
    unit: str = ""
    """What decides the split: `family NAME`, or `content HASH`."""
    kind: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    """The training example: its turns, or one turn without a role for plain text."""
    prepared: list[dict[str, Any]] = field(default_factory=list)
    """Where `prepare` put it: `file`, `line`, and of a list what it says."""


def inspect_target(
    target: str,
    *,
    config: RunConfig | None = None,
    data: Path | None = None,
    archive: Path | None = None,
    limit: int = 5,
    record: int = 0,
    as_json: bool = False,
) -> str:
    """Return the ways of a file's first `limit` records (or its `record`-th, from 1), or of a document by id or source.

    A target that is no file is looked up in `data`, the folder that `prepare` wrote (by default the configuration's, or
    `data` here), and then read again from the `archive` (by default the configuration's). Raises UserError for what is
    neither a file nor an id, with the ids that are near.
    """
    inspector = Inspector.of(config, data=data, archive=archive)
    if os.path.exists(target):  # noqa: PTH110 - an id may be too long for a path, which Path would raise for
        ways = inspector.of_file(Path(target), limit=limit, record=record)
    elif record:
        raise UserError(f"--record {record} counts the records of a file, but there is no file {target}")
    else:
        ways = inspector.of_id(target, limit=limit)
    if as_json:
        return orjson.dumps([asdict(way) for way in ways], option=orjson.OPT_INDENT_2).decode()
    from sysscan_models.splits.inspection_text import as_text

    return as_text(ways)


@dataclass(frozen=True)
class Inspector:
    """Follows documents one at a time, with the parts that `prepare` would use."""

    settings: Settings
    seed: int
    data: Path
    """The folder that `prepare` wrote, if it did."""
    archive: Path | None = None

    @classmethod
    def of(cls, config: RunConfig | None, *, data: Path | None = None, archive: Path | None = None) -> Inspector:
        """Return the inspector of a configuration, or, without one, of what `prepare ARCHIVE` does without one."""
        from sysscan_models.splits import PLAIN_SEED, held_out_index, plain_settings

        if config is None:
            return cls(plain_settings(), seed=PLAIN_SEED, data=data or Path("data"), archive=archive)
        from sysscan_models.pipeline import Pipeline

        work = Pipeline(config)
        roles = tuple(part.role for _, part in sorted(config.roles.items()))
        held_out = held_out_index(config.held_out(), config.readers, config.data)
        settings = Settings(roles, config.router, config.readers, config.data, held_out)
        return cls(settings, config.seed, data or work.layout.data, archive or work.archive())

    def of_file(self, path: Path, *, limit: int = 5, record: int = 0) -> list[Way]:
        """Return the ways of the records of a file or archive; raise DataError when it cannot be read."""
        first, last = (record - 1, record) if record else (0, limit)
        took: dict[str, str] = {}
        ways = [self.follow(entry, _reader(entry.source, took)) for entry in islice(self._read(path, took), first, last)]
        if not ways:
            raise UserError(f"{path} has no record {record}; they are counted from 1, set-aside ones too")
        return ways

    def of_id(self, target: str, *, limit: int = 5) -> list[Way]:
        """Return the ways of the documents with an id or source; the archive is read until they are all found."""
        wanted = as_id(target.encode("utf-8", "replace").decode())  # as it is written
        found = list(islice(_lines_about(self.data, wanted), 200))
        if not found:
            raise self._unknown(target)
        by_source: dict[str, list[dict[str, Any]]] = {}
        for line in found:
            by_source.setdefault(line["source"], []).append(line)
        sources = dict(islice(by_source.items(), limit))
        ways = self._read_again(set(sources))
        return [_as_prepared(ways.get(source) or _not_read(source, lines), lines) for source, lines in sources.items()]

    def follow(self, entry: Document | SetAside, reader: str = "") -> Way:
        """Return one record's way through redaction, quality, held-out data and routing to its example."""
        settings = self.settings
        if isinstance(entry, SetAside):
            why = f"{entry.reason}: {entry.detail}" if entry.detail else entry.reason
            return Way(redact(entry.source), "set aside", redact(why), reader)
        document, found = redacted(entry, public_ips=settings.options.redact_public_ips)
        way = Way(
            document.source,
            "kept",
            reader=reader,
            id=document.id,
            characters=_lengths(entry),
            labels=dict(document.labels),
            redactions=dict(sorted(found.items())),
            text=_texts(document),
        )
        if fault := quality.fault(document, settings.options.quality):
            return replace(way, fate="set aside", why=": ".join(filter(None, fault)), quality=fault[0])
        way = replace(way, quality="good", held_out="no overlap" if settings.held_out else "nothing is held out")
        if settings.held_out and (file := settings.held_out.overlaps(word_hashes([document.compared]))[0]):
            return replace(way, fate="dropped", why=f"overlaps with held-out data, {file}", held_out=f"overlaps with {file}")
        return self._routed(way, document)

    def _routed(self, way: Way, document: Document) -> Way:
        settings = self.settings
        decision = settings.router.route(document)
        way = replace(
            way,
            role=decision.role,
            score=round(decision.score, 4),
            threshold=getattr(settings.router, "threshold", None),  # a plugin's router need not have one
            reasons=list(decision.reasons),
            decided_by=_decided_by(decision, settings.router.name),
            review=decision.score < REVIEW_BELOW,
        )
        role = next((role for role in settings.roles if role.name == decision.role), None)
        if role is None:
            names = ", ".join(role.name for role in settings.roles)
            return replace(way, fate="for a role that is not configured", why=f"the roles are {names}")
        key, made = content_hash(document), example(role, document)
        turns = [{"role": turn["role"], "content": _cut(turn["content"])} for turn in made.messages]
        return replace(
            way,
            split=split_of(key, document.family, self.seed, settings.options),
            unit=f"family {document.family}" if document.family else f"content {key[:16]}",
            kind=made.kind,
            turns=turns or [{"role": "", "content": _cut(made.text)}],
        )

    def _read_again(self, sources: set[str]) -> dict[str, Way]:
        """Return the ways of the records at these sources, as far as the archive still has them."""
        ways: dict[str, Way] = {}
        if self.archive is None or not self.archive.exists():
            return ways
        alone = self.archive.is_file() and any(reader.reads(plain_name(self.archive.name)) for reader in self.settings.readers)
        took: dict[str, str] = {}
        with Progress("inspect", unit="records") as bar:
            for number, entry in enumerate(self._read(self.archive, took, None if alone else frozenset(sources)), 1):
                source = redact(entry.source)
                if source in sources and source not in ways:
                    ways[source] = self.follow(entry, _reader(entry.source, took))
                if number % 1000 == 0 or len(ways) == len(sources):
                    bar.update(number, found=len(ways))
                if len(ways) == len(sources):
                    break
        return ways

    def _read(self, path: Path, took: dict[str, str], sources: frozenset[str] | None = None) -> Iterator[Document | SetAside]:
        """Yield every record of an archive; members without any of the sources are not parsed."""
        readers = [_Watched(reader=reader, took=took, sources=sources) for reader in self.settings.readers]
        return read_documents(path, readers, self.settings.options)

    def _unknown(self, target: str) -> UserError:
        read_report(self.data)  # says so if nothing was prepared
        near = get_close_matches(target, _candidates(self.data, target), n=NEAR_IDS, cutoff=0.5)
        hint = f" Near it are: {', '.join(near)}." if near else ""
        return UserError(
            f"{target!r} is neither a file nor the id or source of a document in {self.data}.{hint} Expected a .json or .jsonl "
            f"file or an archive, or an id or source (MEMBER:LINE) as train.jsonl, review.jsonl, set_aside.jsonl and "
            f"dropped.jsonl there name them; --data says where else to look"
        )


class _Watched(Reader):
    """A reader that notes which members it read, and leaves out those that hold nothing of what is looked for."""

    name: ClassVar[str] = "watched"
    reader: Reader
    took: Any
    """Member -> name of the reader that took it: one dict, shared by all (pydantic would copy what is declared as one)."""
    sources: frozenset[str] | None = None
    """Sources that are looked for; None for all."""

    def reads(self, name: str) -> bool:
        """Say whether the reader takes the member, and whether anything in it is looked for."""
        wanted = self.sources is None or any(_is_in(source, redact(name)) for source in self.sources)
        return wanted and self.reader.reads(name)

    def recognises(self, head: bytes) -> bool:
        """Say what the reader says."""
        return self.reader.recognises(head)

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Read as the reader does."""
        self.took[member.name] = self.reader.name
        return self.reader.read(member)


def _reader(source: str, took: Mapping[str, str]) -> str:
    return took.get(max((name for name in took if _is_in(source, name)), key=len, default=""), "")


def _is_in(source: str, member: str) -> bool:
    return source.startswith(member) and source[len(member) :][:1] in ("", ":", "[")


# Parts ---------------------------------------------------------------------------------------------------------------------


# What is told of a document ------------------------------------------------------------------------------------------------


def _lengths(document: Document) -> dict[str, int]:
    lengths = {name: len(getattr(document, name)) for name in ("title", "description", "content", "findings", "messages")}
    return {name: length for name, length in lengths.items() if length}


def _texts(document: Document) -> dict[str, str]:
    texts = {name: _cut(getattr(document, name)) for name in ("title", "description", "content")}
    texts["findings"] = _cut("\n".join(document.findings))
    texts["messages"] = _cut("\n".join(f"{turn['role']}: {turn['content']}" for turn in document.messages))
    return {name: text for name, text in texts.items() if text}


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}… ({len(text) - SHOWN_CHARS:,} more characters)"


def _decided_by(decision: Decision, router: str) -> str:
    """Say in words who decided, by the marks that routers put before their reasons."""
    first = decision.reasons[0] if decision.reasons else ""
    if first.startswith("label:"):
        return "a label in the data"
    if first.startswith(("allow:", "deny:")):
        return "a rule of the configuration"
    return f"the router {router!r}"


# The prepared folder -------------------------------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[Path]:
    for role in read_report(root)["roles"]:
        yield from (root / role / f"{split}.jsonl" for split in SPLITS)
    yield from (root / name for name in LISTS)


def _lines_about(root: Path, wanted: str) -> Iterator[dict[str, Any]]:
    """Yield every line that tells of the document with an id or source, with its `file` and `line`."""
    needle = orjson.dumps(wanted)
    with Progress("look up", unit="lines") as bar:
        for looked, (path, number, line) in enumerate(_all_lines(root), 1):
            if looked % 50_000 == 0:
                bar.update(looked)
            if needle in line and wanted in ((told := orjson.loads(line)).get("id"), told["source"]):
                yield {**told, "file": str(path), "line": number}


def _all_lines(root: Path) -> Iterator[tuple[Path, int, bytes]]:
    for path in _files(root):
        if path.exists():
            with path.open("rb") as stream:
                yield from ((path, number, line) for number, line in enumerate(stream, 1))


def _as_prepared(way: Way, lines: Sequence[Mapping[str, Any]]) -> Way:
    """Return a way with where `prepare` put the document, and with what only the other documents could tell."""
    shown = ("file", "line", "reason", "detail", "of", "similarity", "role", "score")
    told = [{key: line[key] for key in shown if line.get(key) not in (None, "")} for line in lines]
    copy = next((line for line in told if Path(line["file"]).name == DROPPED), None)
    if copy and way.fate == "kept":
        way = replace(way, fate="dropped", why=f"{copy['reason']}{' of ' + copy['of'] if 'of' in copy else ''}")
    for line in told:
        split, role = Path(line["file"]).stem, Path(line["file"]).parent.name
        if split in SPLITS and split != way.split:
            way = replace(way, split=split, role=role, unit=f"{way.unit}, tied to others")
    return replace(way, prepared=told)


def _not_read(source: str, lines: Sequence[Mapping[str, Any]]) -> Way:
    why = "the archive is not known (--archive FILE), or does not hold it any more"
    return Way(source, "not read", why, id=next((str(line["id"]) for line in lines if "id" in line), ""))


def _candidates(root: Path, target: str) -> list[str]:
    """Return the ids and sources whose beginning and end are most like the target's, so few that they can be compared."""

    def names() -> Iterator[str]:
        for _, _, line in _all_lines(root):
            told = orjson.loads(line)
            yield from (told.get("id", ""), told["source"])

    def shared(name: str) -> int:
        return _begins_alike(name, target) + _begins_alike(name[::-1], target[::-1])

    return list(dict.fromkeys(nlargest(CANDIDATES, names(), key=shared)))


def _begins_alike(one: str, other: str) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
