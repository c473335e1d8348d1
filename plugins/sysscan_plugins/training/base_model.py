"""The base model of a training: its weights, tokenizer and chat template, and what a trained model takes over of its folder.

For the trainers of this package. Reads plain folders in Hugging Face layout and never opens a socket.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.artifacts import write_atomically
from sysscan_models.encoding import ChatEncoder, HFTokenizer, choose_template
from sysscan_models.errors import IntegrityError, UserError
from sysscan_models.planning.shapes import Shape, read_weights, shape_of
from sysscan_plugins.training import TrainingOptions

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM"}
"""By `model_type`; their forward pass is decoder, then output head, and nothing more. Others may scale their logits."""

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


def model_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder in Hugging Face layout, whatever the model."""
    path = folder / "config.json"
    try:
        config = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json: it is not a model in Hugging Face layout") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}); fetch the base model again") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{path} holds {type(config).__name__}; expected an object. Fetch the base model again")
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """Return a base model's config.json; raise UserError for what cannot be trained."""
    config = model_config(folder)
    if config.get("model_type") not in ARCHITECTURES:
        raise UserError(
            f"{folder} is a model of type {config.get('model_type')!r}, which training does not support. "
            f"Valid choices: {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{folder} is quantized; training needs F32, F16 or BF16 weights. Take the base as it was before quantization"
        )
    return config


def check_base(folder: Path, options: TrainingOptions, *, trains_embeddings: bool) -> None:
    """Raise UserError when a base model cannot be trained with these options; loads no weight."""
    config = read_config(folder)
    positions = config.get("max_position_embeddings")
    if positions and options.max_seq_length > positions:
        raise UserError(
            f"max_seq_length is {options.max_seq_length}, but {folder} was made for at most {positions} positions; "
            f"set max_seq_length to {positions} or less"
        )
    read_weights(folder)
    tokenizer = load_tokenizer(folder, trains_embeddings=trains_embeddings)
    tokenizer.encoder(options).end_tokens()
    _check_vocabulary(folder, tokenizer.tokenizer.get_vocab(), int(config.get("vocab_size") or 0))


def _check_vocabulary(folder: Path, vocabulary: Mapping[str, int], rows: int) -> None:
    spelling, largest = max(vocabulary.items(), key=lambda token: token[1])
    if rows and largest >= rows:
        raise UserError(
            f"{folder}: its tokenizer has token {largest} ({spelling!r}), but config.json's vocab_size is {rows}. "
            f"Use the tokenizer that belongs to these weights, or remove the added token"
        )


def load_tokenizer(folder: Path, *, trains_embeddings: bool) -> BaseTokenizer:
    """Return the base model's tokenizer with its chat template, or with one that the training method can train."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        existing = tokenizer.get_chat_template() if tokenizer.chat_template else None
    except Exception as error:  # a damaged file makes its library raise whatever it stumbles over
        raise UserError(f"the tokenizer of {folder} cannot be loaded ({type(error).__name__}: {error})") from error
    text = HFTokenizer(tokenizer)
    template = choose_template(existing, text.control_tokens, trains_embeddings, begins_with_bos=text.begins_with_bos)
    return BaseTokenizer(tokenizer, template, added=not existing)


def load_model(folder: Path, options: TrainingOptions) -> Any:
    """Return the base model in the compute dtype, on the CPU; raise IntegrityError when weights are damaged or missing."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    read_config(folder)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.compute_dtype]
    try:
        with _no_progress_bars():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise IntegrityError(f"the weights in {folder} are damaged ({error}); fetch the base model again") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random weights
        raise IntegrityError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for: {', '.join(missing[:3])}; "
            f"fetch the base model again"
        )
    return model


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


def base_shape(folder: Path) -> Shape:
    """Return the sizes of a base model by which its training is priced, from the configuration alone."""
    config = read_config(folder)
    shape = shape_of({**config, "architectures": [ARCHITECTURES[config["model_type"]]]})
    assert shape is not None
    return shape


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
