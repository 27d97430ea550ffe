"""Very many topics, and very many messages that are due at once: what they cost others, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.sqlite import message_counters, message_life
from tests.conformance.message_stores import SQLiteMessageStores
from tests.sql.test_costs import Meter
from tests.sql.test_message_costs import KEEP, MORE, Opened, costs

BATCH = 10_000


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


def put(store: Any, count: int, entry: Callable[[int], MessageEntry]) -> None:
    for first in range(0, count, BATCH):
        store.put([entry(number) for number in range(first, min(first + BATCH, count))])


# Topics.


def filled(directory: Path, count: int) -> Opened:
    """Return a store with a message in each of so many topics."""
    directory.mkdir()
    opened = Opened(directory, keep=1000)
    opened.put(10, topic="another", priority=5.0)
    opened.claim(2)
    opened.settle("ack")
    opened.held.clear()
    put(opened.store, count, lambda number: MessageEntry(b"", f"topic {number}"))
    return opened


def open_again(opened: Opened) -> None:
    opened.store = opened.stores.open("messages", KEEP)


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_operation_costs_more_with_many_topics(count: int, meter: Meter, tmp_path: Path) -> None:
    few = filled(tmp_path / "few", 100)
    with closing(few.store):
        wanted = costs(few, meter)
    many = filled(tmp_path / "many", count)
    with closing(many.store) as store:
        found = costs(many, meter)
        for name, (steps, statements) in wanted.items():
            assert found[name][0] <= steps + MORE, name
            assert found[name][1] == statements, name
        assert len(store._counters._topics) <= message_counters._MOST_TOPICS
        topics = store.topics()
        assert [topics[f"topic {number}"] for number in range(count)] == [1] * count
        assert store.claim(1, [f"topic {count - 1}"])[0].topic == f"topic {count - 1}"


def test_opening_costs_no_more_with_many_topics(meter: Meter, tmp_path: Path) -> None:
    found = []
    for count in (100, 20_000):
        opened = filled(tmp_path / str(count), count)
        opened.store.close()
        steps, _ = meter.cost(partial(open_again, opened))
        found.append(steps)
        with closing(opened.store) as store:
            assert store.count() > count
    few, many = found
    assert many <= few + MORE


# Messages that are due.


class Due:
    """A store with so many delayed messages that are due, and that no transaction has promoted."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.stores = SQLiteMessageStores(directory)
        self.store: Any = self.stores.open("messages", MessagePolicy())
        self.other: Any = self.stores.open("messages", MessagePolicy())
        put(self.store, count, lambda number: MessageEntry(b"%d" % number, priority=number % 7, delay=60.0))
        self.stores.advance(60.0)

    def put_other(self) -> None:
        self.other.put([MessageEntry(b"", "other")])

    def delayed(self) -> int:
        (count,) = self.store._database.fetch_one("SELECT count(*) FROM messages_1 WHERE state = 2", ())
        return int(count)

    def close(self) -> None:
        self.store.close()
        self.other.close()


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.stress)])
@pytest.mark.timeout(1800)
def test_what_is_due_at_once_keeps_no_writer_for_all_of_it(count: int, meter: Meter, tmp_path: Path) -> None:
    """Each writer promotes as many as a transaction may. A claim misses none."""
    few, many = 4 * message_life._PROMOTED, count
    found = []
    for number in (few, many):
        due = Due(tmp_path / str(number), number)
        with closing(due):
            steps, _ = meter.cost(due.put_other)
            found.append(steps)
            assert due.delayed() == number - message_life._PROMOTED
            claimed = due.other.claim(3, ["default"])
            assert [int(record.payload) for record in claimed] == [6, 13, 20]
            assert due.delayed() == 0
            stats = due.store.stats()
            assert (stats.ready, stats.delayed) == (number - 3 + 1, 0)
            assert due.store.topics() == {"default": number - 3, "other": 1}
    # A promotion costs some steps more in a deeper tree.
    assert found[1] <= 1.2 * found[0]
