"""The configuration: every fault at once, with its line and the valid choices; recipes; overrides; round trip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field, field_validator

from sysscan_models import hookimpl
from sysscan_models.config import FILE_NAME, json_schema, load_config, parse_config, recipe_text, recipes
from sysscan_models.errors import ConfigError, UserError
from sysscan_models.interfaces import Quantizer, Trainer
from sysscan_models.plugins import Registry, plugin_manager


class Small(Trainer):
    """A trainer with two options."""

    name: ClassVar[str] = "small"
    learning_rate: float = Field(1e-3, gt=0)
    """Per step."""
    rank: int = 8

    @field_validator("rank")
    @classmethod
    def _even(cls, rank: int) -> int:
        if rank % 2:
            raise ValueError("rank must be even; set it to 8 or 16")
        return rank

    def train(self, job: Any) -> Any:
        """Do nothing."""


class Plain(Quantizer):
    """A quantizer named as the default one."""

    name: ClassVar[str] = "gguf"
    type: str = "Q4_K_M"

    def quantize(self, merged: Any, out: Path, role: Any = None) -> Any:
        """Do nothing."""


class Plugin:
    @hookimpl
    def sysscan_register_trainers(self) -> Sequence[type[Trainer]]:
        return [Small]

    @hookimpl
    def sysscan_register_quantizers(self) -> Sequence[type[Quantizer]]:
        return [Plain]


@pytest.fixture
def registry() -> Registry:
    return plugin_manager(Plugin(), entry_points=False)


GOOD = """
seed = 3

[data]
archive = "a.tar.gz"

[roles.specialist]
base = "./base"

[roles.specialist.trainer]
name = "small"
rank = 4
"""


def parse(text: str, registry: Registry, **options: Any) -> Any:
    return parse_config(text, source="x.toml", folder=Path("/somewhere"), registry=registry, **options)


def faults(text: str, registry: Registry) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, registry)
    assert caught.value.exit_code == 2
    return list(caught.value.faults)


def test_a_good_configuration_is_resolved_to_frozen_backends(registry: Registry) -> None:
    config = parse(GOOD, registry)
    part = config.role("specialist")
    assert part.trainer == Small(rank=4)
    assert part.quantizer == Plain()
    assert config.path(config.data.archive) == Path("/somewhere/a.tar.gz")
    assert config.models_dir == Path("/somewhere/models")
    with pytest.raises(UserError, match=r"unknown role 'generalist'.*specialist"):
        config.role("generalist")


def test_all_faults_are_told_at_once_with_lines_and_choices(registry: Registry) -> None:
    text = GOOD.replace("seed = 3", "seed = -3\nsead = 4").replace("rank = 4", "rank = 5\nlerning_rate = 1")
    text += '\n[roles.nobody]\nbase = "x/y"\n[roles.nobody.trainer]\nname = "smal"\n'
    told = "\n".join(faults(text, registry))
    assert "line 2: seed: Input should be greater than or equal to 0; got -3" in told
    assert "line 3: sead: unknown key 'sead'. Did you mean 'seed'?" in told
    assert "line 13: roles.specialist.trainer.rank: rank must be even" in told
    assert "line 14: roles.specialist.trainer.lerning_rate: unknown key 'lerning_rate'. Did you mean 'learning_rate'?" in told
    assert "line 16: roles.nobody: unknown role 'nobody'. Valid choices: generalist, specialist" in told
    assert "unknown trainer 'smal'. Did you mean 'small'?" in told
    assert len(faults(text, registry)) == 6


def test_nested_unknown_keys_name_the_keys_of_their_own_table(registry: Registry) -> None:
    (told,) = faults(GOOD.replace("[data]", "[data]\nvalid_fracton = 0.1"), registry)
    assert "data.valid_fracton" in told
    assert "Did you mean 'valid_fraction'?" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = ", "it is not valid TOML"),
        ("seed = 1", "roles: it is missing and has no default"),
        (GOOD.replace('name = "small"', ""), "`name` of the trainer is missing. Valid choices: small"),
        (GOOD.replace('base = "./base"', ""), "base: it is missing"),
        (GOOD + '\n[router]\nname = "nope"', "unknown router 'nope'"),
        (GOOD + "\n[readers.xml]\na = 1", "unknown reader 'xml'"),
        (GOOD.replace("[data]", "[data]\nvalid_fraction = 0.45\ntest_fraction = 0.45"), "less than a tenth"),
        (GOOD.replace("seed = 3", 'device = "gpu"'), "line 2: device"),
    ],
)
def test_each_fault_has_its_message(text: str, message: str, registry: Registry) -> None:
    assert message in "\n".join(faults(text, registry))


def test_overrides_change_single_keys_and_bare_words_are_strings(registry: Registry) -> None:
    config = parse(GOOD, registry, overrides=["seed=9", "roles.specialist.trainer.rank=2", "roles.specialist.base=org/name"])
    assert (config.seed, config.role("specialist").trainer.rank, config.role("specialist").base) == (9, 2, "org/name")


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3"])
def test_a_wrong_override_is_refused(override: str, registry: Registry) -> None:
    with pytest.raises(UserError, match="--set"):
        parse(GOOD, registry, overrides=[override])


def test_a_resolved_configuration_written_as_toml_resolves_to_itself(registry: Registry) -> None:
    import tomli_w

    config = parse(GOOD, registry)
    again = parse(tomli_w.dumps(config.table()), registry)
    assert again == config


def test_the_schema_lists_every_backend_and_its_options(registry: Registry) -> None:
    schema = json_schema(registry)
    role = schema["$defs"]["_RoleTables"]["properties"]
    (trainer,) = role["trainer"]["oneOf"]
    assert trainer["properties"]["name"] == {"const": "small"}
    assert trainer["properties"]["learning_rate"]["description"] == "Per step."
    assert trainer["additionalProperties"] is False
    json.dumps(schema)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sysscan-models init.*demo"):
        load_config(tmp_path / FILE_NAME)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / FILE_NAME)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / FILE_NAME).write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_config(tmp_path / FILE_NAME, registry=registry).roles


def test_faults_of_the_structure_hide_none_of_the_backends(registry: Registry) -> None:
    text = """
[roles.specialist]
trainer = {name = "small", epochz = 1}
[roles.generalist]
base = "stub:tiny"
quantizer = "small"
trainer = {name = "nope"}
[roles.third]
base = "stub:tiny"
"""
    with pytest.raises(ConfigError) as error:
        parse(text, registry)
    told = "\n".join(error.value.faults)
    for fault in (
        "roles.specialist.base: it is missing",
        "unknown key 'epochz'",
        "line 6: roles.generalist.quantizer: expected a table; got 'small'",
        "unknown trainer 'nope'",
        "roles.third.trainer: it is missing",
    ):
        assert fault in told


def test_an_unknown_recipe_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'dmo'. Did you mean 'demo'.*tpu"):
        recipe_text("dmo")


@pytest.mark.parametrize("recipe", recipes())
def test_every_shipped_recipe_resolves(recipe: str) -> None:
    config = load_config(recipe=recipe)
    assert set(config.roles) == {"specialist", "generalist"}


def test_the_tpu_recipe_carries_every_number_of_the_original() -> None:
    config = load_config(recipe="tpu")
    specialist, generalist = config.role("specialist"), config.role("generalist")
    expected = {"max_seq_length": 4096, "batch_size": 4, "learning_rate": 2e-5, "epochs": 1}
    assert specialist.base == "meta-llama/Meta-Llama-3-8B"
    assert specialist.trainer.model_dump(include=set(expected)) == expected
    expected = {
        "max_seq_length": 2048,
        "batch_size": 2,
        "learning_rate": 1e-4,
        "epochs": 1,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.1,
    }
    assert generalist.base == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert generalist.trainer.model_dump(include=set(expected)) == expected
    assert {part.quantizer.type for part in config.roles.values()} == {"Q4_K_M"}  # type: ignore[attr-defined]
