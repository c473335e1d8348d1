"""Making a package: GGUF files, model card and manifest in one folder, complete or not there at all.

The new package is built beside its place and exchanged for the former one in one step. GGUF files are hard links where the file
system allows it, copies elsewhere. Nothing in a folder that is not a package of ours is ever replaced.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysscan_models.artifacts import (
    Artifact,
    BaseCheckpoint,
    Checkpoint,
    Evaluation,
    FileRecord,
    MergedCheckpoint,
    ModelPackage,
    QuantizedModel,
    Splits,
    made_now,
    publish,
    record_path,
    write_atomically,
)
from sysscan_models.errors import IntegrityError, SysscanError, UserError
from sysscan_models.packaging.card import model_card
from sysscan_models.packaging.manifest import (
    CARD,
    MANIFEST,
    Manifest,
    RoleEntry,
    broken_links,
    entry,
    read_manifest,
    without_secrets,
)
from sysscan_models.plugins import plugin_manager
from sysscan_models.prompts import redact
from sysscan_models.roles import ModelRole

GGUF_MAGIC = b"GGUF"
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")

Sources = dict[str, tuple[Path, FileRecord]]
"""Files of a package: its name there, where it is now, and what it must be."""


def package(
    quantized: Mapping[str, QuantizedModel],
    out_dir: Path,
    *,
    roles: Mapping[str, ModelRole],
    title: str,
    bases: Mapping[str, BaseCheckpoint],
    checkpoints: Mapping[str, Checkpoint],
    splits: Mapping[str, Splits],
    evaluations: Mapping[str, Evaluation],
    merged: Mapping[str, MergedCheckpoint] | None = None,
    licences: Mapping[str, str] | None = None,
) -> ModelPackage:
    """Package the models of a run with everything that the records of its stages say; a package that is current stays as it is.

    `evaluations` are by ROLE/EVALUATOR; `licences` of base models, by role, are what the user stated, and go before what their
    sources state. Raises UserError when a model was made from something else than the given records, or when `out_dir` holds
    anything but a former package; IntegrityError when a GGUF file is not what its record says.
    """
    sources: Sources = {}
    entries: dict[str, RoleEntry] = {}
    for name, model in quantized.items():
        evaluated = {key.partition("/")[2]: made for key, made in evaluations.items() if key.partition("/")[0] == name}
        entries[name] = entry(
            roles[name],
            model,
            _place(name, model, sources),
            base=bases.get(name),
            checkpoint=checkpoints.get(name),
            merged=(merged or {}).get(name),
            splits=splits.get(name),
            evaluations=evaluated,
            licence=(licences or {}).get(name, ""),
        )
        if broken := broken_links(entries[name].chain):
            raise UserError(f"{name}: {'; '.join(broken)}. `sysscan-models run` makes again what is out of date")
    stages: dict[str, Mapping[str, Artifact]] = {
        "base": bases, "prepare": splits, "train": checkpoints, "merge": merged or {}, "quantize": quantized
    }  # fmt: skip
    made = {
        name: {stage: artifacts[name].made for stage, artifacts in stages.items() if name in artifacts} for name in quantized
    }
    return _assemble(Path(out_dir), title, entries, sources, roles, made)


def package_files(files: Mapping[str, Path], out_dir: Path, *, title: str = "Sys-Scan-Graph models") -> ModelPackage:
    """Package plain GGUF files, by role, without a configuration.

    A record beside a file (FILE.gguf.json) is used; without one, manifest and card say that the provenance is unknown. All
    shards of a sharded model are taken. Raises UserError for an unknown role, a missing file, or one that is not GGUF.
    """
    registry = plugin_manager()
    roles = {name: registry.get("roles", name) for name in files}
    sources: Sources = {}
    entries: dict[str, RoleEntry] = {}
    made: dict[str, Any] = {}
    for name, file in files.items():
        model, recorded = _described(Path(file))
        entries[name] = entry(roles[name], model, _place(name, model, sources), recorded=recorded)
        made[name] = {"quantize": model.made} if recorded else {}
    return _assemble(Path(out_dir), title, entries, sources, roles, made)


def is_gguf(path: Path) -> bool:
    """Say whether a file begins as GGUF files do."""
    with path.open("rb") as stream:
        return stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _described(file: Path) -> tuple[QuantizedModel, bool]:
    """Return what is known about a plain GGUF file, and whether that comes from a record."""
    if not file.is_file():
        raise UserError(f"there is no file {file}; expected a GGUF file, such as `sysscan-models export` writes")
    if not is_gguf(file):
        raise UserError(f"{file} is not a GGUF file: it does not begin with the bytes {GGUF_MAGIC.decode()!r}")
    shard = _SHARD.match(file.name)
    candidates = [file, file.with_name(f"{shard['stem']}.gguf")] if shard else [file]
    for candidate in candidates:
        if record_path(candidate).is_file():
            return QuantizedModel.load(candidate), True
    names = _shards(file, shard) if shard else [file.name]
    records = {name: FileRecord.of(file.with_name(name)) for name in names}
    return QuantizedModel(file=names[0], type="unknown", files=records).at(file.parent), False


def _shards(file: Path, shard: re.Match[str]) -> list[str]:
    names = [f"{shard['stem']}-{number:05d}-of-{shard['count']}.gguf" for number in range(1, int(shard["count"]) + 1)]
    missing = [name for name in names if not file.with_name(name).is_file()]
    if missing:
        raise UserError(
            f"{file} is one of {len(names)} shards; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    return names


def _place(role: str, model: QuantizedModel, sources: Sources) -> dict[str, FileRecord]:
    """Choose the names of a model's files in the package and add them to `sources`; return their records, the loader's first.

    Names stay as they are; only where two models bring different files of one name, the role goes before it.
    """
    if model.file not in model.files:
        raise UserError(f"the record of {model.path} does not list the file itself; quantize it again")
    names = [model.file, *sorted(model.files.keys() - {model.file})]
    model.check_files(contents=False)
    taken = any(Path(name).name in sources and sources[Path(name).name][1] != model.files[name] for name in names)
    placed = {}
    for name in names:
        path, record = model.root / name, model.files[name]
        if not is_gguf(path):
            raise UserError(f"{path} is not a GGUF file: it does not begin with the bytes {GGUF_MAGIC.decode()!r}")
        target = f"{role}_{path.name}" if taken else path.name
        if target in sources and sources[target][1] != record:
            raise UserError(
                f"two different files would be called {target} in the package; rename {path} or {sources[target][0]}"
            )
        sources[target] = path, record
        placed[target] = record
    return placed


def _assemble(
    out_dir: Path,
    title: str,
    entries: Mapping[str, RoleEntry],
    sources: Sources,
    roles: Mapping[str, ModelRole],
    stages_made: Mapping[str, Any],
) -> ModelPackage:
    title = redact(title)
    card = model_card(title, entries, roles).encode()
    manifest = Manifest(
        title=title,
        roles=dict(entries),
        inputs={f"{name}/{link.stage}": link.digest for name, entry in entries.items() for link in entry.chain},
        options={"title": title},
        files={**{name: record for name, (_, record) in sorted(sources.items())}, CARD: _record_of(card)},
        models={name: entry.file for name, entry in entries.items()},
        made=without_secrets({"versions": made_now(seconds=0)["versions"], "stages": dict(stages_made)}),
    )
    if former := _former(out_dir):
        if former.digest == manifest.digest and _intact(former):
            return former
        _refuse_foreign_files(out_dir, former)
    return _write(out_dir, manifest, card, sources)


def _record_of(data: bytes) -> FileRecord:
    return FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _former(out_dir: Path) -> Manifest | None:
    """Return the package that is there, or None when the place is free; raise UserError when something else is there."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    if not (out_dir / MANIFEST).is_file():
        raise UserError(f"{out_dir} exists and is not a package (it has no {MANIFEST}); choose an empty or new folder")
    try:
        return read_manifest(out_dir)
    except SysscanError as error:
        raise UserError(
            f"{out_dir} holds something that cannot be replaced safely: {error}. Remove it, or choose another folder"
        ) from error


def _intact(manifest: Manifest) -> bool:
    try:
        manifest.check_files(contents=False)
    except IntegrityError:
        return False
    return True


def _refuse_foreign_files(folder: Path, former: Manifest) -> None:
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in {*former.files, MANIFEST})
    if foreign:
        raise UserError(
            f"{folder} holds files that do not belong to the package and would be lost with it: {', '.join(foreign[:5])}"
            f"{' ...' if len(foreign) > 5 else ''}. Move them away, or choose another folder"
        )


def _write(out_dir: Path, manifest: Manifest, card: bytes, sources: Sources) -> Manifest:
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, (path, record) in sources.items():
            _link_or_copy(path, temporary / name)
            if FileRecord.of(temporary / name) != record:
                raise IntegrityError(
                    f"{path} is not the file that its record describes; quantize it again, or remove its record"
                )
        write_atomically(temporary / CARD, card)
        manifest.write(temporary)
        replace_folder(temporary, out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest.at(out_dir)


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system, or one without hard links
        with path.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished folder into its place; a former one is exchanged for it in one step, and then removed.

    Where the system cannot exchange two names (not Linux, or a network file system), the former folder is moved aside first;
    for that instant neither is in place, but never half of one.
    """
    aside = folder.with_name(f".{folder.name}.former")
    if folder.exists() and _exchange(temporary, folder):
        _fsync_folder(folder.parent)
        shutil.rmtree(temporary)
    elif folder.exists():
        _move_aside_and_publish(temporary, folder, aside)
    else:
        publish(temporary, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _move_aside_and_publish(temporary: Path, folder: Path, aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
    try:
        publish(temporary, folder)
    except BaseException:
        aside.replace(folder)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names by renameat2(RENAME_EXCHANGE); Python has no call for it. Say whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
