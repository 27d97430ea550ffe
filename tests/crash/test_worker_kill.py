"""Workers that are killed, terminated and interrupted, in processes of their own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from persistcoll import OutgoingMessage, State, Worker
from tests.concurrency.test_message_workers import Workers
from tests.crash.messages import is_consistent
from tests.crash.test_sqlite_kill import CONTEXT
from tests.crash.worker_processes import MOST, Account, opened, poison, work
from tests.queues.waits import until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("concurrency", [1, 2])
def test_prefetched_neighbours_of_a_poison_message_do_not_die_with_it(tmp_path, concurrency):
    """It kills its worker each time. What another handler has got at that time dies with it in the end."""
    path, neighbours = str(tmp_path / "q"), 5
    with opened(path) as queue:
        poisoned = queue.put(-1, priority=9)
        others = queue.put_many(range(8))
        for _ in range(MOST):
            process = CONTEXT.Process(target=poison, args=(path, neighbours, concurrency))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        queue.recover()
        letters = [*queue.dead_letters()]
        worker = Worker(queue, lambda message: None)
        result = threading.Thread(target=worker.run)
        result.start()
        until(lambda: queue.stats().done + queue.stats().dead == 9)
        worker.stop()
        result.join()
        attempts = [info.attempts for id in others if id and (info := queue.find(id))]
    handled = concurrency - 1
    assert [letter.id for letter in letters] == [poisoned, *others[:handled]]
    assert {(letter.attempts, letter.last_error) for letter in letters} == {(MOST, "its worker died")}
    assert attempts == [MOST] * handled + [1] * (8 - handled)


SCRIPT = """
import signal, sys, threading
from persistcoll import MessageQueue, Worker, errors
import persistcoll.messages.stop_signals as stop_signals

stop_signals._SAME_REQUEST = 0
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background process ignores it.

def handle(message):
    print("begun", flush=True)
    if message.body == "hangs":
        threading.Event().wait()
    sys.stdin.readline()

if __name__ == "__main__":
    with MessageQueue(sys.argv[1], serializer="json", durability="process", keep_done=9) as queue:
        Worker(queue, handle).run()
    print("ended", flush=True)
"""


def started(tmp_path: Path, path: str) -> subprocess.Popen[str]:
    """Start a program with a worker, and wait until its handler runs and it has claimed the next message."""
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_in_good_order(tmp_path, number):
    path = str(tmp_path / "q")
    with opened(path) as queue:
        queue.put_many(["waits", "next"])
        process = started(tmp_path, path)
        until(lambda: queue.stats().claimed == 2)
        process.send_signal(number)
        until(lambda: queue.stats().ready == 1)
        out, err = process.communicate("\n", timeout=60)
        assert (process.returncode, out, err) == (0, "ended\n", "")
        states = [(record.state, record.attempts) for record in queue._store.scan()]
    assert states == [(State.DONE, 1), (State.READY, 0)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_second_signal_ends_a_program_whose_handler_hangs(tmp_path, number, code):
    """Nothing is lost, and no attempt is counted. The exit status is the usual one."""
    path = str(tmp_path / "q")
    with opened(path) as queue:
        queue.put_many(["hangs", "next"])
        process = started(tmp_path, path)
        until(lambda: queue.stats().claimed == 2)
        process.send_signal(number)
        until(lambda: queue.stats().ready == 1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, "")
        assert "KeyboardInterrupt" in err if number == signal.SIGINT else err == ""
        states = [(record.state, record.attempts) for record in queue._store.scan()]
    assert states == [(State.READY, 0)] * 2


class Team(Workers):
    """Processes that are killed or terminated, and started again.

    :ivar terminated: how many of them have ended after SIGTERM, by their exit status.
    """

    def __init__(self, rng: random.Random, notes: Path) -> None:
        super().__init__(rng)
        self.terminated: Counter[int | None] = Counter()
        self.notes = notes

    def have_begun(self) -> list[tuple[Any, ...]]:
        """Return those whose workers run, or are about to."""
        pids = {int(log.name.rpartition("-")[2]) for log in self.notes.iterdir() if log.stat().st_size}
        return [job for job, process in self.members.items() if process.pid in pids and process.is_alive()]

    def terminate_one(self) -> None:
        job = self.rng.choice(self.have_begun() or [*self.members])
        process = self.members[job]
        process.terminate()
        process.join(60)
        self.terminated[process.exitcode] += 1
        self.start(*job)


def worked(rng: random.Random, place: Path, count: int, kills: int, terminations: int) -> Account:
    """Let 8 workers in 4 processes finish so many messages, and check all that they did."""
    path, notes = str(place / "q"), place / "notes"
    notes.mkdir()
    team, pause = Team(rng, notes), threading.Event()
    plan = [*["kill", "terminate"] * min(kills, terminations), *["terminate"] * (terminations - kills)]
    with opened(path) as queue:
        topics = ["long"] * 8 + ["hangs"] * 16
        for first in range(1, count + 1, 1000):
            queue.put_many(
                OutgoingMessage(number, topic=topics.pop() if topics and number % 10 == 1 else "short")
                for number in range(first, min(first + 1000, count + 1))
            )
        for number in range(4):
            team.start(work, path, str(notes / f"worker-{number}"), rng.getrandbits(32))
        for what in plan:
            until(lambda: len(team.have_begun()) >= 3 or not queue._store.has_unfinished(), 60)
            # This test is about signals at random times.
            pause.wait(rng.uniform(0.0, 0.5))
            if queue._store.has_unfinished():
                getattr(team, f"{what}_one")()
        team.wait(work)
        records: Any = [*queue._store.scan()]
    account = Account(notes)
    account.check(records, team.kills)
    assert len(records) == count
    assert sorted(int(record.payload) for record in records) == [*range(1, count + 1)]
    # A process that has not begun yet dies of the signal.
    assert set(team.terminated) <= {0, -signal.SIGTERM}
    # One that was killed may have noted its end before that.
    assert account.counts["stopped"] >= len(team.members) + team.terminated[0]
    is_consistent(path)
    account.counts["killed"], account.counts["terminated"] = team.kills, team.terminated[0]
    return account


@pytest.mark.long
@pytest.mark.timeout(600)
def test_graceful_stops_lose_no_attempt(rng, tmp_path):
    """Every attempt that is counted is one that a handler has begun."""
    account = worked(rng, tmp_path, 4_000, 0, 12)
    assert account.counts["terminated"] > 1
    assert account.counts["unexplained"] == account.counts["late"] == 0
    assert account.counts["hung"], "no lease of a hung handler ran out"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_of_very_many_messages_ends_once(rng, tmp_path):
    account = worked(rng, tmp_path, 20_000, 12, 12)
    # A graceful stop waits for handlers that hang, for most of the time.
    assert account.counts["killed"] > 1
    assert account.counts["terminated"] > 1
    assert account.counts["hung"], "no lease of a hung handler ran out"
    assert account.counts["dead"] >= 40
