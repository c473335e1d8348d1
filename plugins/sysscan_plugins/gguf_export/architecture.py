"""From config.json to GGUF: the hyperparameters, and for every GGUF tensor its shape and the stored rows it is made of.

Llama, Mistral and Mixtral are one architecture to llama.cpp, `llama`. Names come from gguf's own tables; shapes are worked out
from the config, so that weights which do not belong to it are refused by name before anything is written. No weight is read
here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.gguf_export.checkpoint import HuggingFaceFolder, StoredTensor

ARCH = MODEL_ARCH.LLAMA
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3")

_ALWAYS_F32 = ("ffn_gate_inp.weight",)  # the router: a rounding there sends a token to another expert
_IGNORED = (".rotary_emb.inv_freq", ".attention.masked_bias")  # buffers that old releases saved; computed from the config


@dataclass(frozen=True)
class Slab:
    """Some rows of a stored tensor."""

    source: StoredTensor
    first: int
    rows: int


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file, before anything is read.

    `shape` is in numpy's order. The rows of `slabs`, one after the other, fill it; `heads` above 0 says that the rows are then
    reordered from Hugging Face's rotary layout to llama.cpp's, head by head; `values` replaces slabs for a computed tensor.
    """

    name: str
    shape: tuple[int, ...]
    slabs: tuple[Slab, ...] = ()
    heads: int = 0
    values: tuple[float, ...] = ()

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def always_f32(self) -> bool:
        """Whether llama.cpp keeps it in 32 bits whatever the file's type: vectors and the router of the experts."""
        return len(self.shape) == 1 or self.name.endswith(_ALWAYS_F32)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, kind, and the numbers of its kind."""

    theta: float
    kind: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rope:
        """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
        if kind not in ROPE_TYPES:
            raise UserError(f"config.json asks for rope type {kind!r}; supported are {', '.join(ROPE_TYPES)}")
        if (partial := parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))) not in (None, 1, 1.0):
            raise UserError(
                f"config.json has partial_rotary_factor {partial}; llama.cpp rotates whole heads of this architecture only"
            )
        default = 1e6 if "MixtralForCausalLM" in config.get("architectures", ()) else 1e4  # what transformers takes for each
        theta = parameters.get("rope_theta") or config.get("rope_theta") or default
        return cls(float(theta), kind, parameters)

    def number(self, key: str) -> float:
        """Return one of the numbers of its kind; raise UserError when the config lacks it."""
        if key not in self.parameters:
            raise UserError(
                f"config.json asks for rope type {self.kind!r} without {key!r}; add it as the model's authors state it"
            )
        return float(self.parameters[key])

    def factors(self, head_dim: int) -> tuple[float, ...]:
        """Return what llama.cpp divides each frequency by, [head_dim / 2] numbers, for rope type llama3.

        Long wavelengths are stretched by `factor`, short ones left alone, those between interpolated (Llama 3.1's rule).
        """
        factor, low, high = (self.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        context = self.number("original_max_position_embeddings")
        if not high > low:
            raise UserError(f"config.json has high_freq_factor {high} and low_freq_factor {low}; the first must be larger")
        frequencies = 1.0 / self.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        turns = context * frequencies / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return tuple((1.0 / ((1 - smooth) / factor + smooth)).tolist())


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters, checked."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    eps: float
    rope: Rope
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    experts: int = 0
    experts_used: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a config; raise UserError for anything that llama.cpp would compute differently."""
        name = _architecture_name(config)
        moe = name == "MixtralForCausalLM"
        if config.get("quantization_config"):
            raise UserError(
                "config.json has a quantization_config: the weights are quantized; save the model in full precision first"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise UserError(f"config.json has hidden_act {config['hidden_act']!r}; supported is 'silu'")
        heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
        kv_heads = _integer(config, "num_key_value_heads", heads)
        head_dim = _integer(config, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise UserError(
                f"config.json has {heads} heads, {kv_heads} key-value heads of {head_dim}; heads must share evenly, in pairs"
            )
        context, notes = _context(config)
        return cls(
            layers=_integer(config, "num_hidden_layers"),
            hidden=hidden,
            feed_forward=_integer(config, "intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_integer(config, "vocab_size"),
            context_length=context,
            eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=Rope.of(config),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            experts=_integer(config, "num_local_experts", 8) if moe else 0,
            experts_used=_integer(config, "num_experts_per_tok", 2) if moe else 0,
            notes=notes,
        )

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the hyperparameters to a GGUF file's metadata."""
        writer.add_vocab_size(self.vocab_size)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_layer_norm_rms_eps(self.eps)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_freq_base(self.rope.theta)
        if self.rope.kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self.rope.number("factor"))
        if self.experts:
            writer.add_expert_count(self.experts)
            writer.add_expert_used_count(self.experts_used)

    def plan(self, folder: HuggingFaceFolder) -> list[PlannedTensor]:
        """Return every tensor of the GGUF file, in file order.

        Raises IntegrityError when a tensor is missing or has another shape than the config says, UserError when the folder
        has one that the architecture does not know.
        """
        slabs = self._slabs(folder)
        planned = []
        for name, shape in self._shapes():
            if name == _name(MODEL_TENSOR.ROPE_FREQS):
                planned.append(PlannedTensor(name, shape, values=self.rope.factors(self.head_dim)))
                continue
            found = slabs.get(name, {})
            parts = tuple(found[position] for position in range(len(found)) if position in found)
            _check_parts(folder, name, shape, parts)
            planned.append(PlannedTensor(name, shape, parts, heads=self._rotary_heads(name)))
        surplus = slabs.keys() - {tensor.name for tensor in planned}
        if surplus:
            raise UserError(f"{folder.path} has tensors that its config.json does not describe: {_some(surplus)}")
        return planned

    def _slabs(self, folder: HuggingFaceFolder) -> dict[str, dict[int, Slab]]:
        """Return, by GGUF name and position, the stored rows that make up each tensor."""
        names = gguf.get_tensor_name_map(ARCH, self.layers)
        slabs: dict[str, dict[int, Slab]] = {}
        unknown = []
        for name, stored in folder.tensors.items():
            if name.endswith(_IGNORED) or (self.tied and name == "lm_head.weight"):
                continue
            if fused := _FUSED_EXPERTS.fullmatch(name):
                targets = self._fused(int(fused[1]), fused[2], stored)
            elif expert := _EXPERT.fullmatch(name):
                kind = _EXPERT_KINDS[expert[3]]
                targets = [(_name(kind, int(expert[1])), int(expert[2]), Slab(stored, 0, stored.rows))]
            elif known := names.get_name(name, try_suffixes=(".weight", ".bias")):
                targets = [(known, 0, Slab(stored, 0, stored.rows))]
            else:
                unknown.append(name)
                continue
            for target, position, slab in targets:
                slabs.setdefault(target, {})[position] = slab
        if unknown:
            raise UserError(f"{folder.path} has tensors that {', '.join(SUPPORTED)} do not know: {_some(unknown)}")
        return slabs

    def _fused(self, layer: int, part: str, stored: StoredTensor) -> list[tuple[str, int, Slab]]:
        """Cut transformers' fused experts, gate_up_proj [E, 2F, H] and down_proj [E, H, F], into one slab for each expert."""
        kinds = (MODEL_TENSOR.FFN_GATE_EXP, MODEL_TENSOR.FFN_UP_EXP) if part == "gate_up_proj" else (MODEL_TENSOR.FFN_DOWN_EXP,)
        rows = stored.rows // (self.experts or 1) // len(kinds)
        return [
            (_name(kind, layer), expert, Slab(stored, (expert * len(kinds) + half) * rows, rows))
            for expert in range(self.experts)
            for half, kind in enumerate(kinds)
        ]

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor that the config describes, in file order."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield _name(MODEL_TENSOR.TOKEN_EMBD), (self.vocab_size, self.hidden)
        if self.rope.kind == "llama3":
            yield _name(MODEL_TENSOR.ROPE_FREQS), (self.head_dim // 2,)
        for layer in range(self.layers):
            yield _name(MODEL_TENSOR.ATTN_NORM, layer), (self.hidden,)
            for kind, shape in (
                (MODEL_TENSOR.ATTN_Q, (queries, self.hidden)),
                (MODEL_TENSOR.ATTN_K, (keys, self.hidden)),
                (MODEL_TENSOR.ATTN_V, (keys, self.hidden)),
                (MODEL_TENSOR.ATTN_OUT, (self.hidden, queries)),
            ):
                yield _name(kind, layer), shape
                if self.attention_bias:
                    yield _name(kind, layer, "bias"), shape[:1]
            yield _name(MODEL_TENSOR.FFN_NORM, layer), (self.hidden,)
            yield from self._feed_forward_shapes(layer)
        yield _name(MODEL_TENSOR.OUTPUT_NORM), (self.hidden,)
        if not self.tied:
            yield _name(MODEL_TENSOR.OUTPUT), (self.vocab_size, self.hidden)

    def _feed_forward_shapes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        wide, narrow = (self.feed_forward, self.hidden), (self.hidden, self.feed_forward)
        if self.experts:
            yield _name(MODEL_TENSOR.FFN_GATE_INP, layer), (self.experts, self.hidden)
            yield _name(MODEL_TENSOR.FFN_GATE_EXP, layer), (self.experts, *wide)
            yield _name(MODEL_TENSOR.FFN_UP_EXP, layer), (self.experts, *wide)
            yield _name(MODEL_TENSOR.FFN_DOWN_EXP, layer), (self.experts, *narrow)
            return
        for kind, shape in ((MODEL_TENSOR.FFN_GATE, wide), (MODEL_TENSOR.FFN_UP, wide), (MODEL_TENSOR.FFN_DOWN, narrow)):
            yield _name(kind, layer), shape
            if self.mlp_bias:
                yield _name(kind, layer, "bias"), shape[:1]

    def _rotary_heads(self, name: str) -> int:
        kind = name.split(".")[-2]
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(kind, 0)


_EXPERT = re.compile(r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(w[123])\.weight")
_EXPERT_KINDS = {"w1": MODEL_TENSOR.FFN_GATE_EXP, "w2": MODEL_TENSOR.FFN_DOWN_EXP, "w3": MODEL_TENSOR.FFN_UP_EXP}
_FUSED_EXPERTS = re.compile(r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.experts\.(gate_up_proj|down_proj)(?:\.weight)?")


def _name(kind: MODEL_TENSOR, layer: int = 0, suffix: str = "weight") -> str:
    return f"{TENSOR_NAMES[kind].format(bid=layer)}.{suffix}"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def _check_parts(folder: HuggingFaceFolder, name: str, shape: tuple[int, ...], parts: tuple[Slab, ...]) -> None:
    expected = (math.prod(shape[:-1]), shape[-1])
    found = (sum(part.rows for part in parts), parts[0].source.shape[-1]) if parts else None
    widths = {part.source.shape[-1] for part in parts}
    if found == expected and len(widths) == 1 and len({part.source.dtype for part in parts}) == 1:
        return
    sources = _some({part.source.name for part in parts}) if parts else "no tensor"
    hint = ""
    if name == _name(MODEL_TENSOR.OUTPUT) and not parts:
        hint = "; if output and input share their weights, config.json must say tie_word_embeddings = true"
    elif name in (_name(MODEL_TENSOR.TOKEN_EMBD), _name(MODEL_TENSOR.OUTPUT)):
        hint = "; its rows must be config.json's vocab_size"
    raise IntegrityError(
        f"{folder.path}: GGUF tensor {name!r} of {list(shape)} should come from the weights, found {sources}"
        f"{f' with {list(found)} rows and columns' if found else ''}{hint}"
    )


def _architecture_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [f"model_type {config.get('model_type')!r}"]
    if names[0] not in SUPPORTED:
        raise UserError(f"config.json describes {names[0]}, which cannot be exported; supported are {', '.join(SUPPORTED)}")
    return str(names[0])


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"config.json has {key} = {value!r}; expected a number above 0")
    return value


def _context(config: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    context = _integer(config, "max_position_embeddings", 2048)
    window = config.get("sliding_window")
    if not isinstance(window, int) or window >= context:
        return context, ()
    note = f"context length {window}, not {context}: llama.cpp has no sliding window of {window} tokens for this architecture"
    return window, (note,)
