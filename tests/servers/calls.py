"""Each call of an ack queue on a server, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["AFTER", "CALLS", "UNCHANGED", "prepare"]

CALLS: dict[str, Callable[[Any, list[str]], object]] = {
    "put": lambda queue, got: queue.put("new"),
    "put_many": lambda queue, got: queue.put_many(["new", "newer"]),
    "get": lambda queue, got: queue.get(timeout=20),
    "get at once": lambda queue, got: queue.get(block=False),
    "get_many": lambda queue, got: queue.get_many(2),
    "ack": lambda queue, got: queue.ack(got[0]),
    "ack_many": lambda queue, got: queue.ack_many(got),
    "nack": lambda queue, got: queue.nack(got[0]),
    "nack to the back": lambda queue, got: queue.nack(got[0], to_back=True),
    "ack_failed": lambda queue, got: queue.ack_failed(got[0]),
    "requeue": lambda queue, got: queue.requeue("all"),
    "resume_unack_tasks": lambda queue, got: queue.resume_unack_tasks(),
    "qsize": lambda queue, got: queue.qsize(),
    "peek": lambda queue, got: queue.peek(),
    "stats": lambda queue, got: queue.stats(),
    "clear": lambda queue, got: queue.clear(),
    "clear_acked_data": lambda queue, got: queue.clear_acked_data(keep_latest=None),
    "close": lambda queue, got: queue.close(),
}
# Ready, claimed, done, failed: after four were put, two were got, and a fifth one failed.
AFTER = {
    "put": (3, 2, 0, 1),
    "put_many": (4, 2, 0, 1),
    "get": (1, 3, 0, 1),
    "get at once": (1, 3, 0, 1),
    "get_many": (0, 4, 0, 1),
    "ack": (2, 1, 1, 1),
    "ack_many": (2, 0, 2, 1),
    "nack": (3, 1, 0, 1),
    "nack to the back": (3, 1, 0, 1),
    "ack_failed": (2, 1, 0, 2),
    "requeue": (3, 2, 0, 0),
    "clear": (0, 2, 0, 1),
    "close": (4, 0, 0, 1),
}
UNCHANGED = (2, 2, 0, 1)


def prepare(queue: Any) -> list[str]:
    """Put some, let one fail, and get two; the last put waits for the device, and for all before it."""
    queue.put_many(["failed", "a", "b", "c"])
    queue.ack_failed(queue.get())
    got: list[str] = queue.get_many(2)
    queue.put("d")
    return got
