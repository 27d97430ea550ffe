"""An exception out of a signal handler at every place of a call: no item is lost, and none is passed over."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from persistcoll import Consumer, Empty, Log, StorageError
from tests.interrupting import handled, interruptions
from tests.queues.waits import interrupt_when, until, waiting

pytestmark = pytest.mark.timeout(120)

ITEMS = [1, 2, 3, 4, 5, 6]
FILES = {
    "log.py",
    "consumer.py",
    "log_core.py",
    "blocking.py",
    "event_count.py",
    "log_cursor.py",
    "cursor.py",
}
"""What the calls of a consumer run through. ``tests/crash`` interrupts what lies below."""


class Opened:
    """A log of six items, with a consumer that has committed the first one."""

    def __init__(self, log: Log[Any], name: str) -> None:
        self.log = log
        self.consumer: Consumer[Any] = log.consumer(name)
        assert self.consumer.get() == 1
        self.consumer.commit()
        self.done: list[Any] = []


def get(opened: Opened) -> None:
    opened.done.append(opened.consumer.get())


def get_with_a_timeout(opened: Opened) -> None:
    opened.done.append(opened.consumer.get(timeout=5))


def get_many(opened: Opened) -> None:
    opened.done += opened.consumer.get_many(3)


def receive(opened: Opened) -> None:
    with opened.consumer.receive() as item:
        opened.done.append(item)


def receive_and_raise(opened: Opened) -> None:
    with contextlib.suppress(ValueError), opened.consumer.receive():
        raise ValueError


def iterate(opened: Opened) -> None:
    with contextlib.closing(opened.consumer._iterate(block=False)) as items:
        for item in items:
            opened.done.append(item)
            if item == 4:
                break


def commit(opened: Opened) -> None:
    opened.consumer.commit()


def close(opened: Opened) -> None:
    opened.consumer.close()


CALLS: list[Callable[[Opened], None]] = [
    get, get_with_a_timeout, get_many, receive, receive_and_raise, iterate, commit, close,
]  # fmt: skip


def rest(consumer: Consumer[Any]) -> list[Any]:
    found = []
    with contextlib.suppress(Empty):
        while True:
            found.append(consumer.get(False))
    return found


@pytest.fixture
def prepare(memory_path):
    """Return a function that returns a new consumer of a log of six items each time."""
    with Log(memory_path / "log", durability="process", serializer="json") as log:
        log.extend(ITEMS)
        numbers = itertools.count()
        yield lambda: Opened(log, f"c{next(numbers)}")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_call_of_a_consumer(prepare, call):
    """What the caller did not get comes next, and the position passes nothing that the caller did not get."""
    count = 0
    for opened, where in interruptions(prepare, call, files=FILES):
        count += 1
        consumer, done = opened.consumer, opened.done
        if call is not close:
            position = consumer.position
            assert position == 1 or position in done, where
            found = rest(consumer)
            assert found == sorted(set(found)), where
            # What is committed does not come again.
            assert not found or found[0] > position, where
            assert sorted({1, *done, *found}) == ITEMS, where
            # An interrupt before the commit of an item lets it come again.
            assert len(done) + len(found) <= len(ITEMS), where
            consumer.commit()
            assert consumer.position == 6, where
        consumer.close()
        name = consumer.name
        with opened.log.consumer(name) as again:
            assert again.position == (1 if call is close else 6), where
            assert rest(again) == (ITEMS[1:] if call is close else []), where
        assert not opened.log._appended.listeners, where
    assert count > 5


@pytest.mark.parametrize("call", CALLS[:-1], ids=lambda call: call.__name__)
def test_the_same_name_after_a_call_of_a_consumer(prepare, call):
    """After the interrupt another object of this name begins after the position, and passes over nothing."""
    for opened, where in interruptions(prepare, call, files=FILES, step=3, first=2):
        position = opened.consumer.position
        opened.consumer.close()
        with opened.log.consumer(opened.consumer.name) as again:
            assert (again.position, rest(again)) == (position, ITEMS[position:]), where
        assert position == 1 or position in opened.done, where


@pytest.mark.parametrize("place", ["first", 3, "last"])
def test_a_seek(prepare, place):
    def seek(opened: Opened) -> None:
        opened.consumer.get()
        opened.consumer.seek(place)

    after = {"first": 0, 3: 2, "last": 6}[place]
    for opened, where in interruptions(prepare, seek, files=FILES):
        consumer = opened.consumer
        position = consumer.position
        assert position in (1, after), where
        found = rest(consumer)
        assert found in (ITEMS[1:], ITEMS[2:], ITEMS[after:]), where
        consumer.close()
        with opened.log.consumer(consumer.name) as again:
            assert (again.position, rest(again)) == (position, ITEMS[position:]), where


@pytest.mark.parametrize("several", [False, True], ids=["append", "extend"])
def test_an_append(memory_path, several):
    """What is appended is stored wholly or not at all, and the log goes on after it."""
    numbers = itertools.count()

    def begin():
        log: Log[Any] = Log(memory_path / f"log{next(numbers)}", durability="process", serializer="json")
        log.extend(ITEMS)
        return log

    new = [7, 8] if several else [7]
    for log, where in interruptions(begin, lambda log: log.extend(new) if several else log.append(7)):
        with log:
            found = list(log)
            assert found in (ITEMS, [*ITEMS, *new]), where
            assert log.append("next") == len(found) + 1, where
            with log.consumer("c") as consumer:
                assert rest(consumer) == [*found, "next"], where


@pytest.mark.parametrize("name", ["consumer", "forget"])
def test_opening_and_forgetting_a_consumer(memory_path, name):
    with Log(memory_path / "log", durability="process", serializer="json") as log:
        log.extend(ITEMS)
        numbers = itertools.count()

        def prepare():
            consumer = f"c{next(numbers)}"
            if name == "forget":
                with log.consumer(consumer) as opened:
                    opened.commit(2)
            return consumer

        def call(consumer):
            (log.forget if name == "forget" else log.consumer)(consumer)

        for consumer, where in interruptions(prepare, call, step=2):
            with log.consumer(consumer) as opened:
                found = rest(opened)
            expected = (ITEMS, ITEMS[2:]) if name == "forget" else (ITEMS,)
            assert found in expected, where
            assert log.forget(consumer), where
            assert not log._store._cursors, where  # type: ignore[attr-defined]


HANDLERS: dict[str, Callable[[Opened], object]] = {
    "get": lambda opened: opened.done.append(opened.consumer.get(False)),
    "commit": lambda opened: opened.consumer.commit(0),
    "append": lambda opened: opened.log.append("handler"),
    "lag": lambda opened: opened.consumer.lag,
    "len": lambda opened: len(opened.log),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", CALLS[:-1], ids=lambda call: call.__name__)
def test_a_signal_handler_within_a_call(prepare, call, handler):
    """A handler that uses the consumer, or the log, answers or raises ``StorageError``, and never hangs."""

    def handle(opened: Opened) -> None:
        with contextlib.suppress(StorageError, Empty):
            HANDLERS[handler](opened)

    for opened, where in handled(prepare, call, handle, files=FILES, step=3, first=1):
        found = [1, *opened.done, *rest(opened.consumer)]
        numbers = sorted(item for item in found if item != "handler")
        assert numbers == ITEMS or (call is receive_and_raise and sorted(set(numbers)) == ITEMS), where
        opened.consumer.close()


def test_a_signal_while_a_thread_is_served(prepare):
    """An interrupted thread keeps no other one waiting."""
    opened = prepare()
    consumer = opened.consumer
    rest(consumer)
    other = waiting(consumer.get)
    until(lambda: opened.log._appended._wakes)

    interrupt_when(lambda: len(opened.log._appended._wakes) == 2, consumer.get)
    opened.log.append("new")
    assert other() == "new"
    consumer.close()
