"""The demo itself: starts the processes, reads what they report, kills the consumer again and again."""

from __future__ import annotations

import os
import random
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from persistcoll import Queue
from persistcoll.cli.command import DAMAGED, STORAGE, CommandError
from persistcoll.cli.demo_check import Check
from persistcoll.cli.demo_source import PRODUCERS, Source
from persistcoll.cli.demo_worker import END, Consumer, Deliveries, Producer, Reports, command
from persistcoll.engine.values import Durability

__all__ = ["Result", "Run", "Watcher", "kill_points"]

# The queue holds so many lines at most, so that it is in use, by all, for the whole time.
BACKLOG = 20_000
# How far a consumer may get beyond the line after which it is to be killed: what is in the pipe, and more.
RUN_ON = 5_000
# Longer than any disk takes for a batch; a queue that does not hand out what it holds must not hang the demo.
PATIENCE_SECONDS = 60.0


class Watcher(Protocol):
    """Is told what happens."""

    def moved(self, put: int, got: int) -> None:
        """So many lines were put and got by now."""

    def killed(self, pid: int, got: int) -> None:
        """The consumer was killed after so many deliveries."""

    def took_over(self, pid: int, again: bool) -> None:
        """The next consumer got its first line; ``again``: the one that its predecessor was killed with."""


@dataclass(frozen=True)
class Result:
    """How it ended.

    :ivar kills: how many consumers were killed.
    :ivar left: lines still in the queue at the end.
    :ivar seconds: from the first process's start to the last one's end.
    """

    check: Check
    kills: int
    left: int
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is not as promised; empty if all is well."""
        left = [f"still in the queue at the end: {self.left:,}"] if self.left else []
        return self.check.problems(self.kills) + left


def kill_points(lines: int, kills: int, seed: int) -> list[tuple[int, int]]:
    """When to kill a consumer, spread over the run: after that delivery, and where it waits at the latest.

    There are fewer if there are fewer lines.
    """
    kills = min(kills, lines)
    choose = random.Random(seed)
    bounds = [lines * part // kills for part in range(kills + 1)] if kills else []
    points = []
    for before, last in pairwise(bounds):
        point = choose.randint(before + 1, last)
        points.append((point, min(point + RUN_ON, last)))
    return points


class _Child:
    """A child process, its report (standard output) and our word to it (standard input)."""

    def __init__(self, worker: Producer | Consumer) -> None:
        self.name = type(worker).__name__.lower()
        # A file, not a pipe: nobody reads it before the end, and a pipe that is full stops the writer.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            command(worker),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C reaches the demo alone, which ends its children; and they end when their input does.
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self.output = self.process.stdin, self.process.stdout

    def read(self) -> bytes:
        """Some of its output, as soon as there is any; nothing at its end."""
        return os.read(self.output.fileno(), 1 << 20)

    def end(self) -> None:
        """Tell it that nothing more will be put."""
        try:
            self._input.write(END)
        except BrokenPipeError:
            pass  # it is gone already: its output ends, and its exit status says why

    def expect_success(self) -> None:
        """Wait for its end.

        :raise CommandError: it failed; with its message and exit status.
        """
        status = self.process.wait(PATIENCE_SECONDS)
        if status:
            self._errors.seek(0)
            # One line, or the traceback of something that nobody foresaw.
            text = self._errors.read().decode(errors="replace").strip().removeprefix("persistcoll: ")
            why = text or f"exit status {status}"
            raise CommandError(f"the {self.name} failed: {why}", DAMAGED if status == DAMAGED else STORAGE)

    def close(self) -> None:
        """Leave nothing of it behind."""
        self.process.kill()
        self.process.wait()
        self._input.close()
        self.output.close()
        self._errors.close()


class Run:
    """One run of the demo.

    :param queue: the directory for the queue; missing or empty.
    :param points: what :func:`kill_points` says.
    """

    def __init__(
        self,
        source: Source,
        queue: str,
        durability: Durability,
        check: Check,
        points: Sequence[tuple[int, int]],
        watcher: Watcher,
    ) -> None:
        self._source, self._queue, self._durability = source, queue, durability
        self._check = check
        self._points = points
        self._watcher = watcher
        self._kills = 0
        self._reports = [Reports() for _ in range(PRODUCERS)]
        self._producing: dict[_Child, Reports] = {}
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> Result:
        """Do it all.

        :raise CommandError: a process failed.
        """
        # Made before anybody looks for it.
        Queue(self._queue, durability=self._durability).close()
        started = time.monotonic()
        try:
            self._start_producers()
            while self._consume():
                pass
            self._expect_same_source()
        finally:
            for child in self._children:
                child.close()
            self._selector.close()
        seconds = time.monotonic() - started
        with Queue(self._queue, durability=self._durability) as queue:
            return Result(self._check, self._kills, queue.qsize(), seconds)

    def _start(self, worker: Producer | Consumer) -> _Child:
        child = _Child(worker)
        self._children.append(child)
        self._selector.register(child.output, selectors.EVENT_READ, child)
        return child

    def _start_producers(self) -> None:
        for producer, reports in enumerate(self._reports):
            file, limit = str(self._source.path), self._source.limit
            worker = Producer(self._queue, self._durability, BACKLOG, file, limit, producer)
            self._producing[self._start(worker)] = reports

    def _consume(self) -> bool:
        """One consumer's life.

        :return: whether it was killed, so that another one is needed.
        """
        point, hold = self._points[self._kills] if self._kills < len(self._points) else (None, None)
        before = self._check.deliveries
        allowed = None if hold is None else hold - before
        consumer = self._start(Consumer(self._queue, self._durability, allowed))
        deliveries = Deliveries()
        told = False
        for child, data in self._outputs():
            if child is not consumer:
                self._read_report(child, data)
            elif data:
                self._receive(consumer, deliveries.feed(data), before)
            else:
                self._remove(consumer).expect_success()
                return False
            if not self._producing and not told:
                told = True
                consumer.end()
            if point is not None and self._check.deliveries >= point:
                self._kill(consumer, deliveries, before)
                return True
        raise AssertionError("the outputs have no end")

    def _outputs(self) -> Iterator[tuple[_Child, bytes]]:
        while True:
            ready = self._selector.select(PATIENCE_SECONDS)
            if not ready:
                raise CommandError(f"nothing moved for {PATIENCE_SECONDS:.0f} seconds", STORAGE)
            for key, _ in ready:
                child: _Child = key.data
                yield child, child.read()

    def _read_report(self, producer: _Child, data: bytes) -> None:
        if data:
            self._producing[producer].feed(data)
        else:
            del self._producing[producer]
            self._remove(producer).expect_success()
        self._moved()

    def _remove(self, child: _Child) -> _Child:
        self._selector.unregister(child.output)
        return child

    def _receive(self, consumer: _Child, deliveries: list[tuple[int, int, bytes]], before: int) -> None:
        check = self._check
        for delivery in deliveries:
            again = check.receive(delivery)
            if self._kills and check.deliveries == before + 1:
                self._watcher.took_over(consumer.process.pid, again)
        self._moved()

    def _kill(self, consumer: _Child, deliveries: Deliveries, before: int) -> None:
        consumer.process.kill()  # SIGKILL
        # What it wrote before it died counts: it is out in the world.
        while data := consumer.read():
            self._receive(consumer, deliveries.feed(data), before)
        if self._remove(consumer).process.wait() > 0:
            consumer.expect_success()  # it failed before the kill reached it: says why
        self._kills += 1
        self._watcher.killed(consumer.process.pid, self._check.deliveries)
        self._check.new_consumer()

    def _moved(self) -> None:
        self._watcher.moved(sum(reports.lines for reports in self._reports), self._check.lines_out)

    def _expect_same_source(self) -> None:
        put = [reports.digest for reports in self._reports]
        if put != [expected.digest for expected in self._check.expected]:
            raise CommandError(f"{self._source.description} changed while it was read: run it again", STORAGE)
