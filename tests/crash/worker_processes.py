"""Processes with workers that are killed and terminated, and the account of what their handlers did."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from persistcoll import ClosedError, MessageQueue, Worker
from persistcoll.engine.message_records import HOLDER_DIED, LEASE_RAN_OUT, MessageRecord
from persistcoll.engine.records import State
from persistcoll.messages.message import Message
from tests.concurrency.message_workers import Notes

__all__ = ["LEASE", "MOST", "THREADS", "Account", "opened", "poison", "work"]

MOST = 4
LEASE = 5.0
THREADS = 6
"""How many handlers run at once in a process."""
_HANGS, _TIMEOUT = LEASE + 3, 1.0


def opened(path: str, **options: Any) -> MessageQueue[Any]:
    """Open the queue."""
    return MessageQueue(
        path, serializer="json", durability="process", lease=LEASE, max_attempts=MOST, backoff=0,
        keep_done=10**9, **options,
    )  # fmt: skip


def work(path: str, notes: str, seed: int) -> None:
    """Run two workers, one of them in the main thread, until no message is unfinished or a signal comes."""
    logging.disable()  # Thousands of handlers fail.
    written = Notes(f"{notes}-{os.getpid()}")
    with opened(path) as queue:
        handler = _Handler(written, random.Random(seed))
        first = Worker(queue, handler, concurrency={"short": 2, "hangs": 1}, prefetch=5, timeout=_TIMEOUT)
        second = Worker(queue, handler, concurrency={"short": 2, "long": 1}, prefetch=2)

        # Before and after run(), which catches the signal itself.
        signal.signal(signal.SIGTERM, lambda number, frame: first.stop())
        written.add("opened")

        def watch() -> None:
            with suppress(ClosedError):
                queue.join()
            first.stop()

        watcher = threading.Thread(target=watch, daemon=True)
        other = threading.Thread(target=second.run)
        watcher.start()
        other.start()
        first.run()
        second.stop()
        other.join()
        written.add("stopped")
    written.close()


def poison(path: str, neighbours: int, concurrency: int) -> None:
    """Run a worker that dies of a message of the topic "poison", when so many others are claimed ahead."""
    with opened(path) as queue:
        pause = threading.Event()

        def handle(message: Message[int]) -> None:
            if message.body < 0:
                while queue.stats().claimed < neighbours + concurrency:
                    pause.wait(0.001)
                os.kill(os.getpid(), 9)
            pause.wait()

        Worker(queue, handle, concurrency=concurrency, prefetch=neighbours).run()


class _Handler:
    """Handles a message as its topic and its number say, and notes when it begins and ends."""

    def __init__(self, notes: Notes, rng: random.Random) -> None:
        self.notes = notes
        self.rng = rng
        self.pause = threading.Event()  # never set

    def __call__(self, message: Message[int]) -> None:
        self.notes.add("begin", message.id, message.deliveries)
        if message.topic == "long":
            self.pause.wait(2.5 * LEASE)
        elif message.topic == "hangs" and message.attempts == 1:
            self.pause.wait(_HANGS)
        elif message.body % 500 == 0 or self.rng.random() < 0.05:
            raise ValueError("no")
        self.notes.add("end", message.id, message.deliveries)


class Account:
    """What the handlers did to each message.

    :ivar begun: the deliveries of each message that a handler has got.
    :ivar ended: those whose handlers have returned.
    """

    def __init__(self, notes: Path) -> None:
        self.begun: dict[int, set[int]] = defaultdict(set)
        self.ended: dict[int, set[int]] = defaultdict(set)
        self.counts: Counter[str] = Counter()
        for log in notes.iterdir():
            for line in log.read_text().splitlines():
                what, *more, _ = json.loads(line)
                if what == "begin":
                    id, delivery = more
                    assert delivery not in self.begun[id], f"delivery {delivery} of {id} has two handlers"
                    self.begun[id].add(delivery)
                elif what == "end":
                    id, delivery = more
                    self.ended[id].add(delivery)
                else:
                    self.counts[what] += 1

    def check(self, records: list[MessageRecord], kills: int) -> None:
        """Compare with what is stored at the end.

        :param kills: how many processes were killed.
        """
        for record in records:
            ended = self.ended[record.id]
            if record.state is State.DONE:
                assert record.deliveries in ended, f"acked without its handler: {record}"
            else:
                assert record.state is State.DEAD, record
                assert record.attempts == MOST, record
                assert record.error in ("ValueError: no", LEASE_RAN_OUT, HOLDER_DIED), record
            self.counts[record.state.value] += 1
            # Handlers that have returned, and whose message was delivered again.
            late = len(ended - {record.deliveries})
            self.counts["hung" if record.topic == "hangs" else "late"] += late
            # Each message that a handler has got counts an attempt, and no other one does.
            begun = len(self.begun[record.id])
            assert begun <= record.attempts, record
            self.counts["unexplained"] += record.attempts - begun
        # A kill may come before a handler's first note, or between its last one and the ack.
        assert self.counts["unexplained"] <= kills * THREADS
        assert self.counts["late"] <= kills * THREADS, "a lease ran out"
