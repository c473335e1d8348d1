"""The whole chain, one line per stage. This module alone decides where each stage reads and writes, and what is already done.

    prepare -> fetch -> train -> merge -> quantize -> evaluate -> package

A stage is done when its record exists, has the key that the configuration now asks for, and its files have their sizes;
`run` therefore goes on where an interrupted run stopped, and a changed option redoes exactly what depends on it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sysscan_models import processes
from sysscan_models.artifacts import (
    Artifact,
    BaseCheckpoint,
    Checkpoint,
    Evaluation,
    MergedCheckpoint,
    ModelPackage,
    QuantizedModel,
    Splits,
    file_records,
    made_now,
    record_path,
    stage_key,
)
from sysscan_models.config import RunConfig
from sysscan_models.errors import IntegrityError, MissingExtra, UserError
from sysscan_models.interfaces import ModelRef, Source, TrainJob
from sysscan_models.machine import version
from sysscan_models.packaging import package
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.progress import say
from sysscan_models.roles import ModelRole
from sysscan_models.splits import prepare, splits_inputs
from sysscan_models.splits.report import PAGE, report_text

A = TypeVar("A", bound=Artifact)


class Layout:
    """The names of the original's output tree, below one models folder."""

    def __init__(self, models_dir: Path) -> None:
        self.models = models_dir
        self.data = models_dir / "data"
        self.bases = models_dir / "bases"
        self.evaluations = models_dir / "evaluation"
        self.package = models_dir / "package"

    def checkpoint(self, role: ModelRole, kind: str) -> Path:
        """Return the folder of a role's checkpoint: a full model or adapters."""
        return self.models / f"{role.name}_model_{'lora_adapters' if kind == 'adapter' else 'fine_tuned'}"

    def merged(self, role: ModelRole, kind: str) -> Path:
        """Return the folder of a role's complete model; a full checkpoint is one already."""
        return self.models / f"{role.name}_model_merged" if kind == "adapter" else self.checkpoint(role, kind)

    def base(self, reference: str, revision: str) -> Path:
        """Return the folder where a base model that is not a local folder is brought to."""
        name = f"{reference}@{revision}".rstrip("@").replace("/", "--")  # as the hub's own cache, so that no two names meet
        return self.bases / re.sub(r"[^\w.@-]", "-", name)


class Pipeline:
    """The stages of one configuration. Each method does its stage if it is not done, and returns its artifact."""

    def __init__(self, config: RunConfig, registry: Registry | None = None) -> None:
        self.config = config
        self.registry = registry or plugin_manager()
        self.layout = Layout(config.models_dir)
        if config.models_dir.exists() and not config.models_dir.is_dir():
            raise UserError(f"models_dir {config.models_dir} is a file; expected a folder, or a place for a new one")

    def run(self) -> ModelPackage:
        """Do whatever is missing, from the archive to the package."""
        self.check()
        splits = self.prepare()
        say(report_text(self.layout.data))
        for name in self.config.roles:
            self.train(name, splits[name])
            self.merge(name)
            self.quantize(name)
        return self.package()

    def results(self) -> dict[str, Path]:
        """Return what a person would open after a run, by name; only what exists."""
        curves = {f"loss curve of {name}": self.checkpoint(name).root / "loss.png" for name in self.config.roles}
        data, answers = self.layout.data / PAGE, self.layout.models / "before_and_after.md"
        found = {"package": self.layout.package, "model card": self.layout.package / "README.md", **curves}
        found |= {"data report": data, "before and after": answers}
        return {what: path for what, path in found.items() if path.exists()}

    def check(self) -> None:
        """Fetch every base model and ask trainers and quantizers whether they can use it, before anything costs time."""
        self._check_device()
        for name in self.config.roles:
            part, base = self.config.role(name), self.fetch(name)
            part.trainer.check(base, part.role)
            part.quantizer.check(base)

    def _check_device(self) -> None:
        if self.config.device == "tpu" and not version("torch_xla"):
            raise UserError(
                'device = "tpu" needs torch_xla, which is not installed: in an environment of its own, '
                "pip install 'sysscan-models[train,tpu]'. Without a TPU set device to auto, cpu or cuda"
            )

    def prepare(self) -> dict[str, Splits]:
        """Turn the archive into splits, in one pass for all roles."""
        config = self.config
        roles = [part.role for part in config.roles.values()]
        archive = self.archive()
        held_out = config.held_out()
        inputs, options = splits_inputs(
            archive, config.data, roles=roles, router=config.router, readers=config.readers, held_out=held_out
        )
        done = {
            role.name: current(Splits, self.layout.data / role.name, inputs, options, role=role.name, seed=config.seed)
            for role in roles
        }
        if all(done.values()):
            say(f"prepare: up to date, {sum(sum(splits.counts.values()) for splits in done.values() if splits)} examples")
            return {name: splits for name, splits in done.items() if splits}
        return prepare(
            archive,
            self.layout.data,
            roles=roles,
            router=config.router,
            readers=config.readers,
            options=config.data,
            seed=config.seed,
            held_out=held_out,
        )

    def archive(self) -> Path:
        """Return the dataset's path; `sample` is the corpus shipped with the package."""
        return sample_corpus() if self.config.data.archive == "sample" else self.config.path(self.config.data.archive)

    def fetch(self, name: str) -> BaseCheckpoint:
        """Return a role's base model as a local folder, brought here if it is not."""
        part = self.config.role(name)
        scheme, ref = choose_source(part.base, self.config.folder)
        out_dir = Path(ref) if scheme == "path" else self.layout.base(part.base, part.revision)
        if scheme != "path" and (base := _intact(BaseCheckpoint, out_dir)):
            return base
        if scheme != "path" and (processes.count() > 1 or processes.number()):
            raise UserError(f"the base model of {name} is not here yet; fetch it in one process: `sysscan-models fetch {name}`")
        source: Source = self.registry.get("sources", scheme)()
        if scheme != "path":
            say(f"fetch {name}: {part.base}")
        fetched = source.fetch(ref, out_dir, revision=part.revision, offline=self.config.offline)
        return fetched if scheme == "path" else fetched.save(out_dir)

    def train(self, name: str, splits: Splits | None = None) -> Checkpoint:
        """Fine-tune a role's base model on its training split."""
        part, base = self.config.role(name), self.fetch(name)
        splits = splits or Splits.load(self.layout.data / name)
        out_dir = self.layout.checkpoint(part.role, part.trainer.checkpoint_kind)
        job = TrainJob(part.role, base, splits, out_dir, seed=self.config.seed, device=self.config.device)
        inputs = {"base": base.digest, "splits": splits.digest}

        def work() -> Checkpoint:
            self._check_device()
            part.trainer.check(base, part.role)
            try:  # `train` alone refuses what could never be exported, as `run` does
                part.quantizer.check(base)
            except MissingExtra as error:  # a machine that only trains need not be able to export
                say(f"train {name}: not checked whether it can be exported later: {error}")
            return part.trainer.train(job)

        return self._stage(Checkpoint, f"train {name}", out_dir, inputs, part.trainer.keyed(), name, work)

    def merge(self, name: str) -> MergedCheckpoint:
        """Return a role's complete model, adapters merged into the base."""
        part, checkpoint = self.config.role(name), self.checkpoint(name)
        if checkpoint.kind == "full":
            return part.trainer.merge(checkpoint, self.fetch(name), checkpoint.root)
        base, out_dir = self.fetch(name), self.layout.merged(part.role, checkpoint.kind)
        inputs = {"base": base.digest, "checkpoint": checkpoint.digest}
        work = lambda: part.trainer.merge(checkpoint, base, out_dir)  # noqa: E731
        return self._stage(MergedCheckpoint, f"merge {name}", out_dir, inputs, {"trainer": part.trainer.name}, name, work)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a role's finished checkpoint; raise UserError when it was not trained."""
        part = self.config.role(name)
        return Checkpoint.load(self.layout.checkpoint(part.role, part.trainer.checkpoint_kind))

    def quantize(self, name: str) -> QuantizedModel:
        """Export a role's complete model to GGUF and quantize it."""
        part, merged = self.config.role(name), self.merged(name)
        out = self.layout.models / part.quantizer.file_name(part.role)
        inputs = {"merged": merged.digest}
        work = lambda: part.quantizer.quantize(merged, out, part.role)  # noqa: E731
        return self._stage(QuantizedModel, f"quantize {name}", out, inputs, part.quantizer.keyed(), name, work)

    def merged(self, name: str) -> MergedCheckpoint:
        """Return a role's finished complete model; raise UserError when it was not merged."""
        part, checkpoint = self.config.role(name), self.checkpoint(name)
        if checkpoint.kind == "full":
            return part.trainer.merge(checkpoint, self.fetch(name), checkpoint.root)
        return MergedCheckpoint.load(self.layout.merged(part.role, checkpoint.kind))

    def quantized(self, name: str) -> QuantizedModel:
        """Return a role's finished GGUF model; raise UserError when it was not quantized."""
        part = self.config.role(name)
        return QuantizedModel.load(self.layout.models / part.quantizer.file_name(part.role))

    def evaluate(self) -> dict[str, Evaluation]:
        """Let every configured evaluator measure every role's model."""
        evaluations = {}
        for name, part in self.config.roles.items():
            models = {"tuned-q4": ModelRef(self.quantized(name).path, part.role)}
            for evaluator in self.config.evaluators:
                out_dir = self.layout.evaluations / name / evaluator.name
                evaluations[f"{name}/{evaluator.name}"] = evaluator.evaluate(
                    models, Splits.load(self.layout.data / name), out_dir
                )
        return evaluations

    def package(self) -> ModelPackage:
        """Put the GGUF models, the manifest and the model card into one folder."""
        names = list(self.config.roles)
        return package(
            {name: self.quantized(name) for name in names},
            self.layout.package,
            roles={name: part.role for name, part in self.config.roles.items()},
            title=self.config.package.title,
            bases={name: self.fetch(name) for name in names},
            licences={name: part.licence for name, part in self.config.roles.items()},
            checkpoints={name: self.checkpoint(name) for name in names},
            merged={name: self.merged(name) for name in names},
            splits={name: Splits.load(self.layout.data / name) for name in names},
            evaluations=self.evaluate(),
        )

    def _stage(
        self,
        kind: type[A],
        title: str,
        out: Path,
        inputs: Mapping[str, str],
        options: Mapping[str, Any],
        role: str,
        work: Callable[[], A],
    ) -> A:
        """Return what is on disk if it is current; else do the work and seal its result with this key."""
        seed = self.config.seed
        if done := current(kind, out, inputs, options, role=role, seed=seed):
            say(f"{title}: up to date")
            return done
        if processes.number() == 0:
            record_path(out).unlink(missing_ok=True)
        started = time.monotonic()
        made = work()
        if processes.number():
            return made
        if made.key != stage_key(kind, role=role, inputs=inputs, options=options, seed=seed) or not record_path(out).exists():
            made = seal(made, out, role=role, inputs=inputs, options=options, seed=seed, seconds=time.monotonic() - started)
        say(f"{title}: done in {time.monotonic() - started:.0f} s")
        return made


def current(
    kind: type[A], path: Path, inputs: Mapping[str, str], options: Mapping[str, Any], *, role: str, seed: int
) -> A | None:
    """Return the artifact at a path if it is what these inputs and options would make, else None."""
    artifact = _intact(kind, path)
    asked = stage_key(kind, role=role, inputs=inputs, options=options, seed=seed)
    return artifact if artifact and artifact.key == asked else None


def _intact(kind: type[A], path: Path) -> A | None:
    """Return the artifact at a path if its record can be read and its files have their sizes, else None."""
    if not record_path(path).exists():
        return None
    try:
        artifact = kind.load(path)
        artifact.check_files(contents=False)
    except (IntegrityError, UserError) as error:
        say(f"{path}: {error}; it is made again")
        return None
    return artifact


def seal(
    artifact: A, out: Path, *, role: str, inputs: Mapping[str, str], options: Mapping[str, Any], seed: int, seconds: float
) -> A:
    """Complete and save the record of a stage, so that a plugin need not: key, file hashes, circumstances."""
    root = record_path(out).parent
    held = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    names = [str(path.relative_to(root)) for path in held if not path.name.startswith(".") and path != record_path(out)]
    files = artifact.files or file_records(root, names)
    update = {"role": role, "inputs": dict(inputs), "options": dict(options), "seed": seed, "files": files}
    return artifact.model_copy(update={**update, "made": artifact.made or made_now(seconds=seconds)}).save(out)


def choose_source(base: str, folder: Path) -> tuple[str, str]:
    """Return the source's name and its reference: an existing folder is `path`, `NAME:REF` names its source, else the hub."""
    local = folder / Path(base).expanduser()
    if local.is_dir():
        return "path", str(local)
    name, colon, ref = base.partition(":")
    if colon:
        return name, ref
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise UserError(
            f"base model {base!r}: there is no such folder (looked at {local}), and it is neither a hub id (ORGANISATION/NAME) "
            f"nor SOURCE:NAME, such as embedded:smollm2-135m-instruct"
        )
    return "hub", base


def sample_corpus() -> Path:
    """Return the folder of the corpus that comes with the package."""
    return Path(__file__).parent / "samples" / "corpus"
