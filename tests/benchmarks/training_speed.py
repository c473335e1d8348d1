"""Useful tokens per second of training: packed as here, padded to max_seq_length, and TRL's SFTTrainer with packing.

    python tests/benchmarks/training_speed.py BASE_DIR SPLIT.jsonl [--steps 6] [--max-seq-length 1024] [--batch-size 2]

Same model, same documents, bf16, AdamW, one warm-up step and then STEPS timed ones each. A useful token is one that is not
padding. Prints ratios against the padded run; asserts nothing. TRL is measured when it is installed (`pip install trl`).
Shapes: B rows, T positions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sysscan_models.encoding import IGNORE_INDEX
from sysscan_plugins.full_finetune import FullFinetune
from sysscan_plugins.training.base_model import load_model, load_tokenizer
from sysscan_plugins.training.batches import Plan, encode_split
from sysscan_plugins.training.devices import open_device


def main() -> None:
    """Measure each in turn and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("split", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--max-seq-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=2)
    arguments = parser.parse_args()
    options = FullFinetune(max_seq_length=arguments.max_seq_length, batch_size=arguments.batch_size, packing=True)
    measured = {
        "padded to max_seq_length": padded(arguments.base, arguments.split, options, arguments.steps),
        "packed (sysscan-models)": packed(arguments.base, arguments.split, options, arguments.steps),
    }
    try:
        measured["TRL SFTTrainer, packing"] = trl(arguments.base, arguments.split, options, arguments.steps)
    except ImportError as error:
        print(f"TRL is not measured: {error}")
    baseline = measured["padded to max_seq_length"][0]
    print(f"{'':28} {'useful tokens/s':>16} {'useful share':>13} {'ratio':>6}")
    for name, (rate, share) in measured.items():
        print(f"{name:28} {rate:16.0f} {share:13.0%} {rate / baseline:6.2f}")


def packed(base: Path, split: Path, options: FullFinetune, steps: int) -> tuple[float, float]:
    """Return useful tokens per second and the useful share of the positions, as this project trains."""
    device = open_device("cpu")
    model = load_model(base, options)
    tokenizer = load_tokenizer(base, trains_embeddings=True)
    with tempfile.TemporaryDirectory() as folder:
        encoded = encode_split(split, tokenizer.tokenizer, tokenizer.template, options, Path(folder))
        plan = Plan(encoded.lengths, options, seed=17, devices=1)
        device.place(model.train(), options)
        optimizer = device.create_optimizer(dict(model.named_parameters()), options)
        useful = started = 0.0
        for step in range(steps + 1):
            if step == 1:
                useful, started = 0.0, time.perf_counter()
            batches = [encoded.batch([row], options.max_seq_length) for row in plan.rows(step)]
            supervised = sum(batch.supervised for batch in batches)
            losses = [device.forward_backward(model, batch, 1 / supervised) for batch in batches]
            optimizer.update(1e-5, options.max_grad_norm)
            device.read(losses)
            useful += sum(batch.tokens for batch in batches)
        seconds = time.perf_counter() - started
    return useful / seconds, useful / (steps * options.batch_size * options.max_seq_length)


def padded(base: Path, split: Path, options: FullFinetune, steps: int) -> tuple[float, float]:
    """Return the same with every document padded to max_seq_length, as the original's tokenization did."""
    model, tokenizer = _plain(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    texts = [tokenizer.apply_chat_template(record["messages"], tokenize=False) for record in _records(split)]
    width, rows = options.max_seq_length, options.batch_size
    useful = started = 0.0
    for step in range(steps + 1):
        if step == 1:
            useful, started = 0.0, time.perf_counter()
        chosen = texts[step * rows : (step + 1) * rows]
        batch = tokenizer(chosen, padding="max_length", truncation=True, max_length=width, return_tensors="pt")
        for row in range(rows):
            ids_1T, mask_1T = batch["input_ids"][row : row + 1], batch["attention_mask"][row : row + 1]
            labels_1T = ids_1T.masked_fill(mask_1T == 0, IGNORE_INDEX)
            (model(input_ids=ids_1T, attention_mask=mask_1T, labels=labels_1T, use_cache=False).loss / rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        useful += int(batch["attention_mask"].sum())
    return useful / (time.perf_counter() - started), useful / (steps * rows * width)


def trl(base: Path, split: Path, options: FullFinetune, steps: int) -> tuple[float, float]:
    """Return the same of TRL's trainer with its own packing, in bf16."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    model, tokenizer = _plain(base)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=options.batch_size,
            gradient_checkpointing=False,
            learning_rate=1e-5,
            max_length=options.max_seq_length,
            packing=True,
            use_cpu=True,
            bf16=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_drop_last=False,
        )
        data = Dataset.from_list([{"messages": record["messages"]} for record in _records(split)])
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
        rows = sorted((len(row["input_ids"]) for row in trainer.train_dataset), reverse=True)
        trainer.train()
    share = sum(rows) / (len(rows) * options.max_seq_length)
    useful = share * steps * options.batch_size * options.max_seq_length
    return useful / (marks[-1] - marks[0]), share


def _plain(base: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return model.train(), AutoTokenizer.from_pretrained(base)


def _records(split: Path) -> list[dict[str, Any]]:
    return [record for line in split.read_text().splitlines() if "messages" in (record := json.loads(line))]


if __name__ == "__main__":
    main()
