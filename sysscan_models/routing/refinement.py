"""Refining the shipped coefficients with labels of one's own, and measuring what that gains on documents unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sysscan_models.errors import UserError
from sysscan_models.progress import say
from sysscan_models.routing import RoleNames
from sysscan_models.routing.coefficients import SHIPPED, Coefficients, digest_of, load_coefficients
from sysscan_models.routing.features import batches
from sysscan_models.routing.fitting import Report, find_terms, fit, quantized, unfolded
from sysscan_models.routing.labels import Labelled, read_labelled

FOLDS = 5
"""Parts of the labels that are left out in turn."""
REFINING_DECAY = 3e-3
"""L2 penalty of each step away from the shipped coefficients; the labels of a user are few."""


@dataclass(frozen=True)
class Figures:
    """How good decisions are, security being the positive label."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of both, 0 when both are."""
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.precision + self.recall else 0.0


def figures(truth: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_]) -> Figures:
    """Compare decisions with labels."""
    right = float((truth & said).sum())
    return Figures(right / max(float(said.sum()), 1), right / max(float(truth.sum()), 1))


def refined(found: Sequence[Labelled], *, from_shipped: bool, report: Report = lambda _: None) -> Coefficients:
    """Return coefficients fitted on all labels."""
    weights, bias = fit(
        find_terms([entry.parts for entry in found]),
        np.array([entry.security for entry in found]),
        [entry.family for entry in found],
        prior=unfolded(load_coefficients(SHIPPED)) if from_shipped else None,
        decay=REFINING_DECAY,
        fewest_families=1,
        report=report,
    )
    return quantized(weights, bias)


def says_security(coefficients: Coefficients, found: Sequence[Labelled]) -> npt.NDArray[np.bool_]:
    """Return the decision for each document, [N]."""
    return np.concatenate([coefficients.weigh(batch).logits > 0 for batch in batches([entry.parts for entry in found])])


def cross_validated(
    found: Sequence[Labelled], *, from_shipped: bool, folds: int, report: Report = lambda _: None
) -> tuple[Figures, Figures]:
    """Return the figures of the shipped and of the fitted coefficients, the latter each on documents not fitted on.

    Whole sources are left out in turn when there are as many as folds, else every so-manyth document.
    """
    truth = np.array([entry.security for entry in found])
    sources = sorted({entry.source for entry in found})
    if len(sources) >= folds:
        fold = np.array([sources.index(entry.source) % folds for entry in found])
    else:
        fold = np.arange(len(found)) % folds
    said = np.zeros(len(found), np.bool_)
    for number in range(folds):
        rest = [entry for entry, mine in zip(found, fold, strict=True) if mine != number]
        out = [entry for entry, mine in zip(found, fold, strict=True) if mine == number]
        if out and len({entry.security for entry in rest}) == 2:
            said[fold == number] = says_security(refined(rest, from_shipped=from_shipped), out)
            report(f"measured on part {number + 1} of {folds}")
    return figures(truth, says_security(load_coefficients(SHIPPED), found)), figures(truth, said)


def save(coefficients: Coefficients, out: Path) -> None:
    """Write the file; raise UserError when it cannot be written or does not end in .npz."""
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file's name must end in .npz")
    try:
        coefficients.save(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another file with --out") from error


def fit_and_save(labels: Sequence[Path], out: Path, roles: RoleNames, *, from_shipped: bool) -> str:
    """Fit on labelled files, write the coefficients, and return what a person wants to know: figures, and how to use them."""
    found = read_labelled(labels, roles)
    say(f"{len(found):,} labelled documents of {len({entry.source for entry in found}):,} sources")
    before, after = cross_validated(found, from_shipped=from_shipped, folds=FOLDS, report=say)
    save(refined(found, from_shipped=from_shipped, report=say), out)
    rows = [f"{'on documents unseen':<22}{'precision':>10}{'recall':>8}{'F1':>8}"]
    for name, each in (("shipped", before), ("refined" if from_shipped else "from nothing", after)):
        rows.append(f"{name:<22}{each.precision:>10.3f}{each.recall:>8.3f}{each.f1:>8.3f}")
    use = f'[router]\nname = "linear"\ncoefficients = "{out}"'
    return "\n".join([*rows, f"wrote {out} (SHA-256 {digest_of(out)[:16]}...); use it with", "", use])
