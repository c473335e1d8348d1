"""A real Llama that is far too small to say anything: about 19,000 weights, a byte-level tokenizer, no torch.

It is written in Hugging Face layout and as GGUF, so that a stub's checkpoint can go through the real exporter and a stub's GGUF
through the real llama.cpp. numpy, safetensors and gguf are imported when a function is called (extra `testing`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sysscan_models.artifacts import publish, write_atomically
from sysscan_models.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġ", "a"), ("Ġt", "he"), ("e", "r"), ("o", "n"), ("r", "e"))
"""A few merges, for llama.cpp takes no vocabulary without any."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, HEADS, FEED_FORWARD, CONTEXT = 32, 2, 64, 512
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

_HF_TO_GGUF = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.norm.weight": "output_norm.weight",
}
"""Every tensor, by its name in Hugging Face layout; the output weights are those of the embedding."""


def vocabulary() -> list[str]:
    """Return the tokens in the order of their ids: special tokens, the 256 bytes, the merges."""
    return [*SPECIAL_TOKENS, *sorted(_byte_characters()), *("".join(pair) for pair in MERGES)]


def initial_tensors(seed: int) -> Tensors:
    """Return float32 weights drawn from a seed; shapes as PyTorch's Linear has them, [out, in]."""
    np = _require("numpy")
    rng = np.random.default_rng(seed)
    shapes = {
        "embed_tokens": (len(vocabulary()), HIDDEN),
        "gate_proj": (FEED_FORWARD, HIDDEN),
        "up_proj": (FEED_FORWARD, HIDDEN),
    }
    shapes["down_proj"] = (HIDDEN, FEED_FORWARD)
    tensors: Tensors = {}
    for name in _HF_TO_GGUF:
        shape = shapes.get(name.split(".")[-2], (HIDDEN, HIDDEN))
        tensors[name] = np.ones(HIDDEN, np.float32) if "norm" in name else rng.normal(0, 0.05, shape).astype(np.float32)
    return tensors


def write_checkpoint(folder: Path, tensors: Tensors) -> None:
    """Write a model in Hugging Face layout: config.json, model.safetensors and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", _json(_config()))
    write_atomically(folder / "tokenizer.json", _json(_tokenizer()))
    write_atomically(folder / "tokenizer_config.json", _json(_tokenizer_config()))
    write_tensors(folder / "model.safetensors", tensors)


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file, atomically."""
    write_atomically(path, _require("safetensors.numpy").save(tensors, metadata={"format": "pt"}))


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file; float32 only, for numpy has no bfloat16."""
    tensors: Tensors = _require("safetensors.numpy").load(path.read_bytes())
    return tensors


def write_gguf(folder: Path, out: Path, *, half: bool = False) -> dict[str, int]:
    """Write a tiny model's folder as one GGUF file, matrices in F16 when asked; return its weights by type."""
    np, gguf = _require("numpy"), _require("gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    writer = gguf.GGUFWriter(temporary, "llama")
    _add_metadata(writer, gguf, half=half)
    weights = {"F32": 0, "F16": 0}
    tensors = read_tensors(folder / "model.safetensors")  # in an order that differs from one process to the next
    for name, written in _HF_TO_GGUF.items():
        tensor = tensors[name]
        kind = "F16" if half and tensor.ndim > 1 else "F32"
        weights[kind] += tensor.size
        writer.add_tensor(written, _permuted(name, tensor).astype(np.float16 if kind == "F16" else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    publish(temporary, out)
    return {kind: count for kind, count in weights.items() if count}


def _permuted(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Order the rows of queries and keys as llama.cpp's rotary embedding pairs them: neighbours, not halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    return tensor.reshape(HEADS, 2, tensor.shape[0] // HEADS // 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)


def _add_metadata(writer: Any, gguf: Any, *, half: bool) -> None:
    writer.add_name("stub")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    tokens = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _config() -> dict[str, Any]:
    tokens = vocabulary()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": len(tokens),
        "bos_token_id": tokens.index("<|im_start|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
        "pad_token_id": tokens.index("<|im_end|>"),
    }


def _tokenizer() -> dict[str, Any]:
    """Return tokenizer.json; it splits as SmolLM2's does: digits one by one, then GPT-2's pattern over bytes."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **special} for number, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary())},
            "merges": [list(pair) for pair in MERGES],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in GPT-2's byte-level vocabularies, by byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _require(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra("a stub of sysscan_models.testing", error.name or module, "testing") from error
