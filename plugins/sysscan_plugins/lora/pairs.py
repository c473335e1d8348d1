"""The pairs of a LoRA adapter, and which rows of which tensors on disk each of them changes.

Reads an adapter in peft's layout (adapter_config.json, adapter_model.safetensors), refuses by name every feature whose merge is
more than `weight + scale * B @ A`, and matches the pairs with the names that a base model has on disk. transformers holds
Mixtral's experts fused in memory while checkpoints name every expert; both layouts are matched. Writes nothing.

E experts, I intermediate width, H hidden width, r rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sysscan_models.errors import IntegrityError, UserError
from sysscan_plugins.training.base_folder import in_memory
from sysscan_plugins.training.tensor_file import StoredTensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_EXPERTS = ".mlp.experts"
_UNDERSTOOD = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "peft_type", "peft_version",
    "r", "rank_pattern", "revision", "target_modules", "target_parameters", "task_type", "use_rslora",
})  # fmt: skip
_INERT = frozenset({"megatron_core", "qalora_group_size"})
"""Keys that peft always writes with a value, and that do nothing unless another key is set."""
_INITS = (None, True, False, "gaussian", "orthogonal")
"""Ways to begin that leave the base as it is; the others (PiSSA, OLoRA, LoftQ ...) change the base's weights too."""
_MERGED_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Pair:
    """lora_A [E*r, in] and lora_B [out, E*r] of one module or parameter, in float32; E is 1 but for fused experts."""

    key: str
    """Its key in the adapter's file, without `.lora_A.weight`."""
    path: str
    """Path of the module in the model."""
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class Update:
    """What is added to consecutive rows of a tensor: `scale * b @ a`, [rows, in]."""

    pair: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    rounded: bool
    """The product takes the weight's type before it is added, as peft does for parameters (fused experts)."""

    @property
    def rows(self) -> int:
        """Rows of the tensor that it covers."""
        return self.b.shape[0]


Updates = Mapping[str, tuple[Update, ...]]
"""By name of the tensor on disk: updates that together cover all of its rows, in order, the tensor seen as [rows, in]."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that can be merged: its configuration as peft wrote it, and its pairs."""

    folder: Path
    config: Mapping[str, Any]
    pairs: tuple[Pair, ...]

    def scale(self, path: str, rank: int) -> float:
        """Return alpha / r of one target (alpha / sqrt(r) with rslora); UserError when its rank is not the recorded one."""
        expected = _by_pattern(self.config.get("rank_pattern"), path, self.config["r"])
        if rank != expected:
            raise UserError(f"{self.folder}: {path} has rank {rank} in {WEIGHTS_FILE}, but {CONFIG_FILE} says {expected}")
        alpha = _by_pattern(self.config.get("alpha_pattern"), path, self.config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter; raise UserError when it is incomplete or has a feature that this merge does not know."""
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {WEIGHTS_FILE}; pickled weights (.bin) are not read. Save the adapter as safetensors")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    return Adapter(folder, config, tuple(_paired(path, tensors)))


def match(adapter: Adapter, base: Mapping[str, StoredTensor], *, tied: bool) -> Updates:
    """Return what each tensor of the base becomes; raise UserError when a pair or a target is left over or does not fit.

    `tied` says that the base uses its embedding as lm_head too.
    """
    found: dict[str, tuple[Update, ...]] = {}
    faults: list[str] = []
    covered: set[str] = set()
    for pair in adapter.pairs:
        try:
            path, updates = _match_pair(adapter, pair, base, tied=tied)
        except UserError as error:
            faults.append(str(error))
            continue
        covered.add(path)
        faults += [f"{pair.key} targets {name}, which another pair targets too" for name in updates.keys() & found.keys()]
        found.update(updates)
    faults += [
        f"{path} has no pair in {WEIGHTS_FILE}, but {CONFIG_FILE} targets it" for path in _missing(adapter, base, covered)
    ]
    if faults:
        shown = "\n".join(f"  - {fault}" for fault in faults[:8]) + (
            f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else ""
        )
        raise UserError(
            f"the adapter {adapter.folder} does not fit this base:\n{shown}\nMerge it into the base that it was trained on"
        )
    wrong = {name: base[name].dtype for name in found if base[name].dtype not in _MERGED_DTYPES}
    if wrong:
        name, dtype = next(iter(wrong.items()))
        raise UserError(
            f"{name} has type {dtype}; expected one of {', '.join(_MERGED_DTYPES)}. Merge into the base before it was quantized"
        )
    return found


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG_FILE}: it is not a LoRA adapter in peft's layout") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(f"{path} describes an adapter of type {kind!r}; only 'LORA' can be merged")
    unsupported = {key for key, value in config.items() if value and key not in _UNDERSTOOD | _INERT}
    if config.get("bias", "none") != "none":
        unsupported.add("bias")
    if config.get("init_lora_weights") not in _INITS:
        unsupported.add("init_lora_weights")
    if unsupported:
        shown = ", ".join(f"{key}={config[key]!r}" for key in sorted(unsupported))
        raise UserError(f"{path} uses what this merge does not support: {shown}. Merge it with peft's merge_and_unload instead")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise UserError(f"{path}: {key} is {config.get(key)!r}; expected a number above 0")
    return config


def _paired(path: Path, tensors: dict[str, torch.Tensor]) -> Iterable[Pair]:
    halves = {name: re.fullmatch(r"(.+)\.lora_([AB])\.weight", name) for name in tensors}
    strange = sorted(
        name for name, half in halves.items() if half is None or not name.startswith(_PREFIX) or tensors[name].ndim != 2
    )
    if strange or not tensors:
        shown = ", ".join(strange[:4]) or "no tensor at all"
        raise UserError(f"{path} holds {shown}; expected only matrices named {_PREFIX}MODULE.lora_A.weight and .lora_B.weight")
    for key in sorted({half[1] for half in halves.values() if half}):
        a, b = tensors.get(f"{key}.lora_A.weight"), tensors.get(f"{key}.lora_B.weight")
        if a is None or b is None:
            raise UserError(f"{path}: {key} has lora_{'B' if a is None else 'A'} but not lora_{'A' if a is None else 'B'}")
        if a.shape[0] != b.shape[1]:
            raise UserError(f"{path}: {key} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which cannot be multiplied")
        yield Pair(key, key.removeprefix(_PREFIX).replace(".base_layer", ""), a, b)


def _match_pair(adapter: Adapter, pair: Pair, base: Mapping[str, StoredTensor], *, tied: bool) -> tuple[str, Updates]:
    """Return the path of the module or parameter as peft names it, and its updates by tensor."""
    if tied and pair.path in ("lm_head", "model.embed_tokens"):
        raise UserError(f"{pair.path} is adapted, but this base ties lm_head to the embedding: one tensor cannot hold both")
    if pair.path.endswith(_EXPERTS):
        return _match_experts(adapter, pair, base)
    name = f"{pair.path}.weight"
    if name not in base:
        raise UserError(f"{pair.key} has no tensor {name} in the base")
    shape = (pair.b.shape[0], pair.a.shape[1])
    if base[name].shape != shape:
        raise UserError(f"{pair.key} makes {list(shape)}, but {name} is {list(base[name].shape)}")
    scale = adapter.scale(pair.path, pair.a.shape[0])
    return pair.path, {name: (Update(pair.key, pair.a, pair.b, scale, rounded=False),)}


@dataclass(frozen=True)
class _Experts:
    """One layer's experts on disk: the names of gate (w1), down (w2), up (w3) per expert, or of the two fused tensors."""

    count: int
    hidden: int
    width: int
    fused: str = ""
    classic: str = ""


def _find_experts(path: str, base: Mapping[str, StoredTensor]) -> _Experts:
    layer = path.removesuffix(_EXPERTS)
    for fused in (f"{layer}.mlp.experts", f"{layer}.block_sparse_moe.experts"):
        stored = base.get(f"{fused}.down_proj")
        if stored is not None and len(stored.shape) == 3:
            count, hidden, width = stored.shape
            return _Experts(count, hidden, width, fused=fused)
    classic = f"{layer}.block_sparse_moe.experts"
    count = next(e for e in range(len(base) + 1) if f"{classic}.{e}.w2.weight" not in base)
    if not count:
        raise UserError(f"{path} has no experts in the base: neither {path}.down_proj nor {classic}.0.w2.weight")
    hidden, width = base[f"{classic}.0.w2.weight"].shape
    return _Experts(count, hidden, width, classic=classic)


def _match_experts(adapter: Adapter, pair: Pair, base: Mapping[str, StoredTensor]) -> tuple[str, Updates]:
    experts = _find_experts(pair.path, base)
    # How deep `base_layer.` nests depends on the order of registration in peft; only the shape tells the two apart.
    kinds = {(experts.hidden, 2 * experts.width): "gate_up_proj", (experts.width, experts.hidden): "down_proj"}
    shape = (pair.a.shape[1], pair.b.shape[0])
    kind = kinds.get(shape)
    if kind is None or pair.a.shape[0] % experts.count:
        raise UserError(
            f"{pair.key} has lora_A {list(pair.a.shape)} and lora_B {list(pair.b.shape)}, which fit no parameter of "
            f"{experts.count} experts of width {experts.width} on hidden width {experts.hidden}"
        )
    rank = pair.a.shape[0] // experts.count
    path = f"{pair.path}.{kind}"
    scale = adapter.scale(path, rank)
    a = pair.a.reshape(experts.count, rank, -1)  # expert-major
    b = pair.b.reshape(-1, rank, experts.count)  # expert-minor
    each = [Update(pair.key, a[e], b[:, :, e], scale, rounded=True) for e in range(experts.count)]
    updates = {f"{experts.fused}.{kind}": tuple(each)} if experts.fused else _by_expert(experts, kind, each)
    for name, parts in updates.items():
        rows, stored = sum(part.rows for part in parts), base.get(name)
        if stored is None:
            raise UserError(f"{pair.key} has no tensor {name} in the base")
        if (math.prod(stored.shape[:-1]), stored.shape[-1]) != (rows, parts[0].a.shape[1]):
            raise UserError(f"{pair.key} makes {[rows, parts[0].a.shape[1]]} for {name}, which is {list(stored.shape)}")
    return path, updates


def _by_expert(experts: _Experts, kind: str, each: list[Update]) -> Updates:
    updates = {}
    for e, update in enumerate(each):
        if kind == "down_proj":
            updates[f"{experts.classic}.{e}.w2.weight"] = (update,)
            continue
        for name, b in zip(("w1", "w3"), update.b.chunk(2), strict=True):  # gate is the first half of the rows, up the second
            updates[f"{experts.classic}.{e}.{name}.weight"] = (Update(update.pair, update.a, b, update.scale, rounded=True),)
    return updates


def _missing(adapter: Adapter, base: Mapping[str, StoredTensor], covered: set[str]) -> list[str]:
    """Return the modules of the base that the configuration targets and no pair covers: a cut file, or a deeper base."""
    modules, parameters = adapter.config.get("target_modules"), adapter.config.get("target_parameters") or ()
    if any(adapter.config.get(key) for key in ("exclude_modules", "layers_to_transform")):
        return []
    expected = [path for path in map(in_memory, base) if path.endswith(tuple(f".{name}" for name in parameters))]
    if isinstance(modules, (list, tuple)):  # a regular expression says nothing about what it should have found
        paths = (name.removesuffix(".weight") for name in base if name.endswith(".weight"))
        expected += [path for path in paths if path.endswith(tuple(f".{name}" for name in modules))]
    return sorted(set(expected) - covered)


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the path, by peft's rule."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
