"""Measure layouts in turn: microseconds of the processor, microseconds of the clock, pages."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from benchmarks.layouts.model import DATABASE, PAGE, TOPICS, Claim, Message, State, Store, opened
from benchmarks.sql_floors import lengthen_log

__all__ = ["FILLS", "OPERATIONS", "Case", "Reading", "measure"]

FILLS: Mapping[str, Sequence[State]] = {
    "ready": (State.READY,),
    "delayed": (State.DELAYED,),
    "done": (State.DONE,),
    "dead": (State.DEAD,),
    "mix": (State.READY, State.DELAYED, State.CLAIMED, State.DONE, State.DEAD),
}

OPERATIONS = (
    "put", "claim, one topic", "ack, one topic", "claim, any", "ack, any",
    "put 100", "claim 32, any", "ack 32",
)  # fmt: skip
_LEASE = 60.0
_HOLDER = 1
_PUTS, _CLAIMS = 100, 32
# Ready messages that lie in every queue, so that no operation meets an empty one.
_BACKLOG = 1_000
_FRAME = PAGE + 24
_LOG_HEADER = 32


class Case(NamedTuple):
    """What lies in the tables, how large a message is, and what its operations survive."""

    fill: str
    rows: int
    body: int = 100
    durability: str = "process"

    @property
    def name(self) -> str:
        size = "" if self.body == 100 else f", {self.body:,} bytes"
        power = "" if self.durability == "process" else ", power"
        return f"{self.rows:,} {self.fill}{size}{power}"


class Reading(NamedTuple):
    """One operation in one round, in microseconds."""

    processor: float
    """For how long the thread had a processor: the median."""
    clock: float
    """What passed: the median."""
    mean: float
    """What passed, on average: with the checkpoints, which most rounds do not meet."""


Observe = Callable[[str, Callable[[], Any], bool], Any]
"""Runs the work of one operation in a transaction, with a sync or without one, and returns its result."""


class _Workload:
    """The operations of a round, one after another. Each round goes on where the one before has ended."""

    def __init__(self, layout: Store, body: bytes) -> None:
        self._layout = layout
        self._body = body
        self._serial = 0
        self._now = 0.0

    def backlog(self) -> None:
        """Put the messages that lie in every queue."""
        self._transaction(lambda: self._layout.put(self._messages(_BACKLOG), 0.0))

    def run(self, observe: Observe, operations: int) -> None:
        """Put, claim and ack so many messages of one topic and as many of any, then some in batches."""
        for number in range(operations):
            self._single(observe, (number % TOPICS,), "one topic")
            self._single(observe, None, "any")
        for _ in range(max(1, operations // 50)):
            self._batch(observe)

    def _messages(self, n: int) -> list[Message]:
        """Return messages of all topics and three priorities in turn."""
        numbers = range(self._serial, self._serial + n)
        self._serial += n
        return [Message(number % TOPICS, self._body, float(number // TOPICS % 3)) for number in numbers]

    def _claim(self, topics: Sequence[int] | None, n: int) -> Callable[[], list[Claim]]:
        self._now += 1e-3
        until = self._now + _LEASE
        return lambda: self._layout.claim(topics, n, _HOLDER, until)

    def _single(self, observe: Observe, topics: Sequence[int] | None, suffix: str) -> None:
        layout = self._layout
        messages = self._messages(1)
        observe("put", lambda: layout.put(messages, self._now), True)
        claims = observe(f"claim, {suffix}", self._claim(topics, 1), False)
        assert len(claims) == 1
        observe(f"ack, {suffix}", lambda: layout.ack(claims), True)

    def _batch(self, observe: Observe) -> None:
        layout = self._layout
        messages = self._messages(_PUTS)
        # First, so that the batch leaves as many messages as it finds, and what is not observed does not
        # stand between two observations.
        rest = self._transaction(self._claim(None, _PUTS % _CLAIMS))
        self._transaction(lambda: layout.ack(rest))
        observe("put 100", lambda: layout.put(messages, self._now), True)
        for _ in range(_PUTS // _CLAIMS):
            claims = observe("claim 32, any", self._claim(None, _CLAIMS), False)
            assert len(claims) == _CLAIMS
            observe("ack 32", partial(layout.ack, claims), True)

    def _transaction(self, work: Callable[[], Any]) -> Any:
        self._layout.execute("BEGIN IMMEDIATE")
        result = work()
        self._layout.execute("COMMIT")
        return result


class _Candidate:
    """One layout in a database of its own, with what lies in it."""

    def __init__(self, layout: Store, directory: str, case: Case) -> None:
        self._layout = layout
        self._workload = _Workload(layout, bytes(case.body))
        self._path = os.path.join(directory, f"{DATABASE}-wal")
        self._fill(case)
        layout.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if case.durability == "power":
            lengthen_log(directory)
        self._log = os.open(self._path, os.O_RDWR) if case.durability == "power" else -1

    def close(self) -> None:
        if self._log >= 0:
            os.close(self._log)

    def _fill(self, case: Case) -> None:
        states = FILLS[case.fill]
        last = 0
        self._layout.execute("BEGIN IMMEDIATE")
        for state in states:
            first, last = last + 1, last + case.rows // len(states)
            self._layout.fill(state, first, last, bytes(case.body))
        self._layout.execute("COMMIT")
        self._workload.backlog()

    def time(self, operations: int) -> dict[str, Reading]:
        """Run one round, and return what each operation took."""
        readings: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}
        execute, log = self._layout.execute, self._log

        def observe(name: str, work: Callable[[], Any], sync: bool) -> Any:
            clock, processor = perf_counter(), thread_time()
            execute("BEGIN IMMEDIATE")
            result = work()
            execute("COMMIT")
            if sync and log >= 0:
                os.fdatasync(log)
            readings[name].append((thread_time() - processor, perf_counter() - clock))
            return result

        self._workload.run(observe, operations)
        return {
            name: Reading(
                median(processor for processor, _ in values) * 1e6,
                median(clock for _, clock in values) * 1e6,
                sum(clock for _, clock in values) / len(values) * 1e6,
            )
            for name, values in readings.items()
        }

    def pages(self, operations: int) -> dict[str, float]:
        """Run one round, and return how many pages each operation writes into the log."""
        execute = self._layout.execute
        execute("PRAGMA wal_autocheckpoint=0").fetchall()
        execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        frames: dict[str, list[int]] = {name: [] for name in OPERATIONS}

        def observe(name: str, work: Callable[[], Any], sync: bool) -> Any:
            before = self._frames()
            execute("BEGIN IMMEDIATE")
            result = work()
            execute("COMMIT")
            frames[name].append(self._frames() - before)
            return result

        self._workload.run(observe, operations)
        execute("PRAGMA wal_autocheckpoint=4096").fetchall()
        execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return {name: sum(values) / len(values) for name, values in frames.items()}

    def _frames(self) -> int:
        return max(0, os.stat(self._path).st_size - _LOG_HEADER) // _FRAME


def measure(
    makes: Sequence[type[Store]],
    case: Case,
    rounds: int,
    operations: int,
    root: str,
) -> dict[str, dict[str, Any]]:
    """Measure layouts in turn; return by layout the readings of each round, and the pages.

    In each round another layout is the first one.
    """
    with ExitStack() as stack:
        candidates: dict[str, _Candidate] = {}
        for make in makes:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="layout-", dir=root))
            layout = stack.enter_context(opened(make, directory))
            candidates[make.name] = _Candidate(layout, directory, case)
            stack.callback(candidates[make.name].close)
        found: dict[str, dict[str, Any]] = {
            # Before the rounds, so that every layout has done the same by then; it is the warm-up, too.
            name: {"pages": candidate.pages(operations), "rounds": []}
            for name, candidate in candidates.items()
        }
        names = list(candidates)
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                gc.collect()
                found[name]["rounds"].append(candidates[name].time(operations))
    return found
