"""The demo's processes. Nothing here prepares for a kill: what survives, survives by queue and dict."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import ForkProcess

from persistcoll import Empty, LockedError, PDict, Queue, SQLiteQueue
from persistcoll.cli.command import exit_status
from persistcoll.cli.demo.lines import PRODUCERS, Delivery, Source, count_words
from persistcoll.engine.records import Durability
from persistcoll.errors import PersistcollError

__all__ = ["QUEUES", "Store", "Worker", "consume", "produce"]

# What carries the lines, and how many processes get at the same time: from files only one can.
QUEUES = {"file": ("Queue", 1), "sqlite": ("SQLiteQueue", 2)}
# So many lines are put together, and got, counted and acknowledged together.
PREFETCH = 500


@dataclass(frozen=True)
class Store:
    """The queue and the dict, which lie in a directory that is missing or empty at first."""

    kind: str
    path: str
    durability: Durability

    def queue(self) -> Queue[Delivery] | SQLiteQueue[Delivery]:
        """Open the queue, whose items stay until they are acknowledged."""
        if self.kind == "file":
            return Queue(os.path.join(self.path, "queue"), durability=self.durability)
        # In the database of the counts, so that a transaction takes in both.
        return SQLiteQueue(self.path, "lines", auto_commit=False, durability=self.durability)

    def counts(self) -> PDict[str | int, int]:
        """Open the dict: how many lines begin with each word, and how far each producer's are counted."""
        return PDict(self.path, "counts", durability=self.durability)


def produce(parent: Connection, store: Store, source: Source, producer: int) -> None:
    """Put the producer's lines with their numbers, and report how many."""
    lines = islice(enumerate(source.lines()), producer, None, PRODUCERS)
    with store.queue() as queue:
        while batch := list(islice(lines, PREFETCH)):
            queue.put_many(batch)
            parent.send(len(batch))


def consume(parent: Connection, store: Store) -> None:
    """Get lines, count them, deliver them to the parent and acknowledge them, until the queue stays empty.

    A kill before the acknowledgement brings lines again. They are counted once all the same:

    - The SQLite queue and the dict are in one database: counting and acknowledging are one transaction.
    - The file queue and the dict are two stores. The transaction that changes the counts also writes how far
      each producer's lines are counted. As these come in order, what comes again is not beyond that point.
    """
    all_put = False
    with store.queue() as queue, store.counts() as counts:
        while True:
            try:
                lines = queue.get_many(PREFETCH, timeout=0.05)
            except LockedError:  # the other consumer's transaction took longer
                continue
            except Empty:
                if all_put:  # before this look at the queue
                    return
                lines = []
            with ExitStack() as transaction:
                transaction.enter_context(counts.transaction())
                if store.kind == "file":
                    _count_new(counts, lines)
                    transaction.close()
                else:
                    _count(counts, lines)
                parent.send(lines)
                all_put = parent.recv()  # the parent answers, or kills this process
                if lines:
                    queue.task_done(len(lines))


def _count_new(counts: PDict[str | int, int], lines: Sequence[Delivery]) -> None:
    counted = counts.get_many(range(PRODUCERS))
    new = [(number, line) for number, line in lines if number > counted.get(number % PRODUCERS, -1)]
    _count(counts, new)
    counts.update((number % PRODUCERS, number) for number, _ in new)


def _count(counts: PDict[str | int, int], lines: Sequence[Delivery]) -> None:
    words = count_words(line for _, line in lines)
    before = counts.get_many(words)
    counts.update((word, number + before.get(word, 0)) for word, number in words.items())


class Worker(ForkProcess):
    """A process that does ``work(connection, *arguments)`` for as long as there is a parent.

    :ivar connection: the parent's side.
    :ivar slot: which of the consumers it is; of a producer -1.
    """

    def __init__(self, slot: int, work: Callable[..., None], *arguments: object) -> None:
        self.slot = slot
        self.connection, theirs = Pipe()
        super().__init__(target=_work, args=(os.getpid(), work, theirs, *arguments), name=f"{work.__name__}r")
        self.start()
        theirs.close()


def _work(parent_pid: int, work: Callable[..., None], parent: Connection, *arguments: object) -> None:
    def end_with_parent() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work(parent, *arguments)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except (PersistcollError, OSError) as error:
        parent.send((str(error), exit_status(error)))
