"""Documents that are alike: one is kept, or all stay on one side of every split and role; several processes do the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sysscan_models import splits
from sysscan_models.artifacts import Splits
from sysscan_models.config import DataOptions
from sysscan_models.corpus import JsonLinesReader
from sysscan_models.documents import Document, SetAside
from sysscan_models.errors import DataError, SysscanError, UserError
from sysscan_models.interfaces import Decision, Member, Reader, Router
from sysscan_models.roles import GENERALIST, SPECIALIST
from sysscan_models.splits import division, prepare, splits_inputs
from sysscan_models.splits.division import divide
from sysscan_models.splits.report import read_report

WORDS = [f"{first}{last}" for first in "bcdfghjklm" for last in ("ano", "eru", "ilo", "oma", "upe", "arin", "olde", "imsa")]
OPTIONS = DataOptions(valid_fraction=0.2, test_fraction=0.2)


class ByWord(Router):
    """Sends documents that speak of ports to the specialist; how sure it is stands behind `sure`."""

    name = "by-word"

    def route(self, document: Document) -> Decision:
        if document.role:
            return Decision(document.role, 1.0, ("label: role",))
        sure = next((float(word[4:]) for word in document.text.split() if word.startswith("sure0.")), 0.9)
        return Decision("specialist" if "port" in document.text.split() else "generalist", sure, ("port",))


def words(seed: int, count: int = 80) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def changed(said: list[str], count: int, seed: int = 1) -> list[str]:
    """Replace a run of words: each changes no more than two runs of three words beyond itself."""
    chance = random.Random(seed)
    start = chance.randrange(len(said) - count)
    return [*said[:start], *(f"x{chance.randrange(10**6)}y" for _ in range(count)), *said[start + count :]]


def record(said: list[str], **fields: Any) -> dict[str, Any]:
    return {"title": " ".join(said[:6]), "content": " ".join(said[6:]), **fields}


def fillers(count: int = 60) -> list[dict[str, Any]]:
    return [
        record([*words(1000 + number), *(["port"] if number % 2 else [])], id=f"filler-{number}") for number in range(count)
    ]


def run(folder: Path, records: list[dict[str, Any]], name: str = "out", **changes: Any) -> dict[str, Splits]:
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in records))
    given: dict[str, Any] = {
        "roles": [SPECIALIST, GENERALIST], "router": ByWord(), "readers": (JsonLinesReader(),), "options": OPTIONS, "seed": 17,
        **changes,
    }  # fmt: skip
    return prepare(source, folder / name, **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def places(out: Path) -> dict[str, tuple[str, str]]:
    """Return role and split of each document by its id."""
    return {
        line["id"]: (role, split)
        for role in ("specialist", "generalist")
        for split in splits.SPLITS
        for line in lines(out / role / f"{split}.jsonl")
    }


def test_of_near_copies_the_longest_is_kept(tmp_path: Path) -> None:
    said = words(1)
    records = [
        record(said, id="original"),
        record(changed(said, 3), id="changed"),
        record([*said, *WORDS[:7]], id="longest"),
        record([word.upper() for word in said], id="shouted"),
        record(words(2), id="other"),
    ]
    run(tmp_path, [*fillers(), *records])
    assert {"original", "changed", "longest", "shouted", "other"} & places(tmp_path / "out").keys() == {"longest", "other"}
    dropped = {line["id"]: line for line in lines(tmp_path / "out" / "dropped.jsonl")}
    assert dropped.keys() == {"original", "changed", "shouted"}
    assert {line["reason"] for line in dropped.values()} == {"near copy"}
    assert {line["of"] for line in dropped.values()} == {"out.jsonl:63"}
    assert 0.8 <= dropped["changed"]["similarity"] < 1
    report = read_report(tmp_path / "out")
    assert (report["near_copies"], report["duplicates"]) == (3, 0)
    assert report["near_copy_examples"][0]["kept"] == "out.jsonl:63"


def test_what_is_alike_comes_into_one_split(tmp_path: Path) -> None:
    groups = [[record(changed(words(n), 7, k), id=f"{n}-{k}") for k in range(4)] for n in range(40)]
    run(tmp_path, [*fillers(), *(one for group in groups for one in group)])
    where = places(tmp_path / "out")
    for number in range(40):
        found = {where[f"{number}-{k}"][1] for k in range(4) if f"{number}-{k}" in where}
        assert len(found) == 1, f"group {number} is divided: {found}"
    assert len(where) > 180  # they are not copies
    assert {where[f"{number}-0"][1] for number in range(40) if f"{number}-0" in where} == {"train", "valid", "test"}


def test_what_is_alike_comes_into_one_role_by_the_weight_of_all(tmp_path: Path) -> None:
    def group(seed: int, *kinds: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            record([*changed(words(seed), 7, place), *kind.split()], id=f"{seed}-{place}", **fields)
            for place, kind in enumerate(kinds)
        ]

    records = [
        *group(1, "port sure0.3", "sure0.3", "sure0.3"),
        *group(2, "port sure0.9", "sure0.2", "sure0.2"),
        *group(3, "sure0.9", "sure0.9"),
        record([*changed(words(3), 7, 9), "port"], id="3-named", role="specialist"),
    ]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    mine = {name: where[name][0] for name in where if name[0].isdigit()}
    assert mine == {"1-1": "generalist", "1-2": "generalist", "2-0": "specialist", "3-named": "specialist"}
    dropped = lines(tmp_path / "out" / "dropped.jsonl")
    assert {line["id"] for line in dropped} == {"1-0", "2-1", "2-2", "3-0", "3-1"}
    assert {line["reason"] for line in dropped} == {"near copy in the other role"}
    assert all(line["of"] for line in dropped)
    assert read_report(tmp_path / "out")["other_role"] == 5


def test_near_copies_tie_families_together(tmp_path: Path) -> None:
    records = []
    for number in range(30):
        one, other = changed(words(number), 7, 1), changed(words(number), 7, 2)
        records += [record(one, id=f"{number}-a", family=f"a{number}"), record(other, id=f"{number}-b", family=f"b{number}")]
        records += [record(words(500 + number), id=f"{number}-c", family=f"a{number}")]
        records += [record(words(600 + number), id=f"{number}-d", family=f"b{number}")]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    assert all(len({where[f"{n}-{kind}"][1] for kind in "abcd" if f"{n}-{kind}" in where}) == 1 for n in range(30))
    assert all({f"{n}-c", f"{n}-d"} <= where.keys() for n in range(30))
    assert {where[f"{n}-c"][1] for n in range(30)} == {"train", "valid", "test"}


def test_equal_documents_tie_their_families(tmp_path: Path) -> None:
    records = []
    for number in range(40):
        for family in (f"a{number}", f"b{number}"):
            records += [record(words(number), id=f"{number}-{family}", family=family)]
            records += [record(words(hash_of(family, n)), id=f"{family}-{n}", family=family) for n in range(2)]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    for number in range(40):
        mine = [name for name in where if name.startswith((f"{number}-", f"a{number}-", f"b{number}-"))]
        assert len(mine) == 5
        assert len({where[name][1] for name in mine}) == 1


def hash_of(family: str, number: int) -> int:
    return 10_000 + int(family[1:]) * 10 + number + 5 * (family[0] == "b")


def test_families_that_redaction_makes_alike_stay_apart(tmp_path: Path) -> None:
    records = [record(words(n), id=str(n), family=f"user{n % 50}@corp-example.com") for n in range(300)]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    splits_of = [{where[str(n)][1] for n in range(start, 300, 50)} for start in range(50)]
    assert all(len(found) == 1 for found in splits_of)
    assert set().union(*splits_of) == {"train", "valid", "test"}


def test_a_shared_system_prompt_makes_no_copies(tmp_path: Path) -> None:
    prompt = " ".join(words(1, 200))
    records = [
        {
            "id": str(n),
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": " ".join(words(100 + n, 8))},
                {"role": "assistant", "content": " ".join(words(1000 + n, 15))},
            ],
        }
        for n in range(300)
    ]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    assert sum(name.isdigit() for name in where) == 300
    assert {split for _, split in where.values()} == {"train", "valid", "test"}


def test_what_all_documents_share_does_not_tie_them_all_together(tmp_path: Path) -> None:
    shared = words(1, 40)
    records = [record([*shared, *words(100 + n, 25)], id=str(n)) for n in range(400)]
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    mine = [split for name, (_, split) in where.items() if name.isdigit()]
    assert len(mine) > 390
    assert min(mine.count(split) for split in splits.SPLITS) > 40
    assert read_report(tmp_path / "out")["largest_unit"] < 100


def test_a_part_comes_into_the_split_and_the_role_of_its_whole(tmp_path: Path) -> None:
    records = []
    for number in range(60):
        said = words(number, 90)
        records.append(record(said, id=f"{number}-whole"))
        records.append(record(["Quite", "another", "heading", "of", "six", "words", *said[40:]], id=f"{number}-half"))
        records.append(record([*words(300 + number, 120), *said], id=f"{number}-quoted"))
    records.append(record([*words(0, 90)[:45], "port", "sure0.3"], id="0-port"))
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    assert len([name for name in where if name[0].isdigit()]) == 180
    for number in range(60):
        assert len({where[f"{number}-{kind}"] for kind in ("whole", "half", "quoted")}) == 1
    assert {where[f"{number}-half"][1] for number in range(60)} == {"train", "valid", "test"}
    (dropped,) = lines(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["id"], dropped["reason"]) == ("0-port", "near copy in the other role")
    assert dropped["of"]


def test_a_part_of_what_has_many_copies_is_tied_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near copies count as one document: what they say is no common text."""
    monkeypatch.setattr(division, "_FEW", 200)
    records = []
    for number in range(8):
        said = words(number, 120)
        records += [record(changed(said, 1, k), id=f"{number}-{k}") for k in range(150)]
        records.append(record(said[75:], id=f"{number}-half"))
    run(tmp_path, [*fillers(), *records])
    where = places(tmp_path / "out")
    for number in range(8):
        found = {place for name, place in where.items() if name.startswith(f"{number}-")}
        assert f"{number}-half" in where
        assert len(found) == 1


def test_a_document_of_very_many_parts_unties_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "_FEW", 10)
    pairs = [(changed(words(n, 90), 7, 1), changed(words(n, 90), 7, 2)) for n in range(80)]
    records = [record(said, id=f"{n}-{k}") for n, pair in enumerate(pairs) for k, said in enumerate(pair)]
    digests = [
        record([word for one, _ in pairs[start : start + 8] for word in one], id=f"digest-{start}") for start in range(0, 80, 8)
    ]
    run(tmp_path, [*fillers(), *records, *digests])
    where = places(tmp_path / "out")
    assert sum(name[0].isdigit() for name in where) > 150
    assert all(where[f"{n}-0"] == where[f"{n}-1"] for n in range(80) if {f"{n}-0", f"{n}-1"} <= where.keys())
    assert read_report(tmp_path / "out")["largest_unit"] == 2


def test_only_exact_copies_are_dropped_if_so_asked(tmp_path: Path) -> None:
    said = words(1)
    records = [record(said, id="one"), record(said, id="two"), record([*said, "and"], id="three")]
    options = DataOptions(near_copies=1, kept_together=1)
    run(tmp_path, [*fillers(), *records], options=options)
    assert {"one", "three"} == {name for name in places(tmp_path / "out") if not name.startswith("filler")}
    with pytest.raises(ValueError, match=r"kept_together is 0\.9, above near_copies, 0\.8"):
        DataOptions(kept_together=0.9)


def test_the_order_of_documents_changes_nothing(tmp_path: Path) -> None:
    records = [*fillers(), *(record(changed(words(n), count, n), id=f"{n}-{count}") for n in range(20) for count in (1, 5, 8))]
    records += [{**one, "id": f"copy-{one['id']}"} for one in records[:10]]
    run(tmp_path, records, "one")
    run(tmp_path, random.Random(3).sample(records, len(records)), "two")

    def told(out: Path) -> list[tuple[Any, ...]]:
        return [(role, split, line["messages"]) for role in ("specialist", "generalist") for split in splits.SPLITS
                for line in lines(out / role / f"{split}.jsonl")]  # fmt: skip

    assert told(tmp_path / "one") == told(tmp_path / "two")


def test_what_repeats_held_out_data_is_left_out(tmp_path: Path) -> None:
    held = words(7, 40)
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"title": "A question", "content": " ".join(held)}) + "\n")
    records = [
        record([*words(8, 30), *held[5:19], *words(9, 30)], id="quotes"),
        record([*words(10, 30), *held[5:15], *words(11, 30)], id="quotes-too-little"),
    ]
    run(tmp_path, [*fillers(), *records], held_out=[benchmark])
    assert places(tmp_path / "out").keys() & {"quotes", "quotes-too-little"} == {"quotes-too-little"}
    assert read_report(tmp_path / "out")["held_out"] == {"benchmark.jsonl": 1}
    (dropped,) = lines(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["id"], dropped["reason"], dropped["of"]) == ("quotes", "in held-out data", "benchmark.jsonl")

    given: dict[str, Any] = {"roles": [SPECIALIST], "router": ByWord(), "readers": (JsonLinesReader(),)}
    before = splits_inputs(benchmark, OPTIONS, held_out=[benchmark], **given)
    other = tmp_path / "other.jsonl"
    other.write_text(benchmark.read_text() + "\n")
    assert before != splits_inputs(benchmark, OPTIONS, held_out=[other], **given)
    assert before != splits_inputs(benchmark, OPTIONS, **given)


def test_a_short_question_is_found_inside_a_document_and_in_remediation(tmp_path: Path) -> None:
    question = "Which option forbids root from logging in?"
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"title": question}) + "\n" + json.dumps({"content": " ".join(words(7, 40))}) + "\n")
    records = [
        {"id": "asked", "question": question, "answer": "PermitRootLogin, set to no, " + " ".join(words(1, 9))},
        record([*words(2, 30), *question.split(), *words(3, 30)], id="inside"),
        record(words(4), id="in-remediation", remediation=[" ".join(words(7, 40))]),
        record(words(5), id="clean"),
    ]
    run(tmp_path, [*fillers(), *records], held_out=[benchmark])
    assert {"asked", "inside", "in-remediation", "clean"} & places(tmp_path / "out").keys() == {"clean"}


def test_held_out_data_that_says_nothing_is_refused(tmp_path: Path) -> None:
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text('{"x": 1}\n')
    with pytest.raises(DataError, match=r"benchmark\.jsonl \(data\.held_out\) holds no document"):
        run(tmp_path, fillers(), held_out=[benchmark])
    assert not (tmp_path / "out").exists()


def test_documents_for_roles_that_are_not_configured_are_listed(tmp_path: Path) -> None:
    run(tmp_path, [*fillers(), record(words(1), id="stranger", role="critic")])
    (dropped,) = lines(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["id"], dropped["reason"], dropped["of"]) == ("stranger", "for a role that is not configured", "critic")


def test_two_runs_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    class Nested(ByWord):
        name = "nested"

        def route(self, document: Document) -> Decision:
            if document.id == "filler-3":
                with pytest.raises(UserError, match=r"another run is preparing .*out; wait until it has ended"):
                    run(tmp_path, fillers())
            return super().route(document)

    run(tmp_path, fillers(), router=Nested())
    assert len(places(tmp_path / "out")) == 60


def test_a_document_that_is_not_accounted_for_stops_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "divide", lambda *given, **named: lost(divide(*given, **named)))
    with pytest.raises(SysscanError, match=r"60 documents were read, but only 59 are accounted for"):
        run(tmp_path, fillers())
    assert not (tmp_path / "out").exists()


def lost(divided: Any) -> Any:
    divided.roles["specialist"].splits["train"] -= 1
    return divided


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    source = Path(os.fsdecode(bytes(tmp_path) + b"/arch\xff.jsonl"))
    source.write_text("".join(json.dumps(line) + "\n" for line in fillers()))
    given: dict[str, Any] = {"router": ByWord(), "readers": (JsonLinesReader(),), "options": OPTIONS, "seed": 17}
    prepare(source, tmp_path / "out", roles=[SPECIALIST, GENERALIST], **given)
    assert read_report(tmp_path / "out")["archive"] == "arch\\udcff.jsonl"


MANY = """
import resource, sys
from pathlib import Path
from sysscan_models.splits import prepare_plain
folder = Path(sys.argv[1])
value = b'{"title":"abcdefgh ijk"}' if sys.argv[2] == "documents" else b'{"a":[]}'
many = b"[" + b",".join([value] * (6_000_000 // len(value))) + b"]"
(folder / "d.json").write_bytes(many[:-1] + b',{"title":"Disable root login over SSH","content":"Set PermitRootLogin to no."}]')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_plain(folder / "d.json", folder / "out")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["documents", "empty"])
def test_a_million_tiny_records_are_not_held_at_once(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", MANY, tmp_path, kind], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250_000  # kB


# Several processes ---------------------------------------------------------------------------------------------------------


class Touchy(Reader):
    """Reads lines, but does what it is told when one says so."""

    name = "touchy"

    def reads(self, name: str) -> bool:
        return name.endswith(".jsonl")

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        for number, line in enumerate(member.stream):
            if b"fail here" in line:
                raise RuntimeError("out of ink")
            if b"die here" in line:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Document(id=str(number), content=json.loads(line)["content"], title="Note", source=f"{member.name}:{number}")


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def folder_of(path: Path, records: list[dict[str, Any]], members: int = 40) -> Path:
    path.mkdir()
    for number in range(members):
        (path / f"{number:03}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[number::members]))
    return path


def test_several_processes_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysscan_models.corpus.portions.PART_BYTES", 10_000)
    records = [
        *fillers(400),
        *fillers(9),
        {"x": 1},
        *(record(words(n), id=f"unsure-{n}", findings=["sure0.1"]) for n in range(9)),
    ]
    records += [record([*words(5), "password=Tr0ub4dor-and-3"], id="secret")]
    source = folder_of(tmp_path / "in", records)
    made = {}
    for workers in (1, 3):
        options = OPTIONS.model_copy(update={"workers": workers})
        given: dict[str, Any] = {"router": ByWord(), "readers": (JsonLinesReader(),), "options": options, "seed": 17}
        made[workers] = prepare(source, tmp_path / f"out{workers}", roles=[SPECIALIST, GENERALIST], **given)
    one, three = (
        {name: data for name, data in tree(tmp_path / f"out{workers}").items() if not name.endswith("artifact.json")}
        for workers in (1, 3)
    )
    assert one == three
    assert made[1]["specialist"].digest == made[3]["specialist"].digest
    report = json.loads(one["report.json"])
    assert (report["duplicates"], report["redacted"], report["review"]) == (9, 1, 9)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("fail here", r"reader 'touchy' failed on 003\.jsonl: RuntimeError: out of ink"),
        ("die here", r"a process that prepares documents was killed, probably because memory ran out"),
    ],
)
def test_a_worker_that_fails_ends_the_work(tmp_path: Path, says: str, message: str) -> None:
    source = folder_of(tmp_path / "in", [*fillers(40)])
    with (source / "003.jsonl").open("a") as stream:
        stream.write(json.dumps({"content": says}) + "\n")
    options = OPTIONS.model_copy(update={"workers": 2})
    with pytest.raises(SysscanError, match=message):
        prepare(source, tmp_path / "out", roles=[GENERALIST], router=ByWord(), readers=(Touchy(),), options=options, seed=17)
    assert not (tmp_path / "out").exists()


def test_a_stop_signal_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "large.jsonl"
    with source.open("w") as stream:
        for number in range(60_000):
            stream.write(json.dumps(record(words(number), id=str(number))) + "\n")
    command = [sys.executable, "-m", "sysscan_models", "prepare", str(source), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        waited = time.monotonic() + 60
        while time.monotonic() < waited and not list((tmp_path / "out").rglob("*.lines")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)  # as Ctrl-C; but not ignored where the tests run in the background
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped" in errors
    assert not (tmp_path / "out").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
