"""What poisons a handle, and what else that concerns."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import pytest

from persistcoll import Queue, SQLiteQueue, StorageError
from persistcoll.disk.calls import TRY_EXCLUSIVE
from persistcoll.engine.poison import Poison
from persistcoll.errors import ClosedError
from persistcoll.journal.tail_mark import read_mark
from persistcoll.sqlite.writer_lock import WriterLock
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import quick_disk


def failed(number: int = errno.EIO) -> StorageError:
    return StorageError("syncing failed", number)


def test_a_journal_poisons_its_cursors():
    journal = Poison()
    cursors = [Poison(journal), Poison(journal)]
    journal.set(failure := failed())
    assert [each.failure for each in (journal, *cursors)] == [failure] * 3
    assert cursors[0].unusable_because is failure


def test_a_cursor_poisons_neither_its_journal_nor_another_cursor():
    journal = Poison()
    cursor, other = Poison(journal), Poison(journal)
    cursor.set(failed())
    assert (journal.unusable_because, other.unusable_because) == (None, None)


def test_the_first_failure_counts():
    journal = Poison()
    cursor = Poison(journal)
    cursor.set(first := failed())
    journal.set(second := failed(errno.ENOSPC))
    assert (cursor.failure, journal.failure) == (first, second)
    assert cursor.unusable_because is first
    refusal = cursor.unusable_error("here")
    assert isinstance(refusal, StorageError)
    assert (refusal.errno, refusal.__cause__) == (errno.EIO, first)


def test_closed_is_no_failure():
    journal = Poison()
    cursor = Poison(journal)
    journal.close()
    assert (journal.failure, cursor.failure) == (None, None)
    assert isinstance(cursor.unusable_error("here"), ClosedError)
    journal.set(failed())
    assert isinstance(journal.unusable_error("here"), ClosedError)


@pytest.mark.parametrize(("path", "marked"), [("q00000", True), ("cursor", False)])
def test_only_a_journal_that_is_poisoned_leaves_a_mark_for_other_processes(path, marked, tmp_path):
    disk = FaultyDisk(quick_disk())
    queue = Queue(tmp_path / "queue", serializer="raw", _disk=disk)
    queue.put(b"item")
    queue.get()
    disk.fail("sync", path=path)
    with pytest.raises(StorageError):
        queue.put(b"item") if marked else queue.task_done()
    with pytest.raises(StorageError, match="open it again"):
        queue.put(b"item")
    with open(tmp_path / "queue" / "producer.lock", "rb") as file:
        mark = read_mark(disk, file.fileno())
    assert bool(mark is not None and mark.poisoned) == marked
    queue.close()


@pytest.mark.parametrize("way", ["alone", "in a batch", "in a transaction"])
def test_a_database_whose_lock_is_not_released(way, tmp_path):
    """What was committed is stored. No other process can write until the database is closed."""

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    queue = SQLiteQueue(tmp_path / "queue", durability="process")
    store: Any = queue._store
    database = store._database
    lock = database._writer_lock
    release, lock.release = lock.release, fail
    database._is_writing = way == "in a batch"  # as if another thread wrote
    transaction = queue.transaction() if way == "in a transaction" else contextlib.nullcontext()
    with pytest.raises(StorageError, match=r"unlocking .* is unknown"), transaction:
        queue.put("item")
    lock.release = release
    with pytest.raises(StorageError, match="open it again"):
        queue.put("another")
    queue.close()
    with SQLiteQueue(tmp_path / "queue") as again:
        assert list(again.items()) == ["item"]


@pytest.mark.parametrize("at", [1, 2, 3], ids=["the turn", "the lock", "the end of the turn"])
def test_a_writer_that_fails_to_lock_keeps_no_other_one_waiting(at, tmp_path):
    disk = FaultyDisk(quick_disk())
    failing, other = (WriterLock(each, str(tmp_path / "data.db")) for each in (disk, quick_disk()))
    disk.fail("flock", at=at, error=errno.ENOLCK)
    with pytest.raises(StorageError, match=r"locking .* failed"):
        failing.acquire()
    for fd in (other._turn_fd, other._fd):
        other._flock(fd, TRY_EXCLUSIVE)
    failing.close()
    other.close()
