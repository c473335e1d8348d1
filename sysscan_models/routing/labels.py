"""Labelled documents for fitting a router: JSON Lines with what a document says and which kind it is.

A line has `title`, `description`, `content`, `findings` like any document, and `label` (`security` or `general`) or `role` (the
name of a configured role). `source` and `family` say where it comes from; families are kept together when quality is measured.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.documents import Document
from sysscan_models.errors import DataError, UserError
from sysscan_models.routing import RoleNames
from sysscan_models.routing.features import text_parts

LARGEST_LINE = 32 << 20
"""Bytes of a line that is read."""
LABELS = ("security", "general")
FEWEST = 5
"""Documents of each label without which nothing is fitted."""


@dataclass(frozen=True)
class Labelled:
    """What a document says and which kind it is."""

    parts: tuple[str, str]
    """Title and rest, in lower case."""
    security: bool
    source: str
    family: str
    language: str = ""


def read_labelled(paths: Sequence[Path], roles: RoleNames) -> list[Labelled]:
    """Read all files; raise UserError for a file that cannot be read, DataError for a line that cannot be used."""
    found = [entry for path in paths for entry in _read(path, roles)]
    for label, security in (("security", True), ("general", False)):
        count = sum(entry.security == security for entry in found)
        if count < FEWEST:
            raise DataError(
                f"{count} documents are labelled {label}; a router needs at least {FEWEST} of each label: "
                'give each line a "label" of "security" or "general"'
            )
    return found


def _read(path: Path, roles: RoleNames) -> Iterator[Labelled]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            number = 0
            while line := file.readline(LARGEST_LINE + 1):
                number += 1
                if len(line) > LARGEST_LINE:
                    raise DataError(f"{path}:{number}: the line has more than {LARGEST_LINE >> 20} MB")
                if line.strip():
                    yield _labelled(line, f"{path}:{number}", path.stem, roles)
    except (OSError, EOFError) as error:
        raise UserError(f"labels {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _labelled(line: bytes, where: str, file: str, roles: RoleNames) -> Labelled:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); expected one object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    findings = record.get("findings") or []
    findings = findings if isinstance(findings, list) else [findings]
    document = Document(
        id=where, title=_text(record, "title"), description=_text(record, "description"), content=_text(record, "content"),
        findings=tuple(finding for finding in findings if isinstance(finding, str)),
    )  # fmt: skip
    if not document.text.strip():
        raise DataError(f"{where}: no text in title, description, content or findings")
    source = _text(record, "source") or file
    return Labelled(
        text_parts(document),
        _is_security(record, where, roles),
        source,
        _text(record, "family") or source,
        _text(record, "language"),
    )


def _is_security(record: Mapping[str, Any], where: str, roles: RoleNames) -> bool:
    label, role = record.get("label"), record.get("role")
    if label in LABELS:
        return bool(label == "security")
    if label is None and role in (roles.security, roles.general):
        return bool(role == roles.security)
    raise DataError(
        f'{where}: found label {str(label)[:40]!r} and role {str(role)[:40]!r}; expected "label": "security" or "general", '
        f'or "role" to be "{roles.security}" or "{roles.general}"'
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""
