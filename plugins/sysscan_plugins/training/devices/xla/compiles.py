"""Counts compilations and stops a run that compiles when it should not.

XLA compiles a graph for every new shape and every changed constant, for minutes with a large model. A run has one graph per
kind of step; one that goes on compiling would be slower by orders of magnitude and look as if it worked.
"""

from __future__ import annotations

import torch_xla.debug.metrics as metrics

from sysscan_models.errors import SysscanError

ALLOWED = {"training": 2, "validation": 1}
"""Compilations of one kind of step with one shape; the first training step may differ from later ones by what it creates."""

COUNTER = "UncachedCompile"
"""torch_xla's own; its CompileTime counts more than compilations."""


def uncached_compiles() -> int:
    """Return how many graphs this process has compiled."""
    return int(metrics.counter_value(COUNTER) or 0)


class CompileGuard:
    """Knows the shapes of a run's steps and what each may compile."""

    def __init__(self) -> None:
        self._start = self._last = uncached_compiles()
        self._compiled: dict[tuple[str, str], int] = {}

    @property
    def compiles(self) -> int:
        """Graphs compiled since the start of the run."""
        return uncached_compiles() - self._start

    def skip(self) -> None:
        """Do not count what was compiled up to here."""
        self._last = uncached_compiles()

    def check(self, kind: str, shape: str) -> None:
        """Raise SysscanError when a step of this kind, which has just run, compiled more than its share."""
        new, self._last = uncached_compiles() - self._last, uncached_compiles()
        known = [other for other_kind, other in self._compiled if other_kind == kind]
        before = self._compiled.get((kind, shape), 0)
        self._compiled[kind, shape] = before + new
        if kind == "training" and known and shape not in known:
            raise SysscanError(self._said(kind, f"its shape changed: {shape}; it was {known[-1]}"))
        if new and before + new > ALLOWED[kind]:
            raise SysscanError(self._said(kind, f"its shape did not change ({shape}), so a constant or an operation did"))

    def _said(self, kind: str, changed: str) -> str:
        return (
            f"a {kind} step was compiled again, after {self.compiles} compilations: {changed}. Every step would wait minutes "
            f"for the compiler, so training stopped; the last checkpoint is kept. Run the same command again to go on from it, "
            f"and report this if it happens again"
        )
