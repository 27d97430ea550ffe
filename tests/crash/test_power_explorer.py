"""Every state that a power cut may leave of a queue, in three models, for everything that it does.

At ``"power"`` what returned must be there; at ``"process"`` what remains must match some moment before.
Either way opening never fails, and recovering twice, or a cut during recovery, changes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import Empty, Queue
from persistcoll.testing.faults import CrashDisk, CrashState, Model, explore
from tests.crash.accounts import (
    Account,
    Scribe,
    drain,
    memory_directory,
    number_of,
    numbered,
    quick_disk,
    strangers,
)

MODELS: tuple[Model, ...] = ("ext4", "strict", "weak")
NEWCOMER = 99_000_000
"""The number put into a recovered queue."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # The tests recover thousands of torn tails, each with a warning.
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    # The cursor's reserve, enough for ten entries: the same code with a two-hundredth of the bytes.
    monkeypatch.setattr("persistcoll.journal.cursors._RESERVED", 308)


Work = Callable[[Scribe], None]


def open_queue(disk: CrashDisk, durability: Any, **options) -> Queue:
    path = os.path.join(disk.directory, "deep", "queue")
    return Queue(path, serializer="raw", durability=durability, _disk=disk, **options)


def check(state: CrashState, directory: str) -> None:
    """Check what a process finds that opens the queue after the cut."""
    account = Account(line for line in state.marks if line not in ("power", "process"))
    path = os.path.join(directory, "deep", "queue")
    disk = quick_disk()

    def reopened() -> Queue:
        return Queue(path, serializer="raw", _disk=disk)

    with reopened() as queue:
        seen = [number_of(item) for item in queue.items()]
        assert queue.qsize() == len(seen)
    with reopened() as queue:
        assert [number_of(item) for item in queue.items()] == seen, "recovering twice is not the same"
        delivered = drain(queue)
        assert delivered == seen
        assert queue.qsize() == 0
        assert queue.stats().dead == 0
        queue.put(numbered(NEWCOMER))
    with reopened() as queue:
        assert drain(queue) == [NEWCOMER], "not usable after recovery"
    assert not strangers(path), strangers(path)
    account.check(delivered, power="power" in state.marks)


def recovery(durability: str) -> Callable[[CrashDisk], None]:
    """Open what a cut left, get one item, put one, close, on a disk whose power is cut again."""

    def recover(disk: CrashDisk) -> None:
        with open_queue(disk, durability) as queue:
            disk.mark(" ".join(["saw", *(str(number_of(item)) for item in queue.items())]))
            scribe = Scribe(queue, disk.mark, first=50_000)
            try:
                scribe.get()
            except Empty:
                pass
            else:
                scribe.done()
            scribe.put()
            scribe.close()

    return recover


def explored(
    work: Work,
    model: Model,
    durability: str,
    *,
    recover: bool = False,
    limit: int = 5,
    seed: int = 0,
    **options,
):
    def workload(disk: CrashDisk) -> None:
        disk.mark(durability)
        queue = open_queue(disk, durability, **options)
        try:
            work(Scribe(queue, disk.mark))
        finally:
            queue.close()
        disk.mark("closed")

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


def put(scribe: Scribe) -> None:
    scribe.put(4)


def put_many(scribe: Scribe) -> None:
    scribe.put()
    scribe.put_many(3)
    scribe.put_many(2)


def get_and_task_done(scribe: Scribe) -> None:
    scribe.put(3)
    scribe.get(2)
    scribe.done()
    scribe.put()
    scribe.get()
    scribe.done()


def get_many(scribe: Scribe) -> None:
    scribe.put_many(5)
    scribe.get_many(3)
    scribe.done(2)
    scribe.get_many(2)
    scribe.done(3)


def receive(scribe: Scribe) -> None:
    scribe.put(3)
    scribe.receive()
    scribe.receive(fails=True)
    scribe.receive()


def skip(scribe: Scribe) -> None:
    scribe.put(3)
    scribe.skip()
    scribe.get()
    scribe.skip()
    scribe.done()


def clear(scribe: Scribe) -> None:
    scribe.put(4)
    scribe.clear()
    scribe.put(2)
    scribe.clear()


def out_of_order(scribe: Scribe) -> None:
    """Claim three items, and ack the last one first, then the first, then the middle one."""
    scribe.put(4)
    store = scribe.queue._core.store
    ids = [store.claim(lambda record: record.id) for _ in range(3)]
    for place in (2, 0, 1):
        with scribe.asking("drop", place + 1, place + 1):
            store.ack([ids[place]])


def beside_one_in_hand(scribe: Scribe) -> None:
    """Ack whole chunks while the first item of an earlier one is in flight."""
    scribe.put(8)
    store = scribe.queue._core.store
    ids = [store.claim(lambda record: record.id) for _ in range(7)]
    for place in (4, 3, 6, 5, 1, 0):
        with scribe.asking("drop", place + 1, place + 1):
            store.ack([ids[place]])


def long_life(scribe: Scribe) -> None:
    """Interleave puts and removals over several chunks."""
    scribe.put(2)
    for _ in range(4):
        scribe.get()
        scribe.put()
        scribe.done()


WORKS = {
    work.__name__: work
    for work in (
        put,
        put_many,
        get_and_task_done,
        get_many,
        receive,
        skip,
        clear,
        out_of_order,
        beside_one_in_hand,
        long_life,
    )
}


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunksize", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("work", WORKS)
def test_whatever_a_power_cut_leaves_is_right(work, chunksize, model, durability, seed):
    found = explored(WORKS[work], model, durability, chunksize=chunksize, seed=seed)
    assert not found.violations, str(found)
    assert found.states > 20


def autosave(scribe: Scribe) -> None:
    scribe.put(5)
    scribe.take(2)
    scribe.take_many(2)
    scribe.put()
    scribe.take()


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunksize", [2, 100])
def test_autosave_acknowledges_in_get(chunksize, model, durability, seed):
    found = explored(autosave, model, durability, chunksize=chunksize, autosave=True, seed=seed)
    assert not found.violations, str(found)


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
def test_closing_and_opening_again(model, durability, seed):
    def workload(disk: CrashDisk) -> None:
        disk.mark(durability)
        first = 1
        for _ in range(3):
            scribe = Scribe(open_queue(disk, durability, chunksize=2), disk.mark, first)
            scribe.put(2)
            scribe.get()
            scribe.done()
            scribe.close()
            first = scribe.next

    found = explore(workload, check, model, memory_directory(), limit=5, seed=seed)
    assert not found.violations, str(found)


@pytest.mark.long
@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunksize", [2])
@pytest.mark.parametrize(
    "work",
    [put_many, get_and_task_done, beside_one_in_hand],
    ids=["put_many", "get_and_task_done", "beside_one_in_hand"],
)
def test_a_power_cut_during_recovery(work, chunksize, model, durability, seed):
    found = explored(work, model, durability, recover=True, limit=2, chunksize=chunksize, seed=seed)
    assert not found.violations, str(found)
    assert found.recoveries > 20
