"""The backends that serve a packaged model. Options and hook only; cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import ClassVar

from pydantic import Field

from sysscan_models import hookimpl
from sysscan_models.errors import MissingExtra
from sysscan_models.interfaces import Backend, ModelRef, Session


class LlamaCpp(Backend):
    """llama.cpp in this process; requests of all threads share one running batch."""

    name: ClassVar[str] = "llama_cpp"

    n_ctx: int = Field(0, ge=0)
    """Context in tokens, prompt and answer together; 0 for the role's, or the model's own where that is shorter."""
    n_parallel: int = Field(16, gt=0, le=256)
    """Conversations that are answered at once; more wait in the queue."""
    queue_size: int = Field(1024, gt=0)
    """Conversations that may wait; who asks for more waits too."""
    n_batch: int = Field(512, gt=0, le=65536)
    """Tokens that are decoded in one step."""
    threads: int = Field(0, ge=0, le=512)
    """Threads to compute with, as many as llama.cpp can have; 0 for all cores that this process may use."""
    n_gpu_layers: int = Field(-1, ge=-1)
    """Layers on an accelerator, where llama.cpp was built for one; -1 for all."""
    reproducible: bool = False
    """Whether a greedy answer depends on its request alone, bit for bit. Eight sequences or more are decoded at once then: that
    costs nothing while as many are answered, and speed when few are. Without it, the text may differ in batches of fewer."""
    memory_budget_mb: int = Field(0, ge=0)
    """Megabytes (10^6 bytes) that all models of this process may take, 0 for no limit: the least recently used ones that nobody
    asks anything are unloaded, and loaded again when they are asked."""

    def open(self, model: ModelRef) -> Session:
        """Open a model; raise UserError when a file is missing or llama.cpp cannot load it."""
        if find_spec("llama_cpp") is None:
            raise MissingExtra("the backend 'llama_cpp'", "llama_cpp", "langgraph")
        from sysscan_langgraph.llama_cpp_backend import LlamaCppSession

        return LlamaCppSession(model, self)


class OpenAICompatible(Backend):
    """A server with OpenAI's interface, such as llama-server or vLLM; the only backend that opens a connection."""

    name: ClassVar[str] = "openai"
    serves_files: ClassVar[bool] = False

    base_url: str = ""
    """Where the server is, such as http://127.0.0.1:8080/v1."""
    model: str = ""
    """What the server calls the model; empty for the name of the role."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server that asks for none needs none."""
    timeout: float = Field(120.0, gt=0)
    """Seconds to wait for the server."""
    n_parallel: int = Field(16, gt=0)
    """Requests under way at once."""

    def open(self, model: ModelRef) -> Session:
        """Return a session that asks the server; raise UserError when there is no `base_url`."""
        if find_spec("langchain_openai") is None:
            raise MissingExtra("the backend 'openai'", "langchain_openai", "openai")
        from sysscan_langgraph.openai_backend import OpenAISession

        return OpenAISession(model, self)


@hookimpl
def sysscan_register_backends() -> Sequence[type[Backend]]:
    """Return the bundled backends."""
    return [LlamaCpp, OpenAICompatible]
