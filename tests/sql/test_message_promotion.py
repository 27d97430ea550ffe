"""Many delayed messages are due at once: no writer waits for all of them, and no answer leaves one out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from persistcoll import CorruptionError
from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.sqlite import message_life
from persistcoll.sqlite.message_store import SQLiteMessageStore
from tests.conformance.message_stores import SQLiteMessageStores

COUNT = 10
AT_ONCE = 3


class Due:
    """A store with more delayed messages that are due than one transaction promotes."""

    def __init__(self, directory: Path) -> None:
        self.stores = SQLiteMessageStores(directory)
        self.path = directory / "messages.db"
        self.store = self.open()
        entries = [
            MessageEntry(b"%d" % number, topic="odd" if number % 2 else "even", priority=number, delay=60.0)
            for number in range(COUNT)
        ]
        self.ids: list[Any] = self.store.put(entries)
        self.stores.advance(61.0)

    def open(self) -> SQLiteMessageStore:
        store = self.stores.open("messages", MessagePolicy())
        assert isinstance(store, SQLiteMessageStore)
        return store

    def left(self) -> int:
        """How many of them no transaction has promoted."""
        with closing(sqlite3.connect(self.path)) as database:
            (count,) = database.execute("SELECT count(*) FROM messages_1 WHERE state = 2").fetchone()
        return int(count)


@pytest.fixture
def due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Due]:
    monkeypatch.setattr(message_life, "_PROMOTED", AT_ONCE)
    found = Due(tmp_path)
    with closing(found.store):
        yield found


def test_each_writer_promotes_a_limited_number(due: Due) -> None:
    lefts = []
    for number in range(5):
        due.store.put([MessageEntry(b"new %d" % number)])
        lefts.append(due.left())
    assert lefts == [7, 4, 1, 0, 0]
    assert due.store.count() == COUNT + 5


def test_several_operations_of_a_transaction_promote_as_if_alone(due: Due) -> None:
    with due.store.transaction():
        due.store.put([MessageEntry(b"new")])
        assert due.store.count("odd") == COUNT // 2
        assert due.store.stats().ready == COUNT + 1
    assert due.left() == 0


def test_a_rollback_undoes_the_promotions(due: Due) -> None:
    with suppress(ZeroDivisionError), due.store.transaction():
        due.store.put([MessageEntry(b"new")])
        assert due.left() == COUNT  # so far only this transaction knows
        raise ZeroDivisionError
    assert due.left() == COUNT
    assert due.store.count() == COUNT
    assert due.left() == 0


ANSWERS: dict[str, tuple[Callable[[Any, list[int]], Any], Any]] = {
    "count": (lambda store, ids: store.count(), COUNT),
    "count of a topic": (lambda store, ids: store.count("odd"), COUNT // 2),
    "topics": (lambda store, ids: store.topics(), {"odd": COUNT // 2, "even": COUNT // 2}),
    "stats": (lambda store, ids: (store.stats().ready, store.stats().delayed), (COUNT, 0)),
    "find": (lambda store, ids: store.find(ids[-1]).state, State.READY),
    "scan": (lambda store, ids: [record.id for record in store.scan(State.READY)], None),
    "peek": (lambda store, ids: store.peek().priority, COUNT - 1),
    "claim": (lambda store, ids: store.claim()[0].priority, COUNT - 1),
    "claim all": (lambda store, ids: [record.id for record in store.claim(99)][::-1], None),
    "claim of a topic": (lambda store, ids: store.claim(topics=["even"])[0].priority, COUNT - 2),
    "fullest topic": (lambda store, ids: store.lock_topic(None, 60.0).topic, "odd"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_first_answer_misses_nothing(due: Due, name: str) -> None:
    ask, expected = ANSWERS[name]
    if name == "fullest topic":
        due.store.put([MessageEntry(b"new", topic="odd")])  # it has promoted some, and not the others
    assert ask(due.store, due.ids) == (due.ids if expected is None else expected)
    assert due.left() == 0


def test_what_else_is_due_is_done_at_once(due: Due) -> None:
    """A key, a group and a lease count for what the next writer does, whatever is left to promote."""
    store = due.store
    store.claim(99, lease=15.0)
    store.put([MessageEntry(b"x", delay=10.0) for _ in range(9)])
    store.put([MessageEntry(b"a", key=b"key", group="g", delay=10.0, ttl=5.0)])
    (second,) = store.put([MessageEntry(b"b", group="g", ttl=100.0)])
    assert second is not None
    due.stores.advance(20.0)
    (third,) = store.put([MessageEntry(b"c", key=b"key", group="g")])
    assert due.left() == 9 - AT_ONCE
    assert third is not None
    with closing(sqlite3.connect(due.path)) as database:
        query = "SELECT id, state FROM messages_1 WHERE grp = 'g' ORDER BY id"
        assert database.execute(query).fetchall() == [(second, 0), (third, 3)]
        assert database.execute("SELECT count(*) FROM messages_1 WHERE state = 1").fetchone() == (0,)


def test_another_process_goes_on_where_this_one_stopped(due: Due) -> None:
    due.store.put([MessageEntry(b"new")])
    assert due.left() == COUNT - AT_ONCE
    with closing(due.open()) as other:  # opening does what is due, too
        assert other.count() == COUNT + 1
    assert due.store.count() == COUNT + 1


def test_numbers_that_disagree_with_the_rows_are_damage(due: Due) -> None:
    due.store.close()
    with closing(sqlite3.connect(due.path)) as database, database:
        database.execute("UPDATE counters SET delayed = 1")
    with pytest.raises(CorruptionError), closing(due.open()) as store:
        store.count()
