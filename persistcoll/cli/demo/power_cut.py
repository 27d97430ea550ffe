"""The end of the demo: the power fails in a simulation, and the queue is opened on what the disk has then."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from persistcoll import Queue
from persistcoll.engine.records import Durability
from persistcoll.errors import StorageError
from persistcoll.testing.crash.disk import CrashDisk

__all__ = ["Outcome", "cut_power"]

_ITEMS = 12
# Combinations of what is lost, torn and zeros at one cut; the tests of the library try more.
_LIMIT = 4


class Outcome(NamedTuple):
    """What was found after all cuts.

    :ivar disks: how many different contents of the disk the cuts leave.
    :ivar lost: of the items that were put and not acknowledged, how many are missing on the worst disk.
    :ivar again: of the items that were acknowledged, how many come again on the worst disk.
    :ivar wrong: on how many disks something comes out that was not put, or out of order, or nothing does
        because the queue cannot be opened.
    """

    disks: int
    lost: int
    again: int
    wrong: int


def cut_power(durability: Durability) -> Outcome:
    """Put some items and acknowledge half, and cut the power after each write, sync, rename and removal.

    What the operating system had not synced is kept, lost, torn or zeros, each write by itself.
    """
    disks = lost = again = wrong = 0
    # In memory where that is possible, because a simulation needs no disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with _quiet(), tempfile.TemporaryDirectory(prefix="persistcoll-demo-", dir=memory) as directory:
        disk = CrashDisk(os.path.join(directory, "disk"))
        _use(disk, durability)
        for state in disk.states("strict", limit=_LIMIT):
            disks += 1
            path = os.path.join(directory, "after")
            state.materialize(path)
            found = _contents(os.path.join(path, "queue"))
            shutil.rmtree(path)
            put, begun, acked = map(state.marks.count, ("put", "acknowledging", "acknowledged"))
            lost = max(lost, len({*range(begun, put)} - {*found}))
            again = max(again, len({*range(acked)} & {*found}))
            wrong += found != sorted({*found} & {*range(_ITEMS)})
    return Outcome(disks, lost, again, wrong)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log of the repairs, of which there is one on nearly every disk, from the terminal."""
    logger, handler = logging.getLogger("persistcoll"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _contents(path: str) -> list[int]:
    """Return what is in the queue; ``[-1]``, which is wrong, if it cannot be opened."""
    try:
        with Queue(path, serializer="json", durability="process") as queue:
            return list(queue.items())
    except StorageError:
        return [-1]


def _use(disk: CrashDisk, durability: Durability) -> None:
    path = os.path.join(disk.directory, "queue")
    with Queue(path, chunksize=4, serializer="json", durability=durability, _disk=disk) as queue:
        for number in range(_ITEMS):
            queue.put(number)
            disk.mark("put")
            if number % 2:
                queue.get()
                disk.mark("acknowledging")
                queue.task_done()
                disk.mark("acknowledged")
