"""Two queues on one directory, as two processes have them: one fails, the other loses nothing."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from persistcoll import StorageError, StorageFullError
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import drain, numbered, quick_disk
from tests.crash.test_faults import opened


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)


def test_another_queue_follows_into_the_new_file(tmp_path):
    path = tmp_path / "queue"
    disk = FaultyDisk(quick_disk())
    broken, other = opened(path, disk), opened(path)
    broken.put(numbered(1))
    other.put(numbered(2))
    disk.fail("sync", path="q00000")
    with pytest.raises(StorageError):
        broken.put(numbered(3))
    broken.close()
    with opened(path) as again:
        again.put(numbered(4))
        other.put(numbered(5))
        again.put(numbered(6))
        assert other.qsize() == again.qsize()
        numbers = drain(other)
        assert numbers in ([1, 2, 4, 5, 6], [1, 2, 3, 4, 5, 6])
        other.close()
    with opened(path) as again:
        assert drain(again) == []


def test_another_queue_that_was_reading_goes_on_in_the_new_file(tmp_path):
    path = tmp_path / "queue"
    disk = FaultyDisk(quick_disk())
    broken, reader = opened(path, disk), opened(path)
    broken.put_many([numbered(number) for number in range(1, 4)])
    assert reader.get() == numbered(1)
    disk.fail("sync", path="q00000")
    with pytest.raises(StorageError):
        broken.put(numbered(4))
    broken.close()
    with opened(path) as again:
        again.put(numbered(5))
        reader.task_done()
        assert drain(reader) in ([2, 3, 5], [2, 3, 4, 5])
    reader.close()


def test_a_failed_look_at_what_others_did_cuts_nothing(tmp_path):
    path = tmp_path / "queue"
    calls = ("read", "open", "flock", "truncate", "sync_directory")
    for index, call in enumerate(calls):
        disk = FaultyDisk(quick_disk())
        place = path / call
        with opened(place, disk, chunksize=2) as queue, opened(place, chunksize=2) as other:
            queue.put(numbered(1))
            for number in range(2, 8):
                other.put(numbered(number))
            fault = disk.fail(call, times="forever")
            try:
                queue.put(numbered(20 + index))
            except StorageError:
                assert fault.fired
            disk.heal()
            other.put(numbered(30))
        with opened(place) as queue:
            delivered = [number for number in drain(queue) if number != 20 + index]
        assert delivered == [1, 2, 3, 4, 5, 6, 7, 30], f"after {call} failed: {delivered}"


@pytest.mark.parametrize("start", [10, 11], ids=["second first", "first first"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "died"])
@pytest.mark.parametrize("records", [2, 1], ids=["full", "not full"])
def test_a_sealed_chunk_without_a_successor(records, closed, start, tmp_path):
    """The process that sealed it died, or had no space, before it began the next one; two others continue."""
    path = tmp_path / "queue"
    disk = FaultyDisk(quick_disk())
    with opened(path, disk, chunksize=records) as first:
        for number in range(1, records + 1):
            first.put(numbered(number))
        disk.fail("open", path="q00001.tmp", error=errno.ENOSPC)
        with pytest.raises(StorageFullError):
            first.put(numbered(50))
        if closed:
            first.close()
        with opened(path, chunksize=2) as left, opened(path, chunksize=2) as right:
            for number in range(start, start + 6):
                (left if number % 2 else right).put(numbered(number))
        with opened(path) as queue:
            assert drain(queue) == [*range(1, records + 1), *range(start, start + 6)]


def test_a_chunk_is_never_begun_over_another_one(tmp_path):
    path = tmp_path / "queue"
    with opened(path, chunksize=1) as left, opened(path, chunksize=1) as right:
        inodes: dict[str, int] = {}
        for number in range(1, 9):
            (left if number % 2 else right).put(numbered(number))
            for name in os.listdir(path):
                if name[0] == "q":
                    assert inodes.setdefault(name, os.stat(path / name).st_ino) == os.stat(path / name).st_ino
        assert drain(right) == list(range(1, 9))
