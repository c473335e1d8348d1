"""Hostile and ordinary archives, built in memory, and what becomes of their records."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysscan_models.config import DataOptions
from sysscan_models.corpus import (
    JsonLinesReader,
    JsonReader,
    Part,
    ReportReader,
    SyntheticReader,
    containers,
    document,
    packed_bytes,
    parts,
    read_documents,
    read_part,
    walk,
)
from sysscan_models.corpus.fields import CONTROL, HIDDEN, clean
from sysscan_models.corpus.portions import _blocks as cut_up
from sysscan_models.documents import Document, SetAside, content_hash
from sysscan_models.errors import DataError, SysscanError
from sysscan_models.interfaces import Member, Reader

READERS = (ReportReader(), SyntheticReader(), JsonReader(), JsonLinesReader())
OPTIONS = DataOptions()


def doc(number: int = 0, **fields: object) -> dict[str, object]:
    return {"title": f"Title {number}", "description": f"Description {number}", "content": f"Content {number}", **fields}


def tar(*entries: tuple[tarfile.TarInfo | str, bytes], **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:  # type: ignore[call-overload]
        for entry, data in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def gzipped(data: bytes, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)  # the same bytes at every collection


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(
    path: Path, options: DataOptions = OPTIONS, readers: tuple[Reader, ...] = READERS
) -> tuple[list[Document], list[SetAside]]:
    found = list(read_documents(path, readers, options))
    return [item for item in found if isinstance(item, Document)], [item for item in found if isinstance(item, SetAside)]


def put(tmp_path: Path, data: bytes, name: str = "massive_datasets.tar.gz") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


PACKED = pytest.mark.parametrize("pack", [bytes, gzipped, bz2.compress, lzma.compress], ids=["plain", "gzip", "bzip2", "xz"])


def reasons(aside: list[SetAside]) -> list[tuple[str, str]]:
    return [(entry.source, entry.reason) for entry in aside]


@PACKED
def test_reads_tar_archives_by_content_whatever_they_are_called(tmp_path, pack):
    data = tar(("a/one.json", json.dumps(doc(1)).encode()), ("b.jsonl", lines(doc(2), doc(3))))
    documents, aside = read(put(tmp_path, pack(data), "dataset.bin"))
    assert [(document.title, document.source) for document in documents] == [
        ("Title 1", "a/one.json"), ("Title 2", "b.jsonl:1"), ("Title 3", "b.jsonl:2"),
    ]  # fmt: skip
    assert aside == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", lines(doc(1), doc(2))),
        ("x.jsonl.gz", gzipped(lines(doc(1), doc(2)))),
        ("x.json", json.dumps([doc(1), doc(2)]).encode()),
        ("x.json.gz", gzipped(json.dumps({"meta": {"n": 2}, "data": [doc(1), doc(2)]}).encode())),
        ("x.json", lines(doc(1), doc(2))),
        ("x.ndjson", b"\xef\xbb\xbf\n" + lines(doc(1), doc(2)).replace(b"\n", b"\r\n")),
    ],
    ids=["lines", "lines-gz", "list", "wrapper-gz", "lines-as-json", "bom-and-crlf"],
)
def test_reads_single_files(tmp_path, name, data):
    documents, aside = read(put(tmp_path, data, name))
    assert [document.title for document in documents] == ["Title 1", "Title 2"]
    assert {entry.reason for entry in aside} <= {"empty file"}  # the line that is only a byte order mark


def test_reads_a_folder_in_order_without_following_links(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.json").write_text(json.dumps(doc(2)))
    (folder / "a.jsonl.gz").write_bytes(gzipped(lines(doc(1))))
    (folder / "sub" / "c.json").write_text(json.dumps(doc(3)))
    (folder / "notes.txt").write_text("hello")
    (folder / "old.tar.gz").write_bytes(b"x")
    (folder / "link.json").symlink_to(folder / "b.json")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.json")
    documents, aside = read(folder)
    assert [document.source for document in documents] == ["a.jsonl:1", "b.json", "sub/c.json"]
    assert reasons(aside) == [
        ("link.json", "symbolic link"),
        ("loop", "symbolic link"),
        ("notes.txt", "no reader takes such a file"),
        ("old.tar.gz", "nested archive"),
        ("pipe.json", "device, fifo or socket"),
    ]


def test_sets_unsafe_members_aside_and_reads_the_rest(tmp_path):
    good = json.dumps(doc()).encode()
    data = tar(
        ("./ok.json", good),
        ("../escape.json", good),
        ("a/../../b.json", good),
        ("/etc/passwd.json", good),
        ("C:\\x\\a.json", good),
        ("..\\up.json", good),
        ("bell\a.json", good),
        ("ok.json", good),
        special("sym.json", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.json", tarfile.LNKTYPE, "ok.json"),
        special("fifo.json", tarfile.FIFOTYPE),
        special("null.json", tarfile.CHRTYPE),
        special("disk.json", tarfile.BLKTYPE),
        special("folder", tarfile.DIRTYPE),
        ("inner.tar.gz", b"x"),
        ("image.png", b"x"),
        ("last.json", json.dumps(doc(9)).encode()),
    )
    documents, aside = read(put(tmp_path, data))
    assert [document.source for document in documents] == ["ok.json", "last.json"]
    assert reasons(aside) == [
        ("../escape.json", "path leaves the archive"),
        ("a/../../b.json", "path leaves the archive"),
        ("/etc/passwd.json", "absolute path"),
        ("C:\\x\\a.json", "absolute path"),
        ("..\\up.json", "path leaves the archive"),
        ("bell\\x07.json", "control character in the name"),
        ("ok.json", "repeated name"),
        ("sym.json", "symbolic link"),
        ("hard.json", "hard link"),
        ("fifo.json", "device, fifo or socket"),
        ("null.json", "device, fifo or socket"),
        ("disk.json", "device, fifo or socket"),
        ("inner.tar.gz", "nested archive"),
        ("image.png", "no reader takes such a file"),
    ]


def test_a_sparse_member_is_set_aside_whatever_size_it_claims(tmp_path):
    info = tarfile.TarInfo("sparse.json")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(1 << 50),
    }
    documents, aside = read(put(tmp_path, tar((info, b"x"), ("a.json", json.dumps(doc()).encode()), format=tarfile.PAX_FORMAT)))
    assert len(documents) == 1
    assert reasons(aside) == [("sparse.json", "sparse file")]


def test_long_and_unicode_names_are_read(tmp_path):
    names = ["d/" * 90 + "x.json", "ünï/文書.json"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = tar(*((name, json.dumps(doc(number)).encode()) for number, name in enumerate(names)), format=kind)
        assert [document.source for document in read(put(tmp_path, data))[0]] == names


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is empty"),
        (gzipped(b""), "neither a tar archive nor text"),
        (b"PK\x03\x04" + bytes(600), "a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "a zstd file"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (random.Random(1).randbytes(64) + bytes(10), "neither a tar archive nor text"),
        (b"hello", "b'hello'"),
        (bytes(10240), "holds no file"),
        (tar(special("only", tarfile.DIRTYPE)), "holds no file"),
    ],
    ids=["empty", "gzip-of-nothing", "zip", "zstd", "web-page", "git-lfs", "noise", "text", "end-marker-only", "folder-only"],
)
def test_what_is_no_archive_is_refused_with_what_was_found_and_expected(tmp_path, data, found):
    with pytest.raises(DataError, match="expected a tar archive") as error:
        read(put(tmp_path, data))
    assert found in str(error.value)


def test_a_missing_archive_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist; expected a tar archive"):
        read(tmp_path / "nothing.tar.gz")
    with pytest.raises(DataError, match="holds no file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path / "pipe")


def archive_of(count: int = 40) -> bytes:
    # random text, so that the compressed stream is long enough to be cut anywhere
    contents = [random.Random(number).randbytes(2000).hex() for number in range(count)]
    return tar(*((f"{number}.json", json.dumps(doc(number, content=text)).encode()) for number, text in enumerate(contents)))


@PACKED
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, pack, share):
    data = pack(archive_of())
    with pytest.raises(DataError, match="damaged or truncated"):
        read(put(tmp_path, data[: int(len(data) * share)]))


def test_a_plain_archive_cut_between_two_members_is_refused(tmp_path):
    data = tar(("a.json", json.dumps(doc()).encode()), ("b.json", json.dumps(doc()).encode()))
    with pytest.raises(DataError, match="without the end marker"):
        read(put(tmp_path, data[:1024]))


def test_flipped_bits_are_refused_by_the_checksum(tmp_path):
    data = bytearray(gzipped(archive_of(), level=0))
    data[data.index(b"Title 20")] ^= 0x10
    with pytest.raises(DataError, match="CRC check failed"):
        read(put(tmp_path, bytes(data)))


def test_a_bad_header_in_the_middle_is_refused_and_not_taken_for_the_end(tmp_path):
    data = bytearray(archive_of(3))
    second = data.index(b"1.json")
    data[second + 100] ^= 1
    with pytest.raises(DataError, match="checksum of a tar header is wrong"):
        read(put(tmp_path, bytes(data)))


def test_garbage_behind_the_compressed_stream_is_refused(tmp_path):
    with pytest.raises(DataError, match="something else was appended"):
        read(put(tmp_path, gzipped(archive_of(1)) + b"garbage"))


def test_data_behind_the_end_marker_is_set_aside(tmp_path):
    documents, aside = read(put(tmp_path, gzipped(archive_of(1) + archive_of(1))))
    assert len(documents) == 1
    assert [entry.reason for entry in aside] == ["data behind the end of the archive"]
    assert "joined with cat" in aside[0].detail


def header(**fields: object) -> bytes:
    info = tarfile.TarInfo(str(fields.pop("name", "x.json")))
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


SPARSE_MAP_WITHOUT_END = (
    header(type=tarfile.XHDTYPE, size=512)
    + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n".ljust(512, b"\0")
    + header(size=512)
    + b"9" * 512
)


@pytest.mark.parametrize(
    "head",
    [
        header(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33) + bytes(1 << 21),
        header(type=tarfile.XHDTYPE, size=1 << 33) + bytes(1 << 21),
        header(size=-1024) + bytes(1024),
        header(type=tarfile.GNUTYPE_LONGNAME, size=3) * 5000,
        header(type=tarfile.XHDTYPE, size=512) + b"99999999999999999999 a=b\n".ljust(512, b"\0") + header(),
        SPARSE_MAP_WITHOUT_END,
    ],
    ids=["endless-long-name", "endless-pax", "negative-size", "endless-chain", "huge-pax-record", "endless-sparse-map"],
)  # fmt: skip
def test_hostile_headers_are_refused(tmp_path, head):
    with pytest.raises(DataError, match="damaged or truncated"):
        read(put(tmp_path, tar(("ok.json", b"{}"))[:1024] + head + bytes(1024)))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["long-name", "pax"])
def test_headers_are_not_read_into_memory_whatever_their_size(tmp_path, kind):
    huge = header(type=kind, size=4 << 20) + b"a" * (4 << 20) + header()
    with pytest.raises(DataError, match="headers of one member take more than 1,048,576 bytes"):
        read(put(tmp_path, gzipped(tar(("ok.json", b"{}"))[:1024] + huge + bytes(1024))))


def test_a_member_that_claims_more_than_there_is_ends_as_an_error(tmp_path):
    with pytest.raises(DataError, match="in the middle of a member"):
        read(put(tmp_path, header(size=1 << 20) + b'{"title": "a"}' + bytes(2000)))


def test_limits_refuse_the_archive_and_name_the_option(tmp_path):
    path = put(tmp_path, gzipped(archive_of(20)))
    with pytest.raises(DataError, match=r"more than 5 members.*data.max_members"):
        read(path, DataOptions(max_members=5))
    with pytest.raises(DataError, match=r"unpacks to more than 9,000 bytes.*data.max_total_bytes"):
        read(path, DataOptions(max_total_bytes=9000))


def test_a_member_beyond_the_limit_is_set_aside(tmp_path):
    data = tar(("big.json", json.dumps(doc(content="x" * 5000)).encode()), ("small.json", json.dumps(doc()).encode()))
    documents, aside = read(put(tmp_path, data), DataOptions(max_member_bytes=1000))
    assert [document.source for document in documents] == ["small.json"]
    assert [(entry.source, entry.reason, entry.detail[-5:]) for entry in aside] == [("big.json", "member too large", "bytes")]


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.tar.gz"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path, monkeypatch, name):
    monkeypatch.setattr(containers, "RATIO_FREE_BYTES", 1 << 20)
    zeros = b"0" * (8 << 20)
    data = zeros if name == "bomb.jsonl.gz" else tar(("zeros.jsonl", zeros))
    with pytest.raises(DataError, match=r"more than 100 times as many.*data.max_ratio"):
        read(put(tmp_path, gzipped(data), name), DataOptions(max_ratio=100))


def test_many_members_are_walked_without_being_kept(tmp_path):
    info = header(size=2) + b"{}".ljust(512, b"\0")
    path = put(tmp_path, gzipped(info * 20_000 + bytes(1024)))
    aside = Counter(entry.reason for entry in walk(path, OPTIONS) if isinstance(entry, SetAside))
    assert aside == {"repeated name": 19_999}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b" \n ", "empty file"),
        (b'{"title": ', "not JSON"),
        (b'{"title": "a"} {"title": "b"}', "not JSON"),
        (b"nonsense", "not JSON"),
        (b"[]", "empty list"),
        (b"3", "not an object"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
        (json.dumps(doc()).encode("utf-16-le"), "not JSON"),
        (b'{"title": "caf\xe9"}', "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": 1}', "empty document"),
        (b'{"title": " \\u0000 "}', "empty document"),
        (b"{}", "empty document"),
    ],
    ids=[
        "empty", "blank", "cut-off", "two-objects", "no-json", "empty-list", "number", "null", "text",
        "utf-16", "latin-1", "deep-open", "deep-closed", "unknown-keys", "control-character", "empty-object",
    ],
)  # fmt: skip
def test_a_json_member_that_is_no_document_is_set_aside(tmp_path, data, reason):
    documents, aside = read(put(tmp_path, tar(("x.json", data))))
    assert documents == []
    assert reasons(aside) == [("x.json", reason)]


def test_leniently_read_values(tmp_path):
    data = (
        b'{"title": "one", "risk_score": NaN, "techniques": null}\n'
        b'{"title": "two\\ud800", "risk_score": ' + b"9" * 5000 + b"}\n"
        b'{"title": "three\tx", "title": "last wins"}\n'
        b'{"title": 12345678901234567890123, "content": 1.5}\n'
    )
    documents, aside = read(put(tmp_path, data, "x.jsonl"))
    assert aside == []
    assert [document.title for document in documents] == ["one", "two\ufffd", "last wins", "1.2345678901234568e+22"]
    assert all(dict(document.labels) == {} for document in documents)
    assert documents[3].content == "1.5"


def test_lines_are_bounded_and_the_next_one_is_read(tmp_path):
    data = lines(doc(1), doc(2, content="x" * 5000), doc(3)) + b"[1]\n" + b'{"title": "no newline"}'
    documents, aside = read(put(tmp_path, data, "x.jsonl"), DataOptions(max_record_bytes=1000))
    assert [document.source for document in documents] == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:5"]
    assert reasons(aside) == [("x.jsonl:2", "record too large"), ("x.jsonl:4", "not an object")]


def test_a_list_larger_than_a_record_is_read_element_by_element(tmp_path):
    records = [doc(number, content="y" * 900 + "é") for number in range(300)]
    for indent in (None, 2):
        data = b"\xef\xbb\xbf " + json.dumps(records, indent=indent).encode()
        documents, aside = read(put(tmp_path, data, "x.json"), DataOptions(max_record_bytes=1500))
        assert [document.title for document in documents] == [record["title"] for record in records]
        assert (aside, documents[299].source) == ([], "x.json[299]")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (b', {"title": "' + b"z" * 400_000 + b'"}]', "record too large"),
        (b', {"title": ', "not JSON"),
        (b', {"title": "\xe9"}]', "not UTF-8 text"),
        (b", " + b"[" * 200_000, "nested too deeply"),
    ],
    ids=["too-large", "cut-off", "latin-1", "deep"],
)
def test_a_large_list_that_goes_wrong_keeps_what_came_before(tmp_path, end, reason):
    data = json.dumps([doc(number) for number in range(100)]).encode()[:-1] + end
    documents, aside = read(put(tmp_path, data, "x.json"), DataOptions(max_record_bytes=4000))
    assert reasons(aside) == [(aside[0].source, reason)]
    assert "the rest of the list was not read" in aside[0].detail
    assert reason == "not UTF-8 text" or (len(documents), aside[0].source) == (100, "x.json[100]")


def test_a_large_single_object_is_set_aside(tmp_path):
    options = DataOptions(max_record_bytes=1000)
    for indent in (None, 2):  # lines of a value are not taken for values
        data = json.dumps({**doc(), "more": ["x"] * 900}, indent=indent).encode()
        _, aside = read(put(tmp_path, data, "x.json"), options)
        assert reasons(aside) == [("x.json", "record too large")]
        assert "data.max_record_bytes may be raised" in aside[0].detail
    documents, aside = read(put(tmp_path, lines(*map(doc, range(50))), "x.json"), options)
    assert (len(documents), aside) == (50, [])


def test_all_known_fields_reach_the_document():
    made = document(
        doc(
            id=7, findings=["one", 2, {"title": "three", "description": "more"}, None], severity="High", risk_score="78",
            techniques="T1548.001", controls=["NIST SP 800-53 AC-6"], remediation="chmod u-s",
            family=" suid  x ", role="Specialist",
            unknown={"x": 1},
        ),
        "a:1",
    )  # fmt: skip
    assert isinstance(made, Document)
    assert (made.id, made.family, made.role, made.source) == ("7", "suid x", "specialist", "a:1")
    assert made.findings == ("one", "2", "three: more")
    assert made.labels == {
        "severity": "high", "risk_score": 78, "techniques": ["T1548.001"], "controls": ["NIST SP 800-53 AC-6"],
        "remediation": ["chmod u-s"],
    }  # fmt: skip


@pytest.mark.parametrize("bad", [["a"], {"a": 1}, True, None, float("nan"), []])
def test_an_id_a_family_or_a_label_that_cannot_be_used_is_left_out(bad):
    fields = dict.fromkeys(("family", "role", "severity", "risk_score"), bad)
    made = document(doc(id=bad, controls=[bad, "AC-6"], **fields), "x:1")
    assert isinstance(made, Document)
    assert made.id == content_hash(made)[:16]
    assert (made.family, made.role) == ("", "")
    assert {"severity", "risk_score"}.isdisjoint(made.labels)
    assert "AC-6" in made.labels["controls"]


@pytest.mark.parametrize(
    ("record", "title", "content"),
    [
        ({"text": "Long."}, "", "Long."),
        ({"text": ["Long.", "Longer."]}, "", "Long.\nLonger."),
        ({"title": "A", "text": "Long."}, "A", "Long."),
        ({"text": "Short.", "content": "Long."}, "", "Long."),
        ({"title": "A", "text": {"a": 1}}, "A", ""),
    ],
)
def test_text_is_the_content_of_a_record_that_has_none(tmp_path, record, title, content):
    for name in ("x.json", "x.jsonl"):
        documents, aside = read(put(tmp_path, json.dumps(record).encode(), name))
        assert (aside, [(document.title, document.content) for document in documents]) == ([], [(title, content)])


def test_the_text_of_a_chat_says_its_turns_once_more():
    made = document({"instruction": "Why?", "input": "", "output": "So.", "text": "### Why?\n### So."}, "x")
    assert isinstance(made, Document)
    assert (made.content, made.messages) == ("", ASKED)


def test_without_an_id_the_content_hash_names_the_document():
    first, second = document(doc(), "a"), document(doc(), "b")
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.id == second.id == content_hash(first)[:16]
    assert len(first.id) == 16


def test_control_characters_are_cleaned():
    made = document({"title": "a\x00b\x1b[31mc", "description": "one\r\ntwo\rthree\u2028four\tend\n"}, "x")
    assert isinstance(made, Document)
    assert (made.title, made.description) == ("ab[31mc", "one\ntwo\nthree\nfour\tend")


def test_chat_data_is_kept_as_it_is():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello", "weight": 1}]
    made = document({"messages": turns}, "x")
    assert isinstance(made, Document)
    assert made.messages == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"title": True}, "field of the wrong type", "title is true or false, expected text"),
        ({"content": {"a": 1}}, "field of the wrong type", "content is an object, expected text"),
        ({"content": [1]}, "field of the wrong type", "content is a list, expected text"),
        ({"findings": {"a": 1}}, "field of the wrong type", "findings[0] is an object without title"),
        ({"findings": [["a", 1]]}, "field of the wrong type", "findings[0] is a list"),
        ({"messages": "hi"}, "field of the wrong type", "messages is text, expected a list"),
        ({"messages": ["hi"]}, "field of the wrong type", "messages[0] is text, expected an object"),
        (
            {"messages": [{"role": "evil\x00", "content": "x"}]},
            "unknown chat role",
            "is evil; expected system, user, assistant",
        ),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown chat role", "is a list; expected"),
        ({"messages": [{"role": "user", "content": "x"}]}, "chat without an answer", "no turn of the assistant"),
    ],
)
def test_wrong_types_set_the_record_aside(fields, reason, detail):
    aside = document(doc(**fields), "x:1")
    assert isinstance(aside, SetAside)
    assert (aside.source, aside.reason) == ("x:1", reason)
    assert detail in aside.detail


def test_a_reader_of_a_plugin_takes_its_members_and_its_faults_are_named(tmp_path):
    class TextReader(Reader):
        name = "text"

        def reads(self, name: str) -> bool:
            return name.endswith(".txt")

        def read(self, member: Member) -> Iterator[Document | SetAside]:
            yield Document(id=member.name, title=member.stream.read().decode(), source=member.name)

    assert [document.title for document in read(put(tmp_path, b"hello", "a.txt"), readers=(TextReader(),))[0]] == ["hello"]
    with pytest.raises(SysscanError, match=r"reader 'text' failed on b\.txt: UnicodeDecodeError"):
        read(put(tmp_path, tar(("b.txt", b"\xff"))), readers=(TextReader(),))


def test_readers_need_not_read_their_members(tmp_path):
    path = put(tmp_path, gzipped(archive_of(5)))
    assert [entry.name for entry in walk(path, OPTIONS) if isinstance(entry, Member)] == [
        f"{number}.json" for number in range(5)
    ]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        "id",
        "title",
        "description",
        "content",
        "findings",
        "severity",
        "risk_score",
        "techniques",
        "messages",
        "family",
        "role",
        "x",
    ]
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(keys, values) | values)
def test_any_record_becomes_a_document_or_is_set_aside(record):
    made = document(record, "x:1")
    if isinstance(made, SetAside):
        assert made.reason
        return
    assert made.text.strip()
    assert made.id
    assert content_hash(made) == content_hash(made)
    made.text.encode()  # no lone surrogate is left
    assert not CONTROL.search(made.text)
    assert not HIDDEN.search(made.text)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300) | st.lists(st.dictionaries(keys, values), max_size=4).map(lambda v: json.dumps(v).encode()))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_any_bytes_are_read_without_an_exception(reader, data):
    for entry in reader.read(Member("x", len(data), io.BytesIO(data))):
        assert isinstance(entry, (Document, SetAside))
        assert entry.source.startswith("x")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_but_never_fails_otherwise(tmp_path_factory, data):
    whole = bytearray(tar(*((f"{number}.json", json.dumps(doc(number)).encode()) for number in range(3))))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, 3 * 1024 + 512))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.tar"
    path.write_bytes(bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    try:
        read(path)
    except DataError as error:
        told = str(error)
    else:
        told = str(path)
    assert str(path) in told


# Parts: reading that is divided --------------------------------------------------------------------------------------------


def in_parts(path: Path, options: DataOptions = OPTIONS, readers: tuple[Reader, ...] = READERS) -> list[Document | SetAside]:
    """Read as worker processes do: every part goes through pickle."""
    found: list[Document | SetAside] = []
    last = 0
    for part in parts(path, readers, options):
        assert last <= part.position <= packed_bytes(path)
        last = part.position
        found += read_part(pickle.loads(pickle.dumps(part)), readers, options)
    return found


def each_reader_alone(path: Path, options: DataOptions = OPTIONS) -> list[Document | SetAside]:
    """Read without parts: each member by its reader, whole."""
    found: list[Document | SetAside] = []
    for entry in walk(path, options):
        if isinstance(entry, SetAside):
            found.append(entry)
        else:
            found += next(reader for reader in (JsonReader(), JsonLinesReader()) if reader.reads(entry.name)).read(entry)
    return found


@pytest.mark.parametrize("pack", [bytes, gzipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("limit", [900, 1 << 20, 16 << 20])
def test_parts_give_what_readers_give_in_the_same_order(tmp_path, pack, limit):
    big = lines(*(doc(number, content="x" * (number % 1200)) for number in range(3000))) + b"\n\n[1]\n" + b'{"title": "end"}'
    data = tar(
        *((f"{number}.json", json.dumps(doc(number)).encode()) for number in range(700)),
        special("link.json", tarfile.SYMTYPE, "0.json"),
        ("big.jsonl", big),
        ("crlf.jsonl", big.replace(b"\n", b"\r\n")),
        ("utf16.jsonl", big.decode().encode("utf-16")),
        ("blank.jsonl", b" \n" * 700_000),
        ("long.jsonl", b"x" * 3_000_000 + b"\n" + lines(doc(1)) + b"y" * 3_000_000),
        ("list.json", json.dumps([doc(number, content="y" * 300) for number in range(5000)]).encode()),
        ("small.jsonl", lines(doc(1), doc(2))),
        ("0.json", b"{}"),
    )
    options = DataOptions(max_record_bytes=limit)
    path = put(tmp_path, pack(data))
    found = in_parts(path, options)
    assert found == each_reader_alone(path, options) == list(read_documents(path, READERS, options))
    assert len(found) > 14_000


def test_parts_are_of_bounded_size_and_name_their_lines(tmp_path):
    path = put(tmp_path, gzipped(lines(*(doc(number, content="z" * 500) for number in range(9000)))), "x.jsonl.gz")
    made = list(parts(path, READERS, OPTIONS))
    assert len(made) > 3
    assert all(sum(len(getattr(piece, "data", b"")) for piece in part.pieces) < 3 << 20 for part in made)
    sources = [entry.source for part in made for entry in read_part(part, READERS, OPTIONS)]
    assert sources == [f"x.jsonl:{number}" for number in range(1, 9001)]
    assert made[-1].position == packed_bytes(path) == path.stat().st_size


def test_documents_of_a_member_that_cannot_be_cut_up_come_ready(tmp_path):
    class RowReader(Reader):
        name = "rows"

        def reads(self, name: str) -> bool:
            return name.endswith(".rows")

        def read(self, member: Member) -> Iterator[Document | SetAside]:
            for number, line in enumerate(member.stream):
                yield Document(id=str(number), title=line.decode().strip(), source=f"{member.name}:{number}")

    rows = b"".join(b"row %d\n" % number for number in range(200_000))
    path = put(tmp_path, tar(("a.rows", rows), ("b.rows", b"last\n")))
    options = DataOptions(max_record_bytes=1 << 20)
    made = list(parts(path, (RowReader(),), options))
    assert all(len(part.pieces) <= 500 for part in made)
    documents = [entry for part in made for entry in read_part(part, (RowReader(),), options)]
    assert [entry.title for entry in documents] == [*(f"row {number}" for number in range(200_000)), "last"]


def test_a_folder_tells_its_bytes_and_reads_compressed_files(tmp_path):
    for name, pack in (
        ("a.jsonl.gz", gzipped),
        ("b.jsonl.bz2", bz2.compress),
        ("c.jsonl.xz", lzma.compress),
        ("d.jsonl", bytes),
    ):
        (tmp_path / name).write_bytes(pack(lines(doc(1))))
    found = in_parts(tmp_path)
    assert [entry.source for entry in found] == ["a.jsonl:1", "b.jsonl:1", "c.jsonl:1", "d.jsonl:1"]
    assert packed_bytes(tmp_path) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_reader_that_fails_on_a_part_is_named(tmp_path):
    class Broken(JsonReader):
        name = "broken"

        def read(self, member: Member) -> Iterator[Document | SetAside]:
            raise KeyError("x")

    made = list(parts(put(tmp_path, tar(("a.json", b"{}"))), (Broken(),), OPTIONS))
    with pytest.raises(SysscanError, match=r"reader 'broken' failed on a\.json: KeyError"):
        list(read_part(made[0], (Broken(),), OPTIONS))


def test_the_first_reader_that_recognises_a_member_takes_it(tmp_path):
    class Rows(JsonReader):
        name = "special"

        def recognises(self, head: bytes) -> bool:
            assert len(head) <= 1 << 16
            return head.startswith(b'{"rows"')

        def read(self, member: Member) -> Iterator[Document | SetAside]:
            yield Document(id="r", title=str(len(member.stream.read())), source=member.name)

    large = b'{"rows": "' + b"x" * (2 << 20) + b'"}'
    path = put(tmp_path, tar(("a.json", b'{"rows": 1}'), ("b.json", json.dumps(doc(2)).encode()), ("c.json", large)))
    documents, _ = read(path, readers=(Rows(), JsonReader()))
    assert [document.title for document in documents] == ["11", "Title 2", str(len(large))]


# Chats and families --------------------------------------------------------------------------------------------------------


ASKED = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."})


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"prompt": "Why?", "completion": "So."}, ASKED),
        ({"prompt": "Why?", "response": "So.", "id": 4}, ASKED),
        ({"instruction": "Why?", "input": "", "output": "So."}, ASKED),
        ({"instruction": "Why", "input": "now?", "response": "So."}, ({"role": "user", "content": "Why\n\nnow?"}, ASKED[1])),
        ({"question": "Why?", "answer": ["So."]}, ASKED),
        ({"query": "Why?", "response": "So."}, ASKED),
        ({"input": "Why?", "output": "So."}, ASKED),
        ({"conversations": [{"role": "User", "content": "Why?"}, {"role": "model", "content": "So."}]}, ASKED),
        ({"messages": [{"role": "human", "content": "Why?"}, {"role": "gpt", "content": "So."}]}, ASKED),
        (
            {"messages": [{"role": "developer", "content": "Be short."}, *ASKED]},
            ({"role": "system", "content": "Be short."}, *ASKED),
        ),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, ASKED),
        ({"conversations": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, ASKED),
        ({"system": "Be short.", "prompt": "Why?", "completion": "So."}, ({"role": "system", "content": "Be short."}, *ASKED)),
        ({"prompt": [dict(ASKED[0])], "completion": [dict(ASKED[1])]}, ASKED),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ASKED[1]]}, ASKED),
    ],
)  # fmt: skip
def test_questions_and_answers_become_messages(tmp_path, record, turns):
    for name in ("x.json", "x.jsonl"):
        documents, aside = read(put(tmp_path, json.dumps(record).encode(), name))
        assert (aside, [document.messages for document in documents]) == ([], [turns])


def test_a_record_with_text_of_its_own_is_no_chat():
    made = document({"title": "A", "prompt": "Why?", "completion": "So."}, "x")
    assert isinstance(made, Document)
    assert (made.title, made.messages) == ("A", ())


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"prompt": {"a": 1}, "completion": "x"}, "field of the wrong type", "prompt is an object, expected text"),
        ({"question": "x", "answer": True}, "field of the wrong type", "answer is true or false"),
        ({"instruction": "x", "input": {}, "output": "x"}, "field of the wrong type", "input is an object"),
        ({"prompt": "x", "completion": ""}, "chat without an answer", "no turn of the assistant"),
        ({"prompt": " ", "completion": "x"}, "chat without a question", "prompt says nothing"),
        ({"conversations": "x"}, "field of the wrong type", "conversations is text, expected a list"),
        (
            {"conversations": [{"from": "tool", "value": "x"}]},
            "chat with calls of tools",
            "conversations[0].from is tool; only system, user,",
        ),
        (
            {"messages": [ASKED[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "chat with calls of tools",
            "messages[1] calls a tool and says nothing",
        ),
        ({"conversations": [{"from": "x", "value": "y"}]}, "unknown chat role", "conversations[0].from is x; expected system"),
        ({"text": {"a": 1}}, "field of the wrong type", "text is an object, expected text"),
        ({"conversations": [{"from": "gpt", "value": 1}, 2]}, "field of the wrong type", "conversations[1] is a number"),
    ],
)
def test_chats_that_cannot_be_used_are_set_aside(record, reason, detail):
    made = document(record, "x:1")
    assert isinstance(made, SetAside)
    assert made.reason == reason
    assert detail in made.detail


def test_the_key_of_the_family_is_an_option(tmp_path):
    records = [doc(1, origin="a", family="b"), doc(2, origin=7), doc(3, family="b")]
    for name, data in (("x.jsonl", lines(*records)), ("x.json", json.dumps(records).encode())):
        documents, _ = read(put(tmp_path, data, name), DataOptions(family_key="origin"))
        assert [document.family for document in documents] == ["a", "7", ""]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("hf\u200b_to\u2060ken\ufeff", "hf_token"),
        ("a\u00add\u034fmin", "admin"),
        ("\u202eevil\u202c \u2066x\u2069 \u200e\u200fy", "evil x y"),
        ("visible\U000e0068\U000e0069", "visible"),
        ("pass\u200d\u200d\u200dword \u200cx", "password x"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f469\u200d\U0001f4bb \u2764\ufe0f", "\U0001f469\u200d\U0001f4bb \u2764\ufe0f"),
        ("caf\u00e9\u00a0na\u00efve\n\tend", "caf\u00e9\u00a0na\u00efve\n\tend"),
    ],
    ids=["zero-width", "soft", "bidi", "tags", "joiners-in-ascii", "persian", "emoji", "ordinary"],
)
def test_what_is_not_seen_is_taken_out_unless_a_script_needs_it(text, cleaned):
    assert clean(text) == cleaned


# Readers of the host's own files --------------------------------------------------------------------------------------------


def finding(number: int = 0, **fields: object) -> dict[str, object]:
    return {
        "id": f"/usr/bin/tool{number}",
        "title": f"SUID binary {number}",
        "severity": "high",
        "base_severity_score": "70",
        "description": f"Runs as root, number {number}",
        "metadata": {"mode": "4755", "severity": "high", "risk_score": "70"},
        **fields,
    }


def report(*findings: object, **fields: object) -> dict[str, object]:
    empty = {"scanner": "network", "findings": []}
    return {
        "meta": {"json_schema": "2"},
        "results": [empty, {"scanner": "suid", "findings": list(findings)}],
        "summary": {},
        **fields,
    }


def test_a_scan_report_is_read_finding_by_finding(tmp_path):
    documents, aside = read(
        put(tmp_path, tar(("host.json", json.dumps(report(finding(1), finding(2, severity=" Low "))).encode())))
    )
    assert aside == []
    first = documents[0]
    assert (first.id, first.title, first.role) == ("/usr/bin/tool1", "SUID binary 1", "specialist")
    assert first.description == "Runs as root, number 1\nmode: 4755"
    assert [document.source for document in documents] == [f"host.json:results[1].findings[{n}] suid" for n in (0, 1)]
    assert [document.labels for document in documents] == [
        {"severity": "high", "risk_score": 70}, {"severity": "low", "risk_score": 70},
    ]  # fmt: skip
    assert "high" not in first.text  # what is asked for is not told
    assert "70" not in first.text


def test_a_report_with_a_long_list_of_warnings_in_front_is_recognised(tmp_path):
    given = {"collection_warnings": [{"detail": f"/proc/{n}/cmdline"} for n in range(9000)], **report(finding(1))}
    assert len(read(put(tmp_path, json.dumps(given).encode(), "x.json"))[0]) == 1
    assert len(read(put(tmp_path, json.dumps(given, indent=2).encode(), "x.json"))[0]) == 1
    assert len(read(put(tmp_path, json.dumps(given).encode("utf-16"), "x.json"))[0]) == 1


def test_findings_that_cannot_be_used_are_set_aside_one_by_one(tmp_path):
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    bad = [3, {}, finding(title=7), finding(metadata=[1]), finding(metadata={"x": deep})]
    broken = {"scanner": "x", "findings": None}
    data = json.dumps({"results": [{"scanner": "a", "findings": [*bad, finding(9)]}, broken, 7], "meta": {}}).encode()
    documents, aside = read(put(tmp_path, data, "x.json"))
    assert [document.title for document in documents] == ["SUID binary 9"]
    assert Counter(entry.reason for entry in aside) == {"not a finding": 7}


def test_a_report_holds_names_that_are_no_text(tmp_path):
    data = (
        json.dumps(report(finding(1, metadata={"path": ["X\ud800"], "y": 2**70}))).encode().replace(b"SUID binary", b"caf\xe9")
    )
    documents, aside = read(put(tmp_path, data, "x.json"))
    assert aside == []
    assert documents[0].title == "caf\ufffd 1"
    documents[0].text.encode()


def test_a_report_without_findings_and_json_that_only_looks_like_one(tmp_path):
    _, aside = read(put(tmp_path, json.dumps(report()).encode(), "x.json"))
    assert reasons(aside) == [("x.json", "report without findings")]
    lookalike = {"meta": {"scanner": "x"}, "results": [doc(1), doc(2)]}
    assert len(read(put(tmp_path, json.dumps(lookalike).encode(), "x.json"))[0]) == 2


def synthetic(**fields: object) -> dict[str, object]:
    findings = {
        "suid": {"high": [finding(1, rationale="Because it is writable."), finding(2, severity="low", rationale=None)]},
        "network": {"info": [finding(3, analysis=["One.", "Two."])]},
    }
    return {"version": "2.0", "findings": findings, "correlations": [finding(4)], "statistics": {"n": 4}, **fields}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "layout",
    [lambda data: {"metadata": {}, "data": data}, lambda data: {"metadata": {"a": 1}, **data}, lambda data: {"data": data},
     lambda data: {"compressed": True, "compression_method": "gzip",
                   "data": gzipped(json.dumps({"metadata": {}, "data": data}).encode()).hex()}],
    ids=["nested", "flat", "data-first", "compressed"],
)  # fmt: skip
def test_a_synthetic_data_set_is_read_with_its_rationales(tmp_path, layout, indent):
    documents, aside = read(put(tmp_path, tar(("set.json", json.dumps(layout(synthetic()), indent=indent).encode()))))
    assert aside == []
    assert [document.content for document in documents] == ["Because it is writable.", "", "One.\nTwo.", ""]
    assert [document.labels["severity"] for document in documents] == ["high", "high", "info", "high"]
    assert [document.source for document in documents] == [
        "set.json:suid.high[0]", "set.json:suid.high[1]", "set.json:network.info[0]", "set.json:correlations[0]",
    ]  # fmt: skip
    assert all("high" not in document.text and document.role == "specialist" for document in documents)


def test_variants_of_synthetic_data_are_tolerated(tmp_path):
    enriched = finding(1, _langchain_enrichment={"mitigation_steps": ["chmod u-s"]}, severity="Medium")
    given = {"findings": {"suid": [enriched], "odd": {"urgent": [finding(2)], "low": finding(3)}, "none": {"low": [4]}}}
    documents, aside = read(put(tmp_path, json.dumps(given).encode(), "x.json"))
    assert [document.labels["severity"] for document in documents] == ["medium", "high", "low"]
    assert documents[0].labels["remediation"] == ["chmod u-s"]
    assert reasons(aside) == [("x.json:none.low[0]", "not a finding")]
    truth = {"version": "ground_truth_v1", "enriched_findings": [finding(5)], "correlations": []}
    assert len(read(put(tmp_path, json.dumps(truth).encode(), "x.json"))[0]) == 1
    assert reasons(read(put(tmp_path, b'{"data": {"findings": {}}}', "x.json"))[1]) == [("x.json", "data set without findings")]


@pytest.mark.parametrize(
    ("data", "detail"),
    [("zz", "digit"), ("1f8b", "truncated"), (gzipped(b"x" * 100)[:-9].hex(), "truncated"),
     (gzipped(bytes(99_999)).hex(), "more than")],
    ids=["not-hexadecimal", "header-only", "truncated", "bomb"],
)  # fmt: skip
def test_compressed_synthetic_data_that_cannot_be_read_is_set_aside(tmp_path, data, detail):
    given = json.dumps({"compressed": True, "compression_method": "gzip", "data": data}).encode()
    _, aside = read(put(tmp_path, given, "x.json"), DataOptions(max_record_bytes=9000))
    assert reasons(aside) == [("x.json", "compressed data that cannot be read")]
    assert detail in aside[0].detail


def test_compressed_synthetic_data_is_not_unpacked_beyond_a_record():
    data = json.dumps({"compression_method": "gzip", "data": gzipped(bytes(64 << 20), 1).hex()}).encode()
    member = containers.LimitedMember("x", len(data), io.BytesIO(data), 1 << 20)
    tracemalloc.start()
    try:
        found = list(SyntheticReader().read(member))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reasons(found) == [("x", "compressed data that cannot be read")]
    assert peak < 16 << 20


def test_the_role_of_findings_is_an_option(tmp_path):
    path = put(tmp_path, json.dumps(report(finding(1))).encode(), "x.json")
    assert read(path, readers=(ReportReader(role=""),))[0][0].role == ""


# Any bytes, any JSON -------------------------------------------------------------------------------------------------------


hostile_json = st.recursive(
    values,
    lambda inner: st.dictionaries(
        st.sampled_from(["results", "findings", "scanner", "data", "metadata", "meta", "title", "rationale", "high", "severity",
                         "conversations", "from", "value", "prompt", "completion", "instruction", "output", "input"]),
        inner | st.lists(inner, max_size=3), max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(hostile_json)
@pytest.mark.parametrize("reader", [ReportReader(), SyntheticReader()], ids=lambda reader: reader.name)
def test_any_json_is_read_by_the_readers_of_the_host_without_an_exception(reader, value):
    data = json.dumps(value).encode()
    reader.recognises(data)
    found = list(reader.read(Member("x.json", len(data), io.BytesIO(data))))
    assert found
    assert len(found) <= len(data) + 1
    for entry in found:
        assert isinstance(entry, (Document, SetAside))
        assert not CONTROL.search(entry.source)
        if isinstance(entry, Document):
            entry.text.encode()
            content_hash(entry)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.dictionaries(st.sampled_from(["title", "content", "x"]), values, max_size=3) | values, min_size=1, max_size=12),
    st.integers(40, 400),
    st.sampled_from([None, 1]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_large_list_is_read_as_a_small_one_wherever_it_is_cut(records, limit, indent, encoding):
    data = json.dumps(records, indent=indent).encode(encoding)
    whole = list(JsonReader().read(containers.LimitedMember("x", len(data), io.BytesIO(data), 1 << 20)))
    cut = list(JsonReader().read(containers.LimitedMember("x", len(data), io.BytesIO(data), limit)))
    if cut[-1:] and isinstance(cut[-1], SetAside) and cut[-1].reason == "record too large":
        cut = cut[:-1]
    assert [entry for entry in cut if isinstance(entry, Document)] == [
        entry for entry in whole[: len(cut)] if isinstance(entry, Document)
    ]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")) | st.just(b'{"title": "a"}'), max_size=30),
       st.integers(5, 60), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 50))  # fmt: skip
def test_json_lines_are_cut_up_without_a_difference(found, limit, end, closed, block):
    data = end.join(found) + (end if closed else b"")
    member = containers.LimitedMember("x", len(data), io.BytesIO(data), limit)
    whole = list(JsonLinesReader().read(member))
    options = DataOptions(max_record_bytes=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("sysscan_models.corpus.portions"), "PART_BYTES", block)
        blocks = tuple(cut_up("x", io.BytesIO(data), limit))
    assert list(read_part(Part(blocks, 0), READERS, options)) == whole


def test_what_is_cut_is_redacted_before():
    token = "ghp_" + "a1B2" * 10
    made = document({"id": "x" * 170 + f" {token}", "title": "T", "role": token}, "a.json")
    assert isinstance(made, Document)
    assert "ghp_" not in made.id
    assert "ghp_" not in made.role
    aside = document({f"{'k' * 20} {token}": 1}, "a.json")
    assert isinstance(aside, SetAside)
    assert "ghp_" not in aside.detail
