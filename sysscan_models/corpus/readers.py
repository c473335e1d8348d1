"""From a member's bytes to JSON values: one object, a list, a wrapper object with a list, or lines of objects.

These are the two readers that come with the core, and their parser, which forgives what real exports hold (NaN, lone
surrogates, huge numbers). Memory is bounded by the limit of a record, however large the member. Members are not looked for
here, and what a value means is for `records`.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, cast

import orjson

from sysscan_models.corpus import chats
from sysscan_models.corpus.containers import MAX_RECORD_BYTES, LimitedMember
from sysscan_models.corpus.fields import BadRecord
from sysscan_models.corpus.records import SAYS, document
from sysscan_models.corpus.transcoding import as_utf8, joined, marked_encoding
from sysscan_models.documents import Document, SetAside
from sysscan_models.interfaces import Member, Reader


class JsonReader(Reader):
    """Reads .json: one object, a list of objects, or a wrapper object with one list of objects; also lines of objects."""

    name: ClassVar[str] = "json"

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .json."""
        return name.lower().endswith(".json")

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each object. Only a list may be larger than one record."""
        return read_json(member)


class JsonLinesReader(Reader):
    """Reads .jsonl and .ndjson: one object on each line, blank lines left out."""

    name: ClassVar[str] = "jsonl"

    def reads(self, name: str) -> bool:
        """Say whether the name ends in .jsonl or .ndjson."""
        return name.lower().endswith((".jsonl", ".ndjson"))

    def read(self, member: Member) -> Iterator[Document | SetAside]:
        """Yield a document for each line; a line that is too long is skipped without being held in memory."""
        head = member.stream.read(4)
        stream = as_utf8(head, member.stream)
        return read_lines(member.name, stream, record_limit(member), family_key(member))


LIST_BYTES = 2 * 2**20
"""Lists of more bytes are read one element at a time."""


def record_limit(member: Member) -> int:
    """Return the largest record of a member that a reader may hold in memory, in bytes."""
    return member.max_record_bytes if isinstance(member, LimitedMember) else MAX_RECORD_BYTES


def family_key(member: Member) -> str:
    """Return the key of a member's records that names their family."""
    return member.family_key if isinstance(member, LimitedMember) else "family"


def read_json(member: Member) -> Iterator[Document | SetAside]:
    """Read a member that holds JSON; see JsonReader."""
    limit, key = record_limit(member), family_key(member)
    data = member.stream.read(limit + 1)
    if marked_encoding(data):
        stream = as_utf8(data, member.stream)
        data = stream.read(limit + 1)
    else:
        stream = member.stream
    listed = len(data) > LIST_BYTES and data.lstrip(codecs.BOM_UTF8 + _BLANKS).startswith(b"[")
    if len(data) > limit or listed:  # parsed, a list of tiny values takes a hundred times its bytes
        yield from _large(member.name, data, joined(data, stream), limit, key)
        return
    try:
        value = parse(data)
    except BadRecord as bad:
        if _begins_with_a_line(data):
            yield from read_lines(member.name, io.BytesIO(data), limit, key)
        else:
            yield SetAside(member.name, bad.reason, bad.detail)
        return
    yield from documents_of(value, member.name, key)


def _large(name: str, head: bytes, stream: BinaryIO, limit: int, key: str) -> Iterator[Document | SetAside]:
    """Read a member that is larger than a record: a list, or lines; `head` is what it begins with."""
    if head.lstrip(codecs.BOM_UTF8 + _BLANKS).startswith(b"["):
        yield from _large_list(name, stream, limit, key)
    elif _begins_with_a_line(head):
        yield from read_lines(name, stream, limit, key)
    else:
        yield SetAside(name, "record too large", f"one value of more than {limit:,} bytes; data.max_record_bytes may be raised")


def _begins_with_a_line(data: bytes) -> bool:
    line, end, _ = data.lstrip(codecs.BOM_UTF8 + _BLANKS).partition(b"\n")
    return bool(end) and _is_object(line)


def documents_of(value: Any, name: str, key: str) -> Iterator[Document | SetAside]:
    """Yield the documents of a member's whole value: of a list, of what it wraps, or the one that it is."""
    items = _items(value)
    if items is None:
        yield document(value, name, key)
    elif not items:
        yield SetAside(name, "empty list")
    else:
        yield from (document(item, f"{name}[{index}]", key) for index, item in enumerate(items))


_BLANKS = b" \t\r\n"


def read_lines(
    name: str, stream: BinaryIO, limit: int, key: str = "family", *, first: int = 1, whole: bool = True
) -> Iterator[Document | SetAside]:
    """Yield the document of each line, the first of them with this number; `whole` says whether there are no other lines."""
    number, said = first - 1, not whole
    while line := stream.readline(limit + 3):
        number += 1
        if too_long(line, limit):
            while line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)
            said = True
            yield line_too_long(name, number, limit)
        elif line.strip():
            said = True
            try:
                value = parse(line)
            except BadRecord as bad:
                yield SetAside(f"{name}:{number}", bad.reason, bad.detail)
            else:
                yield document(value, f"{name}:{number}", key)
    if not said:
        yield SetAside(name, "empty file")


def too_long(line: bytes, limit: int) -> bool:
    """Say whether a line, or as much of it as was read, cannot be a record; its end does not count."""
    return len(line) > limit and (len(line) > limit + 2 or len(line.rstrip(b"\r\n")) > limit)


def line_too_long(name: str, number: int, limit: int) -> SetAside:
    """Return what becomes of a line that is too long."""
    return SetAside(f"{name}:{number}", "record too large", f"more than {limit:,} bytes")


def _large_list(name: str, stream: BinaryIO, limit: int, key: str) -> Iterator[Document | SetAside]:
    """Yield the objects of a list that is larger than a record, holding no more than one of them at a time."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    index = -1
    try:
        for index, value in enumerate(_elements(text, limit)):
            yield document(value, f"{name}[{index}]", key)
    except BadRecord as bad:
        yield SetAside(f"{name}[{index + 1}]", bad.reason, "the rest of the list was not read")
    except UnicodeDecodeError:
        yield SetAside(f"{name}[{index + 1}]", "not UTF-8 text", "the rest of the list was not read")
    except RecursionError:
        yield SetAside(f"{name}[{index + 1}]", "nested too deeply", "the rest of the list was not read")
    finally:
        text.detach()


def _elements(text: io.TextIOWrapper, limit: int) -> Iterator[Any]:
    buffer, step = "", 1 << 16
    while not buffer:
        buffer = text.read(step).lstrip()
    buffer = buffer.removeprefix("[")
    position = 0
    while True:
        position = cast(re.Match[str], _BETWEEN.match(buffer, position)).end()
        if buffer.startswith("]", position):
            _refuse_more(buffer[position + 1 :], text)
            return
        try:
            value, end = _DECODER.raw_decode(buffer, position)
        except json.JSONDecodeError:
            end = len(buffer)
        if end < len(buffer):  # a number at the very end may go on
            yield value
            position, step = end, 1 << 16
            continue
        if len(buffer) - position > limit:
            raise BadRecord("record too large")
        if not (more := text.read(step)):
            raise BadRecord("not JSON")
        buffer, position, step = buffer[position:] + more, 0, step * 2


def _refuse_more(rest: str, text: io.TextIOWrapper) -> None:
    while not rest.strip():
        if not (rest := text.read(1 << 16)):
            return
    raise BadRecord("not JSON")


_BETWEEN = re.compile(r"[\s,]*")


def _integer(digits: str) -> int | float:
    """Parse an integer of any length: Python refuses 4,300 digits and more, and orjson writes no more than 64 bits."""
    return int(digits) if len(digits) < 19 else float(digits)


_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None, parse_int=_integer)


def parse(data: bytes) -> Any:
    """Parse one JSON value: strictly and fast, else leniently (NaN, lone surrogates, control characters, huge numbers).

    Raises BadRecord for what is no JSON, no UTF-8, empty, or nested too deeply.
    """
    data = data.removeprefix(codecs.BOM_UTF8).strip()
    if not data:
        raise BadRecord("empty file")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        fault = error
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8 text", f"byte {error.start}: {error.reason}") from None
    except json.JSONDecodeError:
        raise BadRecord("not JSON", f"{fault.msg} (line {fault.lineno}, column {fault.colno})") from None
    except RecursionError:
        raise BadRecord("nested too deeply") from None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except BadRecord:
        return False


def _items(value: Any) -> list[Any] | None:
    """Return the list that a value is or wraps, or None when it is one record itself."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or chats.is_chat(value) or any(value.get(key) not in (None, "", []) for key in SAYS):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and any(isinstance(inner, dict) for inner in item)]
    return lists[0] if len(lists) == 1 else None
