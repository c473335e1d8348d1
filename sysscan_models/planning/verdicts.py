"""The verdicts on a price: each line says what is needed, what is here, and what to change.

Only what is certain refuses: what must be held in memory, the disk, a model, dataset or device that is missing. The rest warns.
For another machine than this one, only memory refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sysscan_models.planning import slices
from sysscan_models.planning.disk import Disk
from sysscan_models.planning.figures import between, duration, size
from sysscan_models.planning.memory import RUNTIME, LoraOptions, TrainingMemory, experts_stay, lora_memory, memory_of
from sysscan_models.planning.pricing import Here, RolePrice, archive_bytes
from sysscan_models.planning.slices import USABLE

if TYPE_CHECKING:
    from sysscan_models.interfaces import Trainer
    from sysscan_models.pipeline import Pipeline
    from sysscan_models.planning.shapes import Shape

Verdict = Literal["ok", "warn", "refuse"]


@dataclass(frozen=True)
class Line:
    """One line of the plan."""

    subject: str
    what: str
    needs: str
    here: str
    verdict: Verdict
    advice: str = ""


def judge(pipeline: Pipeline, roles: Mapping[str, RolePrice], disk: Disk, here: Here, *, prepared: bool) -> Iterator[Line]:
    """Yield the verdicts: on the data, on each role, on the disk."""
    yield _for(here, _data_line(pipeline, prepared=prepared))
    for name, role in roles.items():
        yield _for(here, _base_line(pipeline, name, role))
        if "train" in role.done:
            yield Line(name, "training", "-", "up to date", "ok")
            continue
        yield _training_line(name, role, prepared=prepared)
        yield _memory_line(pipeline, name, role, here)
        if here.kind != "cpu" and role.base.parameters and not here.elsewhere:
            yield _host_line(name, role, here)
    yield _disk_line(roles, disk, here)


def _for(here: Here, line: Line) -> Line:
    """Return the line as it is, or, for a machine that is only planned for, milder: what is missing here may be there."""
    return replace(line, verdict="warn") if here.elsewhere and line.verdict == "refuse" else line


def _data_line(pipeline: Pipeline, *, prepared: bool) -> Line:
    archive = pipeline.archive()
    if prepared:
        return Line("data", "splits", "-", "up to date", "ok")
    if not archive.exists():
        advice = 'Set data.archive to your dataset; "sample" is the corpus that comes with this package'
        return Line("data", "archive", str(archive), "there is no such file or folder", "refuse", advice)
    return Line("data", "archive", str(archive), f"{size(archive_bytes(pipeline))} of text at most", "ok")


def _base_line(pipeline: Pipeline, name: str, role: RolePrice) -> Line:
    base = role.base
    if base.fault:
        return Line(name, "base model", base.reference, base.fault, "refuse", f"Set roles.{name}.base to a usable model")
    embedded = base.reference.startswith("embedded:")
    missing = base.where != "here" and not embedded
    needs = f"{base.parameters / 1e9:.3g} B parameters, {size(base.size)}" if base.parameters else base.reference
    if missing and pipeline.config.offline:
        advice = "Allow the network once, or set the base to a folder that holds it"
        return Line(name, "base model", needs, f"{base.reference} is not here, and the network is forbidden", "refuse", advice)
    if base.where == "unknown":
        advice = f"`sysscan-models fetch {name}` brings it here; then it can be priced"
        return Line(name, "base model", needs, "not here, and its size is not known", "warn", advice)
    origin = "comes with its package" if embedded else "comes from the hub"
    return Line(name, "base model", needs, f"{base.reference} {origin}" if base.where == "known" else str(base.folder), "ok")


def _training_line(name: str, role: RolePrice, *, prepared: bool) -> Line:
    if role.tokens is None and role.steps is None:
        return Line(name, "training", role.trainer, "tokens and steps are not known", "warn", "; ".join(role.notes))
    tokens = f"{between(role.tokens.low, role.tokens.high)} tokens" if role.tokens else "tokens not known"
    steps = f"{between(role.steps.low, role.steps.high)} steps" if role.steps else "steps not known"
    told = [] if prepared else ["bounds by the size of the data, exact after `sysscan-models prepare`"]
    speed = "time unknown: no speed was measured yet"
    told.append(speed if role.seconds is None else f"about {duration(role.seconds)} at the speed of the run before")
    return Line(name, "training", f"{role.trainer}: {tokens}, {steps}", "; ".join((*told, *role.notes)), "ok")


def _memory_line(pipeline: Pipeline, name: str, role: RolePrice, here: Here) -> Line:
    what = {"cpu": "memory (RAM)", "cuda": "GPU memory", "tpu": "TPU memory"}[here.kind]
    trainer, found = pipeline.config.role(name).trainer, _capacity_text(here)
    if role.persistent is None or role.peak is None:
        why = "the base model is not here" if not role.base.parameters else f"trainer {trainer.name!r} gives no estimate"
        return Line(name, what, "not known", found, "warn", f"No price: {why}")
    total, free = here.capacity
    needs = (
        f"{size(role.persistent)} held, peak {size(role.peak.low)} to {size(role.peak.high)}{_division(trainer, role, here)}"
    )
    if here.kind == "tpu" and not total:  # how many devices would share it is not known
        needs = f"{size(role.persistent)} held, divided among the devices"
    if not total:
        absent = here.kind != "cpu" and here.accelerator is None
        return Line(name, what, needs, found, "refuse" if absent else "warn", _elsewhere(trainer, role, here))
    if role.peak.high <= free * (USABLE if here.elsewhere else 1):
        return Line(name, what, needs, found, "ok")
    return Line(name, what, needs, found, "refuse" if role.persistent > free else "warn", _remedy(trainer, role, here))


def _division(trainer: Trainer, role: RolePrice, here: Here) -> str:
    """Say how several devices share what is held."""
    if here.devices == 1:
        return ""
    shared = f" on each of {here.devices} devices, which divide all weights and state"
    shape = role.base.shape
    if shape is None or not shape.experts:
        return shared
    stay = experts_stay(shape, trainer, devices=here.devices, xla=here.xla)
    return f"{shared}; {'each computes its own experts' if stay else 'experts are gathered to compute'}"


def _capacity_text(here: Here) -> str:
    total, free = here.capacity
    if here.kind == "cpu":
        limit = " (limited by a control group)" if here.memory.limited else ""
        return f"{size(free)} free of {size(total)}{limit}" if total else "the size of this machine's memory is not known"
    if here.accelerator is None:
        return f"no {'TPU' if here.kind == 'tpu' else 'CUDA device'} was found"
    each = f"{here.devices} x " if here.devices > 1 else ""
    hosts = f" in {here.hosts} machines, the program runs on each" if here.hosts > 1 else ""
    if here.kind == "cuda" and here.devices > 1:
        hosts = f", trained on by torchrun --nproc-per-node {here.devices}"
    memory = size(total) if here.elsewhere else f"{size(free)} free of {size(total)}"
    known = f"{each}{memory}{hosts}" if total else "its memory is not known"
    return f"{here.accelerator.name}: {known}"


def _remedy(trainer: Trainer, role: RolePrice, here: Here) -> str:
    """Say what would make it fit here, the mildest change first; else where it would fit."""
    total, free = here.capacity
    usable = int(free * USABLE) if here.elsewhere else free
    if role.peak and role.peak.high <= total * USABLE and free < total:
        return f"Fits when other programs free what they hold ({size(total - free)})"
    if role.base.shape is None:
        return "Take a smaller base model"
    if together := _together(trainer, role.base.shape, here):
        return together
    for change, memory in _changes(trainer, role.base.shape, here):
        if memory.peak_high <= usable:
            larger = f". {_elsewhere(trainer, role, here)}" if here.kind != "cpu" else ""
            return f"Would fit: {change} (at most {size(memory.peak_high)}){larger}"
    return f"No option makes it fit; take a smaller base model or another machine. {_elsewhere(trainer, role, here)}"


def _together(trainer: Trainer, shape: Shape, here: Here) -> str:
    """Say that all cards of this machine together would hold it, if they would and one of them is used."""
    count, smallest = len(here.accelerators), min((card.free or card.total for card in here.accelerators), default=0)
    if here.kind != "cuda" or here.devices > 1 or count < 2:
        return ""
    memory = memory_of(trainer, shape, devices=count)
    if memory is None or memory.peak_high > smallest:
        return ""
    command = f"torchrun --nproc-per-node {count} -m sysscan_models train ROLE"
    return f"Would fit on the {count} cards together: `{command}` (at most {size(memory.peak_high)} on each)"


def _changes(trainer: Trainer, shape: Shape, here: Here) -> Iterator[tuple[str, TrainingMemory]]:
    """Yield changes of a trainer's options that save memory, the mildest first, with what is needed then."""
    for change, memory in slices.changes(trainer, shape, devices=here.devices, xla=here.xla):
        yield ", ".join(f"{key} = {_toml(value)}" for key, value in change.items()), memory
    options: Any = trainer
    if trainer.checkpoint_kind == "full" and memory_of(trainer, shape) is not None:
        lora = LoraOptions(1, options.max_seq_length, options.compute_dtype, gradient_checkpointing=True)
        words = 'trainer "lora" with micro_batch_size = 1, gradient_checkpointing = true'
        yield words, lora_memory(shape, lora, devices=here.devices, xla=here.xla)


def _elsewhere(trainer: Trainer, role: RolePrice, here: Here) -> str:
    """Name the smallest well-known accelerators that hold it as it is configured; if none does, with which change one does."""
    if role.base.shape is None or here.kind == "cpu":
        return f"It needs {size(role.peak.high)} at most" if role.peak else ""
    found = slices.fits(trainer, role.base.shape, here.kind)
    fitting, perhaps = slices.smallest(found, "fits"), slices.smallest(found, "perhaps")
    told = f"As configured it fits {', '.join(fitting) or 'no known one surely'}" if fitting or perhaps else ""
    told += f"; perhaps {', '.join(perhaps)}" if perhaps else ""
    if any(not slices.is_set(name) for name in (*fitting, *perhaps)):
        return told
    for change in slices.choices(trainer):
        changed = slices.smallest(slices.fits(trainer.model_copy(update=change), role.base.shape, here.kind), "fits")
        if single := [name for name in changed if not slices.is_set(name)]:
            words = ", ".join(f"{key} = {_toml(value)}" for key, value in change.items())
            told = told or f"No known {here.kind.upper()} device holds it as configured"
            return f"{told}; with {words} it fits {', '.join(single)}"
    return told or f"No known {here.kind.upper()} device holds it; take a smaller base model"


def _host_line(name: str, role: RolePrice, here: Here) -> Line:
    """Judge the RAM beside an accelerator: the model is loaded there first, or passes through it when it is divided."""
    weights = role.parts.weights if role.parts else role.base.size
    needs = f"{size(weights)} to load the model"
    if (here.devices > 1 or here.xla) and role.base.shape:
        weights = 8 * max(math.prod(tensor.shape) for tensor in role.base.shape.tensors())  # as it is, and in fp32
        needs = f"{size(weights)} to read the model tensor by tensor"
    found = f"{size(here.memory.available)} free of {size(here.memory.total)}"
    if not here.memory.total or weights + RUNTIME <= here.memory.available:
        return Line(name, "memory (RAM)", needs, found, "ok")
    return Line(
        name, "memory (RAM)", needs, found, "refuse", "Free what other programs hold, or take a machine with more memory"
    )


def _disk_line(roles: Mapping[str, RolePrice], disk: Disk, here: Here) -> Line:
    known = "" if disk.complete else "; models whose size is not known are left out"
    needs = f"{size(disk.peak)} more at most, {size(disk.final)} in the end{known}"
    if here.elsewhere:
        return Line("disk", "models", needs, f"what is free there is not known from here; {_largest(roles)}", "ok")
    found = f"{size(disk.free)} free, {size(disk.present)} present in {disk.folder}"
    if disk.peak > disk.free * USABLE:
        return Line("disk", "models", needs, found, "refuse" if disk.peak > disk.free else "warn", _disk_advice(roles))
    return Line("disk", "models", needs, found, "ok" if disk.complete else "warn")


def _disk_advice(roles: Mapping[str, RolePrice]) -> str:
    return f"Set models_dir to a larger file system, or keep_checkpoints = 1 ({_largest(roles)})"


def _largest(roles: Mapping[str, RolePrice]) -> str:
    parts = [(bytes_, f"{name} {what} {size(bytes_)}") for name, role in roles.items() for what, bytes_ in role.disk.items()]
    return "largest parts: " + ", ".join(text for _, text in sorted(parts, reverse=True)[:3])


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
