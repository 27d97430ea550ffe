"""Forks while a thread is in an operation of one database and uses another one.

The fork must quiesce both databases. While it waits for that thread it must keep neither database from it,
because the thread could otherwise never end its operation.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from persistcoll import PDict, SQLiteQueue, StorageError
from persistcoll.engine import forks
from persistcoll.sqlite import database as databases
from persistcoll.testing.children import in_forked_child, run_threads
from tests.queues.waits import WatchedLock, until, waiting

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def several(tmp_path: Path) -> Iterator[list[PDict[str, int]]]:
    """Give several dicts, each in a database of its own."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(PDict[str, int](tmp_path / name, durability="process"))
            for name in ("one", "two", "three")
        ]


def database_of(ages: PDict[Any, Any]) -> Any:
    return ages._store._database  # type: ignore[attr-defined]


def timed(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_it_waits_for_nested_use_and_does_not_prevent_it(several, order):
    outer, middle, inner = (several[number] for number in order)
    inside = threading.Event()
    go_on = threading.Event()

    def nested() -> None:
        with outer.transaction():
            outer["n"] = 1
            inside.set()
            assert go_on.wait(10)
            with middle.transaction():
                middle["n"] = 1
                inner["n"] = 1

    def when_the_fork_waits() -> None:
        assert gate.waited_for.wait(10)
        go_on.set()

    def child() -> None:
        for ages in several:
            assert ages["n"] == 1
            ages["n"] += 1

    gate = database_of(outer)._transaction.gate = WatchedLock()
    finish = waiting(nested)
    assert inside.wait(10)
    tell = waiting(when_the_fork_waits)
    assert timed(lambda: in_forked_child(child)) < 4
    tell()
    finish()
    assert [ages.copy() for ages in several] == [{"n": 2}] * 3


def test_use_within_a_serializer(tmp_path):
    """The combiner also runs the operation of another thread."""

    class Asking:
        name = "asking"
        executes_code = False
        dumps = staticmethod(str.encode)

        def loads(self, data: bytes) -> str:
            inside.set()
            assert go_on.wait(10)
            other["n"] = 1
            return data.decode()

    inside, go_on = threading.Event(), threading.Event()
    with (
        SQLiteQueue(tmp_path / "q", serializer=Asking(), durability="process") as queue,
        PDict[str, int](tmp_path / "other", durability="process") as other,
    ):
        queue.put("a")
        get = waiting(queue.get)
        assert inside.wait(10)

        def fork() -> None:
            in_forked_child(lambda: other.update(n=other["n"] + 1))

        forked = waiting(fork)
        until(database_of(other)._transaction.gate.locked)
        go_on.set()
        forked()
        assert get() == "a"
        assert other["n"] == 2


def test_a_fork_in_a_transactions_own_thread(several):
    """The fork waits for another thread's transaction, not for its own, and that thread can go on."""
    own, late, free = several
    inside, go_on = threading.Event(), threading.Event()

    def nested() -> None:
        with late.transaction():
            inside.set()
            assert go_on.wait(10)
            free["n"] = late["n"] = 1

    def when_the_fork_waits() -> None:
        until(database_of(free)._transaction.gate.locked)
        go_on.set()

    def child() -> None:
        with pytest.raises(StorageError, match="forked within a transaction"):
            own["n"] = 3
        for ages in (late, free):
            ages["n"] += 1

    finish = waiting(nested)
    assert inside.wait(10)
    with own.transaction():
        own["n"] = 1
        tell = waiting(when_the_fork_waits)
        in_forked_child(child)
        tell()
        finish()
        own["n"] += 1
    assert [ages.copy() for ages in several] == [{"n": 2}] * 3


def test_two_that_use_each_other_all_the_time_and_two_that_fork(several, rng):
    """No thread waits for long, and each child can use all databases."""
    stop = threading.Event()
    counts = [0, 0]
    longest: list[float] = []

    def transact(number: int, outer: PDict[str, int], inner: PDict[str, int]) -> None:
        while not stop.is_set():
            with outer.transaction():
                outer["n"] = outer.get("n", 0) + 1
                inner[f"of {number}"] = inner.get(f"of {number}", 0) + 1
            counts[number] += 1

    def fork() -> None:
        for _ in range(8):
            longest.append(timed(lambda: in_forked_child(child)))
            threading.Event().wait(rng.random() / 100)

    def child() -> None:
        for ages in several:
            ages["children"] = ages.get("children", 0)

    def forks() -> None:
        try:
            run_threads(fork, fork, timeout=40)
        finally:
            stop.set()

    one, two, three = several
    run_threads(lambda: transact(0, one, two), lambda: transact(1, two, three), forks, timeout=50)
    assert max(longest) < 5, longest
    assert (one["n"], two["n"]) == tuple(counts)
    assert (two["of 0"], three["of 1"]) == tuple(counts)


def test_what_never_quiesces(several, monkeypatch):
    """The fork waits for all databases together, then for each in turn; the idle ones are quiesced."""
    monkeypatch.setattr(forks, "FORK_TIMEOUT", 0.2)
    monkeypatch.setattr(databases, "FORK_TIMEOUT", 0.2)
    busy, *free = several
    inside, go_on = threading.Event(), threading.Event()

    def transact() -> None:
        with busy.transaction():
            busy["n"] = 1
            inside.set()
            assert go_on.wait(10)

    def child() -> None:
        with pytest.raises(StorageError, match="forked within a transaction"):
            busy["n"] = 3
        for ages in free:
            ages["n"] = 1

    finish = waiting(transact)
    assert inside.wait(10)
    in_forked_child(child)
    for ages in free:
        ages["n"] += 1
    go_on.set()
    finish()
    in_forked_child(lambda: busy.update(n=busy["n"] + 1))
    assert [ages.copy() for ages in several] == [{"n": 2}] * 3
