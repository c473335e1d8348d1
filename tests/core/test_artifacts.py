"""The records between stages: what a digest covers, how a record is written and what loading refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from sysscan_models.artifacts import (
    RECORD,
    BaseCheckpoint,
    Checkpoint,
    FileRecord,
    MergedCheckpoint,
    QuantizedModel,
    Splits,
    check_writable,
    file_records,
    made_now,
    publish,
    record_path,
    sha256_file,
    stage_key,
    write_atomically,
)
from sysscan_models.errors import IntegrityError, UserError


def checkpoint(**changes: Any) -> Checkpoint:
    return Checkpoint(kind="full", role="specialist", inputs={"base": "a" * 64}, options={"name": "x"}, seed=3, **changes)


def test_save_and_load_return_the_same_record_with_its_folder(tmp_path: Path) -> None:
    saved = checkpoint(steps=7, final_train_loss=0.25, made=made_now(seconds=1.26)).save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert loaded == saved
    assert loaded.root == tmp_path
    assert loaded.made["seconds"] == 1.3
    assert {"python", "sysscan-models"} <= loaded.made["versions"].keys()


def test_digest_covers_everything_but_the_circumstances() -> None:
    one = checkpoint(made={"seconds": 1})
    assert one.digest == checkpoint(made={"seconds": 2, "device": "cuda"}).digest
    assert one.digest != checkpoint(steps=1).digest
    assert one.digest != checkpoint(files={"x": FileRecord(size=1, sha256="b")}).digest


@pytest.mark.parametrize("change", [{"role": "generalist"}, {"inputs": {}}, {"options": {"name": "y"}}, {"seed": 4}])
def test_key_changes_with_what_decides_the_result_only(change: dict[str, Any]) -> None:
    facts: dict[str, Any] = {"role": "specialist", "inputs": {"base": "a" * 64}, "options": {"name": "x"}, "seed": 3}
    assert checkpoint(steps=9).key == stage_key(Checkpoint, **facts)
    assert checkpoint().key != stage_key(Checkpoint, **{**facts, **change})
    assert stage_key(MergedCheckpoint, **facts) != stage_key(Checkpoint, **facts)


def test_the_record_of_a_gguf_file_lies_beside_it(tmp_path: Path) -> None:
    assert record_path(tmp_path) == tmp_path / RECORD
    assert record_path(tmp_path / RECORD) == tmp_path / RECORD
    assert record_path(tmp_path / "m.gguf") == tmp_path / "m.gguf.json"
    model = QuantizedModel(file="m.gguf", type="F32").save(tmp_path / "m.gguf")
    assert model.path == tmp_path / "m.gguf"
    assert QuantizedModel.load(tmp_path / "m.gguf") == model


def test_a_record_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    checkpoint().save(tmp_path)
    body = orjson.loads((tmp_path / RECORD).read_bytes())
    (tmp_path / RECORD).write_bytes(orjson.dumps({**body, "steps": 1000}))
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UserError, "not a finished train artifact. Run that stage first"),
        (b"{", IntegrityError, "cannot be read"),
        (b"[]", UserError, "records a 'list' artifact; expected 'train'"),
        (b'{"stage": "merge"}', UserError, "records a 'merge' artifact; expected 'train'"),
        (b'{"stage": "train", "format_version": 99}', UserError, "format version 99; this release reads 1"),
        (b'{"stage": "train", "format_version": 1, "steps": "many"}', IntegrityError, "2 fields are wrong"),
    ],
)
def test_what_loading_refuses(tmp_path: Path, content: bytes | None, error: type[Exception], message: str) -> None:
    if content is not None:
        (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(error, match=message):
        Checkpoint.load(tmp_path)


def test_check_files_tells_missing_resized_and_changed_files_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    made = checkpoint(files=file_records(tmp_path, ["a"])).at(tmp_path)
    made.check_files(contents=True)
    (tmp_path / "a").write_bytes(b"1235")
    made.check_files(contents=False)
    with pytest.raises(IntegrityError, match="has SHA-256"):
        made.check_files(contents=True)
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(IntegrityError, match="has 5 bytes; its record expects 4"):
        made.check_files(contents=False)
    (tmp_path / "a").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        made.check_files(contents=False)


def test_an_artifact_without_a_folder_says_so() -> None:
    with pytest.raises(RuntimeError, match="neither saved nor loaded"):
        _ = BaseCheckpoint(reference="x").root


def test_the_splits_know_their_files(tmp_path: Path) -> None:
    splits = Splits().at(tmp_path)
    assert [splits.train, splits.valid, splits.test] == [tmp_path / f"{name}.jsonl" for name in ("train", "valid", "test")]


def test_only_a_full_checkpoint_passes_through_a_merge(tmp_path: Path) -> None:
    full = checkpoint(files={"x": FileRecord(size=1, sha256="b")}).at(tmp_path)
    merged = MergedCheckpoint.passed_through(full)
    assert (merged.root, merged.files, merged.inputs) == (tmp_path, full.files, {"checkpoint": full.digest})
    with pytest.raises(UserError, match="kind 'adapter' must be merged by its own trainer"):
        MergedCheckpoint.passed_through(Checkpoint(kind="adapter"))


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_write_atomically_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text, not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["f"]


def test_write_atomically_takes_its_part_of_a_full_disk_away(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"a file cannot take a folder's place")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_write_atomically_keeps_a_link_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"1")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "target").read_bytes()) == (True, b"1")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_writable(tmp_path / "pipe")
    write_atomically(tmp_path / "pipe", b"through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    with pytest.raises(OSError, match="No such file"):
        check_writable(tmp_path / "nowhere" / "f")
    with pytest.raises(OSError, match="name too long"):
        check_writable(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_publish_moves_a_finished_folder_into_place(tmp_path: Path) -> None:
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".x.tmp" / "f").write_bytes(b"1")
    publish(tmp_path / ".x.tmp", tmp_path / "x")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["x", "x/f"]
