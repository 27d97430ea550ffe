"""Every container and every call of it, for the tests that interrupt a call at each of its places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll import FILOSQLiteQueue, PriorityQueue, Queue, SQLiteAckQueue, SQLiteQueue, UniqueQ

__all__ = ["DICT_CALLS", "LEVELS", "LOOKS", "QUEUES", "QUEUE_CALLS"]

QUEUES: dict[str, Callable[..., Any]] = {
    "Queue": lambda path, **options: Queue(path, chunksize=3, **options),
    "Queue, autosave": lambda path, **options: Queue(path, chunksize=3, autosave=True, **options),
    "Queue, skip": lambda path, **options: Queue(path, chunksize=3, on_corruption="skip", **options),
    "SQLiteQueue": SQLiteQueue,
    "SQLiteQueue, task_done": lambda path, **options: SQLiteQueue(path, auto_commit=False, **options),
    "FILOSQLiteQueue": FILOSQLiteQueue,
    "UniqueQ": UniqueQ,
    "PriorityQueue": PriorityQueue,
    "SQLiteAckQueue": lambda path, **options: SQLiteAckQueue(path, lease=1000, keep_acked=1, **options),
}

# The other containers run the same code at "power" as these three.
LEVELS = [(kind, "process") for kind in QUEUES] + [
    (kind, "power") for kind in ("Queue", "SQLiteQueue", "SQLiteAckQueue")
]


def _receive(queue: Any) -> None:
    with queue.receive(block=False):
        pass


LOOKS: dict[str, Callable[[Any], object]] = {
    "peek": lambda queue: queue.peek(),
    "qsize": lambda queue: queue.qsize(),
    "items": lambda queue: list(queue.items()),
    "stats": lambda queue: queue.stats(),
}

QUEUE_CALLS: dict[str, Callable[[Any], object]] = {
    "put": lambda queue: queue.put("new"),
    "put_many": lambda queue: queue.put_many(["new", "newer"]),
    "get": lambda queue: queue.get(block=False),
    "get_many": lambda queue: queue.get_many(2, block=False),
    "receive": _receive,
    "task_done": lambda queue: queue.task_done(),
    "skip": lambda queue: queue.skip(),
    "clear": lambda queue: queue.clear(),
    **LOOKS,
}

DICT_CALLS: dict[str, Callable[[Any], object]] = {
    "set": lambda ages: ages.__setitem__("new", 1),
    "get": lambda ages: ages["a"],
    "get_many": lambda ages: ages.get_many(["a", "b"]),
    "update": lambda ages: ages.update(new=1, b=3),
    "pop": lambda ages: ages.pop("a"),
    "incr": lambda ages: ages.incr("a"),
    "items": lambda ages: list(ages.items()),
    "scan": lambda ages: list(ages.scan("a")),
    "len": len,
    "clear": lambda ages: ages.clear(),
}
