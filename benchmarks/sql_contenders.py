"""The queues in SQLite databases: ours, and persist-queue's as its documentation says."""

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
"""Those whose ``get`` removes. persist-queue has one of each name."""


def our_queue(directory: str, kind: str = "SQLiteQueue", **options: Any) -> Opened:
    """One of :data:`OURS`."""
    return OURS[kind](os.path.join(directory, "queue"), auto_commit=True, **options)


def our_ack_queue(directory: str, **options: Any) -> Opened:
    """A :class:`~persistcoll.SQLiteAckQueue`."""
    return SQLiteAckQueue(os.path.join(directory, "queue"), **options)


@contextmanager
def persist_queue(kind: str, directory: str, synchronous: str) -> Iterator[Any]:
    """persist-queue's queue of this class. Its connections sync each commit, unless told otherwise."""
    import persistqueue

    queue = getattr(persistqueue, kind)(os.path.join(directory, "queue"), auto_commit=True)
    try:
        for connection in {id(each): each for each in (queue._conn, queue._getter, queue._putter)}.values():
            connection.execute(f"PRAGMA synchronous={synchronous}")
        yield queue
    finally:
        queue.close()


def puts_and_gets(opening: Opened, count: int, items: Iterable[Any] | None = None) -> Mapping[str, float]:
    """All puts, then all gets, which remove.

    :param items: to put; else so many times the same one.
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
    """All puts, then for each item get and ack; then the three in turn.

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
    """All puts, then all gets, then all acks: nothing is finished before everything was got."""
    with opening as queue:
        marks = Marks()
        for _ in repeat(None, count):
            queue.put(ITEM)
        items = [queue.get() for _ in repeat(None, count)]
        for item in items:
            queue.ack(item)
        return {"all": marks.lap(count)}


def batches(directory: str, count: int, make: Callable[..., Opened] = our_queue) -> Mapping[str, float]:
    """put_many of :data:`BATCH` items, then get_many of as many."""
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
