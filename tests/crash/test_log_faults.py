"""Every call of a log to the operating system fails once, and from then on forever.

A failing operation raises a typed error, loses nothing and moves no consumer but its own. Every operation
that still can succeeds in the same process. A consumer whose cursor cannot be synced stops nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from persistcoll import Empty, Retain, StorageError, StorageFullError
from persistcoll.disk.calls import CALLS
from persistcoll.testing.faults import CrashDisk, FaultyDisk
from tests.crash.accounts import number_of, numbered, quick_disk
from tests.crash.log_accounts import (
    Found,
    LogAccount,
    LogScribe,
    log_strangers,
    opened,
    rest_of,
)
from tests.crash.test_disk_full import fill_up, small_disk
from tests.crash.test_faults import FaultTrial

__all__ = ["small_disk"]  # the fixture


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    # So that a short workload compacts a cursor.
    monkeypatch.setattr("persistcoll.journal.log_cursor._FIRST_RESERVED", 160)


class Trial(FaultTrial):
    """The workload of a log."""

    def __init__(self, path: Path, disk: FaultyDisk, durability: str = "power") -> None:
        super().__init__(path, disk, durability, opened, LogAccount())

    def run(self) -> None:
        log = self._opened()
        scribe = LogScribe(log, self._say)
        steps: list[tuple[str, Callable[[], object]]] = [
            ("", scribe.append),
            ("", lambda: scribe.extend(3)),
            ("", lambda: self._consumer(scribe, "a")),
            ("a", lambda: scribe.take("a", 3)),
            ("", lambda: self._consumer(scribe, "b")),
            ("b", lambda: scribe.take("b")),
            ("", scribe.append),
            ("a", lambda: scribe.seek("a", 2)),
            ("a", lambda: scribe.take("a", 3)),
            ("b", lambda: scribe.take("b", 2)),
            ("", lambda: scribe.trim(4)),
            ("", lambda: number_of(log[4])),
            ("a", lambda: scribe.close_consumer("a")),
            ("", lambda: self._consumer(scribe, "a")),
            ("a", lambda: scribe.take("a")),
            ("", scribe.append),
            ("b", lambda: scribe.take("b", 2)),
            ("", lambda: scribe.trim(6)),
            ("", scribe.append),
        ]
        try:
            for name, step in steps:
                if not name or name in scribe.open:
                    self._try(step, "ask append", (Empty, IndexError))
        finally:
            with contextlib.suppress(StorageError):
                log.close()

    def _consumer(self, scribe: LogScribe, name: str) -> None:
        if name not in scribe.open:
            scribe.consumer(name)

    def judge(self) -> None:
        self.disk.heal()
        with opened(self.path) as log:
            found = Found.of(log)
            self.account.check(found)
            for name, position in found.consumers.items():
                with log.consumer(name) as consumer:
                    assert consumer.position == position
                    assert rest_of(consumer) == found.after(position)
            for name in self.account.consumers:
                log.consumer(name).close()
            position = log.append(numbered(99))
            assert position > max([self.account.highest, *found.consumers.values()])
        assert not [name for name in log_strangers(str(self.path)) if name.endswith(".tmp")]


def calls_of(path: Path, durability: str = "power") -> Counter[str]:
    disk = FaultyDisk(quick_disk())
    trial = Trial(path / "counted" / "log", disk, durability)
    trial.run()
    assert not trial.errors
    trial.judge()
    return disk.calls


@pytest.mark.long
@pytest.mark.parametrize("times", [1, "forever"])
@pytest.mark.parametrize("call", [call for call in CALLS if call not in ("close", "truncate")])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_the_nth_call_fails(error, call, times, memory_path, steps):
    count = calls_of(memory_path)[call]
    assert count
    for at in range(min(steps["first"], count), count + 1, max(1, steps["step"] // 8)):
        disk = FaultyDisk(quick_disk())
        fault = disk.fail(call, at=at, error=error, times=times)
        trial = Trial(memory_path / f"{at}" / "log", disk)
        trial.run()
        assert fault.fired
        assert all(caught.errno == error for caught in trial.errors), trial.errors
        trial.judge()


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("short", [0, 20])
@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_short_writes(call, short, durability, memory_path):
    for at in range(1, calls_of(memory_path, durability)[call] + 1):
        disk = FaultyDisk(quick_disk())
        fault = disk.fail(call, at=at, short=short)
        trial = Trial(memory_path / f"{at}" / "log", disk, durability)
        trial.run()
        assert fault.fired
        trial.judge()


def until_full(action: Callable[[], object]) -> None:
    """Repeat an action until the disk is full."""
    with contextlib.suppress(StorageFullError):
        for _ in range(20_000):
            action()
        raise AssertionError("never full")


def cursor_name(name: str) -> str:
    """Return the name of the file in which a consumer's position stands."""
    return f"consumer-{hashlib.sha256(name.encode()).hexdigest()[:32]}.cursor"


@pytest.mark.parametrize("times", [1, "forever"])
def test_the_sync_of_one_cursor_fails(times, tmp_path):
    """Neither the log nor another consumer notices it, and the consumer works when it is opened again."""
    disk = FaultyDisk(quick_disk())
    with opened(tmp_path / "log", disk, chunksize=2, retain=Retain(records=1)) as log:
        log.extend([numbered(number) for number in range(1, 5)])
        first, second = log.consumer("a"), log.consumer("b")
        for consumer in (first, second):
            consumer.get()
            consumer.commit()
        first.get()
        fault = disk.fail("sync", path=cursor_name("a"), times=times)
        with pytest.raises(StorageError) as caught:
            first.commit()
        assert caught.value.errno == errno.EIO
        for call in (first.get, first.commit, lambda: first.seek(1), lambda: first.position):
            with pytest.raises(StorageError, match="open it again"):
                call()
        assert fault.fired == 1
        for number in range(5, 12):  # over several changes of chunk, with retention
            log.append(numbered(number))
        assert [number_of(item) for item in second] == list(range(2, 12))
        first.close()
        disk.heal()
        with log.consumer("a") as again:
            assert [number_of(item) for item in again] in (list(range(2, 12)), list(range(3, 12)))
    with opened(tmp_path / "log") as log:
        assert {state.lag for state in log.consumers().values()} == {0}


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_tmpfs_gets_room_again(durability, small_disk):
    """A full disk refuses appends, new consumers and at last commits; then there is room again."""
    path = small_disk / "log"
    account = LogAccount()
    with opened(path, chunksize=50, durability=durability) as log:
        scribe = LogScribe(log, account.add)
        scribe.consumer("a")
        for length in (None, 24):
            until_full(scribe.append if length is None else lambda: log.append(b""))
            if length is None:
                account.add(f"no append {scribe.next - 1} {scribe.next - 1}")
            else:
                fill_up(small_disk)
        appended = scribe.next - 2
        assert appended > 500
        with pytest.raises(StorageFullError):
            log.consumer("b")
        scribe.take("a", 50)
        until_full(lambda: scribe.take("a"))
        committed = scribe.open["a"].position
        assert committed >= 50
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        scribe.commit("a")
        scribe.append(100)
        scribe.consumer("b")
        scribe.trim(committed)
        scribe.close()
    with opened(path) as log:
        states = log.consumers()
        assert states["a"].position in account.consumers["a"].perhaps
        left = [number_of(item) for item in log if item]
        assert left == [*range(1, appended + 1), *range(appended + 2, appended + 102)]
    assert not log_strangers(str(path))


@pytest.mark.parametrize("model", ["ext4", "strict", "weak"])
def test_a_failed_sync_that_lost_a_commit_and_then_a_power_cut(model, tmp_path):
    """The page cache shows a commit that the device never got. A trim must not rely on it."""
    crash = CrashDisk(str(tmp_path / "store"))
    disk = FaultyDisk(crash)
    account_lines: list[str] = []
    log = opened(Path(crash.directory) / "log", disk, chunksize=1)
    scribe = LogScribe(log, account_lines.append)
    scribe.append(4)
    scribe.consumer("a")
    scribe.take("a")
    disk.fail("sync", effect="lost", path="consumer-*.cursor")
    scribe.get("a", 2)
    with pytest.raises(StorageError):
        scribe.commit("a")
    scribe.trim(4)
    log.close()
    crash.mark("trimmed")
    for index, state in enumerate(crash.states(model, limit=16)):
        if "trimmed" in state.marks:
            state.materialize(str(tmp_path / f"{index}"))
            with opened(tmp_path / f"{index}" / "log") as left:
                LogAccount(account_lines).check(Found.of(left))


def test_a_trim_goes_on_on_a_full_disk(tmp_path):
    """It makes room. The cursor of what is trimmed cannot be replaced, so an entry is added to it."""
    disk = FaultyDisk()
    with opened(tmp_path / "log", disk, chunksize=2) as log:
        for number in range(1, 10):
            log.append(numbered(number))
        for call in ("open", "write"):
            disk.fail(call, error=errno.ENOSPC, times="forever", path="trimmed.tmp")
            before = log.first
            assert log.trim(before + 3) == 3
            assert log.first == before + 3
            disk.heal()
    with opened(tmp_path / "log", disk, chunksize=2) as log:
        assert [number_of(item) for item in log] == [7, 8, 9]
        assert log.trim(9) == 2
        assert sorted(os.listdir(tmp_path / "log")) == ["info", "producer.lock", "q00004", "trimmed"]
