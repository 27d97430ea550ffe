"""Eight workers in four processes on one message store, some of which are killed: each message ends once."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from persistcoll.engine.records import State
from tests.concurrency.message_workers import POLICY, Account, entries, work
from tests.crash.messages import is_consistent, opened
from tests.crash.test_sqlite_kill import Team

PROCESSES, THREADS = 4, 2


class Workers(Team):
    """Processes that are killed and started again.

    :ivar killed: the time of each kill, by the process that was killed.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.killed: dict[int, float] = {}

    def kill_one(self) -> None:
        before = {job: process.pid for job, process in self.members.items()}
        when = time.monotonic()
        super().kill_one()
        for job, process in self.members.items():
            if process.pid != before[job]:
                pid = before[job]
                assert pid is not None
                self.killed[pid] = when


def worked(rng: random.Random, place: Path, count: int, kills: int) -> Account:
    """Let the workers finish so many messages, and check all that they did."""
    path, notes = str(place / "q"), place / "notes"
    notes.mkdir()
    team, pause = Workers(rng), threading.Event()
    with closing(opened(path, POLICY)) as store:
        for first in range(0, count, 500):
            store.put(entries(rng, range(first, min(first + 500, count))))
        for number in range(PROCESSES):
            team.start(work, path, str(notes / f"worker-{number}"), rng.getrandbits(32), THREADS)
        while team.kills < kills and store.has_unfinished():
            # This test is about kills at random times.
            pause.wait(rng.uniform(0.1, 0.5))
            if any(notes.iterdir()):
                team.kill_one()
        team.wait(work)
        records = [*store.scan()]
        stats, topics = store.stats(), store.topics()
        by_topic = {topic: store.stats(topic) for topic in topics}
    account = Account()
    for log in notes.iterdir():
        _, _, pid = log.name.rpartition("-")
        if int(pid) in team.killed:
            account.killed[log.name] = team.killed[int(pid)]
        account.read(log)
    account.check(records)
    assert len(records) == count
    assert sorted(int(record.payload) for record in records) == [*range(count)]
    ended = {state: sum(record.state is state for record in records) for state in State}
    assert {state: getattr(stats, state.value) for state in State} == ended
    assert ended[State.DONE] + ended[State.DEAD] == stats.puts == stats.gets == count
    for topic, numbers in by_topic.items():
        of_topic = [record.state for record in records if record.topic == topic]
        assert {state: getattr(numbers, state.value) for state in State} == {
            state: of_topic.count(state) for state in State
        }
    assert topics == dict.fromkeys("abc", 0)
    is_consistent(path)
    for verb in ("ack", "nack", "release", "fail"):
        assert account.counts[f"settled {verb}"], verb
    assert team.kills >= min(kills, 1)
    return account


@pytest.mark.long
@pytest.mark.slow
def test_each_message_ends_once(rng, tmp_path):
    worked(rng, tmp_path, 2_000, 3)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_of_very_many_messages_ends_once(rng, tmp_path):
    account = worked(rng, tmp_path, 20_000, 24)
    stale = [account.counts[f"stale {verb}"] for verb in ("ack", "nack", "release", "fail")]
    assert any(stale), "no lease ran out"
