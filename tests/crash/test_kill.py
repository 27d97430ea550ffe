"""kill -9 at any moment, again and again, on one queue.

What a worker asks and what was answered reaches the test through a pipe. No acked item is lost or delivered
again, each unacked delivery costs at most one redelivery, and no file is left over.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from persistcoll import Queue
from tests.crash.accounts import Account, drain, strangers
from tests.crash.workers import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]

PER_PRODUCER = 10_000_000


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


class Story:
    """The account of several processes that work on one queue and are killed."""

    def __init__(self) -> None:
        self.producers: dict[int, Account] = {}
        self.removed: set[int] = set()
        self.perhaps_removed: set[int] = set()
        self.hand: set[int] = set()  # delivered in this run, and not acked
        self.delivered = 0
        self.getting = False

    def add(self, said: str) -> None:
        verb, *rest = said.split()
        assert verb != "error", said
        if verb == "open":
            return
        if verb == "got":
            self._got(int(rest[0]))
        elif rest[0] == "get":
            self.getting = verb == "ask"
            if verb == "ok":
                self._got(int(rest[1]))
                self._gone(int(rest[1]))
        elif rest[0] == "drop":
            number = int(rest[1])
            self.perhaps_removed.add(number)
            if verb == "ok":
                self._gone(number)
        else:
            self.producers.setdefault(int(rest[1]) // PER_PRODUCER, Account()).add(said)

    def _got(self, number: int) -> None:
        assert number not in self.removed, f"{number} was acknowledged and is delivered"
        assert number not in self.hand, f"{number} is delivered twice in one life"
        self.hand.add(number)
        self.delivered += 1

    def _gone(self, number: int) -> None:
        self.removed.add(number)
        self.hand.discard(number)

    def consumer_died(self) -> None:
        """Expect the items in flight to be delivered again, once, to the next consumer."""
        self.hand.clear()

    def next_of(self, producer: int) -> int:
        account = self.producers.get(producer)
        return (
            max(account.order, default=producer * PER_PRODUCER) + 1
            if account
            else producer * PER_PRODUCER + 1
        )

    def judge(self, delivered: list[int], unanswered_gets: int) -> None:
        """Check what is delivered in the end.

        :param unanswered_gets: with autosave, the kills between asking for an item and its answer.
        """
        assert not self.removed & set(delivered), "acknowledged and back"
        assert len(set(delivered)) == len(delivered)
        missing = set()
        for producer, account in self.producers.items():
            mine = [number for number in delivered if number // PER_PRODUCER == producer]
            gone = self.removed | self.perhaps_removed
            missing |= account.put - gone - set(mine)
            account.dropped, account.perhaps_dropped = self.removed, gone | missing
            account.check(mine, power=True)
        assert len(missing) <= unanswered_gets, f"lost: {sorted(missing)}"


def live_and_die(server, story, rng, path, roles, lives, **options) -> int:
    """Run workers and kill them, again and again.

    :return: kills of a consumer while a get was unanswered.
    """
    unanswered = 0
    for _ in range(lives):
        workers = [
            server.start(
                role,
                path,
                story.next_of(producer),
                rng.getrandbits(32),
                role.rstrip("12"),
                quick=True,
                **options,
            )
            for producer, role in enumerate(roles, 1)
        ]
        server.hear_and_kill(workers, rng, 60, story.add, r"open$")
        unanswered += story.getting
        story.getting = False
        story.consumer_died()
    return unanswered


def end(path: Path, story: Story, unanswered: int = 0) -> None:
    with Queue(path, serializer="raw") as queue:
        assert queue.qsize() == len(list(queue.items()))
        delivered = drain(queue)
    story.judge(delivered, unanswered)
    assert not strangers(str(path)), strangers(str(path))
    assert story.delivered > 20
    assert len([name for name in os.listdir(path) if name[0] == "q" and name[1:].isdigit()]) <= 1


@pytest.mark.parametrize("durability", ["power", "process"])
def test_one_process_puts_and_gets(durability, server, rng, tmp_path):
    story = Story()
    path = str(tmp_path / "queue")
    live_and_die(server, story, rng, path, ["both"], 70, chunksize=5, durability=durability)
    end(tmp_path / "queue", story)


def test_autosave(server, rng, tmp_path):
    """At most once: only an item that was in get() when the process died may be lost."""
    story = Story()
    path = str(tmp_path / "queue")
    unanswered = live_and_die(server, story, rng, path, ["both"], 40, chunksize=4, autosave=True)
    end(tmp_path / "queue", story, unanswered)


def test_two_producers_and_a_consumer(server, rng, tmp_path):
    story = Story()
    path = str(tmp_path / "queue")
    live_and_die(server, story, rng, path, ["put1", "put2", "get"], 40, chunksize=7)
    end(tmp_path / "queue", story)
    assert set(story.producers) == {1, 2}
