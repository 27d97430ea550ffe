"""A full disk and failing calls under a message store, with an account.

After an error all is as it was before the operation, or the error says that the outcome is unknown.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from typing import Any

import pytest

from persistcoll import Empty, StorageError, StorageFullError
from persistcoll.disk.calls import CALLS
from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import State
from persistcoll.testing.faults import FaultyDisk
from tests.crash.images import image
from tests.crash.message_accounts import Account, found
from tests.crash.messages import POLICY, is_consistent, opened
from tests.crash.test_disk_full import WHEN, WRITERS_CALLS, child, failing
from tests.crash.test_message_interrupts import OPERATIONS, MessageObserver, Scene
from tests.crash.test_pdict_full import Narrow

# A full disk.


def fill(store: Any) -> int:
    """Put messages until there is no space; return how many were put."""
    for number in itertools.count():
        try:
            store.put([MessageEntry(b"%d" % number + b"x" * 200, group="g" if number % 2 else None)])
        except StorageFullError:
            return number
    raise AssertionError("never full")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.needs("root", "mkfs.ext4", "mkfs.xfs", "losetup")
@pytest.mark.parametrize(("system", "durability"), [("ext4", "power"), ("xfs", "process")])
def test_a_full_disk(system, durability, tmp_path):
    """Whatever is refused changes nothing, reading goes on, and all goes on when there is space."""
    with image(tmp_path, system, "") as disk:
        narrow, path = Narrow(disk), disk.place / "d"
        with contextlib.closing(opened(path, POLICY, durability)) as store:
            store.put([MessageEntry(b"first %d" % number) for number in range(6)])
            claims: list[MessageClaim] = []
            store.claim(6, claims=claims)
            count = 6 + fill(store)
            assert count > 100
            before = numbers(store)
            many = [MessageEntry(b"y" * 300_000)] * 30
            refused = 0
            for attempt in (
                lambda: store.put(many),
                lambda: store.claim(5000),
                store.purge,
                lambda: store.ack(claims[:3]),
                lambda: store.nack(claims[:3]),
                lambda: store.release(claims[:3]),
                lambda: store.fail(claims[:3]),
                lambda: store.pause("default"),
                lambda: store.lock_topic("default", 1.0),
            ):
                with contextlib.suppress(StorageFullError), store.transaction():
                    attempt()
                    refused -= 1
                    store.put(many)
                refused += 1
                assert numbers(store) == before
            assert refused > 0
            assert store.peek().payload.startswith(b"0")
            narrow.widen()
            store.ack(claims)
            taken = 0
            with contextlib.suppress(Empty):
                while True:
                    taken_now: list[MessageClaim] = []
                    store.claim(100, claims=taken_now)
                    store.ack(taken_now)
                    taken += len(taken_now)
            assert taken == count - 6
            assert store.has_unfinished() is False
        is_consistent(path)


def numbers(store: Any) -> list[Any]:
    """Return all that a store tells of its counts and of its messages' states."""
    stats = store.stats()
    counts = [getattr(stats, state.value) for state in State]
    return [store.topics(), counts, [(each.id, each.state) for each in store.scan()]]


# Calls that fail.


@contextlib.contextmanager
def faulty_disk(store: Any) -> Any:
    """Give a disk whose calls can be made to fail, in the place of the store's."""
    disk = store._database.disk
    whole = copy.copy(disk)
    faulty = FaultyDisk(whole)
    for call in CALLS:
        setattr(disk, call, getattr(faulty, call))
    yield faulty
    for call in CALLS:
        setattr(disk, call, getattr(whole, call))


CHANGING = [
    name
    for name in OPERATIONS
    if name not in ("find", "scan", "topics", "stats", "close", "claim of a topic")
]


@pytest.mark.parametrize("times", [1, "forever"])
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("name", CHANGING)
def test_each_call_of_an_operation_fails(name, durability, times, memory_path):
    operation = OPERATIONS[name]
    names = (f"queue {number}" for number in itertools.count())
    whole = Scene(memory_path / "d", "whole", durability)
    observer = MessageObserver(memory_path / "d" / "data.db")
    before = observer.everything(observer.number("whole"))
    with faulty_disk(whole.store) as disk:
        operation(whole)
        counted = dict(disk.calls)
    after = observer.everything(observer.number("whole"))
    whole.store.close()
    failed = 0
    for call, count in counted.items():
        for at in range(1, count + 1):
            scene = Scene(memory_path / "d", next(names), durability)
            error = None
            with faulty_disk(scene.store) as disk:
                fault = disk.fail(call, at=at, times=times)
                try:
                    operation(scene)
                except StorageError as caught:
                    error = caught
            assert fault.fired, (call, at)
            state = observer.everything(observer.number(scene.name))
            if error is None:
                assert state == after, (call, at)
            elif "unknown" in str(error):
                assert state in (before, after), (call, at)
            else:
                assert state == before, (call, at, error)
            failed += error is not None
            with contextlib.suppress(StorageError):
                scene.store.close()
            observer.expect_nothing_held()
    assert failed or "sync" not in counted
    observer.close()


SYNCED = {
    "put": lambda store, claims: store.put([MessageEntry(b"new")]),
    "ack": lambda store, claims: store.ack(claims),
    "nack": lambda store, claims: store.nack(claims, 0.0),
    "fail": lambda store, claims: store.fail(claims),
}


@pytest.mark.parametrize("name", SYNCED)
def test_after_a_failed_sync_all_is_refused_until_it_is_opened_again(name, memory_path):
    """The outcome of the operation is unknown, and no other message is touched."""
    store = opened(memory_path, POLICY, "power")
    other = opened(memory_path, POLICY, "process", name="other")
    store.put([MessageEntry(b"%d" % number) for number in range(3)])
    claims: list[MessageClaim] = []
    store.claim(claims=claims)
    with faulty_disk(store) as disk:
        disk.fail("sync")
        with pytest.raises(StorageError, match="unknown"):
            SYNCED[name](store, claims)
    refused = (
        lambda: store.put([MessageEntry(b"more")]), store.claim, lambda: store.ack(claims), store.count,
        store.stats, lambda: store.find(1), lambda: other.put([MessageEntry(b"more")]), other.claim,
    )  # fmt: skip
    for call in refused:
        with pytest.raises(StorageError, match="open it again"):
            call()
    for each in (store, other):
        each.close()
    with contextlib.closing(opened(memory_path, POLICY, "power")) as again:
        left = {record.payload: record.state for record in again.scan()}
        first = left.pop(b"0", None)
        new = left.pop(b"new", None)
        assert left == {b"1": State.READY, b"2": State.READY}
        assert first in (State.READY, {"ack": None, "fail": State.DEAD}.get(name, State.READY))
        assert new in ((None, State.READY) if name == "put" else (None,))
        assert again.put([MessageEntry(b"on")]) == [4 + (new is not None)]
    is_consistent(memory_path)


FAULTY = """
import os, random, sys
from persistcoll import LockedError, StorageError
from tests.crash.message_accounts import Author, Hands
from tests.crash.messages import POLICY, opened

path, durability, seed = sys.argv[1:]
hands = Hands(opened(path, POLICY, durability))
author = Author(random.Random(seed), hands)
for _ in range(250):
    try:
        op = author.op()
    except LockedError:
        break
    except StorageError:
        continue
    print(f"ask {op!r}", flush=True)
    try:
        print(f"ok {hands.do(op)!r}", flush=True)
    except StorageError as error:
        if "unknown" in str(error):
            break
        print("no", flush=True)
        if isinstance(error, LockedError):
            break
os._exit(0)
"""


@pytest.mark.long
@pytest.mark.needs("strace")
@pytest.mark.parametrize("times", ["once", "for ever"])
@pytest.mark.parametrize(
    ("call", "error", "durability"),
    [*WRITERS_CALLS, ("pread64", "EIO", "process"), ("fcntl", "EIO", "process")],
)
def test_any_call_of_the_system_fails(call, error, durability, times, rng, tmp_path):
    path, log = tmp_path / "d", tmp_path / "log"
    opened(path, POLICY, durability).close()
    account = Account()
    when = rng.randrange(*WHEN.get(call, (150, 600)))
    command = failing(log, call, error, when if times == "once" else f"{when}+")
    for line in child(FAULTY, str(path), durability, str(rng.getrandbits(32)), command=command):
        account.add(line)
    assert "INJECTED" in log.read_text()
    account.check(found(POLICY, durability, str(path)))
