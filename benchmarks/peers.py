"""Queues of others that several scenarios use, and what is measured with each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

from benchmarks.contenders import Marks

__all__ = ["BODY", "Verbs", "cycle", "huey", "litequeue"]

BODY = "x" * 100


class Verbs(NamedTuple):
    """What a queue calls putting, getting and finishing a message."""

    put: Callable[[str], object]
    get: Callable[[], Any]
    ack: Callable[[Any], object]


@contextmanager
def litequeue(synchronous: str, directory: str) -> Iterator[Verbs]:
    """Give a litequeue. Its connections are set to NORMAL by themselves."""
    from litequeue import LiteQueue

    queue = LiteQueue(os.path.join(directory, "queue.db"))
    queue.conn.execute(f"PRAGMA synchronous={synchronous}")
    yield Verbs(queue.put, queue.pop, lambda message: queue.done(message.message_id))
    queue.conn.close()


@contextmanager
def huey(fsync: bool, directory: str) -> Iterator[Verbs]:
    """Give huey's storage. It syncs each commit with ``fsync``, and has synchronous=OFF otherwise."""
    from huey.storage import SqliteStorage

    storage = SqliteStorage(filename=os.path.join(directory, "queue.db"), fsync=fsync)
    yield Verbs(lambda body: storage.enqueue(body.encode()), storage.dequeue, lambda found: None)
    storage.close()


def cycle(opened: Callable[[str], Any], count: int, directory: str) -> Mapping[str, float]:
    """Put all messages, then get and ack each."""
    with opened(directory) as verbs:
        marks = Marks()
        for _ in repeat(None, count):
            verbs.put(BODY)
        numbers = {"put": marks.lap(count)}
        for _ in repeat(None, count):
            verbs.ack(verbs.get())
        numbers["get + ack"] = marks.lap(count)
    return numbers
