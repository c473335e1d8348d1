"""The training loop, from top to bottom: encode, plan, resume, then for each step gradients, update, log, checkpoint.

Everything about a step but the weights and the optimizer's state is a pure function of the seed and the step: its rows, its
learning rate, its dropout. So a checkpoint is those tensors and the step, and a resumed run equals an uninterrupted one.
What depends on the device is behind `devices.Device`. There are no callbacks; change the loop by editing it.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from sysscan_models.artifacts import sha256_file
from sysscan_models.errors import Interrupted, SysscanError
from sysscan_models.interfaces import TrainJob
from sysscan_models.progress import Progress, say
from sysscan_plugins.training import TrainingOptions, checkpoints
from sysscan_plugins.training.batches import Batch, EncodedSplit, Plan, demand_supervision, encode_split
from sysscan_plugins.training.devices import Device, Weights
from sysscan_plugins.training.gauge import Gauge
from sysscan_plugins.training.log import TrainLog
from sysscan_plugins.training.optimizers import MasterOptimizer
from sysscan_plugins.training.schedule import learning_rate

if TYPE_CHECKING:
    import torch

Rows = Sequence[Sequence[int]]
"""Numbers of the sequences in each row."""

ENCODED, CHECKPOINTS = "encoded", "checkpoints"
"""Subfolders of `out_dir` that hold an unfinished run; the trainer removes them when it has saved the model."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. Losses are mean cross-entropy per supervised token, in nats."""

    steps: int = 0
    train_tokens: int = 0
    """Tokens seen, padding left out."""
    supervised_tokens: int = 0
    first_train_loss: float | None = None
    final_train_loss: float | None = None
    first_valid_loss: float | None = None
    """Before the first step."""
    final_valid_loss: float | None = None


@dataclass(frozen=True)
class _Step:
    """A step that was taken and not yet read: its losses are still on the device, one per micro-batch."""

    number: int
    losses: Sequence[torch.Tensor]
    norm: torch.Tensor
    rows: Sequence[Rows]
    """Rows of each micro-batch."""
    tokens: int
    supervised: int
    learning_rate: float


@dataclass
class _Run:
    """What the loop carries from step to step."""

    model: Any
    device: Device
    options: TrainingOptions
    optimizer: MasterOptimizer
    train: EncodedSplit
    valid: EncodedSplit | None
    plan: Plan
    seed: int
    bar: Progress
    log: TrainLog
    micro_batch_size: int
    gauge: Gauge
    result: TrainResult = field(default_factory=TrainResult)
    unread: list[_Step] = field(default_factory=list)


def train_model(
    model: Any,
    tokenizer: Any,
    job: TrainJob,
    options: TrainingOptions,
    device: Device,
    *,
    template: str,
    weights: Weights | None = None,
) -> TrainResult:
    """Train the parameters of `model` that require gradients; afterwards the model holds the final weights.

    `model` is a causal LM of transformers or a PEFT model around one, on the CPU, trainable parameters in their compute
    dtype; for a device that streams it has none yet, and `weights` are its parameters by name, read one at a time.
    `tokenizer` is its fast HF tokenizer. `template` is the chat template as jinja source. Writes into `job.out_dir`:
    `encoded/` and `checkpoints/` (for the caller to remove at the end), `train_log.jsonl`, `loss.png`. Resumes from
    `checkpoints/`. Raises Interrupted (after saving a checkpoint), DataError, SysscanError (a loss that is not finite, with the
    documents' names; memory that does not hold one row).
    """
    with device.in_turn():  # the first process encodes, the others find it done
        train = encode_split(job.splits.train, tokenizer, template, options, job.out_dir / ENCODED)
        demand_supervision(train, job.splits.train)
        valid = _validation_split(job, tokenizer, template, options)
    run_key = _run_key(job, options, template, _trained(model))
    folder = job.out_dir / CHECKPOINTS
    with Progress(f"train {job.role.name}", unit="steps") as bar:
        for split in (train, valid):
            _report(split, bar)
        with device.in_turn() as first:  # what the first process has checked and cleared away, the others only look up
            found = checkpoints.latest(folder, run_key, bar.note, contents=first)
        state = found[1] if found else {}
        # A run goes on with the rows per step that it began with, on however many devices.
        plan = Plan(train.lengths, options, job.seed, devices=state.get("devices", device.count))
        bar.total = plan.steps
        with device.exact(state.get("facts", {})) as facts, _stop_signals() as stop:
            with _memory_for("the model and its fp32 masters", device):
                device.place(model, options, weights)
                optimizer = device.create_optimizer(_trained(model), options)  # only now: a device may have replaced them
            log = TrainLog(job.out_dir, after=state.get("step", 0), fresh=not found, writes=device.process == 0)
            micro_batch_size = state.get("micro_batch_size", options.micro_batch_size)
            gauge = Gauge.of(model, options, device, train, plan)
            run = _Run(model, device, options, optimizer, train, valid, plan, job.seed, bar, log, micro_batch_size, gauge)
            if found:
                device.load_state(optimizer, found[0])
                run.result = TrainResult(**state["result"])
                bar.note(f"goes on after step {run.result.steps} of {plan.steps}" + _idle(plan, run))

            def save() -> Path:
                _read(run)
                kept = {
                    "step": run.result.steps,
                    "run": run_key,
                    "devices": plan.devices,
                    "micro_batch_size": run.micro_batch_size,
                    "facts": dict(facts),
                    "result": asdict(run.result),
                }
                with checkpoints.saving(folder, kept, device, keep=options.keep_checkpoints) as target:
                    device.save_state(optimizer, target)
                return checkpoints.place(folder, run.result.steps)

            saved = time.monotonic()
            gauge.restart()
            for step in range(run.result.steps, plan.steps):
                if step == 0:
                    run.result = replace(run.result, first_valid_loss=_validate(run, step))
                elif options.validate_every and step % options.validate_every == 0:
                    _read(run)
                    _validate(run, step)
                run.unread.append(_take_step(run, step))
                done = step + 1
                minutes = (time.monotonic() - saved) / 60
                late = bool(options.checkpoint_minutes and minutes >= options.checkpoint_minutes)
                stopped, late = device.agreed(bool(stop), late)
                if done % options.log_every == 0 or done == plan.steps or stopped:
                    _read(run)
                if done == plan.steps:
                    break
                if stopped:
                    path = save()
                    gauge.tell(bar)
                    log.draw()
                    raise Interrupted(
                        f"training of {job.role.name} was stopped after step {done} of {plan.steps}; "
                        f"{path} holds it. Run the same command again to go on from there"
                    )
                if late or (options.checkpoint_every and done % options.checkpoint_every == 0):
                    save()
                    saved = time.monotonic()
                    gauge.restart()
            run.result = replace(run.result, final_valid_loss=_validate(run, plan.steps))
            gauge.tell(bar)
            log.draw()
            optimizer.release()
            model.eval()
    return run.result


def _idle(plan: Plan, run: _Run) -> str:
    """Say when a step has fewer rows than devices."""
    spare = run.device.count * run.micro_batch_size - plan.rows_per_step
    if spare <= 0:
        return ""
    return f"; its steps have {plan.rows_per_step} rows, so {spare} of {run.device.count} devices' places stay empty"


def _trained(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _take_step(run: _Run, step: int) -> _Step:
    """Accumulate the gradients of a step's rows and update the weights."""
    rows = run.plan.rows(step)
    while True:
        run.device.seed(run.seed * 1_000_003 + step)
        with run.gauge.preparing():
            micro_rows, batches = _divided(run, run.train, rows)
        supervised = sum(batch.supervised for batch in batches)
        scale = 1.0 / max(1, supervised)
        run.model.train()
        losses = _losses(run, batches, partial(run.device.forward_backward, run.model, scale=scale))
        if losses is not None:
            break
        run.optimizer.discard()
        _halve(run)
    rate = learning_rate(step, run.plan.steps, run.options)
    with _memory_for("gradients and the optimizer's state", run.device):
        norm = run.optimizer.update(rate, run.options.max_grad_norm)
    try:
        run.device.end_step()
    except Exception as error:
        if run.device.is_out_of_memory(error):  # a device that compiles whole steps finds out here
            raise SysscanError(_no_room(run)) from error
        raise
    return _Step(step + 1, losses, norm, micro_rows, sum(batch.tokens for batch in batches), supervised, rate)


def _divided(run: _Run, split: EncodedSplit, rows: Rows) -> tuple[list[Rows], list[Batch]]:
    """Divide rows into micro-batches of one size, filled up with empty rows; on some devices also of one number."""
    size = run.micro_batch_size * run.device.count
    count = run.plan.rows_per_step if run.device.fixed_steps and split is run.train else len(rows)
    empty: Rows = [()] * (math.ceil(count / size) * size - len(rows))
    filled = [*rows, *empty]
    micro_rows: list[Rows] = [filled[start : start + size] for start in range(0, len(filled), size)]
    return micro_rows, [split.batch(micro, run.options.max_seq_length) for micro in micro_rows]


def _losses(run: _Run, batches: Sequence[Batch], forward: Callable[[Batch], torch.Tensor]) -> list[torch.Tensor] | None:
    """Return the loss sum of each micro-batch, on the device; None when memory ran out."""
    losses = []
    for batch in batches:
        try:
            losses.append(forward(batch))
        except Exception as error:
            if run.device.is_out_of_memory(error):
                return None  # the error, and the tensors that its traceback holds, must be gone before the next try
            raise
    return losses


def _halve(run: _Run) -> None:
    """Go on with micro-batches of half the size, which changes no result, and say so; raise when there is nothing to halve."""
    size = run.micro_batch_size
    if size == 1 or run.device.processes > 1:
        raise SysscanError(_no_room(run))
    run.device.free_memory()
    run.micro_batch_size = size // 2
    steps = math.ceil(run.plan.rows_per_step / (run.micro_batch_size * run.device.count))
    run.bar.note(
        f"out of memory: micro_batch_size goes from {size} to {run.micro_batch_size}, accumulation to {steps} micro-batches"
    )


def _no_room(run: _Run) -> str:
    """Say what a micro-batch that does not fit can be made smaller by."""
    size, options = run.micro_batch_size, run.options
    rows = "one row" if size == 1 else f"{size} rows"
    advice = "" if size == 1 else f"micro_batch_size = {size // 2}, "
    advice += "" if options.gradient_checkpointing else "gradient_checkpointing = true, "
    return (
        f"{run.device.name} has not enough memory for {rows} of {options.max_seq_length} tokens. "
        f'Set {advice}a smaller max_seq_length, or optimizer = "adafactor"'
    )


@contextmanager
def _memory_for(what: str, device: Device) -> Iterator[None]:
    """Turn an out-of-memory error that no smaller micro-batch can avoid into one with advice."""
    try:
        yield
    except Exception as error:
        if not device.is_out_of_memory(error):
            raise
        raise SysscanError(
            f'{device.name} has not enough memory for {what}. Set optimizer = "adafactor", or train adapters (trainer "lora")'
        ) from error


def _read(run: _Run) -> None:
    """Read the steps since the last time from the device, log them, and stop the run if one of them was not finite."""
    steps, run.unread = run.unread, []
    if not steps:
        return
    values = iter(run.device.read([tensor for step in steps for tensor in (*step.losses, step.norm)]))
    speed = run.gauge.read(len(steps), sum(step.tokens for step in steps))
    for step in steps:
        losses, norm = [next(values) for _ in step.losses], next(values)
        if not math.isfinite(sum(losses)) or not math.isfinite(norm):
            raise SysscanError(_not_finite(run, step, losses, norm))
        loss = sum(losses) / max(1, step.supervised)
        run.log.append(
            step.number,
            loss=loss,
            learning_rate=step.learning_rate,
            grad_norm=norm,
            tokens=step.tokens,
            supervised=step.supervised,
            **speed,
        )
        run.result = replace(
            run.result,
            steps=step.number,
            train_tokens=run.result.train_tokens + step.tokens,
            supervised_tokens=run.result.supervised_tokens + step.supervised,
            first_train_loss=loss if run.result.first_train_loss is None else run.result.first_train_loss,
            final_train_loss=loss,
        )
    shown = {name: speed[name] for name in ("tokens_per_s", "mfu", "memory_gb") if name in speed}
    run.bar.update(run.result.steps, loss=loss, lr=step.learning_rate, **shown)


def _not_finite(run: _Run, step: _Step, losses: Sequence[float], norm: float) -> str:
    """Say which documents a step with a loss or gradient that is not finite was made of, as narrowly as is known."""
    suspects = [rows for rows, loss in zip(step.rows, losses, strict=True) if not math.isfinite(loss)] or step.rows
    names = run.train.names([item for rows in suspects for row in rows for item in row])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    run.log.append(step.number, skipped=True, documents=names[:100])
    run.log.draw()
    loss = sum(losses) / max(1, step.supervised)
    return (
        f"step {step.number}: the loss ({loss:.4g}) or the gradient norm ({norm:.4g}) is not finite; the update was "
        f"skipped and training stopped. The batch holds the documents {', '.join(names[:10])}{more}. "
        f"Look at them, or lower learning_rate (now {run.options.learning_rate:g})"
    )


def _validate(run: _Run, step: int) -> float | None:
    """Return the validation loss (nats per supervised token), always of the same rows; None without a validation split."""
    if run.valid is None:
        return None
    run.model.eval()
    while True:
        _, batches = _divided(run, run.valid, _validation_rows(run))
        losses = _losses(run, batches, partial(run.device.evaluate, run.model))
        if losses is not None:
            break
        _halve(run)
    supervised = sum(batch.supervised for batch in batches)
    loss = sum(run.device.read(losses)) / max(1, supervised)
    if not math.isfinite(loss):
        raise SysscanError(
            f"the validation loss after step {step} is not finite ({loss:.4g}); training stopped. "
            + (f"Lower learning_rate (now {run.options.learning_rate:g})" if step else "Look at the base model's weights")
        )
    run.log.append(step, valid_loss=loss)
    run.bar.note(f"validation loss after step {step}: {loss:.4f}")
    run.gauge.restart()
    return loss


def _validation_split(job: TrainJob, tokenizer: Any, template: str, options: TrainingOptions) -> EncodedSplit | None:
    path = job.splits.valid
    if not path.is_file() or not path.stat().st_size:
        return None
    split = encode_split(path, tokenizer, template, options, job.out_dir / ENCODED)
    if split.supervised.any():
        return split
    say(f"{path} has no token to learn from: there will be no validation loss")
    return None


def _validation_rows(run: _Run) -> list[list[int]]:
    assert run.valid is not None
    limit = {"max_steps": run.options.validation_batches, "max_tokens": 0, "epochs": 1.0}
    plan = Plan(run.valid.lengths, run.options.model_copy(update=limit), seed=0)
    return [row for step in range(plan.steps) for row in plan.rows(step)]


def _report(split: EncodedSplit | None, bar: Progress) -> None:
    """Say what was cut or dropped, and name the first of what was dropped."""
    outcomes = dict(split.report["outcomes"]) if split else {}
    if split and outcomes.keys() - {"whole"}:
        named = ", ".join(f"{drop['id']} ({drop['why']})" for drop in split.report["dropped"][:3])
        counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        bar.note(f"{split.folder.name.rpartition('-')[0]}: {counted}" + (f"; dropped, for example: {named}" if named else ""))


def _run_key(job: TrainJob, options: TrainingOptions, template: str, parameters: Mapping[str, Any]) -> str:
    """Return a digest of everything that decides what a run makes; a checkpoint of another run is not resumed."""
    described = {
        "splits": [sha256_file(path) for path in (job.splits.train, job.splits.valid) if path.is_file()],
        "base": job.base.digest,
        "options": options.keyed(),
        "seed": job.seed,
        "template": template,
        "parameters": {name: [*parameter.shape, str(parameter.dtype)] for name, parameter in parameters.items()},
    }
    return hashlib.sha256(orjson.dumps(described, option=orjson.OPT_SORT_KEYS)).hexdigest()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Give a list that SIGTERM or SIGINT puts its number into; a second signal acts as it did before. Main thread only."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, _: object) -> None:
        received.append(number)
        say("stopping after this step, then saving a checkpoint; a second signal stops at once and loses it")
        for restored, handler in before.items():
            signal.signal(restored, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
