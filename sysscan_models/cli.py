"""The command line. Each verb does one stage from the artifacts before it; `run` does what is missing.

Only click is imported until a verb runs, so that `--help` answers at once and needs none of the heavy libraries.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sysscan_models import processes

if TYPE_CHECKING:
    from sysscan_models.config import RunConfig
    from sysscan_models.pipeline import Pipeline

F = TypeVar("F", bound=Callable[..., Any])

EXISTING = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


_TOGETHER = ("train", "plan", "doctor", "config", "plugins")
"""What several processes may do at once; all else would write the same files several times."""
COMMANDS = "sysscan_models.commands"
"""Entry point group of verbs that other packages add: name -> click command."""


class _Group(click.Group):
    """Lists the verbs in the order of the work, not of the alphabet; those of other packages after `ask`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = list(self.commands)
        place = own.index("ask") + 1
        return [*own[:place], *(name for name in self._installed if name not in self.commands), *own[place:]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if found := super().get_command(ctx, cmd_name):
            return found
        return self._load(cmd_name) if cmd_name in self._installed else None

    @cached_property
    def _installed(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {point.name: point for point in sorted(entry_points(group=COMMANDS))}

    def _load(self, name: str) -> click.Command:
        """Return an installed verb; one that cannot be imported is listed and says why when it is called."""
        point = self._installed[name]
        try:
            command = point.load()
            if isinstance(command, click.Command):
                return command
            reason = f"expected a click command, found {type(command).__name__}"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may fail in any way
            reason = f"{type(error).__name__}: {error}"

        def refuse(**_: object) -> None:
            raise click.ClickException(f"the command {name!r} ({point.value}) cannot be used: {reason}")

        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        return click.Command(name, callback=refuse, help="(broken)", context_settings=settings)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sysscan-models")
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune, quantize, package and check the models of Sys-Scan-Graph.

    \b
    sysscan-models init --recipe demo    write a configuration
    sysscan-models plan                  what it will cost
    sysscan-models run                   archive -> two verified GGUF models
    """
    if processes.count() > 1 and context.invoked_subcommand not in _TOGETHER:
        from sysscan_models.errors import UserError

        raise UserError(
            f"`{context.invoked_subcommand}` was started in {processes.count()} processes (WORLD_SIZE), but only training is "
            f"divided among processes. Prepare with one (`sysscan-models prepare`), start `sysscan-models train ROLE` in "
            f"several, and then `run` in one again: it goes on from there"
        )


def main() -> None:
    """Run the command line; a user's mistake ends with one message and exit code 2, failed work with 1, Ctrl-C with 130."""
    from sysscan_models.errors import SysscanError

    # stop as cleanly as on Ctrl-C; not SIGINT's own handler, which is `ignore` in the background of a script
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if processes.number():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process is
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SysscanError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; say nothing more
        sys.exit(141)
    except OSError as error:
        _say_error(_system_refusal(error))
        sys.exit(SysscanError.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("stopped; what `sysscan-models run` has finished is kept, and it goes on from there", err=True)
        sys.exit(130)


def _say_error(message: str) -> None:
    """Print an error's message, which may quote documents, archives and the configuration."""
    from sysscan_models.prompts import redact
    from sysscan_models.terminal import printable

    label = f"error in process {processes.number()}:" if processes.number() else "error:"
    click.echo(f"{click.style(label, fg='red', bold=True)} {printable(redact(message))}", err=True)


def _system_refusal(error: OSError) -> str:
    """Return in words what the operating system refused; disks fill up and permissions lack wherever files are touched."""
    import errno

    place = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "Free some space, or set models_dir to a larger file system",
        errno.EDQUOT: "Free some of your quota, or set models_dir elsewhere",
        errno.EACCES: "Give yourself the permission, or choose another place",
        errno.EPERM: "Give yourself the permission, or choose another place",
        errno.EROFS: "Choose a place that can be written to",
    }.get(error.errno or 0, "Look at what is there")
    reason = error.strerror or f"{type(error).__name__}: {error}"
    return f"{place}{reason}. {advice}; what was finished is kept, and the same command goes on from there"


def configured(function: F) -> F:
    """Add the options that choose and change the configuration."""
    options = [
        click.option("-c", "--config", type=FILE, help="Configuration file (default: sysscan-models.toml here)."),
        click.option("--recipe", default="", help="Use a shipped recipe instead of a file."),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key; may be repeated."),
        click.option("--offline", is_flag=True, help="Forbid the network altogether."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def load(config: Path | None, recipe: str, overrides: tuple[str, ...], offline: bool) -> RunConfig:
    """Return the resolved configuration that the options of `configured` ask for."""
    from sysscan_models.config import load_config
    from sysscan_models.errors import UserError

    if config and recipe:
        raise UserError(f"--config {config} and --recipe {recipe} are both given; choose one of the two")
    return load_config(config, recipe=recipe, overrides=(*overrides, *(["offline=true"] if offline else [])))


def pipeline(**options: Any) -> Pipeline:
    """Return the pipeline of the configuration that the options of `configured` ask for."""
    from sysscan_models.pipeline import Pipeline

    return Pipeline(load(**options))


@cli.command()
@click.argument("folder", type=FOLDER, default=".")
@click.option("--recipe", default="demo", show_default=True, help="Shipped recipe to start from.")
@click.option("--force", is_flag=True, help="Overwrite a configuration that is there.")
def init(folder: Path, recipe: str, force: bool) -> None:
    """Write a configuration to start from into FOLDER."""
    from sysscan_models.artifacts import write_atomically
    from sysscan_models.config import FILE_NAME, recipe_text
    from sysscan_models.errors import UserError

    text, path = recipe_text(recipe), folder / FILE_NAME
    if path.exists() and not force:
        raise UserError(f"{path} exists; --force overwrites it")
    write_atomically(path, text.encode())
    where = "" if folder == Path() else f" -c {path}"
    click.echo(f"wrote {path}. Next: sysscan-models plan{where}, then sysscan-models run{where}")


@cli.command()
@configured
@click.option("--on", default="", metavar="MACHINE", help="Plan for another machine: v5e-8, 'A100 80 GB', '4x H100 80 GB'.")
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")
def plan(on: str, as_json: bool, **options: Any) -> None:
    """Price a whole run before it starts: disk, memory, tokens, steps."""
    from sysscan_models import planning

    price = planning.price(pipeline(**options), on=on)
    click.echo(planning.as_json(price) if as_json else planning.as_text(price))
    planning.refuse(price)


@cli.command()
@configured
@click.option("--online", is_flag=True, help="Ask the hub whether the token and the models are accessible.")
def doctor(online: bool, **options: Any) -> None:
    """Check this machine: token, accelerator, disk, memory, extras."""
    from sysscan_models import doctor as diagnosis

    checks = diagnosis.examine(
        options["config"], options["recipe"], options["overrides"], online=online and not options["offline"]
    )
    click.echo(diagnosis.as_text(checks))
    if any(check.verdict == "fail" for check in checks):
        sys.exit(1)


@cli.command()
@click.argument("archive", type=EXISTING, required=False)
@click.option("--out", type=FOLDER, help="Where the splits go (default: data); with ARCHIVE no configuration is needed.")
@click.option("--strict", is_flag=True, help="Fail when any record had to be set aside.")
@configured
def prepare(archive: Path | None, out: Path | None, strict: bool, **options: Any) -> None:
    """Turn an archive into train, valid and test splits per role."""
    from sysscan_models import splits
    from sysscan_models.errors import UserError
    from sysscan_models.pipeline import Pipeline
    from sysscan_models.splits import report as split_report

    if archive is None:
        if out is not None:
            raise UserError("--out needs an ARCHIVE; without one, the configuration says where the splits go")
        made = Pipeline(load(**options)).prepare()
    else:
        config = _optional_config(options)
        made = splits.prepare_plain(archive, out or Path("data"), config=config, allow_empty=not _is_configured(options))
    root = next(iter(made.values())).root.parent
    click.echo(split_report.report_text(root))
    if strict and (count := split_report.set_aside_count(root)):
        raise UserError(f"{count} records were set aside (--strict); {root / 'set_aside.jsonl'} lists them")


def _optional_config(options: dict[str, Any]) -> RunConfig | None:
    """Return the configuration that is asked for or lies here; else None, or every default but what `--set` changes."""
    if _is_configured(options):
        return load(**options)
    if not options["overrides"]:
        return None
    from sysscan_models.config import plain_config

    return plain_config(options["overrides"])


def _is_configured(options: dict[str, Any]) -> bool:
    from sysscan_models.config import FILE_NAME

    return bool(options["config"] or options["recipe"]) or Path(FILE_NAME).exists()


@cli.command()
@click.argument("target", metavar="FILE|ID")
@click.option("--limit", type=click.IntRange(1), default=5, show_default=True, help="Records of FILE that are told.")
@click.option("--record", type=click.IntRange(1), help="Only this record of FILE, counted from 1.")
@click.option("--data", type=FOLDER, help="Folder that `prepare` wrote (default: the configuration's, or data).")
@click.option("--archive", type=EXISTING, help="Where ID is read again (default: the configuration's archive).")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@configured
def inspect(
    target: str, limit: int, record: int | None, data: Path | None, archive: Path | None, as_json: bool, **options: Any
) -> None:
    """Explain the way of a document: what was read, redacted, judged, and where it went and why."""
    from sysscan_models.splits.inspection import inspect_target

    config = _optional_config(options)
    click.echo(
        inspect_target(target, config=config, data=data, archive=archive, limit=limit, record=record or 0, as_json=as_json)
    )


@cli.command("fit-router")
@click.argument("labels", nargs=-1, required=True, type=EXISTING)
@click.option("--out", required=True, type=FILE, help="File to write, such as my_router.npz.")
@click.option(
    "--from",
    "start",
    type=click.Choice(["shipped", "nothing"]),
    default="shipped",
    show_default=True,
    help="What the labels refine: the coefficients of the package, or nothing.",
)
@click.option("--security-role", default="specialist", show_default=True, help="Role of security documents in the data.")
@click.option("--general-role", default="generalist", show_default=True, help="Role of all others.")
def fit_router(labels: tuple[Path, ...], out: Path, start: str, security_role: str, general_role: str) -> None:
    """Fit the router on LABELS: JSON Lines with title, description, content, findings and label (security or general).

    Prints precision, recall and F1 on documents that were not fitted on; sources are kept whole when there are several.
    """
    from sysscan_models.routing import RoleNames
    from sysscan_models.routing.refinement import fit_and_save

    roles = RoleNames(security=security_role, general=general_role)
    click.echo(fit_and_save(labels, out, roles, from_shipped=start == "shipped"))


@cli.command()
@click.argument("role")
@configured
def fetch(role: str, **options: Any) -> None:
    """Bring the base model of ROLE into the models folder."""
    base = pipeline(**options).fetch(role)
    click.echo(f"{role}: {base.reference} {base.revision} ({base.licence}) in {base.root}")


@cli.command()
@click.argument("role")
@configured
def train(role: str, **options: Any) -> None:
    """Fine-tune the base model of ROLE; goes on where it stopped."""
    checkpoint = pipeline(**options).train(role)
    click.echo(
        f"{role}: {checkpoint.kind} checkpoint after {checkpoint.steps} steps, validation loss "
        f"{_figure(checkpoint.first_valid_loss)} -> {_figure(checkpoint.final_valid_loss)}, in {checkpoint.root}"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@cli.command()
@click.argument("role", required=False)
@click.option("--base", type=FOLDER, help="Base model folder; with --adapter and --out no configuration is needed.")
@click.option("--adapter", type=FOLDER, help="Adapter folder in peft's layout.")
@click.option("--out", type=FOLDER, help="Folder of the merged model.")
@click.option("--trainer", default="lora", show_default=True, help="Trainer whose merge is used for plain folders.")
@configured
def merge(role: str | None, base: Path | None, adapter: Path | None, out: Path | None, trainer: str, **options: Any) -> None:
    """Merge adapters into their base: of ROLE, or plain folders."""
    from sysscan_models.artifacts import BaseCheckpoint, Checkpoint
    from sysscan_models.errors import UserError
    from sysscan_models.plugins import plugin_manager

    if role and (base or adapter or out):
        raise UserError("merge takes a ROLE of the configuration, or --base DIR --adapter DIR --out DIR, not both")
    if role:
        click.echo(f"{role}: complete model in {pipeline(**options).merge(role).root}")
        return
    if not (base and adapter and out):
        raise UserError("merge takes a ROLE of the configuration, or --base DIR --adapter DIR --out DIR")
    merger = plugin_manager().get("trainers", trainer)()
    merged = merger.merge(Checkpoint(kind="adapter").at(adapter), BaseCheckpoint(reference=base.name).at(base), out)
    merged.save(out)
    click.echo(f"complete model in {out}")


@cli.command()
@click.argument("role")
@configured
def quantize(role: str, **options: Any) -> None:
    """Export the complete model of ROLE to GGUF and quantize it."""
    click.echo(_model_line(pipeline(**options).quantize(role)))


@cli.command()
@click.argument("hf_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=FILE)
@click.option(
    "--type", "quantization", default="Q4_K_M", show_default=True, help="Type by llama.cpp's name, F32 and BF16 included."
)
@click.option("--max-shard-size", default="", help="Split into shards of at most this size, such as 4GB.")
@click.option("--imatrix", type=EXISTING, help="Importance matrix file of llama.cpp.")
@click.option("--quantizer", default="gguf", show_default=True, help="Quantizer plugin to use.")
def export(hf_dir: Path, out: Path, quantization: str, max_shard_size: str, imatrix: Path | None, quantizer: str) -> None:
    """Export a Hugging Face folder to a GGUF file."""
    from pydantic import ValidationError

    from sysscan_models.artifacts import MergedCheckpoint
    from sysscan_models.config import in_words
    from sysscan_models.errors import UserError
    from sysscan_models.plugins import plugin_manager

    if out.suffix != ".gguf":
        raise UserError(f"{out} cannot be the GGUF model; expected the name of a file that ends in .gguf")
    asked = {"type": quantization, "max_shard_size": max_shard_size, "imatrix": str(imatrix) if imatrix else ""}
    chosen = plugin_manager().get("quantizers", quantizer)
    try:
        backend = chosen.model_validate({key: value for key, value in asked.items() if value})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {in_words(fault, chosen)}" for fault in error.errors())
        raise UserError(f"quantizer {quantizer!r}: {'; '.join(faults)}") from error
    click.echo(_model_line(backend.quantize(MergedCheckpoint().at(hf_dir), out).save(out)))


def _model_line(model: Any) -> str:
    size = sum(record.size for record in model.files.values())
    shares = ", ".join(f"{kind} {count / max(model.parameters, 1):.0%}" for kind, count in model.weights_by_type.items())
    return "\n".join([f"{model.path}: {model.type}, {size / 1e6:.0f} MB, weights {shares}", *model.notes])


@cli.command()
@click.option("--specialist", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="GGUF of the specialist.")
@click.option("--generalist", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="GGUF of the generalist.")
@click.option("--model", "models", multiple=True, metavar="ROLE=FILE", help="GGUF of any role; may be repeated.")
@click.option("--out", type=FOLDER, help="Package folder; with models given no configuration is needed.")
@configured
def package(
    specialist: Path | None, generalist: Path | None, models: tuple[str, ...], out: Path | None, **options: Any
) -> None:
    """Package the quantized models with manifest and model card."""
    from sysscan_models import packaging
    from sysscan_models.errors import UserError

    given = {"specialist": specialist, "generalist": generalist}
    files = {role: file for role, file in given.items() if file}
    for model in models:
        role, _, file = model.partition("=")
        if not (role and file):
            raise UserError(f"--model {model!r}: expected ROLE=FILE, such as specialist=specialist_model_q4km.gguf")
        if role in files:
            raise UserError(f"two models are given for {role}: {files[role]} and {file}; a package holds one of each role")
        files[role] = Path(file)
    if files and not out:
        raise UserError("package with given models needs --out DIR")
    if out and not files:
        raise UserError("--out needs models: --specialist FILE, --generalist FILE or --model ROLE=FILE")
    made = packaging.package_files(files, out) if out else pipeline(**options).package()
    click.echo(f"package with {', '.join(made.models)} in {made.root}")


@cli.command()
@configured
@click.option("--force", is_flag=True, help="Run although the plan says that it cannot fit.")
def run(force: bool, **options: Any) -> None:
    """Do all that is missing, from archive to verified package."""
    from sysscan_models import packaging, planning, samples
    from sysscan_models.progress import say

    work = pipeline(**options)
    price = planning.price(work)
    say(planning.as_text(price))
    if not force:
        planning.refuse(price)
    made = work.run()
    verification = packaging.verify(made.root)
    click.echo(verification.as_text())
    if not verification.ok:
        sys.exit(1)
    if work.config.package.sample_findings:
        click.echo(samples.before_and_after(work, count=work.config.package.sample_findings))
    click.echo("\n" + "\n".join(f"{what:25} {path}" for what, path in work.results().items()))


@cli.command()
@click.argument("folder", type=EXISTING)
def verify(folder: Path) -> None:
    """Check every file of a package against its manifest."""
    from sysscan_models import packaging

    result = packaging.verify(folder)
    click.echo(result.as_text())
    if not result.ok:
        sys.exit(1)


@cli.command()
@click.argument("role")
@click.argument("question", required=False)
@click.option("--package", "folder", type=FOLDER, default="models/package", show_default=True, help="Package to ask.")
@click.option(
    "--report",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Scan report (schema v2) to take findings from.",
)
@click.option("--finding", "finding_id", help="Id of the finding to ask about; default: the most severe ones.")
@click.option("--count", default=1, show_default=True, help="How many findings to ask about.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@click.option("--constrained", is_flag=True, help="Constrain the answer to the role's JSON schema.")
@click.option("--backend", default="llama_cpp", show_default=True, help="Backend that serves the model.")
def ask(role: str, question: str | None, **options: Any) -> None:
    """Ask ROLE a QUESTION, or about findings of a scan report."""
    from sysscan_models import samples

    for answer in samples.ask(role, question, **options):
        click.echo(answer)


@cli.command()
@click.option("--traceback", "with_traceback", is_flag=True, help="Show the tracebacks of broken plugins.")
def plugins(with_traceback: bool) -> None:
    """List roles, trainers and all other plugins, broken ones too."""
    from sysscan_models import plugins as plugin

    click.echo(plugin.as_text(plugin.plugin_manager(), with_traceback=with_traceback))


@cli.group("config")
def configuration() -> None:
    """Show the resolved configuration, its schema, the recipes."""


@configuration.command("show")
@configured
def config_show(**options: Any) -> None:
    """Print the resolved configuration, every default filled in."""
    import tomli_w

    click.echo(tomli_w.dumps(load(**options).table()), nl=False)


@configuration.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    import json

    from sysscan_models.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@configuration.command("recipes")
def config_recipes() -> None:
    """List the shipped recipes."""
    from sysscan_models.config import recipe_text, recipes

    for name in recipes():
        click.echo(f"{name:12} {recipe_text(name).splitlines()[0].lstrip('# ')}")
