"""Where the splits are written: a folder to work in, refusals of what must not be replaced, and publishing in one go."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sysscan_models.artifacts import publish
from sysscan_models.errors import UserError
from sysscan_models.roles import ModelRole
from sysscan_models.splits.report import SPLITS

WORK = ".prepare"


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file; it is on the disk when it is closed."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def workspace(out_dir: Path, roles: Sequence[ModelRole]) -> Iterator[Path]:
    """Give a folder below `out_dir` to work in, and remove it whatever happens; a killed run's remains go first."""
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; the splits need a folder to be written to")
    new = not out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    for role in roles:
        _recover(out_dir / role.name)
        _refuse_foreign(out_dir / role.name)
    with _alone(out_dir):
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this run; a lock goes with its process, however that ends. Where none can be had, go on without."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is preparing {folder}; wait until it has ended, or choose another --out") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def refuse_overlap(archive: Path, out_dir: Path, roles: Sequence[ModelRole]) -> None:
    """Refuse to write into what is read."""
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


def publish_all(work: Path, out_dir: Path, roles: Sequence[ModelRole], lists: Sequence[str]) -> None:
    """Move the folders of the roles, each with its record inside, and then the reports into place."""
    for role in roles:
        folder = out_dir / role.name
        try:
            if folder.exists():
                folder.replace(_set_by(folder))
            publish(work / role.name, folder)
        finally:
            _recover(folder)
    for name in lists:
        publish(work / name, out_dir / name)
