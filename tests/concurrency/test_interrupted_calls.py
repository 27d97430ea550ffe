"""An exception out of a signal handler at each place of each call of a container.

Another object on the same store sees the call wholly or not at all. Counts are exact, no lock stays held, and
each ready item is delivered once. ``Late`` stands for exceptions that look like those of the operating
system.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from persistcoll import Empty, LockedError, PDict, SQLiteAckQueue, SQLiteQueue
from persistcoll.engine.transaction_hooks import OPEN
from tests.concurrency.kinds import DICT_CALLS, LEVELS, LOOKS, QUEUE_CALLS, QUEUES
from tests.interrupting import Interruption, interruptions
from tests.leaks import open_below

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    # What a generator raises while it is freed with its frame reaches no caller.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Late(TimeoutError):
    """An exception that a handler of SIGALRM may raise."""


CALLS: dict[str, Callable[[Any], object]] = {
    **{name: call for name, call in QUEUE_CALLS.items() if name not in LOOKS},
    "look": lambda queue: [look(queue) for look in LOOKS.values()],
}


@pytest.fixture
def error(rng):
    """Return one of the two exceptions, which come out at the same places."""
    return rng.choice([Interruption, Late])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("kind", "durability"), LEVELS)
def test_a_queue(kind, durability, name, error, memory_path, steps):
    numbers = itertools.count()
    places = []

    def prepare():
        places.append(memory_path / str(next(numbers)))
        queue = QUEUES[kind](places[-1], durability=durability)
        queue.put_many(["a", "b", "c", "d"])
        queue.get()
        return queue

    def state(queue):
        stats = queue.stats()
        return list(queue.items()), queue.qsize(), stats.ready, stats.claimed, queue.unfinished_tasks

    with prepare() as quiet:
        before = state(quiet)
        CALLS[name](quiet)
        after = state(quiet)

    found = interruptions(prepare, CALLS[name], error, **steps)
    for queue, where in found:
        seen = state(queue)
        # With autosave a removed item is finished, though the caller did not get it.
        gone = seen[:4] == after[:4] and seen[4] == after[4] - (before[1] - after[1])
        # An error while a later item is decoded looks like that item's own, so the items before it are
        # returned.
        fewer = name == "get_many" and error is Late and len(after[0]) < len(seen[0]) < len(before[0])
        assert seen in (before, after) or gone or fewer, (where, seen, before, after)
        with QUEUES[kind](places[-1], durability=durability) as observer:
            assert list(observer.items()) == seen[0], where
            assert (observer.qsize(), observer.stats().claimed) == (seen[1], seen[3]), where
            with suppress(LockedError):  # the queue itself is the consumer
                observer.put("another")
        got = []
        with suppress(Empty):
            while True:
                got.append(queue.get(block=False))
        assert sorted(got) == sorted([*seen[0], "another"]), where
        for _ in range(queue.unfinished_tasks):
            queue.task_done()
        queue.join()
        queue.close()
        assert not open_below(places[-1]), where
        with QUEUES[kind](places[-1], durability=durability) as again:
            assert again.qsize() == 0, where


def edit(ages):
    with ages.edit("list") as value:
        value.append(1)


def transaction(ages):
    with ages.transaction():
        ages["new"] = 1
        del ages["a"]


CHANGES = {
    **DICT_CALLS,
    "popitem": lambda ages: ages.popitem(),
    "edit": edit,
    "transaction": transaction,
}


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_dict(name, durability, error, memory_path, steps):
    numbers = itertools.count()
    places = []

    def prepare():
        places.append(memory_path / str(next(numbers)))
        ages = PDict(places[-1], durability=durability)
        ages.update(a=1, b=2, list=[])
        len(ages)
        return ages

    with prepare() as quiet:
        before = dict(quiet)
        CHANGES[name](quiet)
        after = dict(quiet)

    found = interruptions(prepare, CHANGES[name], error, **steps)
    for ages, where in found:
        seen = dict(ages)
        assert seen in (before, after), where
        assert len(ages) == len(seen), where
        with PDict(places[-1], durability=durability) as observer:
            assert dict(observer) == seen, where
            observer["another"] = 5
        assert ages["another"] == 5, where
        assert "another" in ages, where
        ages["another"] = 6
        assert ages.get_many(["another"]) == {"another": 6}, where
        ages.close()
        assert not open_below(places[-1]), where


class _Fails(Exception):
    pass


@pytest.mark.parametrize("commits", [True, False])
def test_a_transaction_of_queues(commits, error, memory_path, steps):
    numbers = itertools.count()
    options: dict[str, Any] = {"durability": "process"}

    def prepare():
        path = memory_path / str(next(numbers))
        queue = SQLiteAckQueue[str](path, name="queue", keep_acked=9, **options)
        results = SQLiteQueue[str](path, "results", **options)
        queue.put_many(["a", "b", "c"])
        return path, queue, results, queue.get()

    def change(made):
        _, queue, results, item = made
        with suppress(_Fails), queue.transaction():
            queue.ack(item)
            results.put("result")
            queue.get()
            if not commits:
                raise _Fails

    for (path, queue, results, item), where in interruptions(prepare, change, error, **steps):
        assert OPEN == [], where
        done = queue.acked_count()
        assert done <= commits, where
        counts = queue.qsize(), queue.unack_count(), len(results), queue.unfinished_tasks
        assert counts == ((1, 1, 1, 2) if done else (2, 1, 0, 3)), where
        assert queue.ack(item) == (None if done else 1), where
        results.put("another")
        queue.get_many(9)
        for _ in range(queue.unfinished_tasks):
            queue.task_done()
        queue.join()
        assert queue.acked_count() == 3, where
        queue.close()
        results.close()
        assert not open_below(path), where


@pytest.mark.long
@pytest.mark.parametrize(("kind", "durability"), LEVELS)
def test_opening_and_closing(kind, durability, error, memory_path, steps):
    numbers = itertools.count()
    places = []

    def prepare():
        places.append(memory_path / str(next(numbers)))
        with QUEUES[kind](places[-1], durability=durability) as queue:
            queue.put_many(["a", "b"])
        return places[-1]

    def open_and_close(path):
        with QUEUES[kind](path, durability=durability) as queue:
            queue.get(block=False)

    found = interruptions(prepare, open_and_close, error, **steps)
    for path, where in found:
        assert not open_below(path), where
        with QUEUES[kind](path, durability=durability) as again:
            got = []
            with suppress(Empty):
                while True:
                    got.append(again.get(block=False))
            assert sorted(got) in (["a", "b"], ["a"], ["b"]), where
        assert not open_below(path), where


@pytest.mark.parametrize("durability", ["process", "power"])
def test_opening_and_closing_a_dict(durability, error, memory_path, steps):
    numbers = itertools.count()

    def prepare():
        path = memory_path / str(next(numbers))
        with PDict(path, durability=durability) as ages:
            ages["a"] = 1
        return path

    def open_and_close(path):
        with PDict(path, durability=durability) as ages:
            ages["a"] = 2

    for path, where in interruptions(prepare, open_and_close, error, **steps):
        assert not open_below(path), where
        with PDict(path, durability=durability) as again:
            assert dict(again) in ({"a": 1}, {"a": 2}), where
        assert not open_below(path), where
