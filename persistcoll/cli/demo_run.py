"""The demo itself: starts the processes, reads what they report, kills consumers again and again."""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from persistcoll.cli.command import DAMAGED, STORAGE, CommandError
from persistcoll.cli.demo_check import Check
from persistcoll.cli.demo_count import Account
from persistcoll.cli.demo_lanes import Lane
from persistcoll.cli.demo_source import PRODUCERS, Expected, Source
from persistcoll.cli.demo_store import HAND, Store
from persistcoll.cli.demo_worker import END, GO_ON, Consumer, Deliveries, Producer, Reports, command
from persistcoll.cli.interrupts import held_back

__all__ = ["Result", "Run", "Watcher"]

# The queue holds so many lines at most, so that it is in use, by all, for the whole time.
BACKLOG = 20_000
# Longer than any disk takes for a batch; a queue that does not hand out what it holds must not hang the demo.
PATIENCE_SECONDS = 60.0


class Watcher(Protocol):
    """Is told what happens."""

    def moved(self, put: int, got: int) -> None:
        """So many lines were put and got by now."""

    def killed(self, pid: int, got: int) -> None:
        """A consumer was killed after so many deliveries, to whomever."""

    def took_over(self, pid: int, again: bool) -> None:
        """The next consumer got its first line; ``again``: one that another was killed with."""


@dataclass(frozen=True)
class Result:
    """How it ended.

    :ivar kills: how many consumers were killed.
    :ivar left: lines still in the queue at the end.
    :ivar account: what is in the dict.
    :ivar seconds: from the first process's start to the last one's end.
    """

    check: Check
    kills: int
    left: int
    account: Account
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is not as promised; empty if all is well."""
        left = [f"still in the queue at the end: {self.left:,}"] if self.left else []
        return self.check.problems + left + self.account.problems


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

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> bytes:
        """Some of its output, as soon as there is any; nothing at its end."""
        return os.read(self.output.fileno(), 1 << 20)

    def tell(self, letter: bytes) -> None:
        """Send it ``END`` or ``GO_ON``."""
        try:
            self._input.write(letter)
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


class _Consuming:
    """A consumer at work, in its lane."""

    def __init__(self, lane: Lane, child: _Child) -> None:
        self.lane = lane
        self.child = child
        self.output = Deliveries()
        self.got = 0


class Run:
    """One run of the demo.

    :param kills: how many consumers to kill.
    :param seed: of when they are killed.
    """

    def __init__(
        self, source: Source, expected: Expected, store: Store, kills: int, seed: int, watcher: Watcher
    ) -> None:
        self._source, self._expected, self._store = source, expected, store
        self._check = Check(expected.sent, store.consumers, HAND)
        self._lanes = Lane.plan(self._check.lines_in, kills, store.consumers, seed)
        self._watcher = watcher
        self._reports = [Reports() for _ in range(PRODUCERS)]
        self._producing = 0
        self._consuming: list[_Consuming] = []
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> Result:
        """Do it all.

        :raise CommandError: a process failed.
        """
        # Made before anybody looks for it.
        self._store.queue().close()
        self._store.counts().close()
        started = time.monotonic()
        try:
            self._start_producers()
            for lane in self._lanes:
                self._start_consumer(lane)
            self._follow()
            self._expect_same_source()
        finally:
            for child in self._children:
                child.close()
            self._selector.close()
        seconds = time.monotonic() - started
        with self._store.queue() as queue:
            left = queue.qsize()
        return Result(self._check, self._kills, left, Account.of(self._store, self._expected), seconds)

    @property
    def _kills(self) -> int:
        return sum(lane.kills for lane in self._lanes)

    def _follow(self) -> None:
        """Read what the children write, until all have ended."""
        while self._selector.get_map():
            ready = self._selector.select(PATIENCE_SECONDS)
            if not ready:
                raise CommandError(f"nothing moved for {PATIENCE_SECONDS:.0f} seconds", STORAGE)
            for key, _ in ready:
                child, use = key.data
                use(child.read())

    def _start(self, worker: Producer | Consumer) -> _Child:
        with held_back():
            child = _Child(worker)
            self._children.append(child)
        return child

    def _read(self, child: _Child, use: Callable[[bytes], None]) -> None:
        self._selector.register(child.output, selectors.EVENT_READ, (child, use))

    def _read_no_more(self, child: _Child) -> _Child:
        self._selector.unregister(child.output)
        return child

    def _moved(self) -> None:
        self._watcher.moved(sum(reports.lines for reports in self._reports), self._check.lines_out)

    # Producers.

    def _start_producers(self) -> None:
        for producer, reports in enumerate(self._reports):
            file, limit = str(self._source.path), self._source.limit
            child = self._start(Producer(self._store, BACKLOG, file, limit, producer))
            self._read(child, partial(self._receive_report, child, reports))
            self._producing += 1

    def _receive_report(self, child: _Child, reports: Reports, data: bytes) -> None:
        if data:
            reports.feed(data)
        else:
            self._read_no_more(child).expect_success()
            self._producing -= 1
            if not self._producing:
                self._tell_consumers(END)
        self._moved()

    def _expect_same_source(self) -> None:
        put = [reports.digest for reports in self._reports]
        if put != [sent.digest for sent in self._expected.sent]:
            raise CommandError(f"{self._source.description} changed while it was read: run it again", STORAGE)

    # Consumers.

    def _start_consumer(self, lane: Lane) -> None:
        limit = lane.limit(kills_are_done=not self._pending())
        consuming = _Consuming(lane, self._start(Consumer(self._store, limit, lane.doomed)))
        self._consuming.append(consuming)
        self._read(consuming.child, partial(self._receive, consuming))
        if not self._producing:
            consuming.child.tell(END)

    def _tell_consumers(self, letter: bytes) -> None:
        for consuming in self._consuming:
            consuming.child.tell(letter)

    def _pending(self) -> bool:
        """Whether somebody is still to be killed."""
        return any(lane.doomed for lane in self._lanes)

    def _receive(self, consuming: _Consuming, data: bytes) -> None:
        if data:
            self._account(consuming, data)
            if consuming.lane.due:
                self._kill(consuming)
        else:
            self._remove(consuming).expect_success()
            consuming.lane.spare()
            self._let_go_on()

    def _account(self, consuming: _Consuming, data: bytes) -> None:
        lane = consuming.lane
        for delivery, first in consuming.output.feed(data):
            again = self._check.receive(delivery, lane.number, first)
            if lane.kills and not consuming.got:
                self._watcher.took_over(consuming.child.pid, again)
            consuming.got += 1
            lane.deliveries += 1
        self._moved()

    def _kill(self, consuming: _Consuming) -> None:
        child, lane = consuming.child, consuming.lane
        child.process.kill()  # SIGKILL
        # What it wrote before it died counts: it is out in the world.
        while data := child.read():
            self._account(consuming, data)
        if self._remove(consuming).process.wait() > 0:
            child.expect_success()  # it failed before the kill reached it: says why
        lane.kills += 1
        self._watcher.killed(child.pid, self._check.deliveries)
        self._check.killed(lane.number)
        self._start_consumer(lane)
        self._let_go_on()

    def _remove(self, consuming: _Consuming) -> _Child:
        self._consuming.remove(consuming)
        return self._read_no_more(consuming.child)

    def _let_go_on(self) -> None:
        """Those that wait for the kills of other lanes, if these are done."""
        if not self._pending():
            self._tell_consumers(GO_ON)
