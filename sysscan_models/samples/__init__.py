"""Trying models out: the sample scan report, questions to a package, and base against tuned model.

Findings become prompts by the same code as in training (`prompts.conversation`), and models are opened through the registered
backends; nothing here imports one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sysscan_models.documents import Document
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Backend
from sysscan_models.samples.answers import Answer, answers
from sysscan_models.samples.sample import sample_report
from sysscan_models.scan_report import document, findings, read_report
from sysscan_models.terminal import printable

if TYPE_CHECKING:
    from sysscan_models.pipeline import Pipeline
    from sysscan_models.plugins import Registry

__all__ = ["Answer", "answers", "ask", "before_and_after", "document", "findings", "printable", "read_report", "sample_report"]

_SHOWN = 12
"""Ids that an error about an unknown one lists."""


def ask(
    role: str,
    question: str | None,
    *,
    folder: Path,
    report: Path | None = None,
    finding_id: str | None = None,
    count: int = 1,
    max_tokens: int | None = None,
    constrained: bool = False,
    backend: str = "llama_cpp",
    registry: Registry | None = None,
) -> Iterator[str]:
    """Ask a packaged model a question, or about findings of a report, and yield each answer as text for a terminal.

    Without a report the sample report is taken; without `finding_id`, its `count` most severe findings. Raises UserError when
    there is no such package, role, backend or finding, and when both a question and findings are asked for.
    """
    from sysscan_models.packaging import load_package
    from sysscan_models.plugins import plugin_manager

    documents = _asked(question, report, finding_id, count)
    registry = registry or plugin_manager()
    server: Backend = registry.get("backends", backend)()
    model = load_package(folder, registry=registry)[role]
    with server.open(model) as session:
        given = answers(session, model.role, documents, max_tokens=max_tokens, constrained=constrained)
        for answer in _in_order(given, documents):
            yield "\n".join([f"# {answer.heading()}", answer.body(), f"({answer.verdict()})", ""])


def _in_order(given: Iterator[Answer], documents: Sequence[Document]) -> Iterator[Answer]:
    """Yield answers in the order of their documents, each as soon as those before it are there."""
    places = {id(document): place for place, document in enumerate(documents)}
    waiting: dict[int, Answer] = {}
    following = 0
    for answer in given:
        waiting[places[id(answer.document)]] = answer
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def before_and_after(pipeline: Pipeline, *, count: int) -> str:
    """Return base and tuned model's answers about `count` findings in two columns; see `comparison.before_and_after`."""
    from sysscan_models.samples import comparison

    return comparison.before_and_after(pipeline, count=count)


def _asked(question: str | None, report: Path | None, finding_id: str | None, count: int) -> list[Document]:
    """Return what to ask about."""
    if question is not None and (report or finding_id is not None):
        raise UserError("ask takes a QUESTION, or findings (--report, --finding), not both")
    if question is not None:
        if not question.strip():
            raise UserError("the QUESTION is empty; ask something, or leave it out to ask about findings")
        return [Document(id="question", title=question)]
    if count < 1:
        raise UserError(f"--count {count}: expected 1 or more")
    found = findings(read_report(report) if report else sample_report())
    if not found:
        raise UserError(f"{report} holds no findings; there is nothing to ask about")
    if finding_id is None:
        return [document(finding) for finding in found[:count]]
    chosen = [finding for finding in found if str(finding.get("id", "")) == finding_id]
    if not chosen:
        ids = [printable(str(finding.get("id", ""))) for finding in found]
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        raise UserError(f"no finding {finding_id!r} in the report; it has {', '.join(ids[:_SHOWN])}{more}")
    return [document(finding) for finding in chosen]
