"""Before and after: the untuned base and the tuned model of each role, asked about the same findings of the sample report.

The base is exported and quantized by the same quantizer, so that training is the only difference. What comes out is a text of
two columns for the terminal and the same as Markdown, `before_and_after.md` in the models folder.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from sysscan_models.artifacts import MergedCheckpoint, QuantizedModel, stage_key, write_atomically
from sysscan_models.interfaces import Backend, ModelRef
from sysscan_models.pipeline import current, seal
from sysscan_models.progress import Progress, say
from sysscan_models.roles import ModelRole
from sysscan_models.samples.answers import Answer, answers, one_line
from sysscan_models.samples.sample import sample_report
from sysscan_models.scan_report import document, findings

if TYPE_CHECKING:
    from sysscan_models.documents import Document
    from sysscan_models.pipeline import Pipeline

FILE_NAME = "before_and_after.md"
NARROWEST = 100
"""Columns of the text when it does not go to a terminal, at least."""


@dataclass(frozen=True)
class Comparison:
    """One role's answers about the same documents, in the same order."""

    role: ModelRole
    before: Sequence[Answer]
    after: Sequence[Answer]

    def summary(self) -> str:
        """Return in one line how many answers were as they should be, before and after."""
        return f"{self.role.name}: " + ", ".join(
            f"{title} {self._share('before', what)} -> {self._share('after', what)}" for title, what in _COUNTED.items()
        )

    def _share(self, side: str, what: str) -> str:
        given = getattr(self, side)
        return f"{sum(_holds(answer, what) for answer in given)}/{len(given)}"


_COUNTED = {"valid JSON": "json", "fits the response model": "fits", "ended by itself": "stopped"}


def _holds(answer: Answer, what: str) -> bool:
    return {"json": answer.fields is not None, "fits": answer.fits, "stopped": answer.stopped}[what]


def before_and_after(pipeline: Pipeline, *, count: int, max_tokens: int = 256, backend: str = "llama_cpp") -> str:
    """Ask base and tuned model of every role, greedily, about the `count` most severe findings of the sample report.

    Returns the text of two columns and writes the same as Markdown into the models folder. The tuned models must be finished.
    """
    documents = [document(finding) for finding in findings(sample_report())[:count]]
    names = list(pipeline.config.roles)
    pairs = {name: (base_quantized(pipeline, name), pipeline.quantized(name)) for name in names}
    server: Backend = pipeline.registry.get("backends", backend)()
    given: dict[tuple[str, int], list[Answer]] = {}
    with Progress("before and after", total=2 * len(names) * len(documents), unit="answers") as bar:
        for name in names:
            role = pipeline.config.role(name).role
            for side, model in enumerate(pairs[name]):
                given[name, side] = []
                with server.open(ModelRef(model.path, role)) as session:
                    for answer in answers(session, role, documents, max_tokens=max_tokens, temperature=0.0):
                        given[name, side].append(answer)
                        bar.update(sum(map(len, given.values())))
    comparisons = [Comparison(pipeline.config.role(name).role, *_in_order(given, name, documents)) for name in names]
    write_atomically(pipeline.layout.models / FILE_NAME, as_markdown(comparisons).encode())
    return as_text(comparisons, width=_width())


def base_quantized(pipeline: Pipeline, name: str) -> QuantizedModel:
    """Return a role's untuned base as its quantizer makes it, in the folder of the bases; roles with equal bases share it."""
    part, base = pipeline.config.role(name), pipeline.fetch(name)
    inputs, options = {"base": base.digest}, part.quantizer.keyed()
    key = stage_key(QuantizedModel, inputs=inputs, options=options)
    out = pipeline.layout.bases / f"{base.root.name}-{key[:8]}.gguf"
    if done := current(QuantizedModel, out, inputs, options, role="", seed=0):
        return done
    say(f"quantize {base.reference}, to compare")
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    made = part.quantizer.quantize(MergedCheckpoint(inputs=inputs, files=base.files).at(base.root), out)
    return seal(made, out, role="", inputs=inputs, options=options, seed=0, seconds=time.monotonic() - started)


def as_text(comparisons: Sequence[Comparison], *, width: int) -> str:
    """Return the answers side by side in two columns, with the summary last; no colours, `width` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, width=width, color_system=None, markup=False, highlight=False, emoji=False)
    column = (width - 7) // 2
    for comparison in comparisons:
        for before, after in zip(comparison.before, comparison.after, strict=True):
            heading = f"{comparison.role.name}: {before.heading()}"
            table = Table(title=Text(heading), title_justify="left", title_style="", box=box.ASCII2, show_lines=True)
            table.add_column("before (base model)", width=column)
            table.add_column("after (tuned model)", width=column)
            for cells in ((before.body(column), after.body(column)), (before.verdict(), after.verdict())):
                table.add_row(*(Text(cell, overflow="fold") for cell in cells))
            console.print(table, "")
    console.print(*(comparison.summary() for comparison in comparisons), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the same as Markdown; answers stand in fences that they cannot close."""
    lines = ["# Before and after", "", "The same findings, asked of the untuned base model and of the tuned one.", ""]
    lines += [f"- {_escaped(comparison.summary())}" for comparison in comparisons]
    for comparison in comparisons:
        lines += ["", f"## {_escaped(comparison.role.name)}"]
        for before, after in zip(comparison.before, comparison.after, strict=True):
            lines += ["", f"### {_escaped(before.heading())}"]
            for side, answer in (("Before", before), ("After", after)):
                lines += ["", f"**{side}**: {_escaped(answer.verdict())}", "", *_fenced(answer.body())]
    return "\n".join(lines) + "\n"


def _in_order(
    given: Mapping[tuple[str, int], Sequence[Answer]], name: str, documents: Sequence[Document]
) -> tuple[list[Answer], list[Answer]]:
    """Return both sides' answers in the order of the documents; a backend may finish them in any."""
    places = {id(document): place for place, document in enumerate(documents)}
    before, after = (sorted(given[name, side], key=lambda answer: places[id(answer.document)]) for side in (0, 1))
    return before, after


def _fenced(text: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def _escaped(text: str) -> str:
    """Return text as one line of Markdown that shows it literally, HTML included."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(text))


def _width() -> int:
    columns = shutil.get_terminal_size((NARROWEST, 24)).columns
    return columns if sys.stdout.isatty() else max(NARROWEST, columns)
