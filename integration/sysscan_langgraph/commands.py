"""The verbs that people use: `analyze` a scan report, `chat` with a model.

Only click is imported until a verb runs, so that `--help` answers at once. What a verb finds wrong is a UserError or a
SysscanError, which the command line prints; `analyze --fail-on` has an exit code of its own, `FAILED_ON`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sysscan_langgraph.analysis.records import AnalysisReport
    from sysscan_langgraph.pages import Format
    from sysscan_langgraph.serving import Served

F = TypeVar("F", bound=Callable[..., Any])

FAILED_ON = 3
"""Exit code of `analyze --fail-on` when there is such a finding."""
PACKAGE = Path("models/package")
"""Where `sysscan-models run` puts the package."""
SEVERITIES = ("info", "low", "medium", "high", "critical")
SUFFIXES: Mapping[str, Format] = {".md": "md", ".json": "json", ".html": "html", ".htm": "html", ".txt": "text"}
STDOUT = Path("-")
LATER_STAGES = {"correlate": "asking why findings belong together", "report": "writing the summary"}

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
SEVERITY = click.Choice(SEVERITIES)


def served_by(function: F) -> F:
    """Add the options that say which models answer, and how."""
    options = [
        click.option("--package", "folder", type=FOLDER, help=f"Package with the models (default: {PACKAGE})."),
        click.option("--backend", default="llama_cpp", show_default=True, help="Backend that serves the models."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set an option of the backend; may be repeated."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@served_by
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "json", "html"]),
    help="What is written (default: what the name of --out ends in, else text).",
)
@click.option("--out", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), help="File to write; - for stdout.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=0), help="Findings that the text shows in full.")
@click.option("--min-severity", type=SEVERITY, default="info", show_default=True, help="Least severity to analyse.")
@click.option("--max-findings", type=click.IntRange(min=1), help="Analyse only so many, the most severe ones.")
@click.option(
    "--time-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop in time, and say what is missing.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer about one finding.")
@click.option("--fail-on", type=SEVERITY, help=f"Exit with {FAILED_ON} when a finding is at least so severe.")
@click.option("--checkpoint", type=FILE, help="SQLite file: an analysis that was stopped goes on from there.")
def analyze(report: Path, **options: Any) -> None:
    """Analyse a scan REPORT with the models of a package.

    The summary goes to stdout, progress to stderr. With --out the whole analysis is written to a file: Markdown, JSON, or
    one HTML page that loads nothing from outside.

    \b
    Exit codes:
      0    done
      1    the work failed: not one finding could be analysed
      2    what was asked cannot be done as asked
      3    done, and --fail-on found what it looks for
      130  stopped by Ctrl-C

    --fail-on goes by the worse of what the specialist and the scanner say, so that a weak model hides no finding; one that was
    left out counts with the scanner's severity.
    """
    with _ends_in_words():
        from sysscan_models.scan_report import read_report

        out, form = _destination(options["out"], options["form"], report, options["checkpoint"])
        scanned = read_report(report)
        _encodes_anything()
        analysis = _analysed(scanned, options)
        _deliver(analysis, out, form, options["top"])
        _fail_on(analysis, options["fail_on"])
        _refuse_when_all_failed(analysis)


@click.command()
@click.argument("role")
@served_by
@click.option("--system", help="System prompt, instead of the role's.")
@click.option("--json", "as_json", is_flag=True, help="Begin with answers constrained to the role's JSON schema.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 takes the likeliest token (default: the role's).")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer (default: the role's).")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the sampling.")
def chat(
    role: str, folder: Path | None, backend: str, settings: tuple[str, ...], system: str | None, as_json: bool, **sampling: Any
) -> None:
    """Talk to the model of ROLE, to try it by hand.

    Answers stream as they are written; Ctrl-C stops an answer, Ctrl-D or /quit ends the talk, /help lists the commands.
    Lines that are piped in are asked one after the other, without prompts.
    """
    with _ends_in_words():
        from sysscan_langgraph.dialogue import Dialogue, talk

        _encodes_anything()
        with _served(folder, backend, settings) as models:
            contract = models.role(role)
            dialogue = Dialogue(models.session(role), contract, as_json=as_json, **sampling)
            if system is not None:
                dialogue.system = system
            talk(dialogue)


@contextmanager
def _ends_in_words() -> Iterator[None]:
    """Say what stopped a verb; what the command line itself would say is about `run`, which keeps what it has finished."""
    from sysscan_models.errors import Interrupted, SysscanError

    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SysscanError(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}") from error


def _destination(out: Path | None, form: Format | None, report: Path, checkpoint: Path | None) -> tuple[Path | None, Format]:
    """Return where the analysis goes (None for stdout) and in which format; raise UserError before any work is done in vain."""
    from sysscan_models.artifacts import check_writable
    from sysscan_models.errors import UserError

    chosen = form or (SUFFIXES.get(out.suffix.lower(), "text") if out else "text")
    if out is None and chosen == "html" and sys.stdout is not None and sys.stdout.isatty():
        raise UserError("a page of HTML is not for a terminal; name a file with --out FILE, or ask for it with --out -")
    if out is None or out == STDOUT or _is_stdout(out):
        return None, chosen
    if not out.name:
        raise UserError("--out names no file; expected a path, or - for stdout")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    for what, path in (("the report", report), ("the checkpoint", checkpoint)):
        if path is not None and _same_file(out, path):
            raise UserError(f"--out {out} is {what} itself; choose another file")
    try:
        check_writable(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to: {error.strerror}; choose another place") from error
    return out, chosen


def _is_stdout(path: Path) -> bool:
    """Say whether a path (/dev/stdout, say) leads where stdout does, which then holds what --out asks for and nothing else."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # not there, or a stdout that is none
        return False


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _served(folder: Path | None, backend: str, settings: tuple[str, ...]) -> Served:
    """Open the package; a backend that asks a server needs none."""
    from sysscan_langgraph.serving import serve
    from sysscan_models.errors import UserError
    from sysscan_models.plugins import plugin_manager

    registry = plugin_manager()
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting!r}: expected KEY=VALUE, such as n_ctx=2048")
        options[key.strip()] = value.strip()
    if folder is None and (registry.get("backends", backend).serves_files or PACKAGE.is_dir()):
        folder = PACKAGE
    return serve(folder, backend=backend, registry=registry, **options)


def _analysed(scanned: Any, options: Mapping[str, Any]) -> AnalysisReport:
    from sysscan_models.errors import Interrupted

    _import_langgraph()
    from sysscan_langgraph.analysis.run import analyze as run
    from sysscan_langgraph.analysis.run import identity
    from sysscan_langgraph.interruption import Interruptible

    wanted = {name: options[name] for name in ("min_severity", "max_findings", "time_budget", "max_tokens") if options[name]}
    done: dict[str, int] = {}
    models = Interruptible(_served(options["folder"], options["backend"], options["settings"]))
    try:
        with (
            models,
            models.stopped_by_signal(),
            _checkpointer(options["checkpoint"]) as checkpointer,
            _progress(done) as on_progress,
        ):
            if checkpointer is not None:
                wanted |= {"checkpointer": checkpointer, "thread_id": identity(scanned, models, **wanted)}
            return run(scanned, models, on_progress=on_progress, **wanted)
    except KeyboardInterrupt:
        kept = "the same command goes on from there" if options["checkpoint"] else "with --checkpoint FILE it could go on"
        how_far = (
            f"after {done['done']} of {done['total']} findings" if done.get("done") else "before the first finding was analysed"
        )
        raise Interrupted(f"stopped {how_far}; {kept}") from None


def _import_langgraph() -> None:
    """Import langgraph; 0.6 greets with a warning about itself, which is nothing a user can mend."""
    import warnings

    import langchain_core  # noqa: F401 - it would turn the warning on again

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        import langgraph.graph  # noqa: F401


def _checkpointer(path: Path | None) -> AbstractContextManager[Any]:
    """Open the SQLite file in which LangGraph keeps what is done; nothing without a path."""
    from importlib.util import find_spec

    from sysscan_models.errors import UserError

    if path is None:
        return nullcontext()
    if find_spec("langgraph.checkpoint") is None or find_spec("langgraph.checkpoint.sqlite") is None:
        raise UserError(
            "--checkpoint needs the Python package 'langgraph-checkpoint-sqlite', which is not installed. "
            "Install it with: pip install langgraph-checkpoint-sqlite"
        )
    from sysscan_langgraph.checkpoints import opened

    return opened(path)


@contextmanager
def _progress(latest: dict[str, int]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give the function that shows an analysis at work; `latest` holds what is done of the findings."""
    import time
    from contextlib import ExitStack

    from sysscan_models.progress import Progress

    with ExitStack() as stack:
        bars: list[Progress] = []
        began: list[tuple[float, int]] = []

        def show(step: Mapping[str, Any]) -> None:
            done, total, now = int(step["done"]), int(step["total"]), time.monotonic()
            if step["stage"] == "specialist" and total:
                if not bars:  # how many findings there are is known now
                    bars.append(stack.enter_context(Progress("analyze", total=total, unit="findings")))
                    began.append((now, done))
                latest.update(done=done, total=total)
                new, seconds = done - began[0][1], now - began[0][0]
                bars[0].update(done, **({"findings/s": new / seconds} if new > 0 and seconds > 0 else {}))
            elif bars and not step["done"] and step["stage"] in LATER_STAGES:
                bars[0].note(LATER_STAGES[step["stage"]])

        yield show


def _deliver(analysis: AnalysisReport, out: Path | None, form: Format, top: int) -> None:
    """Write the analysis where it was asked for; a summary goes to the terminal unless stdout is what it was written to."""
    from sysscan_langgraph.pages import render
    from sysscan_models.artifacts import write_atomically
    from sysscan_models.errors import SysscanError
    from sysscan_models.progress import say

    refused: OSError | None = None
    if out is not None:
        try:
            write_atomically(out, render(analysis, form).encode())
            say(f"wrote {out}")
        except OSError as error:
            refused = error  # the summary is worth something without the file
    shown = _text(analysis, top) if out is not None or form == "text" else render(analysis, form)
    try:
        click.echo(shown, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SysscanError(f"the analysis cannot be written to stdout: {error.strerror}") from error
    if refused:
        raise SysscanError(f"--out {out} cannot be written to: {refused.strerror}. Choose another place") from refused


def _text(analysis: AnalysisReport, top: int) -> str:
    """Return the summary as wide and as colourful as stdout is."""
    from rich.console import Console

    from sysscan_langgraph.pages import redacted
    from sysscan_langgraph.pages.summary import as_text

    screen = Console()
    width = min(screen.width, 120) if screen.is_terminal else 100
    return as_text(redacted(analysis), width=width, colour=screen.is_terminal and not screen.no_color, top=top)


def _refuse_when_all_failed(analysis: AnalysisReport) -> None:
    from sysscan_models.errors import SysscanError

    if analysis.analyses:
        return
    if late := [finding for finding in analysis.left_out if finding.reason == "time budget"]:
        raise SysscanError(f"not one of {len(late)} findings could be analysed in time; raise --time-budget")
    if failed := [finding for finding in analysis.left_out if finding.reason == "failed"]:
        reason = analysis.warnings[0].message if analysis.warnings else "no reason was given"
        raise SysscanError(f"not one of {len(failed)} findings could be analysed: {reason}")


def _fail_on(analysis: AnalysisReport, severity: str | None) -> None:
    """End with the exit code for CI when a finding is at least so severe."""
    from sysscan_langgraph.pages import figures, spelling

    found = figures.at_least(analysis, severity) if severity else []
    if found:
        worst, title = found[0]
        counted = spelling.counted(len(found), "finding")
        shown = spelling.one_line(title, 120)
        click.echo(f"--fail-on {severity}: {counted} at least so severe, the worst is {worst}: {shown}", err=True)
        sys.exit(FAILED_ON)


def _encodes_anything() -> None:
    """Let stdout and stderr replace what a terminal of another encoding cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
