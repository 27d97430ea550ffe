"""The processes that put into a queue of a server and work on it, while a test lets something fail."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.concurrency.workers import CONTEXT
from tests.servers import ack_workers

__all__ = ["PROCESSES", "Crew"]

PROCESSES = 4


class Mark(NamedTuple):
    """An event for processes that may be killed.

    One of ``multiprocessing`` waits in ``set`` for every process that waited for it, the killed ones too.
    """

    path: str

    def is_set(self) -> bool:
        return os.path.exists(self.path)

    def set(self) -> None:
        Path(self.path).touch()


def _run(before: Callable[[], object] | None, target: Callable[..., None], *arguments: Any) -> None:
    if before is not None:
        before()
    target(*arguments)


class Crew:
    """The processes of a test: one that puts, and others that work.

    :param kind: the class of the queue.
    :param urls: where the queue is; the processes take them in turn.
    :param target: what those do that work.
    :param notes: an empty directory.
    :param items: so many are put.
    :param pace: the seconds that the putter waits after each put, and a worker after what it got at once.
    :param before: what each process calls first.
    :ivar stop: set it to have nothing more put.
    """

    def __init__(
        self,
        kind: str,
        urls: list[str],
        notes: Path,
        target: Callable[..., None],
        items: int,
        rng: random.Random,
        pace: float = 0.0,
        before: Callable[[], object] | None = None,
    ) -> None:
        self.kind, self.urls, self.notes, self.target = kind, urls, notes, target
        self.items, self.rng, self.pace, self.before = items, rng, pace, before
        self.stop, self.end = Mark(f"{notes}.stop"), Mark(f"{notes}.end")
        self.next = 1
        self.processes: dict[int, Any] = {}
        for number in range(PROCESSES + 1):
            self.begin(number)

    def begin(self, number: int) -> None:
        """Start the process of that number; 0 puts."""
        seed = self.rng.getrandbits(32)
        target = self.target
        arguments: tuple[Any, ...] = (seed, self.end, self.pace)
        if number == 0:
            target, arguments = ack_workers.put, (seed, self.stop, self.pace, self.next, self.items)
        where = {"url": self.urls[number % len(self.urls)]}
        process = CONTEXT.Process(
            target=_run,
            args=(self.before, target, self.kind, where, str(self.notes), *arguments),
            daemon=True,
        )
        process.start()
        self.processes[number] = process

    def kill(self, number: int) -> None:
        """Kill a process with SIGKILL, unless it has ended by itself, and start it again."""
        self.processes[number].kill()
        self.join(number)
        if number == 0:
            self.next = max(ack_workers.Account(self.notes).asked, default=0) + 1
        self.begin(number)

    def check(self, until: float) -> None:
        """Raise unless all are alive, and the time has not come."""
        assert time.monotonic() < until, "it lasts too long"
        ended = {number: each.exitcode for number, each in self.processes.items() if each.exitcode}
        assert not ended, ended

    def join(self, number: int) -> int:
        """Wait for the end of a process, and return its code."""
        process = self.processes.pop(number)
        process.join(60)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        return -1 if code is None else int(code)

    def close(self) -> None:
        """Kill what is left."""
        for number, process in list(self.processes.items()):
            process.kill()
            self.join(number)

    def finish(self, queue: Any, until: float) -> Any:
        """Wait until all is put and finished, and return what the queue holds then.

        :param queue: the one that the processes have.
        :param until: when to give up, by ``time.monotonic``.
        """
        assert self.join(0) == 0
        pause = threading.Event()
        while queue.unfinished_tasks:
            self.check(until)
            pause.wait(0.02)
        self.end.set()
        assert [self.join(number) for number in range(1, PROCESSES + 1)] == [0] * PROCESSES
        return queue.queue()
