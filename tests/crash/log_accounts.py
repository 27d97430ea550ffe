"""The account of a log and its consumers: what was asked, answered and promised.

It works as :mod:`tests.crash.accounts` does for a queue. A workload says what it is about to do and what
returned, as short lines that survive the crash. After the crash a :class:`LogAccount` of these lines checks a
:class:`Found`, which is all that a process sees of the log that was left.

``ask append 3 5`` and ``ok append 3 5 3`` (the position of the first item), or ``no append 3 5``: it raised,
and the items are certainly absent. ``ask made a 0``, ``ask commit a 2``, ``ask seek a 0``, ``ask forget a``
and ``closed a`` of a consumer. ``got a 3 4`` for a delivery: the number and the position. ``ask trim 4`` or
``ask force 4``, and ``ok trim 4 3`` (the first position that is left). ``closed``; and after a crash ``saw
1:1 2:2 | a=1``: only this remained, and it was on the device.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from persistcoll import Empty, Log
from persistcoll.disk.calls import Disk
from persistcoll.journal.log_store import JournalLogStore
from persistcoll.journal.log_trim import LogTrim
from persistcoll.logs.consumer import Consumer, Place
from tests.crash.accounts import number_of, numbered, quick_disk

__all__ = [
    "Found",
    "LogAccount",
    "LogScribe",
    "disk_of_boot",
    "later_disk",
    "log_strangers",
    "lowest_chunk",
    "opened",
    "rest_of",
    "trim_of",
]

_KNOWN = re.compile(r"info|trimmed|producer\.lock|consumer-[0-9a-f]{32}\.(cursor|lock)")
_CHUNK = re.compile(r"q(\d{5,})(\.index|\.torn-\d+)?")
_boots = itertools.count()


def disk_of_boot(disk: Disk, boot: str) -> Disk:
    """Let ``disk`` say that the machine was started another time, as after a power cut, and return it."""
    vars(disk)["boot_id"] = lambda: boot
    return disk


def later_disk() -> Disk:
    """Return a disk to inspect what a power cut left, after a start of the machine of its own."""
    return disk_of_boot(quick_disk(), f"boot {next(_boots)}")


def log_strangers(directory: str) -> list[str]:
    """Return the names in a log's directory for which a recovered log has no use.

    What belongs to a chunk that is gone counts, and so does a temporary file.
    """
    names = sorted(os.listdir(directory))
    chunks = {name for name in names if _CHUNK.fullmatch(name) and "." not in name}
    return [
        name
        for name in names
        if not _KNOWN.fullmatch(name) and (not _CHUNK.fullmatch(name) or name.partition(".")[0] not in chunks)
    ]


def lowest_chunk(directory: str) -> int:
    """Return the number of the first chunk that is there."""
    found = [_CHUNK.fullmatch(name) for name in os.listdir(directory)]
    return min(int(match[1]) for match in found if match is not None and match[2] is None)


def rest_of(consumer: Consumer[bytes]) -> list[int]:
    """Return the numbers of all items that a consumer has not got, and commit nothing."""
    numbers = []
    with contextlib.suppress(Empty):
        while True:
            numbers.append(number_of(consumer.get(block=False)))
    return numbers


def trim_of(log: Log[bytes]) -> LogTrim:
    """Return what a log knows of its trims."""
    store = log._store
    assert isinstance(store, JournalLogStore)
    return store.parts().trim


@dataclass
class Found:
    """What a process sees of a log."""

    items: list[tuple[int, int]]
    """Every item: its position and its number."""
    consumers: dict[str, int]
    """The position of every consumer."""
    first: int
    last: int
    trimmed: int
    """The position up to which everything is trimmed."""

    @classmethod
    def of(cls, log: Log[bytes]) -> Found:
        """Look at a log, and check that everything that it says of itself agrees."""
        items = [(record.id, number_of(record.payload)) for record in log._store.records()]
        numbers = [number for _, number in items]
        assert [number_of(item) for item in log] == numbers
        assert len(log) == len(items), f"len() is {len(log)} of {items}"
        positions = [position for position, _ in items]
        assert positions == sorted(set(positions))
        first, last = log.first, log.last
        if items:
            assert first == positions[0], f"first is {first} of {items}"
            assert last >= positions[-1]
            for position, number in (items[0], items[len(items) // 2], items[-1]):
                assert number_of(log[position]) == number
            assert number_of(log[-1]) == numbers[-1]
        else:
            assert first > last
        states = log.consumers()
        for name, (position, lag) in states.items():
            rest = [each for each in positions if each > position]
            assert lag == len(rest), f"the lag of {name!r} at {position} is {lag}, of {positions}"
        consumers = {name: state.position for name, state in states.items()}
        return cls(items, consumers, first, last, trim_of(log).trimmed)

    def line(self) -> str:
        """Return what was found as a line for an account."""
        items = [f"{position}:{number}" for position, number in self.items]
        return " ".join(["saw", *items, "|", *(f"{name}={at}" for name, at in self.consumers.items())])

    def after(self, position: int) -> list[int]:
        """Return the numbers of the items after a position."""
        return [number for at, number in self.items if at > position]


@dataclass
class _Consumer:
    """The positions that a consumer may have after a crash, and whether it may be absent or there.

    :ivar firm: what remains of ``perhaps`` when everything that is not synced counts as done.
    """

    firm: int
    perhaps: set[int]
    certain: bool = False
    gone: bool = False

    def settle(self, position: int) -> None:
        """Note that the consumer certainly is at this position, whatever was asked before."""
        self.firm, self.perhaps = position, {position}


class LogAccount:
    """What the lines of asking and answering promise.

    :param power: everything that returned must have survived. Otherwise only what is durable at ``"process"``
        must survive, and the rest must match some moment before the crash.
    """

    def __init__(self, lines: Iterable[str] = (), *, power: bool = True) -> None:
        self.power = power
        self.order: list[int] = []  # every number that was ever tried to append, in that order
        self.batches: list[range] = []
        self.positions: dict[int, int] = {}  # of what returned
        self.firm: set[int] = set()  # what a power cut must leave, at either level
        self.absent: set[int] = set()
        self.consumers: dict[str, _Consumer] = {}
        self.trim_asked = self.force_asked = 0
        self.first_left = 0
        self.highest = 0  # the highest position that was ever returned or read
        self.floor = 0  # what that was at the last crash
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        verb, *rest = line.split()
        if verb == "saw":
            self._saw(rest)
        elif verb == "got":
            self.highest = max(self.highest, int(rest[2]))
        elif verb == "closed" and not rest:
            self.firm = set(self.positions)
        elif verb == "closed":
            if not self.power:
                self.consumers[rest[0]].settle(self.consumers[rest[0]].firm)
        elif rest[0] == "append":
            self._append(verb, *map(int, rest[1:]))
        elif rest[0] in ("trim", "force"):
            self._trim(verb, rest[0], *map(int, rest[1:]))
        else:
            self._consumer(verb, rest[0], rest[1], *map(int, rest[2:]))

    def _append(self, verb: str, first: int, last: int, position: int = 0) -> None:
        numbers = range(first, last + 1)
        if verb == "ask":
            self.order += numbers
            self.batches.append(numbers)
        elif verb == "no":
            self.absent |= set(numbers)
        elif verb == "ok":
            assert position > self.floor, f"the position {position} was given before: {self.floor}"
            self.positions |= {number: position + number - first for number in numbers}
            self.highest = max(self.highest, position + last - first)

    def _trim(self, verb: str, what: str, before: int, first: int = 0) -> None:
        if verb == "ask":
            self.trim_asked = max(self.trim_asked, before)
            if what == "force":
                self.force_asked = max(self.force_asked, before)
        elif verb == "ok":
            self.first_left = max(self.first_left, first)

    def _consumer(self, verb: str, what: str, name: str, position: int = 0) -> None:
        known = self.consumers.get(name)
        if what == "made":
            if known is None or (verb == "ask" and known.gone):
                known = self.consumers[name] = _Consumer(position, {position})
            known.perhaps.add(position)  # one that an earlier try may have made
            if verb == "ok":
                known.certain = True
                known.settle(position)
        elif what == "forget":
            assert known is not None
            known.certain = False
            known.gone = verb == "ok"
        else:
            assert known is not None
            self.highest = max(self.highest, position)
            if verb == "ask":
                known.perhaps.add(position)
            elif verb == "ok":
                if self.power or position < known.firm:  # a cursor goes back durably at either level
                    known.perhaps = {position}
                known.firm = position

    def _saw(self, words: list[str]) -> None:
        bar = words.index("|")
        pairs = [tuple(map(int, word.split(":"))) for word in words[:bar]]
        self.positions = {number: position for position, number in pairs}
        self.firm = set(self.positions)
        self.order = [number for _, number in pairs]
        self.batches.clear()
        self.absent.clear()
        self.consumers = {}
        for word in words[bar + 1 :]:
            name, _, position = word.partition("=")
            self.consumers[name] = _Consumer(int(position), {int(position)}, certain=True)
            self.highest = max(self.highest, int(position))
        self.floor = self.highest = max(self.highest, *self.positions.values(), 0)

    def check(self, found: Found) -> None:
        """Check what a process sees after a crash."""
        self._check_items(found)
        self._check_consumers(found)

    def _check_items(self, found: Found) -> None:
        numbers = [number for _, number in found.items]
        there = set(numbers)
        assert len(there) == len(numbers), f"twice: {numbers}"
        assert there <= set(self.order), f"never appended: {sorted(there - set(self.order))}"
        assert not there & self.absent, f"append had failed: {sorted(there & self.absent)}"
        place = {number: index for index, number in enumerate(self.order)}
        assert numbers == sorted(numbers, key=place.__getitem__), f"order: {numbers}"
        for position, number in found.items:
            assert self.positions.get(number, position) == position, f"{number} is at {position}"
            assert position >= self.first_left, f"trimmed, and back: {number} at {position}"
        lost = {number for number in self.positions if number not in there}
        trimmed = {number for number in lost if self.positions[number] <= found.trimmed}
        must = set(self.positions) if self.power else self.firm
        assert not (lost & must) - trimmed, f"lost: {sorted((lost & must) - trimmed)} of {numbers}"
        newest = place[numbers[-1]] if numbers else -1
        holes = {number for number in lost - trimmed if place[number] < newest}
        assert not holes, f"a hole: {sorted(holes)} in {numbers}"
        for batch in self.batches:
            if set(batch) & there:
                missing = set(batch) - there - trimmed
                assert not missing, f"half of a batch: {sorted(missing)}"
        needed = {self.positions[number] for number in trimmed} - set(range(self.force_asked))
        for name, position in found.consumers.items():
            beyond = [at for at in needed if at > position]
            assert not beyond, f"{beyond} are trimmed, and {name!r} is at {position}"

    def _check_consumers(self, found: Found) -> None:
        for name, known in self.consumers.items():
            if name not in found.consumers:
                assert not known.certain, f"the consumer {name!r} is gone"
                continue
            assert not known.gone, f"the consumer {name!r} was forgotten, and is back"
            position = found.consumers[name]
            assert position in known.perhaps, f"{name!r} is at {position}, and not in {known.perhaps}"
        strangers = set(found.consumers) - set(self.consumers)
        assert not strangers, f"consumers that nobody has made: {strangers}"


class LogScribe:
    """Works on a log and its consumers, and says what it does."""

    def __init__(self, log: Log[bytes], say: Callable[[str], object], first: int = 1) -> None:
        self.log = log
        self.say = say
        self.next = first
        self.open: dict[str, Consumer[bytes]] = {}
        self.got: dict[str, int] = {}  # the position that a consumer got last

    @contextlib.contextmanager
    def asking(self, *words: object) -> Iterator[None]:
        line = " ".join(map(str, words))
        self.say(f"ask {line}")
        yield
        self.say(f"ok {line}")

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            number, self.next = self.next, self.next + 1
            self.say(f"ask append {number} {number}")
            position = self.log.append(numbered(number))
            self.say(f"ok append {number} {number} {position}")

    def extend(self, count: int) -> None:
        first, self.next = self.next, self.next + count
        last = first + count - 1
        self.say(f"ask append {first} {last}")
        positions = self.log.extend([numbered(number) for number in range(first, first + count)])
        assert len(positions) == count
        self.say(f"ok append {first} {last} {positions[0]}")

    def consumer(self, name: str, start: Place = "first", wait: bool = False) -> Consumer[bytes]:
        """Open a consumer, which may be new."""
        if name in self.log.consumers():
            self.open[name] = self.log.consumer(name, wait=wait)
        else:
            # A new consumer is at the position before the item with which it begins.
            wanted = self.log._id_at(start)
            position = trim_of(self.log).trimmed if wanted is None else wanted - 1
            with self.asking("made", name, position):
                self.open[name] = self.log.consumer(name, start, wait)
        self.got[name] = self.open[name].position
        return self.open[name]

    def get(self, name: str, count: int = 1, timeout: float = 0.0) -> None:
        for _ in range(count):
            item = self.open[name].get(timeout=timeout)
            self.got[name] = self.open[name]._core._last_got
            self.say(f"got {name} {number_of(item)} {self.got[name]}")

    def commit(self, name: str, position: int | None = None) -> None:
        with self.asking("commit", name, self.got[name] if position is None else position):
            self.open[name].commit(position)

    def take(self, name: str, count: int = 1) -> None:
        """Get and commit, one by one."""
        for _ in range(count):
            self.get(name)
            self.commit(name)

    def seek(self, name: str, place: Place) -> None:
        wanted = self.log._id_at(place)
        position = trim_of(self.log).trimmed if wanted is None else wanted - 1
        with self.asking("seek", name, position):
            self.open[name].seek(place)
        self.got[name] = position

    def close_consumer(self, name: str) -> None:
        self.open.pop(name).close()
        self.say(f"closed {name}")

    def forget(self, name: str) -> None:
        with self.asking("forget", name):
            assert self.log.forget(name)

    def trim(self, before: int, force: bool = False) -> None:
        what = "force" if force else "trim"
        self.say(f"ask {what} {before}")
        self.log.trim(before, force)
        self.say(f"ok {what} {before} {trim_of(self.log).trimmed + 1}")

    def close(self) -> None:
        names = list(self.open)
        self.log.close()
        for name in names:
            self.say(f"closed {name}")
        self.say("closed")
        self.open.clear()


def opened(path: Any, disk: Disk | None = None, **options: Any) -> Log[bytes]:
    """Open a log of numbered items."""
    return Log(path, serializer="raw", _disk=disk or quick_disk(), **options)
