"""Every tensor lies where it should, from the first byte on, and one that does not is named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from training_cases import Streamed, tiny_model
from xla_cases import Options, batch_of, model, started

from sysscan_models.errors import SysscanError
from sysscan_plugins.training.devices import open_device
from sysscan_plugins.training.devices.xla.layout import Layout, sharding, whole

FOURTHS = {1: "{devices=[4]0,1,2,3}", 2: "{devices=[4,1]0,1,2,3}"}


def layouts(optimizer: Any) -> dict[str, str]:
    return {name: sharding(tensor) for name, tensor in optimizer.tensors()}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_weights_masters_and_state_are_divided_before_and_after_a_step(optimizer: str) -> None:
    device, trained, created = started("mixtral", dtype=torch.bfloat16, optimizer=optimizer)
    before = layouts(created)
    device.forward_backward(trained, batch_of(4, 48), 0.1)
    created.update(1e-3, 1.0)
    device.end_step()
    assert layouts(created) == before
    layer = "model.layers.0."
    expected = {
        "master:lm_head.weight": "{devices=[1,4]0,1,2,3}",  # a vocabulary of 259 is not divided by 4
        f"master:{layer}mlp.experts.gate_up_proj": "{devices=[4,1,1]0,1,2,3}",  # whole experts
        f"master:{layer}input_layernorm.weight": "{replicated}",
        f"step:{layer}self_attn.q_proj.weight": "{replicated}",
    }
    if optimizer == "adamw":
        expected[f"exp_avg_sq:{layer}mlp.experts.down_proj"] = "{devices=[4,1,1]0,1,2,3}"
    else:
        expected[f"row_var:{layer}self_attn.q_proj.weight"] = "{devices=[4,1]0,1,2,3}"
        expected[f"col_var:{layer}self_attn.q_proj.weight"] = "{replicated}"
        expected[f"col_var:{layer}mlp.experts.down_proj"] = "{devices=[4,1,1]0,1,2,3}"
    assert {name: before[name] for name in expected} == expected
    assert sharding(trained.lm_head.weight) == "{devices=[1,4]0,1,2,3}"


def test_projections_are_divided_both_ways_with_a_tensor_axis() -> None:
    _, trained, created = started("attention", tensor_parallel=2)
    attention = trained.get_base_model().model.layers[1].self_attn
    assert sharding(attention.q_proj.base_layer.weight) == "{devices=[2,2]0,2,1,3}"  # [out: tensor, in: fsdp]
    assert sharding(attention.o_proj.base_layer.weight) == "{devices=[2,2]0,1,2,3}"  # [out: fsdp, in: tensor]
    assert sharding(attention.q_proj.lora_A.default.weight) == "{devices=[1,2,2]0,1,2,3 last_tile_dim_replicate}"
    assert any(name.startswith("exp_avg:") for name in layouts(created))


def test_parameters_are_let_go_as_soon_as_they_are_on_the_devices() -> None:
    trained = tiny_model("llama", num_hidden_layers=12)
    streamed = Streamed(trained)
    open_device("tpu").place(trained, Options(), streamed)
    assert streamed.peak <= 2 * streamed.largest < streamed.whole / 4


def test_a_tensor_that_lies_elsewhere_is_named() -> None:
    layout = Layout(4, 1)
    tensor = layout.send(torch.zeros(8, 4), (None, None))
    layout.check([("fine", tensor, (None, None))], "after loading")
    with pytest.raises(
        SysscanError,
        match=r"after loading, some.weight \[8, 4\] lies \{replicated\} on the devices; expected \{devices=\[4,1\]0,1,2,3\}",
    ):
        layout.check([("some.weight", tensor, ("fsdp", None))], "after loading")
    unsaid = torch.zeros(8, 4, device="xla")
    with pytest.raises(SysscanError, match=r"lies whole on the devices"):
        layout.check([("some.weight", unsaid, ("fsdp", None))], "after loading")


def test_state_that_lost_its_layout_stops_the_run_after_the_first_step() -> None:
    device, trained, created = started("llama")
    state = created.optimizer.state[created.masters["lm_head.weight"]]
    state["exp_avg"] = torch.zeros_like(state["exp_avg"])  # as if made anew, without being marked
    device.forward_backward(trained, batch_of(4, 48), 0.1)
    created.update(1e-3, 1.0)
    created.optimizer.state[created.masters["lm_head.weight"]]["exp_avg"] = device._layout.send(
        torch.zeros(259, 32), (None, None)
    )
    with pytest.raises(SysscanError, match=r"after the first step, exp_avg:lm_head.weight \[259, 32\] lies \{replicated\}"):
        device.end_step()


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_a_model_without_weights_is_filled_one_tensor_at_a_time(kind: str) -> None:
    tied = {"tie_word_embeddings": kind == "tied"}
    source = tiny_model("llama", **tied)
    given = {name: parameter.detach().clone() for name, parameter in source.named_parameters()}
    hollow = tiny_model("llama", **tied)
    for module in hollow.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[leaf] = torch.nn.Parameter(parameter.detach().to("meta"))
    hollow.tie_weights()
    alive: list[Any] = []

    def one_at_a_time() -> Any:
        for name, tensor in given.items():
            alive.append(name)
            yield name, tensor

    with open_device("tpu") as device:
        device.place(hollow, Options(), one_at_a_time())
        assert alive == list(given)
        for name, parameter in hollow.named_parameters():
            assert parameter.device.type == "xla"
            assert torch.equal(device.gathered(parameter), given[name])
        assert (hollow.lm_head.weight is hollow.model.embed_tokens.weight) == (kind == "tied")
        [loss] = device.read([device.evaluate(hollow, batch_of(4, 48))])
        assert loss > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("lm_head.weight"), r"no weights were read for 1 parameters: lm_head.weight"),
        (lambda given: given.update(other=torch.zeros(2)), r"read for other \[2\]; the model has no such parameter"),
        (
            lambda given: given.update({"lm_head.weight": torch.zeros(2, 2)}),
            r"lm_head.weight \[2, 2\]; the model has a parameter of shape \[259, 32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str) -> None:
    trained = model("llama")
    given = {name: parameter.detach() for name, parameter in trained.named_parameters()}
    change(given)
    with open_device("tpu") as device, pytest.raises(SysscanError, match=message):
        device.place(trained, Options(), iter(given.items()))


def test_a_tensor_is_put_together_on_the_host() -> None:
    layout = Layout(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in (("fsdp", "tensor"), ("tensor", None), (None, None), (None, "fsdp")):
            tensor = torch.arange(48.0).reshape(8, 6)
            assert torch.equal(whole(layout.send(tensor, spec)), tensor)
        assert whole(layout.send(torch.tensor(3.0), ())) == 3
    assert layout.send_number(0.0).item() == 0
