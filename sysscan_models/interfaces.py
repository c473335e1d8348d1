"""What a plugin implements: one base class for each kind, with one or two methods.

A backend class *is its own options*: a frozen pydantic model whose fields are the keys of its TOML table. `name` is what the
configuration calls it. Nothing here imports torch; a plugin's package should not either until it works.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from sysscan_models.documents import Document, SetAside

if TYPE_CHECKING:
    from sysscan_models.artifacts import (
        BaseCheckpoint,
        Checkpoint,
        Evaluation,
        MergedCheckpoint,
        QuantizedModel,
        Splits,
    )
    from sysscan_models.roles import ModelRole


class Options(BaseModel):
    """The base of all plugin classes: frozen options, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    """What the configuration calls it."""
    version: ClassVar[str] = "1"
    """Raised when the same options give another result; part of the key of what it makes."""

    def keyed(self) -> dict[str, Any]:
        """Return the options that affect the result, for the artifact's key: all fields that are not marked otherwise.

        A field declared with ``Field(json_schema_extra={"affects_result": False})`` (a log interval, say) is left out.
        """
        skipped = {
            key
            for key, info in type(self).model_fields.items()
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("affects_result") is False
        }
        return {"name": self.name, "version": self.version, **self.model_dump(mode="json", exclude=skipped)}


@dataclass(frozen=True)
class Member:
    """One regular file of the dataset: its name in the archive, its size in bytes, and a stream that is read once."""

    name: str
    size: int
    stream: BinaryIO


class Reader(Options, ABC):
    """Turns one member of the dataset into documents. Containers (tar, folders) are walked by the core, once for all."""

    @abstractmethod
    def reads(self, name: str) -> bool:
        """Say by its name whether this reader takes the member."""

    def recognises(self, head: bytes) -> bool:
        """Say by its first 64 KiB whether this reader takes a member whose name it takes; the next one is asked otherwise."""
        return True

    @abstractmethod
    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield the member's documents; yield SetAside for a record that cannot be used. Never raise for bad data."""


@dataclass(frozen=True)
class Decision:
    """The role a document goes to, a score in 0..1 for how sure, and the reasons in words."""

    role: str
    score: float
    reasons: tuple[str, ...] = ()


class Router(Options, ABC):
    """Decides which role learns from a document."""

    @abstractmethod
    def route(self, document: Document) -> Decision:
        """Return the decision for one document; the same document always gets the same one."""

    def route_all(self, documents: Sequence[Document]) -> list[Decision]:
        """Return the decisions for some hundreds of documents, each as `route` would; override it to be faster."""
        return [self.route(document) for document in documents]


class Source(Options, ABC):
    """Where base models come from. `base = "NAME:REF"` chooses the source by its name."""

    @abstractmethod
    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        """Bring a base model in Hugging Face layout into `out_dir` and return its artifact (not yet saved).

        Raises UserError when the reference does not exist, access is refused, or `offline` forbids the network.
        """


@dataclass(frozen=True)
class TrainJob:
    """What a trainer is given. `out_dir` is the only place it writes to."""

    role: ModelRole
    base: BaseCheckpoint
    splits: Splits
    out_dir: Path
    seed: int = 17
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ... ; `auto` takes the best that the trainer finds."""


@dataclass(frozen=True)
class Estimate:
    """What a job will need. Bytes and counts; `low` and `high` bound what cannot be known before it runs."""

    train_tokens: int
    """Tokens that training will see, over all epochs."""
    steps: int
    """Optimizer steps."""
    persistent_bytes: int
    """Weights, gradients and optimizer state: exact."""
    peak_low_bytes: int
    peak_high_bytes: int
    disk_bytes: int
    """Largest size of `out_dir` at any time, checkpoints included."""
    notes: tuple[str, ...] = ()


class Trainer(Options, ABC):
    """Fine-tunes a base model for one role."""

    checkpoint_kind: ClassVar[Literal["full", "adapter"]] = "full"
    """What `train` makes; it decides the folder's name: ROLE_model_fine_tuned or ROLE_model_lora_adapters."""

    @abstractmethod
    def train(self, job: TrainJob) -> Checkpoint:
        """Train, write into `job.out_dir`, and return the artifact; resume when `out_dir` holds an unfinished run."""

    def merge(self, checkpoint: Checkpoint, base: BaseCheckpoint, out_dir: Path) -> MergedCheckpoint:
        """Return the complete model. A full checkpoint passes through unchanged; adapters need their own merge."""
        from sysscan_models.artifacts import MergedCheckpoint

        return MergedCheckpoint.passed_through(checkpoint)

    def check(self, base: BaseCheckpoint, role: ModelRole) -> None:
        """Raise UserError when this base model cannot be trained with these options; called before anything runs."""

    def estimate(self, job: TrainJob) -> Estimate | None:
        """Return what the job will need, or None when the trainer cannot tell."""
        return None


class Quantizer(Options, ABC):
    """Turns a complete model in Hugging Face layout into one GGUF model."""

    @abstractmethod
    def quantize(self, merged: MergedCheckpoint, out: Path, role: ModelRole | None = None) -> QuantizedModel:
        """Write the model to `out` (or its numbered shards beside it); `role` is None for a plain export."""

    def check(self, base: BaseCheckpoint) -> None:
        """Raise UserError when a base model's architecture or tokenizer is not supported; called before training."""

    def file_name(self, role: ModelRole) -> str:
        """Return the name of the file that this quantizer writes for a role."""
        return f"{role.name}_model_q4km.gguf"


@dataclass(frozen=True)
class ModelRef:
    """A model that can be served: a GGUF file, perhaps an adapter on it, and the role whose contract it follows."""

    base_gguf: Path
    role: ModelRole
    adapter_gguf: Path | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One conversation to continue. `messages` end with a user turn; sampling left out means the role's default."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    """When given, the answer is constrained to this JSON schema."""
    top_p: float | None = None
    grammar: str = ""
    """When given, the answer is constrained to this grammar: GBNF with the rule `root`. Not together with a schema."""
    deadline: float | None = None
    """Seconds from the call of `generate`; then the answer ends where it is, with the finish reason `deadline`."""
    shorten: bool = False
    """Whether a prompt that does not fit the context may lose the end of its last turn's text, which a note then says."""


@dataclass(frozen=True)
class GenerationEvent:
    """A piece of an answer; the last event of a request has `finish_reason` set and `text` holding what is left."""

    id: str
    text: str
    finish_reason: str = ""
    """Empty while the answer goes on; then `stop` (the model ended its turn), `length`, `deadline`, `cancelled` or `error`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: Exception | None = None
    """What went wrong, for the finish reason `error`; the other requests of the call go on."""


@contextmanager
def cancelled_at_end(events: Iterator[GenerationEvent]) -> Iterator[Iterator[GenerationEvent]]:
    """Give the events of `Session.generate`, and close them at the end, which cancels what was not read."""
    try:
        yield events
    finally:
        close: Callable[[], None] | None = getattr(events, "close", None)  # not every iterator has something to close
        if close:
            close()


class Session(ABC):
    """An open model, for any number of threads and event loops at once. A context manager; `close()` gives it back."""

    takes_grammar: ClassVar[bool] = True
    """Whether a request may have a `grammar` (GBNF)."""

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Answer many requests, streaming events in any order; closing the iterator cancels what is left.

        Raises UserError, before anything is decoded, for a request that is malformed or cannot fit the context.
        """

    async def agenerate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[GenerationEvent]:
        """Do what `generate` does without blocking the event loop; here by a thread that reads the iterator."""
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[GenerationEvent | BaseException | None]()
        stopped = threading.Event()

        def tell(item: GenerationEvent | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop is gone, and nobody listens
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        def read() -> None:
            try:
                with cancelled_at_end(self.generate(requests)) as events:
                    for event in events:
                        tell(event)
                        if stopped.is_set():
                            return
                tell(None)
            except BaseException as error:  # noqa: BLE001 - it is raised where the answer is awaited
                tell(error)

        threading.Thread(target=read, name="sysscan-generate", daemon=True).start()
        try:
            while (item := await inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int | None:
        """Return how many prompt tokens a conversation has, exactly; None when this backend cannot tell."""
        return None

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together; 0 when this backend cannot tell."""
        return 0

    def score(self, token_ids: Sequence[int]) -> Any:
        """Return the logits at every position, [T, V] float32, or None when this backend cannot."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give the model back; its memory is freed when nobody else has it open."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(Options, ABC):
    """Serves models."""

    serves_files: ClassVar[bool] = True
    """Whether it reads the GGUF file itself; a backend that asks a server needs none."""

    @abstractmethod
    def open(self, model: ModelRef) -> Session:
        """Load a model; raise UserError when it cannot be loaded."""


class Evaluator(Options, ABC):
    """Measures models and gates the package on the figures."""

    @abstractmethod
    def evaluate(self, models: Mapping[str, ModelRef], splits: Splits, out_dir: Path) -> Evaluation:
        """Measure the models (by row name, such as `tuned-q4`) on held-out data and return figures, gates and plots."""


__all__ = [
    "Backend", "Decision", "Document", "Estimate", "Evaluator", "GenerationEvent", "GenerationRequest", "Member", "ModelRef",
    "Options", "Quantizer", "Reader", "Router", "Session", "SetAside", "Source", "TrainJob", "Trainer", "cancelled_at_end",
]  # fmt: skip
