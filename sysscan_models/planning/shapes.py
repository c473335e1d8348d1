"""The shape of a model: its tensors and their sizes, from config.json, the headers of its files, or a table.

No weight is read and no network is asked, so the size of a model is known before it is fetched. Shapes are known for the
architectures that the whole chain supports (Llama, Mistral, Mixtral); other models are measured by their files alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sysscan_models.errors import IntegrityError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
_HEADER_LIMIT = 100 << 20  # safetensors' own


@dataclass(frozen=True)
class TensorShape:
    """`count` tensors of one shape in a model; `name` is the last name of the module, such as `q_proj`, `experts`, `norm`."""

    name: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def elements(self) -> int:
        """Weights in all of them."""
        return math.prod(self.shape) * self.count


@dataclass(frozen=True)
class Shape:
    """The sizes that decide everything else; `experts` is 0 for a dense model."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int = 0
    experts_per_token: int = 0
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        """Outputs of q_proj, inputs of o_proj."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Outputs of k_proj and of v_proj."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """All weights; tied embeddings count once."""
        return sum(tensor.elements for tensor in self.tensors())

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer."""
        return sum(tensor.elements for tensor in self.layer())

    def layer(self) -> Iterator[TensorShape]:
        """Yield the tensors of one layer, as transformers 5 holds them in memory: experts fused."""
        hidden, query, kv, inner = self.hidden, self.query_width, self.kv_width, self.intermediate
        matrices = {"q_proj": (query, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, query)}
        for name, shape in matrices.items():
            yield TensorShape(name, shape)
            if self.attention_bias:
                yield TensorShape("bias", shape[:1])
        if self.experts:
            yield TensorShape("gate", (self.experts, hidden))
            yield TensorShape("experts", (self.experts, 2 * inner, hidden))
            yield TensorShape("experts", (self.experts, hidden, inner))
        else:
            for name, shape in {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}.items():
                yield TensorShape(name, shape)
                if self.mlp_bias:
                    yield TensorShape("bias", shape[:1])
        yield TensorShape("norm", (hidden,), 2)

    def tensors(self) -> Iterator[TensorShape]:
        """Yield the tensors of the whole model."""
        yield TensorShape("embed_tokens", (self.vocabulary, self.hidden))
        for tensor in self.layer():
            yield TensorShape(tensor.name, tensor.shape, tensor.count * self.layers)
        yield TensorShape("norm", (self.hidden,))
        if not self.tied:
            yield TensorShape("lm_head", (self.vocabulary, self.hidden))

    def adapters(self, rank: int, targets: Collection[str], *, experts: bool = False) -> Iterator[TensorShape]:
        """Yield lora_A and lora_B of every adapter, in peft's shapes: of E experts `[E * rank, in]` and `[out, E * rank]`."""
        for tensor in self.layer():
            if tensor.name in targets or (experts and tensor.name == "experts"):
                *stack, outputs, inputs = tensor.shape
                rows = rank * math.prod(stack)
                yield TensorShape(tensor.name, (rows, inputs), self.layers)
                yield TensorShape(tensor.name, (outputs, rows), self.layers)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a config.json describes, or None for an architecture whose tensors are not known here."""
    if not set(config.get("architectures") or ()) & set(ARCHITECTURES):
        return None
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        mixture = "MixtralForCausalLM" in config["architectures"]
        return Shape(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            experts=int(config.get("num_local_experts") or 8) if mixture else 0,
            experts_per_token=int(config.get("num_experts_per_tok") or 2) if mixture else 0,
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise IntegrityError(f"config.json lacks a usable {error}; fetch the model again") from error


_LLAMA_3_8B = Shape(4096, 32, 14336, 32, 8, 128, 128256)
_MIXTRAL_8X7B = Shape(4096, 32, 14336, 32, 8, 128, 32000, experts=8, experts_per_token=2)
_SMOLLM2_135M = Shape(576, 30, 1536, 9, 3, 64, 49152, tied=True)
_SMOLLM2_360M = Shape(960, 32, 2560, 15, 5, 64, 49152, tied=True)
_SMOLLM2_1700M = Shape(2048, 24, 8192, 32, 32, 64, 49152, tied=True)

KNOWN: Mapping[str, Shape] = {
    "meta-llama/meta-llama-3-8b": _LLAMA_3_8B,
    "meta-llama/meta-llama-3-8b-instruct": _LLAMA_3_8B,
    "meta-llama/llama-3.1-8b": _LLAMA_3_8B,
    "meta-llama/llama-3.1-8b-instruct": _LLAMA_3_8B,
    "mistralai/mixtral-8x7b-v0.1": _MIXTRAL_8X7B,
    "mistralai/mixtral-8x7b-instruct-v0.1": _MIXTRAL_8X7B,
    "huggingfacetb/smollm2-135m": _SMOLLM2_135M,
    "huggingfacetb/smollm2-135m-instruct": _SMOLLM2_135M,
    "huggingfacetb/smollm2-360m": _SMOLLM2_360M,
    "huggingfacetb/smollm2-360m-instruct": _SMOLLM2_360M,
    "huggingfacetb/smollm2-1.7b": _SMOLLM2_1700M,
    "huggingfacetb/smollm2-1.7b-instruct": _SMOLLM2_1700M,
    "embedded:smollm2-135m-instruct": _SMOLLM2_135M,
}
"""Shapes of models that need not be here to be priced, by the lower-case value of `base`."""


@dataclass(frozen=True)
class Weights:
    """What the headers of a folder's safetensors say."""

    parameters: int
    size: int
    """Bytes of the weight files."""


def read_weights(folder: Path) -> Weights:
    """Read the headers of a folder's safetensors; raise IntegrityError for a file that is damaged, cut short or missing."""
    files = _weight_files(folder)
    return Weights(sum(map(_elements, files)), sum(path.stat().st_size for path in files))


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder in Hugging Face layout: model.safetensors, or those that the index names, or all."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    try:
        names = {Path(name).name for name in orjson.loads(index.read_bytes())["weight_map"].values()}
    except FileNotFoundError:
        return sorted(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{index} is damaged ({error}); fetch the model again") from error
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise IntegrityError(f"{folder} lacks {', '.join(missing)}, which its index names; fetch the model again")
    return [folder / name for name in sorted(names)]


def _elements(path: Path) -> int:
    """Return the number of weights in a file, after checking that it is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise IntegrityError(f"{path} is no safetensors file, or cut short ({size} bytes); fetch the model again")
        try:
            header = orjson.loads(stream.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
            elements = sum(math.prod(map(int, tensor["shape"])) for tensor in tensors)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise IntegrityError(f"{path} has a damaged header ({error}); fetch the model again") from error
    if size != 8 + length + end:
        raise IntegrityError(f"{path} has {size} bytes; its header expects {8 + length + end}. Fetch the model again")
    return elements
