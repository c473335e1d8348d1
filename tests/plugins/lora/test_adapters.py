from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_lora import TEMPLATE, save_base, tensors_of

from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, Splits, file_records
from sysscan_models.errors import SysscanError, UserError
from sysscan_models.interfaces import TrainJob
from sysscan_models.plugins import plugin_manager
from sysscan_models.roles import GENERALIST
from sysscan_plugins.lora import Lora

QUICK = {
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "learning_rate": 2e-2,
    "max_seq_length": 64,
    "compute_dtype": "float32",
    "max_steps": 12,
    "epochs": 50,
}


def prepared(folder: Path) -> Splits:
    """Return tiny splits of conversations, written when they are not there yet."""
    names = {"train.jsonl": 12, "valid.jsonl": 2, "test.jsonl": 2}
    for name, count in names.items():
        folder.mkdir(exist_ok=True)
        lines = [
            {
                "id": f"{name}{n}",
                "messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "yes, sir"}],
            }
            for n in range(count)
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Splits(role="generalist", files=file_records(folder, names)).at(folder)


def recorded(base: Path) -> BaseCheckpoint:
    return BaseCheckpoint(reference=base.name, files=file_records(base, [path.name for path in base.iterdir()])).at(base)


def job_for(base: Path, out_dir: Path) -> TrainJob:
    return TrainJob(GENERALIST, recorded(base), prepared(out_dir.parent / "splits"), out_dir, device="cpu")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def adapter_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load

    return load((folder / "adapter_model.safetensors").read_bytes())


# Options


def test_the_defaults_are_the_originals_numbers() -> None:
    options = Lora()
    assert (options.learning_rate, options.max_seq_length, options.batch_size, options.epochs) == (1e-4, 2048, 2, 1)
    assert (options.rank, options.alpha, options.dropout) == (16, 32, 0.1)
    assert options.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (options.experts, options.rslora) == (False, False)
    assert options.keyed()["rank"] == 16
    assert "log_every" not in options.keyed()


def test_the_trainer_is_registered() -> None:
    import sysscan_plugins.lora

    registry = plugin_manager(sysscan_plugins.lora, entry_points=False)
    assert registry.get("trainers", "lora") is Lora
    assert Lora.checkpoint_kind == "adapter"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": True}, r"dropout is 0\.1, but adapters of experts cannot have one; set dropout = 0"),
        ({"target_modules": ()}, "are empty and experts is false: nothing would be trained; name a module"),
        ({"dropout": 1.0}, "less than 1"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"targets": ("q_proj",)}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Lora(**options)


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, sysscan_plugins.lora; print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"


# What can be adapted


@pytest.mark.parametrize(
    ("kind", "options", "groups"),
    [
        ("llama", {}, {"attention": 2 * 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32)}),
        (
            "llama",
            {"target_modules": ("q_proj",), "extra_targets": ("down_proj",)},
            {"attention": 512, "mlp": 2 * 4 * (32 + 40)},
        ),
        ("llama", {"target_modules": ("lm_head",)}, {"other": 4 * (260 + 32)}),
        ("mixtral", {}, {"attention": 1792}),
        ("mixtral", {"experts": True}, {"attention": 1792, "experts": 2 * 4 * 4 * (32 + 80 + 40 + 32)}),
        ("mixtral", {"experts": True, "target_modules": ()}, {"experts": 5888}),
    ],
)
def test_what_trains_is_what_was_asked_for_and_is_counted_before(
    kind: str, options: dict[str, Any], groups: dict[str, int], tmp_path: Path
) -> None:
    from sysscan_plugins.lora.adapters import load_adapted, trained_parameters
    from sysscan_plugins.lora.targets import by_group, check_targets

    base, lora = save_base(tmp_path / "base", kind), Lora(**{**QUICK, **options})
    expected = check_targets(base, lora)
    model = load_adapted(base, lora, seed=1)
    assert by_group(expected.items()) == trained_parameters(model) == groups
    trained = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert sorted(trained.values()) == sorted(expected.values())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "llama",
            {"target_modules": ("query",)},
            "no linear module named 'query'. Valid names: down_proj, gate_proj, k_proj, lm_head",
        ),
        (
            "llama",
            {"experts": True},
            "has no experts; set it to false and name MLP modules in extra_targets. Valid names: down_proj",
        ),
        (
            "mixtral",
            {"extra_targets": ("up_proj",)},
            "named 'up_proj'. Its MLP is made of experts: set experts = true to train them. Val",
        ),
        ("mixtral", {"target_modules": ("gate",)}, "no linear module named 'gate'"),
        ("llama", {"target_modules": ("embed_tokens",)}, "no linear module named 'embed_tokens'"),
        ("llama", {"target_modules": ("proj",)}, "no linear module named 'proj'"),
        ("llama", {"max_seq_length": 4096}, "max_seq_length is 4096, but .* was made for at most 512 positions"),
    ],
)
def test_a_group_without_parameters_is_refused_before_training(
    kind: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base, lora = save_base(tmp_path / "base", kind), Lora(**{**QUICK, **options})
    with pytest.raises(UserError, match=message):
        lora.check(recorded(base), GENERALIST)
    with pytest.raises(UserError, match=message):
        lora.train(job_for(base, tmp_path / "out"))


def test_a_tied_head_is_no_target(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    with pytest.raises(UserError, match="no linear module named 'lm_head'"):
        Lora(**QUICK, target_modules=("lm_head",)).check(recorded(base), GENERALIST)


def test_a_base_that_could_not_be_merged_into_is_refused_before_training(llama: Path) -> None:
    base = recorded(llama)
    os.truncate(llama / "model.safetensors", 5000)
    with pytest.raises(SysscanError, match="its header expects"):
        Lora(**QUICK).check(base, GENERALIST)


def test_adapters_that_peft_puts_elsewhere_are_an_error(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sysscan_plugins.lora import adapters

    other = Lora(**QUICK, target_modules=("q_proj",))
    load = adapters.load_adapted
    monkeypatch.setattr(adapters, "load_adapted", lambda base, options, seed, streams: load(base, other, seed))
    with pytest.raises(SysscanError, match="adapters were put on attention 512; expected attention 1,792"):
        Lora(**QUICK).train(job_for(llama, tmp_path / "out"))


# Training


@pytest.mark.parametrize(("kind", "experts"), [("llama", False), ("mixtral", False), ("mixtral", True)])
def test_trained_merged_and_equal(kind: str, experts: bool, tmp_path: Path) -> None:
    """Loss goes down, the base does not move, the adapters do; the merged model says what the adapted one says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base", kind)
    before, lora = snapshot(base), Lora(**QUICK, experts=experts)
    job = job_for(base, tmp_path / "out")
    lora.check(job.base, job.role)
    estimate = lora.estimate(job)
    checkpoint = lora.train(job)

    assert snapshot(base) == before
    assert checkpoint.final_train_loss < checkpoint.first_train_loss
    assert checkpoint.final_valid_loss < checkpoint.first_valid_loss
    assert Checkpoint.load(job.out_dir) == checkpoint
    assert checkpoint.kind == "adapter"
    assert checkpoint.inputs == {"base": job.base.digest, "splits": job.splits.digest}
    assert checkpoint.options == lora.keyed()
    assert estimate is not None
    assert (estimate.steps, estimate.train_tokens) == (checkpoint.steps, checkpoint.train_tokens)
    assert estimate.disk_bytes > 12 * sum(checkpoint.made["trained_parameters"].values())
    moved = {name for name, tensor in adapter_tensors(job.out_dir).items() if "lora_B" in name and tensor.any()}
    assert len(moved) == 8 + 4 * experts
    assert not (job.out_dir / "checkpoints").exists()
    assert not (job.out_dir / "encoded").exists()

    merged = lora.merge(checkpoint, job.base, tmp_path / "merged")
    assert merged.inputs == {"base": job.base.digest, "checkpoint": checkpoint.digest}
    assert (merged.role, merged.seed) == ("generalist", job.seed)
    old, new = tensors_of(base), tensors_of(merged.root)
    changed = {name for name in old if old[name] != new[name]}
    assert not any("gate.weight" in name or "norm" in name or "embed" in name for name in changed)
    assert any("experts" in name for name in changed) == experts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), job.out_dir)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(merged.root)(ids).logits, expected, rtol=1e-4, atol=1e-4
        )


def test_the_adapter_folder_is_pefts_and_names_no_machine(llama: Path, tmp_path: Path) -> None:
    (llama / "LICENSE").write_text("terms")
    job = job_for(llama, tmp_path / "out")
    Lora(**QUICK).train(job)
    names = {path.name for path in job.out_dir.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"} <= names
    config = json.loads((job.out_dir / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "path:llama"
    assert (config["revision"], config["inference_mode"], config["r"], config["lora_alpha"]) == (None, True, 4, 8)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert str(tmp_path) not in "".join(
        path.read_text(errors="ignore") for path in job.out_dir.iterdir() if path.suffix == ".json"
    )
    assert (job.out_dir / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert (job.out_dir / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("reference", "revision", "name", "kept"),
    [
        ("organisation/model", "0a1b2c", "organisation/model", "0a1b2c"),
        ("embedded:smollm2", "0.1.2", "embedded:smollm2", None),
        ("/home/user/model", "", "path:model", None),
    ],
)
def test_the_base_is_named_without_a_path(reference: str, revision: str, name: str, kept: str | None) -> None:
    from sysscan_plugins.lora.adapters import _plain

    base = BaseCheckpoint(reference=reference, revision=revision)
    plain = _plain({"peft_version": "9", "target_modules": {"b", "a"}, "inference_mode": False}, base)
    assert plain == {
        "target_modules": ["a", "b"],
        "inference_mode": True,
        "base_model_name_or_path": name,
        "revision": kept,
    }


def test_our_template_and_end_token_reach_the_merged_model(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (llama / "chat_template.jinja").unlink()
    (llama / "generation_config.json").unlink()
    job, lora = job_for(llama, tmp_path / "out"), Lora(**QUICK)
    merged = lora.merge(lora.train(job), job.base, tmp_path / "merged")
    assert "### Assistant" in AutoTokenizer.from_pretrained(merged.root).chat_template
    assert json.loads((merged.root / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_same_job_gives_the_same_bytes_and_another_seed_does_not(llama: Path, tmp_path: Path) -> None:
    lora = Lora(**{**QUICK, "dropout": 0.2, "compute_dtype": "bfloat16", "max_steps": 3})
    first, second = (lora.train(job_for(llama, tmp_path / name)) for name in ("a", "b"))
    assert first.digest == second.digest
    job = job_for(llama, tmp_path / "c")
    assert lora.train(TrainJob(**{**vars(job), "seed": 18})).files != first.files


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped(mixtral: Path, tmp_path: Path) -> None:
    """SIGTERM after some steps; the resumed run ends with the bytes of an uninterrupted one."""
    options = {**QUICK, "experts": True, "target_modules": ["q_proj"], "max_steps": 8, "checkpoint_every": 2}
    whole = Lora(**options).train(job_for(mixtral, tmp_path / "whole"))
    script = f"""
        import os, signal, sys, warnings
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_adapters import job_for
        from sysscan_plugins.lora import Lora
        from sysscan_plugins.training import loop
        take = loop._take_step
        def stopping(run, step):
            if step == 4:
                os.kill(os.getpid(), signal.{{signal}})
            return take(run, step)
        loop._take_step = stopping
        base, out = map(Path, sys.argv[1:])
        Lora(**{options!r}).train(job_for(base, out))
    """
    for name, sign in (("stopped", "SIGTERM"), ("killed", "SIGKILL")):
        arguments = [sys.executable, "-c", textwrap.dedent(script.replace("{signal}", sign)), mixtral, tmp_path / name]
        ended = subprocess.run(arguments, check=False, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL if sign == "SIGKILL" else "Interrupted" in ended.stderr, ended.stderr
        assert list((tmp_path / name / "checkpoints").glob("*"))
        assert not (tmp_path / name / "adapter_model.safetensors").exists()
        assert not (tmp_path / name / "artifact.json").exists()
        assert Lora(**options).train(job_for(mixtral, tmp_path / name)).digest == whole.digest


def test_an_interrupted_merge_of_the_pipeline_is_made_again(llama: Path, tmp_path: Path) -> None:
    job, lora = job_for(llama, tmp_path / "out"), Lora(**QUICK)
    checkpoint = lora.train(job)
    first = lora.merge(checkpoint, job.base, tmp_path / "merged")
    (tmp_path / "merged" / "artifact.json").unlink()
    assert lora.merge(checkpoint, job.base, tmp_path / "merged").digest == first.digest


def test_plain_folders_merge_through_the_trainer(llama: Path, tmp_path: Path) -> None:
    """What `merge --base --adapter --out` does: artifacts without files stand for folders."""
    job, lora = job_for(llama, tmp_path / "out"), Lora(**QUICK)
    checkpoint = lora.train(job)
    plain = Checkpoint(kind="adapter").at(job.out_dir), BaseCheckpoint(reference="llama").at(llama)
    merged = lora.merge(*plain, tmp_path / "merged")
    assert merged.inputs["checkpoint"] == checkpoint.digest
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no earlier merge"):
        lora.merge(*plain, tmp_path / "taken")


# Experts


def test_no_auxiliary_loss_and_a_count_of_the_experts_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sysscan_plugins.lora.adapters import load_adapted

    monkeypatch.setenv("SYSSCAN_PROGRESS", "lines")
    base = save_base(tmp_path / "base", "mixtral", output_router_logits=True)
    lora = Lora(**{**QUICK, "max_steps": 2})
    assert load_adapted(base, lora, 1).config.output_router_logits is False
    load = lora.train(job_for(base, tmp_path / "out")).made["expert_load"]
    assert len(load) == 2
    for shares in load.values():
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert len(set(shares)) > 1
    shown = capsys.readouterr().err
    assert "train generalist: trained parameters: attention 1,792; all others are frozen" in shown
    assert "of the choices went to an expert (even would be 25.0%)" in shown


def test_expert_choices_are_counted_only_while_training(mixtral: Path) -> None:
    import torch

    from sysscan_plugins.lora.adapters import expert_load, load_adapted

    model = load_adapted(mixtral, Lora(**QUICK), 1)
    ids = torch.arange(3, 30)[None]
    with expert_load(model) as load:
        model.eval()(ids)
        assert not load
        model.train()(ids)
        model(ids)
    model(ids)
    assert {int(times.sum()) for times in load.values()} == {2 * 2 * 27}
