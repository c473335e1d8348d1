"""What is kept of a run to look at: `train_log.jsonl`, a line per step or validation, and the picture of its loss curve.

The log is for people: times are in it, so it is no part of what a checkpoint's digest covers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from sysscan_models.artifacts import write_atomically

FILE, PICTURE = "train_log.jsonl", "loss.png"


class TrainLog:
    """The log of one run in its folder; `after` is the step that the run goes on from, what comes later is removed.

    Of several processes one `writes`.
    """

    def __init__(self, folder: Path, *, after: int = 0, fresh: bool = True, writes: bool = True) -> None:
        self.folder, self.path, self.writes = folder, folder / FILE, writes
        if not writes:
            return
        lines = (
            []
            if fresh
            else [line for line in self._read() if line["step"] < after or (line["step"] == after and "loss" in line)]
        )
        write_atomically(self.path, b"".join(orjson.dumps(line) + b"\n" for line in lines))

    def append(self, step: int, **fields: Any) -> None:
        """Add a line; numbers as they are, losses in nats per supervised token."""
        if self.writes:
            with self.path.open("ab") as stream:
                stream.write(orjson.dumps({"step": step, **fields}) + b"\n")

    def draw(self) -> None:
        """Draw the loss curve, when matplotlib is installed and there is something to draw."""
        if not self.writes:
            return
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            return
        lines = self._read()
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for key, label, style in (("loss", "training", "-"), ("valid_loss", "validation", "o-")):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label)
        if not axes.lines:
            return
        axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
        axes.legend()
        temporary = self.folder / f".{PICTURE}.tmp"
        FigureCanvasAgg(figure).print_png(temporary)
        temporary.replace(self.folder / PICTURE)

    def _read(self) -> list[dict[str, Any]]:
        """Return the whole lines; one that a kill cut in two is left out."""
        lines = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                lines.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                continue
        return lines
