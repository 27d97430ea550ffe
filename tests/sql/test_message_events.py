"""What is told of messages in SQLite: by whom, when, and at which cost; also where a write fails."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from types import FrameType
from typing import Any

import pytest

from persistcoll import PDict, StaleClaimError, StorageError
from persistcoll.engine import message_events
from persistcoll.engine.message_events import EventKind, MessageEvent, observer_of
from persistcoll.engine.message_records import (
    DAMAGED,
    HOLDER_DIED,
    MessageEntry,
    MessagePolicy,
)
from persistcoll.sqlite import observed_writes
from persistcoll.sqlite.message_store import SQLiteMessageStore
from persistcoll.testing.children import in_forked_child
from tests.conformance.message_stores import SQLiteMessageStores
from tests.crash.messages import opened
from tests.queues.waits import until, waiting
from tests.sql.test_costs import Meter
from tests.sql.test_message_costs import OPERATIONS, Opened
from tests.sql.test_syncs import Syncs

PLAIN = MessagePolicy(max_attempts=None, backoff=None)


class Told(list[MessageEvent]):
    """An observer that keeps what it is told."""

    def __call__(self, events: Any) -> None:
        self.extend(events)

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path, told) -> Iterator[SQLiteMessageStore]:
    with closing(opened(tmp_path, PLAIN, observer=told)) as store:
        yield store


# The cost.


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_observer_costs_no_statement_and_no_sync(name, meter, told, tmp_path, monkeypatch):
    it = Opened(tmp_path, "power")
    with closing(it.store):
        it.put(300, topic="a")
        it.put(20, topic="b")
        it.claim()
        it.store.observe(told)
        prepare, call, statements, syncs = OPERATIONS[name]
        prepare(it)
        counted = Syncs(it.store._database, monkeypatch)
        assert meter.words(lambda: call(it)) == statements
        assert counted.count == syncs
        it.store.observe(None)


def called(call: Callable[[], object]) -> Counter[str]:
    """Return how often functions of Python are called, by ``file:name``."""
    names: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


HOT = ("put of 100", "claim of 32", "ack of 32", "nack", "release", "deliver", "extend")


@pytest.mark.parametrize("name", HOT)
def test_without_an_observer_not_even_a_function_is_called(name, told, tmp_path):
    it = Opened(tmp_path)
    prepare, call, *_ = OPERATIONS[name]
    with closing(it.store):
        it.put(300, topic="a")
        it.claim()
        prepare(it)
        alone = called(lambda: call(it))
        prepare(it)
        it.store.observe(told)
        observed = called(lambda: call(it))
        it.store.observe(None)
        prepare(it)
        again = called(lambda: call(it))
    assert telling(alone) == telling(again) == 0
    # Two calls for each event, and three for the operation.
    assert telling(observed) == 2 * len(told) + 3
    assert bool(told) == (name not in ("deliver", "extend"))


def telling(found: Counter[str]) -> int:
    """Return how many of these calls are there because something is told."""
    files = (message_events.__file__, observed_writes.__file__)
    dataclass = "<string>:__init__"
    return sum(
        count
        for place, count in found.items()
        if place.startswith(files) or place.endswith("message_life.py:note") or place == dataclass
    )


# By whom, and when.


def test_threads_whose_writes_are_combined_are_told_of_their_own(tmp_path, monkeypatch):
    store: Any
    seen: set[tuple[int, int | None]] = set()
    put: set[tuple[int, int | None]] = set()
    inside, go_on = threading.Event(), threading.Event()

    def produce() -> None:
        put.update((threading.get_ident(), id) for id in store.put([MessageEntry(b"x")] * 2))

    def wait() -> None:
        inside.set()
        assert go_on.wait(10)

    observer = observer_of(lambda event: seen.add((threading.get_ident(), event.id)))
    with closing(opened(tmp_path, PLAIN, "power", observer=observer)) as store:
        syncs = Syncs(store._database, monkeypatch)
        syncs.before = wait
        first = waiting(produce)
        assert inside.wait(10)
        others = [waiting(produce) for _ in range(7)]
        # One leads, and waits with its own request for the sync; the others wait for it.
        until(lambda: len(store._database._combiner._pending) == 6)
        go_on.set()
        for finish in (first, *others):
            finish()
    assert syncs.count == 3  # one thread has written for six
    assert len({thread for thread, _ in seen}) == 8
    assert seen == put


@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a transaction"])
def test_it_is_told_after_the_sync(tmp_path, told, monkeypatch, within):
    order: list[str] = []
    with closing(opened(tmp_path, PLAIN, "power", observer=lambda _: order.append("told"))) as store:
        syncs = Syncs(store._database, monkeypatch)
        syncs.before = lambda: order.append("synced")
        with store.transaction() if within else nullcontext():
            store.put([MessageEntry(b"x")])
    assert order == ["synced", "told"]


def test_a_transaction_that_another_collection_began(tmp_path, store, told):
    with PDict[str, int](tmp_path, name="dict") as mapping:
        with mapping.transaction():
            store.put([MessageEntry(b"x")])
            mapping["a"] = 1
            assert told == []
        assert told.kinds == ["put"]
        with suppress(ZeroDivisionError), mapping.transaction():
            store.put([MessageEntry(b"x")])
            raise ZeroDivisionError
        assert told.kinds == ["put"]


def test_an_observer_that_blocks_keeps_nobody_else_waiting(tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def observer(event: MessageEvent) -> None:
        if event.topic == "slow":
            inside.set()
            assert go_on.wait(10)

    with closing(opened(tmp_path, PLAIN, observer=observer_of(observer))) as store:

        def within_a_transaction() -> None:
            with store.transaction():
                store.put([MessageEntry(b"x", "slow")])

        for number, call in enumerate(
            (lambda: store.put([MessageEntry(b"x", "slow")]), within_a_transaction)
        ):
            finish = waiting(call)
            assert inside.wait(10)
            waiting(lambda: store.put([MessageEntry(b"x", "quick")]))()
            with waiting(store.transaction)():
                pass
            assert len(waiting(lambda: store.claim(5, ["quick"]))()) == 1
            assert waiting(store.stats)().puts == 2 * number + 2
            assert not finish.done()
            go_on.set()
            finish()
            inside.clear()
            go_on.clear()


# Where something fails.


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("name", ["put", "a stale ack", "put in a transaction"])
def test_nothing_is_told_of_a_commit_that_fails(tmp_path, told, monkeypatch, name):
    stores = SQLiteMessageStores(tmp_path)
    store: Any = stores.open("messages", PLAIN)
    store.put([MessageEntry(b"x", lease=5.0)])
    (record,) = store.claim()
    stores.advance(5.0)
    store.observe(told)

    def within_a_transaction() -> None:
        with store.transaction():
            store.put([MessageEntry(b"x")])

    calls = {
        "put": lambda: store.put([MessageEntry(b"x")]),
        "a stale ack": lambda: store.ack([record.claim]),  # it notices the end of the lease
        "put in a transaction": within_a_transaction,
    }
    with monkeypatch.context() as patch:
        full = sqlite3.OperationalError("database or disk is full")
        patch.setattr(store._database, "_commit", failing(full))
        with pytest.raises(StorageError):
            calls[name]()
    assert told == []
    with pytest.raises(StaleClaimError):
        store.ack([record.claim])
    assert told.kinds == ["reclaimed"]
    store.close()


@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a transaction"])
def test_nothing_is_told_of_a_sync_that_fails(tmp_path, told, monkeypatch, within):
    with closing(opened(tmp_path, PLAIN, "power", observer=told)) as store:
        monkeypatch.setattr(store._database.disk, "sync", failing(OSError(5, "Input/output error")))
        with pytest.raises(StorageError), store.transaction() if within else nullcontext():
            store.put([MessageEntry(b"x")])
        assert told == []


def test_a_write_that_was_undone_and_is_done_again_is_told_once(store, told, monkeypatch):
    """Another thread, which has done it together with its own, was interrupted before the commit."""
    write = store._database.write

    def undone_first(run: Any, *arguments: Any, **options: Any) -> Any:
        def interrupted(execute: Any) -> None:
            run(execute)
            raise ZeroDivisionError

        with suppress(ZeroDivisionError):
            write(interrupted, *arguments, **options)
        return write(run, *arguments, **options)

    monkeypatch.setattr(store._database, "write", undone_first)
    assert store.put([MessageEntry(b"x")] * 2) == [1, 2]
    assert [event.id for event in told] == [1, 2]


def test_nothing_is_told_of_a_call_that_a_signal_handler_ends_half_way(store, told, monkeypatch):
    store.put([MessageEntry(b"x")] * 2)
    claims = [record.claim for record in store.claim(2)]
    told.clear()
    finish, count = store._life.finish, iter(range(2))

    def handled(*arguments: Any) -> None:
        if next(count) == 1:
            raise ZeroDivisionError  # what a handler raises need not be a BaseException alone
        finish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store._life, "finish", handled)
        with pytest.raises(ZeroDivisionError):
            store.fail(claims)
    assert told == []
    store.fail(claims)
    assert told.kinds == ["dead", "dead"]


def test_an_interrupt_out_of_the_observer_comes_after_the_change(tmp_path):
    def interrupt(event: MessageEvent) -> None:
        raise KeyboardInterrupt

    with closing(opened(tmp_path, PLAIN, observer=observer_of(interrupt))) as store:
        with pytest.raises(KeyboardInterrupt):
            store.put([MessageEntry(b"x")])
        with pytest.raises(KeyboardInterrupt), store.transaction():
            store.put([MessageEntry(b"x")])
        store.observe(None)
        assert store.count() == 2


# What a store finds.


@pytest.mark.parametrize("how", ["opening", "reclaim", "a claim"])
def test_the_claims_of_a_dead_process(tmp_path, told, how):
    def claim_and_die() -> None:
        store = opened(tmp_path, PLAIN._replace(lease=None))
        store.claim(2)
        store.claim(prefetch=True)

    found = opened(tmp_path, PLAIN)
    found.put([MessageEntry(b"a", "t"), MessageEntry(b"b", "t", max_attempts=1), MessageEntry(b"c", "t")])
    in_forked_child(claim_and_die)
    if how == "opening":
        found.close()
        found = opened(tmp_path, PLAIN, observer=told)
    found.observe(told)
    with closing(found):
        if how == "reclaim":
            assert found.reclaim() == 3
        elif how == "a claim":
            assert [record.payload for record in found.claim()] == [b"a"]
            assert told.pop().kind is EventKind.CLAIMED
        # Those that need a step of their own end after the others.
        ended = sorted((event.id, event.kind.value, event.attempts, event.error) for event in told)
        assert ended == [
            (1, "reclaimed", 1, HOLDER_DIED),
            (2, "dead", 1, HOLDER_DIED),
            (3, "reclaimed", 0, None),
        ]
        found.observe(None)


def test_a_damaged_message(tmp_path, store, told):
    store.put([MessageEntry(b"a", "t"), MessageEntry(b"b", "t")])
    with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as connection:
        connection.execute("UPDATE messages_1 SET payload = x'00' WHERE id = 1")
    told.clear()
    store.claim()
    assert [(event.kind.value, event.id, event.error) for event in told] == [
        ("dead", 1, DAMAGED),
        ("claimed", 2, None),
    ]


def test_many_at_once_are_told_by_their_topics(store, told):
    store.put([MessageEntry(b"x", topic) for topic in "aab"])
    told.clear()
    assert store.purge() == 3
    assert [(event.topic, event.id, event.count) for event in told] == [("a", None, 2), ("b", None, 1)]
    store.put([MessageEntry(b"x", topic, max_attempts=1) for topic in "aab"])
    store.fail([record.claim for record in store.claim(3) if record.claim is not None])
    told.clear()
    assert store.redrive_all() == 3
    assert [(event.topic, event.id, event.count) for event in told] == [("a", None, 2), ("b", None, 1)]
