"""From documents to splits: redacted, routed, without exact duplicates, divided for good into train, valid and test.

One pass over the archive writes finished lines to a spool of buckets by content hash; the buckets, read one after the other in
hash order, become the files. So memory is bounded by a bucket, equal documents meet in one bucket, and the order of the members
changes no byte (a line names the member that it came from). A document's split follows from the seed and its family (or
content) alone: families are never divided, and documents added later move none that were there. Near duplicates are not looked
for here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from sysscan_models.artifacts import Splits, file_records, made_now, publish, sha256_file
from sysscan_models.corpus import JsonLinesReader, JsonReader, files_of, read_documents
from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.interfaces import Decision, Reader, Router
from sysscan_models.progress import Progress
from sysscan_models.prompts import Example, example, redact
from sysscan_models.roles import GENERALIST, SPECIALIST, ModelRole
from sysscan_models.routing import LexiconRouter
from sysscan_models.splits.report import EXAMPLES, REPORT, REVIEW, SET_ASIDE, SPLITS, Divided, Tally, report_of

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions, RunConfig

__all__ = ["SPLITS", "archive_digest", "prepare", "prepare_plain", "redacted", "split_of", "splits_inputs"]

REVIEW_BELOW = 0.2
"""Documents are listed for review when the router is less sure than this (0 is at its threshold, 1 beyond doubt)."""
BUCKETS = 128
"""Files of the spool: one of them at a time is held in memory."""
WORK = ".prepare"


def prepare(
    archive: Path,
    out_dir: Path,
    *,
    roles: Sequence[ModelRole],
    router: Router,
    readers: Sequence[Reader],
    options: DataOptions,
    seed: int,
    allow_empty: bool = False,
) -> dict[str, Splits]:
    """Write `out_dir/ROLE/{train,valid,test}.jsonl` for every role, and the reports, and return the saved artifacts by role.

    Raises DataError when the archive cannot be read or leaves a role (with `allow_empty`: every role) without training
    examples, UserError when `out_dir` cannot be used. Until everything is written nothing in `out_dir` changes; then each
    role's folder is replaced at once.
    """
    started = time.monotonic()
    archive, out_dir = Path(archive), Path(out_dir)
    inputs, keyed = splits_inputs(archive, options, roles=roles, router=router, readers=readers)
    _refuse_overlap(archive, out_dir, roles)
    try:
        with _workspace(out_dir, roles) as work:
            tally = _fill_spool(archive, work, roles=roles, router=router, readers=readers, options=options, seed=seed)
            divided = _write_splits(work, roles)
            if not allow_empty or not any(divided.counts[role.name]["train"] for role in roles):
                _refuse_empty(archive, roles, tally, divided)
            made = made_now(seconds=time.monotonic() - started)
            for role in roles:
                folder = work / role.name
                Splits(
                    role=role.name,
                    inputs=inputs,
                    options=keyed,
                    seed=seed,
                    files=file_records(folder, (f"{split}.jsonl" for split in SPLITS)),
                    made=made,
                    counts=divided.counts[role.name],
                    kinds=dict(sorted(divided.kinds[role.name].items())),
                    dataset_digest=divided.digest,
                ).save(folder)
            with _synced(work / REPORT) as stream:
                report = report_of(archive, inputs["archive"], seed, tally, divided)
                stream.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            _publish(work, out_dir, roles)
    except OSError as error:
        raise SysscanError(
            f"the splits cannot be written below {out_dir}: {error}. What was there before is unchanged"
        ) from error
    return {role.name: Splits.load(out_dir / role.name) for role in roles}


def prepare_plain(archive: Path, out_dir: Path, *, config: RunConfig | None = None) -> dict[str, Splits]:
    """Prepare an archive without a configuration (both built-in roles, every default) or with parts of the given one."""
    if config is not None:
        roles: Sequence[ModelRole] = [part.role for part in config.roles.values()]
        return prepare(
            archive, out_dir, roles=roles, router=config.router, readers=config.readers, options=config.data, seed=config.seed
        )
    from sysscan_models.config import DataOptions

    readers = (JsonReader(), JsonLinesReader())
    return prepare(
        archive,
        out_dir,
        roles=[SPECIALIST, GENERALIST],
        router=LexiconRouter(),
        readers=readers,
        options=DataOptions(),
        seed=17,
        allow_empty=True,  # nobody configured both roles; the table shows that one got nothing
    )


# What keys the stage -------------------------------------------------------------------------------------------------------


def splits_inputs(
    archive: Path, options: DataOptions, *, roles: Sequence[ModelRole], router: Router, readers: Sequence[Reader]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return `inputs` and `options` of the Splits artifacts: what decides their bytes, known before the work.

    The contracts of all roles are part of the inputs: prompts, answers and response schemas are written into the lines.
    """
    inputs = {"archive": archive_digest(archive), "contracts": _contracts_digest(roles)}
    keyed = {
        "data": options.model_dump(mode="json", exclude={"archive", "readers"}),
        "router": router.keyed(),
        "readers": [reader.keyed() for reader in readers],
        "roles": sorted(role.name for role in roles),
    }
    return inputs, keyed


def archive_digest(archive: Path) -> str:
    """Return the SHA-256 of a file, or of the sorted relative names and contents of a folder's regular files."""
    archive = Path(archive)
    if not archive.exists():
        raise DataError(f"{archive} does not exist; expected the dataset's archive, folder, .json or .jsonl file")
    try:
        if not archive.is_dir():
            if not archive.is_file():
                raise DataError(f"{archive} is a device, fifo or socket; expected the dataset as a file or a folder")
            return _file_digest(archive, _identity(archive.stat()))
        whole = hashlib.sha256()
        for name, path, status in sorted(files_of(archive), key=lambda found: found[0]):
            content = (
                _file_digest(path, _identity(status)) if path.is_file() and not path.is_symlink() else "not a regular file"
            )
            whole.update(os.fsencode(f"{name}\0{content}\n"))
        return whole.hexdigest()
    except OSError as error:
        raise DataError(f"{error.filename or archive} cannot be read: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _file_digest(path: Path, identity: tuple[int, ...]) -> str:  # noqa: ARG001 - the identity is the cache's key
    """Hash a file once per process: `run` asks for the key first and prepares then."""
    return sha256_file(path)


def _contracts_digest(roles: Sequence[ModelRole]) -> str:
    contracts = {role.name: [role.system_prompt, dict(role.answer), role.response_model.model_json_schema()] for role in roles}
    return hashlib.sha256(orjson.dumps(contracts, option=orjson.OPT_SORT_KEYS)).hexdigest()


# Reading: archive -> spool -------------------------------------------------------------------------------------------------


def _fill_spool(
    archive: Path,
    work: Path,
    *,
    roles: Sequence[ModelRole],
    router: Router,
    readers: Sequence[Reader],
    options: DataOptions,
    seed: int,
) -> Tally:
    """Read the archive once; every line goes to the bucket of its content hash, finished but for the duplicates."""
    by_name = {role.name: role for role in roles}
    tally = Tally(known=frozenset(by_name))
    (work / "spool").mkdir()
    with ExitStack() as stack, Progress("prepare", unit="documents") as bar:
        buckets = [stack.enter_context(_bucket(work, number).open("wb")) for number in range(BUCKETS)]
        set_aside, review = (stack.enter_context(_synced(work / name)) for name in (SET_ASIDE, REVIEW))
        for entry in read_documents(archive, readers, options):
            if isinstance(entry, SetAside):
                set_aside.write(_json_line(tally.count_set_aside(entry)))
                continue
            document = redacted(entry)
            tally.documents += 1
            tally.redacted += document != entry
            decision = router.route(document)
            tally.count_route(decision)
            if decision.score < REVIEW_BELOW:
                tally.review += 1
                review.write(_json_line(_review_line(document, decision)))
            if role := by_name.get(decision.role):
                key = content_hash(document)
                split = split_of(document.family or key, seed, options)
                buckets[int(key[:2], 16) * BUCKETS // 256].write(_record(key, role, split, document))
            if tally.documents % 500 == 0:
                bar.update(tally.documents, set_aside=tally.set_aside.total())
    return tally


def redacted(document: Document) -> Document:
    """Return the document with all of its text passed through `redact`: from here on no secret is seen, not even in reports."""
    return replace(
        document,
        id=redact(document.id),
        title=redact(document.title),
        description=redact(document.description),
        content=redact(document.content),
        findings=tuple(map(redact, document.findings)),
        labels={name: _redacted_label(value) for name, value in document.labels.items()},
        messages=tuple({**turn, "content": redact(turn["content"])} for turn in document.messages),
        family=redact(document.family),
        source=redact(document.source),
        role=redact(document.role),
    )


def _redacted_label(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_redacted_label(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def split_of(unit: str, seed: int, options: DataOptions) -> str:
    """Return the split of a family (or of a lone document's content hash); it depends on nothing else."""
    share = int.from_bytes(hashlib.sha256(f"{seed}\0{unit}".encode()).digest()[:8], "big") / 2**64
    if share < options.test_fraction:
        return "test"
    return "valid" if share < options.test_fraction + options.valid_fraction else "train"


def _record(key: str, role: ModelRole, split: str, document: Document) -> bytes:
    """Return a line of the spool. Of equal documents the first in sorted order is kept: with a family rather than without."""
    made = example(role, document)
    head = (key, "1" if not document.family else "0", role.name, split, made.kind)
    return "\t".join(head).encode() + b"\t" + _json_line(_line(document, made))


def _line(document: Document, made: Example) -> dict[str, Any]:
    line: dict[str, Any] = {"id": document.id, "source": document.source}
    if document.family:
        line["family"] = document.family
    line["kind"] = made.kind
    return {**line, "text": made.text} if made.kind == "text" else {**line, "messages": [dict(turn) for turn in made.messages]}


def _review_line(document: Document, decision: Decision) -> dict[str, Any]:
    return {
        "id": document.id,
        "source": document.source,
        "title": document.title[:200],
        "role": decision.role,
        "score": round(decision.score, 4),
        "reasons": list(decision.reasons),
    }


def _bucket(work: Path, number: int) -> Path:
    return work / "spool" / f"{number:03d}"


def _json_line(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


# Writing: spool -> splits --------------------------------------------------------------------------------------------------


def _write_splits(work: Path, roles: Sequence[ModelRole]) -> Divided:
    """Write every split in the order of the content hashes, each content once."""
    divided = Divided({role.name: dict.fromkeys(SPLITS, 0) for role in roles}, {role.name: Counter() for role in roles})
    dataset = hashlib.sha256()
    with ExitStack() as stack:
        files: dict[tuple[bytes, bytes], IO[bytes]] = {}
        for role in roles:
            (work / role.name).mkdir()
            for split in SPLITS:
                path = work / role.name / f"{split}.jsonl"
                files[role.name.encode(), split.encode()] = stack.enter_context(_synced(path))
        for number in range(BUCKETS):
            bucket = _bucket(work, number)
            last = kept = b""
            for record in sorted(bucket.read_bytes().splitlines(keepends=True)):
                key, _, name, split_name, kind, line = record.split(b"\t", 5)
                if key == last:
                    _count_duplicate(divided, kept, line)
                    continue
                last, kept = key, line
                files[name, split_name].write(line)
                divided.counts[name.decode()][split_name.decode()] += 1
                divided.kinds[name.decode()][kind.decode()] += 1
                dataset.update(key)
            bucket.unlink()
    divided.digest = dataset.hexdigest()
    return divided


def _count_duplicate(divided: Divided, kept: bytes, line: bytes) -> None:
    divided.duplicates += 1
    if len(divided.duplicate_examples) < EXAMPLES:
        first, second = orjson.loads(kept), orjson.loads(line)
        divided.duplicate_examples.append({"kept": first["source"], "dropped": second["source"]})


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _refuse_empty(archive: Path, roles: Sequence[ModelRole], tally: Tally, divided: Divided) -> None:
    empty = [role.name for role in roles if not divided.counts[role.name]["train"]]
    if not empty:
        return
    went = ", ".join(f"{count} to {name}" for name, count in sorted(tally.routed.items()))
    splits = "; ".join(f"{name} {_counts_in_words(counts)}" for name, counts in divided.counts.items())
    aside = ", ".join(f"{reason} {count}" for reason, count in tally.set_aside.most_common())
    if not tally.documents:
        advice = "give documents as objects with title, description, content and findings (or messages)"
    elif any(any(divided.counts[name].values()) for name in empty):
        advice = "give more documents, or lower data.valid_fraction and data.test_fraction"
    else:
        advice = (
            f'give documents for it, name their role in the data ("role": "{empty[0]}"), move router.threshold, '
            f"or leave the role out of the configuration"
        )
    raise DataError(
        f"{archive} leaves no training example for {' and '.join(empty)}: {tally.documents} documents were read"
        f"{f' ({went}; in the splits: {splits})' if went else ''}, {divided.duplicates} of them duplicates, "
        f"{tally.set_aside.total()} records were set aside{f' ({aside})' if aside else ''}. To mend it, {advice}"
    )


def _counts_in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {counts[split]}" for split in SPLITS)


# The output folder ---------------------------------------------------------------------------------------------------------


@contextmanager
def _workspace(out_dir: Path, roles: Sequence[ModelRole]) -> Iterator[Path]:
    """Give a folder below `out_dir` to work in, and remove it whatever happens; a killed run's remains go first."""
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; the splits need a folder to be written to")
    new = not out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    for role in roles:
        _recover(out_dir / role.name)
        _refuse_foreign(out_dir / role.name)
    work = out_dir / WORK
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if new:
            with suppress(OSError):
                out_dir.rmdir()  # only if it stayed empty


def _refuse_overlap(archive: Path, out_dir: Path, roles: Sequence[ModelRole]) -> None:
    read, written = archive.resolve(), out_dir.resolve()
    if written.is_relative_to(read) or any(read.is_relative_to(written / role.name) for role in roles):
        raise UserError(f"the splits would be written to {out_dir}, inside what is read, {archive}; choose another --out")


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that holds something else than splits."""
    if not folder.exists():
        return
    ours = {"artifact.json", *(f"{split}.jsonl" for split in SPLITS)}
    foreign = sorted({path.name for path in folder.iterdir()} - ours) if folder.is_dir() else [folder.name]
    if foreign:
        raise UserError(
            f"{folder} would be replaced, but it holds what prepare did not write: {', '.join(foreign[:5])}. "
            f"Choose another --out, or move it away"
        )


def _set_by(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _recover(folder: Path) -> None:
    """Bring back the former result of a run that was killed between its two renames."""
    if _set_by(folder).exists():
        if folder.exists():
            shutil.rmtree(_set_by(folder))
        else:
            _set_by(folder).replace(folder)


def _publish(work: Path, out_dir: Path, roles: Sequence[ModelRole]) -> None:
    """Move the reports and then the folders of the roles into place, each with its record inside."""
    for name in (REPORT, SET_ASIDE, REVIEW):
        publish(work / name, out_dir / name)
    for role in roles:
        folder = out_dir / role.name
        try:
            if folder.exists():
                folder.replace(_set_by(folder))
            publish(work / role.name, folder)
        finally:
            _recover(folder)
