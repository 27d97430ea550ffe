"""What the end of a process leaves of a log: a close, and a death within a removal of files."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from persistcoll import StorageError
from persistcoll.testing.faults import CrashDisk, FaultyDisk
from tests.crash.accounts import numbered, quick_disk
from tests.crash.log_accounts import later_disk, log_strangers, lowest_chunk, opened, trim_of


def locks(path) -> list[bytes]:
    return [
        file.read_bytes()
        for file in path.iterdir()
        if file.name.startswith("consumer-") and file.suffix == ".lock"
    ]


def test_the_log_closes_its_consumers_cleanly(tmp_path):
    """At ``"process"`` a close makes the commits durable, that of the log too."""
    disk = CrashDisk(str(tmp_path / "store"))
    log = opened(os.path.join(disk.directory, "log"), disk, durability="process")
    log.extend([numbered(1), numbered(2)])
    consumers = [log.consumer(name) for name in "ab"]
    for consumer in consumers:
        consumer.get()
        consumer.commit()
    log.close()
    disk.mark("closed")
    assert locks(tmp_path / "store" / "log") == [bytes(16), bytes(16)]
    for index, state in enumerate(disk.states("strict", limit=16)):
        if "closed" in state.marks:
            state.materialize(str(tmp_path / f"{index}"))
            with opened(tmp_path / f"{index}" / "log", later_disk()) as left:
                assert {name: at.position for name, at in left.consumers().items()} == {"a": 1, "b": 1}


def test_a_cursor_that_cannot_be_closed_does_not_keep_the_others_from_it(tmp_path):
    disk = FaultyDisk(quick_disk())
    log = opened(tmp_path / "log", disk, durability="process")
    log.append(numbered(1))
    consumers = [log.consumer(name) for name in "abc"]
    for consumer in consumers:
        consumer.get()
        consumer.commit()
    disk.fail("sync", path="consumer-*", at=2)
    with pytest.raises(OSError, match="syncing"):
        log.close()
    assert sorted(lock == bytes(16) for lock in locks(tmp_path / "log")) == [False, True, True]


def test_the_first_position_after_restarts_in_which_nothing_was_appended(tmp_path):
    """Each restart begins a chunk, so that several without an item follow one another."""
    path = tmp_path / "log"
    with opened(path, later_disk()) as log:
        log.append(numbered(1))
    for _ in range(3):
        with opened(path, later_disk()) as log:
            assert (log.first, log.last, len(log)) == (1, 1, 1)
            assert log.trim(1) == 0
    with opened(path, later_disk()) as log:
        log.trim(2)
        assert log.first > log.last == 1
        assert len(log) == 0
    with opened(path, later_disk()) as log:
        position = log.append(numbered(2))
        assert (log.first, log.last, len(log)) == (position, position, 1)
        assert log[log.first] == numbered(2)


def test_a_consumer_whose_lock_cannot_be_read_stays_free(tmp_path):
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "log", disk) as log:
        log.consumer("a").close()
        disk.fail("read", path="consumer-*.lock")
        with pytest.raises(StorageError) as caught:
            log.consumer("a")
        log.consumer("a").close()  # while the error still refers to the first try
        assert caught.value.errno == errno.EIO


class Death(BaseException):
    """The end of the process, which no code handles."""


def die(*arguments: object) -> None:
    raise Death


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_death_while_trimmed_chunks_are_removed(at, tmp_path):
    """The next opening removes the others, and what belongs to them."""
    path = tmp_path / "log"
    disk = FaultyDisk(quick_disk())
    with opened(path, disk, chunksize=1) as log:
        log.extend([numbered(1)])
        for number in range(2, 7):
            log.append(numbered(number))
        assert log[2] == numbered(2)  # writes an index
        disk.on("unlink", die, at=at, path="q*")
        with pytest.raises(Death):
            log.trim(5)
        disk.heal()
    with opened(path) as log:
        lowest = trim_of(log).lowest
        assert list(log) == [numbered(5), numbered(6)]
        assert lowest_chunk(path) == lowest
        assert not log_strangers(path)


@pytest.mark.parametrize("way", ["opened", "forgotten", "never opened"])
def test_death_while_a_cursor_is_replaced(way, tmp_path):
    """Its temporary file goes away with the next opening, the removal, or the recovery of the log."""
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "log", disk) as log:
        log.append(numbered(1))
        consumer = log.consumer("a") if way == "forgotten" else None
        if consumer is not None:
            consumer.get()
            consumer.commit()
        disk.on("replace", die, path="consumer-*.tmp")
        disk.on("unlink", die, path="consumer-*.tmp")
        with pytest.raises(Death):
            log.consumer("a") if consumer is None else consumer.seek("first")
        shutil.copytree(tmp_path / "log", tmp_path / "left")  # what the dead process leaves
    path = tmp_path / "left"
    assert log_strangers(path)
    with opened(path) as log:
        if way == "opened":
            log.consumer("a").close()
        elif way == "forgotten":
            log.forget("a")
    assert not log_strangers(path), log_strangers(path)
