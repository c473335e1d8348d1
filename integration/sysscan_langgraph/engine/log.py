"""What llama.cpp says when it fails. Everything else that it logs is dropped."""

from __future__ import annotations

import ctypes
import threading
from collections import deque

import llama_cpp

_ERROR_LEVEL = 4


class _Heard(threading.local):
    """The last errors, of each thread its own: an engine's failure is not another one's reason."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)


_heard = _Heard()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _hear(level: int, text: bytes, _: object) -> None:
    if level == _ERROR_LEVEL:
        _heard.errors.append(text.decode("utf-8", "replace").strip())


def listen() -> None:
    """Take llama.cpp's log away from the terminal."""
    llama_cpp.llama_log_set(_hear, ctypes.c_void_p(0))


def forget() -> None:
    """Forget earlier errors; called before what may fail."""
    _heard.errors.clear()


def reason() -> str:
    """Return the errors since `forget` in this thread."""
    return "; ".join(dict.fromkeys(_heard.errors)) or "it gave no reason"
