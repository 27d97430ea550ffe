"""One file and its syncs: what happens to the file while a thread syncs."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from persistcoll.disk.calls import Disk, OpenFile
from persistcoll.disk.synced_file import SyncedFile
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError
from persistcoll.testing.faults import FaultyDisk

APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND


@pytest.fixture
def disk():
    return FaultyDisk(Disk())


@pytest.fixture
def synced(disk, tmp_path):
    file = SyncedFile(disk, "file", Poison())
    file.switch(OpenFile(disk, str(tmp_path / "one"), APPEND), "one", 0)
    yield file
    file.close()


def begun(call) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


class Held:
    """Holds the next sync of the disk until the test releases it."""

    def __init__(self, disk: FaultyDisk) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        disk.on("sync", self.hold)

    def hold(self, fd: int) -> None:
        self.fd = fd
        self.begun.set()
        assert self.go.wait(30)


def test_a_file_that_is_replaced_stays_open_until_its_sync_has_ended(disk, synced, tmp_path):
    """Otherwise another file could get its descriptor's number, and would be synced instead."""
    synced.written = 1
    held = Held(disk)
    thread = begun(lambda: synced.sync(1))
    assert held.begun.wait(30)
    synced.switch(OpenFile(disk, str(tmp_path / "two"), APPEND), "two", 0)
    assert os.path.samestat(os.fstat(held.fd), os.stat(tmp_path / "one"))
    held.go.set()
    thread.join(30)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held.fd)


def test_a_thread_that_waits_for_a_failed_sync_gets_the_error(disk, synced):
    """The kernel reports the error once, so no second sync may begin before the first one is evaluated."""
    synced.written = 1
    held = Held(disk)
    fault = disk.fail("sync", at=1)
    errors: list[StorageError] = []

    def sync() -> None:
        try:
            synced.sync(1)
        except StorageError as error:
            errors.append(error)

    threads = [begun(sync)]
    assert held.begun.wait(30)
    threads += [begun(sync) for _ in range(3)]
    held.go.set()
    for thread in threads:
        thread.join(30)
    assert fault.fired == disk.calls["sync"] == 1
    assert [error.errno for error in errors] == [errno.EIO] * 4
    assert synced.durable == synced.durable_end == 0


def test_what_a_sync_covered_is_not_synced_again(disk, synced):
    synced.end, synced.written = 100, 5
    synced.sync(3)
    for ticket in (3, 5):
        synced.sync(ticket)
    assert disk.calls["sync"] == 1
    assert (synced.durable, synced.durable_end) == (5, 100)


def test_a_signal_handler_within_a_sync_may_write_and_sync(disk, synced):
    synced.written = 1

    def handle(fd: int) -> None:
        synced.written = 2
        synced.sync(2)

    disk.on("sync", handle)
    synced.sync(1)
    assert disk.calls["sync"] == 2
    assert synced.durable == 2
