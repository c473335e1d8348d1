"""Adafactor without host reads equals torch.optim.Adafactor, leaves all as it was when told to, and can work on parts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sysscan_plugins.training.adafactor import Adafactor

SHAPES = ((6, 4), (5,), (3, 4, 2), (1, 7), ())
OPTIONS = {"lr": 0.05, "weight_decay": 0.1}


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 4 - 2)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_it_equals_torchs_over_many_steps(as_tensor: bool) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = Adafactor(ours, **OPTIONS), torch.optim.Adafactor(theirs, **OPTIONS)
    for step in range(20):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        rate = 0.05 * (step + 1) / 20  # below and above what the step's number allows
        reference.param_groups[0]["lr"] = rate * 10
        optimizer.param_groups[0]["lr"] = torch.tensor(rate * 10) if as_tensor else rate * 10
        optimizer.step()
        reference.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=2e-6, atol=2e-6)
    for mine, other in zip(ours, theirs, strict=True):
        state, expected = optimizer.state[mine], reference.state[other]
        assert state.keys() == expected.keys()
        for key in state:
            torch.testing.assert_close(state[key], expected[key], rtol=2e-6, atol=0)
            assert state[key].dtype == expected[key].dtype


def test_primed_state_is_that_of_no_step() -> None:
    ours, fresh = parameters(), parameters()
    primed, unprimed = Adafactor(ours, **OPTIONS), Adafactor(fresh, **OPTIONS)
    primed.prime()
    assert set(primed.state[ours[0]]) == {"step", "row_var", "col_var"}
    for optimizer, own in ((primed, ours), (unprimed, fresh)):
        set_gradients(own, 0)
        optimizer.step()
    for mine, other in zip(ours, fresh, strict=True):
        assert torch.equal(mine, other)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    ours = parameters()
    optimizer = Adafactor(ours, **OPTIONS)
    set_gradients(ours, 0)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in ours]
    state = [{key: value.clone() for key, value in optimizer.state[parameter].items()} for parameter in ours]
    set_gradients(ours, 1)
    for parameter in ours:
        parameter.grad.fill_(torch.nan)
    optimizer.finite = torch.tensor(False)
    optimizer.step()
    for parameter, old, old_state in zip(ours, before, state, strict=True):
        assert torch.equal(parameter, old)
        assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in old_state.items())
    set_gradients(ours, 1)
    optimizer.finite = torch.tensor(True)
    optimizer.step()
    assert all(not torch.equal(parameter, old) for parameter, old in zip(ours, before, strict=True))


class Part(Adafactor):
    """Holds a part of each parameter (of dimension 0) beside others that do, each in a thread of its own."""

    def __init__(self, params: list[torch.nn.Parameter], wholes: dict[torch.Tensor, int], own: int, together: Together) -> None:
        super().__init__(params, **OPTIONS)
        self.wholes, self.own, self.together = wholes, own, together

    def mean(self, parameter: torch.Tensor, tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        if -parameter.ndim not in dims:
            return super().mean(parameter, tensor, dims)
        count = self.wholes[parameter]
        for dim in dims:
            count *= tensor.shape[dim] if dim != -parameter.ndim else 1
        return self.together.total(self.own, tensor.sum(dims, keepdim=True)) / count


class Together:
    """Adds tensors up over two threads."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.given: list[torch.Tensor] = [torch.zeros(())] * 2

    def total(self, own: int, tensor: torch.Tensor) -> torch.Tensor:
        self.given[own] = tensor
        self.barrier.wait()
        total = self.given[0] + self.given[1]
        self.barrier.wait()
        return total


def test_parts_in_two_processes_make_the_same_steps_as_the_whole() -> None:
    wholes = [parameter for parameter in parameters() if parameter.ndim and len(parameter) > 1]
    reference = Adafactor(wholes, **OPTIONS)
    divided = [2, 3, 1]  # parts need not be equal, but none may be empty
    parts = [
        [torch.nn.Parameter(part.clone()) for part in own]
        for own in zip(*([w.detach()[:at], w.detach()[at:]] for w, at in zip(wholes, divided, strict=True)), strict=True)
    ]
    together = Together()
    optimizers = [Part(parts[i], {p: len(w) for p, w in zip(parts[i], wholes, strict=True)}, i, together) for i in range(2)]
    for step in range(3):
        set_gradients(wholes, step)
        for own in range(2):
            for part, whole, at in zip(parts[own], wholes, divided, strict=True):
                part.grad = whole.grad[:at].clone() if own == 0 else whole.grad[at:].clone()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda optimizer: optimizer.step(), optimizers))
        reference.step()
    for first, second, whole in zip(*parts, wholes, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=2e-6, atol=2e-6)
