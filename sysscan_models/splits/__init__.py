"""From documents to splits: redacted, routed, without copies, divided for good into train, valid and test.

    archive -> read (corpus) -> each document on its own (intake, in worker processes) -> spool by content hash (spool)
            -> all together (division): exact copies, near copies, units -> ROLE/{train,valid,test}.jsonl

Memory is bounded by a batch for each worker and a bucket of the spool, and by a few bytes for each document. The order of the
archive's members changes no byte of the splits but the `source` that a line names.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from sysscan_models.artifacts import Splits, file_records, made_now, sha256_file
from sysscan_models.corpus import files_of, read_documents, sysscan_register_readers
from sysscan_models.corpus.containers import packed_bytes
from sysscan_models.corpus.portions import parts
from sysscan_models.documents import Document
from sysscan_models.errors import DataError, SysscanError
from sysscan_models.interfaces import Reader, Router
from sysscan_models.progress import Progress
from sysscan_models.roles import GENERALIST, SPECIALIST, ModelRole
from sysscan_models.routing import LinearRouter
from sysscan_models.splits.crew import take_in
from sysscan_models.splits.division import divide
from sysscan_models.splits.folders import publish_all, refuse_overlap, synced, workspace
from sysscan_models.splits.intake import REVIEW_BELOW, Settings
from sysscan_models.splits.page import data_page
from sysscan_models.splits.report import DROPPED, PAGE, REPORT, REVIEW, SET_ASIDE, SPLITS, Divided, Tally, report_of

if TYPE_CHECKING:
    from sysscan_models.config import DataOptions, RunConfig
    from sysscan_models.splits.contamination import HeldOut

__all__ = ["SPLITS", "archive_digest", "held_out_index", "plain_settings", "prepare", "prepare_plain", "splits_inputs"]


PLAIN_SEED = 17
"""Seed without a configuration."""


def prepare(
    archive: Path,
    out_dir: Path,
    *,
    roles: Sequence[ModelRole],
    router: Router,
    readers: Sequence[Reader],
    options: DataOptions,
    seed: int,
    held_out: Sequence[Path] = (),
    allow_empty: bool = False,
) -> dict[str, Splits]:
    """Write `out_dir/ROLE/{train,valid,test}.jsonl` for every role, and the reports, and return the saved artifacts by role.

    `held_out` are archives, as `archive` is one; what shares a sequence of words with their documents is left out. Raises
    DataError when an archive cannot be read or leaves a role (with `allow_empty`: every role) without training examples,
    UserError when `out_dir` cannot be used. Until everything is written nothing in `out_dir` changes; then each role's folder
    is replaced at once.
    """
    started = time.monotonic()
    archive, out_dir = Path(archive), Path(out_dir)
    inputs, keyed = splits_inputs(archive, options, roles=roles, router=router, readers=readers, held_out=held_out)
    refuse_overlap(archive, out_dir, roles)
    try:
        with workspace(out_dir, roles) as work:
            by_name = tuple(sorted(roles, key=lambda role: role.name))
            settings = Settings(by_name, router, tuple(readers), options, held_out_index(held_out, readers, options))
            tally, divided = _fill(work, archive, settings, seed)
            divided.roles = {role.name: divided.roles[role.name] for role in roles}
            _refuse_loss(tally, divided)
            if not allow_empty or not any(divided.roles[role.name].splits["train"] for role in roles):
                _refuse_empty(archive, roles, tally, divided)
            made = made_now(seconds=time.monotonic() - started)
            for role in roles:
                counts, folder = divided.roles[role.name], work / role.name
                Splits(
                    role=role.name,
                    inputs=inputs,
                    options=keyed,
                    seed=seed,
                    files=file_records(folder, (f"{split}.jsonl" for split in SPLITS)),
                    made=made,
                    counts=counts.splits,
                    kinds=dict(sorted(counts.kinds.items())),
                    dataset_digest=divided.digest,
                ).save(folder)
            report = report_of(archive, inputs["archive"], seed, tally, divided, review_below=REVIEW_BELOW)
            with synced(work / REPORT) as stream:
                stream.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            with synced(work / PAGE) as stream:
                stream.write(data_page(report).encode())
            publish_all(work, out_dir, roles, (REPORT, PAGE, SET_ASIDE, DROPPED, REVIEW))
    except OSError as error:
        raise SysscanError(
            f"the splits cannot be written below {out_dir}: {error}. What was there before is unchanged"
        ) from error
    return {role.name: Splits.load(out_dir / role.name) for role in roles}


def prepare_plain(
    archive: Path, out_dir: Path, *, config: RunConfig | None = None, allow_empty: bool = False
) -> dict[str, Splits]:
    """Prepare an archive without a configuration (both built-in roles, every default) or with parts of the given one.

    With `allow_empty`, a role of the configuration may get nothing, as it may without one.
    """
    if config is not None:
        roles: Sequence[ModelRole] = [part.role for part in config.roles.values()]
        return prepare(
            archive,
            out_dir,
            roles=roles,
            router=config.router,
            readers=config.readers,
            options=config.data,
            seed=config.seed,
            held_out=config.held_out(),
            allow_empty=allow_empty,
        )
    plain = plain_settings()
    return prepare(
        archive,
        out_dir,
        roles=[SPECIALIST, GENERALIST],
        router=plain.router,
        readers=plain.readers,
        options=plain.options,
        seed=PLAIN_SEED,
        allow_empty=True,  # nobody configured both roles; the table shows that one got nothing
    )


def plain_settings() -> Settings:
    """Return what is used without a configuration: both built-in roles, and the defaults of everything else."""
    from sysscan_models.config import DataOptions

    options = DataOptions()
    registered = {reader.name: reader for reader in sysscan_register_readers()}
    readers = tuple(registered[name]() for name in options.readers)
    return Settings((GENERALIST, SPECIALIST), LinearRouter(), readers, options)


def _fill(work: Path, archive: Path, settings: Settings, seed: int) -> tuple[Tally, Divided]:
    """Read the archive once into the spool, then divide what is there; the lists that people read are written on the way."""
    tally = Tally(known=frozenset(role.name for role in settings.roles))
    spool, size = work / "spool", packed_bytes(archive)
    spool.mkdir()
    with ExitStack() as stack:
        set_aside, review, dropped = (stack.enter_context(synced(work / name)) for name in (SET_ASIDE, REVIEW, DROPPED))
        with Progress("prepare", total=size, unit="bytes") as bar:
            for taken in take_in(parts(archive, settings.readers, settings.options), settings, spool, size=size):
                tally.add(taken.tally)
                taken.set_aside.pour(set_aside)
                taken.review.pour(review)
                taken.dropped.pour(dropped)
                bar.update(taken.position, documents=f"{tally.documents:,}", set_aside=tally.set_aside.total())
        divided = divide(work, dropped, roles=settings.roles, options=settings.options, seed=seed)
    return tally, divided


def held_out_index(paths: Sequence[Path], readers: Sequence[Reader], options: DataOptions) -> HeldOut | None:
    """Return what documents must not repeat: everything that is said in the held-out archives."""
    from sysscan_models.splits.contamination import HeldOut

    def texts() -> Iterable[tuple[str, str]]:
        for path in paths:
            said = [entry.text for entry in read_documents(path, readers, options) if isinstance(entry, Document)]
            if not said:
                raise DataError(
                    f"{path} (data.held_out) holds no document that could be compared; expected an archive as `archive`"
                )
            yield from ((path.name, text) for text in said)

    return HeldOut.from_texts(texts(), words=options.held_out_words) if paths else None


# What keys the stage -------------------------------------------------------------------------------------------------------


def splits_inputs(
    archive: Path,
    options: DataOptions,
    *,
    roles: Sequence[ModelRole],
    router: Router,
    readers: Sequence[Reader],
    held_out: Sequence[Path] = (),
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return `inputs` and `options` of the Splits artifacts: what decides their bytes, known before the work.

    The contracts of all roles are part of the inputs: prompts, answers and response schemas are written into the lines.
    """
    inputs = {"archive": archive_digest(archive), "contracts": _contracts_digest(roles)}
    if held_out:
        digests = sorted(f"{path.name}\0{archive_digest(path)}" for path in held_out)
        inputs["held_out"] = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    keyed = {
        "data": options.model_dump(mode="json", exclude={"archive", "readers", "held_out", "workers"}),
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


# Refusals ------------------------------------------------------------------------------------------------------------------


def _refuse_empty(archive: Path, roles: Sequence[ModelRole], tally: Tally, divided: Divided) -> None:
    empty = [role.name for role in roles if not divided.roles[role.name].splits["train"]]
    if not empty:
        return
    went = ", ".join(f"{count} to {name}" for name, count in sorted(tally.routed.items()))
    splits = "; ".join(f"{name} {_counts_in_words(counts.splits)}" for name, counts in divided.roles.items())
    aside = ", ".join(f"{reason} {count}" for reason, count in tally.set_aside.most_common())
    if not tally.documents:
        advice = "give documents as objects with title, description, content and findings (or messages)"
    elif any(any(divided.roles[name].splits.values()) for name in empty):
        advice = "give more documents, or lower data.valid_fraction and data.test_fraction"
    else:
        advice = (
            f'give documents for it, name their role in the data ("role": "{empty[0]}"), move router.threshold, '
            f"or leave the role out of the configuration"
        )
    raise DataError(
        f"{archive} leaves no training example for {' and '.join(empty)}: {tally.documents} documents were read"
        f"{f' ({went}; in the splits: {splits})' if went else ''}, {divided.duplicates} of them duplicates, "
        f"{divided.near_copies + divided.other_role} near copies, "
        f"{tally.set_aside.total()} records were set aside{f' ({aside})' if aside else ''}. To mend it, {advice}"
    )


def _refuse_loss(tally: Tally, divided: Divided) -> None:
    """Refuse to publish when a document is not accounted for, whatever happened to the spool."""
    elsewhere = sum(count for name, count in tally.routed.items() if name not in divided.roles)
    dropped = divided.duplicates + divided.near_copies + divided.other_role + tally.held_out.total() + tally.judged + elsewhere
    if tally.documents != divided.kept + dropped:
        raise SysscanError(
            f"{tally.documents} documents were read, but only {divided.kept + dropped} are accounted for ({divided.kept} kept, "
            f"{dropped} dropped): something else changed the working folder. Nothing was published; run it again, alone"
        )


def _counts_in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {counts[split]}" for split in SPLITS)
