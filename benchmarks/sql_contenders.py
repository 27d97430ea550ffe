"""The queues in SQLite databases: persistcoll's, and persist-queue's as its documentation says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from typing import Any

from benchmarks.contenders import BATCH, ITEM, Marks
from persistcoll import FILOSQLiteQueue, PriorityQueue, SQLiteAckQueue, SQLiteQueue, UniqueQ

__all__ = [
    "OURS",
    "acknowledged",
    "batches",
    "held",
    "our_ack_queue",
    "our_queue",
    "persist_queue",
    "puts_and_gets",
]

Opened = Any
"""A context manager that gives a queue."""


OURS: Mapping[str, Callable[..., Opened]] = {
    queue.__name__: queue for queue in (SQLiteQueue, FILOSQLiteQueue, UniqueQ, PriorityQueue)
}
"""The classes whose ``get`` removes. persist-queue has one of each name."""


def our_queue(directory: str, kind: str = "SQLiteQueue", **options: Any) -> Opened:
    """Return a queue of a class in :data:`OURS`."""
    return OURS[kind](os.path.join(directory, "queue"), auto_commit=True, **options)


def our_ack_queue(directory: str, **options: Any) -> Opened:
    """Return a :class:`~persistcoll.SQLiteAckQueue`."""
    return SQLiteAckQueue(os.path.join(directory, "queue"), **options)


@contextmanager
def persist_queue(kind: str, directory: str, synchronous: str) -> Iterator[Any]:
    """Give persist-queue's queue of this class.

    Its connections sync each commit, unless a pragma says otherwise.
    """
    import persistqueue

    queue = getattr(persistqueue, kind)(os.path.join(directory, "queue"), auto_commit=True)
    try:
        for connection in {id(each): each for each in (queue._conn, queue._getter, queue._putter)}.values():
            connection.execute(f"PRAGMA synchronous={synchronous}")
        yield queue
    finally:
        queue.close()


def puts_and_gets(opening: Opened, count: int, items: Iterable[Any] | None = None) -> Mapping[str, float]:
    """Put all items, then get them, which removes them.

    :param items: the items to put; without them, ``count`` times the same one.
    """
    with opening as queue:
        put, get = queue.put, queue.get
        marks = Marks()
        for item in repeat(ITEM, count) if items is None else items:
            put(item)
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            get()
        numbers["get"] = marks.lap(count)
    return numbers


def acknowledged(
    opening: Opened, count: int, prepare: Callable[[], None] = lambda: None
) -> Mapping[str, float]:
    """Put all items, then get and ack each; then put, get and ack each.

    :param prepare: called when the queue is open.
    """
    with opening as queue:
        prepare()
        put, get, ack = queue.put, queue.get, queue.ack
        marks = Marks()
        for _ in repeat(None, count):
            put(ITEM)
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            ack(get())
        numbers["get + ack"] = marks.lap(count)
        for _ in repeat(None, count):
            put(ITEM)
            ack(get())
        numbers["in turn"] = marks.lap(count)
    return numbers


def held(opening: Opened, count: int) -> Mapping[str, float]:
    """Put all items, then get all, then ack all: none is finished before all were got."""
    with opening as queue:
        marks = Marks()
        for _ in repeat(None, count):
            queue.put(ITEM)
        items = [queue.get() for _ in repeat(None, count)]
        for item in items:
            queue.ack(item)
        return {"all": marks.lap(count)}


def batches(directory: str, count: int, make: Callable[..., Opened] = our_queue) -> Mapping[str, float]:
    """Put and get all items in batches of :data:`BATCH`."""
    batch = [ITEM] * BATCH
    with make(directory, durability="process") as queue:
        marks = Marks()
        for _ in range(0, count, BATCH):
            queue.put_many(batch)
        numbers = {"put": marks.lap(count)}
        for _ in range(0, count, BATCH):
            queue.get_many(BATCH)
        numbers["get"] = marks.lap(count)
    return numbers
