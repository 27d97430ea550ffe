"""Every call to the operating system fails once, and from then on forever, at every place of a workload.

A failing operation raises a typed error, stores nothing and loses nothing. Every operation that still can
succeeds in the same process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty, Queue, StorageError, StorageFullError
from persistcoll.disk.calls import CALLS
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import Account, Scribe, drain, numbered, quick_disk, strangers

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)


def opened(path, disk=None, **options) -> Queue:
    return Queue(path, serializer="raw", _disk=disk or quick_disk(), **options)


class FaultTrial:
    """A workload in which any step may fail with a ``StorageError``, and with nothing else.

    :param open_store: opens the store at a path on a disk.
    :param account: what the lines that the workload says are added to.
    """

    def __init__(
        self, path: Path, disk: FaultyDisk, durability: str, open_store: Callable[..., Any], account: Any
    ) -> None:
        self.path, self.disk, self.durability = path, disk, durability
        self.account = account
        self.errors: list[StorageError] = []
        self.refused = False
        self._open_store = open_store

    def _opened(self) -> Any:
        for _ in range(40):
            try:
                return self._open_store(self.path, self.disk, chunksize=2, durability=self.durability)
            except StorageError as error:
                self.errors.append(error)
            if len(self.errors) > 1:
                self.disk.heal()
        raise AssertionError(f"never opens: {self.errors[-1]}")

    def _say(self, line: str) -> None:
        self.last = line
        self.account.add(line)

    def _try(
        self, step: Callable[[], object], appends: str, nothing: tuple[type[Exception], ...] = (Empty,)
    ) -> None:
        """Try a step, and note its error.

        :param appends: how the line of a step begins that certainly has not happened if it raised.
        :param nothing: the errors that say that there is nothing to do.
        """
        self.last = ""
        try:
            step()
        except nothing:
            pass
        except StorageError as error:
            self.errors.append(error)
            unknown = "unknown" in str(error) or self.refused
            self.refused |= "close" in str(error)
            if self.last.startswith(appends) and not unknown:
                self.account.add(self.last.replace("ask", "no"))


class Trial(FaultTrial):
    """The workload of a queue."""

    def __init__(self, path: Path, disk: FaultyDisk, durability: str = "power") -> None:
        super().__init__(path, disk, durability, opened, Account())
        self.next = 1

    def run(self) -> None:
        queue = self._opened()
        try:
            scribe = Scribe(queue, self._say, self.next)
            for step in (scribe.put, scribe.put, lambda: scribe.put_many(2), scribe.get, scribe.put):
                self._try(step, "ask put")
            for _ in range(4):
                if scribe.hand:
                    self._try(scribe.done, "ask put")
                self._try(scribe.get, "ask put")
            self.next = scribe.next
        finally:
            with contextlib.suppress(StorageError):
                queue.close()

    def judge(self) -> None:
        self.disk.heal()
        with opened(self.path) as queue:
            self.account.check(drain(queue), power=True)
        assert not strangers(str(self.path))


def calls_of(tmp_path, durability: str = "power") -> Counter[str]:
    disk = FaultyDisk(quick_disk())
    Trial(tmp_path / "counted" / "queue", disk, durability).run()
    return disk.calls


@pytest.mark.parametrize("times", [1, "forever"])
@pytest.mark.parametrize(
    ("call", "durability"),
    # At "process" a put has calls of its own to lock and to write.
    [
        *((call, "power") for call in CALLS if call not in ("close", "truncate")),
        ("flock", "process"),
        ("write", "process"),
    ],
)
def test_the_nth_call_fails(call, durability, times, tmp_path):
    count = calls_of(tmp_path, durability)[call]
    assert count
    for error in (errno.EIO, errno.ENOSPC, errno.EINTR):
        for at in range(1, count + 1):
            disk = FaultyDisk(quick_disk())
            fault = disk.fail(call, at=at, error=error, times=times)
            trial = Trial(tmp_path / f"{error}" / f"{at}" / "queue", disk, durability)
            trial.run()
            assert fault.fired
            assert all(caught.errno == error for caught in trial.errors), trial.errors
            if error in FULL and call in ("write", "mkdir"):
                assert all(isinstance(caught, StorageFullError) for caught in trial.errors[:1])
            trial.judge()


@pytest.mark.parametrize("error", FULL, ids=errno.errorcode.get)
def test_no_room_is_its_own_error_and_the_queue_goes_on(error, tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk) as queue:
        queue.put(numbered(1))
        disk.fail("write", error=error)
        with pytest.raises(StorageFullError) as caught:
            queue.put(numbered(2))
        assert caught.value.errno == error
        queue.put(numbered(3))
        assert drain(queue) == [1, 3]


@pytest.mark.parametrize("call", ["write", "pwrite", "replace", "unlink", "open", "close"])
def test_a_call_fails_after_it_happened(call, tmp_path):
    """Its bytes may be there. The queue must remove them, because the answer was an error."""
    for at in range(1, calls_of(tmp_path)[call] + 1):
        disk = FaultyDisk(quick_disk())
        fault = disk.fail(call, at=at, error=errno.EIO, effect="after")
        trial = Trial(tmp_path / f"{at}" / "queue", disk)
        trial.run()
        assert fault.fired
        trial.judge()


@pytest.mark.parametrize("short", [0, 1, 20, 40])
@pytest.mark.parametrize("call", ["write", "pwrite"])
@pytest.mark.parametrize("durability", ["power", "process"])
def test_short_writes(durability, call, short, tmp_path):
    for at in range(1, calls_of(tmp_path, durability)[call] + 1):
        disk = FaultyDisk(quick_disk())
        fault = disk.fail(call, at=at, short=short)
        trial = Trial(tmp_path / f"{at}" / "queue", disk, durability)
        trial.run()
        assert fault.fired
        trial.judge()


def test_short_reads(tmp_path):
    for at in range(1, calls_of(tmp_path)["read"] + 1):
        disk = FaultyDisk(quick_disk())
        disk.fail("read", at=at, short=7)
        trial = Trial(tmp_path / f"{at}" / "queue", disk)
        trial.run()
        assert not trial.errors, f"read {at}: {trial.errors}"
        trial.judge()


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("room", [*range(0, 700, 23)])
def test_a_full_disk_that_gets_room_again(room, durability, tmp_path):
    """In one process and one queue: nothing is lost, and no failed put is delivered."""
    disk = FaultyDisk(quick_disk())
    account = Account()
    with opened(tmp_path / "queue", disk, chunksize=3, durability=durability) as queue:
        scribe = Scribe(queue, account.add)
        scribe.put()
        disk.full(room)
        full = 0
        for more in (0, 10_000):
            disk.room(more)
            for _ in range(8):
                try:
                    scribe.put()
                except StorageFullError:
                    full += 1
                    account.add(f"no put {scribe.next - 1} {scribe.next - 1}")
        assert 0 < full <= 8
        delivered = drain(queue)
    account.check(delivered, power=True)
    with opened(tmp_path / "queue") as queue:
        assert drain(queue) == []


@pytest.mark.parametrize("taken_before", [0, 1], ids=["from the beginning", "going on"])
def test_a_full_disk_can_be_drained(taken_before, tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk, chunksize=4) as queue:
        queue.put(numbered(1))
        for _ in range(taken_before):
            queue.get()
            queue.task_done()
        disk.full(5000)
        stored = [1][taken_before:]
        with contextlib.suppress(StorageFullError):
            for number in range(2, 100):
                queue.put(numbered(number))
                stored.append(number)
        disk.full(0)
        assert drain(queue) == stored
        assert 8 < len(stored) < 99
        queue.put(numbered(100))  # the removed chunks freed space


def test_a_failed_put_that_cannot_be_undone(tmp_path):
    """Its bytes stay, so nothing may follow them: the queue refuses, and the next opening removes them."""
    disk = FaultyDisk(quick_disk())
    queue = opened(tmp_path / "queue", disk)
    queue.put(numbered(1))
    disk.fail("write", short=10)
    disk.fail("write", at=2, error=errno.ENOSPC)
    disk.fail("truncate")
    with pytest.raises(StorageFullError):
        queue.put(numbered(2))
    with pytest.raises(StorageError, match="open it again"):
        queue.put(numbered(3))
    queue.close()
    with opened(tmp_path / "queue") as queue:
        assert drain(queue) == [1]
