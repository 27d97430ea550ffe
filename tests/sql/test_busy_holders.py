"""Claims that find something look for dead processes, too: from time to time, and for a few at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from persistcoll import SQLiteQueue
from persistcoll.disk.calls import open_lasting
from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import FIFO, ClaimPolicy
from persistcoll.errors import StorageError
from persistcoll.sqlite import holders, holding
from tests.conformance.message_stores import SQLiteMessageStores
from tests.conformance.record_stores import SQLiteRecordStores


class Busy:
    """A store of records or of messages that always has something to claim.

    :param make: opens another object of it.
    :param claim: claims the next item of a store, and returns its id.
    """

    def __init__(self, make: Callable[[], Any], put: Callable[[Any], object], claim: Callable[[Any], int]):
        self._make, self._put, self._claim = make, put, claim
        self.stack = ExitStack()
        self.store = self.opened()

    def opened(self) -> Any:
        return self.stack.enter_context(closing(self._make()))

    def claim(self, store: Any = None) -> int:
        """Put an item, and claim the first one."""
        self._put(self.store)
        return self._claim(store or self.store)

    def die_with_one(self) -> int:
        """Claim in another store, and leave it as if its process had died; return the id."""
        other = self._make()
        id = self.claim(other)
        other.after_fork_in_child()
        other.close()
        return id


def messages(path: Path) -> Busy:
    stores = SQLiteMessageStores(path)
    return Busy(
        lambda: stores.open("busy", MessagePolicy(lease=None)),
        lambda store: store.put([MessageEntry(b"")]),
        lambda store: int(store.claim()[0].id),
    )


def records(claim: Callable[[Any], Any]) -> Callable[[Path], Busy]:
    def make(path: Path) -> Busy:
        stores = SQLiteRecordStores(path)
        return Busy(lambda: stores.open("busy", FIFO, ClaimPolicy()), lambda store: store.append(b""), claim)

    return make


KINDS = {
    "messages": messages,
    "claim": records(lambda store: store.claim(lambda record: record.id)),
    "claim_many": records(lambda store: store.claim_many(1, lambda record: record.id)[0]),
}


@pytest.fixture(params=KINDS)
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Busy]:
    found = KINDS[request.param](tmp_path)
    with found.stack:
        yield found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the holders of which a look has asked whether they are dead."""
    numbers: list[int] = []

    def noting(disk: Any, path: str, number: int) -> bool:
        numbers.append(number)
        return holders.is_dead(disk, path, number)

    monkeypatch.setattr(holding, "is_dead", noting)
    return numbers


def test_what_a_dead_holder_has_comes_back_in_its_place(busy, monkeypatch):
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 0.0)
    mine, theirs = busy.claim(), busy.die_with_one()
    assert busy.claim() == theirs
    assert busy.claim() == theirs + 1
    assert mine < theirs


def test_a_look_comes_after_an_interval(busy, asked, monkeypatch):
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 1000.0)
    busy.claim()
    busy.claim(busy.opened())
    theirs = busy.die_with_one()
    asked.clear()
    assert [busy.claim() for _ in range(20)] == list(range(theirs + 1, theirs + 21))
    assert asked == []
    for numbers in ([2, 3], [2, 3, 2]):  # the dead one is forgotten then
        busy.store._holding._last_busy_check -= 1000.0
        for _ in range(3):
            busy.claim()
        assert asked == numbers


def test_holders_take_turns(busy, asked, monkeypatch):
    """Each look is for a few of them, and none is left out."""
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 0.0)
    monkeypatch.setattr(holding, "_CHECKED_AT_ONCE", 4)
    busy.claim()
    for _ in range(9):
        busy.claim(busy.opened())
    theirs = busy.die_with_one()
    asked.clear()
    for count in (3, 7, 10):
        claimed = busy.claim()
        assert (len(asked), claimed == theirs) == (count, count == 10)
    # All but its own, and that of the dead one is the last.
    assert asked == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_store_alone_asks_for_nobody(busy, asked, monkeypatch):
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 0.0)
    for _ in range(3):
        busy.claim()
    assert asked == []


def test_a_look_that_the_system_refuses_disturbs_no_claim(busy, monkeypatch):
    """The process has too many files open, for example. The next look asks again."""
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 0.0)
    busy.claim()
    theirs = busy.die_with_one()

    def refuse(*arguments: Any) -> bool:
        raise StorageError("opening a file failed: too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(holding, "is_dead", refuse)
        assert busy.claim() == theirs + 1
    assert busy.claim() == theirs


def test_a_refused_claim_keeps_what_the_look_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "_BUSY_INTERVAL", 0.0)
    busy = KINDS["claim"](tmp_path)
    with busy.stack:
        busy.claim()
        busy.die_with_one()
        busy.store.append(b"")
        assert (busy.store.claimed(), busy.store.count()) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            busy.store.claim(lambda record: 1 // 0)
        assert (busy.store.claimed(), busy.store.count()) == (1, 2)


def test_a_file_that_its_last_holder_removes_meanwhile_is_not_taken(tmp_path, monkeypatch):
    def opened(disk: Any, path: str) -> Any:
        file = open_lasting(disk, path)
        Path(path).unlink()  # Its number is free again after a rollback, and another thread closes it.
        return file

    with SQLiteQueue(tmp_path) as queue:
        database = vars(queue._store)["_database"]
        with monkeypatch.context() as patch:
            patch.setattr(holders, "open_lasting", opened)
            with pytest.raises(BlockingIOError):
                holders.Holder(database, 7)
        queue.put(1)
