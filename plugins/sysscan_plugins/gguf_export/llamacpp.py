"""llama.cpp in a child process: quantizing a file, and tokenizing with a file's vocabulary.

A child, because llama.cpp aborts the process on what it did not expect, cannot be interrupted while it quantizes, and logs to
the terminal. The parent survives all three: it kills the child on Ctrl-C, and shows the end of the log when the work failed.
The child is this module run as a program; it takes a JSON object on standard input and writes its answer to a file.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sysscan_models.errors import MissingExtra, SysscanError

BUFFER = 1 << 29
"""Bytes of rows that llama.cpp may hold at once while it quantizes; its own default is 8 GiB."""

_LOG_LINES = 8  # of llama.cpp's log, shown when it failed


def quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    imatrix: Mapping[str, Any] | None = None,
    threads: int = 0,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Write `source`, a GGUF file in 16 or 32 bits, to `out` as llama.cpp's file type of that number.

    `imatrix` maps tensor names to numpy vectors of float32, `threads` of 0 takes all cores, `watch` is called a few times a
    second. Raises SysscanError with llama.cpp's own words when it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request: dict[str, Any] = {"source": str(source), "out": str(out), "file_type": file_type, "threads": threads}
        if imatrix:
            import numpy as np

            request["imatrix"] = str(Path(scratch) / "imatrix.npz")
            np.savez(request["imatrix"], **{f"_{name}": values for name, values in imatrix.items()})
        _run("quantize", request, f"quantizing {out.name}", watch)


def tokenize(vocabulary: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, tokenized as text only (no special tokens parsed or added), by a GGUF file's vocabulary."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "ids.json"
        request = {"vocabulary": str(vocabulary), "texts": list(texts), "answer": str(answer)}
        _run("tokenize", request, "reading the vocabulary", lambda: None)
        ids: list[list[int]] = json.loads(answer.read_bytes())
    return ids


def _run(verb: str, request: Mapping[str, Any], what: str, watch: Callable[[], None]) -> None:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", __spec__.name, verb]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)  # noqa: S603 - our own module
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            while True:
                try:
                    child.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    watch()
        except BrokenPipeError:
            child.wait()
        finally:
            child.kill()
            child.wait()
        if child.returncode == 0:
            return
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if any("No module named 'llama_cpp'" in line for line in lines):
        raise MissingExtra(what, "llama_cpp", "gguf")
    cause = f"was ended by signal {-child.returncode}" if child.returncode < 0 else "reported a failure"
    tail = "".join(f"\n    {line}" for line in lines[-_LOG_LINES:])
    raise SysscanError(f"{what}: llama.cpp {cause}; the end of its log:{tail or ' it wrote none'}")


def main() -> None:
    """Do what the parent asks; exit code 1 when llama.cpp reports a failure."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed parent takes its child along
    verb, request = sys.argv[1], json.loads(sys.stdin.buffer.read())
    sys.exit(0 if {"quantize": _quantize, "tokenize": _tokenize}[verb](request) else 1)


def _quantize(request: Mapping[str, Any]) -> bool:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = request["file_type"]
    parameters.nthread = request["threads"]
    parameters.max_buf_size = BUFFER
    if "imatrix" in request:
        entries = _imatrix(request["imatrix"])  # named, so that it outlives the call
        parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    return bool(
        llama_cpp.llama_model_quantize(request["source"].encode(), request["out"].encode(), ctypes.byref(parameters)) == 0
    )


def _imatrix(file: str) -> Any:
    import llama_cpp
    import numpy as np

    with np.load(file) as vectors:
        values = {name[1:].encode(): np.ascontiguousarray(vectors[name], dtype=np.float32) for name in vectors.files}
    entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, vector) in zip(entries, values.items(), strict=False):
        entry.name, entry.size = name, vector.size
        entry.data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    entries.kept = values
    return entries


def _tokenize(request: Mapping[str, Any]) -> bool:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(request["vocabulary"].encode(), parameters)
    if not model:
        return False
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    answer = []
    for text in request["texts"]:
        data = text.encode()
        room = len(data) + 8  # a token stands for at least a byte, but for a space put before
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, room, False, False)
        answer.append(list(ids[:count]))
    Path(request["answer"]).write_text(json.dumps(answer))
    return True


if __name__ == "__main__":
    main()
