"""The errors that a user meets, and the exit code that each ends the program with.

Every message says what was wrong, what was found, what was expected and what to do next. The command line prints it
without a traceback; a traceback is for faults of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SysscanError(Exception):
    """The work failed: a disk is full, a file is damaged, a loss is not finite. Exit code 1."""

    exit_code = 1


class UserError(SysscanError):
    """What the user asked cannot be done as asked: a wrong path, option, name or value. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration is wrong; ``faults`` lists everything that is, not just the first."""

    def __init__(self, faults: Iterable[str], source: str = "the configuration") -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class DataError(UserError):
    """The data cannot be used: a damaged archive, no usable document, labels that are all masked."""


class MissingExtra(UserError):
    """A library is not installed that one of the extras brings."""

    def __init__(self, what: str, module: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the Python package {module!r}, which is not installed. "
            f"Install it with: pip install 'sysscan-models[{extra}]'"
        )
        self.module, self.extra = module, extra


class IntegrityError(SysscanError):
    """A file is not what its record says: another size, another hash, or missing."""


class Interrupted(SysscanError):
    """The user stopped the work (Ctrl-C or SIGTERM); what was done is kept and `run` goes on from there."""

    exit_code = 130


def unknown_name(kind: str, got: str, valid: Iterable[str]) -> str:
    """Return the message for a name that nobody registered, with the valid choices and the closest one."""
    choices = sorted(valid)
    close = get_close_matches(got, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {got!r}.{hint} Valid choices: {', '.join(choices) or 'none are registered'}"
