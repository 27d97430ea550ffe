"""What concerns many messages reads them page by page, and their bodies only to give them to the caller."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll import CorruptionError, MessageQueue
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.sqlite import message_removal, message_store, scan
from persistcoll.sqlite.scan import in_pages
from tests.conformance.message_stores import MemoryMessageStores, SQLiteMessageStores
from tests.sql.test_costs import Meter

POLICY = MessagePolicy(backoff=None)
MIB = 1 << 20


@pytest.fixture
def stores(tmp_path: Path) -> SQLiteMessageStores:
    return SQLiteMessageStores(tmp_path)


def opened(stores: Any) -> Any:
    return stores.open("messages", POLICY)


def put(store: Any, count: int, body: bytes = b"", **fields: Any) -> None:
    for first in range(0, count, 500):
        size = min(500, count - first)
        store.put([MessageEntry(body, "odd" if number % 2 else "even", **fields) for number in range(size)])


def kill(store: Any, count: int, body: bytes = b"", **fields: Any) -> None:
    """Put messages that are dead at once."""
    for first in range(0, count, 100):
        put(store, min(100, count - first), body, **fields)
        claims: list[MessageClaim] = []
        store.claim(100, claims=claims)
        store.fail(claims)


@contextmanager
def memory(most: float) -> Iterator[None]:
    """Fail if Python's objects of the block need more bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.1f} MiB"


# Memory.

LARGE = bytes(20_000)
CALLS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any], int]] = {
    # what there is, the call, and of how many messages
    "purge of ready ones": (lambda store: put(store, 400, LARGE), lambda store: store.purge(), 400),
    "purge of a topic": (lambda store: put(store, 400, LARGE), lambda store: store.purge("odd"), 200),
    "purge of old ones": (lambda store: put(store, 400, LARGE), lambda s: s.purge(before=1e12), 400),
    "purge of delayed ones": (lambda s: put(s, 400, LARGE, delay=9.0), lambda store: store.purge(), 400),
    "purge of a group": (lambda s: put(s, 400, LARGE, group="g"), lambda store: store.purge(), 400),
    "purge of dead ones": (lambda store: kill(store, 400, LARGE), lambda s: s.purge(dead=True), 400),
    "redrive": (lambda store: kill(store, 400, LARGE), lambda store: store.redrive_all(), 400),
    "redrive of a group": (lambda s: kill(s, 50, LARGE, group="g"), lambda store: store.redrive_all(), 2),
    "dead letters": (lambda s: kill(s, 400, LARGE), lambda s: sum(1 for _ in s.scan(State.DEAD)), 400),
    "all messages": (lambda store: put(store, 400, LARGE), lambda s: sum(1 for _ in s.scan()), 400),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_needs_memory_for_a_page(stores: SQLiteMessageStores, name: str) -> None:
    """The bodies of all messages are 7.6 MiB."""
    prepare, call, count = CALLS[name]
    with closing(opened(stores)) as store:
        prepare(store)
        with memory(3 * MIB):
            assert call(store) == count


@pytest.mark.parametrize("name", ["purge", "redrive"])
def test_it_needs_no_memory_for_each_message(stores: SQLiteMessageStores, name: str) -> None:
    """A row without its body is half a kibibyte in Python's memory."""
    with closing(opened(stores)) as store:
        if name == "purge":
            put(store, 5_000)
        else:
            kill(store, 5_000)
        with memory(MIB):
            assert (store.purge() if name == "purge" else store.redrive_all()) == 5_000


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("purge", "redrive"))])
def test_it_reads_no_body(stores: SQLiteMessageStores, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(monkeypatch)
    prepare, call, _ = CALLS[name]
    with closing(opened(stores)) as store:
        prepare(store)
        meter.statements.clear()
        call(store)
        read = [text for text in meter.statements if text.startswith("SELECT") or "RETURNING" in text]
        assert len(read) >= 2
        assert not [text for text in read if "payload" in text or "headers" in text]


def test_dead_letters_of_the_queue_are_read_page_by_page(tmp_path: Path) -> None:
    with MessageQueue[bytes](tmp_path / "q", serializer="raw", durability="process") as queue:
        for _ in range(5):
            queue.put_many([LARGE] * 100)
            for message in queue.get_many(100):
                message.fail("no")
        with memory(3 * MIB):
            assert [letter.id for letter in queue.dead_letters()] == [*range(1, 501)]
            assert sum(len(letter.body) for letter in queue.dead_letters()) == 500 * len(LARGE)


# The same as at once.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page be two messages."""
    monkeypatch.setattr(message_removal, "_PAGE", 2)
    monkeypatch.setattr(message_store, "_PAGE", 2)


def filled(stores: Any, rng: random.Random) -> Any:
    """Fill a store with messages in every state, put at two times in equal shares.

    Among the dead ones is one of the topic "a" at least, whatever the random choices are.
    """
    store = opened(stores)
    for _ in range(2):
        entries = [
            MessageEntry(
                b"%d" % number,
                rng.choice("ab"),
                priority=rng.randrange(3),
                delay=rng.choice((0, 0, 50.0, 60.0)),
                ttl=rng.choice((None, 1000.0)),
                group=rng.choice((None, None, "g", "h")),
                key=rng.choice((None, b"%d" % rng.randrange(9))),
                key_window=rng.choice((0, 500.0)),
            )
            for number in range(40)
        ]
        entries.append(MessageEntry(b"first", "a", priority=9))
        store.put(entries)
        claims: list[MessageClaim] = []
        store.claim(10, claims=claims)
        store.fail(claims[:7])
        store.ack(claims[7:9])
        stores.advance(10.0)
    return store


def told(store: Any) -> Any:
    records = [record._replace(time=0.0, until=None, finished=None) for record in store.scan()]
    return records, replace(store.stats(), bytes=0, oldest_age=None), store.topics()


REMOVALS: dict[str, Callable[[Any, float], int]] = {
    "purge": lambda store, now: store.purge(),
    "purge of a topic": lambda store, now: store.purge("a"),
    "purge of old ones": lambda store, now: store.purge(before=now - 15.0),
    "purge of old ones of a topic": lambda store, now: store.purge("b", before=now - 15.0),
    "purge of dead ones": lambda store, now: store.purge(dead=True),
    "purge of dead ones of a topic": lambda store, now: store.purge("a", dead=True),
    "purge of old dead ones": lambda store, now: store.purge(dead=True, before=now - 15.0),
    "redrive": lambda store, now: store.redrive_all(),
    "redrive of a topic": lambda store, now: store.redrive_all("a"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", REMOVALS)
def test_small_pages_do_what_the_model_does(stores: SQLiteMessageStores, name: str, seed: int) -> None:
    model = MemoryMessageStores()
    counts, after = [], []
    for each in (stores, model):
        with closing(filled(each, random.Random(seed))) as store:
            counts.append(REMOVALS[name](store, each.now()))
            after.append(told(store))
            # Every key and every group is as it should be.
            store.put([MessageEntry(b"", "ab"[number % 2], key=b"%d" % number) for number in range(9)])
            each.advance(100.0)
            while not store.is_empty():
                store.ack([record.claim for record in store.claim(9)])
            after.append(told(store))
    assert counts[0] == counts[1] > 0
    assert after[:2] == after[2:]


def test_a_purge_of_old_ones_passes_what_stays_once(
    stores: SQLiteMessageStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer messages of a higher priority stand before them in the index."""
    meter = Meter(monkeypatch)
    steps = []
    for size in (1000, 10):
        monkeypatch.setattr(message_removal, "_PAGE", size)
        with closing(stores.open(f"pages of {size}", POLICY)) as store:
            put(store, 400)
            stores.advance(10.0)
            put(store, 400, priority=9)
            cost, _ = meter.cost(partial(store.purge, before=stores.now() - 5.0))
            steps.append(cost)
            assert store.count() == 400
    assert steps[1] < 1.5 * steps[0]


@pytest.mark.usefixtures("small")
def test_a_damaged_place_keeps_no_page_away(stores: SQLiteMessageStores) -> None:
    with closing(opened(stores)) as store:
        put(store, 9)
        with store.transaction() as connection:
            connection.execute("UPDATE messages_1 SET place = NULL WHERE id IN (2, 3, 5, 6)")
        assert store.purge() == 9
        assert store.stats().ready == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("call", ["purge", "redrive_all"])
def test_all_pages_or_none(stores: SQLiteMessageStores, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(stores)) as store:
        kill(store, 5)
        put(store, 5)
        before = told(store)
        pages = 0

        def interrupted(*arguments: Any) -> Any:
            nonlocal pages
            pages += 1
            if pages == 2:
                raise KeyboardInterrupt
            return step(*arguments)

        name = "remove" if call == "purge" else "redrive"
        step = getattr(store._life, name)
        monkeypatch.setattr(store._life, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            getattr(store, call)()
        assert pages == 2
        assert told(store) == before


# While others work.


@pytest.mark.usefixtures("small")
def test_an_iteration_gives_each_message_once_while_others_change_them(stores: SQLiteMessageStores) -> None:
    with closing(opened(stores)) as store:
        kill(store, 9)
        reading = store.scan(State.DEAD)
        ids = [next(reading).id]
        store.redrive(2)  # it was read already
        store.redrive(3)
        store.cancel(4)
        claims: list[MessageClaim] = []
        store.redrive(1)
        store.claim(1, claims=claims)
        store.fail(claims)  # dead again
        store.put([MessageEntry(b"", "new")] * 2)  # after the beginning
        store.fail([record.claim for record in store.claim(2, ["new"])])
        ids += [record.id for record in reading]
        assert ids == [1, 2, 5, 6, 7, 8, 9]


def test_an_iteration_keeps_no_transaction_open(stores: SQLiteMessageStores) -> None:
    with closing(opened(stores)) as store:
        put(store, 200)
        reading = store.scan()
        next(reading)
        store.checkpoint()
        assert Path(f"{stores._directory}/messages.db-wal").stat().st_size == 0


def test_rows_that_do_not_come_in_their_order_end_an_iteration() -> None:
    """A damaged index could give the same page for ever."""
    pages = iter([[(1,), (2,)], [(3,), (2,)]])
    reading = in_pages(lambda after: next(pages), "a path")
    assert [next(reading) for _ in range(3)] == [(1,), (2,), (3,)]
    with pytest.raises(CorruptionError, match="out of order"):
        next(reading)
    assert scan.BEFORE_ALL < 0


def test_of_dead_messages_with_one_key_a_redrive_takes_the_first(stores: SQLiteMessageStores) -> None:
    """Also where both are on one page."""
    with closing(opened(stores)) as store:
        kill(store, 1, key=b"key")
        kill(store, 1, key=b"key")
        assert store.redrive_all() == 1
        assert [record.state for record in store.scan()] == [State.READY, State.DEAD]
