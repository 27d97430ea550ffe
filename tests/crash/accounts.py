"""Items that carry their own number, and the account of what was asked, answered and promised.

Every crash test works the same way. A workload says what it is about to do (``ask``) and what returned
(``ok``), as short lines that survive the crash (marks of a CrashDisk, or bytes in a pipe). After the crash an
:class:`Account` of these lines checks what a queue still delivers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from persistcoll import Empty, Queue
from persistcoll.disk.calls import Disk

__all__ = [
    "Account",
    "Scribe",
    "drain",
    "memory_directory",
    "number_of",
    "numbered",
    "quick_disk",
    "strangers",
]

# Lengths that keep small queues small, and some that cross a sector.
_LENGTHS = (24, 40, 31, 600, 57)


def numbered(number: int, length: int | None = None) -> bytes:
    """Return the item with this number. Its bytes follow from the number, so a changed one is noticed."""
    length = _LENGTHS[number % len(_LENGTHS)] if length is None else length
    head = b"%08d %06d " % (number, length)
    pattern = hashlib.sha256(head).digest()
    return (head + pattern * (length // len(pattern) + 1))[: max(length, len(head))]


def number_of(item: bytes) -> int:
    """Return the number of an item, which must be exactly what :func:`numbered` made."""
    try:
        number, length = int(item[:8]), int(item[9:15])
    except ValueError:
        raise AssertionError(f"a phantom of {len(item)} bytes: {item[:20]!r}") from None
    assert item == numbered(number, length), f"item {number} is altered"
    return number


def quick_disk() -> Disk:
    """Return a disk to inspect what a crash left; its power is never cut, so it need not sync."""
    disk = Disk()
    disk.sync = lambda fd: None
    disk.sync_directory = lambda path: None
    return disk


def memory_directory() -> str | None:
    """Return a directory in memory, where thousands of small directories are made fastest."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def drain(queue: Queue) -> list[int]:
    """Get and ack everything; return the items' numbers."""
    numbers = []
    with contextlib.suppress(Empty):
        while True:
            numbers.append(number_of(queue.get(block=False)))
            queue.task_done()
    return numbers


def strangers(directory: str) -> list[str]:
    """Return the names in a queue's directory that a recovered queue has no use for."""
    known = {"info", "cursor", "producer.lock", "consumer.lock"}
    return [
        name
        for name in sorted(os.listdir(directory))
        if name not in known
        and not (name[0] == "q" and name[1:].isdigit())
        and ".torn-" not in name.removesuffix(".tmp") + ("\0" if name.endswith(".tmp") else "")
    ]


class Account:
    """What the lines of asking and answering promise.

    ``ask put 3 5`` and ``ok put 3 5`` (or ``no put 3 5``: it raised, and the item is certainly absent); the
    same with ``drop`` for an acked removal; ``got 3`` for a delivery; ``closed``; and after a crash
    ``saw 1 2``: only these items remained, and they were on the device.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.order: list[int] = []  # every number that was ever tried to put, in that order
        self.batches: list[range] = []
        self.put: set[int] = set()
        self.absent: set[int] = set()
        self.dropped: set[int] = set()
        self.perhaps_dropped: set[int] = set()
        self.firm_put: set[int] = set()
        self.firm_dropped: set[int] = set()
        self.got: list[int] = []
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        verb, *rest = line.split()
        if verb == "closed":
            self.firm_put, self.firm_dropped = set(self.put), set(self.dropped)
            return
        if verb == "got":
            self.got += map(int, rest)
            return
        if verb == "saw":
            self.put, self.firm_put = set(map(int, rest)), set(map(int, rest))
            gone = set(self.order) - self.put
            self.dropped, self.firm_dropped, self.perhaps_dropped = set(gone), set(gone), set(gone)
            self.batches.clear()
            return
        what, first, last = rest
        numbers = range(int(first), int(last) + 1)
        if (verb, what) == ("ask", "put"):
            self.order += numbers
            self.batches.append(numbers)
        elif (verb, what) == ("ok", "put"):
            self.put |= set(numbers)
        elif (verb, what) == ("no", "put"):
            self.absent |= set(numbers)
        elif (verb, what) == ("ask", "drop"):
            self.perhaps_dropped |= set(numbers)
        elif (verb, what) == ("ok", "drop"):
            self.dropped |= set(numbers)
        else:
            assert (verb, what) == ("no", "drop"), line

    def check(self, delivered: Sequence[int], *, power: bool) -> None:
        """Check what was delivered after a crash.

        :param power: everything that returned must have survived. Otherwise only what a clean close made
            durable must survive, and the other items must match some moment before the crash.
        """
        firm_put, firm_dropped = (self.put, self.dropped) if power else (self.firm_put, self.firm_dropped)
        there = set(delivered)
        assert len(there) == len(delivered), f"delivered twice: {sorted(delivered)}"
        phantoms = there - set(self.order)
        assert not phantoms, f"never put: {sorted(phantoms)}"
        assert not there & self.absent, f"put had failed: {sorted(there & self.absent)}"
        place = {number: index for index, number in enumerate(self.order)}
        assert list(delivered) == sorted(delivered, key=place.__getitem__), f"order: {list(delivered)}"
        lost = firm_put - self.perhaps_dropped - there
        assert not lost, f"lost: {sorted(lost)}, delivered {list(delivered)}"
        back = firm_dropped & there
        assert not back, f"acknowledged and back: {sorted(back)}"
        # The items are a prefix: an item missing before a present one was removed, not lost.
        newest = max((place[number] for number in there), default=-1)
        holes = set(self.order[: newest + 1]) - there - self.perhaps_dropped - self.absent
        if holes:
            # A put that never returned may be missing for good.
            assert not holes & self.put, f"a hole: {sorted(holes & self.put)} in {list(delivered)}"
        for batch in self.batches:
            left = set(batch) - self.perhaps_dropped
            assert not left & there or left <= there, f"half of a batch: {sorted(left & there)} of {batch}"


class Scribe:
    """Works on a queue and says what it does."""

    def __init__(self, queue: Queue, say: Callable[[str], object], first: int = 1) -> None:
        self.queue = queue
        self.say = say
        self.next = first
        self.hand: list[int] = []

    @contextlib.contextmanager
    def asking(self, what: str, first: int, last: int) -> Iterator[None]:
        self.say(f"ask {what} {first} {last}")
        yield
        self.say(f"ok {what} {first} {last}")

    def put(self, count: int = 1) -> None:
        for _ in range(count):
            number, self.next = self.next, self.next + 1
            with self.asking("put", number, number):
                self.queue.put(numbered(number))

    def put_many(self, count: int) -> None:
        first, self.next = self.next, self.next + count
        with self.asking("put", first, first + count - 1):
            self.queue.put_many([numbered(number) for number in range(first, first + count)])

    def get(self, count: int = 1) -> None:
        for _ in range(count):
            self._received([self.queue.get(block=False)])

    def get_many(self, count: int) -> None:
        self._received(self.queue.get_many(count, block=False))

    def _received(self, items: Iterable[Any]) -> None:
        for item in items:
            self.hand.append(number_of(item))
            self.say(f"got {self.hand[-1]}")

    def done(self, count: int = 1) -> None:
        for _ in range(count):
            number = self.hand[0]
            with self.asking("drop", number, number):
                self.queue.task_done()
            del self.hand[0]

    def take(self, count: int = 1) -> None:
        """Call ``get``, which with ``autosave`` acks too."""
        for _ in range(count):
            number = number_of(self.queue.peek())
            with self.asking("drop", number, number):
                assert number_of(self.queue.get(block=False)) == number

    def take_many(self, count: int) -> None:
        numbers = [number_of(item) for item in self.queue.items()][:count]
        with self.asking("drop", numbers[0], numbers[-1]):
            assert [number_of(item) for item in self.queue.get_many(count, block=False)] == numbers

    def receive(self, fails: bool = False) -> None:
        number = number_of(self.queue.peek())
        if fails:
            with contextlib.suppress(ZeroDivisionError), self.queue.receive(block=False):
                raise ZeroDivisionError
            return
        with self.asking("drop", number, number), self.queue.receive(block=False) as item:
            assert number_of(item) == number

    def skip(self) -> None:
        number = number_of(self.queue.peek())
        with self.asking("drop", number, number):
            assert self.queue.skip() is not None

    def clear(self) -> None:
        numbers = [number_of(item) for item in self.queue.items()]
        with self.asking("drop", numbers[0], numbers[-1]):
            assert self.queue.clear() == len(numbers)

    def close(self) -> None:
        self.queue.close()
        self.say("closed")
