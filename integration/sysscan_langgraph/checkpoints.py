"""The SQLite file in which an unfinished analysis is kept.

A checkpoint file may come from somebody else, and LangGraph's own serializer builds whatever object such a file names. The
state of an analysis is plain JSON, so here nothing else is built but the tasks that LangGraph notes (`Send`).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_POS_ARGS, JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Send

from sysscan_models.errors import SysscanError, UserError

_TASK = ["langgraph.types", "Send"]
_KINDS = ("null", "bytes", "msgpack")


class PlainSerializer(JsonPlusSerializer):
    """Writes what LangGraph's serializer writes, and reads plain JSON and tasks only.

    Reading anything else raises UserError; `source` names the file in it. What is no plain JSON at all raises SysscanError when
    it is written.
    """

    def __init__(self, source: str) -> None:
        super().__init__(__unpack_ext_hook__=_task)
        self.source = source

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the kind and the bytes of a value; JSON where msgpack cannot hold it (depth, half characters)."""
        try:
            kind, data = super().dumps_typed(obj)
        except (TypeError, ValueError):
            kind, data = "json", b""
        return (kind, data) if kind in _KINDS else ("json", self.dumps(obj))

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value; raise UserError when it is of a kind that no analysis writes, or damaged."""
        if data[0] == "json":
            return self.loads(data[1])
        try:
            if data[0] in _KINDS:
                return super().loads_typed(data)
        except Exception as error:
            raise self._refusal() from error
        raise self._refusal()

    def dumps(self, obj: Any) -> bytes:
        """Return a value as JSON; older checkpointers write their metadata so."""
        try:
            return json.dumps(obj).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise SysscanError(f"{self.source}: the analysis cannot be stored there ({error}). Do without it") from error

    def loads(self, data: bytes) -> Any:
        """Return the value of JSON, which names no objects here."""
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._refusal() from error

    def _refusal(self) -> UserError:
        return UserError(f"{self.source} cannot be used: it holds what no analysis writes. Name a new file, or one of your own")


@contextmanager
def opened(path: Path) -> Iterator[SqliteSaver]:
    """Open a checkpoint file, and make it where there is none, for nobody else to read; raise UserError when it is unusable."""
    source = f"--checkpoint {path}"
    try:
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(path.absolute(), check_same_thread=False)) as connection:
            serializer = PlainSerializer(source)
            saver = SqliteSaver(connection, serde=serializer)
            saver.jsonplus_serde = serializer  # LangGraph 0.6 reads its metadata with it
            saver.setup()
            yield saver
    except sqlite3.Error as error:
        raise UserError(f"{source} cannot be used: {error}. Name a new file, or one that analyze made") from error


def _task(code: int, data: bytes) -> Send:
    """Return a task of LangGraph; raise ValueError for every other object."""
    if code == EXT_CONSTRUCTOR_POS_ARGS:
        *named, args = ormsgpack.unpackb(data, ext_hook=_task, option=ormsgpack.OPT_NON_STR_KEYS)
        if named == _TASK:
            return Send(*args[:2])
    raise ValueError(f"an object of the kind {code}")
