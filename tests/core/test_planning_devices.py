"""The price of several devices: what each of them holds, which slices and cards hold a role, and plans for other machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from sysscan_models import machine, planning
from sysscan_models.config import load_config, parse_config
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Estimate
from sysscan_models.pipeline import Pipeline
from sysscan_models.planning import full_memory, lora_memory, slices
from sysscan_models.planning.memory import local_shape, sharded_dim
from sysscan_models.planning.pricing import Here, Range, _measured_budget
from sysscan_models.planning.shapes import KNOWN, Shape
from sysscan_models.planning.verdicts import judge
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.lora import Lora

GB = 10**9
LLAMA, MIXTRAL = KNOWN["meta-llama/meta-llama-3-8b"], KNOWN["mistralai/mixtral-8x7b-instruct-v0.1"]
SMALL: dict[str, Any] = {"micro_batch_size": 1, "gradient_checkpointing": True}


class WithStates(FullFinetune):
    """The full fine-tuner with the option that decides what AdamW's moments are kept in."""

    optimizer_state: Literal["float32", "bfloat16"] = "float32"


@pytest.mark.parametrize(
    ("shape", "devices", "dim"),
    [
        ((4096, 14336), 8, 1),
        ((14336, 4096), 8, 0),
        ((4096, 4096), 8, 0),
        ((128256, 4096), 8, 0),
        ((128256, 4096), 7, None),
        ((49152, 576), 64, 0),
        ((30, 64), 4, 1),
        ((16, 4096), 8, 1),
        ((8, 28672, 4096), 8, 0),
        ((8, 28672, 4096), 4, 0),
        ((8, 28672, 4096), 16, 1),
        ((4096,), 8, 0),
        ((4095,), 5, None),
        ((2048,), 8, None),
        ((), 8, None),
        ((4096, 4096), 1, None),
        ((0, 8), 8, 1),
    ],
)
def test_a_tensor_is_divided_along_its_largest_dimension_that_can_be(
    shape: tuple[int, ...], devices: int, dim: int | None
) -> None:
    assert sharded_dim(shape, devices) == dim
    part = local_shape(shape, devices, xla=True)
    assert math.prod(part) * (1 if dim is None else devices) == math.prod(shape)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(259, 64), (3, 64), (64,), (16, 2, 3)])
def test_fsdp_cuts_the_first_dimension_as_torch_does(shape: tuple[int, ...], devices: int) -> None:
    import torch

    part = torch.chunk(torch.zeros(shape), devices, dim=0)[0]
    assert local_shape(shape, devices, xla=False) == tuple(part.shape)


@pytest.mark.parametrize("xla", [True, False])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize(
    ("options", "per_weight"),
    [
        ({"optimizer": "adamw"}, 18),
        ({"optimizer": "adamw", "optimizer_state": "bfloat16"}, 14),
        ({"optimizer": "adamw", "compute_dtype": "float32"}, 16),
        ({"optimizer": "adafactor"}, 10),
    ],
)
def test_everything_that_is_held_is_divided(name: str, options: dict[str, Any], per_weight: int, xla: bool) -> None:
    shape = LLAMA if name == "llama" else MIXTRAL
    trainer = WithStates(**options)
    whole, parts = full_memory(shape, trainer, xla=xla), full_memory(shape, trainer, devices=8, xla=xla)
    assert whole.persistent == pytest.approx(per_weight * shape.parameters, rel=2e-3)
    assert parts.persistent == pytest.approx(whole.persistent / 8, rel=2e-3)
    assert parts.trained == whole.trained == shape.parameters
    assert parts.checkpoint == whole.checkpoint
    assert parts.persistent < parts.peak_low < parts.peak_high < whole.peak_high


def test_bytes_of_a_device_are_exact_by_the_rule() -> None:
    """Counted by hand: hidden 8192 and 5 heads' worth of odd sizes, on 8 devices."""
    shape = Shape(hidden=8192, layers=1, intermediate=60, heads=5, kv_heads=5, head_dim=3, vocabulary=30)
    divided = 2 * 30 * 8192 + 4 * 15 * 8192 + 3 * 60 * 8192 + 3 * 8192  # all of them have a dimension of 8192
    held = full_memory(shape, FullFinetune(optimizer="adamw"), devices=8, xla=True)
    assert held.weights == 2 * divided // 8
    assert held.optimizer == 8 * divided // 8 + 4 * (2 + 4 + 3 + 3)  # and a step counter for each tensor
    factors = full_memory(shape, FullFinetune(optimizer="adafactor"), devices=8, xla=True).optimizer
    rows_columns = 2 * (30 + 1024) + 4 * (15 + 1024) + 3 * (60 + 1024)  # the factor without the divided dimension is whole
    assert factors == 4 * (rows_columns + 3 * 1024 + 12)
    odd = full_memory(shape, FullFinetune(optimizer="adamw"), devices=7, xla=True)
    assert odd.weights == 2 * divided  # 7 divides no dimension
    fsdp = full_memory(shape, FullFinetune(optimizer="adamw"), devices=8)
    rows = 2 * 4 + 3 * 2 + 2 * 8  # of 8192: embedding and head, queries to values, gate and up
    assert fsdp.weights == 2 * (8192 * rows + 1024 * 15 + 1024 * 60 + 3 * 1024)


def test_experts_that_can_be_divided_are_never_gathered() -> None:
    trainer = Lora(**SMALL, expert_capacity=1.25)
    apart, gathered = lora_memory(MIXTRAL, trainer, devices=8, xla=True), lora_memory(MIXTRAL, trainer, devices=16, xla=True)
    layer = 3 * 8 * 4096 * 14336 * 2
    fsdp = lora_memory(MIXTRAL, trainer, devices=8)  # gathers them too, and the output head
    exact = lora_memory(MIXTRAL, Lora(**SMALL), devices=8, xla=True)  # every expert computes every token, one at a time
    beyond = [memory.peak_low - memory.persistent for memory in (apart, gathered, fsdp, exact)]
    assert beyond[1] - beyond[0] == layer
    assert beyond[3] - beyond[0] == layer // 8
    assert exact.peak_high > apart.peak_high + layer
    assert beyond[2] - beyond[0] == layer + 2 * 32000 * 4096


def test_tensor_parallel_divides_projections_both_ways_and_the_rest_less() -> None:
    shape = Shape(hidden=8192, layers=1, intermediate=64, heads=5, kv_heads=5, head_dim=3, vocabulary=30)
    held = full_memory(shape, FullFinetune(tensor_parallel=2), devices=8, xla=True)
    whole = 4 * 15 * 8192  # 2 does not divide the 15 of queries to values and outputs: as everything, among 4
    assert held.weights == 2 * (3 * 64 * 8192 // 8 + (2 * 30 * 8192 + whole + 3 * 8192) // 4)
    adapters = lora_memory(shape, Lora(tensor_parallel=2, rank=4), devices=8, xla=True)
    assert adapters.masters == 4 * 4 * (4 * 8192 // 4 + 4 * 15 // 4)  # adapters, of four modules, are divided as everything
    plain = full_memory(shape, FullFinetune(), devices=4, xla=True)
    assert held.peak_high - held.persistent > plain.peak_high - plain.persistent  # twice the rows on each device


def on(name: str, trainer: str, tmp_path: Path, base: str = "meta-llama/Meta-Llama-3-8B") -> planning.Price:
    text = f'[data]\narchive = "nowhere.tar.gz"\n[roles.specialist]\nbase = "{base}"\n[roles.specialist.trainer]\n{trainer}\n'
    return planning.price(Pipeline(parse_config(text, source="test", folder=tmp_path)), on=name)


def memory_line(price: planning.Price) -> planning.Line:
    return next(line for line in price.lines if line.what in ("GPU memory", "TPU memory"))


MIXTURE = 'name = "lora"\ngradient_checkpointing = true\nexpert_capacity = 1.25'
FULL = 'name = "full_finetune"\ngradient_checkpointing = true\n'


@pytest.mark.parametrize(
    ("name", "trainer", "verdict", "says"),
    [
        ("v6e-8", FULL, "ok", "TPU v6e-8: 8 x 34.4 GB"),
        ("v5litepod-16", FULL, "warn", "16 x 17.2 GB in 4 machines, the program runs on each"),
        ("v5e-1", FULL, "refuse", "TPU v5e-1: 17.2 GB"),
        ("v5e-8", FULL, "refuse", "8 x 17.2 GB"),
        ("v5e-8", FULL + 'optimizer = "adafactor"', "warn", "8 x 17.2 GB"),
        ("4x A100 80 GB", FULL, "ok", "A100 80 GB: 4 x 85.9 GB"),
        ("4 X a100-80gb", FULL, "ok", "A100 80 GB: 4 x 85.9 GB"),
        ("A100 80 GB", FULL, "refuse", "A100 80 GB: 85.9 GB"),
        ("T4 16 GB", 'name = "lora"', "refuse", "T4 16 GB: 16.1 GB"),
        ("H200 141 GB", FULL + 'optimizer = "adafactor"', "ok", "H200 141 GB: 151 GB"),
    ],
)
def test_a_plan_for_another_machine(name: str, trainer: str, verdict: str, says: str, tmp_path: Path) -> None:
    price = on(name, trainer, tmp_path)
    line = memory_line(price)
    assert (line.verdict, says in line.here) == (verdict, True), line
    others = {other.what: other.verdict for other in price.lines if other is not line}
    assert "refuse" not in others.values()
    assert others["archive"] == "warn"
    assert "memory (RAM)" not in others
    if verdict == "refuse":
        with pytest.raises(UserError) as refused:
            planning.refuse(price)
        assert f"this run cannot work on {name}, for 1 reason" in str(refused.value)
        assert "--force" not in str(refused.value)
    else:
        planning.refuse(price)


@pytest.mark.parametrize("name", ["v9-8", "0x T4 16 GB", "4x", "A100", "x", " "])
def test_an_unknown_machine_is_refused_with_the_valid_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown machine .*Valid choices: TPU slices \(v2-8.*v5e-16.*'4x A100 80 GB' \(T4 16 GB"
    ):
        on(name, FULL, tmp_path)


def test_what_would_fit_is_named_mildest_first_and_the_smallest_slices(tmp_path: Path) -> None:
    trainer = WithStates(gradient_checkpointing=True)
    told = [change for change, _ in slices.changes(trainer, LLAMA, devices=8, xla=True)]
    assert told[0] == {"expert_capacity": 1.25}  # changes nothing for a dense model
    assert told[1] == {"optimizer_state": "bfloat16"}
    assert told[2] == {"optimizer": "adafactor"}
    halved = trainer.model_copy(update={"optimizer_state": "bfloat16"})
    for change in slices.choices(halved):  # every proposal is one that the trainer accepts
        WithStates.model_validate({**halved.model_dump(), **change})
    assert told[-1] == {"optimizer": "adafactor", "max_seq_length": 512}
    adapters = list(slices.choices(Lora()))
    capacity = [{"expert_capacity": 1.25}, {**SMALL_CHANGE, "expert_capacity": 1.25}]
    assert adapters == [SMALL_CHANGE, *capacity, *({**SMALL_CHANGE, "max_seq_length": n} for n in (1024, 512))]
    assert not any("optimizer_state" in change for change in slices.choices(Lora()))
    line = memory_line(on("v5e-8", FULL + 'optimizer = "adafactor"', tmp_path))
    assert line.advice.startswith("Would fit: max_seq_length = 1024 (at most 16.2 GB). As configured it fits ")
    assert "v5e-16" in line.advice
    assert "perhaps v2-32, v3-8, v5e-8" in line.advice
    assert "on each of 8 devices, which divide all weights and state" in line.needs
    mixture = memory_line(on("v6e-8", MIXTURE, tmp_path, "mistralai/Mixtral-8x7B-v0.1"))
    assert mixture.needs.endswith("each computes its own experts")
    wide = memory_line(on("v5e-16", MIXTURE, tmp_path, "mistralai/Mixtral-8x7B-v0.1"))
    assert wide.needs.endswith("experts are gathered to compute")


SMALL_CHANGE = {"gradient_checkpointing": True}


def test_a_little_of_another_machines_memory_is_left_free(tmp_path: Path) -> None:
    price = on("v5e-8", MIXTURE, tmp_path, "mistralai/Mixtral-8x7B-v0.1")
    peak = price.roles["specialist"].peak
    assert peak is not None
    assert 0.95 * (16 << 30) < peak.high < 16 << 30
    assert memory_line(price).verdict == "warn"


def test_a_device_of_a_plugin_has_a_memory_that_is_not_known() -> None:
    here = Here.look("torch_tpu:1")
    assert (here.capacity, here.accelerator) == ((0, 0), machine.Accelerator("torch_tpu:1", 0))


def test_bf16_states_are_proposed_where_they_are_enough() -> None:
    found = slices.fits(WithStates(gradient_checkpointing=True), LLAMA, "tpu")
    bf16 = slices.fits(WithStates(gradient_checkpointing=True, optimizer_state="bfloat16"), LLAMA, "tpu")
    assert "v5e-32" in slices.smallest(found, "fits")
    assert "v5e-16" in slices.smallest(bf16, "fits")
    assert "v5e-16" in slices.smallest(found, "perhaps")


def test_of_cards_the_single_ones_are_named_and_sets_where_there_is_none() -> None:
    lora = slices.fits(Lora(**SMALL), LLAMA, "cuda")
    assert "RTX 4090 24 GB" in slices.smallest(lora, "fits")
    assert not any(map(slices.is_set, [*slices.smallest(lora, "fits"), *slices.smallest(lora, "perhaps")]))
    full = slices.smallest(slices.fits(FullFinetune(), LLAMA, "cuda"), "fits")
    assert full
    assert all(map(slices.is_set, full))


def test_the_cards_of_this_machine_are_proposed_together(tmp_path: Path) -> None:
    role = '[roles.specialist]\nbase = "meta-llama/Meta-Llama-3-8B"\n'
    text = f'[data]\narchive = "sample"\n{role}[roles.specialist.trainer]\n{FULL}'
    work = Pipeline(parse_config(text, source="test", folder=tmp_path))
    price = planning.price(work)
    cards = (machine.Accelerator("A100", machine.CARDS["A100 80 GB"].memory),) * 4
    memory = machine.Memory(10**12, 10**12)

    def judged(here: Here) -> Mapping[str, planning.Line]:
        return {line.what: line for line in judge(work, price.roles, price.disk, here, prepared=False)}

    line = judged(Here("cuda", memory, cards))["GPU memory"]
    assert line.verdict == "refuse"
    assert "Would fit on the 4 cards together: `torchrun --nproc-per-node 4 -m sysscan_models train ROLE`" in line.advice
    assert "together" not in judged(Here("cuda", memory, cards[:1]))["GPU memory"].advice
    alone, several = (judged(Here("cuda", memory, cards, devices=n))["memory (RAM)"].needs for n in (1, 4))
    assert "to load the model" in alone
    assert several == "4.2 GB to read the model tensor by tensor"


def test_processes_of_torchrun_share_a_model_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Here.look("cpu")
    total = alone.capacity[0]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    shared = Here.look("cpu")
    assert (alone.devices, shared.devices, shared.xla) == (1, 4, False)
    assert shared.capacity[0] == total // 2


def test_several_devices_take_fewer_steps(tmp_path: Path) -> None:
    trainer = FullFinetune(batch_size=4)
    estimate = Estimate(train_tokens=1000, steps=17, persistent_bytes=1, peak_low_bytes=1, peak_high_bytes=1, disk_bytes=1)
    assert _measured_budget(trainer, estimate, 1) == (Range(1000, 1000), Range(17, 17))
    assert _measured_budget(trainer, estimate, 8) == (Range(1000, 1000), Range(2, 3))
    assert _measured_budget(FullFinetune(max_steps=3), estimate, 8) is None
    (tmp_path / "nowhere.tar.gz").write_bytes(bytes(10**6))
    one, eight = (on(name, FULL, tmp_path).roles["specialist"].steps for name in ("H200 141 GB", "v6e-8"))
    assert one is not None
    assert eight is not None
    assert one.high == pytest.approx(8 * eight.high, rel=0.1)


def test_the_tables_say_what_the_plan_says() -> None:
    recipe = load_config(recipe="tpu")
    trainings = {
        "Llama 3 8B, full": (recipe.role("specialist").trainer, LLAMA),
        "SmolLM2 135M": (FullFinetune(), KNOWN["embedded:smollm2-135m-instruct"]),
    }
    runtimes = slices.runtimes_table(trainings).splitlines()
    assert runtimes[0] == "| Colab runtime | memory | Llama 3 8B, full | SmolLM2 135M |"
    assert "| v5e-1 TPU | 16 GiB | no | fits |" in runtimes
    assert "| v2-8 TPU | 8 x 8 GiB | no | fits |" in runtimes
    assert len(runtimes) == 2 + len(slices.COLAB)
    assert set(slices.COLAB.values()) <= {*machine.TPUS, *machine.CARDS}
    table = slices.slices_table(trainings).splitlines()
    assert table[0] == "| training | TPU v2 | TPU v3 | TPU v4 | TPU v5e | TPU v5p | TPU v6e | A100 80 GB | H200 141 GB |"
    assert table[2] == "| Llama 3 8B, full | none | v3-32 | v4-16 | v5e-32 | v5p-8 | v6e-8 | 4x A100 80 GB | 2x H200 141 GB |"
    assert table[3].split(" | ")[3] == "v4-8"
