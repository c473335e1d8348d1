"""The weights of a large model, tensor by tensor: into a model that has none yet, and out of one that is spread over devices.

The host holds one parameter at a time, never the model: what is read lies in the mapped file until the device has copied it,
what is written goes straight to its place in its file, for all sizes are known beforehand. Names, values and files are those of
`from_pretrained` and `save_pretrained`. Knows nothing of devices; adapters are saved by their trainer.

Shapes of a mixture: E experts, H hidden size, F the experts' inner size. In memory gate_up_proj [E, 2F, H] (rows of w1, then of
w3) and down_proj [E, H, F]; on disk the same, or, as Mixtral was published, w1 and w3 [F, H] and w2 [H, F] of each expert.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from sysscan_models.errors import IntegrityError, SysscanError, UserError
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_folder import INDEX, SINGLE, BaseFolder
from sysscan_plugins.training.base_model import ARCHITECTURES, read_config
from sysscan_plugins.training.tensor_file import StoredTensor, TensorFile

Gathered = Callable[[torch.Tensor], torch.Tensor]
"""Returns a whole parameter on the CPU: `Device.gathered`."""

_Places = Mapping[str, tuple[Path, StoredTensor]]
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class _Piece:
    """A tensor on disk, and which part of its parameter it is."""

    name: str
    shape: tuple[int, ...]
    part: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class _Parameter:
    """A parameter as the model wants it, and the tensors that it is made of."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    groups: tuple[tuple[_Piece, ...], ...]
    """What transformers keeps in one file."""

    @property
    def pieces(self) -> list[_Piece]:
        return [piece for group in self.groups for piece in group]


def skeleton(folder: Path, options: TrainingOptions) -> Any:
    """Return the causal LM of a base folder in the compute dtype, its parameters on the meta device and its buffers real.

    Tied weights are one parameter. Reads no weight. Raises UserError for what cannot be trained.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    read_config(folder)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.compute_dtype]
    try:
        with init_empty_weights(include_buffers=False):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # a configuration that makes no sense makes its library raise whatever it stumbles over
        raise UserError(f"the model in {folder} cannot be loaded ({type(error).__name__}: {error})") from error
    model.tie_weights()  # each parameter was replaced when it was assigned, the tied ones too
    return model.eval()


def stored_parameters(folder: Path, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Return an iterator over the base's parameters, in the model's order, each once: its name and its values.

    `model` is a `skeleton` of the folder or a PEFT model around one; names are those of its `named_parameters()`, adapters
    are left out. The tensors are on the CPU, in the dtype of the model's parameter; they may be the mapped file itself, so
    copy them and let them go before the next. The model is looked at now, the values are read as they are asked for.

    Raises UserError for a folder that does not fit the model, IntegrityError for damaged or missing weights.
    """
    base = BaseFolder.open(folder)
    wanted = list(_base_parameters(model, classic=_classic(base)))
    places = _places(base, tied=all(_base_name(parameter.name) != _HEAD for parameter in wanted))
    _check_stored(folder, wanted, places)
    return ((parameter.name, _read(parameter, places)) for parameter in wanted)


def _base_parameters(model: Any, *, classic: bool) -> Iterator[_Parameter]:
    for name, parameter in model.named_parameters():
        if not _is_adapter(name):
            shape = tuple(parameter.shape)
            yield _Parameter(name, shape, parameter.dtype, _on_disk(_base_name(name), shape, classic=classic))


def _base_name(name: str) -> str:
    """Return what the base model itself calls a parameter of a PEFT model."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _classic(base: BaseFolder) -> bool:
    """Say whether the folder has a mixture's experts one by one."""
    return any(".experts.0.w1." in name for name in base.tensors)


def _on_disk(name: str, shape: tuple[int, ...], *, classic: bool) -> tuple[tuple[_Piece, ...], ...]:
    """Return the groups of tensors that a parameter is on disk."""
    if not classic:
        return ((_Piece(name, shape),),)
    block, _, last = name.partition(".mlp.experts.")
    experts = range(shape[0])
    if last == "gate_up_proj":
        half, width = shape[1] // 2, shape[2]
        rows = {"w1": slice(0, half), "w3": slice(half, None)}
        return tuple(
            tuple(_Piece(_expert(block, e, kind), (half, width), (e, part)) for e in experts) for kind, part in rows.items()
        )
    if last == "down_proj":
        return (tuple(_Piece(_expert(block, e, "w2"), shape[1:], (e,)) for e in experts),)
    return ((_Piece(name.replace(".mlp.", ".block_sparse_moe."), shape),),)


def _expert(block: str, number: int, kind: str) -> str:
    return f"{block}.block_sparse_moe.experts.{number}.{kind}.weight"


def _places(base: BaseFolder, *, tied: bool) -> _Places:
    """Return where tensors are by the names that a model looks for; a tied pair may be stored under either name, or both."""
    places = {tensor.name: (file.path, tensor) for file in base.files for tensor in file.tensors}
    if not tied or _HEAD not in places:
        return places
    if _EMBEDDING not in places:
        return {**places, _EMBEDDING: places[_HEAD]}
    if not torch.equal(_load(*places[_HEAD]), _load(*places[_EMBEDDING])):
        raise UserError(
            f"{base.path}: its config.json ties {_HEAD} to {_EMBEDDING}, but both are stored and differ; set "
            f"tie_word_embeddings to false there, or use the config.json that belongs to these weights"
        )
    return places


def _check_stored(folder: Path, wanted: Iterable[_Parameter], places: _Places) -> None:
    pieces = [piece for parameter in wanted for piece in parameter.pieces]
    if missing := sorted(piece.name for piece in pieces if piece.name not in places):
        raise IntegrityError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for: {', '.join(missing[:3])}; "
            f"fetch the base model again"
        )
    for piece in pieces:
        if (found := places[piece.name][1].shape) != piece.shape:
            raise UserError(
                f"the model in {folder} cannot be loaded: {piece.name} has shape {list(found)}, its config.json expects "
                f"{list(piece.shape)}. Use the config.json that belongs to these weights"
            )


def _read(parameter: _Parameter, places: _Places) -> torch.Tensor:
    pieces = parameter.pieces
    if not pieces[0].part:
        return _load(*places[pieces[0].name]).to(parameter.dtype)
    whole = torch.empty(parameter.shape, dtype=parameter.dtype)
    for piece in pieces:
        whole[piece.part].copy_(_load(*places[piece.name]))
    return whole


def _load(path: Path, tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor as it is stored: the mapped file, which is let go with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values: torch.Tensor = file.get_tensor(tensor.name)
            return values
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"the weights in {path.parent} are damaged ({error}); fetch the base model again") from error


def initial_adapters(model: Any, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Return an iterator over the trainable adapters of a PEFT model, in its order: name and first values, on the CPU.

    The distribution is peft's own: lora_A [r, in] (experts: [E r, in]) uniform within 1/sqrt(in) of 0, lora_B zeros. A
    tensor depends on the seed, its name and its shape alone, so that it is the same on any number of devices.
    """
    wanted = [
        (name, tuple(parameter.shape), parameter.dtype)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _is_adapter(name)
    ]
    return ((name, _initial(name, shape, seed).to(dtype)) for name, shape, dtype in wanted)


def _initial(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if ".lora_B." in name:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def write_model(model: Any, gathered: Gathered, base: Path, out_dir: Path, *, shard_bytes: int, write: bool = True) -> None:
    """Write config.json and safetensors (shards with an index when it is larger than one) with the bytes of `save_pretrained`.

    `model` is a causal LM, its parameters wherever they are; `gathered` is called once for each, in the same order in every
    process, and only the process with `write` writes. A mixture's experts are written as the folder `base` has them, tied
    weights once; generation_config.json is left to `write_generation_config`.

    Raises SysscanError when the disk does not take the files.
    """
    found = dict(model.named_parameters())
    parameters = sorted(_base_parameters(model, classic=_classic(BaseFolder.open(base))), key=_natural)
    files = _lay_out(parameters, out_dir, shard_bytes)
    places = {tensor.name: (file.path, tensor.start) for file in files for tensor in file.tensors}
    if write:
        with _disk(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
            _write_config(model, parameters[0].dtype, out_dir)
            _write_empty(files, out_dir, sum(math.prod(parameter.shape) for parameter in parameters))
    for parameter in parameters:
        whole = gathered(found[parameter.name])
        if write:
            with _disk(out_dir):
                _write_parameter(parameter, whole, places)
        del whole  # before the next one comes
    if write:
        with _disk(out_dir):
            for file in files:
                with file.path.open("rb") as stream:
                    os.fsync(stream.fileno())


@contextmanager
def _disk(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SysscanError(
            f"the model cannot be written to {out_dir} ({error}); make room there or choose another models folder"
        ) from error


def _natural(parameter: _Parameter) -> list[tuple[int, int, str]]:
    """Sort as transformers does: numbers between dots by value."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in parameter.name.split(".")]


def _lay_out(parameters: Iterable[_Parameter], out_dir: Path, shard_bytes: int) -> list[TensorFile]:
    """Return the files and where each tensor goes in them; nothing is written."""
    from huggingface_hub import split_state_dict_into_shards_factory

    groups = {group[0].name: (group, parameter.dtype) for parameter in parameters for group in parameter.groups}
    split = split_state_dict_into_shards_factory(
        {name: sum(math.prod(piece.shape) for piece in group) * dtype.itemsize for name, (group, dtype) in groups.items()},
        get_storage_size=int,
        filename_pattern=SINGLE.replace(".", "{suffix}."),
        max_shard_size=shard_bytes,
    )
    return [
        _file(out_dir / name, {piece.name: (piece.shape, groups[first][1]) for first in firsts for piece in groups[first][0]})
        for name, firsts in split.filename_to_tensors.items()
    ]


def _file(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> TensorFile:
    """Lay out one file as the library's own writer does: wide types first, then by name; the header ends at a multiple of 8."""
    ends = 0
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        start, ends = ends, ends + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, ends]}
    text = orjson.dumps(entries)
    text += b" " * (-len(text) % 8)
    del entries["__metadata__"]
    first = 8 + len(text)
    stored = (
        StoredTensor(name, entry["dtype"], entry["shape"], *(first + offset for offset in entry["data_offsets"]))
        for name, entry in entries.items()
    )
    return TensorFile(path, len(text).to_bytes(8, "little") + text, tuple(stored))


def _write_config(model: Any, dtype: torch.dtype, out_dir: Path) -> None:
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [ARCHITECTURES[config.model_type]]  # not the class: a sharded model has another
    config.save_pretrained(out_dir)


def _write_empty(files: Sequence[TensorFile], out_dir: Path, parameters: int) -> None:
    """Write the files' headers, with room for the tensors, and the index when there is more than one."""
    for file in files:
        with file.path.open("wb") as stream:
            stream.write(file.header)
            stream.truncate(file.size)
    if len(files) > 1:
        size = sum(tensor.size for file in files for tensor in file.tensors)
        weight_map = {tensor.name: file.path.name for file in files for tensor in file.tensors}
        index = {"metadata": {"total_parameters": parameters, "total_size": size}, "weight_map": weight_map}
        text = orjson.dumps(index, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        (out_dir / INDEX).write_bytes(text)


def _write_parameter(parameter: _Parameter, whole: torch.Tensor, places: Mapping[str, tuple[Path, int]]) -> None:
    if whole.shape != parameter.shape or whole.dtype != parameter.dtype:
        raise ValueError(
            f"{parameter.name}: gathered {whole.dtype} {list(whole.shape)}, expected {parameter.dtype} {list(parameter.shape)}"
        )
    for piece in parameter.pieces:
        path, start = places[piece.name]
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(whole.detach()[piece.part].contiguous().view(torch.uint8).numpy().data)
