"""What XLA computes with static shapes equals what the other devices compute; eager on the CPU, so torch_xla is not needed."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from training_cases import tiny_model

from sysscan_models.encoding import IGNORE_INDEX
from sysscan_plugins.training import noise
from sysscan_plugins.training.attention import segment_attention
from sysscan_plugins.training.devices.xla.attention import static_attention, use_static_attention
from sysscan_plugins.training.devices.xla.dropout import DividedDropout, divide_dropout, restore_dropout
from sysscan_plugins.training.devices.xla.experts import (
    CapacityExperts,
    forget_experts,
    looped_experts,
    use_static_experts,
)
from sysscan_plugins.training.devices.xla.loss import head_backward, head_loss
from sysscan_plugins.training.loss import head_backward as dynamic_backward
from sysscan_plugins.training.noise import uniform_like
from sysscan_plugins.training.static_optimizers import StaticAdamW, rounded

LENGTHS = (5, 13, 1, 9)
PADDING = 4


def heads(count: int, *, seed: int, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, sum(LENGTHS) + PADDING, 8, generator=generator).requires_grad_()


def segments(rows: int = 1) -> torch.Tensor:
    numbers = [number for number, length in enumerate(LENGTHS, 1) for _ in range(length)]
    return torch.tensor([numbers + [0] * PADDING] * rows)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("block", [1, 7, 16, 512])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_its_gradients_are_those_of_attention_by_segment(window: int | None, block: int, kv_heads: int) -> None:
    ours = [heads(4, seed=0), heads(kv_heads, seed=1), heads(kv_heads, seed=2)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    real = sum(LENGTHS)
    found = static_attention(*ours, segments(), scale=0.3, window=window, block=block)[:, :real]
    cut = [tensor[:, :, :real] for tensor in theirs]
    expected, _ = segment_attention(None, *cut, None, segment_lengths=LENGTHS, scaling=0.3, sliding_window=window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_attention_in_bf16_keeps_its_type_and_is_close() -> None:
    exact = [heads(4, seed=0), heads(2, seed=1), heads(2, seed=2)]
    coarse = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    expected = static_attention(*exact, segments(), scale=0.3, block=8)
    found = static_attention(*coarse, segments(), scale=0.3, block=8)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert all(tensor.grad.dtype == torch.bfloat16 for tensor in coarse)


def test_padding_gives_no_infinity_and_no_gradient_to_what_is_real() -> None:
    tensors = [heads(4, seed=0, rows=2), heads(2, seed=1, rows=2), heads(2, seed=2, rows=2)]
    numbers = segments(2)
    numbers[1] = 0  # a row of nothing but padding, as micro-batches are filled up with
    found = static_attention(*tensors, numbers, scale=0.3, block=8)
    assert torch.isfinite(found).all()
    found[0, -PADDING:].sum().backward()
    for tensor in tensors:
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad[0, :, : sum(LENGTHS)].abs().max() == 0


def test_the_model_refuses_a_mask_beside_segments() -> None:
    model = tiny_model()
    use_static_attention(model, flash=False, mesh=None, barrier=lambda tensors: None)
    ids = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="segments_BT, not a mask"):
        model.model.layers[0].self_attn(
            hidden_states=torch.zeros(1, 8, 32),
            position_embeddings=(torch.ones(1, 8, 8), torch.zeros(1, 8, 8)),
            attention_mask=torch.ones(1, 1, 8, 8),
            segments_BT=ids,
        )


def test_the_whole_model_attends_within_segments() -> None:
    """A row of two examples gives each the hidden states that it has alone."""
    model = tiny_model("mixtral").eval()
    use_static_attention(model, flash=False, mesh=None, barrier=lambda tensors: None)
    use_static_experts(model, looped_experts)
    ids = torch.arange(3, 19)[None]
    positions = torch.tensor([[*range(6), *range(10)]])
    numbers = torch.tensor([[1] * 6 + [2] * 10])
    together = model.model(input_ids=ids, position_ids=positions, use_cache=False, segments_BT=numbers).last_hidden_state
    for part in (slice(0, 6), slice(6, 16)):
        alone = model.model(
            input_ids=ids[:, part], position_ids=positions[:, part], use_cache=False, segments_BT=numbers[:, part]
        ).last_hidden_state
        torch.testing.assert_close(together[:, part], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_loss_and_its_gradients_are_those_of_the_supervised_positions(chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 8)
    targets = torch.randint(0, 20, (3, 11))
    targets[0, 4:], targets[2] = IGNORE_INDEX, IGNORE_INDEX
    ours, theirs = torch.nn.Linear(8, 20, bias=False), torch.nn.Linear(8, 20, bias=False)
    theirs.load_state_dict(ours.state_dict())
    loss, gradient = head_backward(ours, hidden, targets, chunk, torch.tensor(0.25))
    kept = targets != IGNORE_INDEX
    expected, expected_gradient = dynamic_backward(theirs, hidden[kept], targets[kept], 20, 0.25)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[kept], expected_gradient)
    assert gradient[~kept].abs().max() == 0
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(head_loss(ours, hidden, targets, chunk), expected)


def experts_of(count: int = 4) -> Any:
    generator = torch.Generator().manual_seed(4)
    module = torch.nn.Module()
    module.num_experts, module.act_fn = count, silu
    module.gate_up_proj = torch.nn.Parameter(torch.randn(count, 12, 8, generator=generator))
    module.down_proj = torch.nn.Parameter(torch.randn(count, 8, 6, generator=generator))
    return module


def routed(tokens: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(tokens, 8, generator=generator)
    weights, chosen = torch.rand(tokens, count, generator=generator).topk(2, dim=-1)
    return hidden, chosen, weights / weights.sum(-1, keepdim=True)


def one_by_one(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows = []
    for token, experts, shares in zip(hidden, chosen, weights, strict=True):
        row = torch.zeros(8)
        for expert, share in zip(experts.tolist(), shares, strict=True):
            gate, up = (module.gate_up_proj[expert] @ token).chunk(2)
            row = row + share * (module.down_proj[expert] @ (silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def capacity_of(capacity: float, real: torch.Tensor, *, recomputed: bool = False) -> CapacityExperts:
    experts = CapacityExperts(capacity, torch.zeros(()), lambda tensor: tensor, recomputed=recomputed)
    experts.real_BT = real
    return experts


def test_every_form_of_the_experts_computes_the_same_when_there_is_room() -> None:
    module, inputs = experts_of(), routed(24)
    expected = one_by_one(module, *inputs)
    roomy = capacity_of(2.0, torch.ones(2, 12, dtype=torch.bool))  # 2 of 4 experts per token: an expert gets 12 at most
    for form in (looped_experts, roomy):
        torch.testing.assert_close(form(module, *inputs), expected, rtol=1e-5, atol=1e-5)
    assert roomy.dropped == 0


def test_what_finds_no_place_is_dropped_and_counted_and_padding_takes_none() -> None:
    module = experts_of().train()
    hidden, _, _ = routed(8)
    chosen = torch.tensor([[0, 1]] * 8)
    weights = torch.full((8, 2), 0.5)
    real = torch.tensor([[False, True, True, True], [True, True, False, False]])
    tight = capacity_of(0.5, real)  # ceil(0.5 * 2 * 4 / 4) = 1 place in each of 2 rows
    found = tight(module, hidden, chosen, weights)
    expected = one_by_one(module, hidden, chosen, weights)
    kept = [1, 4]  # the first real token of each row
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)
    assert found[[0, 2, 3, 5, 6, 7]].abs().max() == 0
    assert tight.dropped == 2 * (2 + 1)
    tight(module.eval(), hidden, chosen, weights)
    assert tight.dropped == 6, "validation was counted"


@pytest.mark.parametrize("recomputed", [False, True])
def test_drops_are_counted_once_also_when_layers_run_twice(recomputed: bool) -> None:
    module = experts_of().train()
    inputs = (routed(8)[0], torch.tensor([[0, 1]] * 8), torch.full((8, 2), 0.5))
    experts = capacity_of(0.5, torch.ones(1, 8, dtype=torch.bool), recomputed=recomputed)
    if recomputed:
        with torch.no_grad():
            experts(module, *inputs)
    experts(module, *inputs)
    assert experts.dropped == 2 * (8 - 2)


def test_capacity_lets_gradients_through_to_weights_and_experts() -> None:
    module = experts_of().train()
    hidden, chosen, weights = routed(24)
    weights = weights.clone().requires_grad_()
    other = weights.detach().clone().requires_grad_()
    capacity_of(2.0, torch.ones(2, 12, dtype=torch.bool))(module, hidden, chosen, weights).square().sum().backward()
    found = module.gate_up_proj.grad.clone()
    module.gate_up_proj.grad = None
    looped_experts(module, hidden, chosen, other).square().sum().backward()
    torch.testing.assert_close(found, module.gate_up_proj.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights.grad, other.grad, rtol=1e-4, atol=1e-4)


def stepped(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def parameters_of() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(9)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 4), (5,))]


def test_adamw_equals_torchs() -> None:
    ours, theirs = parameters_of(), parameters_of()
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizer, reference = StaticAdamW(ours, **options), torch.optim.AdamW(theirs, **options)
    stepped(optimizer, ours, 20)
    stepped(reference, theirs, 20)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
        assert optimizer.state[mine].keys() == reference.state[other].keys()
        for key, value in optimizer.state[mine].items():
            torch.testing.assert_close(value, reference.state[other][key], rtol=1e-5, atol=1e-7)


def test_adamw_changes_nothing_where_a_step_is_not_finite() -> None:
    ours = parameters_of()
    optimizer = StaticAdamW(ours, lr=0.02)
    stepped(optimizer, ours, 1)
    before = [parameter.detach().clone() for parameter in ours]
    state = [{key: value.clone() for key, value in optimizer.state[parameter].items()} for parameter in ours]
    optimizer.finite = torch.tensor(False)
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, torch.inf)
    optimizer.step()
    for parameter, old, kept in zip(ours, before, state, strict=True):
        assert torch.equal(parameter, old)
        assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in kept.items())


def test_adamw_with_bf16_state_stays_close_and_its_second_moment_moves() -> None:
    torch.manual_seed(0)
    ours, theirs = parameters_of(), parameters_of()
    optimizer = StaticAdamW(ours, lr=0.02, weight_decay=0.0, state_dtype=torch.bfloat16)
    reference = torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.0)
    stepped(optimizer, ours, 50)
    stepped(reference, theirs, 50)
    for mine, other in zip(ours, theirs, strict=True):
        state, expected = optimizer.state[mine], reference.state[other]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
        assert state["exp_avg_sq"].float().mean() == pytest.approx(expected["exp_avg_sq"].mean().item(), rel=0.1)
        torch.testing.assert_close(mine, other, rtol=0, atol=0.1)


def test_rounding_by_chance_keeps_the_mean_and_leaves_what_fits() -> None:
    torch.manual_seed(0)
    for value in (1.0 + 1 / 512, -3.00390625, 1e-20, 0.1):
        values = rounded(torch.full((20_000,), value), torch.bfloat16).float()
        assert values.unique().numel() == 2
        assert values.double().mean().item() == pytest.approx(value, rel=1e-4)
    fitting = torch.tensor([0.0, 1.0, -2.5, torch.inf])
    assert torch.equal(rounded(fitting, torch.bfloat16).float(), fitting)
    assert torch.isnan(rounded(torch.tensor([torch.nan]), torch.bfloat16)).all()
    assert rounded(fitting, torch.float32) is fitting


def test_the_name_of_a_device_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sysscan_models.errors import UserError
    from sysscan_plugins.training.devices import open_device

    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(UserError, match=r"needs torch_xla, which is not installed .*pip install 'torch"):
        open_device("tpu")


def test_devices_are_named_as_slices_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from sysscan_plugins.training.devices.xla import runtime

    monkeypatch.delenv("ACCELERATOR_TYPE", raising=False)
    kinds = {
        "v5litepod-8": ("TPU v5e-8", 197e12),
        "v4-8": ("TPU v4-16", 275e12),
        "v3-8": ("TPU v3-8", 61.5e12),
        "v9-8": ("TPU, 8 devices", 0.0),
        "": ("TPU, 8 devices", 0.0),
    }
    for kind, expected in kinds.items():
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", kind)
        assert runtime._named("TPU", 8) == expected
    assert runtime._named("TPU", 1) == ("TPU, 1 device", 0.0)


def test_noise_is_uniform_and_without_a_pattern() -> None:
    torch.manual_seed(3)
    shape, count = torch.empty(500, 40, 25), 500_000
    first, second = (uniform_like(shape).double() - 0.5 for _ in range(2))
    assert first.shape == shape.shape
    assert first.min() >= -0.5
    assert first.max() < 0.5
    even = 5 / (12 * count) ** 0.5  # five deviations of a mean
    assert abs(first.mean()) < even
    assert abs(first.square().mean() * 12 - 1) < 5 * (0.8 / count) ** 0.5
    flat = first.flatten()
    pairs = [(flat[lag:], flat[:-lag]) for lag in (1, 25, 1000)] + [(flat, second.flatten())]
    for one, other in pairs:
        assert abs((one * other).mean()) * 12 < 5 / count**0.5, "numbers depend on each other"
    torch.manual_seed(3)
    assert torch.equal(uniform_like(shape).double() - 0.5, first)


def test_noise_of_an_element_depends_on_its_place_alone() -> None:
    """So that parts can be made apart; also where numbers of places wrap around."""
    found = [noise._places(torch.empty(shape)).flatten().tolist() for shape in ((3, 4, 5), (60,), (), (0, 3))]
    assert found == [list(range(60)), list(range(60)), [0], []]
    assert [noise._signed(number) for number in (5, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 7)] == [5, 2**31 - 1, -(2**31), -1, 7]
    bits = torch.tensor([-1, -(2**31), -12345678, 12345678], dtype=torch.int32)
    assert noise._shifted(bits, 15).tolist() == [int(bit) % 2**32 >> 15 for bit in bits]


def test_divided_dropout_is_dropout() -> None:
    torch.manual_seed(0)
    dropout, ones = DividedDropout(0.3), torch.ones(200, 500, dtype=torch.bfloat16, requires_grad=True)
    dropped = dropout(ones)
    dropped.sum().backward()
    assert dropped.dtype == torch.bfloat16
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.7], rel=0.01)
    assert torch.equal(ones.grad, dropped)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropout.eval()(ones) is ones
    assert DividedDropout(0.0)(ones) is ones


def test_dropout_modules_are_divided_and_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(2, 2), torch.nn.Dropout(0.0))
    divide_dropout(model)
    assert [type(module) for module in model] == [DividedDropout, torch.nn.Linear, DividedDropout]
    restore_dropout(model)
    assert [type(module) for module in model] == [torch.nn.Dropout, torch.nn.Linear, torch.nn.Dropout]


def test_experts_are_let_go() -> None:
    model, experts = tiny_model("mixtral"), capacity_of(1.0, torch.ones(1, 4, dtype=torch.bool))
    use_static_experts(model, experts)
    alive = weakref.ref(experts)
    del experts
    assert alive() is not None
    forget_experts()
    assert alive() is None
