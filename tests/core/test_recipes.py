"""The recipes for accelerators fit what their first lines name, by the plan's own arithmetic."""

from __future__ import annotations

import re

import pytest

from sysscan_models.config import load_config, recipe_text, recipes
from sysscan_models.planning.memory import memory_of
from sysscan_models.planning.pricing import Here
from sysscan_models.planning.slices import shape_named, verdict

LARGE = [name for name in recipes() if name.startswith(("tpu", "gpu"))]


def named(recipe: str) -> list[str]:
    """Return the machines that a recipe's first line names."""
    found = re.match(r"# Fits (?:TPU )?([^:]+): ", recipe_text(recipe))
    assert found, f"{recipe}: the first line says what it fits"
    return found[1].split(", ")


def test_there_are_recipes_for_slices_of_every_size() -> None:
    assert {"tpu", "tpu-v5e-16", "tpu-v5e-8", "tpu-v5e-1", "gpu", "gpu-fsdp"} <= set(LARGE)


@pytest.mark.parametrize(("recipe", "machine"), [(recipe, machine) for recipe in LARGE for machine in named(recipe)])
def test_a_recipe_fits_what_it_names(recipe: str, machine: str) -> None:
    config, here = load_config(recipe=recipe), Here.planned(machine)
    assert config.device == here.kind
    for role in config.roles:
        part = config.role(role)
        memory = memory_of(part.trainer, shape_named(part.base), devices=here.devices, xla=here.xla)
        assert memory is not None
        assert verdict(memory, here.capacity[0]) == "fits", f"{role}: {memory.peak_high} of {here.capacity[0]}"


def test_a_recipe_named_after_a_slice_fits_it_first() -> None:
    for recipe in LARGE:
        slice_ = recipe.partition("-")[2]
        if slice_.startswith("v"):
            assert named(recipe)[0] == slice_
