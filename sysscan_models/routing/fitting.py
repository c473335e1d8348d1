"""Fitting the coefficients of a linear router: logistic regression on hashed terms, in numpy alone, the same every time.

What generalises is told from what is peculiar to one source: a term counts only when documents of at least two families have
it, a large family weighs less than its size, and both labels weigh the same in each group of languages, so that a language is
no evidence. Weights start from a prior (lists of words, or the shipped coefficients) and leave it only as far as the labels
ask. Documents are not read here (see `labels`), and nothing is downloaded.

Shapes: N documents, E entries (a term in a document), T terms that are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sysscan_models.routing.coefficients import FEWEST_WORDS, TITLE_FACTOR, Coefficients
from sysscan_models.routing.features import Words, batches, buckets, find_words, piece_buckets, piece_counts

WORD_BITS, PIECE_BITS = 20, 20
"""Buckets of the tables, as powers of two."""
PIECE_WEIGHT = 0.3
"""What a piece of a word counts beside a word: there are many more of them, and they say the same again."""
FEWEST_FAMILIES = 2
"""A term that fewer families of sources have is left out."""
DECAY = 1e-4
"""L2 penalty of each coefficient, for a mean loss of about one."""
MOST_STEPS = 40
BUCKETS = (1 << WORD_BITS) + (1 << PIECE_BITS)
FAMILY_POWER = 0.3
"""A family of n documents weighs n ** (1 - FAMILY_POWER)."""

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Terms:
    """Documents as their terms, one entry after the other, in the order of the documents."""

    starts: Index
    """[N + 1] where the entries of each document begin."""
    columns: npt.NDArray[np.int32]
    """[E] bucket; those of pieces follow those of words."""
    values: npt.NDArray[np.float32]
    """[E]"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def taken(self, rows: Index) -> Terms:
        """Return some of the documents."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.repeat(self.starts[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
        return Terms(starts, self.columns[entries], self.values[entries])

    def logits(self, weights: Floats, bias: float) -> Floats:
        """Return the weighed sum of each document, [N]."""
        sums = np.concatenate([[0.0], np.cumsum(weights[self.columns] * self.values, dtype=np.float64)])
        return np.asarray(bias + sums[self.starts[1:]] - sums[self.starts[:-1]])


def find_terms(parts: Sequence[tuple[str, str]]) -> Terms:
    """Return the terms of documents (title, rest; lower case), weighed as `Coefficients.weigh` does."""
    found = [_terms_of_batch(batch) for batch in batches(parts)]
    if not found:
        return Terms(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    lengths, columns, values = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Terms(np.concatenate([[0], np.cumsum(lengths)]), columns, values)


def _terms_of_batch(parts: Sequence[tuple[str, str]]) -> tuple[Index, Any, Any]:
    words = find_words(parts)
    owners, columns, weights = (np.concatenate(arrays) for arrays in zip(*_entries(words), strict=True))
    counts = np.bincount(words.document, words.first * np.where(words.in_title, TITLE_FACTOR, 1), len(parts))
    document = words.document[owners]
    values = weights * np.where(words.in_title[owners], TITLE_FACTOR, 1) / np.sqrt(np.maximum(counts, FEWEST_WORDS))[document]
    order = np.argsort(document, kind="stable")
    lengths = np.bincount(document, minlength=len(parts))
    return lengths, columns[order].astype(np.int32), values[order].astype(np.float32)


def _entries(words: Words) -> Iterator[tuple[Index, Index, Floats]]:
    """Yield which words have terms, the buckets of these, and what they count."""
    first, pair = np.flatnonzero(words.first), np.flatnonzero(words.first_pair)
    yield first, buckets(words.hashes[first], WORD_BITS), np.ones(len(first))
    yield pair, buckets(words.pairs[pair], WORD_BITS), np.ones(len(pair))
    owner = np.searchsorted(words.starts, np.arange(len(words.codes)), side="right") - 1
    for length, bucket in piece_buckets(words.codes, PIECE_BITS):
        places = np.flatnonzero(piece_counts(words.pieced, length))
        yield owner[places + 1], bucket[places].astype(np.int64) + (1 << WORD_BITS), np.full(len(places), PIECE_WEIGHT)


def fit(
    terms: Terms,
    security: npt.NDArray[np.bool_],
    families: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    emphasis: Floats | None = None,
    prior: tuple[Floats, float] | None = None,
    decay: float = DECAY,
    fewest_families: int = FEWEST_FAMILIES,
    most_steps: int = MOST_STEPS,
    report: Report = lambda _: None,
) -> tuple[Floats, float]:
    """Return the weight of each bucket and the bias; those of the prior where the labels do not ask for others.

    `families` [N] names the origin of each document, `groups` [N] its language or whatever else shall be no evidence, and
    `emphasis` [N] says how many times as much a document counts as others of its family.
    """
    of_prior, bias = prior or (np.zeros(BUCKETS), 0.0)
    columns = _shared_columns(terms, families, fewest_families)
    place = np.full(len(of_prior), len(columns), np.int64)
    place[columns] = np.arange(len(columns))
    chosen = place[terms.columns]
    fitted = chosen < len(columns)
    problem = _Problem(
        rows=np.repeat(np.arange(len(terms), dtype=np.int32), np.diff(terms.starts))[fitted],
        places=chosen[fitted].astype(np.int32),
        values=terms.values[fitted],
        fixed=terms.logits(of_prior, bias),
        signs=np.where(security, 1.0, -1.0),
        importance=importance(security, families, groups or ["all"] * len(terms), emphasis),
        decay=decay,
        size=len(columns),
    )
    moved = _minimized(problem, np.zeros(len(columns) + 1), most_steps, report)
    weights = of_prior.copy()
    weights[columns] += moved[1:]
    return weights, bias + float(moved[0])


def importance(
    security: npt.NDArray[np.bool_], families: Sequence[str], groups: Sequence[str], emphasis: Floats | None = None
) -> Floats:
    """Return what each document counts, [N], mean 1: large families less than their size, both labels alike in each group."""
    _, family, sizes = np.unique(np.asarray(families), return_inverse=True, return_counts=True)
    counts = sizes[family].astype(np.float64) ** -FAMILY_POWER * (1.0 if emphasis is None else emphasis)
    names = np.asarray(groups)
    for name in sorted(set(groups)):
        mine = names == name
        total = counts[mine].sum()
        sides = [mine & (security == label) for label in (True, False)]
        if all(side.any() for side in sides):
            for side in sides:
                counts[side] *= total / 2 / counts[side].sum()
    return np.asarray(counts / counts.mean())


def quantized(weights: Floats, bias: float) -> Coefficients:
    """Return weights as squares of whole numbers of one scale; the very few largest are cut."""
    words, pieces = weights[: 1 << WORD_BITS], weights[1 << WORD_BITS :] * PIECE_WEIGHT
    sizes = np.abs(np.concatenate([words, pieces]))
    sizes = sizes[sizes > 0]
    scale = float(np.quantile(sizes, 0.99999)) / 127**2 if len(sizes) else 1.0
    roots = [np.clip(np.rint(np.sqrt(np.abs(table) / scale)), 0, 127) * np.sign(table) for table in (words, pieces)]
    return Coefficients.from_roots(roots[0].astype(np.int8), roots[1].astype(np.int8), scale, bias)


def unfolded(prior: Coefficients) -> tuple[Floats, float]:
    """Return coefficients as the weight of each bucket and the bias, to start a fit from them."""
    return np.concatenate([prior.words * prior.scale, prior.pieces * (prior.scale / PIECE_WEIGHT)]), prior.bias


def _shared_columns(terms: Terms, families: Sequence[str], fewest: int) -> Index:
    """Return the buckets that the terms of at least so many families fall into."""
    names, family = np.unique(np.asarray(families), return_inverse=True)
    having = np.zeros(BUCKETS, np.int16)
    for number in range(len(names)):
        rows = np.flatnonzero(family == number)
        having[np.unique(terms.taken(rows).columns)] += 1
    return np.flatnonzero(having >= min(fewest, len(names)))


@dataclass(frozen=True)
class _Problem:
    rows: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    fixed: Floats
    signs: Floats
    importance: Floats
    decay: float
    size: int

    def loss(self, moved: Floats) -> tuple[float, Floats]:
        """Return the penalised mean loss and its gradient; the bias is the first entry and not penalised."""
        added = np.bincount(self.rows, moved[1:][self.places] * self.values, len(self.signs))
        margins = (self.fixed + moved[0] + added) * self.signs
        total = float(np.mean(self.importance * np.logaddexp(0, -margins)) + self.decay / 2 * (moved[1:] @ moved[1:]))
        residual = -self.importance * self.signs / (1 + np.exp(np.clip(margins, -500, 500))) / len(self.signs)
        gradient = np.empty_like(moved)
        gradient[0] = residual.sum()
        gradient[1:] = np.bincount(self.places, residual[self.rows] * self.values, self.size) + self.decay * moved[1:]
        return total, gradient


def _minimized(problem: _Problem, at: Floats, most_steps: int, report: Report, memory: int = 8) -> Floats:
    """Minimise by L-BFGS (Nocedal 1980: two loops over the last steps), with a step that is halved until it helps."""
    loss, gradient = problem.loss(at)
    moves: list[tuple[Floats, Floats]] = []
    for step in range(most_steps):
        direction = _direction(gradient, moves[-memory:])
        slope, size = float(direction @ gradient), 1.0
        for _ in range(20):
            following = at - size * direction
            new_loss, new_gradient = problem.loss(following)
            if new_loss <= loss - 1e-4 * size * slope:
                break
            size /= 2
        else:
            return at
        report(f"step {step + 1} of at most {most_steps}: loss {new_loss:.4f}")
        change, turn = following - at, new_gradient - gradient
        if change @ turn > 1e-12:
            moves.append((change, turn))
        done = loss - new_loss < 1e-5 * loss
        at, loss, gradient = following, new_loss, new_gradient
        if done:
            return at
    return at


def _direction(gradient: Floats, moves: Sequence[tuple[Floats, Floats]]) -> Floats:
    direction, along = gradient.copy(), []
    for change, turn in reversed(moves):
        along.append(float(change @ direction / (turn @ change)))
        direction -= along[-1] * turn
    if moves:
        change, turn = moves[-1]
        direction *= float(change @ turn / (turn @ turn))
    else:
        direction /= max(1.0, float(np.linalg.norm(direction)))
    for (change, turn), size in zip(moves, reversed(along), strict=True):
        direction += change * (size - float(turn @ direction / (turn @ change)))
    return direction
