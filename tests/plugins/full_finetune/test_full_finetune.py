"""Full fine-tuning from a base folder to a finished checkpoint, killed and resumed by real signals."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sysscan_models.artifacts import BaseCheckpoint, Checkpoint, MergedCheckpoint
from sysscan_models.encoding import CHATML, PLAIN, ChatEncoder, HFTokenizer
from sysscan_models.errors import DataError, IntegrityError, UserError
from sysscan_models.interfaces import TrainJob
from sysscan_models.roles import SPECIALIST
from sysscan_plugins import full_finetune
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training.loop import train_model

_SPEC = importlib.util.spec_from_file_location("training_cases", Path(__file__).parents[1] / "training" / "training_cases.py")
assert _SPEC is not None
assert _SPEC.loader is not None
cases: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cases)

OPTIONS = FullFinetune(max_seq_length=128, learning_rate=3e-3, epochs=3, micro_batch_size=2)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return make_job(tmp_path)


def make_job(tmp_path: Path, kind: str = "llama", out: str = "out", **changes: Any) -> TrainJob:
    base = cases.make_base(tmp_path / "base", kind, **changes)
    splits = cases.make_splits(tmp_path / "splits", cases.records(), cases.records(6))
    return TrainJob(SPECIALIST, base, splits, tmp_path / out)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_finished_checkpoint_is_a_model_in_hugging_face_layout(tmp_path: Path, kind: str) -> None:
    job = make_job(tmp_path, kind)
    checkpoint = OPTIONS.train(job)
    assert checkpoint == Checkpoint.load(job.out_dir)
    checkpoint.check_files(contents=True)
    assert checkpoint.inputs == {"base": job.base.digest, "splits": job.splits.digest}
    assert (checkpoint.kind, checkpoint.role, checkpoint.options["name"]) == ("full", "specialist", "full_finetune")
    assert checkpoint.final_valid_loss is not None
    assert checkpoint.first_valid_loss is not None
    assert checkpoint.final_valid_loss < checkpoint.first_valid_loss - 1
    assert checkpoint.made["device"] == "cpu"
    here = {path.name for path in job.out_dir.iterdir()}
    assert here == {*checkpoint.files, "artifact.json", "train_log.jsonl", "loss.png"}, "nothing unfinished is left"
    assert "train_log.jsonl" not in checkpoint.files
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (job.out_dir / name).read_bytes() == (job.base.root / name).read_bytes()
    assert json.loads((job.out_dir / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    model = AutoModelForCausalLM.from_pretrained(job.out_dir)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(job.out_dir)
    prompt = ChatEncoder(HFTokenizer(tokenizer), tokenizer.chat_template).prompt([{"role": "user", "content": "finding 3"}])
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(answer) == "ans", "it has learned how its answers begin"
    assert MergedCheckpoint.passed_through(checkpoint).files == checkpoint.files


def test_the_same_inputs_give_the_same_digest(tmp_path: Path) -> None:
    first, second = (OPTIONS.train(make_job(tmp_path, out=out)) for out in ("one", "two"))
    assert first.digest == second.digest


def test_large_models_are_written_in_shards(job: TrainJob) -> None:
    checkpoint = OPTIONS.model_copy(update={"max_shard_gb": 5e-5, "max_steps": 1}).train(job)
    assert len([name for name in checkpoint.files if name.endswith(".safetensors")]) > 1
    assert "model.safetensors.index.json" in checkpoint.files
    again = OPTIONS.model_copy(update={"max_steps": 1}).train(job)
    assert sorted(path.name for path in job.out_dir.glob("*.safetensors*")) == ["model.safetensors"]
    again.check_files(contents=True)


def test_nothing_of_an_earlier_checkpoint_stays_beside_a_new_one(job: TrainJob) -> None:
    """Else transformers would put the adapter on the full model, or take the template of another base."""
    job.out_dir.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "merges.txt", "USE_POLICY.md"):
        (job.out_dir / name).write_text("{}")
    (job.out_dir / "notes.txt").write_text("the user's own")
    checkpoint = OPTIONS.model_copy(update={"max_steps": 1}).train(job)
    here = {path.name for path in job.out_dir.iterdir()}
    assert here == {*checkpoint.files, "artifact.json", "train_log.jsonl", "loss.png", "notes.txt"}


def test_a_base_is_never_overwritten_by_its_own_checkpoint(tmp_path: Path) -> None:
    base = cases.make_base(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.root.iterdir()}
    job = TrainJob(
        SPECIALIST, base, cases.make_splits(tmp_path / "splits", cases.records(4)), tmp_path / "base" / ".." / "base"
    )
    with pytest.raises(UserError, match=r"where its checkpoint is to be written. Copy it elsewhere"):
        OPTIONS.train(job)
    assert {path.name: path.read_bytes() for path in base.root.iterdir()} == before


def test_damaged_weights_are_found_before_training_and_are_no_traceback(job: TrainJob) -> None:
    weights = job.base.root / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"model.safetensors has \d+ bytes; its header expects"):
        OPTIONS.check(job.base, job.role)
    with pytest.raises(IntegrityError, match=r"the weights in .* are damaged .*; fetch the base model again"):
        OPTIONS.train(job)


def test_a_missing_weight_is_never_made_up(job: TrainJob) -> None:
    from safetensors.torch import load_file, save_file

    path = job.base.root / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        IntegrityError, match=r"lacks 1 weights that its config.json asks for: model.layers.1.mlp.up_proj.weight"
    ):
        OPTIONS.train(job)


def test_a_weight_of_another_shape_is_no_traceback(job: TrainJob) -> None:
    config = json.loads((job.base.root / "config.json").read_text())
    (job.base.root / "config.json").write_text(json.dumps({**config, "intermediate_size": 52}))
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded"):
        OPTIONS.train(job)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', ""])
def test_a_damaged_tokenizer_is_no_traceback(job: TrainJob, text: str) -> None:
    (job.base.root / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be loaded"):
        OPTIONS.check(job.base, job.role)


def test_a_configuration_that_is_no_object_is_no_traceback(job: TrainJob) -> None:
    (job.base.root / "config.json").write_text("[1]")
    with pytest.raises(IntegrityError, match=r"config.json holds list; expected an object. Fetch the base model again"):
        OPTIONS.check(job.base, job.role)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    base = cases.make_base(tmp_path / "base", vocab_size=258)
    with pytest.raises(
        UserError, match=r"its tokenizer has token 258 \('.+'\), but config.json's vocab_size is 258. Use the tok"
    ):
        OPTIONS.check(base, SPECIALIST)


def test_a_base_without_a_template_gets_one_that_is_stored_with_the_tokenizer(tmp_path: Path) -> None:
    base = cases.make_base(tmp_path / "base", template=None)
    splits = cases.make_splits(tmp_path / "splits", cases.records(4))
    OPTIONS.train(TrainJob(SPECIALIST, base, splits, tmp_path / "out"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHATML
    from sysscan_plugins.training.base_model import load_tokenizer

    assert load_tokenizer(base.root, trains_embeddings=False).template == PLAIN


_PROGRAM = """
import sys
from pathlib import Path
import torch
from sysscan_models.artifacts import BaseCheckpoint, Splits
from sysscan_models.errors import Interrupted
from sysscan_models.interfaces import TrainJob
from sysscan_models.roles import SPECIALIST
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training import checkpoints

torch.set_num_threads(1)
root, out, die_at = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
job = TrainJob(SPECIALIST, BaseCheckpoint.load(root / "base"), Splits.load(root / "splits"), root / out)
options = FullFinetune(max_seq_length=128, learning_rate=3e-3, epochs=30, micro_batch_size=2, checkpoint_every=3)
if die_at:  # at the tensor of that name of the second checkpoint, while it is being written
    write, seen = checkpoints.write_atomically, []
    def dying(path, data):
        seen.append(path)
        if len(seen) == 2:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)
    checkpoints.write_atomically = dying
try:
    options.train(job)
except Interrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run(root: Path, out: str, *, die_at: str = "", kill: int = 0, after: str = "checkpoint-00000006") -> tuple[int, str]:
    """Train in a process of its own; send it a signal once a checkpoint is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SYSSCAN_PROGRESS": "on"}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(root), out, die_at], env=environment, stderr=subprocess.PIPE, text=True
    )
    if kill:
        deadline = time.monotonic() + 120
        while not (root / out / "checkpoints" / after).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(kill)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_byte_for_byte(tmp_path: Path) -> None:
    make_job(tmp_path, attention_dropout=0.1)
    assert run(tmp_path, "whole")[0] == 0
    expected = Checkpoint.load(tmp_path / "whole")

    code, said = run(tmp_path, "stopped", kill=signal.SIGTERM)
    assert code == 130
    assert "Run the same command again to go on from there" in said
    assert not (tmp_path / "stopped" / "artifact.json").exists()

    assert run(tmp_path, "killed", kill=signal.SIGKILL)[0] == -signal.SIGKILL
    assert run(tmp_path, "while-writing", die_at="marker")[0] == -signal.SIGKILL
    assert list((tmp_path / "while-writing" / "checkpoints").glob(".*.tmp")), "it died while it wrote a checkpoint"

    for out, passed_over in (("stopped", False), ("killed", False), ("while-writing", True)):
        code, said = run(tmp_path, out)
        assert code == 0, said
        assert "goes on after step" in said
        assert ("writing was interrupted; removed" in said) >= passed_over
        assert Checkpoint.load(tmp_path / out).digest == expected.digest


def test_killed_before_saving_leaves_no_record(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from sysscan_plugins.full_finetune import finetune

    OPTIONS.train(job)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "write_model", dies)
    with pytest.raises(KeyboardInterrupt):
        OPTIONS.train(job)
    with pytest.raises(UserError, match="not a finished train artifact"):
        Checkpoint.load(job.out_dir)


def test_check_refuses_what_cannot_be_trained(tmp_path: Path) -> None:
    base = cases.make_base(tmp_path / "base")
    OPTIONS.check(base, SPECIALIST)
    with pytest.raises(UserError, match=r"max_seq_length is 4096, but .* at most 512 positions; set max_seq_length to 512"):
        FullFinetune().check(base, SPECIALIST)
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())

    def refused(**changes: Any) -> BaseCheckpoint:
        path.write_text(json.dumps({**config, **changes}))
        return base

    with pytest.raises(
        UserError, match=r"type 'gemma', which training does not support. Valid choices: llama, mistral, mixtral"
    ):
        OPTIONS.check(refused(model_type="gemma"), SPECIALIST)
    with pytest.raises(UserError, match="is quantized; training needs"):
        OPTIONS.check(refused(quantization_config={"bits": 4}), SPECIALIST)
    refused()
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match=r"has no config.json"):
        OPTIONS.check(base, SPECIALIST)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be loaded"):
        OPTIONS.check(base, SPECIALIST)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_estimate_is_exact_where_it_says_so(tmp_path: Path, kind: str, optimizer: Any, dtype: Any) -> None:
    from sysscan_plugins.training.devices.cpu import CPU
    from sysscan_plugins.training.optimizers import MasterOptimizer

    held: list[int] = []

    class Weighing(CPU):
        """Counts the bytes that live from step to step, before they are freed."""

        def create_optimizer(self, parameters: Any, options: Any) -> MasterOptimizer:
            self.optimizer = super().create_optimizer(parameters, options)
            return self.optimizer

        def seed(self, seed: int) -> None:
            kept = self.optimizer
            state = sum(tensor.nbytes for name, tensor in kept.tensors())
            copies = sum(kept.parameters[name].nbytes for name in kept._copied)
            gradients = sum(master.nbytes for master in kept.masters.values())
            held.append(state + copies + gradients)

    job = make_job(tmp_path, kind)
    options = OPTIONS.model_copy(update={"optimizer": optimizer, "compute_dtype": dtype, "epochs": 1.0})
    estimate = options.estimate(job)
    assert estimate is not None
    from sysscan_plugins.training.base_model import load_model, load_tokenizer

    loaded = load_tokenizer(job.base.root, trains_embeddings=True)
    model = load_model(job.base.root, options)
    result = train_model(model, loaded.tokenizer, job, options, Weighing(), template=loaded.template)
    assert estimate.persistent_bytes == held[-1]
    assert (estimate.steps, estimate.train_tokens) == (result.steps, result.train_tokens)
    assert estimate.persistent_bytes < estimate.peak_low_bytes < estimate.peak_high_bytes
    assert estimate.notes == ()


def test_the_estimate_extrapolates_large_splits_and_says_so(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from sysscan_plugins.training import pricing

    exact = OPTIONS.estimate(job)
    monkeypatch.setattr(pricing, "SAMPLE", 10)
    sampled = OPTIONS.estimate(job)
    assert exact is not None
    assert sampled is not None
    assert sampled.train_tokens == pytest.approx(exact.train_tokens, rel=0.1)
    assert sampled.notes == ("tokens and steps are extrapolated from the first 10 examples",)
    job.splits.train.write_text('{"id": \n')
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        OPTIONS.estimate(job)
    job.splits.train.unlink()
    unknown = OPTIONS.estimate(job)
    assert unknown is not None
    assert unknown.notes == ("tokens and steps are not known before the splits are prepared",)


def test_it_registers_and_its_defaults_are_the_specialists() -> None:
    assert full_finetune.sysscan_register_trainers() == [FullFinetune]
    options = FullFinetune()
    assert (options.max_seq_length, options.batch_size, options.learning_rate, options.epochs) == (4096, 4, 2e-5, 1)
    code = "import sys; import sysscan_plugins.full_finetune; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
