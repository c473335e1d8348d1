"""Weights read and written tensor by tensor are those of transformers, and the host never holds the model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from sysscan_models.errors import IntegrityError, SysscanError, UserError
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.base_model import load_model
from sysscan_plugins.training.weights import initial_adapters, skeleton, stored_parameters, write_model

pytestmark = pytest.mark.training

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 11}),  # two digits: sorted by number
    "fused": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
}
SHARD = 20_000
"""Bytes; smaller than a mixture's gate_up_proj."""
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def save_base(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = SHARD, **changes: Any) -> Path:
    model_class, config_class, own = KINDS[kind]
    sizes = {
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 11,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **own,
        **changes,
    }
    torch.manual_seed(7)
    model = model_class(config_class(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    layout = {"save_original_format": False} if kind == "fused" else {}
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_bytes, **layout)
    return folder


def options(dtype: str = "bfloat16") -> TrainingOptions:
    return FullFinetune(compute_dtype=dtype)


def adapted(model: Any, *, experts: bool, dtype: torch.dtype | None = None, rank: int = 4) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        target_modules=["q_proj", "v_proj", "o_proj"],
        target_parameters=EXPERTS if experts else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors of a folder with one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_skeleton_has_no_weights_but_its_buffers(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral")
    model, loaded = skeleton(folder, options()), load_model(folder, options())
    assert not model.training
    assert {name: (p.shape, p.dtype) for name, p in model.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in loaded.named_parameters()
    }
    assert all(parameter.is_meta for parameter in model.parameters())
    buffers = dict(model.named_buffers())
    assert buffers
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    for name, buffer in loaded.named_buffers():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer)


def test_tied_weights_of_a_skeleton_are_one_parameter(tmp_path: Path) -> None:
    model = skeleton(save_base(tmp_path / "base", "tied"), options())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_meta


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_transformers_loads(kind: str, compute: str, stored: torch.dtype, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", kind, stored)
    assert len(list(folder.glob("*.safetensors"))) > 3
    model = skeleton(folder, options(compute))
    expected = dict(load_model(folder, options(compute)).named_parameters())
    names = []
    for name, tensor in stored_parameters(folder, model):
        names.append(name)
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert names == list(expected)


@pytest.mark.parametrize("kind", ["llama", "tied", "mixtral", "fused"])
def test_a_peft_model_gets_the_frozen_parameters_under_its_own_names(kind: str, tmp_path: Path) -> None:
    folder, experts = save_base(tmp_path / "base", kind), kind in ("mixtral", "fused")
    model = adapted(skeleton(folder, options()), experts=experts)
    loaded = adapted(load_model(folder, options()), experts=experts)
    assert all(parameter.is_meta for parameter in model.parameters())
    frozen = {name: parameter for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    found = dict(stored_parameters(folder, model))
    assert list(found) == list(frozen)
    assert all(torch.equal(found[name], frozen[name]) for name in frozen)
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    adapters = dict(initial_adapters(model, 1))
    assert adapters.keys() == trained
    assert {name: tensor.shape for name, tensor in adapters.items()} == {
        name: parameter.shape for name, parameter in loaded.named_parameters() if parameter.requires_grad
    }


def test_the_model_may_move_before_the_values_are_read(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral")
    model = skeleton(folder, options())
    values = stored_parameters(folder, model)
    model.to_empty(device="cpu").double()
    assert {tensor.dtype for _, tensor in values} == {torch.bfloat16}


def test_a_tied_embedding_may_be_stored_as_the_head(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "tied", shard_bytes=10**9)
    expected = dict(load_model(folder, options()).named_parameters())
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    found = dict(stored_parameters(folder, skeleton(folder, options())))
    assert found.keys() == expected.keys()
    assert torch.equal(found["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


def test_a_tied_pair_that_is_stored_twice_must_agree(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "tied", shard_bytes=10**9)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in dict(stored_parameters(folder, skeleton(folder, options())))
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, but both are stored and differ"):
        stored_parameters(folder, skeleton(folder, options()))


def test_missing_weights_are_named_before_anything_is_read(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral", shard_bytes=10**9)
    gone = ["model.layers.1.block_sparse_moe.experts.10.w3.weight", "model.norm.weight"]
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in gone])
    with pytest.raises(IntegrityError, match=rf"lacks 2 weights that its config.json asks for: {', '.join(gone)}; fetch"):
        stored_parameters(folder, skeleton(folder, options()))


def test_weights_of_another_shape_are_the_wrong_configuration(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama", shard_bytes=10**9)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(UserError, match=r"model.norm.weight has shape \[31\], its config.json expects \[32\]. Use the config"):
        stored_parameters(folder, skeleton(folder, options()))


def test_a_shard_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"has \d+ bytes; its header expects \d+. Fetch the file again"):
        stored_parameters(folder, skeleton(folder, options()))


def test_a_shard_that_changes_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    values = stored_parameters(folder, skeleton(folder, options()))
    next(values)
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"the weights in .* are damaged \(.*\); fetch the base model again"):
        next(values)


def test_a_configuration_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "none such"}))
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded \(KeyError: 'none such'\)"):
        skeleton(folder, options())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="a model of type 'gpt2', which training does not support"):
        skeleton(folder, options())


@pytest.mark.parametrize("shard_bytes", [SHARD, 10**9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_save_pretrained(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", kind)
    model = load_model(folder, options())
    fetched: list[torch.Tensor] = []

    def gathered(tensor: torch.Tensor) -> torch.Tensor:
        fetched.append(tensor)
        return tensor.detach().clone()

    write_model(model, gathered, folder, tmp_path / "written", shard_bytes=shard_bytes)
    assert sorted(map(id, fetched)) == sorted(map(id, model.parameters()))
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard_bytes)
    (tmp_path / "saved" / "generation_config.json").unlink()
    written, saved = contents(tmp_path / "written"), contents(tmp_path / "saved")
    assert written.keys() == saved.keys()
    assert len(saved) > 6 if shard_bytes == SHARD else len(saved) == 2
    for name in saved:
        assert written[name] == saved[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_and_written_is_loaded_by_transformers(kind: str, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", kind, torch.float32)
    model = skeleton(folder, options("float32"))
    values = dict(stored_parameters(folder, model))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    write_model(model, lambda parameter: values[name_of[id(parameter)]], folder, tmp_path / "written", shard_bytes=SHARD)
    ids_BT = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        first, second = (load_model(where, options("float32"))(ids_BT).logits for where in (folder, tmp_path / "written"))
    assert torch.equal(first, second)


def test_a_process_that_does_not_write_gathers_the_same_in_the_same_order(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral")
    model = load_model(folder, options())
    orders: list[list[int]] = []
    for write in (True, False):
        orders.append([])

        def gathered(tensor: torch.Tensor, order: list[int] = orders[-1]) -> torch.Tensor:
            order.append(id(tensor))
            return tensor.detach()

        write_model(model, gathered, folder, tmp_path / str(write), shard_bytes=SHARD, write=write)
    assert orders[0] == orders[1]
    assert not (tmp_path / "False").exists()


def test_a_disk_that_does_not_take_the_files_is_named(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    model = load_model(folder, options())
    (tmp_path / "out" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(SysscanError, match=r"the model cannot be written to .*out \(.*\); make room there or choose another"):
        write_model(model, torch.Tensor.detach, folder, tmp_path / "out", shard_bytes=10**9)


def test_a_gathered_part_is_no_parameter(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama")
    model = load_model(folder, options())
    with pytest.raises(ValueError, match=r"lm_head.weight: gathered torch.bfloat16 \[1, 32\], expected"):
        write_model(model, lambda tensor: tensor[:1].detach(), folder, tmp_path / "out", shard_bytes=SHARD)


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_host_never_holds_the_model(compute: str, tmp_path: Path) -> None:
    """190 MB of a mixture in more than 20 shards, experts one by one: read, converted, gathered, written."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_local_experts": 4, "num_hidden_layers": 12}
    folder = save_base(tmp_path / "base", "mixtral", torch.float32, shard_bytes=10**7, **sizes)
    shards = list(folder.glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    assert size > 180e6
    assert len(shards) >= 20
    script = """
        import ctypes, re, sys
        from pathlib import Path
        import torch
        from sysscan_plugins.full_finetune import FullFinetune
        from sysscan_plugins.training.weights import skeleton, stored_parameters, write_model

        def anonymous():
            ctypes.CDLL(None).malloc_trim(0)  # or the allocator's free lists are measured
            return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

        base, out, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
        skeleton(base, FullFinetune(compute_dtype=dtype))  # imports what it needs
        before = anonymous()
        peak = [0, 0]
        model = skeleton(base, FullFinetune(compute_dtype=dtype))
        read = 0
        for name, tensor in stored_parameters(base, model):
            read += int(tensor.view(-1)[::512].isfinite().all()) * tensor.nbytes
            peak[0] = max(peak[0], anonymous() - before)
            del tensor

        def gathered(parameter):
            tensor = torch.ones(parameter.shape, dtype=parameter.dtype)
            peak[1] = max(peak[1], anonymous() - before)
            return tensor

        write_model(model, gathered, base, out, shard_bytes=10**7)
        print(read, *peak)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), str(tmp_path / "out"), compute]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    read, reading, writing = map(int, done.stdout.split())
    written = sum(shard.stat().st_size for shard in (tmp_path / "out").glob("*.safetensors"))
    assert read > 0.99 * (size if compute == "float32" else size / 2)
    assert abs(written - read) < 1e6  # headers
    assert reading < size / 8
    assert writing < size / 8


def test_first_adapters_have_pefts_distribution(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral", num_hidden_layers=2)
    loaded = adapted(load_model(folder, options("float32")), experts=True, rank=16)
    pefts = {name: parameter for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    ours = dict(initial_adapters(adapted(skeleton(folder, options("float32")), experts=True, rank=16), seed=3))
    assert ours.keys() == pefts.keys()
    for name, tensor in ours.items():
        if "lora_B" in name:
            assert not tensor.any()
            assert not pefts[name].any()
            continue
        bound = 1 / math.sqrt(tensor.shape[1])
        for values in (tensor, pefts[name].detach()):  # the uniform distribution's extremes, mean and variance
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.98 * bound
            assert abs(values.mean()) < 0.15 * bound
            assert abs(values.var() / (bound**2 / 3) - 1) < 0.2
    assert any(tensor.shape == (11 * 16, 40) for tensor in ours.values())  # the experts' down_proj


def test_first_adapters_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "mixtral", num_hidden_layers=2)
    model = adapted(skeleton(folder, options("float32")), experts=True)
    state = torch.get_rng_state()
    first = dict(initial_adapters(model, seed=3))
    assert torch.equal(torch.get_rng_state(), state)  # the run's own draws are untouched
    fewer = dict(initial_adapters(adapted(skeleton(folder, options("float32")), experts=False), seed=3))
    assert len(fewer) < len(first)
    assert all(torch.equal(first[name], tensor) for name, tensor in fewer.items())
    other = dict(initial_adapters(model, seed=4))
    drawn = [tensor for name, tensor in first.items() if "lora_A" in name]
    drawn += [tensor for name, tensor in other.items() if "lora_A" in name]
    assert len({tuple(tensor.flatten()[:4].tolist()) for tensor in drawn}) == len(drawn)


def test_first_adapters_are_the_same_with_every_version(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "llama", num_hidden_layers=1)
    model = adapted(skeleton(folder, options("bfloat16")), experts=False)
    found = dict(initial_adapters(model, seed=3))
    tensor = found["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert tensor.dtype == torch.bfloat16
    assert tensor.shape == (4, 32)
    assert tensor[0, :3].tolist() == [0.1337890625, -0.173828125, 0.1005859375]


def test_frozen_adapters_are_left_as_they_are(tmp_path: Path) -> None:
    model = adapted(skeleton(save_base(tmp_path / "base", "llama"), options()), experts=False)
    assert list(initial_adapters(model.requires_grad_(False), seed=3)) == []
