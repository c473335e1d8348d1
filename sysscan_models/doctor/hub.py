"""Checks of the Hugging Face token, and, when asked to, of what the hub says about it and about the models.

A token is read to be described (where it comes from, its length, its prefix) and to be sent to the hub. No text of a check
holds it, nor what the hub or a library said in an error, for that may repeat it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sysscan_models.config import RunConfig
from sysscan_models.doctor.checks import Check, Verdict
from sysscan_models.errors import UserError

VARIABLES = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where a token is looked for, in this order, before the login file; the last is an old name that huggingface_hub reads."""
ORIGINAL_MODELS = ("meta-llama/Meta-Llama-3-8B", "mistralai/Mixtral-8x7B-Instruct-v0.1")
"""Models of the recipes for large machines; the hub is asked about them when there is no configuration."""
SETTINGS = "https://huggingface.co/settings/tokens"

_USUAL = re.compile(r"hf_[A-Za-z0-9]{30,}")
_PLACEHOLDER = re.compile(r"your|token|here|xxx|<|\.\.\.|example", re.IGNORECASE)
_COLAB = ("COLAB_RELEASE_TAG", "COLAB_BACKEND_VERSION", "COLAB_JUPYTER_IP")


@dataclass(frozen=True)
class Token:
    """A token and where it comes from; it does not show itself."""

    value: str
    origin: str

    def __repr__(self) -> str:
        return f"Token(from {self.origin})"


def tokens() -> list[Token]:
    """Return all tokens that are set, the one that is used first."""
    found = [Token(os.environ[name], name) for name in VARIABLES if os.environ.get(name)]
    try:
        text = token_file().read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return [*found, Token(text.strip(), str(token_file()))] if text.strip() else found


def token_file() -> Path:
    """Return where `hf auth login` keeps the token."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()


def hub_models(config: RunConfig | None) -> list[str]:
    """Return the ids of the hub models that a configuration names."""
    from sysscan_models.pipeline import choose_source

    found = []
    parts, folder = (config.roles.values(), config.folder) if config else ((), Path())
    for part in parts:
        try:
            source, ref = choose_source(part.base, folder)
        except UserError:
            continue  # the plan tells it
        found += [ref] if source == "hub" else []
    return list(dict.fromkeys(found))


def token(config: RunConfig | None) -> Iterator[Check]:
    """Yield the checks of the token that need no network."""
    found, models = tokens(), hub_models(config)
    yield _described(found[0]) if found else _absent(config, models)
    if conflict := _conflict(found):
        yield conflict
    if found and found[0].origin not in VARIABLES and (mode := stat.S_IMODE(token_file().stat().st_mode)) & 0o077:
        told = f"others on this machine may read {token_file()} (mode {mode:o})"
        yield Check("token file", "warn", told, f"chmod 600 {token_file()}")
    if _is_on(os.environ.get("HF_HUB_OFFLINE", "")) and models:
        yield Check("hub", "warn", "HF_HUB_OFFLINE forbids the hub", "unset HF_HUB_OFFLINE, if models are to be fetched")
    if on_colab():
        yield Check("colab", "ok", "this is Google Colab", _colab_advice())


def on_colab() -> bool:
    """Say whether this runs on Google Colab."""
    return any(os.environ.get(name) for name in _COLAB)


def _colab_advice() -> str:
    return (
        "A token belongs into the secrets: the key symbol at the left (or Settings > Secrets) > Add new secret, name HF_TOKEN, "
        "allow this notebook, restart the runtime\n"
        "Commands after `!` do not see secrets; hand it on in a cell: import os; from google.colab import userdata; "
        'os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")'
    )


def _absent(config: RunConfig | None, models: list[str]) -> Check:
    looked = f"none is set (looked at {', '.join(VARIABLES[:2])} and {token_file()})"
    get = f"Create one with read permission at {SETTINGS}, then: export HF_TOKEN=hf_..."
    if models:
        return Check("token", "warn", f"{looked}; {', '.join(models)} may need one", f"{get}\n{_access_advice(models)}")
    if config is not None:
        return Check("token", "ok", f"{looked}; no model of this configuration needs one")
    return Check("token", "ok", looked, f"For gated models only. {get}")


def _access_advice(models: list[str]) -> str:
    pages = ", ".join(f"https://huggingface.co/{model}" for model in models)
    return f"Gated models: accept the terms at {pages} and wait for the approval"


def _described(token: Token) -> Check:
    value = token.value.strip()
    told = f"from {token.origin}: {'hf_...' if value.startswith('hf_') else 'no hf_ prefix'}, {len(value)} characters"
    if token.value != value:
        odd = "there are blanks or a line break around it"
    elif value[:1] in "\"'" or value[-1:] in "\"'":
        odd = "there are quotation marks around it"
    elif not value.isascii() or re.search(r"\s", value):
        odd = "it holds blanks or characters that no token has"
    elif _USUAL.fullmatch(value):
        return Check("token", "ok", told)
    elif _PLACEHOLDER.search(value):
        odd = "it looks like the placeholder of an instruction"
    else:
        odd = "its form is unusual (expected hf_ and at least 30 letters and digits)"
    return Check("token", "warn", f"{told}; {odd}", f"Copy it again from {SETTINGS}: export HF_TOKEN=hf_...")


def _conflict(found: list[Token]) -> Check | None:
    """Check that not several variables hold different tokens; the login file is what variables are meant to override."""
    empty = [name for name in VARIABLES if os.environ.get(name) == ""]
    used = found[0] if found else None
    others = [
        token.origin for token in found if used and token.origin in VARIABLES and token.value.strip() != used.value.strip()
    ]
    if used and others:
        told = f"{used.origin} and {', '.join(others)} hold different tokens; {used.origin} is used"
        return Check("token variables", "warn", told, f"Keep the right one in HF_TOKEN, then: unset {' '.join(others)}")
    if empty:
        return Check("token variables", "warn", f"{', '.join(empty)} is set but empty", f"unset {' '.join(empty)}")
    return None


def not_asked() -> Check:
    """Say that the hub was not asked."""
    return Check(
        "hub", "ok", "not asked; `sysscan-models doctor --online` asks whether the token works and the models may be fetched"
    )


def ask(config: RunConfig | None) -> Iterator[Check]:
    """Ask the hub who the token belongs to, and whether the models may be fetched with it."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        install = "pip install 'sysscan-models[train]'"
        yield Check("hub", "warn", "not asked: the Python package huggingface_hub is not installed", install)
        return
    used = next(iter(tokens()), None)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=used.value.strip() if used else False)
    if used:
        yield _owner(api, used)
    for model in hub_models(config) if config else ORIGINAL_MODELS:
        yield _access(api, model, used, needed=config is not None)


def _owner(api: Any, used: Token) -> Check:
    try:
        told = api.whoami()
    except Exception as error:  # noqa: BLE001 - the HTTP library, and so its errors, differ between releases
        return _owner_unknown(error, used)
    role = (((told.get("auth") or {}).get("accessToken")) or {}).get("role") or "unknown"
    return Check("hub: token", "ok", f"valid; it belongs to {told.get('name', 'an unnamed account')}, permission {role}")


def _owner_unknown(error: Exception, used: Token) -> Check:
    status = _status(error)
    if status == 401:
        told = f"the hub does not accept the token from {used.origin} (401): it is wrong, expired or was revoked"
        return Check("hub: token", "fail", told, f"{_renew_advice()}\n{_unset_advice(used)}")
    if status == 403:
        told = f"the hub forbids this token (from {used.origin}) to say who it belongs to (403)"
        return Check(
            "hub: token", "warn", told, f"Fine-grained tokens need read access to the repositories you use: {SETTINGS}"
        )
    return _unreachable("hub: token", error)


def _renew_advice() -> str:
    return f"See at {SETTINGS} that it is active and may read; regenerate it if it expired, then: export HF_TOKEN=hf_..."


def _unset_advice(used: Token) -> str:
    forget = f"unset {used.origin}" if used.origin in VARIABLES else "hf auth logout"
    return f"Public models need no token, and a wrong one makes even them fail: {forget}"


def _access(api: Any, model: str, used: Token | None, *, needed: bool) -> Check:
    name = f"hub: {model}"
    try:
        api.auth_check(model)
    except Exception as error:  # noqa: BLE001 - see above
        verdict, told, advice = _refused(error, model, used)
        return Check(name, verdict if needed or verdict != "fail" else "warn", told, advice)
    return Check(name, "ok", "may be fetched")


def _refused(error: Exception, model: str, used: Token | None) -> tuple[Verdict, str, str]:
    """Return verdict, finding and advice for a model that the hub does not give."""
    kind, status, ask_access = type(error).__name__, _status(error), _access_advice([model])
    if kind == "GatedRepoError":
        if used is None:
            return (
                "fail",
                f"it is gated, and no token is set ({status})",
                f"{ask_access}\nThen create a token at {SETTINGS} and set HF_TOKEN",
            )
        advice = f"{ask_access}. Fine-grained tokens also need the permission to read gated repositories ({SETTINGS})"
        return "fail", f"it is gated, and the account of this token has no access ({status})", advice
    if status == 401 and used is not None:
        return "fail", f"refused with the token from {used.origin} (401)", f"{_renew_advice()}\n{_unset_advice(used)}"
    if status == 401:
        return (
            "fail",
            "there is no such public model (401)",
            f"Check the spelling. If it is private, set HF_TOKEN. {ask_access}",
        )
    if status == 403:
        return "fail", "this token may not read it (403)", f"{ask_access}. Give the token read permission: {SETTINGS}"
    if status == 404:
        return (
            "fail",
            "there is no such model, or it is private (404)",
            "Check the spelling, and whose token it is if it is private",
        )
    check = _unreachable("", error)
    return check.verdict, check.found, check.advice


def _unreachable(name: str, error: Exception) -> Check:
    """Say that the hub gave no answer, which says nothing about the token."""
    status = _status(error)
    if status:
        told = f"the hub answered {status}, which says nothing about the token or the model"
        return Check(name, "warn", told, "Try again later" + ("; it limits how often one may ask" if status == 429 else ""))
    if type(error).__name__ == "OfflineModeIsEnabled":
        return Check(name, "warn", "not asked: HF_HUB_OFFLINE forbids the hub", "unset HF_HUB_OFFLINE")
    told = f"the hub could not be reached ({type(error).__name__}), which says nothing about the token or the model"
    return Check(name, "warn", told, "Is this machine online? Behind a proxy set HTTPS_PROXY; HF_ENDPOINT names another hub")


def _status(error: Exception) -> int:
    """Return the HTTP status that an error of huggingface_hub carries, or 0."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status if isinstance(status, int) else 0


def _is_on(setting: str) -> bool:
    return setting.strip().upper() in ("1", "ON", "YES", "TRUE")
