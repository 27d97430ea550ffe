"""The machine is restarted, perhaps by a power cut: the ids of lost records are not given again.

A restart is another boot id. What a power cut takes from the last chunk is cut off by hand here; the explorer
and real power cuts try what really may be lost.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable
from datetime import datetime, timezone
from zlib import crc32

import pytest

from persistcoll import Log, Queue, Retain, TrimmedError
from persistcoll.disk.calls import Disk
from persistcoll.journal.tail_mark import TailMark, is_same_boot, read_mark, this_boot

CHUNKSIZE = 5


@pytest.fixture
def restart(monkeypatch) -> Callable[[], None]:
    """Return a function that restarts the machine."""
    boots = iter(range(1, 100))

    def begin() -> None:
        boot = f"boot {next(boots)}"
        monkeypatch.setattr(Disk, "boot_id", staticmethod(lambda: boot))

    begin()
    return begin


def opened(path, **options) -> Log:
    return Log(path / "log", chunksize=CHUNKSIZE, durability="process", **options)


def test_ids_of_lost_records_are_not_given_again(tmp_path, restart):
    with opened(tmp_path) as log:
        for number in range(1, 4):
            assert log.append(number) == number
        size = (tmp_path / "log" / "q00000").stat().st_size
        assert log.append("lost") == 4
        with log.consumer("reader") as reader:
            assert reader.get_many(9) == [1, 2, 3, "lost"]
            reader.commit()
        shutil.copytree(tmp_path / "log", tmp_path / "cut" / "log")
    os.truncate(tmp_path / "cut" / "log" / "q00000", size)
    restart()
    with opened(tmp_path / "cut") as log:
        assert (list(log), log.last, len(log)) == ([1, 2, 3], 3, 3)
        with log.consumer("reader") as reader:
            assert (reader.position, reader.lag) == (4, 0)
            position = log.append("new")
            assert position > 2 * CHUNKSIZE
            assert (reader.lag, reader.get(block=False)) == (1, "new")
            reader.commit()
        assert (log.last, log[log.last], log[-1], log[-2]) == (position, "new", "new", 3)
    with opened(tmp_path / "cut") as log:
        assert log.append("more") == position + 1


def test_without_a_restart_there_is_no_gap(tmp_path, restart):
    for number in range(1, 12):
        with opened(tmp_path) as log:
            assert log.append(number) == number


@pytest.fixture
def gaps(tmp_path, restart):
    """A log with items 0 to 19, and restarts before the items 0, 0, 3, 3, 3, 9, 16 and 20."""
    with opened(tmp_path) as log:
        pass
    for first, behind in ((0, 0), (0, 3), (3, 3), (3, 3), (3, 9), (9, 16), (16, 20)):
        restart()
        with opened(tmp_path) as log:
            log.extend(range(first, behind))
    restart()
    with opened(tmp_path) as log:
        yield log


def test_positions_with_gaps(gaps):
    log = gaps
    records = list(log._store.records())
    positions = [record.id for record in records]
    assert positions[-1] - positions[0] > 50
    assert list(log) == list(range(20))
    assert (len(log), log.first, log.last) == (20, positions[0], positions[-1])
    for index, position in enumerate(positions):
        assert log[position] == index
        assert log[index - 20] == index
        assert log[position:] == list(range(index, 20))
        assert log[:position] == list(range(index))
        assert log.read(position, 2) == list(range(index + 1, min(index + 3, 20)))
    for position in set(range(positions[-1] + 5)) - set(positions):
        with pytest.raises(IndexError):
            log[position]
    with pytest.raises(IndexError):
        log[-21]
    assert log[-40:] == list(range(20))
    assert log[-3:-1] == [17, 18]


def test_consumers_and_trims_at_gaps(gaps):
    log = gaps
    positions = [record.id for record in log._store.records()]
    for index, position in enumerate(positions):
        for start in {position, positions[index - 1] + 1 if index else position}:
            with log.consumer("reader", start=start) as reader:
                assert reader.lag == 20 - index
                assert list(reader) == list(range(index, 20))
                assert (reader.position, reader.lag) == (positions[-1], 0)
            assert log.forget("reader")
    with log.consumer("reader") as reader:
        for index, position in enumerate(positions):
            assert reader.get() == index
            reader.commit()
            assert reader.position == position
            # Everything up to the next item, the gap included, is trimmed: nothing that the reader needs.
            assert log.trim(positions[index + 1] if index < 19 else log.last + 1) == 1
            assert (len(log), reader.lag) == (19 - index, 19 - index)
            assert log.first == (positions[index + 1] if index < 19 else log._store.bounds().first)
        log.append("last")
        assert list(reader) == ["last"]


def test_times_and_retention_at_gaps(gaps, tmp_path, restart):
    log = gaps
    for record in list(log._store.records()):
        found = log._store.find(record.time)
        same = [each.id for each in log._store.records() if each.time >= record.time]
        assert found == same[0]
    with log.consumer("reader", start=datetime.now(timezone.utc)) as reader:
        assert reader.lag == 0
    assert log.forget("reader")
    log.close()
    restart()
    with opened(tmp_path, retain=Retain(records=3)) as log:
        for number in range(20, 60):
            log.append(number)
        assert list(log) == list(range(60 - len(log), 60))
        assert 3 <= len(log) <= 3 + 2 * CHUNKSIZE


def test_a_forced_trim_at_a_gap(gaps):
    log = gaps
    positions = [record.id for record in log._store.records()]
    with log.consumer("reader") as reader, log.consumer("other", start=positions[9]) as other:
        assert log.trim(positions[9], force=True) == 9
        with pytest.raises(TrimmedError) as caught:
            reader.get(block=False)
        assert caught.value.first == positions[9]
        assert other.get(block=False) == 9


def test_a_queue_has_no_gaps(tmp_path, restart):
    for number in range(1, 4):
        with Queue(tmp_path / "q", durability="process") as queue:
            queue.put(number)
            assert queue.stats().puts == number
        restart()


# Where the system has no name for a boot.


@pytest.fixture
def clock(monkeypatch):
    """A machine without names for its boots: its clock, and when it was booted."""

    class Clock:
        now, booted = 1e9, 1e9 - 100

    monkeypatch.setattr(Disk, "boot_id", staticmethod(lambda: None))
    monkeypatch.setattr(time, "time", lambda: Clock.now)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now - Clock.booted)
    return Clock


def test_a_boot_is_known_by_its_time(clock):
    disk = Disk()
    one = this_boot(disk)
    clock.now += 1000
    assert is_same_boot(one, this_boot(disk))
    clock.booted = clock.now
    assert not is_same_boot(one, this_boot(disk))


def test_no_boot_is_the_same_as_an_unknown_one(clock, monkeypatch):
    disk = Disk()
    named = b"\1" * 16
    assert is_same_boot(named, named)
    for other in (b"", bytes(16), this_boot(disk)):
        assert not is_same_boot(named, other)
    assert not is_same_boot(b"", b"")


def test_a_mark_of_the_first_format_is_read(tmp_path):
    body = struct.pack("<4sIIIQQ", b"PCT1", 3, 77, 1, 4000, 12)
    path = tmp_path / "producer.lock"
    path.write_bytes(body + struct.pack("<I", crc32(body)))
    with open(path, "rb") as file:
        mark = read_mark(Disk(), file.fileno())
    assert mark == TailMark(3, 77, 4000, 12, 0.0, b"", poisoned=True)
