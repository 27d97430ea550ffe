"""Every state that a power cut may leave of a log, in three models, for everything that it does.

At ``"power"`` what returned must be there; at ``"process"`` what remains must match some moment before. At
both opening never fails, no consumer has a gap, no position is given twice, and recovering twice, or a cut
during recovery, changes nothing. Each opening after a cut is in another boot of the machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from persistcoll import Empty, Retain
from persistcoll.disk.calls import Disk
from persistcoll.testing.faults import CrashDisk, CrashState, FaultyDisk, Model, explore
from tests.crash.accounts import memory_directory, number_of, numbered
from tests.crash.log_accounts import (
    Found,
    LogAccount,
    LogScribe,
    disk_of_boot,
    later_disk,
    log_strangers,
    lowest_chunk,
    opened,
    rest_of,
    trim_of,
)
from tests.crash.test_power_explorer import MODELS

NEWCOMER = 99_000_000
"""The number appended to a recovered log."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # The tests recover thousands of torn tails, each with a warning.
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    # A cursor's reserve, enough for a few entries, so that short workloads compact it.
    monkeypatch.setattr("persistcoll.journal.log_cursor._FIRST_RESERVED", 200)
    monkeypatch.setattr("persistcoll.journal.log_cursor._MOST_RESERVED", 400)


Work = Callable[[LogScribe], None]


def open_log(disk: Disk, directory: str, durability: Any, **options):
    return opened(os.path.join(directory, "deep", "log"), disk, durability=durability, **options)


def check(state: CrashState, directory: str) -> None:
    """Check what a process finds that opens the log after the cut."""
    power = "power" in state.marks
    account = LogAccount(
        (line for line in state.marks if line not in ("power", "process")),
        power=power,
    )
    path = os.path.join(directory, "deep", "log")

    with opened(path, later_disk()) as log:
        found = Found.of(log)
    account.check(found)
    with opened(path, later_disk()) as log:
        again = Found.of(log)
        assert again.items == found.items, "recovering twice is not the same"
        assert again.consumers == found.consumers
        check_consumers(log, found, account)
    with opened(path, later_disk()) as log:
        newcomers = [NEWCOMER + number for number in range(4)]  # over a change of chunk
        positions = [log.append(numbered(number)) for number in newcomers]
        highest = max([account.highest, found.last, *found.consumers.values()])
        assert positions[0] > highest, f"{positions[0]} was given before: {highest}"
        for name, before in found.consumers.items():
            with log.consumer(name) as consumer:
                assert consumer.position == before
                wanted = found.after(before) + newcomers
                assert [number_of(item) for item in consumer] == wanted, "not usable after recovery"
                assert (consumer.position, consumer.lag) == (positions[-1], 0)
        for name in account.consumers:  # one that was being made or removed when the power was cut
            if name not in found.consumers:
                log.consumer(name).close()
                assert log.forget(name)
        assert log.trim(positions[-1]) == len(found.items) + 3
        assert [number_of(item) for item in log] == newcomers[-1:]
        lowest = trim_of(log).lowest
    assert not log_strangers(path), log_strangers(path)
    assert lowest_chunk(path) == lowest


def check_consumers(log, found: Found, account: LogAccount) -> None:
    """Check that each consumer has all that comes after its position, in order, and that none moves."""
    for name in found.consumers:
        with log.consumer(name) as consumer:
            assert consumer.position == found.consumers[name]
            if consumer.position < min(found.trimmed, account.force_asked - 1):
                consumer.seek("first")
                found.consumers[name] = consumer.position
            position = consumer.position
            assert rest_of(consumer) == found.after(position), f"{name!r} at {position} of {found.items}"
            assert consumer.position == position


def recovery(durability: str) -> Callable[[CrashDisk], None]:
    """Open what a cut left, use all of it, and close it, on a disk whose power is cut again."""

    def recover(disk: CrashDisk) -> None:
        disk_of_boot(disk, "the boot after the cut")
        with open_log(disk, disk.directory, durability) as log:
            found = Found.of(log)
            disk.mark(found.line())
            scribe = LogScribe(log, disk.mark, first=50_000)
            for name in found.consumers:
                scribe.consumer(name)
                if scribe.got[name] + 1 < log.first:
                    scribe.seek(name, "first")
                try:
                    scribe.take(name)
                except Empty:
                    pass
            scribe.append()
            scribe.trim(log.last)
            scribe.close()

    return recover


def explored(
    work: Work,
    model: Model,
    durability: str,
    *,
    recover: bool = False,
    limit: int = 3,
    seed: int = 0,
    **options,
):
    def workload(disk: CrashDisk) -> None:
        disk.mark(durability)
        scribe = LogScribe(open_log(disk, disk.directory, durability, **options), disk.mark)
        work(scribe)
        scribe.close()

    return explore(
        workload,
        check,
        model,
        memory_directory(),
        recover=recovery(durability) if recover else None,
        limit=limit,
        recovery_limit=2,
        seed=seed,
    )


def append(scribe: LogScribe) -> None:
    scribe.append(5)


def extend(scribe: LogScribe) -> None:
    scribe.append()
    scribe.extend(3)
    scribe.extend(2)


def commits(scribe: LogScribe) -> None:
    scribe.append(3)
    scribe.consumer("a")
    scribe.consumer("b")
    scribe.take("a", 2)
    scribe.get("b", 3)
    scribe.commit("b")
    scribe.append()
    scribe.take("a", 2)
    scribe.commit("b", 4)


def many_commits(scribe: LogScribe) -> None:
    """Commit so often that the cursor is compacted."""
    scribe.extend(12)
    scribe.consumer("a")
    scribe.take("a", 12)


def rewinds(scribe: LogScribe) -> None:
    scribe.append(4)
    scribe.consumer("a")
    scribe.consumer("b")
    scribe.take("a", 3)
    scribe.take("b")
    scribe.seek("a", 2)
    scribe.take("a", 2)
    scribe.seek("a", "first")
    scribe.take("a")
    scribe.seek("a", "last")
    scribe.append()
    scribe.take("a")


def newcomers(scribe: LogScribe) -> None:
    scribe.append(3)
    scribe.consumer("a", 2)
    scribe.consumer("b", "last")
    scribe.append()
    scribe.take("b")
    scribe.consumer("c", "first")
    scribe.take("c")
    scribe.close_consumer("c")
    scribe.consumer("c")
    scribe.take("c")


def forgets(scribe: LogScribe) -> None:
    scribe.append(3)
    for name in "ab":
        scribe.consumer(name)
        scribe.take(name, 2)
    scribe.close_consumer("a")
    scribe.forget("a")
    scribe.append()
    scribe.consumer("a")
    scribe.take("a")
    scribe.close_consumer("b")
    scribe.forget("b")
    scribe.trim(4)


def trims(scribe: LogScribe) -> None:
    scribe.append(6)
    scribe.consumer("a")
    scribe.consumer("b")
    scribe.take("a", 5)
    scribe.take("b", 3)
    scribe.trim(6)
    scribe.append(2)
    scribe.take("b", 3)
    scribe.trim(7)
    scribe.seek("b", "first")
    scribe.trim(9)


def trims_all(scribe: LogScribe) -> None:
    """Trim the newest item too, at ``"process"`` before it is durable."""
    scribe.append(3)
    scribe.consumer("a")
    scribe.take("a", 3)
    scribe.trim(4)
    scribe.append()
    scribe.take("a")
    scribe.trim(5)
    scribe.append()


def trims_by_force(scribe: LogScribe) -> None:
    scribe.append(5)
    scribe.consumer("a")
    scribe.take("a")
    scribe.trim(4, force=True)
    scribe.append()
    scribe.seek("a", "first")
    scribe.take("a", 2)


def indexes(scribe: LogScribe) -> None:
    """Look into finished chunks, which writes their indexes, and trim them."""
    scribe.append(5)
    scribe.consumer("a")
    assert number_of(scribe.log[2]) == 2
    scribe.seek("a", datetime(2001, 1, 1, tzinfo=timezone.utc))
    scribe.take("a", 4)
    assert number_of(scribe.log[4]) == 4
    scribe.trim(4)
    assert number_of(scribe.log[4]) == 4


def long_life(scribe: LogScribe) -> None:
    scribe.consumer("a")
    scribe.append(2)
    scribe.consumer("b", "last")
    for _ in range(3):
        scribe.take("a")
        scribe.append()
        scribe.get("b")
        scribe.trim(scribe.got["a"])
    scribe.commit("b")


WORKS: dict[str, Work] = {
    work.__name__: work
    for work in (
        append,
        extend,
        commits,
        many_commits,
        rewinds,
        newcomers,
        forgets,
        trims,
        trims_all,
        trims_by_force,
        indexes,
        long_life,
    )
}


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("work", WORKS)
def test_whatever_a_power_cut_leaves_is_right(work, chunksize, model, durability, seed):
    found = explored(WORKS[work], model, durability, chunksize=chunksize, seed=seed)
    assert not found.violations, str(found)
    assert found.states > 20


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("work", ["trims", "rewinds", "forgets"])
def test_in_the_strict_model(work, durability, seed):
    found = explored(WORKS[work], "strict", durability, chunksize=2, limit=2, seed=seed)
    assert not found.violations, str(found)
    assert found.states > 20


def retained(scribe: LogScribe) -> None:
    scribe.append(3)
    scribe.consumer("a")
    scribe.take("a", 2)
    scribe.say("ask trim 1000")
    scribe.append(4)
    scribe.take("a", 5)
    scribe.extend(3)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
def test_retention(model, durability, seed):
    retain = Retain(records=2)
    found = explored(retained, model, durability, chunksize=2, retain=retain, limit=3, seed=seed)
    assert not found.violations, str(found)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
def test_closing_and_opening_again(model, durability, seed):
    """Each opening is in another boot, so that each one leaves out positions."""

    def workload(disk: CrashDisk) -> None:
        disk.mark(durability)
        first = 1
        for life in range(3):
            disk_of_boot(disk, f"life {life}")
            log = open_log(disk, disk.directory, durability, chunksize=2)
            scribe = LogScribe(log, disk.mark, first)
            scribe.consumer("a")
            scribe.append(2)
            scribe.take("a")
            scribe.trim(log.last)
            scribe.close()
            first = scribe.next

    found = explore(workload, check, model, memory_directory(), limit=3, seed=seed)
    assert not found.violations, str(found)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_a_consumer_commits_what_is_not_durable_yet(model, seed):
    """Another process reads an item between its write and its sync, and commits it durably.

    A power cut may then destroy the item and keep the commit. No later item gets that position, because the
    consumer would never read it.
    """

    def workload(crash: CrashDisk) -> None:
        crash.mark("power")
        disk = FaultyDisk(crash)
        scribe = LogScribe(open_log(disk, crash.directory, "power", chunksize=3), crash.mark)
        scribe.append()
        other = LogScribe(open_log(crash, crash.directory, "power"), crash.mark)
        other.consumer("a")
        other.take("a")

        def read(fd: int) -> None:
            with contextlib.suppress(Empty):
                other.take("a")

        disk.on("sync", read, times="forever", path="q?????")
        scribe.append(3)  # over a change of chunk
        disk.heal()
        assert other.got["a"] == 4
        other.close()
        scribe.close()

    found = explore(workload, check, model, memory_directory(), limit=4, seed=seed)
    assert not found.violations, str(found)


def short_life(scribe: LogScribe) -> None:
    scribe.append(2)
    scribe.consumer("a")
    scribe.take("a", 2)
    scribe.extend(2)
    scribe.trim(3)


def short_rewind(scribe: LogScribe) -> None:
    scribe.append(3)
    scribe.consumer("a")
    scribe.take("a", 2)
    scribe.seek("a", "first")


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("work", [short_life, short_rewind], ids=["short_life", "short_rewind"])
def test_a_power_cut_during_recovery(work, model, durability, seed):
    found = explored(work, model, durability, recover=True, limit=2, chunksize=2, seed=seed)
    assert not found.violations, str(found)
    assert found.recoveries > 20
