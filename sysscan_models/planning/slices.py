"""Which accelerators hold a training: every TPU slice and card that is known here, and what would have to change.

Memory only: whether a slice can be had, what it costs and how fast it is are other questions. The tables of the documents are
made here, so that they say what the plan says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sysscan_models import machine
from sysscan_models.planning.memory import TrainingMemory, memory_of
from sysscan_models.planning.shapes import KNOWN, Shape

if TYPE_CHECKING:
    from sysscan_models.interfaces import Trainer

USABLE = 0.95
"""Share of a memory or disk that can be filled; the rest goes to fragments, contexts and other programs."""
SEVERAL = (2, 4, 8)
"""Numbers of cards in one machine that are looked at together, as torchrun uses them."""
CAPACITY = 1.25
"""Places of an expert that are proposed, as a multiple of an even share."""
COLAB: Mapping[str, str] = {
    "T4 GPU": "T4 16 GB",
    "L4 GPU": "L4 24 GB",
    "A100 GPU": "A100 40 GB",
    "A100 GPU (80 GB)": "A100 80 GB",
    "v2-8 TPU": "v2-8",
    "v5e-1 TPU": "v5e-1",
    "v6e-1 TPU": "v6e-1",
}
"""Runtimes of Google Colab and what they have; which are offered changes, and most need a paid plan."""

_CARDS = ("A100 80 GB", "H200 141 GB")
"""Cards of the table of slices."""

Verdict = Literal["fits", "perhaps", "no"]


@dataclass(frozen=True)
class Fit:
    """Whether an accelerator holds a training."""

    name: str
    family: str
    """What it is a size of: a generation of TPUs, or for cards the card itself."""
    verdict: Verdict


def verdict(memory: TrainingMemory, capacity: int) -> Verdict:
    """Return `fits` when the upper bound of the peak does, `perhaps` when the lower one does, else `no`; capacity in bytes."""
    if memory.peak_high <= capacity * USABLE:
        return "fits"
    return "perhaps" if memory.peak_low <= capacity * USABLE else "no"


def fits(trainer: Trainer, shape: Shape, kind: Literal["cuda", "tpu"]) -> list[Fit]:
    """Return whether each known TPU slice, or card and set of cards, holds a training, smaller ones of a family first."""
    found = []
    for name, family, hardware in _known(kind):
        memory = memory_of(trainer, shape, devices=hardware.devices, xla=kind == "tpu")
        if memory:
            found.append(Fit(name, family, verdict(memory, hardware.memory)))
    return found


def _known(kind: Literal["cuda", "tpu"]) -> Iterator[tuple[str, str, machine.Hardware]]:
    if kind == "tpu":
        for name, hardware in machine.TPUS.items():
            yield name, name.partition("-")[0], hardware
        return
    for name, card in machine.CARDS.items():
        for count in (1, *SEVERAL):
            label = f"{count}x {name}" if count > 1 else name
            yield label, name, machine.Hardware(card.memory, card.peak_flops, count)


def smallest(found: Sequence[Fit], verdict: Verdict) -> list[str]:
    """Return the smallest of each family with that verdict; of cards the single ones, or where there is none the fewest.

    One that perhaps holds it is left out where a smaller one of its family surely does, and sets of cards where one card does.
    """
    least, order = _least(found, verdict), {fit.name: index for index, fit in enumerate(found)}
    surely = _least(found, "fits") if verdict == "perhaps" else {}
    names = [name for family, name in least.items() if family not in surely or order[name] < order[surely[family]]]
    single = [name for name in names if not is_set(name)]
    enough = single or any(not is_set(name) for name in surely.values())
    return single if enough else names


def is_set(name: str) -> bool:
    """Say whether the name is that of several cards."""
    return bool(re.match(r"\d+x ", name))


def _least(found: Iterable[Fit], verdict: Verdict) -> dict[str, str]:
    """Return, by family, the first that has a verdict."""
    least: dict[str, str] = {}
    for fit in found:
        if fit.verdict == verdict:
            least.setdefault(fit.family, fit.name)
    return least


def changes(
    trainer: Trainer, shape: Shape, *, devices: int = 1, xla: bool = False
) -> Iterator[tuple[dict[str, Any], TrainingMemory]]:
    """Yield changes of a trainer's options that save memory, the mildest first, with what is needed then."""
    for change in choices(trainer):
        memory = memory_of(trainer.model_copy(update=change), shape, devices=devices, xla=xla)
        if memory:
            yield change, memory


def choices(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Yield changes of options that save memory, the mildest first: nothing that the trainer has not or has set already."""
    options: Any = trainer
    if not all(
        hasattr(options, name) for name in ("micro_batch_size", "gradient_checkpointing", "max_seq_length", "optimizer")
    ):
        return
    small: dict[str, Any] = {"micro_batch_size": 1, "gradient_checkpointing": True}
    shorter = [{"max_seq_length": length} for length in (2048, 1024, 512) if length < options.max_seq_length]
    steps: list[dict[str, Any]] = [{key: value} for key, value in small.items()] + [small]
    if getattr(options, "expert_capacity", None) == 0:  # then experts of a mixture need not be gathered on a TPU
        steps += [{"expert_capacity": CAPACITY}, {**small, "expert_capacity": CAPACITY}]
    if trainer.checkpoint_kind == "full":
        if options.optimizer == "adamw":
            steps += [{"optimizer_state": "bfloat16"}, {**small, "optimizer_state": "bfloat16"}]
        adafactor = {"optimizer": "adafactor", "optimizer_state": "float32"}  # its state has no other type
        steps += [adafactor, {**small, **adafactor}, *({**small, **adafactor, **length} for length in shorter)]
    else:
        steps += [{**small, **length} for length in shorter]
    told = []
    for step in steps:
        change = {key: value for key, value in step.items() if getattr(options, key, value) != value}
        if change and change not in told:
            told.append(change)
            yield change


def runtimes_table(trainings: Mapping[str, tuple[Trainer, Shape]]) -> str:
    """Return a table in Markdown: a row for each Colab runtime, a column for each training (heading -> trainer, shape)."""
    rows = []
    for runtime, name in COLAB.items():
        slice_ = machine.tpu_slice(name)
        hardware = slice_ or machine.CARDS[name]
        answers = []
        for trainer, shape in trainings.values():
            memory = memory_of(trainer, shape, devices=hardware.devices, xla=slice_ is not None)
            answers.append(verdict(memory, hardware.memory) if memory else "not known")
        memory_text = (
            f"{hardware.devices} x {hardware.memory >> 30} GiB" if hardware.devices > 1 else f"{hardware.memory >> 30} GiB"
        )
        rows.append([runtime, memory_text, *answers])
    return _markdown(["Colab runtime", "memory", *trainings], rows)


def slices_table(trainings: Mapping[str, tuple[Trainer, Shape]]) -> str:
    """Return a table in Markdown: for each training the smallest TPU slice of each generation and the fewest cards."""
    families = list(dict.fromkeys(name.partition("-")[0] for name in machine.TPUS))
    rows = []
    for heading, (trainer, shape) in trainings.items():
        least = _least([*fits(trainer, shape, "tpu"), *fits(trainer, shape, "cuda")], "fits")
        rows.append([heading, *(least.get(family, "none") for family in (*families, *_CARDS))])
    return _markdown(["training", *(f"TPU {family}" for family in families), *_CARDS], rows)


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shape_named(base: str) -> Shape:
    """Return the shape of a known base model; raise KeyError for another."""
    return KNOWN[base.lower().removeprefix("hub:")]


def role_trainings() -> dict[str, tuple[Trainer, Shape]]:
    """Return the trainings of the tables: the roles of the recipes `demo` and `tpu`, and what stands between them."""
    from sysscan_models.config import load_config

    demo, original = load_config(recipe="demo"), load_config(recipe="tpu")
    small, large = demo.role("specialist"), original.role("specialist")
    mixture = original.role("generalist")
    adafactor = large.trainer.model_copy(update={"optimizer": "adafactor"})
    return {
        "both demo roles": (small.trainer, shape_named(small.base)),
        "Llama 3 8B, LoRA": (mixture.trainer, shape_named(large.base)),
        "Llama 3 8B, full, Adafactor": (adafactor, shape_named(large.base)),
        "Llama 3 8B, full, AdamW": (large.trainer, shape_named(large.base)),
        "Mixtral 8x7B, LoRA": (mixture.trainer, shape_named(mixture.base)),
    }
