"""One write for the appends of several threads, of which a full disk takes only a part.

What was written as a whole is visible to readers in other processes at once. So it stays, and its appends
succeed: otherwise its ids would be given to other records, which a reader would take for those that it knows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from persistcoll import Log, Queue, StorageError, StorageFullError
from persistcoll.disk.calls import Disk
from persistcoll.journal.journal import Journal, _Append


class FullDisk(Disk):
    """A disk that takes ``room`` more bytes of the next write, and then calls ``when_full``."""

    def __init__(self) -> None:
        super().__init__()
        self.room: int | None = None
        self.when_full: Callable[[], object] = lambda: None
        self.syncs = 0
        self.write = self._write
        sync = self.sync

        def counted(fd: int) -> None:
            self.syncs += 1
            sync(fd)

        self.sync = counted

    def _write(self, fd: int, data: bytes) -> int:
        if self.room is None:
            return os.write(fd, data)
        written = os.write(fd, bytes(data)[: self.room]) if self.room else 0
        self.room -= written
        if not written:
            self.room = None
            self.when_full()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


def journal_of(store: object) -> Journal:
    journal = store._journal  # type: ignore[attr-defined]
    assert isinstance(journal, Journal)
    return journal


def appended(journal: Journal, *payloads: bytes | tuple[bytes, ...]) -> list[_Append]:
    """Append as a leader does for the threads that wait."""
    requests = [_Append(payload, None) for payload in payloads]
    journal._append_all(requests, lambda: None)
    return requests


FRAME = 32


@pytest.mark.parametrize("room", range(0, 3 * (FRAME + 4) + 1, 9))
def test_whole_records_stay(room, tmp_path):
    disk = FullDisk()
    with (
        Log(tmp_path / "log", serializer="raw", _disk=disk) as log,
        Log(tmp_path / "log", serializer="raw") as other,
        other.consumer("reader") as reader,
    ):
        seen: list[bytes] = []

        def read() -> None:
            seen.extend(reader)
            reader.commit()

        disk.when_full = read
        disk.room = room
        syncs = disk.syncs
        requests = appended(journal_of(log._store), b"one.", b"two.", b"thr.")
        stored = [number for number, request in enumerate(requests) if request.failure is None]
        assert stored == list(range(min(room // (FRAME + 4), 3)))
        if len(stored) < 3:
            assert all(isinstance(request.failure, StorageFullError) for request in requests[len(stored) :])
        if stored:
            assert disk.syncs > syncs
        assert list(log) == [b"one.", b"two.", b"thr."][: len(stored)]
        disk.room = None
        assert log.append(b"new") == len(stored) + 1
        seen.extend(reader)
        assert seen == list(log)


def test_a_batch_stays_as_a_whole_or_not_at_all(tmp_path):
    for room in range(0, 400, 13):
        disk = FullDisk()
        with Log(tmp_path / f"log {room}", serializer="raw", _disk=disk) as log:
            disk.room = room
            requests = appended(journal_of(log._store), b"one", (b"a", b"b", b"c"), b"two")
            stored = [request.last for request in requests if request.failure is None]
            assert stored == [1, 4, 5][: len(stored)]
            assert len(log) == (stored[-1] if stored else 0)


def test_a_queue_delivers_what_stayed(tmp_path):
    disk = FullDisk()
    with Queue(tmp_path / "q", serializer="raw", _disk=disk) as queue:
        disk.room = 2 * (FRAME + 4) + 10
        requests = appended(journal_of(queue._core.store), b"one.", b"two.", b"thr.")
        assert [request.failure is None for request in requests] == [True, True, False]
        queue.put(b"new")
        assert queue.get_many(9) == [b"one.", b"two.", b"new"]


def test_nothing_counts_as_stored_if_the_rest_cannot_be_cut_off(tmp_path, monkeypatch):
    disk = FullDisk()
    with Log(tmp_path / "log", serializer="raw", _disk=disk) as log:
        disk.room = FRAME + 4 + 10

        def refuse(fd: int, length: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(disk, "truncate", refuse)
        requests = appended(journal_of(log._store), b"one.", b"two.")
        assert all(isinstance(request.failure, StorageError) for request in requests)
        with pytest.raises(StorageError):
            log.append(b"new")
