"""The log, and a stand-in for a log in a database."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any

from benchmarks.contenders import BATCH, ITEM, Marks
from benchmarks.sql_floors import connected, lengthen_log
from persistcoll import Log, Queue

__all__ = [
    "appends",
    "fill",
    "fill_table",
    "puts",
    "read_singly",
    "read_table",
    "reads",
]

_TABLES = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, time REAL, payload BLOB);
CREATE TABLE positions (name TEXT PRIMARY KEY, position INTEGER);
INSERT INTO positions VALUES ('reader', 0);
"""
_INSERT = "INSERT INTO messages (id, time, payload) VALUES (?, ?, ?)"
_NEXT = "SELECT id, payload FROM messages WHERE id > ? ORDER BY id LIMIT 1"
_COMMIT = "UPDATE positions SET position = ? WHERE name = 'reader'"


def appends(directory: str, count: int, **options: Any) -> Mapping[str, float]:
    """Append all items to a log one by one, then as many in batches of :data:`BATCH`."""
    with Log(os.path.join(directory, "log"), **options) as log:
        return _singly_and_in_batches(log.append, log.extend, count)


def puts(directory: str, count: int, **options: Any) -> Mapping[str, float]:
    """Do the same with a queue."""
    with Queue(os.path.join(directory, "queue"), **options) as queue:
        return _singly_and_in_batches(queue.put, queue.put_many, count)


def _singly_and_in_batches(
    one: Callable[[Any], object], many: Callable[[Iterable[Any]], object], count: int
) -> Mapping[str, float]:
    batch = [ITEM] * BATCH
    marks = Marks()
    for _ in repeat(None, count):
        one(ITEM)
    numbers = {"one": marks.lap(count)}
    batches = max(1, count // BATCH)
    for _ in repeat(None, batches):
        many(batch)
    numbers["batch"] = marks.lap(batches * BATCH)
    return numbers


def fill(path: str, count: int) -> None:
    """Make a log of so many items."""
    with Log(path, durability="process") as log:
        append = log.append
        for _ in repeat(None, count):
            append(ITEM)


def reads(path: str, count: int, **options: Any) -> Mapping[str, float]:
    """Read all items with a new consumer, :data:`BATCH` at a time, and commit after each batch."""
    with Log(path, **options) as log:
        with log.consumer("reader") as consumer:
            get_many, commit = consumer.get_many, consumer.commit
            left = count
            marks = Marks()
            while left > 0:
                left -= len(get_many(BATCH, False))
                commit()
            numbers = {"read": marks.lap(count)}
            if left or consumer.position != log.last:
                raise AssertionError(f"{count - left} of {count} items came")
        log.forget("reader")
    return numbers


def read_singly(path: str, count: int, **options: Any) -> Mapping[str, float]:
    """Read the first ``count`` items with a new consumer, and commit each."""
    with Log(path, **options) as log:
        with log.consumer("reader") as consumer:
            get, commit = consumer.get, consumer.commit
            marks = Marks()
            for _ in repeat(None, count):
                get(False)
                commit()
            numbers = {"read": marks.lap(count)}
        log.forget("reader")
    return numbers


def fill_table(directory: str, count: int) -> None:
    """Make a log in an SQLite database: a table of messages, and one of positions."""
    os.mkdir(directory)
    with connected(directory, "OFF") as connection:
        connection.executescript(_TABLES)
        payload = pickle.dumps(ITEM, 5)
        connection.execute("BEGIN")
        connection.executemany(_INSERT, ((id, time.time(), payload) for id in range(1, count + 1)))
        connection.execute("COMMIT")
        lengthen_log(directory)


def read_table(directory: str, count: int) -> Mapping[str, float]:
    """Read the first ``count`` messages of that log, and commit the position after each, with a sync."""
    loads = pickle.loads
    with connected(directory, "FULL") as connection:
        execute = connection.cursor().execute
        execute(_COMMIT, (0,))
        position = 0
        marks = Marks()
        for _ in repeat(None, count):
            position, payload = execute(_NEXT, (position,)).fetchone()
            loads(payload)
            execute(_COMMIT, (position,))
        return {"read": marks.lap(count)}
