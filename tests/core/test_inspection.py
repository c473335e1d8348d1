"""`inspect`: one document's way is told as `prepare` goes it, from a file and from what was prepared."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sysscan_models.config import RunConfig, load_config
from sysscan_models.documents import Document
from sysscan_models.errors import UserError
from sysscan_models.interfaces import Decision, Router
from sysscan_models.pipeline import Pipeline
from sysscan_models.splits.inspection import SHOWN_CHARS, Inspector, Way, inspect_target
from sysscan_models.splits.inspection_text import LABEL, SHOWN_LINES, as_text

TOKEN = "hf_" + "a1B2" * 8  # of the right shape, and nobody's
PROSE = "The service account may write to the unit file, so whoever takes it over becomes root at the next restart. "


def words(number: int) -> str:
    """Forty words that no other number has."""
    chosen = random.Random(number)
    return " ".join("".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(40))


def security(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"sec-{number}",
        "title": f"Backdoor number {number} in a cron job of root",
        "description": f"Malware {number} runs as root from a world-writable folder named {number * 7919}.",
        "content": f"The rootkit hides {words(number)}. {PROSE}",
        "severity": "high",
        **fields,
    }


def general(number: int) -> dict[str, Any]:
    return {
        "id": f"bread-{number}",
        "title": f"Bread number {number}",
        "content": f"Dough with flour, {words(1000 + number)}.",
    }


RECORDS: list[Any] = [
    security(0, content=f"Token {TOKEN} was left by the rootkit. {PROSE}"),
    security(1),
    "no object",
    {"id": "short", "title": "Hi"},
    {"id": "theirs", "role": "auditor", "title": "A document of another role", "content": PROSE},
    {"id": "chat", "messages": [{"role": "user", "content": "What is umask 027?"}, {"role": "assistant", "content": PROSE}]},
    {"id": "plain", "family": "bakery", "content": "Flour, water and salt are mixed and left alone for an hour or two."},
    security(1, id="copy"),
    *(security(number) for number in range(2, 40)),
    *(general(number) for number in range(40)),
]


def packed(path: Path, records: list[Any] = RECORDS) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (
            ("notes/readme.txt", b"not read"),
            ("part.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode()),
            ("more.json", json.dumps([security(100), security(101)]).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "part.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def configured(folder: Path, *overrides: str) -> RunConfig:
    given = [f'models_dir="{folder / "models"}"', f'data.archive="{folder / "all.tar.gz"}"', "data.workers=1", *overrides]
    return load_config(recipe="demo", overrides=given)


@pytest.fixture
def prepared(tmp_path: Path) -> RunConfig:
    packed(tmp_path / "all.tar.gz")
    config = configured(tmp_path)
    Pipeline(config).prepare()
    return config


def one(path: Path, record: int, config: RunConfig | None = None) -> Way:
    (way,) = Inspector.of(config).of_file(path, record=record)
    return way


# A file --------------------------------------------------------------------------------------------------------------------


def test_a_document_is_followed_to_its_example(file: Path) -> None:
    way = one(file, 1)
    assert (way.source, way.reader, way.id, way.fate) == ("part.jsonl:1", "jsonl", "sec-0", "kept")
    assert way.characters == {
        "title": 39,
        "description": 60,
        "content": len(f"Token {TOKEN} was left by the rootkit. {PROSE}") - 1,
    }
    assert way.labels == {"severity": "high"}
    assert way.redactions == {"HF_TOKEN": 1}
    assert way.text["content"].startswith("Token [HF_TOKEN] was left")
    assert (way.quality, way.held_out) == ("good", "nothing is held out")
    assert (way.role, way.score, way.decided_by, way.review) == ("specialist", 1.0, "a label in the data", False)
    assert way.reasons == ["label: severity"]
    assert way.split in ("train", "valid", "test")
    assert way.unit.startswith("content ")
    assert way.kind == "answer"
    assert [turn["role"] for turn in way.turns] == ["system", "user", "assistant"]
    assert "[HF_TOKEN]" in way.turns[-1]["content"]


def test_no_secret_is_told(file: Path) -> None:
    for as_json in (True, False):
        assert TOKEN not in inspect_target(str(file), limit=99, as_json=as_json)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (3, {"fate": "set aside", "why": "not an object: found text", "source": "part.jsonl:3", "id": ""}),
        (4, {"fate": "set aside", "quality": "too short", "role": ""}),
        (5, {"fate": "for a role that is not configured", "role": "auditor", "why": "the roles are generalist, specialist"}),
        (6, {"fate": "kept", "kind": "messages", "characters": {"messages": 2}}),
        (7, {"fate": "kept", "kind": "text", "unit": "family bakery", "role": "generalist"}),
    ],
)
def test_every_fate(file: Path, record: int, told: dict[str, Any]) -> None:
    way = one(file, record)
    assert {name: getattr(way, name) for name in told} == told


def test_the_routers_terms_decide_where_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"title": "Rootkit in a kernel module", "content": f"A backdoor of an attacker. {PROSE}"}))
    way = one(path, 1)
    assert (way.reader, way.role) == ("json", "specialist")
    assert way.decided_by.startswith("the router ")
    assert way.reasons
    assert way.threshold is not None
    assert not way.review


class Unsure(Router):
    """A router that is never sure and has no threshold."""

    name: ClassVar[str] = "unsure"

    def route(self, document: Document) -> Decision:
        return Decision("generalist", 0.1, ("a guess",))


def test_what_is_near_the_threshold_is_for_review(file: Path) -> None:
    inspector = Inspector.of(None)
    unsure = replace(inspector, settings=replace(inspector.settings, router=Unsure()))
    (way,) = unsure.of_file(file, record=2)
    assert (way.review, way.threshold, way.decided_by) == (True, None, "the router 'unsure'")
    assert "near the threshold, so listed for review" in " ".join(as_text([way]).split())


def test_the_rules_of_the_configuration_are_named(file: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, 'router={name="linear", allow=["salt"]}')
    way = one(file, 7, config)
    assert (way.role, way.decided_by, way.reasons) == ("specialist", "a rule of the configuration", ["allow: salt"])


def test_held_out_data_is_looked_for(file: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text(json.dumps({"content": "Question: " + PROSE}) + "\n")
    config = configured(tmp_path, f'data.held_out=["{tmp_path / "bench.jsonl"}"]')
    assert one(file, 2, config).why == "overlaps with held-out data, bench.jsonl"
    assert one(file, 7, config).held_out == "no overlap"


def test_a_scan_report_is_read_by_its_own_reader(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    finding = {"id": "f1", "title": "SUID binary in /tmp", "severity": "high", "description": PROSE}
    path.write_text(json.dumps({"meta": {}, "results": [{"scanner": "suid", "findings": [finding]}]}))
    config = configured(tmp_path, 'data.readers=["scan-report", "json"]')
    assert one(path, 1, config).reader == "scan-report"
    path.write_text(json.dumps([security(1)]))
    assert one(path, 1, config).reader == "json"


def test_options_of_redaction_count(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"title": "Rootkit", "content": f"It calls 52.94.236.248 at night. {PROSE}"}))
    assert one(path, 1).redactions == {}
    assert one(path, 1, configured(tmp_path, "data.redact_public_ips=true")).redactions == {"PUBLIC_IP": 1}


def test_the_first_records_or_one_of_them(file: Path) -> None:
    assert inspect_target(str(file), limit=3).count("result ") == 3
    assert json.loads(inspect_target(str(file), record=2, as_json=True))[0]["id"] == "sec-1"
    with pytest.raises(UserError, match=r"has no record 400; they are counted from 1"):
        inspect_target(str(file), record=400)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"title": "Rootkit", "content": PROSE + " ".join(f"word{n}" for n in range(5000))}))
    way = one(path, 1)
    assert len(way.text["content"]) < SHOWN_CHARS + 40
    assert "more characters)" in way.text["content"]
    assert way.characters["content"] > 40_000


# What was prepared ---------------------------------------------------------------------------------------------------------


def found(target: str, config: RunConfig) -> list[dict[str, Any]]:
    ways: list[dict[str, Any]] = json.loads(inspect_target(target, config=config, as_json=True))
    return ways


def test_an_id_is_found_where_prepare_put_it(prepared: RunConfig) -> None:
    (way,) = found("sec-5", prepared)
    (place,) = way["prepared"]
    path = Path(place["file"])
    assert json.loads(path.read_text().splitlines()[place["line"] - 1])["id"] == "sec-5"
    assert path == Pipeline(prepared).layout.data / way["role"] / f"{way['split']}.jsonl"
    assert (way["source"], way["fate"], way["reader"]) == ("part.jsonl:12", "kept", "jsonl")


def test_a_source_is_found_too(prepared: RunConfig) -> None:
    assert [way["id"] for way in found("more.json[1]", prepared)] == ["sec-101"]
    (way,) = found("part.jsonl:3", prepared)
    assert (way["fate"], way["prepared"][0]["reason"]) == ("set aside", "not an object")
    assert found("notes/readme.txt", prepared)[0]["why"] == "no reader takes such a file"


def test_a_copy_names_what_it_is_a_copy_of(prepared: RunConfig) -> None:
    ways = {way["id"]: way for name in ("copy", "sec-1") for way in found(name, prepared)}
    (dropped,) = [way for way in ways.values() if way["prepared"][0]["file"].endswith("dropped.jsonl")]
    (kept,) = [way for way in ways.values() if way is not dropped]
    assert dropped["prepared"][0]["of"] == kept["source"]
    assert (dropped["fate"], dropped["why"]) == ("dropped", f"exact copy of {kept['source']}")
    assert kept["fate"] == "kept"
    assert "exact copy, of part.jsonl:" in inspect_target(dropped["id"], config=prepared)


def test_equal_ids_are_all_told(tmp_path: Path) -> None:
    records = [*RECORDS, {**general(3), "id": "twin"}, {**general(77), "id": "twin"}]
    packed(tmp_path / "all.tar.gz", records)
    config = configured(tmp_path)
    Pipeline(config).prepare()
    assert len(found("twin", config)) == 2
    assert len(json.loads(inspect_target("twin", config=config, limit=1, as_json=True))) == 1


def test_an_id_that_holds_a_secret_is_found_by_it(tmp_path: Path) -> None:
    packed(tmp_path / "all.tar.gz", [*RECORDS, {**general(3), "id": f"for {TOKEN}"}])
    config = configured(tmp_path)
    Pipeline(config).prepare()
    assert [way["id"] for way in found(f"for {TOKEN}", config)] == ["for [HF_TOKEN]"]


def test_an_unknown_id_tells_what_is_near(prepared: RunConfig) -> None:
    with pytest.raises(UserError, match=r"'sec-55' is neither a file nor the id or source .* Near it are: .*sec-5") as told:
        found("sec-55", prepared)
    assert "--data" in str(told.value)
    with pytest.raises(UserError, match=r"Near it are: copy"):
        found("kopi", prepared)


@pytest.mark.parametrize("target", ["x" * 5000, "a\0b", "", "../no such/file.jsonl"])
def test_any_text_is_an_unknown_id(prepared: RunConfig, target: str) -> None:
    with pytest.raises(UserError, match="is neither a file nor the id"):
        found(target, prepared)


def test_nothing_prepared_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `sysscan-models prepare` first"):
        inspect_target("sec-1", data=tmp_path)


def test_a_record_number_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--record 3 counts the records of a file, but there is no file sec-1"):
        inspect_target("sec-1", data=tmp_path, record=3)


def test_without_the_archive_the_place_is_told(prepared: RunConfig) -> None:
    data = Pipeline(prepared).layout.data
    (way,) = json.loads(inspect_target("sec-5", data=data, as_json=True))
    assert (way["fate"], way["id"], len(way["prepared"])) == ("not read", "sec-5", 1)
    assert "--archive" in way["why"]
    archive = Pipeline(prepared).archive()
    (way,) = json.loads(inspect_target("sec-5", data=data, archive=archive, as_json=True))
    assert way["fate"] == "kept"


def test_an_archive_that_changed_is_told(prepared: RunConfig) -> None:
    packed(Pipeline(prepared).archive(), RECORDS[:2])
    assert found("bread-9", prepared)[0]["fate"] == "not read"


def test_a_single_file_is_read_again(tmp_path: Path, file: Path) -> None:
    config = configured(tmp_path, f'data.archive="{file}"')
    Pipeline(config).prepare()
    assert found("sec-5", config)[0]["fate"] == "kept"
    other = file.rename(tmp_path / "another name.jsonl")
    assert found("sec-5", config)[0]["fate"] == "not read"
    data = Pipeline(config).layout.data
    assert json.loads(inspect_target("sec-5", data=data, archive=other, as_json=True))[0]["fate"] == "not read"


def test_reading_stops_where_the_document_is_found(prepared: RunConfig) -> None:
    """What is behind it may be damaged."""
    archive = Pipeline(prepared).archive()
    whole = archive.read_bytes()
    inspector = Inspector.of(prepared)
    large = packed(archive.with_name("large.tar.gz"), [*RECORDS, *({"content": PROSE * 20 + str(n)} for n in range(30_000))])
    large.write_bytes(large.read_bytes()[:-100])
    damaged = Inspector(inspector.settings, inspector.seed, inspector.data, large)
    assert damaged.of_id("sec-5")[0].fate == "kept"
    assert archive.read_bytes() == whole


# The terminal --------------------------------------------------------------------------------------------------------------


def test_the_text_fits_80_columns_and_tells_every_step(file: Path) -> None:
    told = inspect_target(str(file), limit=99)
    assert max(map(len, told.splitlines())) <= 80
    for words in (
        "part.jsonl:1  (reader jsonl)",
        "title of 39 characters, description of 60 characters",
        "redacted      [HF_TOKEN] 1",
        "quality       good",
        "role          specialist, score 1.00",
        "decided by    a label in the data",
        "because of    label: severity",
        "becomes       an example of kind `answer`:",
        '  assistant   {"analysis":',
        "result        set aside: not an object: found text",
        "2 turns",
    ):
        assert words in told, words


def test_a_document_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202eexe.txt\u2066" + "x" * 3000 + "\n" * 50 + "y\n" * 50
    path = tmp_path / "one.json"
    path.write_text(
        json.dumps({"id": hostile, "title": hostile, "content": hostile + PROSE, "family": hostile, "severity": hostile})
    )
    told = inspect_target(str(path))
    assert not set("\x1b\x07\u202e\u2066") & set(told)
    assert len(told.splitlines()) < 100


def test_no_field_can_steer_the_terminal() -> None:
    bad = "\x1b[2J\u202e"
    told = as_text([Way(bad, bad, bad, bad, bad, text={bad: bad}, turns=[{"role": "user", "content": bad}], kind="answer")])
    assert not set("\x1b\u202e") & set(told)


def test_many_lines_are_cut() -> None:
    told = as_text([Way("a.json", "kept", text={"content": "\n".join(map(str, range(50)))})])
    assert f"{'':<{LABEL}} … (43 more lines)" in told
    assert len(told.splitlines()) == 2 + SHOWN_LINES
