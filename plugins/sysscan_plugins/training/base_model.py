"""The base model of a training: its weights, tokenizer and chat template, and what a trained model takes over of its folder.

For the trainers of this package. Reads plain folders in Hugging Face layout and never opens a socket.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.artifacts import write_atomically
from sysscan_models.encoding import ChatEncoder, HFTokenizer, choose_template
from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.training import TrainingOptions

ARCHITECTURES = ("llama", "mistral", "mixtral")
"""Values of `model_type` whose forward pass is decoder, then output head, and nothing more; others may scale their logits."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class BaseTokenizer:
    """A base model's tokenizer with the chat template that it is trained and served with."""

    tokenizer: Any
    """The fast tokenizer of transformers."""
    template: str
    added: bool
    """Whether the template is ours, because the base model has none."""

    def encoder(self, options: TrainingOptions) -> ChatEncoder:
        """Return what encodes examples as training does."""
        return ChatEncoder(HFTokenizer(self.tokenizer), self.template, supervise=options.supervise)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a base model's config.json; raise UserError for what cannot be trained."""
    path = folder / "config.json"
    try:
        config = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json: it is not a model in Hugging Face layout") from None
    except orjson.JSONDecodeError as error:
        raise IntegrityError(f"{path} is damaged ({error}); fetch the base model again") from error
    if config.get("model_type") not in ARCHITECTURES:
        raise UserError(
            f"{folder} is a model of type {config.get('model_type')!r}, which training does not support. "
            f"Valid choices: {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{folder} is quantized; training needs F32, F16 or BF16 weights. Take the base as it was before quantization"
        )
    return dict(config)


def check_base(folder: Path, options: TrainingOptions, *, trains_embeddings: bool) -> None:
    """Raise UserError when a base model cannot be trained with these options; loads no weight."""
    config = read_config(folder)
    positions = config.get("max_position_embeddings")
    if positions and options.max_seq_length > positions:
        raise UserError(
            f"max_seq_length is {options.max_seq_length}, but {folder} was made for at most {positions} positions; "
            f"set max_seq_length to {positions} or less"
        )
    encoder = load_tokenizer(folder, trains_embeddings=trains_embeddings).encoder(options)
    encoder.end_tokens()


def load_tokenizer(folder: Path, *, trains_embeddings: bool) -> BaseTokenizer:
    """Return the base model's tokenizer with its chat template, or with one that the training method can train."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer of {folder} cannot be loaded: {error}") from error
    text = HFTokenizer(tokenizer)
    existing = tokenizer.get_chat_template() if tokenizer.chat_template else None
    template = choose_template(existing, text.control_tokens, trains_embeddings, begins_with_bos=text.begins_with_bos)
    return BaseTokenizer(tokenizer, template, added=not existing)


def load_model(folder: Path, options: TrainingOptions) -> Any:
    """Return the base model in the compute dtype, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    read_config(folder)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.compute_dtype]
    try:
        with _no_progress_bars():
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}") from error


def save_model(model: Any, out_dir: Path, *, shard_bytes: int) -> None:
    """Write config.json and safetensors (shards with an index when it is larger than one)."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # `write_generation_config` writes it; transformers refuses to save some
    with _no_progress_bars():
        model.save_pretrained(out_dir, max_shard_size=shard_bytes)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its name in the model, from the configuration alone, shared ones once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    read_config(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def carry_over(base: Path, tokenizer: BaseTokenizer, out_dir: Path) -> None:
    """Copy the base model's own tokenizer and licence files, and write the chat template when it is ours."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out_dir / name)
    for pattern in LICENCE_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, out_dir / path.name)
    if tokenizer.added:
        (out_dir / "chat_template.jinja").write_text(tokenizer.template, encoding="utf-8")


def write_generation_config(base: Path, end_tokens: list[int], out_dir: Path) -> None:
    """Write generation_config.json: the base model's own, but answers end where the chat template ends them."""
    path = base / "generation_config.json"
    own = orjson.loads(path.read_bytes()) if path.is_file() else {}
    known = own.get("eos_token_id") or []
    ends = list(dict.fromkeys([*end_tokens, *(known if isinstance(known, list) else [known])]))
    body = {**own, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    write_atomically(out_dir / "generation_config.json", orjson.dumps(body, option=orjson.OPT_INDENT_2))


def publish_files(temporary: Path, out_dir: Path) -> list[str]:
    """Move finished files from a temporary folder into `out_dir`, fsynced; return their names. The record comes last."""
    names = sorted(path.name for path in temporary.iterdir())
    for name in names:
        with (temporary / name).open("rb") as stream:
            os.fsync(stream.fileno())
        (temporary / name).replace(out_dir / name)
    temporary.rmdir()
    return names


def first_records(path: Path, count: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the first records of a split and the bytes of each line; none when there is no file yet."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if number == count:
                return
            if line.strip():
                yield orjson.loads(line), len(line)
