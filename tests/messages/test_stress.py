"""Many threads with everything at once: no message is lost, and each is finished once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from persistcoll import Backoff, Empty, MessageQueue, OutgoingMessage, ShutDown, StaleClaimError
from persistcoll.engine.memory.message_store import MemoryMessageState
from tests.queues.waits import waiting

TOPICS = ["a", "b", "c"]


class Run:
    """Producers, consumers and a meddler over two objects of one queue, until every message is finished."""

    def __init__(self, queues: list[MessageQueue[Any]], seed: str, count: int) -> None:
        self.queues = queues
        self.seed = seed
        self.count = count
        self.finished: Counter[int] = Counter()
        self.put: set[int] = set()
        self.errors: list[BaseException] = []
        self.mutex = threading.Lock()
        self.order: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        self.stop = threading.Event()

    def guarded(self, work: Any, number: int) -> None:
        try:
            work(self.queues[number % 2], random.Random(f"{self.seed} {work.__name__} {number}"), number)
        except ShutDown:
            pass
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()

    def produce(self, queue: MessageQueue[Any], rng: random.Random, number: int) -> None:
        for index in range(self.count):
            body = number * 1_000_000 + index
            topic = rng.choice(TOPICS)
            delay = rng.choice([0, 0, 0.002])
            how = rng.randrange(4)
            if how == 0:
                ids = queue.put_many([OutgoingMessage(body, topic, delay=delay)])
            elif how == 1:
                ids = [self.put_in_a_transaction(queue, body, topic, rng)]
            else:
                ids = [
                    queue.put(body, topic=topic, group="g" if how == 2 else None, priority=rng.randrange(3))
                ]
            assert None not in ids
            with self.mutex:
                self.put.add(body)

    def put_in_a_transaction(
        self, queue: MessageQueue[Any], body: int, topic: str, rng: random.Random
    ) -> int | None:
        try:
            with queue.transaction():
                queue.put(body, topic=topic)
                if rng.random() < 0.3:
                    raise LookupError
        except LookupError:
            pass
        else:
            return 0
        return queue.put(body, topic=topic)

    def finish(self, message: Any) -> None:
        with self.mutex:
            self.finished[message.body] += 1

    def work_on(self, message: Any, rng: random.Random) -> None:
        how = rng.randrange(10)
        try:
            if how == 0:
                message.nack(rng.choice([0, 0.001]), "later")
            elif how == 1:
                message.release()
            elif how == 2:
                message.extend(rng.choice([0.5, 30]))
                message.ack()
                self.finish(message)
            else:
                message.ack()
                self.finish(message)
        except StaleClaimError:
            pass

    def consume(self, queue: MessageQueue[Any], rng: random.Random, number: int) -> None:
        topics = rng.choice([None, "a", ["a", "b"], ["b", "c"], "c"])
        while not queue.is_shutdown:
            iteration = queue.consume(topics, prefetch=rng.choice([1, 2, 5]))
            for message in iteration:
                self.work_on(message, rng)
                if rng.random() < 0.05:
                    break
            iteration.close()

    def get(self, queue: MessageQueue[Any], rng: random.Random, number: int) -> None:
        while True:
            try:
                topic, linger = rng.choice([None, *TOPICS]), rng.choice([0.0, 0.0, 0.005])
                for message in queue.get_many(rng.choice([1, 3]), topic, timeout=0.005, linger=linger):
                    self.work_on(message, rng)
            except Empty:
                pass

    def meddle(self, queue: MessageQueue[Any], rng: random.Random, number: int) -> None:
        pause = threading.Event()
        while not queue.is_shutdown:
            topic = rng.choice(TOPICS)
            queue.pause(topic)
            pause.wait(0.001)
            queue.resume(topic)
            queue.limit(topic, 5000, burst=5)
            pause.wait(0.001)
            queue.limit(topic, None)
            lock = queue.lock_topic(topic)
            pause.wait(0.001)
            if lock is not None:
                lock.release()
            queue.recover()

    def run(self) -> None:
        producers = [
            threading.Thread(target=self.guarded, args=(self.produce, number)) for number in range(3)
        ]
        others = [
            threading.Thread(target=self.guarded, args=(work, number))
            for work, count in ((self.consume, 4), (self.get, 2), (self.meddle, 1))
            for number in range(count)
        ]
        for thread in (*producers, *others):
            thread.start()
        for thread in producers:
            thread.join()
        if not self.stop.is_set():
            self.queues[0].join()
        for queue in self.queues:
            queue.shutdown()
        for thread in others:
            thread.join()
        if self.errors:
            raise self.errors[0]
        assert self.finished.keys() == self.put
        assert set(self.finished.values()) <= {1}
        assert self.queues[0].stats().dead == 0


def run(states: Any, tmp_path: Any, seed: str, count: int) -> None:
    states.clear()
    path = str(tmp_path / "q.db")
    states[(path, "messages")] = MemoryMessageState(time.monotonic)
    backoff = Backoff(base=0.001, limit=0.002)
    with (
        MessageQueue[Any](path, serializer="json", max_attempts=None, backoff=backoff) as one,
        MessageQueue[Any](path, serializer="json", max_attempts=None, backoff=backoff) as two,
    ):
        Run([one, two], seed, count).run()


@pytest.mark.timeout(60)
def test_everything_at_once_for_a_moment(states, tmp_path, seed):
    run(states, tmp_path, str(seed), 15)


@pytest.mark.long
@pytest.mark.timeout(250)
def test_everything_at_once(states, tmp_path, seed):
    for number in range(20):
        run(states, tmp_path, f"{seed} {number}", 60)


@pytest.fixture
def quiet(states, tmp_path) -> Iterator[MessageQueue[Any]]:
    """Open a queue whose waiters poll in vain, so that only wake-ups wake them."""
    with MessageQueue[Any](tmp_path / "q.db", serializer="json", backoff=None, max_attempts=None) as queue:
        queue._store.is_quiet = True  # type: ignore[attr-defined]
        yield queue


@pytest.mark.long
@pytest.mark.timeout(250)
def test_waiters_that_only_wake_ups_wake(quiet, seed):
    """They get all of what is put, released and nacked."""
    done: list[Any] = []

    def consume(topics: Any, rng: random.Random) -> None:
        for message in quiet.consume(topics, prefetch=rng.choice([1, 3])):
            how = rng.randrange(5)
            if how == 0:
                message.nack()
            elif how == 1:
                message.release()
            else:
                message.ack()
                done.append(message.body)

    wanted = [None, "a", ["a", "b"], "c", ["b", "c"], None, "a", "c"]
    threads = [
        threading.Thread(target=consume, args=(topics, random.Random(f"{seed} {number}")))
        for number, topics in enumerate(wanted)
    ]
    for thread in threads:
        thread.start()
    rng = random.Random(seed)
    for turn in range(40):
        for number in range(50):
            quiet.put(turn * 50 + number, topic=rng.choice("aaabbc"), group=rng.choice([None, "g"]))
        quiet.join()
    quiet.shutdown()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(2000))


@pytest.mark.long
@pytest.mark.timeout(250)
def test_wake_ups_that_come_with_timeouts(quiet, seed):
    """Of two waiters one leaves when a message comes: the other one gets it, unless the first one does."""
    rng = random.Random(seed)
    for _ in range(500):
        short, long = (
            waiting(lambda timeout=timeout: quiet.get(timeout=timeout).body)
            for timeout in (rng.choice([0, 0.0001, 0.0005, 0.001]), 20)
        )
        threading.Event().wait(rng.random() * 0.001)
        quiet.put("x")
        try:
            short()
        except Empty:
            pass
        else:
            quiet.put("y")
        assert long() in ("x", "y")
