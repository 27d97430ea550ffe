"""Processes that put into a queue and work on it, and the account of what they did.

They note what they begin and what has happened, and are killed in between.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import persistcoll
from persistcoll import (
    AckStatus,
    Empty,
    Message,
    MessageQueue,
    OutgoingMessage,
    StaleClaimError,
    StorageError,
)
from persistcoll.engine.records import State
from persistcoll.servers.address import Address
from persistcoll.testing.children import run_threads
from tests.concurrency.message_workers import Notes

__all__ = ["PATIENCE", "THREADS", "Account", "book", "opened", "put", "recovery_times", "work"]

PATIENCE = 1.5  # seconds
THREADS = 2
NAME = "letters"
_MOST_IN_A_BATCH = 4


def opened(kind: str, where: dict[str, Any]) -> Any:
    """Open the queue of this class. One with acks keeps all that is settled."""
    if kind == "MessageQueue":
        return Messages(where["url"])
    options = {"keep_acked": None} if kind.endswith("AckQueue") else {}
    return getattr(persistcoll, kind)(
        NAME, **where, **options, serializer="json", patience=PATIENCE, timeout=30
    )


def put(
    kind: str,
    where: dict[str, Any],
    notes: str,
    seed: int,
    stop: Any,
    pace: float,
    first: int,
    last: int,
) -> None:
    """Put these numbers, the first one first, alone or several at once, until the mark is set."""
    rng, number = random.Random(seed), first
    written = Notes(f"{notes}/put-{os.getpid()}")
    with opened(kind, where) as queue:
        while number <= last and not stop.is_set():
            numbers = list(range(number, min(last, number + rng.choice((0, 0, 0, 1, 5))) + 1))
            written.add("asked", numbers)
            ids = [queue.put(number)] if len(numbers) == 1 else queue.put_many(numbers)
            written.add("put", numbers, ids)
            number = numbers[-1] + 1
            threading.Event().wait(pace)
    written.close()


def book(
    kind: str, where: dict[str, Any], notes: str, seed: int, end: Any, pace: float, **driver_options: Any
) -> None:
    """Book what is got in a table, in the transaction that gets it, until the mark is set.

    :param driver_options: of the connections that have these transactions.
    """
    address = Address.parse(where["url"])
    place = SimpleNamespace(kind=address.kind, address=address, driver_options=driver_options)
    with opened(kind, where) as queue:
        run_threads(*[partial(_book, queue, place, end)] * THREADS, timeout=600)


def _book(queue: Any, place: Any, end: Any) -> None:
    from tests.servers.places import CallerConnection  # It imports pytest, which takes a while.

    caller = None
    while not end.is_set():
        try:
            if caller is None:
                caller = CallerConnection(place)
            connection = caller.connection
            with queue.receive(block=False, connection=connection) as number, connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO booked VALUES ({number})")
            caller.commit()
        except Exception as error:  # What has become of the transaction is not known: all of it or nothing.
            if caller is not None:
                caller.close()
            caller = None
            if isinstance(error, Empty):
                threading.Event().wait(0.02)
    if caller is not None:
        caller.close()


def work(kind: str, where: dict[str, Any], notes: str, seed: int, end: Any, pace: float) -> None:
    """Work with several threads on one object until the mark is set."""
    with opened(kind, where) as queue:
        threads = [
            _Worker(
                queue, f"{notes}/work-{os.getpid()}-{number}", random.Random(f"{seed} {number}"), end, pace
            )
            for number in range(THREADS)
        ]
        run_threads(*(thread.run for thread in threads), timeout=600)


class Messages:
    """A message queue with the methods of a queue with acks. Each number has a key and a group."""

    def __init__(self, url: str) -> None:
        self._queue: MessageQueue[Any] = MessageQueue(
            url,
            NAME,
            lease=PATIENCE,
            max_attempts=None,
            backoff=None,
            keep_done=10**9,
            serializer="json",
            timeout=30,
        )
        self.stats, self.ack_many = self._queue.stats, self._queue.ack_many

    def __enter__(self) -> Messages:
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.close()

    def put(self, number: int) -> Any:
        return self.put_many([number])[0]

    def put_many(self, numbers: list[int]) -> list[Any]:
        return self._queue.put_many(
            [OutgoingMessage(number, key=f"{number}", group=f"{number % 7}") for number in numbers]
        )

    def get(self, timeout: float, raw: bool) -> Message[Any]:
        return self._queue.get(timeout=timeout)

    def get_many(self, n: int, timeout: float) -> list[Message[Any]]:
        return self._queue.get_many(n, timeout=timeout)

    def ack(self, message: Message[Any]) -> None:
        message.ack()

    def nack(self, message: Message[Any]) -> None:
        message.nack()

    def ack_failed(self, message: Message[Any]) -> None:
        message.fail()

    @property
    def unfinished_tasks(self) -> bool:
        return self._queue._store.has_unfinished()

    def queue(self) -> list[dict[str, Any]]:
        states = {State.DONE: AckStatus.acked, State.DEAD: AckStatus.ack_failed}
        return [
            {"data": json.loads(record.payload), "status": states.get(record.state), "id": record.id}
            for record in self._queue._store.scan()
        ]


def _number(item: Any) -> Any:
    """Return the number of what was got: an item, a dict about one, or a message."""
    if isinstance(item, Message):
        return item.body
    return item["data"] if isinstance(item, dict) else item


class _Worker:
    def __init__(self, queue: Any, notes: str, rng: random.Random, end: Any, pace: float) -> None:
        self.queue = queue
        self.notes = Notes(notes)
        self.rng = rng
        self.end, self.pace = end, pace

    def run(self) -> None:
        while not self.end.is_set():
            try:
                if self.rng.random() < 0.3:
                    got = [self.queue.get(timeout=0.5, raw=True)]
                else:
                    got = self.queue.get_many(self.rng.randint(1, _MOST_IN_A_BATCH), timeout=0.5)
            except (Empty, StorageError):
                continue
            numbers = [_number(item) for item in got]
            self.notes.add("got", numbers)
            if len(got) > 1 and self.rng.random() < 0.5:
                self.settle("acked", numbers, self.queue.ack_many, got)
            else:
                for item, number in zip(got, numbers, strict=True):
                    self.settle(*self.chosen(number, item))
            threading.Event().wait(self.pace)
        self.notes.close()

    def chosen(self, number: int, item: Any) -> tuple[str, list[int], Any, Any]:
        name, verb = self.rng.choices(
            (("acked", self.queue.ack), ("nacked", self.queue.nack), ("failed", self.queue.ack_failed)),
            (80, 12, 8),
        )[0]
        return name, [number], verb, item

    def settle(self, name: str, numbers: list[int], verb: Any, item: Any) -> None:
        while True:
            try:
                verb(item)
            except StaleClaimError as error:
                # Of several, none was acked.
                self.notes.add("stale" if len(numbers) == 1 else "some stale", numbers, str(error))
                if len(numbers) > 1:
                    for number, each in zip(numbers, item, strict=True):
                        self.settle("nacked", [number], self.queue.nack, each)
            except StorageError as error:
                self.notes.add("later", numbers, str(error))
                threading.Event().wait(0.05)
                continue
            else:
                self.notes.add(name, numbers)
            return


def recovery_times(notes: Path, failures: list[float]) -> list[float]:
    """Return the seconds from each failure to the first thing that was put or settled after it, if any was.

    :param failures: by ``time.monotonic``.
    """
    lines = [json.loads(line) for path in notes.iterdir() for line in path.read_text().splitlines()]
    successes = sorted(line[-1] for line in lines if line[0] in ("put", "acked", "nacked", "failed"))
    following = [successes[bisect.bisect(successes, failed) :] for failed in failures]
    return [times[0] - failed for times, failed in zip(following, failures, strict=True) if times]


class Account:
    """What the notes and the rows of the queue say at the end."""

    def __init__(self, notes: Path) -> None:
        self.asked: list[int] = []
        self.put: dict[int, int] = {}  # ids
        # Of each number, how often it was got and so on, and how often a thread that died had it.
        self.counts: dict[str, Counter[int]] = {
            name: Counter() for name in ("got", "acked", "nacked", "failed", "stale", "held")
        }
        for path in sorted(notes.iterdir()):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._add_puts(lines) if path.name.startswith("put") else self._add_work(lines)

    def _add_puts(self, lines: list[Any]) -> None:
        for verb, numbers, *ids, _ in lines:
            if verb == "asked":
                self.asked += numbers
            else:
                self.put.update(zip(numbers, ids[0], strict=True))

    def _add_work(self, lines: list[Any]) -> None:
        holds: Counter[int] = Counter()
        for verb, numbers, *_ in lines:
            if verb in self.counts:
                self.counts[verb].update(numbers)
                holds.update(dict.fromkeys(numbers, 1 if verb == "got" else -1))
        assert not -holds, f"settled and not got: {-holds}"
        self.counts["held"] += holds

    def check_booked(self, booked: list[int]) -> None:
        """Check that what was put is booked once, and nothing else is."""
        assert len(set(booked)) == len(booked), f"twice: {Counter(booked) - Counter(set(booked))}"
        assert self.put.keys() <= set(booked), f"lost: {self.put.keys() - set(booked)}"
        assert set(booked) <= set(self.asked), "never put"

    def check(self, rows: list[dict[str, Any]]) -> None:
        """Check what the queue has in the end: all is finished, once, and as the workers were told."""
        states = {row["data"]: row["status"] for row in rows}
        assert len(states) == len(rows), "put twice"
        assert {row["data"]: row["id"] for row in rows}.items() >= self.put.items(), "put, and not there"
        assert states.keys() <= set(self.asked), "never put"
        assert {*states.values()} <= {AckStatus.acked, AckStatus.ack_failed}, "unfinished"
        for number, state in states.items():
            self._check_one(number, state)

    def _check_one(self, number: int, state: str) -> None:
        each = {name: count[number] for name, count in self.counts.items()}
        what = f"{number}: {each}, in the end {state}"
        told = each["acked"] + each["failed"]
        assert told <= 1, what
        assert told or each["held"], what  # What a thread that died had may have been settled by it.
        if each["acked"]:
            assert state == AckStatus.acked, what
        if each["failed"]:
            assert state == AckStatus.ack_failed, what
        # Each delivery but the last ended before the next one: by a nack, a death, or a notice to its thread.
        assert each["got"] == told + each["nacked"] + each["stale"] + each["held"], what
