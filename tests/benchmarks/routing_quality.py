"""Measure the router honestly, and fit the coefficients that come with the package.

    python tests/benchmarks/routing_quality.py DEV.jsonl.gz [--gathered OUT] [--fit COEFFICIENTS.npz]

DEV holds labelled documents (`label`, `source`, `title`, ...); OUT is what `routing_sources.py` wrote. Without `--gathered` the
shipped coefficients and the rule of eleven keywords are measured as they are: on sources that were fitted on, that flatters.
With it, three honest measures: documents held out of known sources; whole families of sources left out in turn, together with
everything gathered of the same origin; and the same for what is not English.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import routing_texts

from sysscan_models.routing import RoleNames
from sysscan_models.routing.coefficients import SHIPPED, load_coefficients
from sysscan_models.routing.features import buckets, find_words
from sysscan_models.routing.fitting import BUCKETS, WORD_BITS, Terms, find_terms, fit, quantized
from sysscan_models.routing.labels import Labelled, read_labelled
from sysscan_models.routing.refinement import figures, says_security
from sysscan_models.splits.words import word_hashes

KEYWORDS = (
    "security",
    "vulnerability",
    "threat",
    "attack",
    "malware",
    "exploit",
    "breach",
    "compliance",
    "risk",
    "authentication",
    "firewall",
)
PRIOR = 3.0
"""What a term of the word lists weighs before any document is seen; lists of decisive words, strong ones, ordinary ones."""
EMPHASIS = 40.0
"""How many times as much a document of the development file or of the sample corpus counts as a gathered one, whose label is
only its source's."""
NEAR = 0.3
"""Share of a document's runs of five words in held-out documents from which it counts as a near copy of one of them."""
FAMILY_OF = {
    "deb_gen": "descriptions",
    "deb_sec": "descriptions",
    "pypa": "advisories",
    "rustsec": "advisories",
    "wesnoth": "games",
    "python": "python_doc",
    "debian_devref": "debian_devref",
}
ENGLISH = ("", "en", "dev")
"""Languages that are English; documents of the development file are marked by `dev` or `dev_mixed`."""
FOLDS = (
    {"attack", "games", "lynis"},
    {"cwe", "python_doc", "tiger"},
    {"advisories", "gimp", "maxima", "changelogs"},
    {"ssg", "man"},
    {"sigma", "pydoc"},
    {"owasp", "descriptions", "octave", "debconf"},
    {"harden", "tldr", "lilypond"},
    {"bandit", "gnucash", "debian_devref", "sample"},
)
"""Families that are left out together, because many fits take long; it asks more than leaving out one."""


def family_of(source: str) -> str:
    """Return the family of a source of the development file: what has the same origin or the same form."""
    return FAMILY_OF.get(source) or FAMILY_OF.get(source.split("_")[0]) or source.split("_")[0]


def word_prior() -> tuple[npt.NDArray[np.float64], float]:
    """Return the weights of the word lists, before any document is seen."""
    weights = np.zeros(BUCKETS)
    lists = [
        (routing_texts.GENERAL, -1.0),
        (routing_texts.STRONG, 1.3),
        *((terms, -1.0) for terms in routing_texts.GENERAL_ELSEWHERE.values()),
        *((terms, 2.0) for terms in routing_texts.SECURITY_ELSEWHERE.values()),
        (routing_texts.DECISIVE, 3.0),
    ]
    for terms, weight in lists:
        known = [" ".join(term.lower().split()) for term in terms.split(",")]
        words = find_words([("", form) for term in known for form in (term, f"{term}s")])
        for number in range(2 * len(known)):
            mine = np.flatnonzero(words.document == number)
            if len(mine) == 1:
                weights[buckets(words.hashes[mine], WORD_BITS)] = PRIOR * weight
            elif len(mine):
                weights[buckets(words.pairs[mine[:-1]], WORD_BITS)] = PRIOR * weight / (len(mine) - 1)
    return weights, 0.0


def sample_documents() -> list[Labelled]:
    """Return the sample corpus of the package, labelled by its authors' files."""
    found = []
    for path in sorted((SHIPPED.parents[1] / "samples/corpus").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            parts = (
                said["title"].lower(),
                "\n".join([said.get("description", ""), said.get("content", ""), *map(str, said.get("findings", []))]).lower(),
            )
            found.append(Labelled(parts, not path.stem.startswith("general"), f"sample_{path.stem}", "sample", "en"))
    return found


def fitted(terms: Terms, found: Sequence[Labelled], rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], float]:
    chosen = [found[row] for row in rows.tolist()]
    groups = ["en" if entry.language in ENGLISH else "other" for entry in chosen]
    return fit(
        terms.taken(rows),
        np.array([entry.security for entry in chosen]),
        [entry.family for entry in chosen],
        groups=groups,
        emphasis=np.array(
            [EMPHASIS if entry.language.startswith("dev") or entry.family == "sample" else 1.0 for entry in chosen]
        ),
        prior=word_prior(),
    )


def show(name: str, found: Sequence[Labelled], said: npt.NDArray[np.bool_]) -> None:
    truth = np.array([entry.security for entry in found])
    got = figures(truth, said)
    print(f"{name:<44}{len(found):>7}{got.precision:>10.3f}{got.recall:>8.3f}{got.f1:>8.3f}", flush=True)


def show_kinds(name: str, found: Sequence[Labelled], said: npt.NDArray[np.bool_]) -> None:
    show(name, found, said)
    for title, mine in (
        ("  English", lambda entry: entry.language in ENGLISH),
        ("  not English", lambda entry: entry.language not in ENGLISH),
    ):
        rows = [number for number, entry in enumerate(found) if mine(entry)]
        if rows:
            show(title, [found[row] for row in rows], said[rows])


def near_copies(found: Sequence[Labelled], held: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Say which documents share many runs of five words with those that are held out (those themselves included)."""
    runs = word_hashes(["\n".join(entry.parts) for entry in found]).runs(5)
    document = np.repeat(np.arange(len(found)), runs.counts)
    shared = np.isin(runs.hashes, runs.hashes[held[document]])
    return np.asarray(np.bincount(document, shared, len(found)) > NEAR * np.maximum(runs.counts, 1)) | held


def left_out(
    terms: Terms, found: Sequence[Labelled], judged: npt.NDArray[np.bool_], parts: Iterable[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.bool_]:
    """Return decisions of fits that saw nothing of the same part."""
    said = np.zeros(len(found), np.bool_)
    for number, out in enumerate(parts):
        print(f"  fit {number + 1}", file=sys.stderr, flush=True)
        weights, bias = fitted(terms, found, np.flatnonzero(~near_copies(found, out & judged) & ~out))
        rows = np.flatnonzero(out & judged)
        said[rows] = terms.taken(rows).logits(weights, bias) > 0
    return said


@click.command()
@click.argument("dev", type=click.Path(exists=True, path_type=Path))
@click.option("--gathered", type=click.Path(exists=True, path_type=Path), help="Folder that routing_sources.py wrote.")
@click.option("--fit", "out", type=click.Path(path_type=Path), help="Fit on everything and write this file; measure nothing.")
@click.option("--share", default=0.4, help="Share of the gathered documents that the measures fit on.")
def main(dev: Path, gathered: Path | None, out: Path | None, share: float) -> None:
    """Print precision, recall and F1 (security = positive)."""
    ours = [
        replace(entry, family=family_of(entry.source), language="dev_mixed" if entry.source.endswith("_i18n") else "dev")
        for entry in read_labelled([dev], RoleNames())
    ]
    if out is None:
        print(f"{'':<44}{'n':>7}{'precision':>10}{'recall':>8}{'F1':>8}")
        show_kinds(
            "eleven keywords", ours, np.array([any(word in " ".join(entry.parts) for word in KEYWORDS) for entry in ours])
        )
        show_kinds("shipped coefficients (fitted on these too)", ours, says_security(load_coefficients(SHIPPED), ours))
    if gathered is None:
        return
    found = ours + sample_documents() + read_labelled(sorted(gathered.glob("*.jsonl")), RoleNames())
    terms = find_terms([entry.parts for entry in found])
    if out is not None:
        quantized(*fitted(terms, found, np.arange(len(found)))).save(out)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        print(f"{out}: {out.stat().st_size:,} bytes, SHA-256 {digest}, {len(found):,} documents")
        return
    kept = np.random.default_rng(17).random(len(found)) < share
    kept[: len(ours) + len(sample_documents())] = True
    rows = np.flatnonzero(kept)
    measure(terms.taken(rows), [found[row] for row in rows.tolist()], len(ours))


def measure(terms: Terms, found: Sequence[Labelled], count: int) -> None:
    """Print the honest measures; the first `count` documents are those of the development file."""
    judged = np.arange(len(found)) < count
    families = np.array([entry.family for entry in found])
    half = np.random.default_rng(3).integers(0, 2, len(found))
    said = left_out(terms, found, judged, (judged & (half == number) for number in (0, 1)))
    show_kinds("known sources, documents held out", found[:count], said[:count])
    said = left_out(terms, found, np.ones(len(found), np.bool_), (np.isin(families, sorted(fold)) for fold in FOLDS))
    show_kinds("families left out", found[:count], said[:count])
    for family in sorted(set(families[:count])):
        rows = np.flatnonzero(judged & (families == family))
        right = np.mean([said[row] == found[row].security for row in rows])
        print(f"  {family:<20}{len(rows):>5}  {right:.2f} right")
    rows = np.flatnonzero(~judged & np.isin(families, sorted(set().union(*FOLDS))))
    show_kinds("families left out, gathered documents", [found[row] for row in rows], said[rows])


if __name__ == "__main__":
    main()
