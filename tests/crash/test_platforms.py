"""The other platforms, through stand-ins for the modules that they have and this one has not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from typing import Any

import pytest

from persistcoll import LockedError, Queue
from persistcoll.disk.calls import EXCLUSIVE, TRY_EXCLUSIVE, TRY_SHARED, UNLOCK, Disk
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import drain, numbered, strangers


class Msvcrt:
    """``msvcrt.locking`` with real exclusion: of a byte, between open files, released by closing.

    A lock of a byte range is an ``flock`` of the whole file here, because the journal locks one byte of each
    file.
    """

    LK_UNLCK, LK_LOCK, LK_NBLCK, LK_RLCK, LK_NBRLCK = range(5)

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.places: set[int] = set()

    def locking(self, fd: int, mode: int, count: int) -> None:
        assert count == 1
        self.places.add(os.lseek(fd, 0, os.SEEK_CUR))
        if mode == self.LK_UNLCK:
            if fd not in self.held:
                raise PermissionError(errno.EACCES, "not locked")
            self.held.discard(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)
            return
        if fd in self.held:  # Windows does not let a handle lock twice.
            raise PermissionError(errno.EACCES, "locked by itself")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "locked") from None
        self.held.add(fd)


def windows() -> tuple[Disk, Msvcrt]:
    msvcrt = Msvcrt()
    disk = Disk("win32", msvcrt=msvcrt)

    def close(fd: int) -> None:
        msvcrt.held.discard(fd)  # closing a handle releases its locks
        os.close(fd)

    disk.close = close
    return disk, msvcrt


class Fcntl:
    """``fcntl`` as macOS has it."""

    F_FULLFSYNC = 51
    LOCK_UN = fcntl.LOCK_UN

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.synced: list[int] = []

    flock = staticmethod(fcntl.flock)

    def fcntl(self, fd: int, command: int, *rest: Any) -> int:
        assert command == self.F_FULLFSYNC
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.synced.append(os.fstat(fd).st_ino)
        return 0


def whole_life(disk: Disk, path) -> None:
    """Do what a queue can do, over several chunks, in two objects that see each other."""
    with (
        Queue(path, serializer="raw", chunksize=3, _disk=disk) as queue,
        Queue(path, serializer="raw", chunksize=3, _disk=disk) as other,
    ):
        for number in range(1, 6):
            (queue if number % 2 else other).put(numbered(number))
        queue.put_many([numbered(6), numbered(7)])
        assert queue.qsize() == other.qsize() == 7
        assert queue.get() == numbered(1)
        assert other.qsize() == 6
        with pytest.raises(LockedError) as locked:
            other.get()
        assert locked.value.pid == os.getpid()
        queue.task_done()
        assert queue.get_many(3) == [numbered(2), numbered(3), numbered(4)]
        for _ in range(3):
            queue.task_done()
    with Queue(path, serializer="raw", _disk=disk) as queue:
        assert drain(queue) == [5, 6, 7]
    assert not strangers(str(path))


# macOS


def test_macos_syncs_to_the_platter(tmp_path):
    module = Fcntl()
    disk = Disk("darwin", fcntl=module)
    fd = disk.open(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT)
    disk.sync(fd)
    disk.sync_directory(str(tmp_path))
    disk.close(fd)
    assert module.synced == [os.stat(tmp_path / "file").st_ino, os.stat(tmp_path).st_ino]


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY], ids=errno.errorcode.get)
def test_macos_falls_back_where_the_file_system_does_not_know_it(refusal, tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    Disk("darwin", fcntl=Fcntl(refusal)).sync(7)
    assert synced == [7]


def test_macos_does_not_swallow_a_real_error():
    with pytest.raises(OSError) as caught:  # noqa: PT011
        Disk("darwin", fcntl=Fcntl(errno.EIO)).sync(7)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("refuses", [0, errno.ENOTSUP])
def test_a_whole_queue_on_macos(refuses, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")  # macOS does not have it
    module = Fcntl(refuses)
    whole_life(Disk("darwin", fcntl=module), tmp_path / "queue")
    assert bool(module.synced) != bool(refuses)


# Windows


def test_a_whole_queue_on_windows(tmp_path, monkeypatch):
    for name in ("posix_fallocate", "pread", "pwrite", "fdatasync"):
        monkeypatch.delattr(os, name)
    disk, msvcrt = windows()
    whole_life(disk, tmp_path / "queue")
    assert not msvcrt.held
    # msvcrt's locks keep other handles from reading the locked bytes, so no data may lie there.
    assert len(msvcrt.places) == 1
    assert msvcrt.places.pop() > 1 << 29


def test_windows_locks_exclude_each_other(tmp_path):
    disk, _ = windows()
    flags = os.O_RDWR | os.O_CREAT
    one, two = (disk.open(str(tmp_path / "lock"), flags) for _ in range(2))
    try:
        disk.flock(one, EXCLUSIVE)
        for operation in (TRY_EXCLUSIVE, TRY_SHARED):
            with pytest.raises(BlockingIOError):
                disk.flock(two, operation)
        got = threading.Event()

        def wait() -> None:
            disk.flock(two, EXCLUSIVE)
            got.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not got.is_set()
        disk.flock(one, UNLOCK)
        assert got.wait(10)
        waiter.join()
        with pytest.raises(BlockingIOError):
            disk.flock(one, TRY_EXCLUSIVE)
    finally:
        disk.close(one)
        disk.close(two)


def test_windows_lock_that_fails_otherwise():
    class Broken(Msvcrt):
        def locking(self, fd: int, mode: int, count: int) -> None:
            raise OSError(errno.EBADF, "bad")

    disk = Disk("win32", msvcrt=Broken())
    with open(os.devnull) as file, pytest.raises(OSError, match="bad"):
        disk.flock(file.fileno(), EXCLUSIVE)


def test_windows_syncs_no_directory(tmp_path, monkeypatch):
    def never(*arguments: object) -> None:
        raise AssertionError("a directory cannot be opened there")

    disk, _ = windows()
    monkeypatch.setattr(os, "open", never)
    disk.sync_directory(str(tmp_path))


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_windows_waits_for_a_busy_file(call, monkeypatch):
    attempts = []

    def busy(*arguments: str) -> None:
        attempts.append(arguments)
        if len(attempts) < 4:
            raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, call, busy)
    monkeypatch.setattr("persistcoll.disk.calls.time.sleep", lambda seconds: None)
    disk, _ = windows()
    getattr(disk, call)(*["name"] * (2 if call == "replace" else 1))
    assert len(attempts) == 4


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_windows_gives_up_on_a_file_that_stays_busy(call, monkeypatch):
    clock = [0.0]

    def busy(*arguments: str) -> None:
        raise PermissionError(errno.EACCES, "in use")

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(os, call, busy)
    monkeypatch.setattr("persistcoll.disk.calls.time.sleep", sleep)
    monkeypatch.setattr("persistcoll.disk.calls.time.monotonic", lambda: clock[0])
    disk, _ = windows()
    with pytest.raises(PermissionError):
        getattr(disk, call)(*["name"] * (2 if call == "replace" else 1))
    assert 0.5 < clock[0] < 5


def test_windows_a_chunk_that_stays_busy_is_removed_later(tmp_path):
    """A virus scanner has a consumed chunk open: get succeeds, and the next change removes the chunk."""
    disk = FaultyDisk(windows()[0])
    path = tmp_path / "queue"
    with Queue(path, serializer="raw", chunksize=2, _disk=disk) as queue:
        for number in range(1, 10):
            queue.put(numbered(number))
        disk.fail("unlink", error=errno.EACCES, path="q00000", times=2)
        assert drain(queue) == list(range(1, 10))
    with contextlib.suppress(FileNotFoundError):
        assert not os.stat(path / "q00000")
