"""What may be wrong with this machine, and what to do about it: the troubleshooting of the original, as checks.

Works without a configuration and without any extra. The hub is asked only when the user says so; else the checks say that they
did not ask, and never that a token is bad. A token is never shown, stored, or sent to anything but the hub.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from sysscan_models.config import FILE_NAME, RunConfig, load_config
from sysscan_models.doctor import hardware, hub, installation
from sysscan_models.doctor.checks import Check
from sysscan_models.errors import SysscanError
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.prompts import redact
from sysscan_models.terminal import printable

__all__ = ["Check", "as_text", "examine"]


def examine(config_path: Path | None, recipe: str, overrides: Sequence[str], *, online: bool) -> list[Check]:
    """Return all checks; with `online` the hub is asked about the token and the models. What it finds is never raised."""
    checks = [installation.python()]
    registry, found = _plugins()
    config, told = _configuration(registry, config_path, recipe, overrides)
    checks += [*found, told, *installation.extras(config), installation.llama_cpp(config)]
    checks += [hardware.accelerator(config), hardware.tpu(config), hardware.processor(config), hardware.threads()]
    checks += _resources(config, registry)
    checks += hub.token(config)
    return checks + (list(hub.ask(config)) if online else [hub.not_asked()])


def as_text(checks: Sequence[Check], width: int = 110) -> str:
    """Return a line for each check (verdict, name, what was found), below it what to do, and the counts; wrapped at `width`."""
    wide = max((len(check.name) for check in checks), default=0)
    rows: list[str] = []
    for check in checks:
        head, rest = f"{check.verdict:<4}  {check.name:<{wide}}  ", " " * (wide + 8)
        paragraphs = [*check.found.splitlines(), *(f"-> {line}" for line in check.advice.splitlines())]
        for number, paragraph in enumerate(paragraphs or [""]):
            rows += textwrap.wrap(
                paragraph,
                max(width, wide + 30),
                initial_indent=rest if number else head,
                subsequent_indent=rest,
                break_on_hyphens=False,
            )
    counts = (f"{sum(check.verdict == verdict for check in checks)} {verdict}" for verdict in ("ok", "warn", "fail"))
    return printable(redact("\n".join([*rows, ", ".join(counts)])))


def _plugins() -> tuple[Registry | None, list[Check]]:
    """Return what is registered, and a check for each plugin that is broken."""
    try:
        registry = plugin_manager()
    except SysscanError as error:
        return None, [Check("plugins", "fail", str(error), "Uninstall or correct that plugin; nothing runs before")]
    broken = [
        Check(
            f"plugin {plugin.name}",
            "warn",
            f"broken: {plugin.reason}",
            plugin.advice or "`sysscan-models plugins --traceback` shows where",
        )
        for plugin in registry.broken
    ]
    return registry, broken or [Check("plugins", "ok", "all that are installed can be imported")]


def _configuration(
    registry: Registry | None, path: Path | None, recipe: str, overrides: Sequence[str]
) -> tuple[RunConfig | None, Check]:
    source = f"recipe {recipe}" if recipe else str(path or FILE_NAME)
    if not path and not recipe and not Path(FILE_NAME).exists():
        advice = "`sysscan-models init` writes one, `--recipe NAME` uses a shipped one; the machine is checked all the same"
        return None, Check("configuration", "warn", f"there is no {FILE_NAME} in this folder", advice)
    if registry is None:
        return None, Check("configuration", "warn", f"{source} was not read: the plugins come first")
    try:
        config = load_config(path, recipe=recipe, overrides=overrides, registry=registry)
    except SysscanError as error:
        return None, Check("configuration", "fail", str(error), "Correct it; `sysscan-models config schema` lists every key")
    return config, Check("configuration", "ok", f"{source}: roles {', '.join(config.roles)}, device {config.device}")


def _resources(config: RunConfig | None, registry: Registry | None) -> Iterator[Check]:
    """Yield memory and disk, and with a configuration what its run needs of them, as the plan says it."""
    yield hardware.memory()
    yield hardware.disk(config.models_dir if config else Path.cwd())
    if config is None:
        return
    from sysscan_models import planning
    from sysscan_models.pipeline import Pipeline

    try:
        priced = planning.price(Pipeline(config, registry))
    except SysscanError as error:
        yield Check("plan", "warn", f"the run could not be priced: {error}")
        return
    for line in priced.lines:
        verdict = "fail" if line.verdict == "refuse" else line.verdict
        needs = f"needs {line.needs}; here: " if line.needs != "-" else ""
        yield Check(f"plan: {line.subject}", verdict, f"{line.what}: {needs}{line.here}", line.advice)
