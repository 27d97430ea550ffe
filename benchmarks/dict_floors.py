"""Bare loops over ``sqlite3``: the statements that a dict in a table needs at least, and no dict.

They are what a careful person writes by hand for one process, in a database like persistcoll's: a write-ahead
log, pages and checkpoints of the same size, one transaction for each change. Keys are str only. There is no
lock by which several processes take turns, no checksum, no expiry, no order, no known length, and no
distinction between errors.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from benchmarks.contenders import ITEM

__all__ = ["Work", "bare_reader", "bare_writer", "fill_bare", "reader_of_ours"]

_TABLE = "CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB)"
_INSERT = "INSERT INTO pairs (key, value) VALUES (?, ?)"
_SET = _INSERT + " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_REMOVE = "DELETE FROM pairs WHERE key = ?"
_VALUE = "SELECT value FROM pairs WHERE key = ?"
_NAME = "data.db"
Work = Callable[[Iterable[Any]], None]
"""Does something with each of these keys, or pairs."""


@contextmanager
def _connected(directory: str) -> Iterator[sqlite3.Connection]:
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, _NAME)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        for pragma in ("page_size=1024", "journal_mode=WAL", "wal_autocheckpoint=4096", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def fill_bare(directory: str, keys: Iterable[str]) -> None:
    """Store an item for each of these keys."""
    data = pickle.dumps(ITEM, 5)
    with _connected(directory) as connection:
        connection.execute(_TABLE)
        connection.execute("BEGIN")
        connection.executemany(_INSERT, ((key, data) for key in keys))
        connection.execute("COMMIT")


@contextmanager
def bare_reader(directory: str) -> Iterator[Work]:
    """Give a function that looks keys up, one after the other."""
    with _connected(directory) as connection:
        yield partial(_look_up, connection.cursor().execute, _VALUE)


@contextmanager
def reader_of_ours(directory: str) -> Iterator[Work]:
    """Give the same function for the database of persistcoll's dict.

    The keys are encoded as bytes beforehand.
    """
    with _connected(directory) as connection:
        named = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'pairs!_%' ESCAPE '!'"
        ((table,),) = connection.execute(named).fetchall()
        yield partial(_look_up, connection.cursor().execute, f"SELECT value FROM {table} WHERE key = ?")


def _look_up(execute: Callable[..., sqlite3.Cursor], text: str, keys: Iterable[str | bytes]) -> None:
    loads = pickle.loads
    for key in keys:
        loads(execute(text, (key,)).fetchone()[0])


@contextmanager
def bare_writer(directory: str) -> Iterator[tuple[Work, Work]]:
    """Give a function that assigns to keys and one that deletes them.

    Each change is a transaction that survives the death of the process.
    """
    with _connected(directory) as connection:
        execute = connection.cursor().execute
        yield partial(_set, execute), partial(_remove, execute)


def _set(execute: Callable[..., sqlite3.Cursor], pairs: Iterable[tuple[str, Any]]) -> None:
    dumps = pickle.dumps
    for key, value in pairs:
        data = dumps(value, 5)
        execute("BEGIN IMMEDIATE")
        execute(_SET, (key, data))
        execute("COMMIT")


def _remove(execute: Callable[..., sqlite3.Cursor], keys: Iterable[str]) -> None:
    for key in keys:
        execute("BEGIN IMMEDIATE")
        execute(_REMOVE, (key,))
        execute("COMMIT")
