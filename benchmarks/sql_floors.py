"""Bare loops over ``sqlite3``: the statements that a queue in a table needs at least, and no queue.

They are what a careful person writes by hand for one thread of one process: one transaction for each
operation, and a counter, so that the number of ready items is known. There is no lock by which several
processes take turns, no checksum, no recovery, no waits, and no distinction between errors.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager

from benchmarks.contenders import ITEM, Marks

__all__ = ["bare_puts", "bare_queue", "connected", "lengthen_log"]

_NAME = "data.db"
_SCHEMA = """
CREATE TABLE ready (
    id INTEGER PRIMARY KEY, priority, key BLOB, time REAL, attempts INTEGER, crc INTEGER, payload BLOB
);
CREATE TABLE counters (number INTEGER PRIMARY KEY, last_id INTEGER, absent INTEGER);
INSERT INTO counters VALUES (1, 0, 0);
"""
_PUT = "INSERT INTO ready (id, priority, key, time, attempts, crc, payload) VALUES (?, 0, NULL, ?, 0, ?, ?)"
_HEAD = "SELECT id, priority, key, time, attempts, crc, payload FROM ready ORDER BY id LIMIT 1"
_REMOVE = "DELETE FROM ready WHERE id = ?"
_COUNT = "UPDATE counters SET last_id = ?, absent = ? WHERE number = 1"


_LOG = 6 << 20


def lengthen_log(directory: str) -> None:
    """Make the write-ahead log of an open database longer than it becomes by itself.

    After that SQLite overwrites it from its beginning, and no sync has to make the file longer, as in a queue
    that has been in use for a while. On ext4 the syncs of a new log take half as long again.
    """
    with closing(sqlite3.connect(os.path.join(directory, _NAME), isolation_level=None)) as connection:
        connection.execute("CREATE TABLE log (bytes)")
        connection.execute("INSERT INTO log VALUES (zeroblob(?))", (_LOG,))
        connection.execute("DROP TABLE log")


@contextmanager
def connected(directory: str, synchronous: str) -> Iterator[sqlite3.Connection]:
    """Give a connection to a database with a write-ahead log.

    Its pages and checkpoints are as large as persistcoll's.
    """
    path = os.path.join(directory, _NAME)
    with closing(sqlite3.connect(path, isolation_level=None, cached_statements=256)) as connection:
        for pragma in ("page_size=1024", "journal_mode=WAL", "wal_autocheckpoint=4096"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        yield connection


def bare_queue(directory: str, count: int) -> Mapping[str, float]:
    """Put all items, then get them: each a transaction that survives the death of the process.

    Then as many gets that update no counter, so that the number of ready items is unknown without counting
    rows.
    """
    with connected(directory, "NORMAL") as connection:
        connection.executescript(_SCHEMA)
        execute = connection.cursor().execute
        numbers = {"put": _put(execute, count)}
        numbers["get"] = _get(execute, count)
        _put(execute, count)
        numbers["get, uncounted"] = _get_uncounted(execute, count)
    return numbers


def bare_puts(directory: str, count: int) -> Mapping[str, float]:
    """Put items that survive a power cut: one transaction and one sync each."""
    with connected(directory, "FULL") as connection:
        connection.executescript(_SCHEMA)
        lengthen_log(directory)
        return {"put": _put(connection.cursor().execute, count)}


def _put(execute: Callable[..., sqlite3.Cursor], count: int) -> float:
    dumps, now = pickle.dumps, time.time
    marks = Marks()
    for id in range(1, count + 1):
        payload = dumps(ITEM, 5)
        execute(_PUT, (id, now(), id, payload))
    return marks.lap(count)


def _get(execute: Callable[..., sqlite3.Cursor], count: int) -> float:
    loads = pickle.loads
    marks = Marks()
    for _ in range(count):
        execute("BEGIN IMMEDIATE")
        row = execute(_HEAD).fetchone()
        loads(row[-1])
        execute(_REMOVE, (row[0],))
        execute(_COUNT, (count, row[0]))
        execute("COMMIT")
    return marks.lap(count)


def _get_uncounted(execute: Callable[..., sqlite3.Cursor], count: int) -> float:
    loads = pickle.loads
    marks = Marks()
    for _ in range(count):
        execute("BEGIN IMMEDIATE")
        row = execute(_HEAD).fetchone()
        loads(row[-1])
        execute(_REMOVE, (row[0],))
        execute("COMMIT")
    return marks.lap(count)
