"""An exception out of a signal handler, after any call and at the beginning of any function."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from pathlib import Path

import pytest

import persistcoll
from persistcoll.engine.records import Durability
from persistcoll.errors import Empty
from persistcoll.journal.directory import OpenOptions
from persistcoll.journal.open import Opening
from persistcoll.journal.queue_store import JournalQueueStore
from tests.interrupting import interruptions
from tests.leaks import open_below

# What a generator raises while it is freed with its frame reaches no caller.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Group commit has tests of its own.
FILES = {path.name for path in Path(persistcoll.__file__).parent.rglob("*.py")} - {
    "group_commit.py",
    "combining.py",
}
ITEMS = range(1, 11)


def opened(path: Path, durability: Durability = "process", policy: str = "raise") -> JournalQueueStore:
    options = OpenOptions(serializer="raw", chunksize=3, on_corruption=policy)  # type: ignore[arg-type]
    with Opening(str(path), options) as opening:
        try:
            opening.begin()
            return JournalQueueStore(opening, durability=durability)
        finally:
            opening.release()


def number(record) -> int:
    return int(record.payload)


def drained(store: JournalQueueStore) -> list[int]:
    found = []
    with contextlib.suppress(Empty):
        while True:
            found.append(store.pop(number))
    return found


class Trial:
    """A store with a history: some items in flight, one nacked, one skipped."""

    def __init__(
        self, path: Path, durability: Durability, consuming: bool = True, policy: str = "raise"
    ) -> None:
        self.path = path
        self.durability = durability
        self.policy = policy
        self.store = opened(path, durability, policy)
        for each in ITEMS:
            self.store.append(b"%d" % each)
        self.claims: list = []
        self.held: list[int] = []
        if consuming:
            self.held = self.store.claim_many(5, number)
            self.store.ack((1,))
            self.store.nack(2)
            self.store.remove(7)
            self.store.ack((4,))
            self.held = [3, 5]

    def judge(self, added: tuple[int, ...], removed: tuple[tuple[int, ...], ...]) -> None:
        """Check that the operation happened wholly or not at all.

        :param added: the records that it may have put.
        :param removed: the records that it may have removed, in one of these ways.
        """
        with open(self.path / "producer.lock", "rb") as file:  # no handle holds the lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store = self.store
        store.release(self.claims)
        ready, claimed = store.count(), store.claimed()
        listed = [number(record) for record in store.records()]
        with contextlib.closing(opened(self.path, self.durability)) as observer:
            assert (observer.count(), observer.claimed()) == (ready, claimed)
            assert [number(record) for record in observer.records()] == listed
        left = set(self.held)
        for id in self.held:
            with contextlib.suppress(persistcoll.NotClaimedError):
                store.nack(id)
                left.discard(id)
        assert claimed == len(self.held) - len(left)
        found = drained(store)
        assert (store.count(), store.claimed(), store.unfinished()) == (0, 0, 0)
        assert found == sorted(set(found))
        there = {*ITEMS} - ({1, 4, 7} if self.held else set())
        gone = there - set(found)
        assert tuple(sorted(gone)) in ((), *removed)
        more = tuple(sorted(set(found) - there))
        assert more in ((), added)
        store.append(b"99")
        assert drained(store) == [99]
        store.close()
        with contextlib.closing(opened(self.path, self.durability)) as store:
            assert store.count() == 0


def sweep(memory_path, operation, judge, make, steps) -> None:
    numbers = itertools.count()
    where = "nowhere"

    def prepare() -> Trial:
        assert not open_below(memory_path), f"interrupted at {where}"
        trial: Trial = make(memory_path / str(next(numbers)))
        return trial

    for trial, where in interruptions(prepare, operation, files=FILES, **steps):  # noqa: B007 - read above
        judge(trial)
        trial.store.close()
        shutil.rmtree(trial.path)
    assert not open_below(memory_path)
    assert next(numbers) > 1


READY = (2, 6, 8, 9, 10)


def nack_both(trial: Trial) -> None:
    """Nack both records that are claimed; of two, one alone is never ready."""
    try:
        trial.store.nack_many((3, 5))
    finally:
        assert trial.store.claimed() in (0, 2)


OPERATIONS = {
    "append": (lambda trial: trial.store.append(b"11"), (11,), ()),
    "append to a bound": (lambda trial: trial.store.append(b"11", 100), (11,), ()),
    "append_many": (lambda trial: trial.store.append_many([b"11", b"12"]), (11, 12), ()),
    "claim": (lambda trial: trial.store.claim(number, claims=trial.claims), (), ()),
    "claim two": (
        lambda trial: [trial.store.claim(number, claims=trial.claims) for _ in range(2)],
        (),
        (),
    ),
    "pop": (lambda trial: trial.store.pop(number), (), ((2,),)),
    "claim_many": (lambda trial: trial.store.claim_many(3, number, claims=trial.claims), (), ()),
    "pop_many": (lambda trial: trial.store.pop_many(3, number), (), ((2, 6, 8),)),
    "pop_many of what was nacked": (lambda trial: trial.store.pop_many(1, number), (), ((2,),)),
    "ack": (lambda trial: trial.store.ack((3,)), (), ((3,),)),
    "acknowledge two": (lambda trial: trial.store.ack((3, 5)), (), ((3, 5),)),
    "nack": (lambda trial: trial.store.nack(3), (), ()),
    "nack_many": (nack_both, (), ()),
    "remove": (lambda trial: trial.store.remove(), (), ((2,),)),
    "remove one": (lambda trial: trial.store.remove(9), (), ((9,),)),
    "clear": (lambda trial: trial.store.clear(), (), (READY,)),
    "peek": (lambda trial: trial.store.peek(number), (), ()),
    "records": (lambda trial: list(trial.store.records()), (), ()),
    "count": (lambda trial: trial.store.count(), (), ()),
    "unfinished": (lambda trial: trial.store.unfinished(), (), ()),
    "stats": (lambda trial: trial.store.stats(), (), ()),
    "change_token": (lambda trial: trial.store.change_token(), (), ()),
}


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_of_the_consumer(name, durability, memory_path, steps):
    operation, added, removed = OPERATIONS[name]
    sweep(
        memory_path,
        operation,
        lambda trial: trial.judge(added, removed),
        lambda path: Trial(path, durability),
        steps,
    )


@pytest.mark.parametrize("name", ["claim", "pop_many", "clear", "count", "append", "records"])
def test_operation_of_a_process_that_has_not_consumed(name, memory_path, steps):
    operation, added, _ = OPERATIONS[name]
    removed = {"clear": (tuple(ITEMS),), "pop_many": ((1, 2, 3),)}.get(name, ())
    sweep(
        memory_path,
        operation,
        lambda trial: trial.judge(added, removed),
        lambda path: Trial(path, "process", consuming=False),
        steps,
    )


def test_interrupted_process_does_not_keep_others_from_consuming(memory_path, steps):
    def judge(trial: Trial) -> None:
        if trial.store.claimed():
            return  # it has become the consumer
        with contextlib.closing(opened(trial.path)) as other:
            if trial.store._consumer is None:
                assert other.claim(number) == 1

    sweep(
        memory_path,
        lambda trial: trial.store.claim(number, claims=trial.claims),
        judge,
        lambda path: Trial(path, "process", consuming=False),
        steps,
    )


@pytest.mark.parametrize("durability", ["process", "power"])
def test_changes_of_chunk(durability, memory_path, steps):
    def operation(trial: Trial) -> None:
        for each in range(11, 18):
            trial.store.append(b"%d" % each)
            trial.store.pop(number)

    def judge(trial: Trial) -> None:
        store = trial.store
        ready = store.count()  # this call also publishes the cursor to other processes
        with contextlib.closing(opened(trial.path)) as observer:
            assert observer.count() == ready
        for id in trial.held:
            store.nack(id)
        found = drained(store)
        # Records were put and popped one at a time, from the first ready one on.
        assert found[:2] == [3, 5] or found[:3] == [2, 3, 5]
        rest = [id for id in found if id > 5]
        assert rest == [id for id in range(rest[0], rest[-1] + 1) if id != 7]
        store.append(b"99")
        assert drained(store) == [99]

    sweep(memory_path, operation, judge, lambda path: Trial(path, durability), steps)


def test_damage_that_is_passed_over(memory_path, steps):
    def make(path: Path) -> Trial:
        trial = Trial(path, "process", consuming=False, policy="skip")
        chunk = path / "q00001"  # records 4, 5, 6
        content = bytearray(chunk.read_bytes())
        content[-100] ^= 255
        chunk.write_bytes(content)
        return trial

    def judge(trial: Trial) -> None:
        found = drained(trial.store)
        gone = {*ITEMS} - {*found}
        assert found == sorted(found)
        assert gone in [{4}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}], found
        assert trial.store.count() == 0

    sweep(
        memory_path,
        lambda trial: trial.store.claim_many(3, number) and trial.store.claim(number),
        judge,
        make,
        steps,
    )


def test_close(memory_path, steps):
    def judge(trial: Trial) -> None:
        trial.store.close()
        with contextlib.closing(opened(trial.path)) as again:
            assert drained(again) == [2, 3, 5, 6, 8, 9, 10]

    sweep(memory_path, lambda trial: trial.store.close(), judge, lambda path: Trial(path, "process"), steps)


@pytest.mark.parametrize("there", [True, False], ids=["made before", "new"])
def test_constructor(there, memory_path, steps):
    numbers = itertools.count()

    def prepare() -> Path:
        path: Path = memory_path / str(next(numbers))
        if there:
            Trial(path, "process").store.close()
        return path

    made: list[JournalQueueStore] = []

    def construct(path: Path) -> None:
        made.append(opened(path))

    for path, where in interruptions(prepare, construct, files=FILES, **steps):
        while made:
            made.pop().close()
        with contextlib.closing(opened(path)) as store:
            assert drained(store) == ([2, 3, 5, 6, 8, 9, 10] if there else [])
        del store
        assert not open_below(path), f"interrupted at {where}"
        assert not [name for name in os.listdir(path) if name.endswith(".tmp")]
        shutil.rmtree(path)
    assert next(numbers) > 1
