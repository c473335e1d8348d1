"""Serving: GGUF models inside LangGraph, in process and offline. Options and hook only; cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import ClassVar

from pydantic import Field

from sysscan_models import hookimpl
from sysscan_models.errors import MissingExtra
from sysscan_models.interfaces import Backend, ModelRef, Session


class LlamaCpp(Backend):
    """llama.cpp in this process, one conversation after the other."""

    name: ClassVar[str] = "llama_cpp"

    n_ctx: int = Field(0, ge=0)
    """Context in tokens, prompt and answer together; 0 for the role's, or the model's own where that is shorter."""
    n_batch: int = Field(512, gt=0)
    """Prompt tokens that are read in one step."""
    threads: int = Field(0, ge=0)
    """Threads to compute with; 0 for all cores that this process may use."""
    n_gpu_layers: int = Field(-1, ge=-1)
    """Layers on an accelerator, where llama.cpp was built for one; -1 for all."""

    def open(self, model: ModelRef) -> Session:
        """Load a model; raise UserError when a file is missing or llama.cpp cannot load it."""
        if find_spec("llama_cpp") is None:
            raise MissingExtra("the backend 'llama_cpp'", "llama_cpp", "langgraph")
        from sysscan_langgraph.llama_cpp_backend import LlamaCppSession

        return LlamaCppSession(model, self)


@hookimpl
def sysscan_register_backends() -> Sequence[type[Backend]]:
    """Return the bundled backend."""
    return [LlamaCpp]
