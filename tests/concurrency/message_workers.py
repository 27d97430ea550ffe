"""Workers on one message store, in several processes and threads, and the account of what each of them did.

A worker notes what it did, and when by the monotonic clock, which all processes share. An :class:`Account`
puts the notes of all workers together: the deliveries of each message must follow one another, and each must
end in a way that explains the next one.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from persistcoll import Empty, StaleClaimError
from persistcoll.engine.message_records import MessageEntry, MessagePolicy, MessageRecord
from persistcoll.engine.records import State
from persistcoll.testing.children import run_threads
from tests.crash.messages import opened

__all__ = ["MOST", "POLICY", "Account", "Notes", "entries", "work"]

MOST = 4
POLICY = MessagePolicy(lease=600.0, max_attempts=MOST, backoff=None, keep_done=10**9)
SHORT = 0.02  # seconds, a lease that runs out while its holder does something else


def entries(rng: random.Random, numbers: Iterable[int]) -> list[MessageEntry]:
    """Return messages of several topics, priorities and groups."""
    return [
        MessageEntry(
            b"%d" % number,
            topic=rng.choice("abc"),
            priority=rng.choice((0, 0, 1, 5)),
            group=rng.choice((None, None, f"group {rng.randrange(40)}")),
        )
        for number in numbers
    ]


class Notes:
    """A file of notes, each of which is written in one call, so that a kill leaves it whole or out."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, *what: Any) -> None:
        os.write(self._fd, json.dumps([*what, time.monotonic()]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def work(path: str, notes: str, seed: int, threads: int) -> None:
    """Work with so many threads of this process until no message is unfinished."""
    store, written = opened(path, POLICY), Notes(f"{notes}-{os.getpid()}")
    written.add("begin")
    workers = [_Worker(store, written, random.Random(f"{seed} {number}")) for number in range(threads)]
    run_threads(*(worker.run for worker in workers), timeout=500)
    store.close()
    written.close()


class _Worker:
    def __init__(self, store: Any, notes: Notes, rng: random.Random) -> None:
        self.store = store
        self.notes = notes
        self.rng = rng
        self.late: list[MessageRecord] = []
        self.pause = threading.Event()  # never set

    def run(self) -> None:
        while True:
            rng = self.rng
            lease = SHORT if rng.random() < 0.05 else ...
            topics = rng.choice((None, None, ["a"], ["b", "c"]))
            begun = time.monotonic()
            try:
                records = self.store.claim(rng.choice((1, 1, 2, 8)), topics, lease=lease)
            except Empty:
                if not self.late and not self.store.has_unfinished():
                    return
                self.settle_late(0)
                self.pause.wait(0.005)
                continue
            for record in records:
                self.notes.add("claim", record.id, record.deliveries, record.attempts, record.lease, begun)
                if record.lease == SHORT:
                    self.late.append(record)
                else:
                    self.settle([record])
            self.settle_late(20)

    def settle_late(self, keep: int) -> None:
        """Settle what was claimed for a short time, which may have run out by now."""
        while len(self.late) > keep:
            self.settle([self.late.pop(0)])

    def settle(self, records: list[MessageRecord]) -> None:
        verb = self.rng.choice(("ack",) * 12 + ("nack", "nack", "release", "fail"))
        which = [(record.id, record.deliveries) for record in records]
        self.notes.add("ask", verb, which)
        try:
            result = getattr(self.store, verb)([record.claim for record in records])
        except StaleClaimError as error:
            self.notes.add("stale", verb, [each for each in which if each[0] in error.ids])
        else:
            # A release ignores a claim that has ended.
            self.notes.add("stale" if result == 0 else "settled", verb, which)


class Delivery(NamedTuple):
    """What is known of one delivery."""

    attempts: int
    lease: float
    begun: float
    """Before the claim."""
    noted: float
    """After it."""
    worker: str


class Account:
    """What the workers did to each message."""

    def __init__(self) -> None:
        self.deliveries: dict[int, dict[int, Delivery]] = defaultdict(dict)
        self.asked: dict[tuple[int, int], tuple[str, float]] = {}
        self.settled: dict[tuple[int, int], str] = {}
        self.stale: set[tuple[int, int]] = set()
        self.killed: dict[str, float] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def read(self, path: Path) -> None:
        """Read the notes of a worker."""
        for line in path.read_text().splitlines():
            what, *rest, when = json.loads(line)
            if what == "claim":
                id, number, attempts, lease, begun = rest
                assert number not in self.deliveries[id], f"delivery {number} of {id} is in two hands"
                self.deliveries[id][number] = Delivery(attempts, lease, begun, when, path.name)
            elif what != "begin":
                verb, which = rest
                for id, number in which:
                    if what == "ask":
                        self.asked[id, number] = verb, when
                    elif what == "stale":
                        self.stale.add((id, number))
                    else:
                        self.settled[id, number] = verb
                    self.counts[f"{what} {verb}"] += 1

    def check(self, records: list[MessageRecord]) -> None:
        """Check the story of each message against what is stored at the end."""
        for record in records:
            self._check(record)
        self._check_groups(records)

    def _check(self, record: MessageRecord) -> None:
        known = self.deliveries.get(record.id, {})
        assert known.keys() <= {*range(1, record.deliveries + 1)}, record
        possible = {0}  # how many attempts the message may have before the delivery
        for number in range(1, record.deliveries + 1):
            delivery = known.get(number)
            if delivery is None:
                # The worker was killed between its claim and its note.
                self.counts["unknown"] += 1
                possible = {attempts + 1 for attempts in possible}
                continue
            assert delivery.attempts - 1 in possible, (record, number, delivery, possible)
            is_last = number == record.deliveries
            ends = self._ends(record.id, number, delivery, known.get(number + 1))
            assert ends, f"nothing explains the end of delivery {number}: {record}, {delivery}"
            if is_last:
                self._check_last(record, delivery, ends)
            else:
                assert ends - {"ack", "fail"}, f"delivered after its end: {record}, {delivery}, {ends}"
                assert delivery.attempts < MOST or "release" in ends, f"too many attempts: {record}"
            possible = {delivery.attempts - (end == "release") for end in ends}

    def _ends(self, id: int, number: int, delivery: Delivery, following: Delivery | None) -> set[str]:
        """Return how a delivery may have ended, by what is known."""
        settled = self.settled.get((id, number))
        if settled is not None:
            _, asked = self.asked[id, number]
            in_order = following is None or asked <= following.noted
            assert in_order, f"in two hands: {id}, {delivery}, {following}"
            return {settled}
        ends: set[str] = set()
        later = float("inf") if following is None else following.noted
        if delivery.begun + delivery.lease <= later and delivery.lease == SHORT:
            ends.add("lease")
        died = self.killed.get(delivery.worker)
        if died is not None and (id, number) not in self.stale:
            if died <= later:
                ends.add("died")
            if (id, number) in self.asked:
                ends.add(self.asked[id, number][0])
        return ends

    def _check_last(self, record: MessageRecord, delivery: Delivery, ends: set[str]) -> None:
        if record.state is State.DONE:
            assert "ack" in ends, (record, delivery, ends)
        else:
            assert record.state is State.DEAD, record
            # What comes back without attempts left is dead, but a released message never is.
            is_spent = record.attempts >= MOST and ends & {"nack", "lease", "died"}
            assert "fail" in ends or is_spent, (record, ends)
        assert record.attempts == delivery.attempts, (record, delivery)

    def _check_groups(self, records: list[MessageRecord]) -> None:
        groups: dict[Any, list[int]] = defaultdict(list)
        for record in records:
            if record.group is not None:
                groups[record.topic, record.group].append(record.id)
        assert groups
        for ids in groups.values():
            last = 0.0
            for id in sorted(ids):
                known = self.deliveries.get(id, {})
                times = [delivery.noted for delivery in known.values()]
                asked = [self.asked[id, number][1] for number in known if (id, number) in self.settled]
                if times:
                    assert min(times) >= last, f"message {id} came before an earlier one of its group ended"
                    last = max([last, *asked])
