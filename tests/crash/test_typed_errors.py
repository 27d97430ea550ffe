"""Every call to the operating system fails once, in every operation of every container.

The law: the operation succeeds or raises a ``PersistcollError``. After either, no descriptor stays open, no
lock stays held, and a new handle finds what returned.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from persistcoll import (
    Empty,
    MessageQueue,
    PDict,
    PersistcollError,
    Queue,
    SQLiteAckQueue,
    SQLiteQueue,
    State,
)
from persistcoll.disk.calls import CALLS, Disk
from persistcoll.sqlite import open as opening
from persistcoll.sqlite.database_file import DatabaseFile
from persistcoll.testing import faults
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import memory_directory, quick_disk
from tests.crash.transaction_accounts import Workshop

ERRORS = [
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EINTR,
    errno.ENOENT,
    errno.ELOOP,
    errno.ENAMETOOLONG,
]
# Calls that read files without a Disk, and what a Disk offers beside CALLS.
OUTSIDE = ("stat", "lstat", "listdir", "getcwd")
# Trials of an operation, except in the exhaustive form.
MOST = 8
ALSO = ("size", "status", *OUTSIDE)
REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in OUTSIDE}


class EveryCall(FaultyDisk):
    """A :class:`FaultyDisk` that also replaces the functions of :mod:`os` that read files."""

    def __init__(self) -> None:
        disk: Any = quick_disk()
        for name, function in REAL.items():
            setattr(disk, name, function)
        super().__init__(disk)
        for name in ALSO:
            setattr(self, name, partial(self._run, name))

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        for name in OUTSIDE:
            setattr(os, name, getattr(self, name))
        try:
            yield
        finally:
            for name, function in REAL.items():
                setattr(os, name, function)
            self.heal()


class Kind(NamedTuple):
    make: Any
    durability: str
    operations: dict[str, Callable[[Any], object]]
    looks: bool = False
    """Whether the container under test is opened with ``read_only=True``."""

    @property
    def all_operations(self) -> tuple[str, ...]:
        return (*(() if self.looks else ("create",)), "open", "close", *self.operations)

    @property
    def name(self) -> str:
        return f"{self.make.__name__}-{'looking' if self.looks else self.durability}"

    def open(self, path: Path, disk: Disk | None = None) -> Any:
        options: dict[str, Any] = {"serializer": "json", "durability": self.durability}
        options["read_only"] = self.looks and disk is not None
        disk = disk or quick_disk()
        if self.make is Queue:
            return Queue(path, chunksize=3, _disk=disk, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "DatabaseFile", partial(DatabaseFile, disk=disk))
            return self.make(path, **options)

    def begin(self, path: Path) -> None:
        with self.open(path) as store:
            for number in range(5):
                self.add(store, number)

    def add(self, store: Any, number: int) -> None:
        if self.make is PDict:
            store[number] = number
        else:
            store.put(number)

    def contents(self, path: Path) -> list[Any]:
        with self.open(path) as store:
            return [*store.items()]


def with_one_in_hand(call: Callable[[Any, Any], object]) -> Callable[[Any], object]:
    return lambda queue: call(queue, queue.get_nowait())


def within(manager: Callable[[Any], AbstractContextManager[Any]]) -> Callable[[Any], object]:
    def run(store: Any) -> None:
        with manager(store):
            pass

    return run


def set_in_transaction(store: Any) -> None:
    with store.transaction():
        store[9] = 9
        store[8] = 8


class Together(Workshop):
    """Two queues and a dict of one file, as one container."""

    def items(self) -> list[Any]:
        return [*self.jobs.items(), *self.results.items(), *self.counters.items()]

    def put(self, item: Any) -> None:
        self.jobs.put(item)


def work_in_transaction(shop: Any) -> None:
    with shop.transaction("counters"):
        job = shop.jobs.get(block=False)
        shop.results.put_many([job, -job])
        shop.counters.update({job: shop.counters.incr("done")})
        shop.jobs.ack(job)


def work_in_vain(shop: Any) -> None:
    with contextlib.suppress(ZeroDivisionError), shop.transaction("results"):
        work_in_transaction(shop)
        raise ZeroDivisionError


class Messages(MessageQueue[Any]):
    """A message queue that lists what may be delivered again."""

    def items(self) -> list[Any]:
        return [self._info(record).body for record in self._store.scan(State.READY, State.DELAYED)]


def with_a_message(call: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda queue: call(queue.get(block=False))


def first_of_two(queue: Any) -> None:
    with contextlib.closing(queue.consume(prefetch=2)) as iteration:
        next(iteration).ack()


LOOKING: dict[str, Callable[[Any], object]] = {
    "items": lambda store: [*store.items()],
    "stats": lambda store: store.stats(),
}
LOOKING_AT_QUEUE: dict[str, Callable[[Any], object]] = {
    **LOOKING,
    "peek": lambda queue: queue.peek(),
    "qsize": lambda queue: queue.qsize(),
    "unfinished_tasks": lambda queue: queue.unfinished_tasks,
}
LOOKING_AT_DICT: dict[str, Callable[[Any], object]] = {
    **LOOKING,
    "[]": lambda pairs: pairs[1],
    "get_many": lambda pairs: pairs.get_many([1, 2]),
    "list": list,
    "len": len,
    "scan": lambda pairs: [*pairs.scan()],
}
QUEUE: dict[str, Callable[[Any], object]] = {
    **LOOKING_AT_QUEUE,
    "put": lambda queue: queue.put(9),
    "put_many": lambda queue: queue.put_many([9, 10, 11, 12]),
    "get": lambda queue: queue.get_nowait(),
    "get, waiting": lambda queue: (queue.clear(), queue.get(timeout=0.002)),
    "get_many": lambda queue: queue.get_many(2),
    "receive": within(lambda queue: queue.receive(block=False)),
    "skip": lambda queue: queue.skip(),
    "clear": lambda queue: queue.clear(),
}
SQL = {
    **QUEUE,
    "queue": lambda queue: queue.queue(),
    "update": lambda queue: queue.update(99, 1),
    "get by id": lambda queue: queue.get(block=False, id=2),
}
LOOKING_AT_MESSAGES: dict[str, Callable[[Any], object]] = {
    **LOOKING,
    "peek": lambda queue: queue.peek(),
    "qsize": lambda queue: queue.qsize(),
    "find": lambda queue: queue.find(2),
    "topics": lambda queue: queue.topics(),
    "dead_letters": lambda queue: [*queue.dead_letters()],
}
MESSAGES: dict[str, Callable[[Any], object]] = {
    **LOOKING_AT_MESSAGES,
    "put": lambda queue: queue.put(9, topic="t", key="k", key_window=9, group="g", headers={"a": "b"}),
    "put_many": lambda queue: queue.put_many([9, 10, 11, 12]),
    "get": lambda queue: queue.get(block=False),
    "get, waiting": lambda queue: queue.get("no", timeout=0.002),
    "get_many": lambda queue: queue.get_many(2),
    "consume": first_of_two,
    "block": within(lambda queue: queue.get(block=False)),
    "ack": with_a_message(lambda message: message.ack()),
    "nack": with_a_message(lambda message: message.nack(100)),
    "release": with_a_message(lambda message: message.release()),
    "fail": with_a_message(lambda message: message.fail("no use")),
    "extend": with_a_message(lambda message: message.extend(100)),
    "cancel": lambda queue: queue.cancel(3),
    "purge": lambda queue: queue.purge(),
    "redrive": lambda queue: queue.redrive(),
    "pause": lambda queue: queue.pause("default"),
    "limit": lambda queue: queue.limit("default", 5),
    "lock_topic": within(lambda queue: queue.lock_topic()),
    "recover": lambda queue: queue.recover(),
    "release_key": lambda queue: queue.release_key("k"),
}
TOGETHER: dict[str, Callable[[Any], object]] = {
    "transaction": work_in_transaction,
    "rolled back": work_in_vain,
}
KINDS = [
    Kind(make, durability, operations)
    for make, operations in (
        (Queue, {**QUEUE, "task_done": with_one_in_hand(lambda queue, item: queue.task_done())}),
        (SQLiteQueue, SQL),
        (
            SQLiteAckQueue,
            {
                **SQL,
                "ack": with_one_in_hand(lambda queue, item: queue.ack(item)),
                "nack": with_one_in_hand(lambda queue, item: queue.nack(item)),
                "ack_failed": with_one_in_hand(lambda queue, item: queue.ack_failed(item)),
            },
        ),
        (
            PDict,
            {
                **LOOKING_AT_DICT,
                "set": lambda pairs: pairs.__setitem__(9, 9),
                "update": lambda pairs: pairs.update({7: 7, 8: 8}),
                "pop": lambda pairs: pairs.pop(1, None),
                "popitem": lambda pairs: pairs.popitem(),
                "incr": lambda pairs: pairs.incr(1),
                "clear": lambda pairs: pairs.clear(),
                "transaction": set_in_transaction,
            },
        ),
        (Messages, MESSAGES),
        (Together, TOGETHER),
    )
    for durability in ("power", "process")
] + [
    Kind(Queue, "power", LOOKING_AT_QUEUE, looks=True),
    Kind(SQLiteAckQueue, "power", {**LOOKING_AT_QUEUE, "queue": lambda queue: queue.queue()}, looks=True),
    Kind(PDict, "power", LOOKING_AT_DICT, looks=True),
    Kind(Messages, "power", LOOKING_AT_MESSAGES, looks=True),
]
KIND_NAMES = [kind.name for kind in KINDS]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("persistcoll"), "disabled", True)
    monkeypatch.setattr(faults, "CALLS", (*CALLS, *ALSO))


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        yield Path(directory)


def descriptors() -> set[str]:
    """Return numbers and targets of the open descriptors, without the one that lists them."""
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            found.add(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def locks_held(path: Path) -> list[str]:
    fcntl = pytest.importorskip("fcntl")
    held = []
    for file in [*path.glob("*.lock"), *path.glob("*.turn")]:
        with file.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(file.name)
    return held


class Fault(NamedTuple):
    call: str
    at: int
    error: int

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error]} of {self.call} {self.at}"


class Trial:
    """One operation on a store of its own, with at most one fault in it."""

    def __init__(self, kind: Kind, template: Path, path: Path, operation: str, fault: Fault | None) -> None:
        self.kind, self.path, self.operation = kind, path, operation
        self.disk = EveryCall()
        self.fault = fault
        self.raised: BaseException | None = None
        shutil.rmtree(path, ignore_errors=True)
        if operation != "create":
            shutil.copytree(template, path)
        before = descriptors()
        self.more = self._run()
        self.left = descriptors() - before

    def _run(self) -> bool:
        """Run the operation; tell whether the store took another item afterwards."""
        if self.operation in ("create", "open"):
            store = self._armed(lambda: self.kind.open(self.path, self.disk))
        else:
            store = self.kind.open(self.path, self.disk)
            if self.operation == "close":
                if not self.kind.looks:
                    self.kind.add(store, 9)
                self._armed(store.close)
            else:
                self._armed(lambda: self.kind.operations[self.operation](store))
                # If the call that releases a lock fails, the lock may be kept until the store is closed.
                if self.kind.make is not Queue and (self.fault is None or self.fault.call != "flock"):
                    assert not locks_held(self.path), "a lock is kept"
        if store is None or self.operation == "close":
            return False
        more = False
        with contextlib.suppress(PersistcollError):
            self.kind.add(store, 77)
            more = True
        with contextlib.suppress(PersistcollError):
            store.close()
        store.close()
        return more

    def _armed(self, call: Callable[[], Any]) -> Any:
        before = self.disk.calls.copy()
        with self.disk.in_force():
            if self.fault is not None:
                name, at, error = self.fault
                # A real close() that fails has closed the descriptor all the same.
                self.disk.fail(name, at, error, effect="after" if name == "close" else "before")
            try:
                return call()
            except (Empty, PersistcollError) as error:
                self.raised = error.with_traceback(None)
                self.raised.__cause__ = self.raised.__context__ = None
                return None
            finally:
                self.calls = self.disk.calls - before

    def contents(self) -> list[Any]:
        assert not self.left, f"descriptors are left open: {self.left}"
        assert not locks_held(self.path), "a lock is held"
        found = self.kind.contents(self.path)
        more = (77, 77) if self.kind.make is PDict else 77
        assert (more in found) == self.more
        return [each for each in found if each != more]


def trials(kind: Kind, place: Path, operation: str, choose: Callable[[list[Fault]], list[Fault]]) -> int:
    """Run one operation with each of the chosen faults; return how many there were."""
    template = place / "template"
    if not template.exists():
        kind.begin(template)
    clean = Trial(kind, template, place / "store", operation, None)
    before = [] if operation == "create" else kind.contents(template)
    after = clean.contents()
    possible = [
        Fault(call, at, error)
        for call, count in sorted(clean.calls.items())
        for at in range(1, count + 1)
        for error in ERRORS
    ]
    chosen = choose(possible)
    for fault in chosen:
        try:
            trial = Trial(kind, template, place / "store", operation, fault)
            found = trial.contents()
        except Exception as error:
            raise AssertionError(f"{operation}, {fault}") from error
        allowed = [after] if trial.raised is None or operation == "close" else [before, after]
        assert found in allowed, f"{operation}, {fault}: {trial.raised!r}, and then {found}"
    return len(chosen)


@pytest.mark.skipif(os.name != "posix", reason="looks at descriptors and locks")
@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_any_call_fails_in_any_operation(kind, place, rng):
    """Faults at random places of each operation, with one error number each, of which all come in turn."""
    errors = [*ERRORS]
    rng.shuffle(errors)

    def some(possible: list[Fault]) -> list[Fault]:
        places = sorted({(fault.call, fault.at) for fault in possible})
        places = rng.sample(places, min(len(places), MOST))
        turned = rng.randrange(len(errors))
        return [
            Fault(call, at, errors[(turned + turn) % len(errors)]) for turn, (call, at) in enumerate(places)
        ]

    assert sum(trials(kind, place, operation, some) for operation in kind.all_operations) > 10


@pytest.mark.stress
@pytest.mark.skipif(os.name != "posix", reason="looks at descriptors and locks")
@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_any_call_fails_in_any_operation_with_every_error(kind, place):
    for operation in kind.all_operations:
        trials(kind, place, operation, lambda possible: possible)
