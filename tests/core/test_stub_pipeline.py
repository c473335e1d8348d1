"""The whole pipeline on stubs: from the archive to a verified package without torch; again, changed, interrupted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sysscan_models import hookimpl
from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, MergedCheckpoint, QuantizedModel, Splits
from sysscan_models.config import RunConfig
from sysscan_models.errors import Interrupted, MissingExtra, UserError
from sysscan_models.interfaces import GenerationRequest, Quantizer, Trainer, TrainJob
from sysscan_models.packaging import load_package, verify
from sysscan_models.pipeline import Layout, Pipeline
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.prompts import conversation, finding_document
from sysscan_models.roles import ModelRole
from sysscan_models.testing import StubQuantizer, StubTrainer, sample_documents, stub_plugin, write_archive
from sysscan_models.testing.fixtures import ConfigFactory

pytest_plugins = ["sysscan_models.testing"]

STAGES = {
    "prepare specialist": "data/specialist/artifact.json",
    "prepare generalist": "data/generalist/artifact.json",
    "fetch": "bases/stub-tiny/artifact.json",
    "train specialist": "specialist_model_fine_tuned/artifact.json",
    "train generalist": "generalist_model_lora_adapters/artifact.json",
    "merge generalist": "generalist_model_merged/artifact.json",
    "quantize specialist": "specialist_model_q4km.gguf.json",
    "quantize generalist": "generalist_model_q4km.gguf.json",
    "package": "package/manifest.json",
}
"""The record that each stage writes last."""


class Brittle(StubTrainer):
    """Fails half-way as long as its class says so."""

    name: ClassVar[str] = "brittle"
    fails: ClassVar[bool] = True

    def train(self, job: TrainJob) -> Checkpoint:
        """Leave half a model behind."""
        made = super().train(job)
        if self.fails:
            raise Interrupted("stopped by the user")
        return made


class Torn(StubQuantizer):
    """A quantizer that stops before it has a file."""

    name: ClassVar[str] = "torn"
    fails: ClassVar[bool] = True

    def quantize(self, merged: MergedCheckpoint, out: Path, role: ModelRole | None = None) -> QuantizedModel:
        """Fail as long as the class says so."""
        if self.fails:
            out.with_name(f".{out.name}.tmp").write_bytes(b"GG")
            raise KeyboardInterrupt
        return super().quantize(merged, out, role)


class Plugin:
    """Registers what fails."""

    __name__ = "failing"

    @hookimpl
    def sysscan_register_trainers(self) -> Sequence[type[Trainer]]:
        """Return the trainer."""
        return [Brittle]

    @hookimpl
    def sysscan_register_quantizers(self) -> Sequence[type[Quantizer]]:
        """Return the quantizer."""
        return [Torn]


@pytest.fixture
def finished(sysscan_stub_package: Path, sysscan_stub_config: ConfigFactory) -> RunConfig:
    """Give a configuration whose run is finished: that of the shared package, moved here, as between two machines."""
    config = sysscan_stub_config()
    shutil.copytree(sysscan_stub_package.parent, config.models_dir)
    return config


def run(config: RunConfig, *plugins: object) -> Path:
    return Pipeline(config, registry(*plugins)).run().root


def registry(*plugins: object) -> Registry:
    return plugin_manager(stub_plugin, *plugins, entry_points=False)


def written(models: Path) -> dict[str, tuple[int, int]]:
    """Return what tells one written record of a stage from another: the file's number and time of change."""
    records = {stage: models / record for stage, record in STAGES.items()}
    return {stage: (path.stat().st_ino, path.stat().st_mtime_ns) for stage, path in records.items() if path.exists()}


def redone(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {stage for stage in after if before.get(stage) != after[stage]}


def test_a_run_leaves_the_originals_tree_and_a_package_that_verifies(sysscan_stub_config: ConfigFactory) -> None:
    config = sysscan_stub_config()
    folder = run(config)
    assert written(config.models_dir).keys() == STAGES.keys()
    assert folder == config.models_dir / "package"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "manifest.json",
        "specialist_model_q4km.gguf",
        "generalist_model_q4km.gguf",
    }
    result = verify(folder)
    assert result.ok, result.as_text()
    assert not [path for path in config.models_dir.rglob("*") if path.name.endswith((".tmp", ".old", ".former"))]


def test_the_manifest_counts_what_was_trained_on(sysscan_stub_config: ConfigFactory) -> None:
    config = sysscan_stub_config()
    manifest = load_package(run(config)).manifest
    for name in config.roles:
        splits = Splits.load(Layout(config.models_dir).data / name)
        data = manifest.roles[name].data
        assert data is not None
        assert data.counts == splits.counts
        assert data.counts["train"] == len(splits.train.read_bytes().splitlines()) > 0
        assert data.inputs["archive"] == splits.inputs["archive"]
    trained = [entry.data.counts for entry in manifest.roles.values() if entry.data]
    assert 40 < sum(sum(counts.values()) for counts in trained) <= 64


def test_a_second_run_does_nothing_even_after_a_move(finished: RunConfig) -> None:
    before = written(finished.models_dir)
    digest = load_package(finished.models_dir / "package").manifest.digest
    assert before.keys() == STAGES.keys()
    folder = run(finished)
    assert redone(before, written(finished.models_dir)) == set()
    assert load_package(folder).manifest.digest == digest


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("roles.specialist.trainer.steps=5", {"train specialist", "quantize specialist", "package"}),
        ("roles.generalist.trainer.steps=5", {"train generalist", "merge generalist", "quantize generalist", "package"}),
        ('roles.generalist.quantizer.type="F16"', {"quantize generalist", "package"}),
        ('package.title="Another title"', {"package"}),
        ("device='cpu'", set()),
        ("data.valid_fraction=0.2", STAGES.keys() - {"fetch"}),
        ("seed=99", STAGES.keys() - {"fetch"}),
    ],
)
def test_a_changed_option_redoes_exactly_what_depends_on_it(
    finished: RunConfig, sysscan_stub_config: ConfigFactory, override: str, stages: set[str]
) -> None:
    before = written(finished.models_dir)
    folder = run(sysscan_stub_config(override))
    assert redone(before, written(finished.models_dir)) == stages
    assert verify(folder).ok


def test_a_changed_archive_redoes_everything_but_the_base(finished: RunConfig, sysscan_archive: Path) -> None:
    before = written(finished.models_dir)
    write_archive(sysscan_archive, sample_documents(72))
    run(finished)
    assert redone(before, written(finished.models_dir)) == STAGES.keys() - {"fetch"}


@pytest.mark.parametrize(
    ("lost", "stages"),
    [
        ("specialist_model_q4km.gguf", {"quantize specialist"}),
        ("generalist_model_merged/artifact.json", {"merge generalist"}),
        ("package/README.md", {"package"}),
        ("specialist_model_fine_tuned/model.safetensors", {"train specialist"}),
    ],
)
def test_a_lost_file_is_made_again_with_the_same_bytes(finished: RunConfig, lost: str, stages: set[str]) -> None:
    before = written(finished.models_dir)
    digest = load_package(finished.models_dir / "package").manifest.digest
    (finished.models_dir / lost).unlink()
    folder = run(finished)
    assert redone(before, written(finished.models_dir)) == stages
    assert load_package(folder, check="hash").manifest.digest == digest


@pytest.mark.parametrize(
    ("part", "broken", "error", "done"),
    [
        ("trainer", Brittle, Interrupted, {"prepare specialist", "prepare generalist", "fetch"}),
        ("quantizer", Torn, KeyboardInterrupt, {"prepare specialist", "prepare generalist", "fetch", "train specialist"}),
    ],
)
def test_an_interrupted_run_goes_on_where_it_stopped(
    sysscan_stub_config: ConfigFactory,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    broken: type[Brittle] | type[Torn],
    error: type[BaseException],
    done: set[str],
) -> None:
    plugin = Plugin()
    config = sysscan_stub_config(f'roles.specialist.{part}.name="{broken.name}"', plugins=(plugin,))
    with pytest.raises(error):
        run(config, plugin)
    before = written(config.models_dir)
    assert before.keys() == done
    monkeypatch.setattr(broken, "fails", False)
    folder = run(config, plugin)
    assert redone(before, written(config.models_dir)) == STAGES.keys() - done
    assert verify(folder).ok


def test_bases_with_names_alike_are_kept_apart(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    names = [("org/a-b", ""), ("org-a/b", ""), ("Org/a-b", ""), ("org/a-b", "v1"), ("org/a-b-v1", ""), ("stub:org/a-b", "")]
    assert len({layout.base(*name) for name in names}) == len(names)
    assert layout.base("embedded:smollm2-135m-instruct", "").name == "embedded-smollm2-135m-instruct"
    assert layout.base("../../x", "").parent == layout.bases


def test_a_damaged_base_is_fetched_again(finished: RunConfig) -> None:
    model = finished.models_dir / "bases/stub-tiny/model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    before = written(finished.models_dir)
    run(finished)
    assert model.read_bytes() == whole
    assert redone(before, written(finished.models_dir)) == {"fetch"}


def test_a_stated_licence_reaches_the_package_and_trains_nothing_again(
    finished: RunConfig, sysscan_stub_config: ConfigFactory
) -> None:
    before = written(finished.models_dir)
    folder = run(sysscan_stub_config('roles.specialist.licence="mit"'))
    assert redone(before, written(finished.models_dir)) == {"package"}
    bases = {name: entry.base for name, entry in load_package(folder).manifest.roles.items()}
    assert {name: base.licence for name, base in bases.items() if base} == {"specialist": "mit", "generalist": "apache-2.0"}


class Unexportable(StubQuantizer):
    """Takes no base model at all."""

    name: ClassVar[str] = "unexportable"

    def check(self, base: BaseCheckpoint) -> None:
        """Refuse."""
        raise UserError(f"{base.reference} cannot be exported")


class UnexportablePlugin:
    """Registers it."""

    __name__ = "unexportable"

    @hookimpl
    def sysscan_register_quantizers(self) -> Sequence[type[Quantizer]]:
        """Return the quantizer."""
        return [Unexportable]


def test_train_alone_refuses_a_base_that_cannot_be_exported(sysscan_stub_config: ConfigFactory) -> None:
    plugin = UnexportablePlugin()
    config = sysscan_stub_config('roles.specialist.quantizer={name="unexportable"}', plugins=(plugin,))
    work = Pipeline(config, registry(plugin))
    work.prepare()
    with pytest.raises(UserError, match="stub:tiny cannot be exported"):
        work.train("specialist")
    assert not work.layout.checkpoint(config.role("specialist").role, "full").exists()


class Elsewhere(StubQuantizer):
    """Needs a library that this machine does not have."""

    name: ClassVar[str] = "elsewhere"

    def check(self, base: BaseCheckpoint) -> None:
        """Miss the library."""
        raise MissingExtra("exporting", "no_such_library", "gguf")


class ElsewherePlugin:
    """Registers it."""

    __name__ = "elsewhere"

    @hookimpl
    def sysscan_register_quantizers(self) -> Sequence[type[Quantizer]]:
        """Return the quantizer."""
        return [Elsewhere]


def test_a_machine_that_only_trains_need_not_export(
    sysscan_stub_config: ConfigFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "lines")
    plugin = ElsewherePlugin()
    work = Pipeline(sysscan_stub_config('roles.specialist.quantizer={name="elsewhere"}', plugins=(plugin,)), registry(plugin))
    with pytest.raises(MissingExtra):
        work.run()
    work.prepare()
    assert work.train("specialist").kind == "full"
    assert "not checked whether it can be exported later: exporting needs the Python package" in capsys.readouterr().err


def test_a_models_folder_that_is_a_file_is_refused(sysscan_stub_config: ConfigFactory) -> None:
    config = sysscan_stub_config()
    config.models_dir.touch()
    with pytest.raises(UserError, match="is a file; expected a folder"):
        Pipeline(config, registry())


def test_evaluators_measure_every_role_and_reach_the_package(sysscan_stub_config: ConfigFactory) -> None:
    config = sysscan_stub_config('evaluators=[{name="stub", passes=false}]')
    manifest = load_package(run(config)).manifest
    for name, entry in manifest.roles.items():
        assert entry.evaluation.state == "evaluated"
        assert entry.evaluation.results["stub"].gates == {"stub": False}
        assert (config.models_dir / "evaluation" / name / "stub" / "figures.json").is_file()


def test_a_stage_without_the_one_before_says_what_to_run(sysscan_stub_config: ConfigFactory) -> None:
    work = Pipeline(sysscan_stub_config(), registry())
    with pytest.raises(UserError, match=r"is not a finished prepare artifact\. Run that stage first"):
        work.train("specialist")
    with pytest.raises(UserError, match=r"is not a finished train artifact\. Run that stage first"):
        work.quantize("specialist")


def test_what_was_packaged_answers(sysscan_stub_package: Path) -> None:
    model = load_package(sysscan_stub_package)["specialist"]
    finding = {"id": "1", "title": "SUID binary in /tmp", "description": "owner root", "metadata": {"path": "/tmp/x"}}
    request = GenerationRequest("1", tuple(conversation(model.role, finding_document(finding))))
    with registry().get("backends", "stub")().open(model) as session:
        text = "".join(event.text for event in session.generate([request]))
    assert text == '{"analysis":"specialist stub: SUID binary in /tmp"}'


def test_the_whole_pipeline_on_stubs_needs_no_torch_and_no_llama_cpp(tmp_path: Path) -> None:
    program = f"""
import sys
for name in ("torch", "transformers", "peft", "llama_cpp", "langgraph"):
    sys.modules[name] = None
from pathlib import Path
from sysscan_models.config import parse_config
from sysscan_models.pipeline import Pipeline
from sysscan_models.plugins import plugin_manager
from sysscan_models.packaging import verify
from sysscan_models.testing import sample_documents, stub_config, stub_plugin, write_archive
folder = Path({str(tmp_path)!r})
archive = write_archive(folder / "massive_datasets.tar.gz", sample_documents(64))
registry = plugin_manager(stub_plugin, entry_points=False)
config = parse_config(stub_config(archive), source="stubs", folder=folder, registry=registry)
print(verify(Pipeline(config, registry).run().root).ok)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
