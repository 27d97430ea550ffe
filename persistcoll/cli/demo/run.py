"""One run of the demo: starts the processes, reads what they deliver, kills consumers, says how it went."""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

from persistcoll.cli.command import DAMAGED, DONE, STORAGE, CommandError, print_error
from persistcoll.cli.demo.lines import PRODUCERS, Check, Source
from persistcoll.cli.demo.power_cut import cut_power
from persistcoll.cli.demo.workers import QUEUES, Store, Worker, consume, produce

__all__ = ["Run", "run"]

# Longer than any disk takes for a batch; a queue that does not hand out what it holds must not hang the demo.
PATIENCE_SECONDS, PROGRESS_SECONDS = 60.0, 0.25
BAR = 40  # characters, for a backlog of all lines
# About as long as a consumer takes to acknowledge some lines, to get the next ones and to count them.
LONGEST_DELAY = 0.01


def run(arguments: argparse.Namespace) -> int:
    """Do the demo, say how it went, and return the exit status."""
    source = Source(arguments.file, arguments.lines)
    expected, words = source.expected()
    seed = secrets.randbelow(10_000) if arguments.seed is None else arguments.seed
    queue_name, consumers = QUEUES[arguments.queue]
    check = Check(expected, consumers)
    with (
        _graceful_signals() as signals,
        tempfile.TemporaryDirectory(prefix="persistcoll-demo-", ignore_cleanup_errors=True) as directory,
    ):
        store = Store(arguments.queue, directory, arguments.durability)
        way = f"{PRODUCERS} producers -> {queue_name} -> {consumers} consumer{'s' * (consumers > 1)} -> PDict"
        print(f"{len(expected):,} lines of {source.description}", file=sys.stderr)
        print(f"{way}  (durability {arguments.durability!r}, seed {seed})", file=sys.stderr)
        demo = Run(store, check, arguments.kills, random.Random(seed))
        started = time.monotonic()
        demo.follow(source, consumers, signals)
        seconds = time.monotonic() - started
        with store.queue() as queue, store.counts() as found:
            left, counts = queue.qsize(), found.copy()
    right: dict[str | int, int] = dict(words.items())
    if arguments.queue == "file":  # how far each producer's lines are counted: to the last one
        right.update((number % PRODUCERS, number) for number in range(len(expected))[-PRODUCERS:])
    wrong = sum(counts.get(key) != right.get(key) for key in counts.keys() | right.keys())
    faults = check.faults | {"still in the queue at the end": left, "counted wrongly": wrong}
    problems = _problems(faults)
    if problems and source.expected() != (expected, words):
        raise CommandError(f"{source.description} changed while it was read: run it again", STORAGE)
    rows = [
        ("lines in", f"{len(expected):,}"),
        ("lines out", f"{check.lines_out:,}"),
        ("delivered twice", f"{check.again:,} (of {check.in_hand:,} in the hands of those killed)"),
        ("consumers killed", f"{demo.kills:,}"),
        ("lines counted", f"{sum(counts.get(word, 0) for word in words):,} by {len(words):,} first words"),
        ("rate", f"{check.lines_out / seconds:,.0f} lines/s, {seconds:.1f} s in all"),
    ]
    for word, number in [pair for pair in words.most_common(6) if pair[0]][:5]:
        rows.append((f"counts[{word!a}]", f"{counts.get(word, 0):,} ({number:,} in the text)"))
    rows += [(name, f"{number:,}  {'WRONG' if number else 'ok'}") for name, number in faults.items()]
    for name, value in rows:
        print(f"  {name:<44}  {value}")
    problems += _cut_power()
    if problems:
        return print_error("a promise was broken: " + "; ".join(problems), DAMAGED)
    print("Every line that was put came out, in order and unaltered, and was counted once.")
    return DONE


def _problems(faults: dict[str, int]) -> list[str]:
    return [f"{name}: {number:,}" for name, number in faults.items() if number]


def _cut_power() -> list[str]:
    """Cut the power in a simulation at both levels, say what came through, and return what is wrong."""
    print("The power fails after each write and sync of 12 puts and 6 acknowledgements, in a simulation that")
    print("keeps, loses, tears or zeros each write that was not synced. Then the queue is opened:")
    problems: list[str] = []
    for durability in ("power", "process"):
        found = cut_power(durability)
        faults = {"put and lost": found.lost, "acknowledged and back": found.again, "wrong": found.wrong}
        worst = ", ".join(f"{name}: {number}" for name, number in faults.items())
        print(f"  {f'durability {durability!r}, {found.disks} different disks':<44}  at worst {worst}")
        # At "process" a power cut may lose what was not synced yet; even then nothing is invented.
        problems += _problems(faults if durability == "power" else {"wrong": found.wrong})
    return problems


@contextmanager
def _graceful_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and the like, which the block looks at. So they cut no start and no removal short.

    A process that is forked within the block ignores them: Ctrl-C in a terminal ends this process alone.
    """
    came: list[int] = []
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in ends if signal.getsignal(number) != signal.SIG_IGN]  # not so after nohup
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Run:
    """The processes, and what they deliver.

    :param kills: how many consumers to kill, each when a line that ``chance`` chooses has come out.
    """

    def __init__(self, store: Store, check: Check, kills: int, chance: random.Random) -> None:
        self.kills = self._put = 0
        self._store, self._check, self._chance = store, check, chance
        self._lines = check.faults["lost"]
        points = sorted(chance.randint(1, self._lines) for _ in range(kills))
        self._kill_points = [*points, sys.maxsize]  # the last one never comes
        self._workers: list[Worker] = []
        self._moved_at = time.monotonic()

    def follow(self, source: Source, consumers: int, signals: list[int]) -> None:
        """Start the processes, and serve them until all have ended."""
        self._store.queue().close()  # made before the processes open them
        shown_at = time.monotonic()
        try:
            for producer in range(PRODUCERS):
                self._start(-1, produce, source, producer)
            for slot in range(consumers):
                self._start(slot, consume)
            while self._workers:
                ready = wait([worker.connection for worker in self._workers], 0.1)
                for worker in [worker for worker in self._workers if worker.connection in ready]:
                    self._serve(worker)
                if signals:
                    raise CommandError("stopped", 128 + signals[0])
                if time.monotonic() > self._moved_at + PATIENCE_SECONDS:
                    raise CommandError(f"nothing moved for {PATIENCE_SECONDS:.0f} seconds", STORAGE)
                if time.monotonic() > shown_at + PROGRESS_SECONDS:
                    shown_at = time.monotonic()
                    self._show()
        finally:
            for worker in self._workers:
                worker.kill()
                worker.join()

    def _show(self) -> None:
        backlog = self._put - self._check.lines_out
        bar = "#" * (backlog * BAR // self._lines)
        print(f"  put {self._put:>9,}   got {self._check.lines_out:>9,}   backlog {bar}", file=sys.stderr)

    def _start(self, slot: int, work: Callable[..., None], *arguments: object) -> None:
        self._workers.append(Worker(slot, work, self._store, *arguments))

    def _serve(self, worker: Worker) -> None:
        """Read what the process sends. Answer a consumer, or kill it."""
        message = self._receive(worker)
        if message is None:
            self._workers.remove(worker)
            worker.join()
            if worker.exitcode:
                raise CommandError(f"the {worker.name} failed: exit status {worker.exitcode}", STORAGE)
        elif isinstance(message, list):
            if message and self._check.lines_out >= self._kill_points[self.kills]:
                self._kill(worker)
            else:
                self._answer(worker)

    def _receive(self, worker: Worker) -> Any:
        """Account for what the process sends; ``None`` if it has ended."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):  # OSError: it was killed while it sent
            return None
        if message:
            self._moved_at = time.monotonic()
        if isinstance(message, tuple):
            raise CommandError(f"the {worker.name} failed: {message[0]}", message[1])
        if isinstance(message, int):
            self._put += message
        else:
            self._check.receive(message, worker.slot)
        return message

    def _answer(self, worker: Worker) -> None:
        with suppress(ConnectionError):  # if it is gone, its exit status says why
            worker.connection.send(all(other.slot >= 0 for other in self._workers))

    def _kill(self, worker: Worker) -> None:
        # A consumer that waits for the answer dies between counting and acknowledging: its lines come again.
        # One that has it dies at any moment. The last kill is of the first kind, because it needs such lines.
        if self._store.kind == "file" and self._check.lines_out < self._kill_points[-2]:
            self._answer(worker)
            time.sleep(self._chance.uniform(0, LONGEST_DELAY))
        worker.kill()
        while self._receive(worker) is not None:  # what it delivered before it died
            pass
        worker.join()
        self._workers.remove(worker)
        self._check.killed(worker.slot)
        self.kills += 1
        got = self._check.deliveries
        print(f"  kill -9 {worker.pid} after delivery {got:,}: another consumer goes on", file=sys.stderr)
        self._start(worker.slot, consume)
