"""kill -9 at any moment, again and again, on one log with producers and consumers in processes of their own.

What a process asks and what was answered reaches the test through a pipe. No item that was appended is lost,
each consumer gets every item at least once and in order, and no consumer moves another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import pytest

from persistcoll.disk.calls import Disk
from tests.crash.accounts import number_of
from tests.crash.log_accounts import (
    Found,
    LogAccount,
    LogScribe,
    log_strangers,
    lowest_chunk,
    opened,
    trim_of,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]

WORKER = "tests.crash.log_worker"
PER_PRODUCER = 10_000_000
CONSUMERS = ("a", "b", "c")


class Story:
    """The account of several processes that work on one log and are killed.

    Without a power cut positions have no gaps. So the item that a consumer gets has the position after that
    of the item before.
    """

    def __init__(self) -> None:
        self.account = LogAccount()
        self.reading: dict[str, int] = {}  # the position of the item that a consumer got last
        self.items: dict[int, int] = {}  # every position that was read, and the number there
        self.delivered = dict.fromkeys(CONSUMERS, 0)

    def begin(self, path: Any, names: Iterable[str]) -> None:
        """Make the log and its consumers."""
        with opened(path) as log:
            scribe = LogScribe(log, self.account.add)
            for name in names:
                scribe.consumer(name)
                scribe.close_consumer(name)

    def add(self, said: str) -> None:
        verb, *rest = said.split()
        assert verb != "error", said
        if verb in ("open", "waits"):
            return
        if verb == "at":
            self._opened(rest[0], int(rest[1]))
            return
        if verb == "got":
            self._got(rest[0], int(rest[1]), int(rest[2]))
        elif (verb, rest[0]) == ("ok", "seek"):
            self.reading[rest[1]] = int(rest[2])
        self.account.add(said)

    def _opened(self, name: str, position: int) -> None:
        known = self.account.consumers[name]
        assert position in known.perhaps, f"{name!r} is at {position}, and not in {known.perhaps}"
        known.settle(position)
        self.reading[name] = position

    def _got(self, name: str, number: int, position: int) -> None:
        assert position == self.reading[name] + 1, f"{name!r} got {position} after {self.reading[name]}"
        assert self.items.setdefault(position, number) == number, f"two items at {position}"
        self.reading[name] = position
        self.delivered[name] += 1

    def next_of(self, producer: int) -> int:
        first = producer * PER_PRODUCER
        mine = [number for number in self.account.order if number // PER_PRODUCER == producer]
        return max(mine, default=first) + 1

    def judge(self, found: Found) -> None:
        """Check what is left in the end."""
        items = {**self.items, **dict(found.items)}
        for position, number in self.items.items():
            assert items[position] == number, (
                f"{number} at {position} was read, and {items[position]} is there"
            )
        for number, position in self.account.positions.items():
            assert items.get(position) == number, f"{number} at {position} is lost"
        assert sorted(items) == list(range(1, len(items) + 1)), "a gap"
        for producer in (1, 2):
            mine = [items[at] for at in sorted(items) if items[at] // PER_PRODUCER == producer]
            assert mine == sorted(set(mine)), "the order of a producer"
        assert set(found.consumers) == set(CONSUMERS)
        for name, position in found.consumers.items():
            assert position in self.account.consumers[name].perhaps
            assert position >= found.trimmed


def live_and_die(server, story, rng, path, lives, **options) -> None:
    """Run producers and consumers and kill them, again and again."""
    for _ in range(lives):
        workers = []
        roles = [("append", ""), ("append", ""), *(("consume", name) for name in CONSUMERS)]
        for producer, (role, name) in enumerate(roles, 1):
            first, seed = story.next_of(producer), rng.getrandbits(32)
            workers.append(server.start(role, path, first, seed, role, consumer=name, quick=True, **options))
        server.hear_and_kill(workers, rng, 120, story.add, r"open$|at ")


@pytest.mark.parametrize(
    ("durability", "lives"),
    [
        ("power", 12),
        pytest.param("power", 200, marks=pytest.mark.long),
        pytest.param("process", 200, marks=pytest.mark.long),
    ],
)
def test_three_consumers_and_two_producers(durability, lives, server, rng, memory_path):
    story = Story()
    path = memory_path / "log"
    story.begin(path, CONSUMERS)
    live_and_die(server, story, rng, str(path), lives, chunksize=7, durability=durability)
    with opened(path) as log:
        found = Found.of(log)
        story.judge(found)
        for name in CONSUMERS:
            with log.consumer(name) as consumer:
                rest = found.after(consumer.position)
                assert [number_of(item) for item in consumer] == rest
        log.trim(log.last)
        lowest = trim_of(log).lowest
    assert not log_strangers(str(path)), log_strangers(str(path))
    assert lowest_chunk(str(path)) == lowest
    assert min(story.delivered.values()) > lives


def test_a_standby_takes_over_within_a_second(server, rng, tmp_path):
    path = str(tmp_path / "log")
    story = Story()
    story.begin(path, "a")
    producer = server.start("append", path, PER_PRODUCER + 1, rng.getrandbits(32), "append")
    lives = []

    def hear_until(wanted: str, name: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            said_now = server.lines(20)
            for _, said in said_now:
                story.add(said)
            if (name, wanted) in [(who, said.split()[0]) for who, said in said_now]:
                return
            assert time.monotonic() < deadline

    for life in range(12):
        lives.append(
            server.start(
                f"consumer {life}".replace(" ", ""), path, 0, rng.getrandbits(32), "consume", consumer="a"
            )
        )
        hear_until("at" if life == 0 else "waits", f"consumer{life}")
        if life:
            begun = time.monotonic()
            lives[life - 1].kill()
            hear_until("at", f"consumer{life}")
            assert time.monotonic() - begun < 1
            hear_until("got", f"consumer{life}")
    for _, said in server.bury([producer, *lives]):
        story.add(said)
    with opened(path, Disk()) as log:
        assert Found.of(log).consumers["a"] in story.account.consumers["a"].perhaps
