"""Processes that put into and get from one SQLite queue, killed with SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from persistcoll import Empty, FILOSQLiteAckQueue, PriorityQueue, SQLiteAckQueue, SQLiteQueue

PRODUCERS = CONSUMERS = 4
KILLS = 16
CONTEXT = multiprocessing.get_context("spawn")
KINDS = {
    "ack": (SQLiteAckQueue, {}),
    "filo-ack": (FILOSQLiteAckQueue, {}),
    "fifo": (SQLiteQueue, {"auto_commit": False}),
    "priority": (PriorityQueue, {"auto_commit": False}),
}


def open_queue(kind: str, path: str):
    """Open the queue of that kind."""
    cls, options = KINDS[kind]
    return cls(path, serializer="json", durability="process", **options)


def note(fd: int, what: str, number: int) -> None:
    """Write a line in one call, so that it is there wholly or not at all."""
    os.write(fd, f"{what} {number}\n".encode())


def produce(kind: str, path: str, log: str, numbers: range) -> None:
    """Put the numbers, continuing after the last one that is known to be put."""
    done = sum(line.startswith("put") for line in read(log))
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open_queue(kind, path) as queue:
        for number in numbers[done:]:
            queue.put(number)
            note(fd, "put", number)


def consume(kind: str, path: str, log: str, finished: str) -> None:
    """Get and ack until the queue is empty and the producers are done."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open_queue(kind, path) as queue:
        while True:
            try:
                number = queue.get(timeout=0.1)
            except Empty:
                if os.path.exists(finished) and not queue.unfinished_tasks:
                    return
                continue
            note(fd, "got", number)
            queue.task_done()
            note(fd, "done", number)


def read(log: str) -> list[str]:
    """Return the complete lines of a log."""
    try:
        return Path(log).read_text().splitlines()
    except FileNotFoundError:
        return []


class Team:
    """Processes that are killed and started again."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.kills = 0
        self.members: dict[tuple, multiprocessing.process.BaseProcess] = {}

    def start(self, function, *arguments) -> None:
        """Start one more process."""
        job = (function, *arguments)
        process = CONTEXT.Process(target=function, args=arguments)
        process.start()
        self.members[job] = process

    def kill_one(self) -> None:
        """Kill one of the running processes, and start it again."""
        running = [job for job, process in self.members.items() if process.is_alive()]
        if running:
            job = self.rng.choice(running)
            pid = self.members[job].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            self.members[job].join()
            self.kills += 1
            self.start(*job)

    def wait(self, function) -> None:
        """Wait until all processes that run this function are done."""
        for job, process in self.members.items():
            if job[0] is function:
                process.join(120)
                assert process.exitcode == 0, f"{job} ended with {process.exitcode}"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_producers_and_consumers(tmp_path, rng, kind):
    path, finished = str(tmp_path / "q"), str(tmp_path / "finished")
    each = 5000
    ranges = [range(first * each, (first + 1) * each) for first in range(PRODUCERS)]
    team = Team(rng)
    logs = [str(tmp_path / f"consumer-{number}") for number in range(CONSUMERS)]
    for number, numbers in enumerate(ranges):
        team.start(produce, kind, path, str(tmp_path / f"producer-{number}"), numbers)
    for log in logs:
        team.start(consume, kind, path, log, finished)
    while team.kills < KILLS and any(process.is_alive() for process in team.members.values()):
        time.sleep(rng.uniform(0.05, 0.2))  # This test is about kills at random times.
        team.kill_one()
    team.wait(produce)
    Path(finished).touch()
    team.wait(consume)
    got = Counter(int(line.split()[1]) for log in logs for line in read(log) if line.startswith("got"))
    done = Counter(int(line.split()[1]) for log in logs for line in read(log) if line.startswith("done"))
    put = {number for numbers in ranges for number in numbers}
    assert set(got) == put, "an item that was put was lost"
    # A put that was cut short may have happened, and is repeated then; a get is repeated once for each kill.
    again = sum(got.values()) - len(put)
    assert again <= team.kills
    assert max(done.values()) <= 2
    assert team.kills == KILLS
    with open_queue(kind, path) as queue:
        assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)
    left = {entry.name for entry in (tmp_path / "q").iterdir()}
    assert left == {"data.db", "data.db.lock", "data.db.turn"}, "files of the dead remain"


def take_until_killed(path: str, says: int) -> None:
    """Get with ``auto_commit``, and write what was got, until the queue is empty.

    The process may run far ahead of its reader.
    """
    with SQLiteQueue(path, serializer="json", durability="process") as queue:
        while not queue.empty():
            note(says, "got", queue.get())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.timeout(60)
def test_with_auto_commit_a_kill_loses_at_most_the_item_in_get(tmp_path, rng):
    """Nothing is delivered again."""
    path, count, kills = str(tmp_path / "q"), 4000, 25
    with SQLiteQueue(path, serializer="json", durability="process") as queue:
        queue.put_many(range(count))
    got: list[int] = []
    lost = 0
    for _ in range(kills):
        reading, says = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                take_until_killed(path, says)
            finally:
                os._exit(1)
        os.close(says)
        with open(reading) as lines:
            heard = [lines.readline() for _ in range(rng.randrange(1, 60))]
            os.kill(pid, signal.SIGKILL)
            heard = [line for line in heard if line] + lines.readlines()
        os.waitpid(pid, 0)
        got += [int(line.split()[1]) for line in heard]
        with SQLiteQueue(path, serializer="json", durability="process") as queue:
            left = list(queue.items())
            assert queue.qsize() == len(left)
        # In order: the items got, then at most one that was in get(), then the ready ones.
        assert left == list(range(count - len(left), count))
        assert len(got) + lost <= count - len(left) <= len(got) + lost + 1
        lost = count - len(left) - len(got)
        assert got == sorted(set(got))
    assert len(got) > kills
