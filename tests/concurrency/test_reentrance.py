"""Calls from a signal handler or a destructor, at any place in an operation of the same thread.

No call waits forever, and a call that raises has stored nothing. Reading calls and ``close`` always succeed.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import pytest

from persistcoll import ClosedError, Empty, PDict, StorageError
from tests.concurrency.kinds import DICT_CALLS, LEVELS, QUEUE_CALLS, QUEUES
from tests.interrupting import handled

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


class Handler:
    """A handler that makes all calls, and records what they stored."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.stored: list[str] = []
        self.refused: list[str] = []
        self.got: list[Any] = []

    def put(self, queue: Any) -> None:
        item = f"handler {next(self.numbers)}"
        try:
            queue.put(item, block=False)
            self.stored.append(item)
        except StorageError:
            self.refused.append(item)

    def look(self, queue: Any) -> None:
        assert queue.qsize() >= 0
        assert isinstance(queue.empty(), bool)
        with suppress(Empty):
            queue.peek()

    def get(self, queue: Any) -> None:
        with suppress(Empty, StorageError):
            self.got.append(queue.get(block=False))


@pytest.mark.slow
@pytest.mark.parametrize("operation", QUEUE_CALLS)
@pytest.mark.parametrize(("kind", "durability"), LEVELS)
def test_a_queue(kind, operation, durability, memory_path, steps):
    numbers = itertools.count()
    handlers: list[Handler] = []

    def prepare():
        queue = QUEUES[kind](memory_path / str(next(numbers)), durability=durability)
        queue.put_many(["a", "b", "c", "d"])
        queue.get()
        handlers.append(Handler())
        return queue

    def handler(queue):
        mine = handlers[-1]
        mine.look(queue)
        mine.put(queue)
        mine.get(queue)

    def call(queue):
        with suppress(Empty):  # the handler took the last item
            QUEUE_CALLS[operation](queue)

    count = 0
    for queue, where in handled(prepare, call, handler, **steps):
        count += 1
        mine = handlers[-1]
        waiting = list(queue.items())
        assert len(waiting) == queue.qsize(), where
        got = []
        with suppress(Empty):
            while True:
                got.append(queue.get(block=False))
        assert sorted(got) == sorted(waiting), where
        everything = [*mine.got, *got]
        assert len(everything) == len(set(everything)), where
        assert not set(mine.refused) & set(everything), where
        # these may have taken the handler's item
        if operation not in ("get", "get_many", "receive", "skip", "clear"):
            assert set(mine.stored) <= set(everything), where
        queue.close()
    assert count


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("operation", DICT_CALLS)
def test_a_dict(operation, durability, memory_path, steps):
    numbers = itertools.count()
    seen: dict[str, bool] = {}

    def prepare():
        ages = PDict(memory_path / str(next(numbers)), durability=durability)
        ages.update(a=1, b=2)
        seen.clear()
        return ages

    def handler(ages):
        assert len(ages) >= 0
        assert ages.get("b") in (2, 3, None)
        assert isinstance("a" in ages, bool)
        try:
            ages["handler"] = 1
            seen["stored"] = True
        except StorageError:
            seen["stored"] = False

    for ages, where in handled(prepare, DICT_CALLS[operation], handler, **steps):
        if operation != "clear" and seen:
            assert ("handler" in ages) == seen["stored"], where
        assert len(ages) == len(dict(ages)), where
        ages.close()


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("operation", ["put", "get", "qsize", "items"])
@pytest.mark.parametrize("kind", ["Queue", "SQLiteQueue", "SQLiteAckQueue"])
def test_closing(kind, operation, durability, memory_path, steps):
    """The operation succeeds or is refused. What it stored is there, and the store can be opened again."""
    numbers = itertools.count()
    paths = []

    def prepare():
        paths.append(memory_path / str(next(numbers)))
        queue = QUEUES[kind](paths[-1], durability=durability)
        queue.put_many(["a", "b"])
        return queue

    returned: list[bool] = []

    def call(queue):
        try:
            QUEUE_CALLS[operation](queue)
            returned.append(True)
        except (ClosedError, StorageError):
            returned.append(False)

    for queue, where in handled(prepare, call, lambda queue: queue.close(), **steps):
        queue.close()
        with pytest.raises(ClosedError):
            queue.qsize()
        with QUEUES[kind](paths[-1], durability=durability) as again:
            items = list(again.items())
            if operation == "put":
                assert ("new" in items) == returned[-1], where
            again.put("goes on")
