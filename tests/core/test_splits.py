"""From an archive to splits: divided for good, nothing lost uncounted, nothing half-written."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sysscan_models import splits
from sysscan_models.artifacts import Splits
from sysscan_models.config import DataOptions
from sysscan_models.corpus import JsonLinesReader, JsonReader
from sysscan_models.documents import Document, SetAside
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.interfaces import Decision, Member, Reader, Router
from sysscan_models.pipeline import current
from sysscan_models.roles import GENERALIST, SPECIALIST
from sysscan_models.routing import LinearRouter
from sysscan_models.splits import archive_digest, folders, prepare, prepare_plain, splits_inputs
from sysscan_models.splits.division import split_of
from sysscan_models.splits.report import DISTINCT_ROLES, EXAMPLES, read_report, report_text, set_aside_count

READERS = (JsonReader(), JsonLinesReader())
OPTIONS = DataOptions(valid_fraction=0.1, test_fraction=0.1)
VOCABULARY = [
    f"{first}{last}" for first in ("ka", "lo", "mi", "nu", "pe", "ro", "sa", "ti") for last in ("bel", "dor", "fin", "gam")
]
TOKEN = "hf_" + "a1B2" * 8  # of the right shape, and nobody's


def said(number: int) -> str:
    """Return words that no other document has in this order."""
    return " ".join(random.Random(number).choices(VOCABULARY, k=12))


def security(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "title": f"Backdoor {number} in a cron job",
        "description": f"Malware number {number} runs as root: {said(number)}.",
        "content": f"The rootkit hides process {number}, {said(-number - 1)}.",
        "severity": "high",
        "risk_score": 70,
        **fields,
    }


def general(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "title": f"Bread number {number}",
        "description": f"Dough {number} with flour, {said(10_000 + number)}.",
        "content": f"Bake {number} minutes, {said(-number - 10_000)}.",
        **fields,
    }


def corpus(count: int = 60) -> list[dict[str, Any]]:
    return [make(number) for number in range(count) for make in (security, general)]


def archive(path: Path, records: list[dict[str, Any]], *, members: int = 3, name: str = "part") -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for number in range(members):
            data = "".join(json.dumps(record) + "\n" for record in records[number::members]).encode()
            info = tarfile.TarInfo(f"{name}{number}.jsonl")
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return path


def run(source: Path, out: Path, **changes: Any) -> dict[str, Splits]:
    given: dict[str, Any] = {
        "roles": [SPECIALIST, GENERALIST], "router": LinearRouter(), "readers": READERS, "options": OPTIONS, "seed": 17,
        **changes,
    }  # fmt: skip
    return prepare(source, out, **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def everything(out: Path) -> list[dict[str, Any]]:
    return [
        {**line, "role": role, "split": split}
        for role in ("specialist", "generalist")
        for split in splits.SPLITS
        for line in lines(out / role / f"{split}.jsonl")
    ]


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_every_document_is_in_one_split_of_its_role(tmp_path):
    made = run(archive(tmp_path / "a.tar.gz", corpus()), tmp_path / "out")
    found = everything(tmp_path / "out")
    assert len(found) == 120 == len({line["id"] for line in found})
    for role, title in (("specialist", "Backdoor"), ("generalist", "Bread")):
        assert made[role].role == role
        mine = [line for line in found if line["role"] == role]
        assert all(line["messages"][1]["content"].startswith(title) for line in mine)
        assert made[role].counts == {split: sum(line["split"] == split for line in mine) for split in splits.SPLITS}
        assert made[role].kinds == {"answer": 60}
        assert min(made[role].counts.values()) > 0
        assert made[role].train == tmp_path / "out" / role / "train.jsonl"
        made[role].check_files(contents=True)
    assert found[0].keys() - {"role", "split"} == {"id", "source", "kind", "messages"}
    assert found[0]["source"].startswith("part")
    assert made["specialist"].dataset_digest == made["generalist"].dataset_digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_report.html", "dropped.jsonl", "generalist", "report.json", "review.jsonl", "set_aside.jsonl", "specialist",
    ]  # fmt: skip


def test_the_order_of_members_and_records_changes_nothing(tmp_path):
    records = corpus(40) + [security(number, family=f"f{number % 5}", id=f"x{number}") for number in range(100, 140)]
    records += records[:7]  # duplicates
    shuffled = random.Random(3).sample(records, len(records))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder, order in (("one", records), ("two", shuffled)):
        for index, record in enumerate(order):
            (tmp_path / folder / f"{index:03}.json").write_text(json.dumps(record))
    (one, two) = (run(tmp_path / folder, tmp_path / f"out-{folder}") for folder in ("one", "two"))
    strip = lambda line: {key: value for key, value in line.items() if key != "source"}  # noqa: E731 - files are named by order here
    assert [strip(line) for line in everything(tmp_path / "out-one")] == [
        strip(line) for line in everything(tmp_path / "out-two")
    ]
    assert one["specialist"].dataset_digest == two["specialist"].dataset_digest


def test_members_in_another_order_give_the_same_bytes(tmp_path):
    records = corpus(30)
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as packed:
            for number in order:
                data = "".join(json.dumps(record) + "\n" for record in [*records[number::3], records[0]]).encode()
                info = tarfile.TarInfo(f"{number}.jsonl")
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
        run(tmp_path / f"{name}.tar", tmp_path / name)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_the_seed_changes_the_split_and_nothing_else(tmp_path):
    source = archive(tmp_path / "a.tar.gz", corpus())
    run(source, tmp_path / "one", seed=1)
    run(source, tmp_path / "two", seed=2)
    one, two = ({line["id"]: line for line in everything(tmp_path / name)} for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any(one[name]["split"] != two[name]["split"] for name in one)
    assert all(one[name]["messages"] == two[name]["messages"] for name in one)


def test_families_are_never_divided_and_late_documents_move_none(tmp_path):
    records = [security(number, family=f"family-{number % 25}") for number in range(200)] + corpus(20)
    run(archive(tmp_path / "a.tar.gz", records), tmp_path / "small")
    where: dict[str, set[str]] = {}
    for line in everything(tmp_path / "small"):
        where.setdefault(line.get("family", line["id"]), set()).add(line["split"])
    assert all(len(found) == 1 for found in where.values())
    assert {"train", "valid", "test"} == set().union(*where.values())
    run(archive(tmp_path / "b.tar.gz", [*records, *(security(number) for number in range(900, 950))]), tmp_path / "large")
    later = {line["id"]: line["split"] for line in everything(tmp_path / "large")}
    assert all(later[line["id"]] == line["split"] for line in everything(tmp_path / "small"))


def test_exact_duplicates_are_removed_and_the_one_with_a_family_is_kept(tmp_path):
    records = [*corpus(20), security(3), security(3, id="other"), security(3, family="f", id="zz"), general(5)]
    run(archive(tmp_path / "a.tar.gz", records, members=1), tmp_path / "out")
    found = everything(tmp_path / "out")
    assert len(found) == 40
    assert [line["id"] for line in found if line.get("family")] == ["zz"]
    report = read_report(tmp_path / "out")
    assert (report["read"], report["kept"], report["duplicates"]) == (44, 40, 4)
    assert {"kept": "part0.jsonl:43", "dropped": "part0.jsonl:7"} in report["duplicate_examples"]


def test_kinds_follow_the_contract(tmp_path):
    turns = [{"role": "user", "content": "What hides it?"}, {"role": "assistant", "content": "A rootkit."}]
    records = [
        *corpus(10),
        {"title": "Rootkit backdoor", "description": "Malware."},
        {"content": "Only malware, a rootkit and a backdoor."},
        {"messages": turns, "role": "specialist"},
    ]
    made = run(
        archive(tmp_path / "a.tar.gz", records), tmp_path / "out", options=DataOptions(valid_fraction=0, test_fraction=0)
    )
    assert made["specialist"].kinds == {"answer": 10, "messages": 1, "text": 1, "title": 1}
    by_kind = {line["kind"]: line for line in lines(made["specialist"].train)}
    assert by_kind["text"]["text"] == "Only malware, a rootkit and a backdoor."
    assert "messages" not in by_kind["text"]
    assert by_kind["messages"]["messages"] == turns
    notes = read_report(tmp_path / "out")["notes"]
    assert notes[0] == "specialist: the valid split is empty; give more documents or a larger data.valid_fraction"
    assert notes[0] in " ".join(report_text(tmp_path / "out").split())


def test_secrets_are_in_no_file(tmp_path):
    records = [
        *corpus(10),
        security(
            90, title=f"Token {TOKEN}", content=f"see {TOKEN}", findings=[TOKEN], remediation=[f"revoke {TOKEN}"], id=TOKEN
        ),
        general(91, family=TOKEN),
        {"messages": [{"role": "assistant", "content": TOKEN}], "role": TOKEN},
        {"title": 1, "content": {TOKEN: 1}},
        {TOKEN: 1},
        {"title": "Service account", "description": f"daemon {TOKEN}"},
    ]
    run(archive(tmp_path / "a.tar.gz", records, name=f"{TOKEN}-"), tmp_path / "out", router=LinearRouter(threshold=0.3))
    written = b"".join(tree(tmp_path / "out").values()) + report_text(tmp_path / "out").encode()
    assert TOKEN.encode() not in written
    assert b"[HF_TOKEN]" in written
    assert read_report(tmp_path / "out")["redacted"] == 24  # the members' names hold it too


def test_the_report_accounts_for_every_record(tmp_path):
    records = [*corpus(20), general(90, role="critic"), {"x": 1}, {"title": {}}, {"title": []}, security(1)]
    source = archive(tmp_path / "a.tar.gz", records)
    run(source, tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert report["read"] == 42 == report["kept"] + report["duplicates"] + sum(report["role_not_configured"].values())
    assert report["role_not_configured"] == {"critic": 1}
    assert {reason: found["count"] for reason, found in report["set_aside"].items()} == {
        "empty document": 2, "field of the wrong type": 1,
    }  # fmt: skip
    assert set_aside_count(tmp_path / "out") == 3 == len(lines(tmp_path / "out" / "set_aside.jsonl"))
    assert report["set_aside"]["field of the wrong type"]["examples"][0]["detail"] == "title is an object, expected text"
    assert report["routing"]["specialist"]["terms"]["label: severity"] == 21
    assert report["roles"]["specialist"]["kinds"] == {"answer": 20}
    assert report["archive_sha256"] == archive_digest(source)
    text = report_text(tmp_path / "out")
    for part in (
        "read ",
        "duplicates ",
        "set aside ",
        "empty document ",
        "for critic, which is no role here",
        "specialist ",
        "answer 20",
    ):
        assert part in text
    assert str(tmp_path / "out" / "set_aside.jsonl") in text


def test_the_report_names_only_some_and_the_list_all(tmp_path):
    run(archive(tmp_path / "a.tar.gz", [*corpus(10), *({"x": number} for number in range(30))]), tmp_path / "out")
    assert len(read_report(tmp_path / "out")["set_aside"]["empty document"]["examples"]) == EXAMPLES
    assert len(lines(tmp_path / "out" / "set_aside.jsonl")) == 30


def test_endless_names_of_roles_are_counted_together_and_cannot_steer_a_terminal(tmp_path):
    strangers = [general(900 + n, role=f"stranger {n} \u202e") for n in range(80)]
    run(archive(tmp_path / "a.tar.gz", [*strangers, *corpus()]), tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert 1 < len(report["role_not_configured"]) <= DISTINCT_ROLES
    assert sum(report["role_not_configured"].values()) == 80
    assert {"specialist", "generalist"} <= report["routing"].keys()
    text = report_text(tmp_path / "out")
    assert "for other names, which is no role here" in text
    assert "\u202e" not in text


def test_documents_near_the_threshold_are_listed_for_review(tmp_path):
    class Unsure(Router):
        name = "unsure"

        def route(self, document: Document) -> Decision:
            score = 0.1 if document.title.endswith("7") else 0.9
            return Decision("generalist" if "Bread" in document.title else "specialist", score, ("because",))

    run(archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out", router=Unsure())
    review = lines(tmp_path / "out" / "review.jsonl")
    assert {line["title"] for line in review} == {"Bread number 7", "Bread number 17"}
    assert review[0].keys() == {"id", "source", "title", "role", "score", "reasons"}
    assert read_report(tmp_path / "out")["review"] == 2
    assert "review (near the threshold)" in report_text(tmp_path / "out")


def test_one_role_alone_takes_its_own_documents(tmp_path):
    made = run(archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out", roles=[GENERALIST])
    assert made.keys() == {"generalist"}
    assert sum(made["generalist"].counts.values()) == 20
    assert read_report(tmp_path / "out")["role_not_configured"] == {"specialist": 20}
    assert not (tmp_path / "out" / "specialist").exists()


def test_roles_with_other_names(tmp_path):
    hunter = replace(SPECIALIST, name="hunter")
    made = run(
        archive(tmp_path / "a.tar.gz", [*corpus(20), security(90, role="hunter")]),
        tmp_path / "out",
        roles=[hunter, GENERALIST],
        router=LinearRouter(roles={"security": "hunter"}),
    )
    assert sum(made["hunter"].counts.values()) == 21


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (
            [security(number) for number in range(20)],
            ["no training example for generalist: 20 documents were read", "(20 to specialist;", '"role": "generalist"'],
        ),
        ([{"x": 1}], ["0 documents were read", "1 records were set aside (empty document 1)", "title, description, content"]),
    ],
)
def test_a_role_without_training_examples_is_refused(tmp_path, records, found):
    with pytest.raises(DataError) as error:
        run(archive(tmp_path / "a.tar.gz", records, members=1), tmp_path / "out")
    for part in found:
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_role_whose_documents_are_all_held_out_is_refused(tmp_path):
    options = DataOptions(valid_fraction=0.4, test_fraction=0.4)
    held_out = next(name for name in map(str, range(99)) if split_of("", name, 17, options) != "train")
    records = [*corpus(20), *(security(number, family=held_out, role="generalist") for number in range(100, 103))]
    source = archive(tmp_path / "a.tar.gz", [record for record in records if "Bread" not in record["title"]])
    with pytest.raises(DataError, match=r"no training example for generalist.*lower data\.valid_fraction"):
        run(source, tmp_path / "out", options=options)


class Failing(Reader):
    """Reads what the reader of lines reads, and then fails in the given way."""

    name = "failing"

    def reads(self, name: str) -> bool:
        return name.endswith("2.jsonl")

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        yield from JsonLinesReader().read(member)
        raise KeyboardInterrupt


@pytest.mark.parametrize("failure", ["truncated", "interrupted", "disk"])
def test_a_failure_leaves_the_former_result_as_it_was(tmp_path, monkeypatch, failure):
    source, out = archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out"
    run(source, out)
    before = tree(out)
    other = archive(tmp_path / "b.tar.gz", corpus(30))
    expected: type[BaseException] = KeyboardInterrupt
    readers: tuple[Reader, ...] = (Failing(), *READERS)
    if failure == "truncated":
        other.write_bytes(other.read_bytes()[:-200])
        expected, readers = DataError, READERS
    elif failure == "disk":
        monkeypatch.setattr(splits, "synced", no_space)
        expected, readers = SysscanError, READERS
    with pytest.raises(expected) as error:
        run(other, out, readers=readers)
    assert tree(out) == before
    if failure == "disk":
        assert "No space left on device. What was there before is unchanged" in str(error.value)


def no_space(path: Path) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_while_publishing_puts_the_former_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(archive(tmp_path / "a.tar.gz", corpus(20)), out)
    before = {name: data for name, data in tree(out).items() if "/" in name}
    whole = folders.publish

    def interrupted(temporary: Path, path: Path) -> None:
        if path.name == "specialist":
            raise KeyboardInterrupt
        whole(temporary, path)

    monkeypatch.setattr(folders, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(archive(tmp_path / "b.tar.gz", corpus(30)), out)
    assert {name: data for name, data in tree(out).items() if "/" in name} == before


def test_remains_of_a_killed_run_are_mended(tmp_path):
    source, out = archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out"
    run(source, out)
    before = tree(out)
    (out / "specialist").rename(out / ".specialist.old")  # killed between the two renames
    (out / ".prepare" / "spool").mkdir(parents=True)
    (out / ".prepare" / "spool" / "000").write_bytes(b"half")
    with pytest.raises(DataError):
        run(archive(tmp_path / "empty.tar.gz", [{"x": 1}]), out)
    assert tree(out) == before


def test_a_second_run_replaces_the_first_and_makes_the_same_bytes(tmp_path):
    source, out = archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out"
    first = run(source, out)
    before = {name: data for name, data in tree(out).items() if not name.endswith("artifact.json")}
    second = run(source, out)
    assert {name: data for name, data in tree(out).items() if not name.endswith("artifact.json")} == before
    assert first["specialist"].digest == second["specialist"].digest


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    source, out = archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out"
    (out / "specialist").mkdir(parents=True)
    (out / "specialist" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds what prepare did not write: thesis\.tex"):
        run(source, out)
    assert tree(out) == {"specialist/thesis.tex": b"years of work"}
    with pytest.raises(UserError, match="is a file; the splits need a folder"):
        run(source, out / "specialist" / "thesis.tex")


def test_reading_what_is_written_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus(20)))
    with pytest.raises(UserError, match="inside what is read"):
        run(folder, folder / "out")
    run(folder, tmp_path)
    with pytest.raises(UserError, match="inside what is read"):
        run(tmp_path / "specialist", tmp_path)


def test_the_artifact_is_keyed_by_splits_inputs(tmp_path):
    source, out = archive(tmp_path / "a.tar.gz", corpus(20)), tmp_path / "out"
    made = run(source, out)
    given: dict[str, Any] = {"router": LinearRouter(), "readers": READERS, "roles": [SPECIALIST, GENERALIST]}
    inputs, options = splits_inputs(source, OPTIONS, **given)
    for name in made:
        assert current(Splits, out / name, inputs, options, role=name, seed=17) is not None
        assert current(Splits, out / name, inputs, options, role=name, seed=18) is None

    def differs(where: Path = source, options: DataOptions = OPTIONS, **changes: Any) -> bool:
        inputs, keyed = splits_inputs(where, options, **{**given, **changes})
        return current(Splits, out / "specialist", inputs, keyed, role="specialist", seed=17) is None

    copy = tmp_path / "elsewhere.tar.gz"
    copy.write_bytes(source.read_bytes())
    assert not differs(where=copy)
    assert not differs(options=OPTIONS.model_copy(update={"archive": "elsewhere.tar.gz"}))
    assert differs(where=archive(tmp_path / "b.tar.gz", corpus(21)))
    assert differs(options=OPTIONS.model_copy(update={"valid_fraction": 0.2}))
    assert differs(router=LinearRouter(threshold=0.6))
    assert differs(readers=READERS[:1])
    assert differs(roles=[SPECIALIST])
    assert differs(roles=[replace(SPECIALIST, system_prompt="Answer."), GENERALIST])
    assert not differs(roles=[GENERALIST, SPECIALIST])


def test_a_folder_is_keyed_by_names_and_contents(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.json").write_text("1")
    (folder / "sub" / "b.json").write_text("2")
    digests = [archive_digest(folder)]
    (folder / "sub" / "b.json").write_text("33")
    digests.append(archive_digest(folder))
    (folder / "sub" / "b.json").rename(folder / "c.json")
    digests.append(archive_digest(folder))
    (folder / "d.json").symlink_to("/etc/passwd")
    digests.append(archive_digest(folder))
    os.mkfifo(folder / "pipe")
    digests.append(archive_digest(folder))
    assert len(set(digests)) == 5
    with pytest.raises(DataError, match="does not exist"):
        archive_digest(tmp_path / "nothing")


def test_prepare_plain_needs_no_configuration(tmp_path):
    source = tmp_path / "data.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in corpus(40)).encode()))
    made = prepare_plain(source, tmp_path / "deep" / "out")
    assert {name: sum(splits.counts.values()) for name, splits in made.items()} == {"specialist": 40, "generalist": 40}


def test_a_report_that_is_missing_or_damaged_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no readable report\.json.*run `sysscan-models prepare` first"):
        report_text(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UserError, match="is not a report"):
        set_aside_count(tmp_path)
