"""The price of a run: formulas against what real tiny models hold, known models against their published sizes, verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sysscan_models import machine, planning
from sysscan_models.artifacts import BaseCheckpoint, Checkpoint
from sysscan_models.config import load_config, parse_config
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Estimate, Trainer, TrainJob
from sysscan_models.pipeline import Pipeline
from sysscan_models.planning import full_memory, lora_memory, shape_of
from sysscan_models.planning.disk import quantized_bytes
from sysscan_models.planning.memory import RUNTIME, SLACK
from sysscan_models.planning.pricing import Here
from sysscan_models.planning.shapes import KNOWN, Shape, read_weights
from sysscan_models.planning.verdicts import judge
from sysscan_models.testing.fixtures import ConfigFactory

pytest_plugins = ["sysscan_models.testing"]

GB = 10**9
KINDS = ["llama", "tied", "biased", "mixtral"]


def tiny(kind: str, dtype: str = "float32", **changes: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 259, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": kind == "tied",
        **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "mixtral":
        model: Any = MixtralForCausalLM(MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **sizes))
    else:
        biases = {"attention_bias": True, "mlp_bias": True} if kind == "biased" else {}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **biases))
    return model.to(getattr(torch, dtype))


def shape_of_model(model: Any) -> Shape:
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    shape = shape_of(config)
    assert shape is not None
    return shape


def pipeline(text: str, folder: Path, **options: Any) -> Pipeline:
    return Pipeline(parse_config(text, source="test", folder=folder, **options))


def configured(folder: Path, base: str, trainer: str = 'name = "lora"', *overrides: str) -> Pipeline:
    text = (
        f'device = "cpu"\n[data]\narchive = "sample"\n[roles.specialist]\nbase = "{base}"\n'
        f"[roles.specialist.trainer]\n{trainer}\n"
    )
    return pipeline(text, folder, overrides=overrides)


def line(price: planning.Price, subject: str, what: str) -> planning.Line:
    return next(line for line in price.lines if line.subject == subject and what in line.what)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_has_the_tensors_of_the_real_model(kind: str) -> None:
    model = tiny(kind)
    shape = shape_of_model(model)
    real = Counter(tuple(parameter.shape) for parameter in model.parameters())
    ours: Counter[tuple[int, ...]] = Counter()
    for tensor in shape.tensors():
        ours[tensor.shape] += tensor.count
    assert ours == real
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_known_models_have_their_published_sizes() -> None:
    published = {
        "meta-llama/meta-llama-3-8b": 8_030_261_248,
        "mistralai/mixtral-8x7b-instruct-v0.1": 46_702_792_704,
        "embedded:smollm2-135m-instruct": 134_515_008,
        "huggingfacetb/smollm2-360m": 361_821_120,
        "huggingfacetb/smollm2-1.7b": 1_711_376_384,
    }
    assert {name: KNOWN[name].parameters for name in published} == published


@pytest.mark.parametrize("kind", ["llama", "tied", "mixtral"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_full_training_holds_is_exact(kind: str, optimizer: str, dtype: str) -> None:
    import torch

    from sysscan_plugins.full_finetune import FullFinetune
    from sysscan_plugins.training.optimizers import MasterOptimizer

    model, options = tiny(kind, dtype), FullFinetune(optimizer=optimizer, compute_dtype=dtype, max_seq_length=16)
    held = held_after_one_step(model, MasterOptimizer(dict(model.named_parameters()), options), torch)
    memory = full_memory(shape_of_model(model), options)
    assert {name: getattr(memory, name) for name in held} == held
    assert memory.checkpoint == 4 * memory.trained + held["optimizer"]


@pytest.mark.parametrize(("kind", "experts"), [("llama", False), ("mixtral", False), ("mixtral", True)])
def test_what_lora_training_holds_is_exact(kind: str, experts: bool, tmp_path: Path) -> None:
    import torch

    from sysscan_plugins.lora import Lora
    from sysscan_plugins.lora.adapters import load_adapted
    from sysscan_plugins.training.optimizers import MasterOptimizer

    options = Lora(rank=3, dropout=0, experts=experts, max_seq_length=16)
    shape = shape_of_model(tiny(kind))
    tiny(kind, "bfloat16").save_pretrained(tmp_path)
    model = load_adapted(tmp_path, options, seed=1)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = held_after_one_step(model, MasterOptimizer(trained, options), torch)
    memory = lora_memory(shape, options)
    assert {name: getattr(memory, name) for name in held} == held
    assert memory.trained == sum(parameter.numel() for parameter in trained.values())


def held_after_one_step(model: Any, optimizer: Any, torch: Any) -> dict[str, int]:
    """Take a step and count the bytes of what stays."""
    model(torch.arange(16)[None], labels=torch.arange(16)[None], use_cache=False).loss.backward()
    arrived = sum(buffer.nbytes for buffer in optimizer._buffers.values())
    own = sum(master.grad.nbytes for master in optimizer.masters.values() if master.grad is not None)
    optimizer.update(1e-3, 1.0)
    copies = [master for name, master in optimizer.masters.items() if master is not optimizer.parameters[name]]
    state = [value for _, value in optimizer.tensors() if _.partition(":")[0] != "master"]
    return {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "masters": sum(master.nbytes for master in copies),
        "gradients": arrived + own,
        "optimizer": sum(value.nbytes for value in state),
    }


def kept_for_backward(model: Any, decoder: Any, length: int) -> int:
    """Return the bytes that autograd keeps of a forward pass through the decoder, the parameters themselves left out."""
    import torch

    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    embedded = torch.randn(1, length, model.config.hidden_size, dtype=model.dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decoder(inputs_embeds=embedded, use_cache=False)
    assert output is not None  # the graph lives until here
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("trained", [True, False])
def test_activations_are_those_that_autograd_keeps(kind: str, dtype: str, trained: bool) -> None:
    from sysscan_plugins.full_finetune import FullFinetune
    from sysscan_plugins.lora import Lora

    model = tiny(kind, dtype, hidden_size=128, intermediate_size=352).requires_grad_(trained)
    options: dict[str, Any] = {"compute_dtype": dtype, "max_seq_length": 256, "micro_batch_size": 1}
    shape = shape_of_model(model)
    memory = full_memory(shape, FullFinetune(**options)) if trained else lora_memory(shape, Lora(**options))
    assert memory.peak_low - memory.persistent == pytest.approx(kept_for_backward(model, model.model, 256), rel=0.1)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_what_adapters_keep_of_every_layer_lies_between_the_bounds(kind: str, tmp_path: Path) -> None:
    from sysscan_plugins.lora import Lora
    from sysscan_plugins.lora.adapters import load_adapted

    options, length = Lora(rank=8, max_seq_length=256), 256
    plain = tiny(kind, "bfloat16", num_hidden_layers=12)
    plain.save_pretrained(tmp_path)
    model = load_adapted(tmp_path, options, seed=1).train()
    memory = lora_memory(shape_of_model(plain), options)
    high = (memory.peak_high - RUNTIME) / SLACK
    kept = kept_for_backward(model, model.get_base_model().model, length)
    assert memory.peak_low < memory.persistent + kept < high


def test_options_that_save_memory_do() -> None:
    from sysscan_plugins.full_finetune import FullFinetune
    from sysscan_plugins.lora import Lora

    shape = KNOWN["meta-llama/meta-llama-3-8b"]
    plain = full_memory(shape, FullFinetune())
    assert plain.persistent == pytest.approx(18 * shape.parameters, rel=1e-3)
    assert full_memory(shape, FullFinetune(gradient_checkpointing=True)).peak_high < plain.peak_high - 20 * GB
    assert full_memory(shape, FullFinetune(optimizer="adafactor")).persistent == pytest.approx(10 * shape.parameters, rel=1e-2)
    assert full_memory(shape, FullFinetune(micro_batch_size=4)).peak_low > plain.peak_low
    assert lora_memory(shape, Lora()).persistent < 2.1 * shape.parameters
    apart = full_memory(shape, FullFinetune(), devices=8)
    assert apart.persistent == pytest.approx(plain.persistent / 8, rel=1e-3)


def test_sizes_of_gguf_files_are_near_published_ones() -> None:
    llama, small = KNOWN["meta-llama/meta-llama-3-8b"], KNOWN["embedded:smollm2-135m-instruct"]
    assert quantized_bytes(llama.parameters, "Q4_K_M", llama) == pytest.approx(4.92 * GB, rel=0.03)
    assert quantized_bytes(llama.parameters, "Q8_0", llama) == pytest.approx(8.54 * GB, rel=0.03)
    assert quantized_bytes(small.parameters, "Q4_K_M", small) == pytest.approx(105.5e6, rel=0.15)


@pytest.mark.parametrize("recipe", ["demo", "gpu", "tpu"])
def test_recipes_are_priced_without_their_models_and_without_a_socket(recipe: str, tmp_path: Path) -> None:
    program = (
        "import sys\nseen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(event) if event.startswith('socket.') else None)\n"
        f"sys.argv = ['sysscan-models', 'plan', '--json', '--recipe', {recipe!r}, '--set', 'data.archive=sample']\n"
        "from sysscan_models.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\nelse:\n    code = 0\n"
        "heavy = {'torch', 'transformers', 'gguf'} & set(sys.modules)\n"
        "print('@', code, sorted(set(seen)), sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    body, _, tail = done.stdout.rpartition("@")
    price = json.loads(body)
    code = "0" if recipe == "demo" else "2"
    assert tail.split(maxsplit=1) == [code, "[] []\n"], done.stderr
    assert list(tmp_path.iterdir()) == []
    specialist, generalist = price["roles"]["specialist"], price["roles"]["generalist"]
    if recipe == "demo":
        assert specialist["base"]["parameters"] == 134_515_008
        assert specialist["tokens"]["high"] <= 65_000
        assert price["disk"]["complete"]
        assert price["disk"]["peak"] < 10 * GB
        return
    assert specialist["base"]["parameters"] == 8_030_261_248
    assert generalist["base"]["size"] == pytest.approx(93.4 * GB, rel=0.01)
    assert generalist["parts"]["trained"] == 13_631_488
    assert 200 * GB < price["disk"]["final"] < price["disk"]["peak"] < 500 * GB
    where = "v6e-4" if recipe == "tpu" else "H200 141 GB"
    assert any(where in line["advice"] for line in price["lines"] if "memory" in line["what"] and line["verdict"] == "refuse")
    assert "nothing was started" in done.stderr


def test_everything_that_cannot_fit_is_refused_at_once(tmp_path: Path) -> None:
    giant(tmp_path / "giant")
    work = configured(tmp_path, "giant", 'name = "full_finetune"', 'data.archive="nowhere.tar.gz"')
    price = planning.price(work)
    with pytest.raises(UserError) as refused:
        planning.refuse(price)
    text = str(refused.value)
    assert "for 3 reasons; nothing was started" in text
    assert "there is no such file or folder" in text
    assert "specialist, memory (RAM): needs" in text
    assert "TB held" in text
    assert "No option makes it fit; take a smaller base model" in text
    assert "Set models_dir to a larger file system" in text
    assert "--force" in text


def giant(folder: Path) -> None:
    """Write a model folder that is small on disk and enormous by its header and configuration."""
    folder.mkdir()
    sizes = {
        "hidden_size": 1 << 18,
        "intermediate_size": 1 << 19,
        "num_hidden_layers": 10,
        "num_attention_heads": 64,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **sizes}))
    write_header(folder / "model.safetensors", {"weight": {"dtype": "BF16", "shape": [1 << 40], "data_offsets": [0, 2]}}, 2)


def write_header(path: Path, header: dict[str, Any], data: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


def test_what_fits_is_not_refused_and_the_text_fits_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("llama", "bfloat16").save_pretrained(tmp_path / "base")
    price = planning.price(configured(tmp_path, "base"))
    planning.refuse(price)
    assert {line.verdict for line in price.lines} == {"ok"}
    assert line(price, "specialist", "training").here.endswith("time unknown: no speed was measured yet")
    assert "exact after `sysscan-models prepare`" in line(price, "specialist", "training").here
    for width in (60, 100, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        text = planning.as_text(price)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
        assert sum(row.split()[-1:] == ["ok"] for row in text.splitlines()) == len(price.lines)


def test_a_trainers_own_estimate_is_used_once_the_splits_are_there_and_agrees_with_the_formula(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    source_of_tokenizer(base)
    vocabulary = len(AutoTokenizer.from_pretrained(base))
    tiny("llama", "bfloat16", vocab_size=vocabulary).save_pretrained(base)
    work = configured(tmp_path, "base", 'name = "full_finetune"\nmax_seq_length = 4096\nepochs = 2')
    before = planning.price(work).roles["specialist"]
    work.prepare()
    price = planning.price(work)
    role = price.roles["specialist"]
    assert role.notes == ()
    assert role.tokens is not None
    assert role.tokens.low == role.tokens.high
    assert role.steps is not None
    assert role.steps.low == role.steps.high
    assert role.parts is not None
    assert role.persistent == role.parts.persistent == before.persistent
    assert line(price, "data", "splits").here == "up to date"


def source_of_tokenizer(folder: Path) -> None:
    """Write the tokenizer of the stubs' tiny model."""
    from sysscan_models.testing import StubSource

    StubSource().fetch("any", folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


def test_stages_that_are_done_cost_nothing_more(sysscan_stub_config: ConfigFactory, sysscan_stub_registry: Any) -> None:
    config = sysscan_stub_config()
    work = Pipeline(config, sysscan_stub_registry)
    before = planning.price(work)
    assert before.roles["specialist"].done == ()
    assert not before.disk.complete
    assert before.disk.present == 0
    package = work.run()
    after = planning.price(work)
    assert [role.done for role in after.roles.values()] == [("train", "merge", "quantize")] * len(config.roles)
    assert after.disk.peak == 0
    assert after.disk.final == after.disk.present > sum(record.size for record in package.files.values())
    assert line(after, "specialist", "training").here == "up to date"
    changed = sysscan_stub_config("roles.specialist.trainer.steps=3")
    again = planning.price(Pipeline(changed, sysscan_stub_registry))
    assert again.roles["specialist"].done == ()
    assert again.roles["generalist"].done == ("train", "merge", "quantize")


def test_time_is_told_from_a_measured_speed_only(tmp_path: Path) -> None:
    tiny("llama", "bfloat16").save_pretrained(tmp_path / "base")
    work = configured(tmp_path, "base", 'name = "lora"\nmax_tokens = 30_000')
    folder = tmp_path / "models" / "specialist_model_lora_adapters"
    folder.mkdir(parents=True)
    record = Checkpoint(kind="adapter", role="specialist", train_tokens=1000, made={"seconds": 360.0, "device": "cpu"})
    record.save(folder)
    price = planning.price(work)
    assert price.roles["specialist"].seconds == pytest.approx(0.36 * price.roles["specialist"].tokens.high)  # type: ignore[union-attr]
    assert "about 3 h" in line(price, "specialist", "training").here
    record.model_copy(update={"made": {"seconds": 360.0, "device": "cuda:0"}}).save(folder)
    assert planning.price(work).roles["specialist"].seconds is None


@pytest.mark.parametrize(
    ("base", "overrides", "verdict", "says"),
    [
        ("somebody/unheard-of", (), "warn", "its size is not known"),
        ("somebody/unheard-of", ("offline=true",), "refuse", "the network is forbidden"),
        ("HuggingFaceTB/SmolLM2-135M", (), "ok", "comes from the hub"),
        ("HuggingFaceTB/SmolLM2-135M", ("offline=true",), "refuse", "the network is forbidden"),
        ("embedded:smollm2-135m-instruct", ("offline=true",), "ok", "comes with its package"),
        ("./missing", (), "refuse", "there is no such folder"),
        ("empty", (), "refuse", "config.json cannot be read"),
        ("weightless", (), "refuse", "holds no safetensors weights"),
        ("cut", (), "refuse", "its header expects"),
        ("garbage", (), "refuse", "is no safetensors file, or cut short"),
        ("header", (), "refuse", "has a damaged header"),
        ("index", (), "refuse", "model-2.safetensors, which its index names"),
        ("config", (), "refuse", "config.json lacks a usable 'hidden_size'"),
    ],
)
def test_what_is_said_about_a_base_model(
    tmp_path: Path, base: str, overrides: tuple[str, ...], verdict: str, says: str
) -> None:
    config = json.dumps({"architectures": ["GPT2LMHeadModel"]})
    for name in ("empty", "weightless", "cut", "garbage", "header", "index", "config"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "empty/config.json").unlink()
    weight = {"weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    write_header(tmp_path / "cut/model.safetensors", weight, 7)
    (tmp_path / "garbage/model.safetensors").write_bytes(b"no")
    (tmp_path / "header/model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[1,]")
    (tmp_path / "index/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": "model-2.safetensors"}}))
    (tmp_path / "config/config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}))
    found = line(planning.price(configured(tmp_path, base, 'name = "lora"', *overrides)), "specialist", "base model")
    assert (found.verdict, says in found.here) == (verdict, True), found


def test_headers_of_shards_are_added_up(tmp_path: Path) -> None:
    model = tiny("mixtral", "bfloat16")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    found = read_weights(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_a_model_of_unknown_architecture_is_measured_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    write_header(tmp_path / "base/model.safetensors", {"w": {"dtype": "BF16", "shape": [500], "data_offsets": [0, 1000]}}, 1000)
    price = planning.price(configured(tmp_path, "base"))
    assert price.roles["specialist"].base.parameters == 500
    memory = line(price, "specialist", "memory")
    assert (memory.verdict, memory.needs) == ("warn", "not known")


class Failing(Trainer):
    """Cannot tell what it needs."""

    name: ClassVar[str] = "failing"

    def train(self, job: TrainJob) -> Checkpoint:
        """Never called."""
        raise AssertionError

    def estimate(self, job: TrainJob) -> Estimate | None:
        """Fail as a trainer does whose library is missing."""
        assert job.base.files["config.json"].size > 0
        raise SysscanError("the moon is full")


class FailingPlugin:
    @hookimpl
    def sysscan_register_trainers(self) -> list[type[Trainer]]:
        return [Failing]


def test_a_trainer_that_cannot_estimate_is_no_reason_to_refuse(sysscan_stub_config: ConfigFactory) -> None:
    from sysscan_models.plugins import plugin_manager
    from sysscan_models.testing import stub_plugin

    plugin = FailingPlugin()
    config = sysscan_stub_config(plugins=(plugin,), trainer="failing")
    work = Pipeline(config, plugin_manager(stub_plugin, plugin, entry_points=False))
    work.prepare()
    work.fetch("specialist")
    price = planning.price(work)
    planning.refuse(price)
    told = line(price, "specialist", "training")
    assert told.verdict == "warn"
    assert "trainer 'failing' could not estimate: the moon is full" in told.advice
    memory = line(price, "specialist", "memory")
    assert memory.advice == "No price: trainer 'failing' gives no estimate"


def verdict_on(
    card: machine.Accelerator | None, trainer: str, tmp_path: Path, kind: str = "cuda", devices: int = 1
) -> planning.Line:
    """Judge Llama 3 8B on an accelerator, beside as much memory as anyone has."""
    work = configured(tmp_path, "meta-llama/Meta-Llama-3-8B", trainer)
    price = planning.price(work)
    cards = (card,) if card else ()
    here = Here(kind, machine.Memory(10**13, 10**13), cards, devices=devices)  # type: ignore[arg-type]
    parts = price.roles["specialist"].parts
    assert parts is not None
    return next(
        line for line in judge(work, price.roles, price.disk, here, prepared=False) if line.what in ("GPU memory", "TPU memory")
    )


def test_only_what_must_be_held_refuses_a_card(tmp_path: Path) -> None:
    options = 'name = "full_finetune"\noptimizer = "adafactor"\ngradient_checkpointing = true'
    h200, a100, l40s = (
        machine.Accelerator(name, machine.CARDS[name].memory) for name in ("H200 141 GB", "A100 80 GB", "L40S 48 GB")
    )
    assert verdict_on(h200, options, tmp_path).verdict == "ok"
    tight = verdict_on(a100, options, tmp_path)
    assert tight.verdict == "warn"
    small = verdict_on(l40s, options, tmp_path)
    assert small.verdict == "refuse"
    assert 'Would fit: trainer "lora"' in small.advice
    busy = verdict_on(replace(h200, free=60 * GB), options, tmp_path)
    assert (busy.verdict, "Fits when other programs free what they hold" in busy.advice) == ("refuse", True)
    plain = verdict_on(h200, 'name = "full_finetune"', tmp_path)
    assert (plain.verdict, "Would fit: " in plain.advice) == ("warn", True)


def test_without_an_accelerator_the_known_ones_that_hold_it_are_named(tmp_path: Path) -> None:
    small = verdict_on(None, 'name = "lora"\ngradient_checkpointing = true', tmp_path)
    assert (small.verdict, small.here) == ("refuse", "no CUDA device was found")
    assert small.advice.startswith("As configured it fits")
    assert "RTX 4090 24 GB" in small.advice
    assert "T4 16 GB" not in small.advice
    large = verdict_on(None, 'name = "full_finetune"\nmicro_batch_size = 4', tmp_path)
    assert large.advice.startswith("As configured it fits 4x B200 180 GB; perhaps 8x H200 141 GB, 2x B200 180 GB; with ")
    assert large.advice.endswith("gradient_checkpointing = true it fits B200 180 GB")
    tpu = verdict_on(None, 'name = "lora"\ngradient_checkpointing = true', tmp_path, kind="tpu")
    assert (tpu.verdict, tpu.here) == ("refuse", "no TPU was found")
    assert "divided among the devices" in tpu.needs
    assert "v3-8" in tpu.advice


def test_a_tpu_of_unknown_type_is_not_refused(tmp_path: Path) -> None:
    found = verdict_on(machine.Accelerator("TPU unknown", 0), 'name = "lora"', tmp_path, kind="tpu")
    assert (found.verdict, found.here) == ("warn", "TPU unknown: its memory is not known")


def test_an_explicit_cuda_device_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    looked = Here.look("cuda:1")
    assert (looked.kind, looked.index, looked.accelerators, looked.capacity) == ("cuda", 1, (), (0, 0))
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v3-8")
    tpu = Here.look("tpu")
    assert (tpu.devices, tpu.capacity[0]) == (8, 16 << 30)


def test_the_json_holds_numbers(tmp_path: Path) -> None:
    tiny("llama", "bfloat16").save_pretrained(tmp_path / "base")
    body = json.loads(planning.as_json(planning.price(configured(tmp_path, "base"))))
    role = body["roles"]["specialist"]
    assert (
        role["persistent"]
        == role["parts"]["weights"] + role["parts"]["masters"] + role["parts"]["gradients"] + role["parts"]["optimizer"]
    )
    assert role["seconds"] is None
    assert role["disk"]["merged"] == role["base"]["size"]
    assert body["memory"]["total"] > 0


def test_disk_counts_checkpoints_merge_and_the_intermediate(tmp_path: Path) -> None:
    tiny("llama", "bfloat16").save_pretrained(tmp_path / "base")
    one, five = (
        planning.price(configured(tmp_path, "base", f'name = "full_finetune"\nkeep_checkpoints = {keep}')) for keep in (1, 5)
    )
    role = one.roles["specialist"]
    assert role.parts is not None
    assert role.disk["base"] == role.disk["merged"] == 0
    assert five.roles["specialist"].disk["training"] - role.disk["training"] == 4 * role.parts.checkpoint
    assert role.disk["intermediate"] > role.disk["quantized"] > 0
    adapter = planning.price(configured(tmp_path, "base")).roles["specialist"]
    assert adapter.disk["merged"] == adapter.base.size
    assert adapter.disk["model"] < role.disk["model"]


def test_a_fetched_base_is_here_and_its_bytes_are_present(
    sysscan_stub_config: ConfigFactory, sysscan_stub_registry: Any
) -> None:
    work = Pipeline(sysscan_stub_config(), sysscan_stub_registry)
    base: BaseCheckpoint = work.fetch("specialist")
    price = planning.price(work)
    found = price.roles["specialist"].base
    assert (found.where, found.folder, found.ours) == ("here", base.root, True)
    assert price.disk.present > found.parameters * 4


def test_plan_prints_before_it_refuses(tmp_path: Path) -> None:
    giant(tmp_path / "giant")
    (tmp_path / "sysscan-models.toml").write_text(
        '[data]\narchive = "sample"\n[roles.specialist]\nbase = "giant"\ntrainer = {name = "lora"}\n'
    )
    words = [sys.executable, "-m", "sysscan_models", "plan", "--set", "device=cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "memory (RAM)" in done.stdout
    assert done.stderr.startswith("error: this run cannot work here")
    assert load_config(recipe="demo").models_dir.name == "models"
