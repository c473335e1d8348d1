"""A split becomes arrays, rows and batches; what a step reads is a pure function of the seed and the step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import records, tiny_tokenizer

from sysscan_models.encoding import CHATML, IGNORE_INDEX
from sysscan_models.errors import DataError
from sysscan_plugins.training import TrainingOptions
from sysscan_plugins.training.batches import Plan, demand_supervision, encode_split


class Options(TrainingOptions):
    name = "test"

    def train(self, job: Any) -> Any:
        raise NotImplementedError


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_batch_has_fixed_rows_with_segments_positions_and_shifted_targets(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    split = encode_split(write(tmp_path / "train.jsonl", records(5)), tokenizer, CHATML, Options(), tmp_path / "e")
    batch = split.batch([[3, 0], [1]], 256)
    assert batch.ids_BT.shape == batch.targets_BT.shape == (2, 256)
    first, second = split.lengths[3], split.lengths[0]
    assert batch.segments_BT[0].tolist() == [1] * first + [2] * second + [0] * (256 - first - second)
    assert batch.positions_BT[0, :first].tolist() == list(range(first))
    assert batch.positions_BT[0, first] == 0
    assert batch.targets_BT[0, first - 1] == IGNORE_INDEX, "nothing predicts the next segment's first token"
    supervised = batch.targets_BT[0] != IGNORE_INDEX
    assert (batch.targets_BT[0][supervised] == batch.ids_BT[0][1:][supervised[:-1]]).all()
    answers = tokenizer.decode(batch.targets_BT[0][supervised])
    assert answers == "answer 3 " + "y" * 15 + "<|im_end|>" + "answer 0 <|im_end|>".replace("0 <", "0<")
    assert batch.tokens == sum(split.lengths[[3, 0, 1]])
    assert batch.flat().lengths == (first, second, split.lengths[1])
    assert split.names([3, 0, 3]) == ["doc-3", "doc-0"]


def test_a_split_is_encoded_once_and_again_when_something_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", records(3))
    first = encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path / "e")
    marker = first.folder / "report.json"
    written = marker.stat().st_mtime_ns
    assert encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path / "e").folder == first.folder
    assert marker.stat().st_mtime_ns == written
    assert encode_split(path, tiny_tokenizer(), CHATML, Options(max_seq_length=100), tmp_path / "e").folder != first.folder
    write(path, records(4))
    assert len(encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path / "e")) == 4


def test_what_is_cut_or_dropped_is_counted(tmp_path: Path) -> None:
    turns = records(1)[0]["messages"]
    lines = [
        {"id": "cut", "messages": [{"role": "user", "content": "q" * 500}, turns[1]]},
        {"id": "long", "messages": [turns[0], {"role": "assistant", "content": "a" * 500}]},
        {"id": "asks", "messages": [turns[0]]},
        {"id": "prose", "kind": "text", "text": "t" * 300},
        *records(1),
    ]
    split = encode_split(write(tmp_path / "t.jsonl", lines), tiny_tokenizer(), CHATML, Options(max_seq_length=200), tmp_path)
    assert split.report["outcomes"] == {"cut": 1, "refused": 1, "too long": 1, "whole": 2}
    assert [drop["id"] for drop in split.report["dropped"]] == ["long", "asks"]
    assert split.lengths.max() <= 200
    assert split.names(range(len(split))) == ["cut", "prose", "doc-0"]
    assert len(split) == 4, "the prose is in two pieces"


def test_data_without_anything_to_learn_is_refused_with_a_sample(tmp_path: Path) -> None:
    lines = [{"id": "a", "messages": [{"role": "user", "content": "only a question"}]}]
    path = write(tmp_path / "train.jsonl", lines)
    split = encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path)
    with pytest.raises(DataError, match=r"no token to learn from: \{'refused': 1\}.*only a question.*no assistant turn"):
        demand_supervision(split, path)
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="it is empty"):
        demand_supervision(encode_split(empty, tiny_tokenizer(), CHATML, Options(), tmp_path), empty)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n{"id": \n')
    with pytest.raises(DataError, match=r"train.jsonl, line 2: expected a JSON object"):
        encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path)
    assert not list(tmp_path.glob("train-*/report.json"))


LENGTHS = np.random.default_rng(0).integers(10, 120, 300)


def rows_of(plan: Plan) -> list[list[int]]:
    return [row for step in range(plan.steps) for row in plan.rows(step)]


@pytest.mark.parametrize("packing", [True, False])
def test_every_epoch_reads_every_sequence_once_in_another_order(packing: bool) -> None:
    options = Options(max_seq_length=128, epochs=2, packing=packing)
    plan = Plan(LENGTHS, options, seed=1)
    items = [item for row in rows_of(plan) for item in row]
    assert sorted(items) == sorted([*range(300)] * 2)
    assert items[:300] != items[300:]
    assert rows_of(Plan(LENGTHS, options, seed=1)) == rows_of(plan)
    assert rows_of(Plan(LENGTHS, options, seed=2)) != rows_of(plan)
    assert plan.tokens == 2 * LENGTHS.sum()
    assert all(len(row) == 1 for row in rows_of(plan)) is not packing


def test_budgets_end_the_plan() -> None:
    whole = Plan(LENGTHS, Options(max_seq_length=128), seed=1)
    assert Plan(LENGTHS, Options(max_seq_length=128, max_steps=5), seed=1).steps == 5
    by_tokens = Plan(LENGTHS, Options(max_seq_length=128, max_tokens=3000, epochs=9), seed=1)
    assert 3000 <= by_tokens.tokens < 3000 + 4 * 128, "rounded up to a whole step"
    assert by_tokens.rows(0) == whole.rows(0)
    half = Plan(LENGTHS, Options(max_seq_length=128, epochs=0.5), seed=1)
    assert half.steps == pytest.approx(whole.steps / 2, abs=1)
    longer = Plan(LENGTHS, Options(max_seq_length=128, max_steps=10_000), seed=1)
    assert longer.steps == whole.steps, "whichever ends first"
    assert Plan(LENGTHS, Options(max_seq_length=128), seed=1, devices=2).steps == -(-len(rows_of(whole)) // 8)


def test_a_record_that_is_no_example_is_dropped_by_name(tmp_path: Path) -> None:
    strange = [
        {"id": "other keys", "prompt": "a", "completion": "b"},
        {"id": "blank", "kind": "text", "text": "  "},
        {"id": "no content", "messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]},
        {"id": "null", "messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]},
        {"id": "strings", "messages": ["a"]},
    ]
    path = write(tmp_path / "train.jsonl", [*strange, *records(2)])
    split = encode_split(path, tiny_tokenizer(), CHATML, Options(), tmp_path / "e")
    assert split.report["outcomes"] == {"refused": 5, "whole": 2}
    assert [drop["id"] for drop in split.report["dropped"]] == [record["id"] for record in strange]
    assert split.report["dropped"][0]["why"] == "refused it has neither messages nor text"


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no split .*train.jsonl; prepare the splits first"):
        encode_split(tmp_path / "train.jsonl", tiny_tokenizer(), CHATML, Options(), tmp_path / "e")
