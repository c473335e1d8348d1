"""The price of one role: what is done already, and what is still to do takes of tokens, steps, memory and time.

Looks at files and the machine; opens no socket, trains nothing and writes nothing. Judging is `verdicts`' business.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sysscan_models import machine, processes
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.planning.bases import Base, find_base, unhashed_record
from sysscan_models.planning.disk import disk_parts
from sysscan_models.planning.memory import TrainingMemory, memory_of

if TYPE_CHECKING:
    from sysscan_models.artifacts import Splits
    from sysscan_models.config import RoleConfig
    from sysscan_models.interfaces import Estimate, Trainer
    from sysscan_models.pipeline import Pipeline


@dataclass(frozen=True)
class Range:
    """What lies between two bounds; equal bounds are an exact number."""

    low: int
    high: int


@dataclass(frozen=True)
class RolePrice:
    """What one role needs. Bytes and counts; None = not known."""

    base: Base
    trainer: str
    device: str
    done: tuple[str, ...]
    """Stages that are up to date: train, merge, quantize."""
    tokens: Range | None
    steps: Range | None
    persistent: int | None
    peak: Range | None
    parts: TrainingMemory | None
    """What `persistent` is made of, where the formula knows."""
    seconds: float | None
    disk: Mapping[str, int]
    """Bytes on disk by what they are for; empty when not known."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Here:
    """The machine, seen from the device that the configuration asks for; or another one that is only planned for."""

    kind: Literal["cpu", "cuda", "tpu"]
    memory: machine.Memory
    accelerators: tuple[machine.Accelerator, ...]
    index: int = 0
    devices: int = 1
    """Devices that share one model: those of a TPU slice, or the processes that torchrun started."""
    hosts: int = 1
    elsewhere: str = ""
    """The machine that is planned for, when it is not this one; nothing is known of its RAM and its disk."""

    @classmethod
    def look(cls, device: str) -> Here:
        """Return what is here of the device that a configuration names; torch is asked only for an explicit `cuda`."""
        memory, together = machine.memory(), processes.count()
        kind, _, index = device.partition(":")
        if kind == "auto":
            found = machine.cards() if machine.has_cuda_torch() or not machine.version("torch") else ()
            return cls("cuda" if found else "cpu", memory, found, devices=together)
        if kind == "cuda":
            asked = machine.torch_cards()
            return cls("cuda", memory, machine.cards() if asked is None else asked, int(index or 0), devices=together)
        if kind == "tpu":
            tpu = machine.tpu_type()
            known = machine.tpu_slice(tpu) or machine.Hardware(0, 0.0)
            found = (machine.Accelerator(f"TPU {tpu}", known.memory),) if tpu else ()
            return cls("tpu", memory, found, devices=known.devices, hosts=known.hosts)
        if kind != "cpu":  # a plugin's, of which nothing is known
            return cls("cuda", memory, (machine.Accelerator(device, 0),), devices=together)
        return cls("cpu", memory, (), devices=together)

    @classmethod
    def planned(cls, name: str) -> Here:
        """Return a machine by what it has: a TPU slice (`v5e-8`), a card, or several (`4x A100 80 GB`).

        Raises UserError with the valid choices.
        """
        nothing = machine.Memory(0, 0)
        if found := machine.tpu_slice(name):
            card = machine.Accelerator(f"TPU {name.replace('litepod', 'e')}", found.memory)
            return cls("tpu", nothing, (card,), devices=found.devices, hosts=found.hosts, elsewhere=name)
        match = re.fullmatch(r"(?:(\d+) *x *)?(.+)", name.strip(), re.IGNORECASE)
        count, asked = int(match[1] or 1) if match else 0, match[2] if match else name
        known = {_plain(card): card for card in machine.CARDS}
        card_name = known.get(_plain(asked))
        if not card_name or not count:
            raise UserError(
                f"unknown machine {name!r} to plan for. Valid choices: TPU slices ({', '.join(machine.TPUS)}, and other sizes) "
                f"or cards, several as in '4x A100 80 GB' ({', '.join(machine.CARDS)})"
            )
        cards = (machine.Accelerator(card_name, machine.CARDS[card_name].memory),) * count
        return cls("cuda", nothing, cards, devices=count, elsewhere=name)

    @property
    def accelerator(self) -> machine.Accelerator | None:
        """The one that would be used; of several that share a model, the first."""
        return self.accelerators[self.index] if self.index < len(self.accelerators) else None

    @property
    def xla(self) -> bool:
        """Whether the model is compiled for a TPU."""
        return self.kind == "tpu"

    @property
    def capacity(self) -> tuple[int, int]:
        """Total and free bytes of the memory that one device trains in; 0 for what is not known."""
        if self.kind == "cpu":
            sharing = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            return self.memory.total // sharing, self.memory.available // sharing
        card = self.accelerator
        return (card.total, card.free or card.total) if card else (0, 0)


def _plain(name: str) -> str:
    """Return the name of a card without what people leave out: spaces and capitals."""
    return re.sub(r"[\s_-]+", "", name).lower()


def price_role(pipeline: Pipeline, name: str, splits: Splits | None, here: Here) -> RolePrice:
    """Return what one role needs: by its trainer's own estimate where that can be asked, else by the formula."""
    part, base = pipeline.config.role(name), find_base(pipeline, name)
    done = _done(pipeline, name, base, splits)
    estimate, notes = (None, ()) if "train" in done else _ask_trainer(pipeline, part, base, splits)
    parts = memory_of(part.trainer, base.shape, devices=here.devices, xla=here.xla) if base.shape else None
    tokens, steps = _budget(part.trainer, splits, archive_bytes(pipeline), here.devices)
    persistent, peak = (parts.persistent, Range(parts.peak_low, parts.peak_high)) if parts else (None, None)
    if estimate:
        tokens, steps = _measured_budget(part.trainer, estimate, here.devices) or (tokens, steps)
        if (here.devices == 1 and not here.xla) or not parts:  # a trainer estimates for one device of no special kind
            persistent, peak = estimate.persistent_bytes, Range(estimate.peak_low_bytes, estimate.peak_high_bytes)
    return RolePrice(
        base=base,
        trainer=part.trainer.name,
        device=here.kind,
        done=done,
        tokens=tokens,
        steps=steps,
        persistent=persistent,
        peak=peak,
        parts=parts,
        seconds=None if "train" in done else _seconds(pipeline, part, tokens),
        disk=disk_parts(part, base, parts, estimate, tokens.high if tokens else 0),
        notes=(*estimate.notes, *notes) if estimate else notes,
    )


def _ask_trainer(
    pipeline: Pipeline, part: RoleConfig, base: Base, splits: Splits | None
) -> tuple[Estimate | None, tuple[str, ...]]:
    """Return the trainer's own estimate when it has what it needs, and what must be said when it failed."""
    from sysscan_models.interfaces import TrainJob

    if base.where != "here" or base.fault or splits is None:
        return None, ()
    out_dir = pipeline.layout.checkpoint(part.role, part.trainer.checkpoint_kind)
    job = TrainJob(part.role, unhashed_record(base), splits, out_dir, seed=pipeline.config.seed, device=pipeline.config.device)
    try:
        return part.trainer.estimate(job), ()
    except (SysscanError, ImportError) as error:
        return None, (f"trainer {part.trainer.name!r} could not estimate: {error}",)


def current_splits(pipeline: Pipeline) -> dict[str, Splits]:
    """Return the splits on disk when they are what the configuration asks for, for all roles or for none."""
    from sysscan_models.artifacts import Splits, record_path
    from sysscan_models.pipeline import current
    from sysscan_models.splits import splits_inputs

    config, layout = pipeline.config, pipeline.layout
    if not all(record_path(layout.data / name).exists() for name in config.roles) or not pipeline.archive().exists():
        return {}
    roles = [part.role for part in config.roles.values()]
    key = splits_inputs(pipeline.archive(), config.data, roles=roles, router=config.router, readers=config.readers)
    found = {name: current(Splits, layout.data / name, *key, role=name, seed=config.seed) for name in config.roles}
    return {name: splits for name, splits in found.items() if splits} if all(found.values()) else {}


def _done(pipeline: Pipeline, name: str, base: Base, splits: Splits | None) -> tuple[str, ...]:
    """Return the stages of a role that are up to date, asked as the pipeline asks; a base is hashed only when that matters."""
    from sysscan_models.artifacts import Checkpoint, MergedCheckpoint, QuantizedModel, record_path
    from sysscan_models.pipeline import current

    part, seed = pipeline.config.role(name), pipeline.config.seed
    kind = part.trainer.checkpoint_kind
    out_dir = pipeline.layout.checkpoint(part.role, kind)
    if splits is None or base.where != "here" or base.fault or not record_path(out_dir).exists():
        return ()
    fetched = pipeline.fetch(name)
    inputs = {"base": fetched.digest, "splits": splits.digest}
    checkpoint = current(Checkpoint, out_dir, inputs, part.trainer.keyed(), role=name, seed=seed)
    if not checkpoint:
        return ()
    if kind == "full":
        merged: MergedCheckpoint | None = part.trainer.merge(checkpoint, fetched, checkpoint.root)
    else:
        inputs = {"base": fetched.digest, "checkpoint": checkpoint.digest}
        merged_dir = pipeline.layout.merged(part.role, kind)
        merged = current(MergedCheckpoint, merged_dir, inputs, {"trainer": part.trainer.name}, role=name, seed=seed)
    if not merged:
        return ("train",)
    out = pipeline.layout.models / part.quantizer.file_name(part.role)
    quantized = current(QuantizedModel, out, {"merged": merged.digest}, part.quantizer.keyed(), role=name, seed=seed)
    return ("train", "merge", "quantize") if quantized else ("train", "merge")


def archive_bytes(pipeline: Pipeline) -> int:
    """Return about how much text the dataset holds at most, in bytes; 0 when there is none."""
    archive = pipeline.archive()
    if archive.is_dir():
        return sum(path.stat().st_size for path in archive.rglob("*") if path.is_file())
    packed = archive.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz")
    return archive.stat().st_size * (10 if packed else 1) if archive.is_file() else 0  # text rarely packs tighter


def _measured_budget(trainer: Trainer, estimate: Estimate, devices: int) -> tuple[Range, Range] | None:
    """Return tokens and steps as the trainer counted them; None where several devices would take more tokens in as many steps.

    `batch_size` is per device, so that several devices take fewer steps; a last one may be left half empty.
    """
    options: Any = trainer
    if devices > 1 and hasattr(options, "max_steps") and options.max_steps:
        return None
    tokens = Range(estimate.train_tokens, estimate.train_tokens)
    fewest = estimate.steps if devices == 1 else math.ceil(max(1, estimate.steps - 1) / devices)
    return tokens, Range(fewest, math.ceil(estimate.steps / devices))


def _budget(trainer: Trainer, splits: Splits | None, archive: int, devices: int) -> tuple[Range | None, Range | None]:
    """Bound tokens and steps by the size of the data (2 to 6 bytes make a token) and by the trainer's own limits."""
    options: Any = trainer
    if not all(hasattr(options, name) for name in ("batch_size", "max_seq_length", "epochs", "max_steps", "max_tokens")):
        return None, None
    text = splits.train.stat().st_size if splits and splits.train.is_file() else archive
    low, high = int(text / 6 * options.epochs) if splits else 0, int(text / 2 * options.epochs)
    batch = options.batch_size * devices
    row = batch * options.max_seq_length
    if options.max_tokens:
        low, high = min(low, options.max_tokens), min(high, options.max_tokens + row)
    examples = math.ceil(splits.counts.get("train", 0) * options.epochs) if splits else high // 16
    rows = math.ceil(1.2 * high / row) if getattr(options, "packing", False) else math.ceil(examples / batch)
    steps = Range(low // row, max(1, rows))
    if options.max_steps:
        steps = Range(min(steps.low, options.max_steps), min(steps.high, options.max_steps))
        high = min(high, steps.high * row)
    return (Range(min(low, high), high) if text else None), (steps if text or options.max_steps else None)


def _seconds(pipeline: Pipeline, part: RoleConfig, tokens: Range | None) -> float | None:
    """Return how long training takes at the speed of the checkpoint that is there, if it was made on such a device."""
    from sysscan_models.artifacts import Checkpoint, record_path

    out_dir = pipeline.layout.checkpoint(part.role, part.trainer.checkpoint_kind)
    if tokens is None or not record_path(out_dir).exists():
        return None
    try:
        former = Checkpoint.load(out_dir)
    except SysscanError:
        return None
    asked, used = pipeline.config.device.partition(":")[0], str(former.made.get("device", "")).partition(":")[0]
    spent = former.made.get("seconds")
    if asked not in ("auto", used) or not former.train_tokens or not isinstance(spent, (int, float)) or spent <= 0:
        return None
    return tokens.high * float(spent) / former.train_tokens
