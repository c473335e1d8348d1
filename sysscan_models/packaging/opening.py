"""Checking a package, and opening it for serving. Neither trusts what the manifest does not vouch for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sysscan_models.artifacts import sha256_file
from sysscan_models.errors import IntegrityError, SysscanError, UserError, unknown_name
from sysscan_models.interfaces import ModelRef
from sysscan_models.packaging.assembly import GGUF_MAGIC, is_gguf
from sysscan_models.packaging.manifest import CARD, Manifest, broken_links, read_manifest
from sysscan_models.plugins import Registry, plugin_manager


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is right, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """The checks of one package."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def as_text(self) -> str:
        """Return the checks as a table, and the verdict in one line."""
        from rich.console import Console
        from rich.table import Table

        table = Table("check", "", "found", box=None, pad_edge=False)
        for check in self.checks:
            table.add_row(check.name, "ok" if check.ok else "FAIL", check.detail)
        out = io.StringIO()
        Console(file=out, width=120, markup=False, highlight=False, emoji=False).print(table)
        failed = sum(not check.ok for check in self.checks)
        verdict = (
            f"{failed} of {len(self.checks)} checks failed: do not use it"
            if failed
            else f"all {len(self.checks)} checks passed"
        )
        rows = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
        return f"{rows}\n{self.folder}: {verdict}"


@dataclass(frozen=True)
class LoadedPackage:
    """A package whose files match its manifest, and what a backend opens for each of its roles."""

    manifest: Manifest
    models: Mapping[str, ModelRef]

    def __getitem__(self, role: str) -> ModelRef:
        """Return the model of a role; raise UserError with the valid roles."""
        if role not in self.models:
            raise UserError(f"package {self.manifest.root}: {unknown_name('role', role, self.models)}")
        return self.models[role]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of its roles."""
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)


def load_package(
    folder: Path | str, *, check: Literal["size", "hash"] = "hash", registry: Registry | None = None
) -> LoadedPackage:
    """Open a package for serving.

    `check` is how closely the files are compared with the manifest: `hash` reads them all, `size` takes no time. Each role
    follows the contract of the plugin that registers it, with the system prompt and context length that the model was packaged
    with. Raises UserError when there is no package or a role is not installed, IntegrityError when a file is not what the
    manifest says.
    """
    manifest = read_manifest(Path(folder))
    manifest.check_files(contents=check == "hash")
    registry = registry or plugin_manager()
    models = {}
    for name, entry in manifest.roles.items():
        path = manifest.root / entry.file
        if not is_gguf(path):
            raise IntegrityError(f"{path} is not a GGUF file: it does not begin with the bytes {GGUF_MAGIC.decode()!r}")
        role = replace(registry.get("roles", name), system_prompt=entry.system_prompt, context_length=entry.context_length)
        models[name] = ModelRef(path, role)
    return LoadedPackage(manifest, models)


def verify(folder: Path | str) -> Verification:
    """Check a package completely: manifest, card, every file's size and SHA-256, GGUF headers, strangers, chain of digests."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except SysscanError as error:
        return Verification(folder, (Check("manifest", False, str(error)),))
    checks = [
        Check("manifest", True, f"{len(manifest.files)} files, {len(manifest.roles)} roles, digest {manifest.digest[:12]}"),
        *(_file_check(manifest, name) for name in sorted(manifest.files)),
        _card_check(manifest),
        _listing_check(manifest),
        *(_role_check(manifest, name) for name in manifest.roles),
        *(_chain_check(manifest, name) for name in manifest.roles),
    ]
    return Verification(folder, tuple(checks))


def _file_check(manifest: Manifest, name: str) -> Check:
    path, expected = manifest.root / name, manifest.files[name]
    if not path.is_file():
        return Check(name, False, f"it is missing; {expected.size:,} bytes expected")
    if (size := path.stat().st_size) != expected.size:
        return Check(name, False, f"{size:,} bytes; {expected.size:,} expected")
    if (digest := sha256_file(path)) != expected.sha256:
        return Check(name, False, f"SHA-256 {digest[:12]}; {expected.sha256[:12]} expected")
    if name != CARD and not is_gguf(path):
        return Check(name, False, f"it does not begin with the bytes {GGUF_MAGIC.decode()!r}")
    return Check(name, True, f"{size:,} bytes, SHA-256 {digest[:12]}")


def _card_check(manifest: Manifest) -> Check:
    present = CARD in manifest.files and (manifest.root / CARD).is_file()
    return Check("model card", present, CARD if present else f"there is no {CARD}")


def _listing_check(manifest: Manifest) -> Check:
    strangers = sorted(
        path.name for path in manifest.root.rglob("*.gguf") if str(path.relative_to(manifest.root)) not in manifest.files
    )
    return Check(
        "unlisted GGUF files", not strangers, f"the manifest does not list {', '.join(strangers)}" if strangers else "none"
    )


def _role_check(manifest: Manifest, name: str) -> Check:
    """Compare the role's part of the manifest with the manifest's own list of files."""
    entry = manifest.roles[name]
    wrong = sorted(file for file, record in entry.files.items() if manifest.files.get(file) != record)
    agrees = not wrong and entry.file in entry.files and manifest.models.get(name) == entry.file
    detail = (
        f"{entry.file}, {entry.quantization.type}, {entry.evaluation.state}"
        if agrees
        else "its files are not those of the manifest"
    )
    return Check(f"{name}: files", agrees, detail)


def _chain_check(manifest: Manifest, name: str) -> Check:
    entry = manifest.roles[name]
    broken = broken_links(entry.chain)
    broken += [
        f"the package was made from another {link.stage} ({link.digest[:12]})"
        for link in entry.chain
        if manifest.inputs.get(f"{name}/{link.stage}") != link.digest
    ]
    stages = " > ".join(link.stage for link in entry.chain) or "no records"
    return Check(f"{name}: provenance", not broken, "; ".join(broken) if broken else f"{entry.provenance}: {stages}")
