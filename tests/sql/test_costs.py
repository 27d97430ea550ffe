"""What an operation costs, counted: statements, steps of SQLite's machine, calls in Python.

Counts are the same on every machine, so a test can demand them: it fails at one statement more for each
``put``, or a step for each ready item, before a benchmark shows it.
"""

from __future__ import annotations

import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    Empty,
    FILOSQLiteAckQueue,
    FILOSQLiteQueue,
    PDict,
    PriorityQueue,
    SQLiteAckQueue,
    SQLiteQueue,
    UniqueAckQ,
    UniqueQ,
)
from persistcoll.sqlite import driver, holding
from tests.sql.test_syncs import Syncs, database_of

FEW, MANY = 1000, 50_000


class Meter:
    """Counts what all connections do that are opened meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        self.steps = 0
        self._connections: list[Any] = []
        self._measuring = False
        connect = driver.connect

        def watched(path: str, timeout: float) -> Any:
            connection = connect(path, timeout)
            connection.set_trace_callback(self.statements.append)
            self._connections.append(connection)
            if self._measuring:
                connection.set_progress_handler(self._step, 1)
            return connection

        monkeypatch.setattr(driver, "connect", watched)
        # Otherwise a test that takes longer counts a look for dead processes, too.
        monkeypatch.setattr(holding, "_BUSY_INTERVAL", math.inf)

    def _step(self) -> None:
        self.steps += 1

    def _measure(self, step: Callable[[], None] | None) -> None:
        self._measuring = step is not None
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                connection.set_progress_handler(step, 1)

    def words(self, call: Callable[[], object]) -> str:
        """Return the first word of each statement that ``call`` executes, and how often, if repeated."""
        self.statements.clear()
        call()
        words = Counter(text.split()[0].lower() for text in self.statements)
        return " ".join(word if count == 1 else f"{word}*{count}" for word, count in words.items())

    def cost(self, call: Callable[[], object]) -> tuple[int, int]:
        """Return the steps of SQLite's machine, and the calls of and in Python functions."""
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        self.steps = 0
        self._measure(self._step)
        sys.setprofile(count)
        try:
            call()
        finally:
            sys.setprofile(None)
            self._measure(None)
        return self.steps, calls


@pytest.fixture
def meter(monkeypatch) -> Meter:
    return Meter(monkeypatch)


class Opener(ExitStack):
    """Opens queues in one database; ``close()`` closes them all."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __call__(self, kind: type[Any], **options: Any) -> Any:
        queue = kind(self.path, serializer="json", **{"durability": "process", **options})
        return self.enter_context(queue)


@pytest.fixture
def opened(tmp_path) -> Iterator[Opener]:
    with Opener(tmp_path / "q") as opener:
        yield opener


# The statements of a transaction at "process". At "power" a claim needs no sync, which statements before and
# after it say.
PUT = "insert"  # a transaction of its own
TAKE = "begin select delete update commit"
CLAIM = "begin select insert delete update commit"
ACK = "begin update*2 commit"


@pytest.mark.parametrize(
    ("kind", "options", "put", "many", "get", "done"),
    [
        (SQLiteQueue, {}, PUT, "begin insert*100 commit", TAKE, ""),
        (FILOSQLiteQueue, {}, PUT, "begin insert*100 commit", TAKE, ""),
        (PriorityQueue, {}, "begin insert commit", "begin insert*100 commit", TAKE, ""),
        (UniqueQ, {}, "begin select insert*2 commit", "begin select*100 insert*200 commit",
         "begin select delete*2 update commit", ""),
        (SQLiteQueue, {"auto_commit": False}, PUT, "begin insert*100 commit", CLAIM,
         "begin delete update commit"),
        (SQLiteAckQueue, {}, PUT, "begin insert*100 commit", CLAIM, ACK),
        (SQLiteAckQueue, {"keep_acked": 0}, PUT, "begin insert*100 commit", CLAIM,
         "begin delete update commit"),
        (FILOSQLiteAckQueue, {}, PUT, "begin insert*100 commit", CLAIM, ACK),
        (UniqueAckQ, {}, "begin select insert*2 commit", "begin select*100 insert*200 commit", CLAIM,
         "begin select*2 delete update*2 commit"),
    ],
)  # fmt: skip
def test_the_statements_of_each_operation(meter, opened, kind, options, put, many, get, done):
    queue = opened(kind, **options)
    queue.put_many(range(1000, 1010))
    queue.get()
    queue.task_done()
    assert meter.words(lambda: queue.put(1)) == put
    assert meter.words(lambda: queue.put_many(range(2000, 2100))) == many
    assert meter.words(queue.get) == get
    assert meter.words(queue.task_done) == done
    assert meter.words(queue.peek) == "select"
    assert meter.words(queue.qsize) == meter.words(queue.empty) == meter.words(queue.full) == ""
    assert meter.words(lambda: list(queue.items())) == "select*2"


@pytest.mark.parametrize(
    ("verb", "statements"),
    [
        (lambda queue, item: queue.ack(item), ACK),
        (lambda queue, item: queue.ack_failed(item), ACK),
        (lambda queue, item: queue.nack(item), "begin select insert delete update commit"),
        (lambda queue, item: queue.nack(item, delay=60), "begin select update*2 commit"),
        (lambda queue, item: queue.nack(item, to_back=True), "begin select*2 delete insert update commit"),
        (lambda queue, item: queue.update("other", id=1), "begin select*4 update commit"),
        (lambda queue, item: queue.ack_failed(item, reason="no"), ACK),
        (lambda queue, item: queue.nack(item, reason="no"), "begin select insert delete update commit"),
        (lambda queue, item: queue.put("c", delay=60), "begin insert update commit"),
        (lambda queue, item: queue.requeue("all"), "begin insert*2 delete*2 commit"),
    ],
    ids=[
        "ack",
        "ack_failed",
        "nack",
        "nack with a delay",
        "nack to the back",
        "update",
        "ack_failed with a reason",
        "nack with a reason",
        "put with a delay",
        "requeue",
    ],
)
def test_the_statements_of_each_verb(meter, opened, verb, statements):
    queue = opened(SQLiteAckQueue)
    queue.put_many(["a", "b"])
    item = queue.get()
    assert meter.words(lambda: verb(queue, item)) == statements


def test_at_power_the_statements_are_the_same(meter, opened):
    queue = opened(SQLiteAckQueue, durability="power")
    queue.put_many("abcd")
    queue.ack(queue.get())
    assert meter.words(lambda: queue.put("e")) == PUT
    assert meter.words(queue.get) == CLAIM
    assert meter.words(queue.task_done) == ACK


def receive_many(queue: Any, raises: bool) -> None:
    with suppress(ZeroDivisionError), queue.receive_many(500) as items:
        assert len(items) == 500
        if raises:
            raise ZeroDivisionError


MANY_AT_ONCE: dict[str, tuple[type[Any], Callable[[Any], object], Callable[[Any], object]]] = {
    "ack_many": (
        SQLiteAckQueue, lambda queue: queue.get_many(500), lambda queue: queue.ack_many(ids=range(1, 501))
    ),
    "task_done": (SQLiteQueue, lambda queue: queue.get_many(500), lambda queue: queue.task_done(500)),
    "task_done of an ack queue": (
        SQLiteAckQueue, lambda queue: queue.get_many(500), lambda queue: queue.task_done(500)
    ),
    "requeue": (
        UniqueAckQ,
        lambda queue: [queue.ack_failed(item) for item in queue.get_many(500)],
        lambda queue: queue.requeue("all"),
    ),
    "put_many with a delay": (
        SQLiteAckQueue, lambda queue: None, lambda queue: queue.put_many(range(500), delay=60)
    ),
}  # fmt: skip


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("name", MANY_AT_ONCE)
def test_500_items_are_one_commit_and_one_sync(meter, opened, monkeypatch, name, durability):
    kind, prepare, call = MANY_AT_ONCE[name]
    queue = opened(kind, durability=durability, **({"auto_commit": False} if kind is SQLiteQueue else {}))
    queue.put_many(range(1000, 1500))
    prepare(queue)
    syncs = Syncs(database_of(queue), monkeypatch)
    words = meter.words(partial(call, queue)).split()
    assert (words.count("begin"), words.count("commit")) == (1, 1)
    assert syncs.count == int(durability == "power")


@pytest.mark.parametrize("raises", [False, True], ids=["acked", "nacked"])
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("kind", [SQLiteQueue, SQLiteAckQueue])
def test_a_batch_that_is_received_is_two_commits_and_one_sync(
    meter, opened, monkeypatch, kind, durability, raises
):
    """One commit claims it, without a sync, and one settles it."""
    queue = opened(kind, durability=durability)
    queue.put_many(range(1000, 1500))
    syncs = Syncs(database_of(queue), monkeypatch)
    words = meter.words(lambda: receive_many(queue, raises)).split()
    assert (words.count("begin*2"), words.count("commit*2")) == (1, 1)
    assert syncs.count == int(durability == "power")
    assert queue.qsize() == (500 if raises else 0)


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_a_transaction_over_collections_is_one_commit_and_one_sync(
    meter, opened, monkeypatch, count, durability
):
    """Whatever it does within, and to how many collections; one that is rolled back is no sync."""

    def work(well: bool) -> None:
        with suppress(ZeroDivisionError), results.transaction():
            for _ in range(count):
                job = jobs.get()
                results.put(job)
                jobs.ack(job)
                counters["last"] = counters.incr("done")
            if not well:
                raise ZeroDivisionError

    jobs, results, counters = (
        opened(kind, name=kind.__name__, durability=durability)
        for kind in (SQLiteAckQueue, SQLiteQueue, PDict)
    )
    jobs.put_many(range(1000, 1000 + 2 * count))
    syncs = Syncs(database_of(jobs), monkeypatch)
    costs = []
    for well in (True, False, True):
        syncs.count = 0
        words = Counter(dict.fromkeys(("begin", "commit", "rollback"), 0))
        words.update(meter.words(partial(work, well)).split())
        costs.append((words["begin"], words["commit"], words["rollback"], syncs.count))
    committed = (1, 1, 0, int(durability == "power"))
    assert costs == [committed, (1, 0, 1, 0), committed]
    assert (len(jobs), len(results), counters["done"]) == (0, 2 * count, 2 * count)


def test_an_empty_queue_is_asked_without_a_transaction(meter, opened):
    queue = opened(SQLiteQueue)
    for statements in ("begin select commit", "", "", ""):
        meter.statements.clear()
        with pytest.raises(Empty):
            queue.get_nowait()
        assert " ".join(text.split()[0].lower() for text in meter.statements) == statements


# Costs with any number of items ready, in flight or done.


def fill(opened: Opener, kind: type[Any], count: int) -> Any:
    """Make a queue with so many items ready, in flight and done."""
    ack = issubclass(kind, SQLiteAckQueue)
    queue = opened(kind, name=str(count), **({"keep_acked": None} if ack else {"auto_commit": False}))
    if ack:
        table = queue._store
        ids = queue.put_many(range(count))
        table.claim_many(count, lambda record: record.id)
        table.ack(ids)
        table.reclaim()
    other = opened(kind, name=str(count), **({} if ack else {"auto_commit": False}))
    queue.put_many(range(count))
    other._store.claim_many(count, lambda record: record.id)
    queue.put_many(range(count, 2 * count))
    return queue


def operations(queue: Any) -> dict[str, Callable[[], object]]:
    """Return calls that leave as many items in each state as they found, or one more."""
    ack = isinstance(queue, SQLiteAckQueue)
    item: list[Any] = []

    def get() -> None:
        item[:] = [queue.get()]

    calls: dict[str, Callable[[], object]] = {
        "qsize": queue.qsize,
        "stats": queue.stats,
        "peek": queue.peek,
        "version": queue._store.change_token,
        "put": lambda: queue.put("one"),
        "put_many": lambda: queue.put_many(["two", "three"]),
        "get": get,
        "get_many": lambda: queue.get_many(2),
        "task_done": queue.task_done,
        "task_done twice": queue.task_done,
        "task_done again": queue.task_done,
        "update": lambda: queue.update("four", id=queue._store.peek(lambda record: record.id)),
        "skip": queue.skip,
    }
    if ack:
        calls |= {
            "get for ack": get,
            "ack": lambda: queue.ack(item[0]),
            "get for nack": get,
            "nack": lambda: queue.nack(item[0]),
            "get for nack to the back": get,
            "nack to the back": lambda: queue.nack(item[0], to_back=True),
            "get for nack for later": get,
            "nack for later": lambda: queue.nack(item[0], delay=1000),
            "get for ack_failed": get,
            "ack_failed": lambda: queue.ack_failed(item[0]),
            "requeue": lambda: queue.requeue("all"),
            "put for later": lambda: queue.put(f"later {queue._store.stats().puts}", delay=1000),
            "get two": lambda: queue.get_many(2),
            "task_done of two": lambda: queue.task_done(2),
            "counts": lambda: (queue.unack_count(), queue.acked_count(), queue.active_size()),
            "clear_acked_data": lambda: queue.clear_acked_data(max_delete=5, keep_latest=10),
        }
    return calls


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "most"),
    [(SQLiteQueue, MANY), (FILOSQLiteQueue, MANY), (PriorityQueue, MANY), (UniqueAckQ, MANY // 5)],
)
def test_nothing_costs_more_with_more_items(meter, opened, kind, most):
    costs = []
    for count in (FEW, most):
        queue = fill(opened, kind, count)
        for call in operations(queue).values():  # the first round adds the holder and the statements' plans
            call()
        costs.append({name: meter.cost(call) for name, call in operations(queue).items()})
    few, many = costs
    for name, (steps, calls) in few.items():
        assert many[name][0] == steps, name
        # A writer whose last turn is 4 ms ago makes some more calls, and checks the database's files.
        assert abs(many[name][1] - calls) < 60, name


def test_opening_costs_no_more_with_more_items(meter, opened):
    kind, costs = SQLiteAckQueue, []
    for count in (FEW, MANY // 5):
        fill(opened, kind, count)
        opened.close()
        costs.append(meter.cost(lambda name=str(count): opened(kind, name=name)))
        opened.close()
    (few_steps, few_calls), (many_steps, many_calls) = costs
    # The second time there are more names, and more numbers of former holders.
    assert few_steps <= many_steps < few_steps + 50
    assert many_calls < few_calls + 200


def test_what_does_grow_is_seen(meter, opened):
    """A test of the test."""
    few, many = (meter.cost(fill(opened, SQLiteQueue, count).queue) for count in (10, 100))
    assert many[0] > 5 * few[0]
    assert many[1] > 5 * few[1]
