"""A sync that failed, and what syncs cost.

After a failed sync the queue never syncs the descriptor again, and refuses every call until it is opened
again. The next opening writes what the page cache shows into a new file.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import Any

import pytest

from persistcoll import StorageError
from persistcoll.testing.faults import CrashDisk, FaultyDisk
from tests.crash.accounts import Account, Scribe, drain, numbered, quick_disk
from tests.crash.test_faults import opened


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_failed_sync_poisons_the_queue(error, durability, tmp_path):
    path = tmp_path / "queue"
    disk = FaultyDisk(quick_disk())
    queue = opened(path, disk, durability=durability, chunksize=2)
    queue.put(numbered(1))
    fault = disk.fail("sync", error=error, path="q00000")
    if durability == "process":
        queue.put(numbered(2))  # unsynced; the next put changes the chunk, which syncs
    with pytest.raises(StorageError) as caught:
        queue.put(numbered(3))
    assert fault.fired
    assert caught.value.errno == error
    before = disk.calls["sync"]
    chunk = os.stat(path / "q00000").st_ino
    calls = (
        lambda: queue.put(numbered(9)),
        lambda: queue.put_many([numbered(9)]),
        queue.get_nowait,
        lambda: queue.get_many(2, block=False),
        queue.peek,
        queue.qsize,
        queue.stats,
        queue.clear,
        queue.skip,
        lambda: list(queue.items()),
        queue.join,
    )
    for call in calls:
        with pytest.raises(StorageError) as refused:
            call()
        assert refused.value.errno == error
        assert "open it again" in str(refused.value)
    queue.close()
    assert disk.calls["sync"] == before, "a descriptor was synced after its sync had failed"
    with opened(path) as again:
        # What the page cache shows may not be on the device, so the queue trusts only a new file.
        assert os.stat(path / "q00000").st_ino != chunk
        delivered = drain(again)
        assert delivered in ([1], [1, 2], [1, 3]), delivered
        again.put(numbered(5))
        assert drain(again) == [5]


@pytest.mark.parametrize("model", ["ext4", "strict", "weak"])
def test_a_failed_sync_that_lost_the_data_and_then_a_power_cut(model, tmp_path):
    """The page cache shows what the device never got, and the next sync succeeds all the same."""
    crash = CrashDisk(str(tmp_path / "store"))
    disk = FaultyDisk(crash)
    path = os.path.join(crash.directory, "queue")
    queue = opened(path, disk)
    scribe = Scribe(queue, crash.mark)
    scribe.put(2)
    disk.fail("sync", effect="lost", path="q00000")
    with pytest.raises(StorageError):
        scribe.put()
    queue.close()
    with opened(path, disk) as queue:
        delivered = [numbered(1), numbered(2), numbered(3)]
        assert list(queue.items()) in (delivered[:2], delivered)
        scribe = Scribe(queue, crash.mark, first=4)
        scribe.put(2)
    for index, state in enumerate(crash.states(model, limit=16)):
        place = tmp_path / f"state{index}"
        state.materialize(str(place))
        with opened(place / "queue") as queue:
            Account(state.marks).check(drain(queue), power=True)


@pytest.mark.parametrize("times", [1, "forever"])
def test_the_sync_of_the_cursor_fails(times, tmp_path):
    path = tmp_path / "queue"
    disk = FaultyDisk(quick_disk())
    queue = opened(path, disk)
    queue.put_many([numbered(1), numbered(2)])
    queue.get()
    fault = disk.fail("sync", path="cursor", times=times)
    with pytest.raises(StorageError):
        queue.task_done()
    assert fault.fired == 1
    with pytest.raises(StorageError, match="open it again"):
        queue.get_nowait()
    queue.close()
    assert fault.fired == 1
    with opened(path) as again:
        assert drain(again) in ([1, 2], [2])


# What things cost.


def spent(disk: FaultyDisk, action) -> dict[str, int]:
    disk.calls.clear()
    action()
    return {call: disk.calls[call] for call in ("write", "sync", "sync_directory")}


def test_calls_at_power(tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk) as queue:
        queue.put(b"first")
        assert spent(disk, lambda: queue.put(b"item")) == {"write": 1, "sync": 1, "sync_directory": 0}
        many = [b"%d" % number for number in range(100)]
        assert spent(disk, lambda: queue.put_many(many)) == {"write": 1, "sync": 1, "sync_directory": 0}
        queue.get()
        assert spent(disk, queue.get) == {"write": 0, "sync": 0, "sync_directory": 0}
        assert spent(disk, queue.task_done)["sync"] == 1
        assert spent(disk, lambda: queue.get_many(50))["sync"] == 0
    with opened(tmp_path / "saved", disk, autosave=True) as queue:
        queue.put_many(many)
        queue.get()
        assert spent(disk, queue.get)["sync"] == 1
        assert spent(disk, lambda: queue.get_many(50))["sync"] == 1


def test_calls_at_process(tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk, durability="process") as queue:
        queue.put(b"first")
        assert spent(disk, lambda: queue.put(b"item")) == {"write": 1, "sync": 0, "sync_directory": 0}
        many = [b"%d" % number for number in range(100)]
        assert spent(disk, lambda: queue.put_many(many)) == {"write": 1, "sync": 0, "sync_directory": 0}
        queue.get()
        for action in (queue.get, queue.task_done, queue.task_done, lambda: queue.get_many(50)):
            assert spent(disk, action)["sync"] == 0


def test_threads_that_come_during_a_sync_share_the_next_one(tmp_path):
    """Eight threads: one syncs, and the seven that come meanwhile share one more write and one more sync."""
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk) as queue:
        queue.put(numbered(100))
        disk.calls.clear()
        in_sync, others_wait = threading.Event(), threading.Event()
        store: Any = queue._core.store
        combiner = store._journal._combiner

        def first_sync(fd: int) -> None:
            in_sync.set()
            assert others_wait.wait(30)

        disk.on("sync", first_sync)
        leader = threading.Thread(target=queue.put, args=(numbered(1),))
        leader.start()
        assert in_sync.wait(30)
        others = [threading.Thread(target=queue.put, args=(numbered(n),)) for n in range(2, 9)]
        for thread in others:
            thread.start()
        deadline = time.monotonic() + 30
        while len(combiner._pending) < 7 and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        others_wait.set()
        for thread in [leader, *others]:
            thread.join(30)
        assert disk.calls["sync"] == 2
        assert disk.calls["write"] == 2
        assert sorted(drain(queue)) == [*range(1, 9), 100]


def test_group_commit_needs_fewer_syncs_than_puts(tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "queue", disk) as queue:
        disk.calls.clear()
        everybody = threading.Barrier(8)
        appended = threading.Condition()
        writes = [0]

        def write(fd: int, data: bytes) -> None:
            with appended:
                writes[0] += 1
                appended.notify_all()

        def slow(fd: int) -> None:
            # Long enough for another thread to append; a device's sync takes longer.
            with appended:
                seen = writes[0]
                appended.wait_for(lambda: writes[0] > seen or writes[0] == 400, timeout=0.02)

        disk.on("sync", slow, times="forever", path="q00000")
        disk.on("write", write, times="forever", path="q00000", effect="after")

        def produce() -> None:
            everybody.wait(30)
            for _ in range(50):
                queue.put(b"item")

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert disk.calls["sync"] < 400
        assert queue.qsize() == 400
        disk.heal()
