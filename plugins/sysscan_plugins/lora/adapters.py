"""Adapters: put on a base model with peft, trained by the shared loop, and saved in peft's own layout.

The base stays as it is, a mixture's router included; nothing here adds its auxiliary loss, which means nothing while the router
is frozen. How a step is taken is the loop's business, and merging is `merging`'s.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import save_file

from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, made_now
from sysscan_models.errors import SysscanError
from sysscan_models.interfaces import TrainJob
from sysscan_models.progress import say
from sysscan_plugins.lora import EXPERT_PARAMETERS, Lora
from sysscan_plugins.lora.pairs import CONFIG_FILE, WEIGHTS_FILE
from sysscan_plugins.lora.targets import by_group, check_targets
from sysscan_plugins.training.base_model import (
    BaseTokenizer,
    carry_over,
    load_model,
    load_tokenizer,
    write_generation_config,
)
from sysscan_plugins.training.devices import Device, open_device
from sysscan_plugins.training.loop import train_model
from sysscan_plugins.training.results import open_out_dir, publish_files, record_result
from sysscan_plugins.training.weights import initial_adapters, skeleton, stored_parameters

_SAVING = ".saving"


def train(job: TrainJob, options: Lora) -> Checkpoint:
    """Train adapters for one role and return their saved artifact; what an interrupted run left in `job.out_dir` is resumed.

    Raises what `train_model` raises, and UserError when the base has nothing that the options ask for.
    """
    started = time.monotonic()
    open_out_dir(job)
    expected = by_group(check_targets(job.base.root, options).items())
    with open_device(job.device) as device:
        tokenizer = load_tokenizer(job.base.root, trains_embeddings=False)
        model = load_adapted(job.base.root, options, job.seed, streams=device.streams)
        groups = trained_parameters(model)
        if groups != expected:
            raise SysscanError(
                f"adapters were put on {_listed(groups)}; expected {_listed(expected)}. Report this with your peft version"
            )
        say(f"train {job.role.name}: trained parameters: {_listed(groups)}; all others are frozen")
        weights = None
        if device.streams:
            weights = chain(stored_parameters(job.base.root, model), initial_adapters(model, job.seed))
        with expert_load(model) as load:
            result = train_model(model, tokenizer.tokenizer, job, options, device, template=tokenizer.template, weights=weights)
        names = save_adapter(model, job, tokenizer, options, device)
        made = made_now(seconds=time.monotonic() - started, device=device.name, packages=("torch", "transformers", "peft"))
        told = _told({name: device.added_up(times) for name, times in load.items()})
        if device.process == 0:
            record_result(result, names, job, options, {**made, "trained_parameters": groups, **told})
        device.wait()
    return Checkpoint.load(job.out_dir)


def load_adapted(base_dir: Path, options: Lora, seed: int, *, streams: bool = False) -> Any:
    """Return the base with fresh adapters around it, a PEFT model on the CPU in the compute dtype; only the adapters train.

    With `streams` no parameter has values yet.
    """
    from peft import LoraConfig, get_peft_model

    model = skeleton(base_dir, options) if streams else load_model(base_dir, options)
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False  # no auxiliary loss: it would pull at a router that cannot move
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        target_modules=list(options.targets),
        target_parameters=list(EXPERT_PARAMETERS) if options.experts else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        # The loop keeps fp32 masters; fp32 adapters on a bf16 base would only make every step slower.
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if not streams:
        adapters = dict(adapted.named_parameters())
        with torch.no_grad():
            for name, values in initial_adapters(adapted, seed):
                adapters[name].copy_(values)
    return adapted


def trained_parameters(model: Any) -> dict[str, int]:
    """Return how many numbers train in each group: attention, mlp, experts, other."""
    return by_group((name, tuple(parameter.shape)) for name, parameter in model.named_parameters() if parameter.requires_grad)


@contextmanager
def expert_load(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Give a dict that at the end fills with how often training chose each expert, [E] by router; empty for a dense model.

    A frozen router that sends everything to few experts is the user's to know about. The counts are buffers of the routers,
    so that they go where the model goes and no step is unlike another. Where rows are padded (TPU), padding counts.
    """
    routers = {name: module for name, module in model.named_modules() if type(module).__name__ == "MixtralTopKRouter"}
    load: dict[str, torch.Tensor] = {}

    def count(module: Any, _: Any, output: Any) -> None:
        if module.training:
            experts = torch.arange(module.num_experts, device=output[2].device)
            module.chosen += (output[2].reshape(-1, 1) == experts).sum(0)

    for module in routers.values():
        module.register_buffer("chosen", torch.zeros(module.num_experts, dtype=torch.int64), persistent=False)
    handles = [module.register_forward_hook(count) for module in routers.values()]
    try:
        yield load
    finally:
        for handle in handles:
            handle.remove()
        load.update((name, module._buffers.pop("chosen")) for name, module in routers.items())


def save_adapter(model: Any, job: TrainJob, tokenizer: BaseTokenizer, options: Lora, device: Device) -> list[str]:
    """Write adapters and configuration in peft's layout, with the base's tokenizer and settings; return the names."""
    from peft import get_peft_model_state_dict

    adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
    gathered = {name: device.gathered(tensor).contiguous() for name, tensor in adapters.items()}
    if device.process != 0:
        return []
    temporary = job.out_dir / _SAVING
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(gathered, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    config = orjson.dumps(
        _plain(model.peft_config["default"].to_dict(), job.base), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
    )
    (temporary / CONFIG_FILE).write_bytes(config)
    carry_over(job.base.root, tokenizer, temporary)
    write_generation_config(job.base.root, tokenizer.encoder(options).end_tokens(), temporary)
    return publish_files(temporary, job.out_dir)


def _plain(config: dict[str, Any], base: BaseCheckpoint) -> dict[str, Any]:
    """Return peft's configuration without this machine's paths and versions, sets in order: equal runs give equal bytes."""
    del config["peft_version"]
    # A folder's name must not pass for a hub id: a stranger's model of that name is not this base.
    config["base_model_name_or_path"] = base.reference if base.revision else f"path:{Path(base.reference).name}"
    config["revision"] = base.revision if base.revision and ":" not in base.reference else None
    config["inference_mode"] = True
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _listed(groups: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {count:,}" for group, count in groups.items())


def _told(load: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Say how evenly the experts were used, and return each layer's shares for the record."""
    shares = {name: (times / times.sum().clamp(min=1)).tolist() for name, times in load.items()}
    if not shares:
        return {}
    every = [share for layer in shares.values() for share in layer]
    even = 1 / len(next(iter(shares.values())))
    say(f"expert load: {min(every):.1%} to {max(every):.1%} of the choices went to an expert (even would be {even:.1%})")
    return {"expert_load": {name: [round(share, 4) for share in layer] for name, layer in shares.items()}}
