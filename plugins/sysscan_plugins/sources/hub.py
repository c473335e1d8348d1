"""Base models of the Hugging Face hub: one commit, weights as safetensors, tokenizer, card. No token is shown or stored."""

from __future__ import annotations

import os
from pathlib import Path

from sysscan_models.artifacts import BaseCheckpoint
from sysscan_models.errors import MissingExtra, UserError
from sysscan_plugins.sources.folder import MODEL_FILES, record_folder

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN")
"""Where a token is looked for, in this order, before the login file of huggingface_hub."""


def download(ref: str, out_dir: Path, *, revision: str, offline: bool) -> BaseCheckpoint:
    """Bring a hub model into `out_dir` and return its record with the commit; an interrupted download goes on.

    Raises UserError when the network is forbidden, the model or revision does not exist, or access is refused.
    """
    if offline:
        raise UserError(
            f"base model {ref!r} must come from the hub, and the network is forbidden (--offline or offline = true). "
            f"Allow it once, or set `base` to a folder that holds the model"
        )
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub import errors as hub_errors
    except ImportError as error:
        raise MissingExtra(f"base model {ref!r}", "huggingface_hub", "train") from error
    token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    try:
        commit = HfApi(token=token).model_info(ref, revision=revision or None).sha
        snapshot_download(
            ref,
            revision=commit,
            local_dir=out_dir,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["original/*", "consolidated*", "*/*"],
            token=token,
        )
    except hub_errors.HFValidationError as error:
        raise UserError(f"{ref!r} is no id of a model on the hub (ORGANISATION/NAME): {error}") from error
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"{ref} is gated and this token has no access. Ask for it on the model's page on the hub, wait for the approval, "
            f"then set HF_TOKEN. `sysscan-models doctor --online` checks it"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"{ref} has no revision {revision!r} on the hub") from error
    except hub_errors.RepositoryNotFoundError as error:
        known = "with the token that is set" if token else "and no token is set (HF_TOKEN)"
        raise UserError(
            f"{ref} was not found on the hub {known}: check its spelling, and the token if it is private"
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise UserError(
            f"the hub refused {ref}: HTTP {error.response.status_code}. `sysscan-models doctor --online` says more"
        ) from error
    except Exception as error:
        if not _is_connection_fault(error):
            raise
        raise UserError(
            f"{ref} could not be fetched ({type(error).__name__}: {error}): is this machine online? What arrived is kept, "
            f"and the same command goes on from there"
        ) from error
    return record_folder(out_dir, reference=ref).model_copy(update={"revision": commit or ""}).at(out_dir)


def _is_connection_fault(error: Exception) -> bool:
    """Say whether the network is at fault: the hub's library lets its HTTP client's own errors through, whichever it uses."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
