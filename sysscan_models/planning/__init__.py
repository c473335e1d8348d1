"""What a run will need, before it starts: memory, disk, tokens, steps; and the refusal of what cannot fit.

Nothing is fetched, trained or written. What must be held (weights, masters, gradients, optimizer state) is exact, so only that,
and the disk, refuses a run; activations are a range, and warn. Time is told only where an earlier run measured a speed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING

import orjson

from sysscan_models.errors import UserError
from sysscan_models.machine import Accelerator, Memory
from sysscan_models.planning.disk import Disk, price_disk
from sysscan_models.planning.memory import LoraOptions, TrainingMemory, full_memory, lora_memory
from sysscan_models.planning.pricing import Here, RolePrice, archive_bytes, current_splits, price_role
from sysscan_models.planning.shapes import Shape, shape_of
from sysscan_models.planning.verdicts import Line, judge

if TYPE_CHECKING:
    from sysscan_models.pipeline import Pipeline

__all__ = [
    "Line", "LoraOptions", "Price", "Shape", "TrainingMemory", "as_json", "as_text", "full_memory", "lora_memory", "price",
    "refuse", "shape_of",
]  # fmt: skip


@dataclass(frozen=True)
class Price:
    """The price of a run, and the verdicts on it."""

    roles: Mapping[str, RolePrice]
    disk: Disk
    memory: Memory
    accelerators: tuple[Accelerator, ...]
    lines: tuple[Line, ...]
    on: str = ""
    """The machine that it was compared with, when it was not this one."""


def price(pipeline: Pipeline, *, on: str = "") -> Price:
    """Return what the pipeline's run will need and how this machine compares; opens no socket and writes nothing.

    `on` names another machine to compare with: a TPU slice (`v5e-8`), a card, or several (`4x A100 80 GB`); it decides the
    device, whatever the configuration says. Raises UserError for one that is not known.
    """
    here, splits = Here.planned(on) if on else Here.look(pipeline.config.device), current_splits(pipeline)
    roles = {name: price_role(pipeline, name, splits.get(name), here) for name in pipeline.config.roles}
    disk = price_disk(pipeline, roles, splits=0 if splits else 2 * archive_bytes(pipeline))
    lines = tuple(judge(pipeline, roles, disk, here, prepared=bool(splits)))
    return Price(roles, disk, here.memory, here.accelerators, lines, on)


def as_json(price: Price) -> str:
    """Return the price as JSON: bytes, counts and seconds as numbers, what is not known as null."""
    return orjson.dumps(asdict(price), default=str, option=orjson.OPT_INDENT_2).decode()


def as_text(price: Price) -> str:
    """Return the price as a table that fits the terminal, or 100 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="")
    for heading in ("", "what", "needs", "here", "verdict"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "verdict")
    subject = ""
    for line in price.lines:
        here = f"{line.here}\n-> {line.advice}" if line.advice else line.here
        first = line.subject if line.subject != subject else ""
        table.add_row(*(Text(cell) for cell in (first, line.what, line.needs, here, line.verdict)))
        subject = line.subject
    out = StringIO()
    width = max(60, min(140, shutil.get_terminal_size((100, 24)).columns))
    Console(file=out, width=width, color_system=None, highlight=False, force_terminal=False).print(table)
    return "\n".join(row.rstrip() for row in out.getvalue().splitlines())


def refuse(price: Price) -> None:
    """Raise UserError with everything that cannot fit and what to change, if there is anything."""
    refused = [line for line in price.lines if line.verdict == "refuse"]
    if not refused:
        return
    reasons = [
        f"{line.subject}, {line.what}: needs {line.needs}; here: {line.here}" + (f". {line.advice}" if line.advice else "")
        for line in refused
    ]
    raise UserError(
        f"this run cannot work {f'on {price.on}' if price.on else 'here'}, for {len(reasons)} "
        f"reason{'s' if len(reasons) > 1 else ''}; nothing was started:\n"
        + "\n".join(f"  - {reason}" for reason in reasons)
        + ("" if price.on else "\n`sysscan-models run --force` starts it all the same")
    )
