"""Syncs of the log: outside of all locks, shared by waiting threads, never omitted; its reserved space."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import PDict, SQLiteQueue, StorageError, UniqueQ
from persistcoll.disk.calls import TRY_EXCLUSIVE, UNLOCK
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import LOG_SIZE
from tests.queues.waits import until, waiting


def database_of(queue: Any) -> Database:
    database: Database = queue._store._database
    return database


class Syncs:
    """Counts the syncs of a database's log; ``before`` is called at each."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.before: Callable[[], object] = lambda: None
        self._sync = database.disk.sync
        monkeypatch.setattr(database.disk, "sync", self)

    def __call__(self, fd: int) -> None:
        self.count += 1
        self.before()
        self._sync(fd)


@pytest.fixture
def queue(tmp_path):
    with SQLiteQueue(tmp_path / "q") as queue:
        yield queue


@pytest.fixture
def syncs(queue, monkeypatch):
    return Syncs(database_of(queue), monkeypatch)


def test_no_writer_waits_for_another_ones_sync(queue, syncs, tmp_path):
    """Neither do other processes' writers, nor writers of this process that need no sync."""

    def look() -> None:
        fd = os.open(tmp_path / "q" / "data.db.lock", os.O_RDWR)
        database.disk.flock(fd, TRY_EXCLUSIVE)
        database.disk.flock(fd, UNLOCK)
        os.close(fd)
        waiting(lambda: fast.put("b"))()
        seen.append(fast.get())

    database = database_of(queue)
    seen: list[str] = []
    with SQLiteQueue(tmp_path / "q", name="fast", durability="process") as fast:
        syncs.before, syncs.count = look, 0
        queue.put("a")
    assert (seen, syncs.count) == (["b"], 1)


def test_threads_that_come_during_a_sync_share_the_next_one(queue, syncs):
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go_on.wait(10)

    syncs.before = wait
    first = waiting(lambda: queue.put("first"))
    assert inside.wait(10)
    others = [waiting(lambda: queue.put("other")) for _ in range(7)]
    database = database_of(queue)
    # One leads, and waits with its own request for the sync; the others wait for it.
    until(lambda: len(database._combiner._pending) == 6)
    go_on.set()
    for finish in (first, *others):
        finish()
    assert syncs.count == 3
    assert len(queue) == 8


def test_a_transaction_is_synced_after_it_has_ended(tmp_path, monkeypatch):
    with (
        PDict[str, int](tmp_path / "d", "dict") as d,
        SQLiteQueue(tmp_path / "d", durability="process") as fast,
    ):
        syncs = Syncs(database_of(fast), monkeypatch)

        def put_in_another_thread() -> None:
            waiting(lambda: fast.put("during"))()

        syncs.before = put_in_another_thread
        with d.transaction():
            d["a"] = 1
            d["b"] = 2
            assert syncs.count == 0
        assert (syncs.count, fast.get()) == (1, "during")


@pytest.mark.parametrize("asked", ["power", "process"])
def test_a_transaction_is_synced_if_an_operation_in_it_is_to_be(asked, tmp_path, monkeypatch):
    with (
        SQLiteQueue(tmp_path / "q", "power", durability="power") as power,
        SQLiteQueue(tmp_path / "q", "process", durability="process") as process,
    ):
        syncs = Syncs(power._store._database, monkeypatch)  # type: ignore[attr-defined]
        container = power if asked == "power" else process
        with container.transaction():
            process.put(1)
        assert syncs.count == (1 if asked == "power" else 0)
        before = syncs.count
        with container.transaction():
            process.put(2)
            power.put(3)
            process.put(4)
        assert syncs.count == before + 1


def test_what_changes_nothing_needs_no_sync(queue, syncs):
    queue.put("a")
    assert queue.skip(5) is None
    assert queue.update("b", id=5) is None or True
    assert syncs.count == 1


def test_an_answer_that_rests_on_what_others_did_not_sync_syncs(tmp_path, monkeypatch):
    """The answer that an equal item is ready is as durable as a put of it."""
    with UniqueQ(tmp_path / "q") as safe, UniqueQ(tmp_path / "q", durability="process") as fast:
        syncs = Syncs(database_of(safe), monkeypatch)
        assert fast.put("a") == 1
        assert safe.put("a") is None
        assert syncs.count == 1
        assert safe.put("a") is None
        assert syncs.count == 1
        database_of(safe).epoch += 1  # as if another process had written
        assert safe.put("a") is None
        assert syncs.count == 2


def test_a_close_syncs_what_is_committed(queue, syncs, monkeypatch):
    """A thread that has committed takes the closed log for synced when it comes to its sync."""
    log = database_of(queue)._wal_sync
    commit, committed, go_on = log.commit, threading.Event(), threading.Event()

    def late(ticket: int) -> None:
        committed.set()
        assert go_on.wait(10)
        commit(ticket)

    monkeypatch.setattr(log, "commit", late)
    finish = waiting(lambda: queue.put("a"))
    assert committed.wait(10)
    assert syncs.count == 0
    queue.close()
    assert syncs.count >= 1
    go_on.set()
    finish()


@pytest.mark.parametrize("closing", [False, True], ids=["waiting for it", "closing"])
def test_a_sync_that_fails_poisons_the_database(queue, syncs, tmp_path, closing):
    queue.put("before")

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    syncs.before = fail
    if closing:
        database = database_of(queue)
        database.write(lambda execute: execute("UPDATE counters SET gone = gone"), False)
        database._wal_sync.written += 1  # as if a thread had committed, and not come to its sync yet
    else:
        with pytest.raises(StorageError, match=r"whether .* unknown"):
            queue.put("unknown")
        for call in (lambda: queue.put("c"), queue.get, queue.qsize):
            with pytest.raises(StorageError, match="open it again"):
                call()
        assert syncs.count == 2  # never again on that descriptor
    queue.close()
    syncs.before = lambda: None
    with SQLiteQueue(tmp_path / "q") as again:
        assert list(again.items()) == ["before"] if closing else ["before", "unknown"]
        again.put("after")


def test_a_queue_with_claims_closes_quietly_after_a_failed_sync(tmp_path, monkeypatch):
    """The error of the sync says that closing is what helps."""
    queue = SQLiteQueue(tmp_path / "q", auto_commit=False)
    syncs = Syncs(queue._store._database, monkeypatch)  # type: ignore[attr-defined]
    queue.put("a")
    queue.get()

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    syncs.before = fail
    with pytest.raises(StorageError, match="close"):
        queue.put("b")
    queue.close()
    syncs.before = lambda: None
    with SQLiteQueue(tmp_path / "q", auto_commit=False) as again:
        assert again.get() == "a"


def test_a_reader_asks_anew_when_a_sync_has_failed(tmp_path, monkeypatch):
    with PDict[str, int](tmp_path / "d") as d:
        syncs = Syncs(d._store._database, monkeypatch)  # type: ignore[attr-defined]
        d["a"] = 1
        assert d["a"] == 1

        def fail() -> None:
            raise OSError(errno.EIO, "injected")

        syncs.before = fail
        with pytest.raises(StorageError):
            d["a"] = 2
        with pytest.raises(StorageError, match="open it again"):
            d["a"]


# Space in the log.


def log_of(path) -> bytes:
    data: bytes = (path / "data.db-wal").read_bytes()
    return data


def test_the_log_has_room_before_it_is_needed(queue, tmp_path):
    path, sizes = tmp_path / "q", []
    for number in range(20):
        queue.put(number)
        sizes.append(len(log_of(path)))
    assert sizes[0] < sizes[1] == sizes[-1]  # one put and a close do not lengthen the log
    assert sizes[-1] - sizes[0] >= 1 << 20
    assert not any(log_of(path)[sizes[0] + 50_000 :])


def test_the_space_is_made_while_no_other_process_writes(queue, monkeypatch):
    """Otherwise a frame that another program adds meanwhile would be overwritten."""
    database = database_of(queue)
    pwrite, within = database.disk.pwrite, []

    def spy(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 1000:
            within.append(database._connection.in_transaction)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(database.disk, "pwrite", spy)
    for number in range(3):
        queue.put(number)
    assert within == [True]


def test_the_log_is_not_made_longer_than_it_becomes(queue, tmp_path):
    for _ in range(12):
        queue.put(bytes(400_000))
    assert len(log_of(tmp_path / "q")) < LOG_SIZE + 500_000


@pytest.mark.parametrize("written", [0, 1000])
def test_without_room_on_the_disk_there_is_none_in_the_log(queue, tmp_path, monkeypatch, written):
    database = database_of(queue)
    pwrite = database.disk.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 1000:
            pwrite(fd, data[:written], offset)
            raise OSError(errno.ENOSPC, "injected")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(database.disk, "pwrite", full)
    for number in range(5):
        queue.put(number)
    assert len(log_of(tmp_path / "q")) < 100_000
    monkeypatch.undo()
    assert queue.get_many(10) == [0, 1, 2, 3, 4]


def test_what_stands_before_the_room_is_found_after_a_crash(queue, tmp_path):
    for number in range(50):
        queue.put(number)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("data.db", "data.db-wal"):
        (copy / name).write_bytes((tmp_path / "q" / name).read_bytes())
    with SQLiteQueue(copy) as after:
        assert list(after.items()) == list(range(50))


def test_at_process_the_log_grows_by_itself(tmp_path):
    with SQLiteQueue(tmp_path / "q", durability="process") as queue:
        for number in range(20):
            queue.put(number)
        assert len(log_of(tmp_path / "q")) < 100_000
