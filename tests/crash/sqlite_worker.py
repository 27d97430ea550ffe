"""A worker whose power is cut: it puts, gets and acks, and says what it tries and what returned.

Run as a module, with a path, the first number, a seed, a durability, and a kind of ``KINDS``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll import Empty, SQLiteAckQueue
from persistcoll.engine.message_records import MessageEntry
from tests.crash.messages import opened


def say(what: str, *numbers: int) -> None:
    """Write one line, at once."""
    print(what, *numbers, flush=True)


class Acks:
    """An ack queue of numbers."""

    def __init__(self, path: str, durability: Any) -> None:
        self._queue = SQLiteAckQueue[int](path, serializer="json", durability=durability, keep_acked=3)

    def put(self, numbers: range) -> None:
        self._queue.put_many(numbers)

    def claim(self) -> tuple[int, Callable[[], object]] | None:
        """Claim a number; return it and what acks it, or ``None`` if none is ready."""
        if not self._queue.qsize():
            return None
        number = self._queue.get()
        return number, partial(self._queue.ack, number)


class Messages:
    """The same with a message store, in which some messages have a group."""

    def __init__(self, path: str, durability: Any) -> None:
        self._store = opened(path, durability=durability)

    def put(self, numbers: range) -> None:
        groups = (None, "one", "other")
        self._store.put([MessageEntry(b"%d" % number, group=groups[number % 3]) for number in numbers])

    def claim(self) -> tuple[int, Callable[[], object]] | None:
        try:
            (record,) = self._store.claim()
        except Empty:
            return None
        assert record.claim is not None
        return int(record.payload), partial(self._store.ack, [record.claim])


KINDS: dict[str, Any] = {"ack": Acks, "messages": Messages}


def work(path: str, first: int, seed: int, durability: Any, kind: str) -> None:
    """Work until the power is cut."""
    rng, queue = random.Random(seed), KINDS[kind](path, durability)
    while True:
        numbers = range(first, first + rng.choice((1, 1, 1, 5)))
        first = numbers.stop
        say("try", *numbers)
        queue.put(numbers)
        say("put", *numbers)
        if rng.random() < 0.6 and (claimed := queue.claim()):
            number, ack = claimed
            say("settle", number)
            ack()
            say("settled", number)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
