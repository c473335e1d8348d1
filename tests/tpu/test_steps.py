"""What a step does to weights and state: nothing when it is not finite, the right thing in bf16, the same for a seed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from xla_cases import Options, batch_of, model, started

from sysscan_models.errors import UserError
from sysscan_plugins.training.devices import open_device
from sysscan_plugins.training.devices.xla.dropout import DividedDropout
from sysscan_plugins.training.static_optimizers import rounded


def tensors_of(device: Any, model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    found = {name: device.gathered(parameter).clone() for name, parameter in model.named_parameters()}
    return found | {name: device.gathered(tensor).clone() for name, tensor in optimizer.tensors()}


def step(device: Any, model: Any, optimizer: Any, scale: float = 0.1) -> list[float]:
    model.train()
    device.seed(11)
    loss = device.forward_backward(model, batch_of(4, 48), scale)
    norm = optimizer.update(1e-3, 1.0)
    device.end_step()
    return device.read([loss, norm])


@pytest.mark.parametrize("changes", [{}, {"optimizer_state": "bfloat16"}, {"optimizer": "adafactor"}])
def test_an_update_that_is_not_finite_changes_nothing(changes: dict[str, Any]) -> None:
    device, model, optimizer = started("llama", dtype=torch.bfloat16, **changes)
    step(device, model, optimizer)
    before = tensors_of(device, model, optimizer)
    loss, norm = step(device, model, optimizer, scale=float("inf"))
    assert loss > 0
    assert not norm < float("inf")
    after = tensors_of(device, model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    step(device, model, optimizer)
    moved = tensors_of(device, model, optimizer)
    assert not torch.equal(moved["master:lm_head.weight"], before["master:lm_head.weight"])


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_a_bf16_model_learns_on_its_masters(state: str) -> None:
    device, model, optimizer = started("llama", dtype=torch.bfloat16, optimizer_state=state)
    losses = [step(device, model, optimizer, scale=1 / 100)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 1
    found = tensors_of(device, model, optimizer)
    assert found["master:lm_head.weight"].dtype == torch.float32
    assert found["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(found["lm_head.weight"], found["master:lm_head.weight"].bfloat16())
    assert found["exp_avg_sq:lm_head.weight"].dtype == getattr(torch, state)


def test_rounding_by_chance_works_on_the_device() -> None:
    import torch_xla

    values = torch.full((20_000,), 1.0 + 1 / 512).to("xla")
    found = rounded(values, torch.bfloat16)
    torch_xla.sync()
    found = found.cpu().float()
    assert found.unique().tolist() == [1.0, 1.0078125]
    assert found.double().mean().item() == pytest.approx(1.0 + 1 / 512, rel=1e-4)


def test_the_seed_decides_the_dropout() -> None:
    device, model, _ = started("dropout")
    model.train()
    losses = []
    for seed in (1, 1, 2):
        device.seed(seed)
        losses += [device.evaluate(model, batch_of(4, 48))]
    first, again, other = device.read(losses)
    assert first == again != other


def test_a_row_of_padding_adds_nothing() -> None:
    device, model, _ = started("llama")
    batch = batch_of(4, 48)
    [whole] = device.read([device.evaluate(model, batch)])
    empty = batch_of(8, 48)
    for array, filled in zip(vars(empty).values(), vars(batch).values(), strict=True):
        array[:4] = filled
        array[4:] = -100 if array is empty.targets_BT else 0
    [padded] = device.read([device.evaluate(model, empty)])
    assert padded == pytest.approx(whole, rel=1e-6)


def test_what_a_tpu_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match=r"attention = \"flash\" runs on a real TPU only, and this is 4 virtual CPU devices"):
        started("llama", attention="flash")
    with pytest.raises(UserError, match=r"attention_dropout 0\.5, which a TPU does not support"):
        started("llama", config={"attention_dropout": 0.5})
    with pytest.raises(UserError, match=r"tensor_parallel is 3, which does not divide the 4 devices.*valid choices: 1, 2, 4"):
        started("llama", tensor_parallel=3)


def test_several_hosts_divide_rows_only() -> None:
    device = open_device("tpu")
    device.processes = 2
    with pytest.raises(UserError, match=r"tensor_parallel is 2, and this slice has 2 hosts.*Set tensor_parallel = 1"):
        device.place(model("llama"), Options(tensor_parallel=2))


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("dropout", {"expert_capacity": 1.25})])
def test_a_closed_device_keeps_nothing_of_the_model(kind: str, changes: dict[str, Any]) -> None:
    device, trained, optimizer = started(kind, **changes)
    step(device, trained, optimizer)
    weight = weakref.ref(next(trained.parameters()))
    assert any(isinstance(module, DividedDropout) for module in trained.modules()) == (kind == "dropout")
    optimizer.release()
    device.close()
    assert not any(isinstance(module, DividedDropout) for module in trained.modules())
    assert not any(module._forward_hooks for module in trained.modules())
    del trained, optimizer
    gc.collect()
    assert weight() is None


def test_memory_errors_of_the_runtime_are_known() -> None:
    device, _, _ = started("llama")
    assert device.is_out_of_memory(RuntimeError("Bad StatusOr access: RESOURCE_EXHAUSTED: Out of memory"))
    assert not device.is_out_of_memory(RuntimeError("INVALID_ARGUMENT"))
