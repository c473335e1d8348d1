"""Checks of what is installed: Python, the extras, and whether llama.cpp works. Nothing heavy is imported here."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from sysscan_models import machine
from sysscan_models.config import RunConfig
from sysscan_models.doctor.checks import Check, Verdict

DISTRIBUTION = "sysscan-models"
FIRST, LAST = (3, 10), (3, 13)
"""Versions of Python that this package declares."""

PURPOSE = {
    "train": "train and merge",
    "gguf": "export and quantize",
    "langgraph": "serve in LangGraph",
    "tpu": "train on a TPU",
    "demo": "use the embedded base model",
    "testing": "test plugins with the stubs",
}

_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?[^;]*;.*\bextra\s*==\s*["']([\w-]+)["']""")
_LLAMA_CPP = "import llama_cpp; print(llama_cpp.__version__, bool(llama_cpp.llama_supports_gpu_offload()))"


def python() -> Check:
    """Check the version of Python."""
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    if not FIRST <= sys.version_info[:2] <= LAST:
        wanted = f"{'.'.join(map(str, FIRST))} to {'.'.join(map(str, LAST))}"
        return Check("python", "fail", found, f"Use Python {wanted}")
    if platform.system() != "Linux":
        return Check("python", "warn", found, "Only Linux is tested")
    return Check("python", "ok", found)


def needed_extras(config: RunConfig | None) -> set[str]:
    """Return the extras that the bundled backends of a configuration need; strangers' backends bring their own."""
    if config is None:
        return set()
    needed = {"tpu"} if config.device == "tpu" else set()
    for part in config.roles.values():
        if type(part.trainer).__module__.startswith("sysscan_plugins."):
            needed.add("train")
        if type(part.quantizer).__module__.startswith("sysscan_plugins."):
            needed.add("gguf")
        if part.base.startswith("embedded:"):
            needed.add("demo")
    return needed


def extras(config: RunConfig | None) -> Iterator[Check]:
    """Yield for each extra whether it is installed, or what to install."""
    needed = needed_extras(config)
    for extra, packages in _packages_by_extra().items():
        name, install = f"extra {extra}", f"pip install 'sysscan-models[{extra}]'"
        installed = {package: machine.version(package) for package in packages}
        missing = [package for package, version in installed.items() if not version]
        purpose = PURPOSE.get(extra, "use it")
        if not missing:
            yield Check(name, "ok", ", ".join(f"{package} {version}" for package, version in installed.items()))
        elif extra in needed:
            yield Check(name, "fail", f"this configuration needs it; missing: {', '.join(missing)}", install)
        else:
            found = "not installed" if len(missing) == len(packages) else f"missing: {', '.join(missing)}"
            yield Check(name, "ok", f"{found} (not needed here)", f"To {purpose}: {install}")


def _packages_by_extra() -> dict[str, list[str]]:
    """Return the packages of each extra, as the metadata of this distribution lists them."""
    found: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return found
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match[1] != DISTRIBUTION and match[2] != "all":
            found.setdefault(match[2], []).append(match[1])
    return found


def llama_cpp(config: RunConfig | None, seconds: float = 60) -> Check:
    """Check in a process of its own, which may crash or hang, that llama.cpp can be loaded."""
    name, version = "llama.cpp", machine.version("llama-cpp-python")
    if not version:
        verdict: Verdict = "fail" if "gguf" in needed_extras(config) else "ok"
        return Check(
            name, verdict, "llama-cpp-python is not installed", "To quantize or serve: pip install 'sysscan-models[gguf]'"
        )
    rebuild = "Build it for this machine: pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    command = [sys.executable, "-c", _LLAMA_CPP]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603 - our own words
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"llama-cpp-python {version} did not load within {seconds:g} s", rebuild)
    except OSError as error:
        return Check(name, "warn", f"llama-cpp-python {version} could not be tried: {error}")
    if done.returncode < 0:
        reason = f"importing it ends with {signal.Signals(-done.returncode).name}"
        hint = " (built for another processor)" if -done.returncode == signal.SIGILL else ""
        return Check(name, "fail", f"llama-cpp-python {version}: {reason}{hint}", rebuild)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(name, "fail", f"llama-cpp-python {version} cannot be imported: {reason}", rebuild)
    offload = done.stdout.strip().endswith("True")
    return Check(name, "ok", f"llama-cpp-python {version} works, {'with' if offload else 'without'} GPU offload")
