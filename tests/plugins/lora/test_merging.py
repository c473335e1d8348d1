from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from tiny_lora import EXPERTS, TEMPLATE, save_adapter, save_base, tensors_of

from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, MergedCheckpoint, file_records
from sysscan_models.errors import IntegrityError, SysscanError, UserError
from sysscan_plugins.lora import merging
from sysscan_plugins.lora.merging import merge_adapter
from sysscan_plugins.training.base_folder import BaseFolder


def peft_merge(base: Path, adapter: Path, out: Path, **save: Any) -> Path:
    """The oracle: peft's own merge, saved by transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        warnings.simplefilter("ignore", RuntimeWarning)  # peft says that patterns for parameters are ignored; they are not
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
    model.merge_and_unload().save_pretrained(out, **save)
    return out


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_adapter(adapter: Path, change: Any) -> None:
    """Let `change` alter the dict of the adapter's tensors in place."""
    from safetensors.torch import load, save_file

    tensors = load((adapter / "adapter_model.safetensors").read_bytes())
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


MLP = ["gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "llama tied": ({"tie_word_embeddings": True}, {}),
    "llama tied bf16": ({"tie_word_embeddings": True, "dtype": "bfloat16"}, {"target_modules": ["q_proj", *MLP]}),
    "llama f16": ({"dtype": "float16"}, {"target_modules": ["v_proj", *MLP]}),
    "llama lm_head": ({}, {"target_modules": ["o_proj", "lm_head"]}),
    "llama rslora": ({}, {"use_rslora": True}),
    "llama patterns": ({}, {"rank_pattern": {"0.self_attn.q_proj": 3, "v_proj": 2}, "alpha_pattern": {"layers.1.*k_proj": 11}}),
    "llama one layer": ({"shards": True}, {"layers_to_transform": [1]}),
    "llama regex": ({}, {"target_modules": r".*layers\.1\.self_attn\.[qv]_proj"}),
    "mixtral": ({"kind": "mixtral"}, {}),
    "mixtral experts": ({"kind": "mixtral"}, {"target_parameters": EXPERTS}),
    "mixtral only down": ({"kind": "mixtral"}, {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "mixtral experts bf16": ({"kind": "mixtral", "dtype": "bfloat16"}, {"target_parameters": EXPERTS}),
    "mixtral experts f16 rslora": ({"kind": "mixtral", "dtype": "float16"}, {"target_parameters": EXPERTS, "use_rslora": True}),
    "mixtral experts patterns": (
        {"kind": "mixtral"},
        {"target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 3}, "alpha_pattern": {"experts.gate_up_proj": 9}},
    ),
    "mixtral experts in shards": ({"kind": "mixtral", "shards": True}, {"target_parameters": EXPERTS}),
    "mixtral fused": ({"kind": "mixtral", "fused": True}, {"target_parameters": EXPERTS}),
    "mixtral fused in shards bf16": (
        {"kind": "mixtral", "fused": True, "shards": True, "dtype": "bfloat16"},
        {"target_parameters": EXPERTS},
    ),
    "mixtral wide as hidden": ({"kind": "mixtral", "intermediate_size": 32}, {"target_parameters": EXPERTS}),
    "mixtral twice wide": ({"kind": "mixtral", "intermediate_size": 16}, {"target_parameters": EXPERTS}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [merging.BLOCK, 128], ids=["whole", "blocks"])
def test_merge_equals_pefts_own_bit_for_bit(case: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_options, adapter_options = CASES[case]
    monkeypatch.setattr(merging, "BLOCK", block)
    base = save_base(tmp_path / "base", **base_options)
    adapter = save_adapter(base, tmp_path / "adapter", **adapter_options)
    fused = {"save_original_format": False} if base_options.get("fused") else {}
    oracle, before = tensors_of(peft_merge(base, adapter, tmp_path / "oracle", **fused)), tensors_of(base)

    merged = merge_adapter(base, adapter, tmp_path / "merged")

    ours = tensors_of(merged.root)
    assert ours.keys() == oracle.keys() == before.keys()
    assert [name for name in ours if ours[name] != oracle[name]] == []
    changed = {name for name in ours if ours[name] != before[name]}
    assert len(changed) == merged.made["merged_tensors"] > 0
    assert merged.made["unchanged"] == []
    assert {path.name for path in merged.root.glob("model*")} == {path.name for path in base.glob("model*")}


def test_the_merged_folder_loads_and_carries_what_the_base_had(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (llama / "LICENSE.txt").write_text("terms")
    (llama / ".hidden.json").write_text("{}")
    (llama / "pytorch_model.bin.index.json").write_text("{}")
    merged = merge_adapter(llama, save_adapter(llama, tmp_path / "adapter"), tmp_path / "out" / "merged")
    names = {path.name for path in merged.root.iterdir()}
    assert names == {path.name for path in llama.iterdir()} - {".hidden.json", "pytorch_model.bin.index.json"} | {
        "artifact.json"
    }
    assert merged.files.keys() == names - {"artifact.json"}
    merged.check_files(contents=True)
    assert MergedCheckpoint.load(merged.root) == merged
    assert AutoModelForCausalLM.from_pretrained(merged.root).config.num_key_value_heads == 2
    assert AutoTokenizer.from_pretrained(merged.root).chat_template == TEMPLATE
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE.txt"):
        assert (merged.root / name).read_bytes() == (llama / name).read_bytes()


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_adapters_chat_template_wins(where: str, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    adapter, template = save_adapter(llama, tmp_path / "adapter"), "{{ messages[0]['content'] }}"
    (adapter / where).write_text(template if where.endswith("jinja") else json.dumps({"chat_template": template}))
    merged = merge_adapter(llama, adapter, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(merged.root).chat_template == template


def test_the_same_inputs_give_the_same_record(mixtral: Path, tmp_path: Path) -> None:
    adapter = save_adapter(mixtral, tmp_path / "adapter", target_parameters=EXPERTS)
    first, second = merge_adapter(mixtral, adapter, tmp_path / "a"), merge_adapter(mixtral, adapter, tmp_path / "b")
    assert first.digest == second.digest


def test_progress_reaches_its_total(llama: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge_adapter(
        llama,
        save_adapter(llama, tmp_path / "adapter"),
        tmp_path / "merged",
        progress=lambda done, total: seen.append((done, total)),
    )
    total = 2 * (llama / "model.safetensors").stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_fused_experts_that_training_never_reached_stay_and_are_named(mixtral: Path, tmp_path: Path) -> None:
    adapter = save_adapter(mixtral, tmp_path / "adapter", target_parameters=EXPERTS)

    def forget_expert_three(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if ".mlp.experts." in name and name.endswith("lora_B.weight"):
                tensor.view(tensor.shape[0], -1, 4)[:, :, 3] = 0

    rewrite_adapter(adapter, forget_expert_three)
    merged = merge_adapter(mixtral, adapter, tmp_path / "merged")
    assert merged.made["unchanged"] == [
        f"model.layers.{n}.block_sparse_moe.experts.3.w{w}.weight" for n in (0, 1) for w in (1, 2, 3)
    ]


# What does not belong together


def test_a_base_of_other_widths_is_refused(llama: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", hidden_size=64)
    with pytest.raises(
        UserError, match=r"does not fit this base(.|\n)*makes \[16, 32\], but .*k_proj.weight is \[32, 64\](.|\n)*trained on"
    ):
        merge_adapter(other, save_adapter(llama, tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 1}, r"layers\.1\.self_attn\.k_proj has no tensor model\.layers\.1.*\n(.|\n)*"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.self_attn\.k_proj has no pair in adapter_model\.safetensors, but"),
    ],
)
def test_a_base_of_another_depth_is_refused(other: dict[str, Any], message: str, llama: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "other", **other)
    with pytest.raises(UserError, match=message):
        merge_adapter(base, save_adapter(llama, tmp_path / "adapter"), tmp_path / "merged")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, r"has no experts in the base: neither .*mlp\.experts\.down_proj nor .*block_sparse_moe\.experts\.0\.w2\.weight"),
        ({"kind": "mixtral", "intermediate_size": 48}, "fit no parameter of 4 experts of width 48 on hidden width 32"),
        ({"kind": "mixtral", "num_local_experts": 3}, "fit no parameter of 3 experts"),
        (
            {"kind": "mixtral", "num_local_experts": 2},
            "has rank 8 in adapter_model.safetensors, but adapter_config.json says 4",
        ),
    ],
)
def test_expert_pairs_that_do_not_fit_are_refused(other: dict[str, Any], message: str, mixtral: Path, tmp_path: Path) -> None:
    adapter = save_adapter(mixtral, tmp_path / "adapter", target_parameters=EXPERTS)
    with pytest.raises(UserError, match=message):
        merge_adapter(save_base(tmp_path / "other", **other), adapter, tmp_path / "merged")


def test_an_expert_tensor_that_the_base_lacks_is_named(mixtral: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, save_file

    adapter = save_adapter(mixtral, tmp_path / "adapter", target_parameters=EXPERTS)
    tensors = load((mixtral / "model.safetensors").read_bytes())
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, mixtral / "model.safetensors")
    with pytest.raises(
        UserError, match=r"has no tensor model\.layers\.1\.block_sparse_moe\.experts\.2\.w3\.weight in the base"
    ):
        merge_adapter(mixtral, adapter, tmp_path / "merged")
    tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, mixtral / "model.safetensors")
    with pytest.raises(UserError, match=r"makes \[40, 32\] for .*experts\.2\.w3\.weight, which is \[260, 32\]"):
        merge_adapter(mixtral, adapter, tmp_path / "merged")


def test_a_pair_without_a_target_is_never_dropped(llama: Path, tmp_path: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        for half in "AB":
            old = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight"
            tensors[old.replace("self_attn", "cross_attn")] = tensors[old].clone()

    adapter = save_adapter(llama, tmp_path / "adapter")
    rewrite_adapter(adapter, add)
    with pytest.raises(
        UserError, match=r"cross_attn\.q_proj has no tensor model\.layers\.0\.cross_attn\.q_proj\.weight in the base"
    ):
        merge_adapter(llama, adapter, tmp_path / "merged")


@pytest.mark.parametrize("lost", ["layers.1.self_attn.v_proj", "layers.1.mlp.experts.lora", "layers.0.mlp.experts.base_layer"])
def test_a_pair_that_the_file_lost_is_missed(lost: str, mixtral: Path, tmp_path: Path) -> None:
    adapter = save_adapter(mixtral, tmp_path / "adapter", target_parameters=EXPERTS)
    rewrite_adapter(adapter, lambda tensors: [tensors.pop(name) for name in list(tensors) if lost in name])
    with pytest.raises(UserError, match=r"has no pair in adapter_model\.safetensors, but adapter_config\.json targets it"):
        merge_adapter(mixtral, adapter, tmp_path / "merged")


def test_two_pairs_for_one_tensor_are_refused(mixtral: Path, tmp_path: Path) -> None:
    def double(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "layers.0.self_attn.q_proj" in name]:
            tensors[name.replace("q_proj", "q_proj.base_layer")] = tensors[name].clone()

    adapter = save_adapter(mixtral, tmp_path / "adapter")
    rewrite_adapter(adapter, double)
    with pytest.raises(UserError, match=r"targets model\.layers\.0\.self_attn\.q_proj\.weight, which another pair targets too"):
        merge_adapter(mixtral, adapter, tmp_path / "merged")


def test_a_tied_head_cannot_be_adapted(tmp_path: Path) -> None:
    adapter = save_adapter(save_base(tmp_path / "untied"), tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    tied = save_base(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(UserError, match="lm_head is adapted, but this base ties lm_head to the embedding"):
        merge_adapter(tied, adapter, tmp_path / "merged")


def test_many_faults_are_counted(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(save_base(tmp_path / "deep", num_hidden_layers=5), tmp_path / "adapter")
    with pytest.raises(UserError, match="and 4 more"):
        merge_adapter(llama, adapter, tmp_path / "merged")


# Adapters that are not understood


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "does not support: use_dora=True. Merge it with peft's merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"a_feature_of_next_year": 3}, "a_feature_of_next_year=3"),
        ({"peft_type": "VERA"}, "an adapter of type 'VERA'; only 'LORA' can be merged"),
        ({"r": 0}, "r is 0; expected a number above 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"r": 5}, "has rank 4 in adapter_model.safetensors, but adapter_config.json says 5"),
    ],
)
def test_features_that_the_merge_does_not_know_are_refused_by_name(
    change: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    edit(adapter / "adapter_config.json", **change)
    with pytest.raises(UserError, match=message):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_an_embedding_adapter_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(
        UserError, match=r"holds .*embed_tokens.*; expected only matrices named base_model\.model\.MODULE\.lora_A\.weight"
    ):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_half_a_pair_is_refused(llama: Path, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = save_adapter(llama, tmp_path / "adapter")
    rewrite_adapter(
        adapter, lambda tensors: tensors.update({f"{key}.lora_A.weight": tensors[f"{key}.lora_A.weight"][:3].clone()})
    )
    with pytest.raises(UserError, match=r"q_proj has lora_A \[3, 32\] and lora_B \[32, 4\], which cannot be multiplied"):
        merge_adapter(llama, adapter, tmp_path / "merged")
    rewrite_adapter(adapter, lambda tensors: tensors.pop(f"{key}.lora_A.weight"))
    with pytest.raises(UserError, match="q_proj has lora_B but not lora_A"):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_an_untrained_adapter_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter", init_lora_weights=True)
    with pytest.raises(UserError, match=r"changes no weight: all of its lora_B are zero or too small. Was it trained"):
        merge_adapter(llama, adapter, tmp_path / "merged")
    assert list(tmp_path.glob("*merged*")) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_weight_that_is_not_finite_is_a_failure(dtype: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][:] = (
            1e30 if dtype == "float16" else float("nan")
        )

    base = save_base(tmp_path / "base", dtype=dtype)
    adapter = save_adapter(base, tmp_path / "adapter")
    rewrite_adapter(adapter, spoil)
    with pytest.raises(SysscanError, match=r"layers\.1\.self_attn\.q_proj\.weight is not finite after the merge"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert list(tmp_path.glob("*merged*")) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json: it is not a LoRA adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "an adapter of type None"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"pickled weights \(.bin\) are not read"),
        (lambda folder: rewrite_adapter(folder, lambda tensors: tensors.clear()), "holds no tensor at all"),
    ],
)
def test_an_incomplete_adapter_folder_is_refused(spoil: Any, message: str, llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    spoil(adapter)
    with pytest.raises(UserError, match=message):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_a_damaged_adapter_file_is_a_failure(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    os.truncate(adapter / "adapter_model.safetensors", 500)
    with pytest.raises(IntegrityError, match=r"adapter_model.safetensors cannot be read"):
        merge_adapter(llama, adapter, tmp_path / "merged")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_tokenizer_configuration_of_the_adapter_is_a_failure(text: str, llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    (adapter / "tokenizer_config.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"tokenizer_config.json is damaged .*; save the adapter's tokenizer again"):
        merge_adapter(llama, adapter, tmp_path / "merged")


# Records


def recorded(base: Path, adapter: Path, **changes: Any) -> tuple[BaseCheckpoint, Checkpoint]:
    files = file_records(base, ["config.json", "model.safetensors"])
    record = BaseCheckpoint(reference="tiny", files=files, **changes).at(base)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    checkpoint = Checkpoint(
        kind="adapter",
        role="generalist",
        seed=5,
        inputs={"base": record.digest, "splits": "0"},
        files=file_records(adapter, names),
    )
    return record, checkpoint.save(adapter)


def test_the_record_carries_the_lineage(llama: Path, tmp_path: Path) -> None:
    base, checkpoint = recorded(llama, adapter := save_adapter(llama, tmp_path / "adapter"))
    merged = merge_adapter(llama, adapter, tmp_path / "merged", base=base)
    assert (merged.role, merged.seed) == ("generalist", 5)
    assert merged.inputs == {"base": base.digest, "checkpoint": checkpoint.digest}
    assert merged.options == {"trainer": "lora"}


def test_plain_folders_are_told_apart_by_their_bytes(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    first = merge_adapter(llama, adapter, tmp_path / "a")
    other = merge_adapter(save_base(tmp_path / "other", seed=9), adapter, tmp_path / "b")
    assert first.inputs["checkpoint"] == other.inputs["checkpoint"]
    assert first.inputs["base"] != other.inputs["base"]


def test_another_base_than_the_recorded_one_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    recorded(llama, adapter)
    other = save_base(tmp_path / "other", seed=9)
    stranger = BaseCheckpoint(reference="stranger", files=file_records(other, ["model.safetensors"])).at(other)
    with pytest.raises(
        UserError, match=r"was trained on the base with digest .* but stranger has .* Give the base that it was trained on"
    ):
        merge_adapter(other, adapter, tmp_path / "merged", base=stranger)


def test_a_base_that_changed_since_its_record_is_found_out(llama: Path, tmp_path: Path) -> None:
    base, _ = recorded(llama, adapter := save_adapter(llama, tmp_path / "adapter"))
    save_base(llama, seed=9)
    with pytest.raises(IntegrityError, match=r"model.safetensors of tiny has SHA-256 .*; its record expects"):
        merge_adapter(llama, adapter, tmp_path / "merged", base=base)
    assert list(tmp_path.glob("*merged*")) == []


def test_an_adapter_that_changed_since_its_record_is_found_out(llama: Path, tmp_path: Path) -> None:
    recorded(llama, adapter := save_adapter(llama, tmp_path / "adapter"))
    edit(adapter / "adapter_config.json", lora_alpha=99)
    with pytest.raises(IntegrityError, match=r"adapter_config\.json has"):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_a_full_checkpoint_needs_no_merge(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    Checkpoint(kind="full").save(adapter)
    with pytest.raises(UserError, match="holds a checkpoint of kind 'full'; only 'adapter' needs a merge"):
        merge_adapter(llama, adapter, tmp_path / "merged")


def test_an_unreadable_record_is_not_ignored(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    (adapter / "artifact.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"artifact\.json cannot be read .*; remove it to merge plain folders"):
        merge_adapter(llama, adapter, tmp_path / "merged")


# Where it writes


def test_an_earlier_merge_is_replaced_and_other_folders_are_not(llama: Path, tmp_path: Path) -> None:
    adapter, out = save_adapter(llama, tmp_path / "adapter"), tmp_path / "merged"
    out.mkdir()
    merge_adapter(llama, adapter, out)
    (out / "left-over").write_text("")
    merge_adapter(llama, adapter, out)
    assert not (out / "left-over").exists()

    (out / "artifact.json").unlink()
    with pytest.raises(UserError, match="is not empty and holds no earlier merge"):
        merge_adapter(llama, adapter, out)
    merge_adapter(llama, adapter, out, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "llama", "merged"]

    for taken in (llama, adapter, tmp_path):
        with pytest.raises(UserError, match=r"is an input. Choose another folder"):
            merge_adapter(llama, adapter, taken, replace=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        merge_adapter(llama, adapter, tmp_path / "file")


def test_a_full_disk_is_noticed_before_anything_is_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    size = (llama / "model.safetensors").stat().st_size
    with pytest.raises(SysscanError, match=rf"needs {size:,} bytes in .*; 1,000 are free. Make room"):
        merge_adapter(llama, adapter, tmp_path / "new" / "merged")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("moment", ["writing", "reading back"])
def test_a_killed_merge_leaves_nothing_under_the_final_name(moment: str, llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(llama, tmp_path / "adapter")
    share = 0.3 if moment == "writing" else 0.9
    script = f"""
        import os, signal, sys
        from pathlib import Path
        from sysscan_plugins.lora.merging import merge_adapter
        def die(done, total):
            if done > {share} * total:
                os.kill(os.getpid(), signal.SIGKILL)
        merge_adapter(*map(Path, sys.argv[1:]), progress=die)
    """
    arguments = [llama, adapter, tmp_path / "merged"]
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "merged").exists()
    assert (tmp_path / ".merged.tmp").is_dir()

    merge_adapter(*arguments).check_files(contents=True)
    assert not (tmp_path / ".merged.tmp").exists()


def test_a_byte_that_moved_elsewhere_is_an_error(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, write = save_adapter(llama, tmp_path / "adapter"), merging._write

    def flip(source: Any, target: Path, *rest: Any) -> Any:
        applied = write(source, target, *rest)
        place = BaseFolder.open(llama).tensors["model.norm.weight"].start
        with target.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"\xff")
        return applied

    monkeypatch.setattr(merging, "_write", flip)
    with pytest.raises(IntegrityError, match=r"model\.norm\.weight differs from the base, though no adapter pair targets it"):
        merge_adapter(llama, adapter, tmp_path / "merged")
    assert list(tmp_path.glob("*merged*")) == []


def test_an_update_that_reached_no_tensor_is_an_error(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, write = save_adapter(llama, tmp_path / "adapter"), merging._write
    monkeypatch.setattr(merging, "_write", lambda *arguments: write(*arguments)[1:])
    with pytest.raises(IntegrityError, match="left 1 adapter pairs unapplied: base_model"):
        merge_adapter(llama, adapter, tmp_path / "merged")


@pytest.mark.slow
def test_memory_is_a_block_and_the_adapter_whatever_the_model(tmp_path: Path) -> None:
    """A base of 268 MB in four tensors, sparse on disk, merges within 128 MB."""
    side, count = 4096, 4
    names = [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(count)]
    size = 4 * side * side
    header = {
        name: {"dtype": "F32", "shape": [side, side], "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    (base / "config.json").write_text("{}")
    with (base / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + count * size)
    write_adapter(adapter, [name.removesuffix(".weight") for name in names[::2]], side)
    script = """
        import re, sys
        from pathlib import Path
        from sysscan_plugins.lora import merging
        import torch
        torch.ones(64, 64) @ torch.ones(64, 64)
        def memory(which):  # not getrusage: its maximum begins with the parent's
            return int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
        before = memory("VmRSS")
        merging.merge_adapter(*map(Path, sys.argv[1:]))
        print(memory("VmHWM") - before)
    """
    edit(adapter / "adapter_config.json", layers_to_transform=[0, 2])
    arguments = [sys.executable, "-c", textwrap.dedent(script), base, adapter, tmp_path / "merged"]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert 8_000 < grown < 128_000


def write_adapter(folder: Path, paths: list[str], side: int) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for path in paths:
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.ones(2, side)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.ones(side, 2)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_type_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"model.q_proj.weight": torch.zeros(8, 8, dtype=torch.float64)}, base / "model.safetensors")
    write_adapter(tmp_path / "adapter", ["model.q_proj"], 8)
    with pytest.raises(UserError, match=r"model\.q_proj\.weight has type F64; expected one of F32, F16, BF16"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
