"""The record of a base model that lies in a folder: which files belong to it, their hashes, its licence.

Hashing a model takes as long as reading it, so the hashes are remembered in the user's cache by path, size and modification
time; nothing is ever written into the user's own model folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import orjson

from sysscan_models.artifacts import BaseCheckpoint, FileRecord, write_atomically
from sysscan_models.errors import UserError

MODEL_FILES = (
    "*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja", "README.md",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What makes up a base model, its terms included. Pickled weights are not among them, for unpickling runs code."""


def record_folder(folder: Path, *, revision: str = "", reference: str = "") -> BaseCheckpoint:
    """Return the (unsaved) record of a folder in Hugging Face layout; raise UserError for what cannot be a base model."""
    if revision:
        raise UserError(f"base model {folder}: a folder has no revisions; remove revision = {revision!r}")
    check_layout(folder)
    names = sorted(
        {path.name for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()} - {"artifact.json"}
    )
    files = {name: _remembered_record(folder / name) for name in names}
    return BaseCheckpoint(reference=reference or folder.name, licence=licence_of(folder), files=files).at(folder)


def check_layout(folder: Path) -> None:
    """Raise UserError unless the folder has a config.json, safetensors weights and a tokenizer."""
    missing = [
        what
        for what, found in {
            "config.json": (folder / "config.json").is_file(),
            "*.safetensors": any(folder.glob("*.safetensors")),
            "tokenizer.json or tokenizer.model": any(
                (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")
            ),
        }.items()
        if not found
    ]
    if missing:
        pickled = any(folder.glob("*.bin")) and "*.safetensors" in missing
        advice = (
            " Pickled weights (*.bin) are not read, for unpickling runs code; convert them to safetensors." if pickled else ""
        )
        raise UserError(f"base model {folder}: it lacks {', '.join(missing)}.{advice}")


_FRONT_MATTER = re.compile(r"\A---\s*\n(.{0,20000}?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.+-]+)", re.MULTILINE)


def licence_of(folder: Path) -> str:
    """Return the licence that the model card's front matter states, or `unknown`."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    front = _FRONT_MATTER.match(card)
    found = _LICENCE.findall(front[1]) if front else []
    named = [licence for licence in found if licence != "other"]
    return named[0] if named else "unknown"


def _remembered_record(path: Path) -> FileRecord:
    status = path.stat()
    if status.st_size < 1 << 24:
        return FileRecord.of(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sysscan-models" / "hashes"
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    entry = cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
    try:
        return FileRecord.model_validate_json(entry.read_bytes())
    except (OSError, ValueError):
        record = FileRecord.of(path)
    try:
        write_atomically(entry, orjson.dumps(record.model_dump()))
    except OSError:
        return record  # a home that cannot be written costs time, not the run
    return record
