"""Stubs that work, for authors of plugins and for our own tests.

`StubTrainer` writes a real tiny checkpoint, `StubQuantizer` a real tiny GGUF, `StubBackend` answers, streams and can be
cancelled. All are called `stub` in a configuration and are registered by `stub_plugin`; nothing here learns or understands
anything. With `pytest_plugins = ["sysscan_models.testing"]` in a conftest.py the fixtures of `sysscan_models.testing.fixtures`
are there too; without it pytest is never imported. numpy, safetensors and gguf are imported when a stub needs them (extra
`testing`).

PYTEST_DONT_REWRITE: else pytest warns when a conftest.py imports this module before it names it as a plugin.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from sysscan_models.artifacts import (
    BaseCheckpoint,
    Checkpoint,
    Evaluation,
    MergedCheckpoint,
    QuantizedModel,
    Splits,
    file_records,
    write_atomically,
)
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import (
    Backend,
    Evaluator,
    GenerationEvent,
    GenerationRequest,
    ModelRef,
    Quantizer,
    Session,
    Source,
    Trainer,
    TrainJob,
)
from sysscan_models.packaging.assembly import is_gguf
from sysscan_models.roles import ModelRole
from sysscan_models.testing import tiny_llama

pytest_plugins = ["sysscan_models.testing.fixtures"]

ADAPTED = "model.layers.0.self_attn.q_proj.weight"
"""The one tensor that `StubAdapterTrainer` adapts."""


class StubSource(Source):
    """Makes a tiny Llama out of nothing: `base = "stub:ANY-NAME"`; the name is the seed of its weights."""

    name: ClassVar[str] = "stub"

    def fetch(self, ref: str, out_dir: Path, *, revision: str = "", offline: bool = False) -> BaseCheckpoint:
        """Write the model into `out_dir`; any revision is there, and it never asks a network."""
        tiny_llama.write_checkpoint(out_dir, tiny_llama.initial_tensors(_number(f"{ref}@{revision}".encode())))
        files = file_records(out_dir, tiny_llama.MODEL_FILES)
        return BaseCheckpoint(reference=f"stub:{ref}", revision=revision or "1", licence="apache-2.0", files=files).at(out_dir)


class StubTrainer(Trainer):
    """Moves every weight a little, as only the data, the seed and the options decide. The losses are made up."""

    name: ClassVar[str] = "stub"
    checkpoint_kind: ClassVar[Literal["full", "adapter"]] = "full"

    learning_rate: float = Field(0.001, ge=0)
    """Size of the change."""
    steps: int = Field(2, ge=1)
    """Pretended optimizer steps."""

    def train(self, job: TrainJob) -> Checkpoint:
        """Write a complete model."""
        moved = {
            name: tensor + self.learning_rate * _noise(f"{name} {self.steps}", job, tensor.shape)
            for name, tensor in tiny_llama.read_tensors(job.base.root / "model.safetensors").items()
        }
        tiny_llama.write_checkpoint(job.out_dir, moved)
        return _checkpoint("full", job, self.steps, tiny_llama.MODEL_FILES)


class StubAdapterTrainer(Trainer):
    """The same with a LoRA adapter of rank 1 in peft's layout, and its merge."""

    name: ClassVar[str] = "stub_adapter"
    checkpoint_kind: ClassVar[Literal["full", "adapter"]] = "adapter"

    learning_rate: float = Field(0.001, ge=0)
    """Size of the change."""
    steps: int = Field(2, ge=1)
    """Pretended optimizer steps."""

    def train(self, job: TrainJob) -> Checkpoint:
        """Write adapter_config.json and adapter_model.safetensors."""
        size, prefix = tiny_llama.HIDDEN, f"base_model.model.{ADAPTED.removesuffix('.weight')}"
        adapter = {
            f"{prefix}.lora_A.weight": _noise(f"A {self.steps}", job, (1, size)),
            f"{prefix}.lora_B.weight": self.learning_rate * _noise(f"B {self.steps}", job, (size, 1)),
        }
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 1,
            "lora_alpha": 1,
            "target_modules": ["q_proj"],
            "bias": "none",
        }
        write_atomically(job.out_dir / "adapter_config.json", json.dumps(config, indent=1).encode())
        tiny_llama.write_tensors(job.out_dir / "adapter_model.safetensors", adapter)
        return _checkpoint("adapter", job, self.steps, ("adapter_config.json", "adapter_model.safetensors"))

    def merge(self, checkpoint: Checkpoint, base: BaseCheckpoint, out_dir: Path) -> MergedCheckpoint:
        """Add B A to the adapted tensor."""
        tensors = tiny_llama.read_tensors(base.root / "model.safetensors")
        adapter = tiny_llama.read_tensors(checkpoint.root / "adapter_model.safetensors")
        halves = {name.split(".")[-2]: tensor for name, tensor in adapter.items()}
        tensors[ADAPTED] = tensors[ADAPTED] + halves["lora_B"] @ halves["lora_A"]
        tiny_llama.write_checkpoint(out_dir, tensors)
        return MergedCheckpoint(role=checkpoint.role, files=file_records(out_dir, tiny_llama.MODEL_FILES)).at(out_dir)


class StubQuantizer(Quantizer):
    """Writes a tiny Llama as a GGUF file that llama.cpp loads. It knows no other model."""

    name: ClassVar[str] = "stub"

    type: Literal["F32", "F16"] = "F32"
    """Type of the matrices; there is nothing smaller for so small a model."""

    def check(self, base: BaseCheckpoint) -> None:
        """Refuse what is not one of the tiny models."""
        config = json.loads((base.root / "config.json").read_bytes())
        if config.get("hidden_size") != tiny_llama.HIDDEN:
            raise UserError(
                f"quantizer 'stub' takes only the tiny models of sysscan_models.testing; {base.reference} is another"
            )

    def quantize(self, merged: MergedCheckpoint, out: Path, role: ModelRole | None = None) -> QuantizedModel:
        """Write the GGUF file."""
        weights = tiny_llama.write_gguf(merged.root, out, half=self.type == "F16")
        return QuantizedModel(
            role=role.name if role else "",
            file=out.name,
            type=self.type,
            parameters=sum(weights.values()),
            weights_by_type=weights,
            architecture="llama",
            context_length=tiny_llama.CONTEXT,
            files=file_records(out.parent, [out.name]),
        ).at(out.parent)


class StubEvaluator(Evaluator):
    """Counts the held-out examples and the bytes of the models; its one gate passes or fails as the option says."""

    name: ClassVar[str] = "stub"

    passes: bool = True
    """Verdict of the gate."""

    def evaluate(self, models: Mapping[str, ModelRef], splits: Splits, out_dir: Path) -> Evaluation:
        """Write figures.json and return the figures."""
        figures: dict[str, Any] = {"test_examples": len(splits.test.read_bytes().splitlines())}
        figures |= {f"{row}_bytes": model.base_gguf.stat().st_size for row, model in models.items()}
        write_atomically(out_dir / "figures.json", orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        return Evaluation(
            role=splits.role,
            inputs={"splits": splits.digest},
            options=self.keyed(),
            figures=figures,
            gates={"stub": self.passes},
        ).at(out_dir)


class StubBackend(Backend):
    """Opens any GGUF file, and answers by rote."""

    name: ClassVar[str] = "stub"

    def open(self, model: ModelRef) -> StubSession:
        """Look at the file's first bytes, as a real backend would refuse it."""
        if not model.base_gguf.is_file() or not is_gguf(model.base_gguf):
            raise UserError(f"{model.base_gguf} is not a GGUF file")
        return StubSession(model)


class StubSession(Session):
    """Answers each request with its role's response model, filled with the first line of the question.

    Pieces of all requests come in turn, as those of a batch do. A token is a word with the blanks after it. `cancelled` holds
    the ids of requests that were cut off because their iterator was closed.
    """

    def __init__(self, model: ModelRef) -> None:
        self.model = model
        self.closed = False
        self.cancelled: list[str] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationEvent]:
        """Stream the answers; closing the iterator cancels what is left."""
        if self.closed:
            raise SysscanError("this session is closed; open the model again")
        waiting = deque((request, self._events(request)) for request in requests)
        try:
            while waiting:
                request, events = waiting[0]
                event = next(events)
                yield event
                waiting.popleft()
                if not event.finish_reason:
                    waiting.append((request, events))
        finally:
            self.cancelled += [request.id for request, _ in waiting]

    def close(self) -> None:
        """Refuse further requests."""
        self.closed = True

    def answer(self, request: GenerationRequest) -> str:
        """Return the whole answer to a request, before stop strings and the limit of tokens."""
        role = self.model.role
        question = next((turn["content"] for turn in reversed(request.messages) if turn["role"] == "user"), "")
        text = f"{role.name} stub: {question.strip().partition(chr(10))[0]}"
        field = next((name for name, source in role.answer.items() if source == "content"), None)
        return role.response_model.model_validate({field: text}).to_json() if field else text

    def _events(self, request: GenerationRequest) -> Iterator[GenerationEvent]:
        text = self.answer(request)
        end = min((text.find(stop) for stop in request.stop if stop in text), default=len(text))
        words = re.findall(r"\S+\s*|\s+", text[:end])
        limit = request.max_tokens or self.model.role.sampling.max_tokens
        prompt = sum(len(turn["content"].split()) for turn in request.messages)
        said = words[:limit]
        for number, word in enumerate(said[:-1], 1):
            yield GenerationEvent(request.id, word, prompt_tokens=prompt, completion_tokens=number)
        reason = "stop" if len(said) == len(words) else "length"
        yield GenerationEvent(request.id, said[-1] if said else "", reason, prompt, len(said))


class StubPlugin:
    """Registers the stubs; give `stub_plugin` to `plugin_manager`."""

    __name__ = "sysscan_models.testing"

    @hookimpl
    def sysscan_register_sources(self) -> Sequence[type[Source]]:
        """Return the stub source."""
        return [StubSource]

    @hookimpl
    def sysscan_register_trainers(self) -> Sequence[type[Trainer]]:
        """Return the stub trainers."""
        return [StubTrainer, StubAdapterTrainer]

    @hookimpl
    def sysscan_register_quantizers(self) -> Sequence[type[Quantizer]]:
        """Return the stub quantizer."""
        return [StubQuantizer]

    @hookimpl
    def sysscan_register_evaluators(self) -> Sequence[type[Evaluator]]:
        """Return the stub evaluator."""
        return [StubEvaluator]

    @hookimpl
    def sysscan_register_backends(self) -> Sequence[type[Backend]]:
        """Return the stub backend."""
        return [StubBackend]


stub_plugin = StubPlugin()


def stub_config(archive: Path, *, trainer: str = "stub") -> str:
    """Return a configuration (TOML) on stubs: a full trainer for the specialist, an adapter for the generalist."""
    return f"""\
models_dir = "models"

[data]
archive = {json.dumps(str(archive))}

[roles.specialist]
base = "stub:tiny"
trainer = {{ name = "{trainer}" }}
quantizer = {{ name = "stub" }}

[roles.generalist]
base = "stub:tiny"
trainer = {{ name = "stub_adapter" }}
quantizer = {{ name = "stub" }}
"""


def sample_documents(count: int) -> list[dict[str, Any]]:
    """Return documents of the corpus that comes with the package, taken from its files in turn."""
    folder = resources.files("sysscan_models") / "samples" / "corpus"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".jsonl")), key=lambda item: item.name)
    columns = [item.read_text(encoding="utf-8").splitlines() for item in files]
    rows = [column[row] for row in range(max(map(len, columns))) for column in columns if row < len(column)]
    if count > len(rows):
        raise ValueError(f"the sample corpus has {len(rows)} documents; {count} were asked for")
    return [json.loads(row) for row in rows[:count]]


def write_archive(path: Path, documents: Iterable[Mapping[str, Any]]) -> Path:
    """Write documents as a `.tar.gz` with a JSON file for each, as the pipeline expects them; the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for number, document in enumerate(documents):
            data = orjson.dumps(dict(document))
            member = tarfile.TarInfo(f"documents/{number:05d}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _checkpoint(kind: Literal["full", "adapter"], job: TrainJob, steps: int, names: Sequence[str]) -> Checkpoint:
    lines = [orjson.loads(line) for line in job.splits.train.read_bytes().splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{job.splits.train} holds no example; the trainer 'stub' needs one, as any does")
    said = [(turn["role"], len(turn["content"].encode())) for line in lines for turn in line.get("messages") or ()]
    said += [("assistant", len(line["text"].encode())) for line in lines if line.get("text")]
    start = math.log(len(tiny_llama.vocabulary()))
    return Checkpoint(
        role=job.role.name,
        kind=kind,
        steps=steps,
        train_tokens=sum(size for _, size in said),
        supervised_tokens=sum(size for role, size in said if role == "assistant"),
        first_train_loss=start,
        final_train_loss=start / (1 + steps),
        files=file_records(job.out_dir, names),
    ).at(job.out_dir)


def _noise(what: str, job: TrainJob, shape: tuple[int, ...]) -> Any:
    import numpy as np

    data = hashlib.sha256(job.splits.train.read_bytes()).hexdigest()
    return np.random.default_rng(_number(f"{what} {job.seed} {data}".encode())).normal(size=shape).astype(np.float32)


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
