"""The loop as a whole: it learns, resumes exactly, halves on out-of-memory, stops on what is not finite."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import make_job, records, tiny_model, tiny_tokenizer

from sysscan_models.encoding import CHATML
from sysscan_models.errors import DataError, Interrupted, SysscanError, UserError
from sysscan_models.interfaces import TrainJob
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.batches import Batch
from sysscan_plugins.training.devices import Weights, open_device
from sysscan_plugins.training.devices.cpu import CPU
from sysscan_plugins.training.loop import TrainResult, train_model
from sysscan_plugins.training.optimizers import MasterOptimizer
from sysscan_plugins.training.schedule import learning_rate


class Options(TrainingOptions):
    name = "test"

    def train(self, job: Any) -> Any:
        raise NotImplementedError


SMALL: dict[str, Any] = {"compute_dtype": "float32", "max_seq_length": 128, "batch_size": 4, "learning_rate": 3e-3}


def train(job: TrainJob, device: CPU | None = None, model: Any = None, **options: Any) -> tuple[Any, TrainResult]:
    model = model if model is not None else tiny_model(attention_dropout=0.1)
    chosen = Options(**{**SMALL, **options})
    return model, train_model(model, tiny_tokenizer(), job, chosen, device or CPU(), template=CHATML)


def weights(model: Any) -> bytes:
    return b"".join(parameter.detach().view(torch.uint8).numpy().tobytes() for parameter in model.parameters())


def log(job: TrainJob) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (job.out_dir / "train_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("step_seconds", "tokens_per_s")} for line in lines]


class StopsAt(CPU):
    """Sends this process a signal while it works on a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.left, self.number = step, number

    def seed(self, seed: int) -> None:
        super().seed(seed)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_it_learns(tmp_path: Path, kind: str, dtype: str, optimizer: str) -> None:
    rate = 3e-3 if optimizer == "adamw" else 0.3
    job = make_job(tmp_path)
    model = tiny_model(kind, getattr(torch, dtype))
    _, result = train(job, None, model, epochs=6, compute_dtype=dtype, optimizer=optimizer, learning_rate=rate)
    assert result.first_valid_loss == pytest.approx(math.log(259), rel=0.05), "an untrained model knows nothing"
    assert result.final_valid_loss is not None
    assert result.final_valid_loss < result.first_valid_loss - 1
    assert result.final_train_loss is not None
    assert result.first_train_loss is not None
    assert result.final_train_loss < result.first_train_loss - 1
    lines = log(job)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [*range(1, result.steps + 1)]
    assert sum(line["supervised"] for line in steps) == result.supervised_tokens
    assert sum(line["tokens"] for line in steps) == result.train_tokens
    assert lines[0] == {"step": 0, "valid_loss": result.first_valid_loss}
    assert (job.out_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_requires_gradients_is_trained(tmp_path: Path) -> None:
    model = tiny_model().requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(make_job(tmp_path), None, model)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_the_same_inputs_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second, other = (train(make_job(tmp_path, out=str(n), seed=seed))[0] for n, seed in enumerate((1, 1, 2)))
    assert weights(first) == weights(second) != weights(other)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, number: int, step: int, dtype: str) -> None:
    options: dict[str, Any] = {"compute_dtype": dtype, "epochs": 3, "validate_every": 2}

    def model() -> Any:
        return tiny_model(dtype=getattr(torch, dtype), attention_dropout=0.1)

    whole = make_job(tmp_path, out="whole")
    expected, expected_result = train(whole, None, model(), **options)
    job = make_job(tmp_path, out="parts")
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=rf"stopped after step {step} of \d+; .*checkpoint-0000000{step} holds it. Run the same"
    ):
        train(job, StopsAt(step, number), model(), **options)
    assert signal.getsignal(number) == before
    assert (job.out_dir / "loss.png").is_file()
    resumed, result = train(job, None, model(), **options)
    assert weights(resumed) == weights(expected)
    assert result == expected_result
    assert log(job) == log(whole)


def test_a_kill_between_checkpoints_goes_on_from_the_last_one(tmp_path: Path) -> None:
    class Dies(CPU):
        def __init__(self) -> None:
            super().__init__()
            self.left = 6

        def seed(self, seed: int) -> None:
            super().seed(seed)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    expected, _ = train(make_job(tmp_path, out="whole"), epochs=3)
    job = make_job(tmp_path, out="parts")
    with pytest.raises(KeyboardInterrupt):
        train(job, Dies(), epochs=3, checkpoint_every=2)
    assert [path.name for path in sorted((job.out_dir / "checkpoints").iterdir())] == [
        "checkpoint-00000002",
        "checkpoint-00000004",
    ]
    with (job.out_dir / "train_log.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')
    resumed, result = train(job, epochs=3)
    assert weights(resumed) == weights(expected)
    assert [line["step"] for line in log(job) if "loss" in line] == [*range(1, result.steps + 1)]


def test_a_checkpoint_of_other_options_is_not_used(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    with pytest.raises(Interrupted):
        train(job, StopsAt(2))
    changed, _ = train(job, learning_rate=1e-3)
    fresh, _ = train(make_job(tmp_path, out="fresh"), learning_rate=1e-3)
    assert weights(changed) == weights(fresh)


def test_threads_are_those_that_the_run_began_with(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    threads = torch.get_num_threads()
    with pytest.raises(Interrupted):
        train(job, StopsAt(2))
    state = json.loads(next((job.out_dir / "checkpoints").glob("*/state.json")).read_text())
    assert state["facts"] == {"threads": threads}
    with CPU().exact({"threads": threads + 1}):
        assert torch.get_num_threads() == threads + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


class SmallMemory(CPU):
    """Has room for a number of rows at once."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.refused = rows, 0

    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        loss = super().forward_backward(model, batch, scale)  # what was accumulated must be forgotten
        if len(batch.ids_BT) > self.rows:
            self.refused += 1
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return loss


def test_out_of_memory_halves_the_micro_batch_with_the_same_mathematics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "on")
    device = SmallMemory(1)
    model, _ = train(make_job(tmp_path, out="a"), device, tiny_model(), micro_batch_size=4)
    assert device.refused == 2, "4 to 2, 2 to 1, and it stays there"
    said = capsys.readouterr().err
    assert "out of memory: micro_batch_size goes from 4 to 2, accumulation to 2 micro-batches" in said
    assert "micro_batch_size goes from 2 to 1, accumulation to 4" in said
    same, _ = train(make_job(tmp_path, out="b"), None, tiny_model(), micro_batch_size=1)
    assert weights(model) == weights(same)
    large, _ = train(make_job(tmp_path, out="c"), None, tiny_model(), micro_batch_size=4)
    for one, other in zip(model.parameters(), large.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def test_memory_for_not_even_one_row_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(
        SysscanError, match=r"not enough memory for one row of 128 tokens. Set gradient_checkpointing = true, a smaller"
    ):
        train(make_job(tmp_path), SmallMemory(0))


class Refusing(CPU):
    """Has no room for something else than activations."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
        if self.what == "model":
            raise MemoryError
        super().place(model, options, weights)

    def create_optimizer(self, parameters: Any, options: TrainingOptions) -> MasterOptimizer:
        optimizer = super().create_optimizer(parameters, options)

        class Full(type(optimizer.optimizer)):  # type: ignore[misc]
            def step(self) -> None:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

        optimizer.optimizer.__class__ = Full
        return optimizer


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("model", r"cpu has not enough memory for the model and its fp32 masters. Set optimizer = .adafactor., or train adap"),
        ("state", r"cpu has not enough memory for gradients and the optimizer's state. Set optimizer = .adafactor."),
    ],
)
def test_memory_that_no_smaller_micro_batch_saves_is_an_error_with_advice(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(SysscanError, match=message):
        train(make_job(tmp_path), Refusing(what))


def test_a_device_may_replace_the_models_parameters(tmp_path: Path) -> None:
    """Accelerators whose tensors are of another kind do so when a model is moved to them."""

    class Replacing(CPU):
        def place(self, model: Any, options: TrainingOptions, weights: Weights | None = None) -> None:
            for module in model.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
            super().place(model, options, weights)

    replaced, _ = train(make_job(tmp_path, out="a"), Replacing())
    kept, _ = train(make_job(tmp_path, out="b"))
    assert weights(replaced) == weights(kept)


def test_every_batch_has_the_same_shape(tmp_path: Path) -> None:
    class Measuring(CPU):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: set[tuple[int, ...]] = set()

        def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
            self.shapes.add(batch.ids_BT.shape)
            return super().forward_backward(model, batch, scale)

        def evaluate(self, model: Any, batch: Batch) -> torch.Tensor:
            self.shapes.add(batch.ids_BT.shape)
            return super().evaluate(model, batch)

    device = Measuring()
    _, result = train(make_job(tmp_path), device, packing=False, batch_size=5, micro_batch_size=3)
    assert result.steps == 5, "24 rows, the last step has 4"
    assert device.shapes == {(3, 128)}


class Poisoned(CPU):
    """Loses its mind at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def forward_backward(self, model: Any, batch: Batch, scale: float) -> torch.Tensor:
        self.left -= 1
        return super().forward_backward(model, batch, scale * (math.nan if not self.left else 1)) * (
            math.nan if not self.left else 1
        )


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_documents(tmp_path: Path, log_every: int) -> None:
    job = make_job(tmp_path)
    model = tiny_model()
    options = {"packing": False, "batch_size": 2, "micro_batch_size": 1, "log_every": log_every}
    with pytest.raises(
        SysscanError, match=r"step 2: the loss .nan. or the gradient norm .nan. is not finite; the update was"
    ) as raised:
        train(job, Poisoned(4), model, **options)
    skipped = next(line for line in log(job) if line.get("skipped"))
    assert skipped["step"] == 2
    assert len(skipped["documents"]) == 1, "the micro-batch, not the whole step"
    assert f"holds the documents {skipped['documents'][0]}." in str(raised.value)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(SysscanError, match=r"validation loss after step 1 is not finite .nan.; training stopped. Lower learn"):
        train(make_job(tmp_path), max_steps=1, learning_rate=1e35)
    model = tiny_model()
    model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(SysscanError, match=r"after step 0 is not finite .nan.; training stopped. Look at the base model's w"):
        train(make_job(tmp_path, out="other"), model=model)


def test_data_whose_labels_are_all_masked_is_refused(tmp_path: Path) -> None:
    questions = [{"id": "a", "messages": [{"role": "user", "content": "only questions"}]}]
    with pytest.raises(DataError, match=r"no token to learn from.*only questions"):
        train(make_job(tmp_path, questions))


def test_without_a_validation_split_there_is_no_validation_loss(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.splits.valid.write_text("")
    _, result = train(job)
    assert result.first_valid_loss is None
    assert result.final_valid_loss is None


def test_a_validation_split_without_answers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "on")
    job = make_job(tmp_path)
    job.splits.valid.write_text('{"id": "a", "messages": [{"role": "user", "content": "only questions"}]}\n')
    assert train(job)[1].final_valid_loss is None
    assert "valid.jsonl has no token to learn from: there will be no validation loss" in capsys.readouterr().err


def test_validation_reads_the_same_rows_each_time(tmp_path: Path) -> None:
    job = make_job(tmp_path, records(24))
    train(job, learning_rate=1e-12, validate_every=1, validation_batches=1)
    losses = {round(line["valid_loss"], 5) for line in log(job) if "valid_loss" in line}
    assert len(losses) == 1


def test_the_schedule_warms_up_and_falls_along_a_cosine() -> None:
    options = Options(learning_rate=1.0, warmup_ratio=0.1, min_lr_ratio=0.1)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)
    assert 0.1 < rates[-1] < 0.11
    assert learning_rate(0, 1, options) == 1.0


def test_a_micro_batch_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch_size 8 is larger than batch_size 4; set it to 4 or less"):
        Options(batch_size=4, micro_batch_size=8)


@pytest.mark.parametrize("option", ["epochs", "learning_rate"])
def test_endless_training_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Options(**{option: math.inf})


def test_options_that_do_not_affect_the_result_are_no_part_of_the_key() -> None:
    assert Options(log_every=7, checkpoint_every=9, checkpoint_minutes=1, keep_checkpoints=3).keyed() == Options().keyed()
    assert Options(learning_rate=1).keyed() != Options().keyed()


@pytest.mark.parametrize(
    ("option", "named"), [({"tensor_parallel": 2}, "tensor_parallel = 2"), ({"attention": "flash"}, 'attention = "flash"')]
)
def test_options_of_tpus_are_refused_elsewhere(tmp_path: Path, option: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"{named} is for TPUs, and this is cpu; leave the option out"):
        train(make_job(tmp_path), **option)


def test_a_capacity_of_experts_is_for_tpus_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSSCAN_PROGRESS", "lines")
    train(make_job(tmp_path), None, tiny_model("mixtral"), max_steps=1, expert_capacity=1.25)
    assert "cpu: expert_capacity is for TPUs" in capsys.readouterr().err


def test_unknown_devices_are_refused_with_the_choices() -> None:
    assert open_device("cpu").name == "cpu"
    with pytest.raises(UserError, match=r"unknown device 'gpu'. Valid choices: auto, cpu, cuda, tpu, cuda:N"):
        open_device("gpu")
    if not torch.cuda.is_available():
        assert open_device("auto").name == "cpu"
        with pytest.raises(UserError, match=r"'cuda:1' was asked for, but torch .* finds no CUDA device here"):
            open_device("cuda:1")
