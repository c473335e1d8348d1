"""Which role learns from a document, with the reason: labels first, then a linear model on hashed words.

Labels in the data win; then what only the specialist's contract knows; then the user's own words; then the model, whose
coefficients come with the package or from `sysscan-models fit-router`. It has no vocabulary: the terms that explain a decision
are read back from the document. No network, and no torch; numpy is imported when the first document is weighed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from sysscan_models.documents import Document
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Decision, Router

SPECIALIST_LABELS = ("severity", "techniques", "controls")
"""Labels that only a security document carries."""

Term = Annotated[str, Field(pattern=r"\w")]


class RoleNames(BaseModel):
    """What the two kinds of documents are called among the configured roles."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    security: str = Field("specialist", min_length=1)
    """Role that learns from security documents."""
    general: str = Field("generalist", min_length=1)
    """Role that learns from everything else."""


class LinearRouter(Router):
    """Weighs the words of a document, pairs of words and pieces of words; fast, explained, and in many languages."""

    name: ClassVar[str] = "linear"

    threshold: float = Field(0.5, gt=0, lt=1)
    """Probability from which a document counts as a security document; lower sends more to the specialist."""
    allow: tuple[Term, ...] = ()
    """Words or phrases that make a document a security document, whatever else it says."""
    deny: tuple[Term, ...] = ()
    """Words or phrases that make a document a general one, whatever else it says; they win over `allow`."""
    roles: RoleNames = RoleNames()
    """Names of the roles: `security` and `general`."""
    coefficients: str = ""
    """File that `sysscan-models fit-router` wrote; empty for the coefficients of the package."""

    def keyed(self) -> dict[str, Any]:
        """Return what affects the decisions: of the coefficients the digest, not the path."""
        from sysscan_models.routing.coefficients import digest_of

        return {**super().keyed(), "coefficients": digest_of(self._file())}

    def route(self, document: Document) -> Decision:
        """Return the role, how sure the router is (0 at the threshold, 1 beyond doubt) and the terms that decided."""
        return self.route_all([document])[0]

    def route_all(self, documents: Sequence[Document]) -> list[Decision]:
        """Return the decisions for many documents, each as `route` would; some hundreds at once are fastest.

        Raises UserError when the file of coefficients cannot be used.
        """
        from sysscan_models.routing.features import text_parts

        decided = [self._told(document) for document in documents]
        parts = [text_parts(document) if told is None else ("", "") for document, told in zip(documents, decided, strict=True)]
        if self.allow or self.deny:
            decided = [told or self._ruled(f"{title}\n{rest}") for told, (title, rest) in zip(decided, parts, strict=True)]
        open_parts = [part for part, told in zip(parts, decided, strict=True) if told is None]
        weighed = iter(self._weighed(open_parts))
        return [told or next(weighed) for told in decided]

    def _told(self, document: Document) -> Decision | None:
        """Return what the document's labels say."""
        if document.role:
            return Decision(document.role, 1.0, ("label: role",))
        if document.labels and (
            known := [label for label in SPECIALIST_LABELS if document.labels.get(label) not in (None, "", [], ())]
        ):
            return Decision(self.roles.security, 1.0, tuple(f"label: {label}" for label in known))
        return None

    def _ruled(self, text: str) -> Decision | None:
        """Return what the user's own words say."""
        for terms, role, what in ((self.deny, self.roles.general, "deny"), (self.allow, self.roles.security, "allow")):
            if terms and (found := _any_of(terms).search(text)):
                return Decision(role, 1.0, (f"{what}: {found[0]}",))
        return None

    def _weighed(self, parts: Sequence[tuple[str, str]]) -> list[Decision]:
        import numpy as np

        from sysscan_models.routing.coefficients import load_coefficients
        from sysscan_models.routing.features import batches

        coefficients = load_coefficients(self._file())
        decisions = []
        for batch in batches(parts):
            weighed = coefficients.weigh(batch)
            probabilities = 1 / (1 + np.exp(-np.clip(weighed.logits, -30, 30)))
            security = probabilities >= self.threshold
            room = np.where(security, 1 - self.threshold, self.threshold)
            scores = np.minimum(np.abs(probabilities - self.threshold) / room, 1.0).tolist()
            names = np.where(security, self.roles.security, self.roles.general).tolist()
            reasons = weighed.terms(security)
            decisions += [
                Decision(name, score, terms or ("no terms",)) for name, score, terms in zip(names, scores, reasons, strict=True)
            ]
        return decisions

    def _file(self) -> Path:
        from sysscan_models.routing.coefficients import SHIPPED

        return Path(self.coefficients).expanduser() if self.coefficients else SHIPPED


@lru_cache(maxsize=16)
def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    phrases = (r"\s+".join(map(re.escape, term.lower().split())) for term in sorted(terms, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)")


@hookimpl
def sysscan_register_routers() -> Sequence[type[Router]]:
    """Return the router that comes with the package."""
    return [LinearRouter]
