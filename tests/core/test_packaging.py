"""Packages: made from records or plain files, complete or not there, checked to the last byte, and truthful."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from sysscan_models.artifacts import (
    BaseCheckpoint,
    Checkpoint,
    Evaluation,
    MergedCheckpoint,
    QuantizedModel,
    Splits,
    file_records,
)
from sysscan_models.errors import IntegrityError, UserError
from sysscan_models.interfaces import ModelRef, TrainJob
from sysscan_models.packaging import CARD, MANIFEST, assembly, load_package, package, package_files, verify
from sysscan_models.packaging.licences import licence_of
from sysscan_models.packaging.manifest import without_secrets
from sysscan_models.plugins import plugin_manager
from sysscan_models.roles import GENERALIST, SPECIALIST, ModelRole
from sysscan_models.testing import StubAdapterTrainer, StubEvaluator, StubQuantizer, StubSource, StubTrainer

TOKEN = "hf_" + "A1b2C3d4E5" * 3


class Run:
    """The records of one run, role by role, as the pipeline has them when it packages."""

    def __init__(
        self, folder: Path, *, seed: int = 17, licence: str = "", reference: str = "", options: dict[str, Any] | None = None
    ):
        self.folder = folder
        self.roles = {"specialist": SPECIALIST, "generalist": GENERALIST}
        self.bases: dict[str, BaseCheckpoint] = {}
        self.splits: dict[str, Splits] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.merged: dict[str, MergedCheckpoint] = {}
        self.quantized: dict[str, QuantizedModel] = {}
        self.evaluations: dict[str, Evaluation] = {}
        for name, role in self.roles.items():
            self._train(name, role, seed, licence, reference, options or {})

    def _train(self, name: str, role: ModelRole, seed: int, licence: str, reference: str, options: dict[str, Any]) -> None:
        base = StubSource().fetch("tiny", self.folder / "base")
        stated = {**({"licence": licence} if licence else {}), **({"reference": reference} if reference else {})}
        self.bases[name] = base.model_copy(update=stated).save(self.folder / "base")
        self.splits[name] = self._split(name)
        trainer = StubTrainer() if name == "specialist" else StubAdapterTrainer()
        out = self.folder / f"{name}_checkpoint"
        trained = trainer.train(TrainJob(role, self.bases[name], self.splits[name], out, seed=seed))
        facts = {
            "inputs": {"base": self.bases[name].digest, "splits": self.splits[name].digest},
            "options": options,
            "seed": seed,
        }
        self.checkpoints[name] = trained.model_copy(update={**facts, "made": {"device": "cpu", "seconds": 1.5}}).save(out)
        merged = trainer.merge(self.checkpoints[name], self.bases[name], self.folder / f"{name}_merged")
        if name == "generalist":
            inputs = {"base": self.bases[name].digest, "checkpoint": self.checkpoints[name].digest}
            merged = merged.model_copy(update={"inputs": inputs}).save(merged.root)
        self.merged[name] = merged
        out = self.folder / f"{name}_model_q4km.gguf"
        model = StubQuantizer().quantize(merged, out, role)
        self.quantized[name] = model.model_copy(update={"inputs": {"merged": merged.digest}}).save(out)

    def _split(self, name: str) -> Splits:
        root = self.folder / "data" / name
        root.mkdir(parents=True, exist_ok=True)
        line = {"id": "1", "source": "documents/1.json", "messages": [{"role": "assistant", "content": f"{name} says"}]}
        for split in ("train", "valid", "test"):
            (root / f"{split}.jsonl").write_bytes(orjson.dumps(line) + b"\n")
        return Splits(
            role=name,
            inputs={"archive": "c" * 64},
            counts={"train": 1200, "valid": 1, "test": 1},
            kinds={"answer": 1202},
            dataset_digest="d" * 64,
            files=file_records(root, [f"{split}.jsonl" for split in ("train", "valid", "test")]),
        ).save(root)

    def evaluate(self, *, passes: bool = True) -> None:
        for name, role in self.roles.items():
            models = {"tuned-q4": ModelRef(self.quantized[name].path, role)}
            made = StubEvaluator(passes=passes).evaluate(models, self.splits[name], self.folder / "evaluation" / name)
            self.evaluations[f"{name}/stub"] = made

    def package(self, out: Path | None = None, title: str = "Test models") -> Any:
        return package(
            self.quantized,
            out or self.folder / "package",
            roles=self.roles,
            title=title,
            bases=self.bases,
            checkpoints=self.checkpoints,
            splits=self.splits,
            evaluations=self.evaluations,
            merged=self.merged,
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The records of one run, made once for all tests; what a test changes and packages is its own."""
    mine = copy.copy(trained)
    for name, value in vars(trained).items():
        setattr(mine, name, dict(value) if isinstance(value, dict) else value)
    mine.folder = tmp_path
    return mine


@pytest.fixture
def packaged(run: Run) -> Path:
    return run.package().root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def manifest_of(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads((folder / MANIFEST).read_bytes())
    return body


def front_matter(folder: Path) -> dict[str, Any]:
    """Read what the card's front matter holds of YAML: words and JSON."""
    lines = (folder / CARD).read_text().split("---\n")[1].splitlines()
    pairs = (line.partition(": ")[::2] for line in lines)
    return {key: value if re.fullmatch(r"[a-z][\w.+-]*", value) else json.loads(value) for key, value in pairs}


def failures(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(folder).checks if not check.ok}


# what is in a package


def test_the_tree_is_the_originals_with_a_manifest(packaged: Path) -> None:
    assert sorted(contents(packaged)) == [CARD, "generalist_model_q4km.gguf", MANIFEST, "specialist_model_q4km.gguf"]
    assert not [path for path in packaged.parent.iterdir() if path.name.startswith(".")]


def test_the_manifest_records_everything_about_each_model(run: Run, packaged: Path) -> None:
    body = manifest_of(packaged)
    assert (body["stage"], body["format_version"], body["title"]) == ("package", 1, "Test models")
    assert "sysscan-models" in body["made"]["versions"]
    assert body["made"]["stages"]["specialist"]["train"] == {"device": "cpu", "seconds": 1.5}
    entry = body["roles"]["specialist"]
    assert entry["files"]["specialist_model_q4km.gguf"] == {
        "size": (packaged / "specialist_model_q4km.gguf").stat().st_size,
        "sha256": run.quantized["specialist"].files["specialist_model_q4km.gguf"].sha256,
    }
    assert entry["quantization"]["type"] == "F32"
    assert entry["quantization"]["parameters"] == sum(entry["quantization"]["weights_by_type"].values()) > 10_000
    assert entry["base"] == {
        "reference": "stub:tiny",
        "revision": "1",
        "licence": "apache-2.0",
        "digest": run.bases["specialist"].digest,
        "notes": [],
    }
    assert (entry["data"]["dataset_digest"], entry["data"]["inputs"]) == ("d" * 64, {"archive": "c" * 64})
    assert entry["data"]["counts"] == {"train": 1200, "valid": 1, "test": 1}
    assert entry["data"]["splits"].keys() == {"train.jsonl", "valid.jsonl", "test.jsonl"}
    assert (entry["training"]["kind"], entry["training"]["seed"], entry["training"]["steps"]) == ("full", 17, 2)
    assert entry["training"]["first_train_loss"] > entry["training"]["final_train_loss"]
    assert body["roles"]["generalist"]["training"]["kind"] == "adapter"
    assert entry["evaluation"] == {"state": "not evaluated", "results": {}}
    assert [link["stage"] for link in entry["chain"]] == ["base", "prepare", "train", "merge", "quantize"]
    assert entry["chain"][-1] == {
        "stage": "quantize",
        "digest": run.quantized["specialist"].digest,
        "inputs": {"merged": run.merged["specialist"].digest},
    }


def test_figures_and_gates_of_evaluators_reach_manifest_and_card(run: Run) -> None:
    run.evaluate(passes=False)
    folder = run.package().root
    evaluation = manifest_of(folder)["roles"]["generalist"]["evaluation"]
    assert evaluation["state"] == "evaluated"
    assert evaluation["results"]["stub"]["figures"]["test_examples"] == 1
    assert evaluation["results"]["stub"]["gates"] == {"stub": False}
    card = (folder / CARD).read_text()
    assert "gates: stub **failed**" in card
    assert "| test_examples | 1 |" in card
    assert "not evaluated" not in card


def test_the_card_says_what_is_known_and_what_is_not(packaged: Path) -> None:
    card = (packaged / CARD).read_text()
    assert "# Test models" in card
    assert "train 1,200, valid 1, test 1" in card
    assert "full fine-tuning" in card
    assert "LoRA or another adapter" in card
    assert "5.587 → 1.862" in card  # the stub's losses
    assert "| Validation loss | not recorded |" in card
    assert "**not evaluated.**" in card
    assert "No evaluation was run for: specialist, generalist." in card
    assert front_matter(packaged)["library_name"] == "gguf"


def test_the_card_loads_each_model_with_its_own_context_and_prompt(packaged: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (packaged / CARD).read_text(), re.DOTALL)
    for snippet in snippets:
        compile(snippet, CARD, "exec")
    specialist, generalist, library = snippets
    assert 'model_path="specialist_model_q4km.gguf",\n    n_ctx=4096,\n    n_threads=8' in specialist
    assert 'model_path="generalist_model_q4km.gguf",\n    n_ctx=2048,\n    n_threads=8' in generalist
    assert json.dumps(SPECIALIST.system_prompt) in specialist
    assert "load_package" in library


def test_what_the_card_tells_to_run_runs(
    packaged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(packaged)
    snippets = re.findall(r"```python\n(.*?)```", (packaged / CARD).read_text(), re.DOTALL)
    specialist = snippets[0].replace("max_tokens=512", "max_tokens=2").replace("n_ctx=4096", "n_ctx=2048, verbose=False")
    scope: dict[str, Any] = {}
    exec(specialist, scope)
    assert scope["answer"]["usage"]["completion_tokens"] <= 2
    scope["specialist"].close()
    exec(snippets[2].replace('"llama_cpp"', '"stub"').replace("plugin_manager()", "plugin_manager(stub_plugin)"), stub_scope())
    assert "specialist stub: SUID binary in /tmp" in capsys.readouterr().out


def stub_scope() -> dict[str, Any]:
    from sysscan_models.testing import stub_plugin

    return {"stub_plugin": stub_plugin}


# licences


@pytest.mark.parametrize(
    ("reference", "stated", "licence"),
    [
        ("meta-llama/Meta-Llama-3-8B", "unknown", "llama3"),
        ("meta-llama/Meta-Llama-3-8B", "apache-2.0", "llama3"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "", "apache-2.0"),
        ("embedded:smollm2-135m-instruct", "unknown", "apache-2.0"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "unknown", "apache-2.0"),
        ("someone/else", "Apache-2.0", "apache-2.0"),
        ("someone/else", "gemma", "gemma"),
        ("someone/else", "", "unknown"),
        ("evil/Meta-Llama-3-8B", "unknown", "unknown"),
    ],
)
def test_licences_are_true(reference: str, stated: str, licence: str) -> None:
    assert licence_of(reference, stated).id == licence
    assert licence_of(reference, stated).duties


def test_a_llama_3_package_states_its_licence_and_what_it_obliges_to(tmp_path: Path) -> None:
    folder = Run(tmp_path, reference="meta-llama/Meta-Llama-3-8B", licence="unknown").package().root
    assert manifest_of(folder)["roles"]["specialist"]["base"]["licence"] == "llama3"
    facts = front_matter(folder)
    assert facts["license"] == "llama3"
    assert facts["base_model"] == ["meta-llama/Meta-Llama-3-8B"]
    card = (folder / CARD).read_text()
    assert "Meta Llama 3 Community License" in card
    assert card.count("Built with Meta Llama 3") == 1
    assert "**specialist, generalist**: Meta Llama 3" in card
    assert "Apache License" not in card


def test_two_licences_are_both_named(run: Run) -> None:
    other = run.bases["generalist"].model_copy(update={"licence": "gemma"}).at(run.folder / "base")
    run.bases["generalist"] = other
    inputs = {"base": other.digest, "splits": run.splits["generalist"].digest}
    run.checkpoints["generalist"] = run.checkpoints["generalist"].model_copy(update={"inputs": inputs})
    run.merged.clear()
    facts = front_matter(run.package().root)
    assert (facts["license"], facts["license_name"]) == ("other", "apache-2.0-and-gemma")


# secrets and paths


def test_secrets_never_reach_a_package(tmp_path: Path) -> None:
    run = Run(
        tmp_path, options={"name": "x", "note": f"use {TOKEN}", "api_key": "plain words", "max_tokens": 3, "nested": [TOKEN]}
    )
    run.checkpoints["specialist"] = run.checkpoints["specialist"].model_copy(update={"made": {"command": f"--token {TOKEN}"}})
    folder = run.package(title=f"Models of {TOKEN}").root
    assert "# Models of [HF_TOKEN]" in (folder / CARD).read_text()
    for name in (MANIFEST, CARD):
        assert TOKEN not in (folder / name).read_text()
        assert "plain words" not in (folder / name).read_text()
    options = manifest_of(folder)["roles"]["specialist"]["training"]["options"]
    assert options == {
        "name": "x",
        "note": "use [HF_TOKEN]",
        "api_key": "[REDACTED]",
        "max_tokens": 3,
        "nested": ["[HF_TOKEN]"],
    }
    assert verify(folder).ok


@pytest.mark.parametrize("key", ["token", "hf_token", "password", "api-key", "client_secret", "HUB_TOKEN"])
def test_a_value_under_the_name_of_a_secret_is_dropped(key: str) -> None:
    assert without_secrets({key: "x", f"{key}_count": 1, "pad_token": "<pad>", "tokens": "y"}) == {
        key: "[REDACTED]",
        f"{key}_count": 1,
        "pad_token": "<pad>",
        "tokens": "y",
    }


def test_the_path_of_a_local_base_model_stays_private(tmp_path: Path) -> None:
    folder = Run(tmp_path, reference="/home/alice/secret-project/llama").package().root
    assert manifest_of(folder)["roles"]["specialist"]["base"]["reference"] == "llama"
    assert "alice" not in (folder / CARD).read_text()


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/passwd", "sub/x.gguf", "..", "", "a\\b.gguf", "C:x.gguf", "nul\0.gguf"])
def test_a_manifest_that_names_files_elsewhere_is_refused(packaged: Path, name: str) -> None:
    forge(packaged, lambda manifest: manifest.model_copy(update={"files": {**manifest.files, name: manifest.files[CARD]}}))
    with pytest.raises(IntegrityError, match="lies outside of the package"):
        load_package(packaged)
    assert "lies outside" in failures(packaged)["manifest"]


def test_a_link_that_leads_out_of_the_package_is_refused(packaged: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    (packaged / "specialist_model_q4km.gguf").rename(outside)
    (packaged / "specialist_model_q4km.gguf").symlink_to(outside)
    with pytest.raises(IntegrityError, match="lies outside of the package"):
        load_package(packaged)


def forge(folder: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a manifest with a digest that matches, as an attacker would."""
    from sysscan_models.packaging.manifest import read_manifest

    change(read_manifest(folder)).write(folder)


# the same again, atomically


def test_the_same_inputs_give_the_same_bytes_wherever_they_are(tmp_path: Path) -> None:
    first = Run(tmp_path / "one").package().root
    second = Run(tmp_path / "two").package().root
    assert contents(first) == contents(second)


def test_time_and_versions_are_outside_of_the_digest(run: Run) -> None:
    first = run.package().digest
    run.checkpoints["specialist"] = run.checkpoints["specialist"].model_copy(update={"made": {"device": "cuda", "seconds": 9}})
    shutil.rmtree(run.folder / "package")
    assert run.package().digest == first


def test_a_current_package_is_left_alone_and_another_one_replaced(run: Run) -> None:
    folder = run.package().root
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    inode = folder.stat().st_ino
    run.package()
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert folder.stat().st_ino == inode
    run.package(title="Another title")
    assert folder.stat().st_ino != inode
    assert "# Another title" in (folder / CARD).read_text()
    assert verify(folder).ok
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_a_damaged_package_is_made_again(run: Run) -> None:
    folder = run.package().root
    (folder / CARD).unlink()
    run.package()
    assert verify(folder).ok


def test_gguf_files_are_links_where_the_file_system_allows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.package().root
    name = "specialist_model_q4km.gguf"
    assert (folder / name).samefile(run.quantized["specialist"].path)

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    copied = run.package(run.folder / "elsewhere").root
    assert not (copied / name).samefile(folder / name)
    assert contents(copied) == contents(folder)


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "move aside"])
def test_a_package_that_fails_half_way_leaves_the_former_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    folder = run.package().root
    before = contents(folder)
    if not exchanges:
        monkeypatch.setattr(assembly, "_exchange", lambda *_: False)
        monkeypatch.setattr(assembly, "publish", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(assembly, "write_atomically", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.package(title="Another title")
    assert contents(folder) == before
    assert verify(folder).ok
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_without_an_exchange_the_package_is_replaced_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.package().root
    monkeypatch.setattr(assembly, "_exchange", lambda *_: False)
    run.package(title="Another title")
    assert "# Another title" in (folder / CARD).read_text()
    assert verify(folder).ok
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_what_an_interrupted_run_left_is_cleaned_up(run: Run) -> None:
    (run.folder / ".package.tmp").mkdir()
    (run.folder / ".package.tmp" / "half.gguf").write_bytes(b"GG")
    assert verify(run.package().root).ok
    assert not (run.folder / ".package.tmp").exists()


def test_a_folder_that_holds_something_else_is_never_replaced(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not a package \(it has no manifest.json\); choose an empty or new folder"):
        run.package(home)
    folder = run.package().root
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"would be lost with it: notes\.txt\. Move them away"):
        run.package(title="Another title")
    (folder / "notes.txt").unlink()
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"cannot be replaced safely: .* Remove it, or choose another folder"):
        run.package(title="Another title")
    assert (home / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert verify(run.package(tmp_path / "empty").root).ok


def test_a_model_of_another_checkpoint_is_refused(run: Run) -> None:
    run.checkpoints["generalist"] = run.checkpoints["generalist"].model_copy(update={"steps": 99})
    with pytest.raises(
        UserError, match=r"generalist: merge was made from another checkpoint .* makes again what is out of date"
    ):
        run.package()
    assert not (run.folder / "package").exists()


def test_a_gguf_file_that_changed_after_its_record_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.quantized["specialist"].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"specialist_model_q4km\.gguf is not the file that its record describes"):
        run.package()
    assert not (run.folder / "package").exists()


# verify


def test_verify_passes_what_package_made_and_prints_a_table(packaged: Path) -> None:
    result = verify(packaged)
    assert result.ok
    text = result.as_text()
    assert "all 10 checks passed" in text
    assert re.search(r"^specialist_model_q4km\.gguf +ok +[\d,]+ bytes, SHA-256 [0-9a-f]{12}$", text, re.MULTILINE)
    assert re.search(r"^specialist: provenance +ok +recorded: base > prepare > train > merge > quantize$", text, re.MULTILINE)


def test_a_package_can_be_moved(packaged: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "here"
    shutil.copytree(packaged, moved)
    assert verify(moved).ok
    assert load_package(moved, check="hash")["specialist"].base_gguf == moved / "specialist_model_q4km.gguf"


def damage_size(folder: Path) -> None:
    replaced(folder / "specialist_model_q4km.gguf", lambda data: data[:-1])


def damage_byte(folder: Path) -> None:
    replaced(folder / "specialist_model_q4km.gguf", lambda data: data[:-1] + bytes([data[-1] ^ 1]))


def damage_card(folder: Path) -> None:
    replaced(folder / CARD, lambda data: data + b"x")


def damage_remove_card(folder: Path) -> None:
    (folder / CARD).unlink()


def damage_stranger(folder: Path) -> None:
    (folder / "evil.gguf").write_bytes(b"GGUF")


def damage_magic(folder: Path) -> None:
    replaced(folder / "specialist_model_q4km.gguf", lambda data: b"JUNK" + data[4:])
    record = file_records(folder, ["specialist_model_q4km.gguf"])
    forge(folder, lambda manifest: manifest.model_copy(update={"files": {**manifest.files, **record}}))


def damage_manifest(folder: Path) -> None:
    replaced(folder / MANIFEST, lambda data: data.replace(b'"apache-2.0"', b'"mit"'))


def damage_manifest_missing(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def damage_chain(folder: Path) -> None:
    def change(manifest: Any) -> Any:
        entry = manifest.roles["specialist"]
        link = entry.chain[2].model_copy(update={"digest": "e" * 64})
        chain = (*entry.chain[:2], link, *entry.chain[3:])
        return manifest.model_copy(
            update={"roles": {**manifest.roles, "specialist": entry.model_copy(update={"chain": chain})}}
        )

    forge(folder, change)


def replaced(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file but not the one that it is a hard link to."""
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "check", "detail"),
    [
        (damage_size, "specialist_model_q4km.gguf", r"80,895 bytes; 80,896 expected|bytes; .* expected"),
        (damage_byte, "specialist_model_q4km.gguf", "SHA-256 .* expected"),
        (damage_card, CARD, "bytes; .* expected"),
        (damage_remove_card, "model card", "there is no README.md"),
        (damage_stranger, "unlisted GGUF files", "does not list evil.gguf"),
        (damage_magic, "specialist_model_q4km.gguf", "does not begin with the bytes 'GGUF'"),
        (damage_manifest, "manifest", "was changed after it was written"),
        (damage_manifest_missing, "manifest", "it is not a package"),
        (damage_chain, "specialist: provenance", "merge was made from another checkpoint"),
    ],
)
def test_verify_finds_every_damage(packaged: Path, damage: Callable[[Path], None], check: str, detail: str) -> None:
    damage(packaged)
    result = verify(packaged)
    assert not result.ok
    assert re.search(detail, failures(packaged)[check])
    assert "do not use it" in result.as_text()
    assert re.search(rf"^{re.escape(check)} +FAIL", result.as_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the manifest of a package of sysscan-models"),
        ('{"stage": "package", "format_version": 99}', "format version 99; this release reads 1"),
        ('{"stage": "package", "format_version": 1}', "2 fields are wrong"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(packaged: Path, content: str, message: str) -> None:
    (packaged / MANIFEST).write_text(content)
    assert message in failures(packaged)["manifest"]


def test_a_file_is_not_a_package(packaged: Path) -> None:
    assert "it is not a package" in failures(packaged / CARD)["manifest"]


# loading


def test_loading_gives_what_a_backend_opens(packaged: Path) -> None:
    loaded = load_package(packaged)
    assert loaded.models.keys() == {"specialist", "generalist"}
    assert loaded["specialist"] == ModelRef(packaged / "specialist_model_q4km.gguf", SPECIALIST)
    with pytest.raises(UserError, match=r"unknown role 'specialst'. Did you mean 'specialist'"):
        loaded["specialst"]


def test_a_loaded_role_sends_the_prompt_that_the_model_was_packaged_with(run: Run) -> None:
    from dataclasses import replace

    run.roles["specialist"] = replace(SPECIALIST, system_prompt="An older prompt.", context_length=1024)
    role = load_package(run.package().root)["specialist"].role
    assert (role.system_prompt, role.context_length) == ("An older prompt.", 1024)
    assert role.response_model is SPECIALIST.response_model


def test_loading_refuses_what_does_not_match(packaged: Path) -> None:
    damage_byte(packaged)
    load_package(packaged, check="size")
    with pytest.raises(IntegrityError, match="SHA-256"):
        load_package(packaged, check="hash")
    damage_magic(packaged)
    with pytest.raises(IntegrityError, match="is not a GGUF file"):
        load_package(packaged)
    damage_size(packaged)
    with pytest.raises(IntegrityError, match="bytes; its record expects"):
        load_package(packaged)
    with pytest.raises(UserError, match="it is not a package"):
        load_package(packaged.parent)


def test_a_role_whose_plugin_is_not_installed_is_named(packaged: Path) -> None:
    registry = plugin_manager(entry_points=False)
    del registry.found["roles"]["generalist"]
    with pytest.raises(UserError, match="unknown role 'generalist'"):
        load_package(packaged, registry=registry)


# plain files


def test_plain_files_are_packaged_with_provenance_unknown(run: Run, tmp_path: Path) -> None:
    files = {name: shutil.copy(model.path, tmp_path / f"{name[0]}.gguf") for name, model in run.quantized.items()}
    folder = package_files({name: Path(file) for name, file in files.items()}, tmp_path / "plain").root
    assert sorted(contents(folder)) == [CARD, "g.gguf", MANIFEST, "s.gguf"]
    entry = manifest_of(folder)["roles"]["specialist"]
    assert (entry["provenance"], entry["base"], entry["chain"], entry["quantization"]["type"]) == (
        "unknown",
        None,
        [],
        "unknown",
    )
    card = (folder / CARD).read_text()
    assert "**Its provenance is unknown**" in card
    assert "Training data | not recorded" in card
    assert front_matter(folder)["license"] == "unknown"
    assert verify(folder).ok
    assert load_package(folder)["generalist"].base_gguf == folder / "g.gguf"


def test_the_record_beside_a_plain_file_is_used(run: Run, tmp_path: Path) -> None:
    folder = package_files({"specialist": run.quantized["specialist"].path}, tmp_path / "plain").root
    entry = manifest_of(folder)["roles"]["specialist"]
    assert (entry["provenance"], entry["quantization"]["type"]) == ("partly recorded", "F32")
    assert [link["digest"] for link in entry["chain"]] == [run.quantized["specialist"].digest]
    assert "only partly known" in (folder / CARD).read_text()
    assert verify(folder).ok


def test_what_cannot_be_packaged_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    with pytest.raises(UserError, match=r"notes\.gguf is not a GGUF file: it does not begin with the bytes 'GGUF'"):
        package_files({"specialist": text}, tmp_path / "out")
    with pytest.raises(UserError, match=r"there is no file .*missing\.gguf"):
        package_files({"specialist": tmp_path / "missing.gguf"}, tmp_path / "out")
    with pytest.raises(UserError, match=r"unknown role 'specalist'. Did you mean 'specialist'"):
        package_files({"specalist": text}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_shards_are_taken_and_a_missing_one_is_named(tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"GGUF" + bytes([number]))
    folder = package_files({"specialist": tmp_path / names[1]}, tmp_path / "out").root
    assert load_package(folder, check="hash")["specialist"].base_gguf.name == names[0]
    assert set(names) < contents(folder).keys()
    (tmp_path / names[2]).unlink()
    with pytest.raises(UserError, match=r"is one of 3 shards; m-00003-of-00003\.gguf is missing"):
        package_files({"specialist": tmp_path / names[0]}, tmp_path / "other")


def test_two_files_of_one_name_keep_apart_and_one_file_of_two_roles_is_shared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(b"GGUF" + name.encode())
    files = {"specialist": tmp_path / "a" / "model.gguf", "generalist": tmp_path / "b" / "model.gguf"}
    apart = package_files(files, tmp_path / "apart")
    assert apart.models == {"specialist": "model.gguf", "generalist": "generalist_model.gguf"}
    assert verify(apart.root).ok
    shared = package_files(dict.fromkeys(files, tmp_path / "a" / "model.gguf"), tmp_path / "shared")
    assert shared.models == {"specialist": "model.gguf", "generalist": "model.gguf"}
    assert verify(shared.root).ok


def test_the_command_line_packages_plain_files_and_verifies_them(run: Run, tmp_path: Path) -> None:
    def sysscan(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "sysscan_models", *words], capture_output=True, text=True, check=False)

    files = [f"--{name}={model.path}" for name, model in run.quantized.items()]
    out = str(tmp_path / "plain")
    assert sysscan("package", *files, "--out", out).stdout == f"package with specialist, generalist in {out}\n"
    assert sysscan("verify", out).returncode == 0
    (tmp_path / "plain" / CARD).unlink()
    damaged = sysscan("verify", out)
    assert damaged.returncode == 1
    assert "do not use it" in damaged.stdout
    refused = sysscan("package", f"--specialist={__file__}", "--out", out)
    assert refused.returncode == 2
    assert "is not a GGUF file" in refused.stderr
    assert "Traceback" not in refused.stderr
