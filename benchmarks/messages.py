"""Message queues in SQLite databases, one thread, surviving the death of the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice, repeat
from typing import Any

from benchmarks import sql_contenders
from benchmarks.contenders import BATCH, Marks, have, seconds_together
from benchmarks.model import Contender, Scenario, Sizes, ratio
from benchmarks.peers import BODY, Verbs, cycle, huey, litequeue
from benchmarks.sql_floors import lengthen_log
from persistcoll import MessageQueue

__all__ = ["messages", "messages_backlog", "messages_batches", "messages_threads"]

_PREFETCH = 32
_TOPICS = 10
# How many times the messages of one thread, by the number of threads.
_CONSUMED = {1: 1, 8: 2}


def _open(directory: str, **options: Any) -> MessageQueue[str]:
    return MessageQueue(os.path.join(directory, "queue"), serializer="json", durability="process", **options)


@contextmanager
def _ours(directory: str) -> Iterator[Verbs]:
    with _open(directory) as queue:
        yield Verbs(queue.put, queue.get, lambda message: message.ack())


@contextmanager
def _ack_queue(directory: str) -> Iterator[Verbs]:
    with sql_contenders.our_ack_queue(directory, serializer="json", durability="process") as queue:
        yield Verbs(queue.put, queue.get, queue.ack)


@contextmanager
def _sqqueue(directory: str) -> Iterator[Verbs]:
    from sqqueue import SQLiteQueue

    # It logs each operation, as JSON, to the standard error.
    logging.getLogger("sqqueue").setLevel(logging.ERROR)
    queue = SQLiteQueue(os.path.join(directory, "queue.db"))
    yield Verbs(queue.enqueue, queue.dequeue, lambda found: queue.complete(found.value[0]))


@contextmanager
def _persist_queue(directory: str) -> Iterator[Verbs]:
    with sql_contenders.persist_queue("SQLiteAckQueue", directory, "NORMAL") as queue:
        yield Verbs(queue.put, queue.get, queue.ack)


_PEERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "litequeue": ("litequeue", partial(litequeue, "NORMAL")),
    "sqqueue": ("sqqueue", _sqqueue),
    "huey SqliteStorage": ("huey", partial(huey, False)),
    "persist-queue SQLiteAckQueue": ("persistqueue", _persist_queue),
}


def messages(sizes: Sizes, root: str) -> Scenario:
    """Measure put, get and ack of a text of 100 bytes."""
    count = sizes.slow
    found = [
        Contender("ours", "process", partial(cycle, _ours, count)),
        Contender("our SQLiteAckQueue", "process", partial(cycle, _ack_queue, count)),
    ]
    phases = ("put", "get + ack")
    figures = []
    for name, (module, opened) in _PEERS.items():
        if have(module):
            found.append(Contender(name, "process", partial(cycle, opened, count)))
        least = {"sqqueue": 20.0, "litequeue": 1.0}.get(name)
        theirs, ours = ([f"{each}: {phase}" for phase in phases] for each in (name, "ours"))
        figures.append(ratio(f"put + get + ack: {name}'s / ours", theirs, ours, at_least=least))
    figures.append(
        ratio(
            "put + get + ack: ours / our SQLiteAckQueue",
            [f"ours: {phase}" for phase in phases],
            [f"our SQLiteAckQueue: {phase}" for phase in phases],
        )
    )
    return Scenario(
        name="messages",
        compared=(
            f"MessageQueue: {count:,} puts of a text of 100 bytes, then get and ack of each, one thread."
            " Beside litequeue (put, pop, done), sqqueue (enqueue, dequeue, complete), huey's SqliteStorage"
            " (enqueue, and dequeue, which removes: it has no ack) and persist-queue's SQLiteAckQueue, whose"
            " connections are set to NORMAL. What returned survives the death of the process."
        ),
        contenders=found,
        figures=figures,
        missing=[name for name, (module, _) in _PEERS.items() if not have(module)],
    )


def messages_batches(sizes: Sizes, root: str) -> Scenario:
    """Measure batches beside single messages."""
    count = sizes.slow // BATCH * BATCH or BATCH

    def together(at: str) -> Mapping[str, float]:
        with _open(at) as queue:
            marks = Marks()
            for _ in range(0, count, BATCH):
                queue.put_many([BODY] * BATCH)
            numbers = {"put_many": marks.lap(count)}
            consumed = queue.consume(prefetch=_PREFETCH)
            left = count
            while left:
                batch = list(islice(consumed, min(_PREFETCH, left)))
                queue.ack_many(batch)
                left -= len(batch)
            numbers["consume + ack_many"] = marks.lap(count)
            queue.put_many([BODY] * count)
            marks = Marks()
            for _ in range(0, count, BATCH):
                queue.ack_many(queue.get_many(BATCH))
            numbers["get_many + ack_many"] = marks.lap(count)
        return numbers

    return Scenario(
        name="messages_batches",
        compared=(
            f"MessageQueue, texts of 100 bytes: put_many of {BATCH}, consume(prefetch={_PREFETCH}) with"
            f" ack_many of {_PREFETCH}, and get_many with ack_many of {BATCH}, beside one message at a time."
        ),
        contenders=[
            Contender("singly", "process", partial(cycle, _ours, count)),
            Contender("together", "process", together),
        ],
        figures=[
            ratio(
                "get + ack / consume + ack_many",
                ["singly: get + ack"],
                ["together: consume + ack_many"],
                at_least=3.0,
            ),
            ratio("put / put_many", ["singly: put"], ["together: put_many"]),
            ratio(
                "get + ack / get_many + ack_many", ["singly: get + ack"], ["together: get_many + ack_many"]
            ),
        ],
    )


def messages_threads(sizes: Sizes, root: str) -> Scenario:
    """Measure get and ack by 1 and by 8 threads, surviving power cuts."""

    def consume(threads: int, each: int, at: str) -> Mapping[str, float]:
        path = os.path.join(at, "queue")
        with MessageQueue(path, serializer="json") as queue:
            lengthen_log(path)
            queue.put_many([BODY] * (threads * each))

            def work() -> None:
                for _ in repeat(None, each):
                    queue.get().ack()

            seconds = seconds_together([work] * threads)
            if queue.qsize():
                raise AssertionError(f"{queue.qsize()} messages are left")
        return {"get + ack": seconds * 1e6 / (threads * each)}

    def contender(threads: int, more: int) -> Contender:
        each = max(1, sizes.synced // 2 * more // threads)
        name = "1 thread" if threads == 1 else f"{threads} threads"
        return Contender(name, "power", partial(consume, threads, each))

    return Scenario(
        name="messages_threads",
        compared=(
            "MessageQueue: get and ack of a text of 100 bytes by 1 and by 8 threads; an ack waits until it is"
            " on the device, and a get waits for no device. The ratio is of rates. The write-ahead log is as"
            " long as it becomes before the clock starts."
        ),
        contenders=[contender(threads, more) for threads, more in _CONSUMED.items()],
        figures=[
            ratio(
                "rate with 8 threads / 1 thread",
                ["1 thread: get + ack"],
                ["8 threads: get + ack"],
                at_least=2.5,
            )
        ],
    )


def messages_backlog(sizes: Sizes, root: str) -> Scenario:
    """Measure put, get and ack beside few and many messages that are ready, delayed, dead and done."""
    small, large = sizes.small_backlog, sizes.large_table
    paths = {size: os.path.join(root, f"messages-{size}") for size in (small, large)}

    def opened(size: int) -> MessageQueue[str]:
        return _open(paths[size], keep_done=10**9, max_attempts=1, backoff=0)

    def prepare() -> Mapping[str, Any]:
        for size, path in paths.items():
            os.mkdir(path)
            with opened(size) as queue:
                part = size // 4
                for topic in range(_TOPICS):
                    bodies, options = [BODY] * (part // _TOPICS), {"topic": f"topic {topic}"}
                    for finish in ("ack", "fail"):
                        queue.put_many(bodies, **options)
                        while queue.qsize():
                            for message in queue.get_many(1_000):
                                getattr(message, finish)()
                for topic in range(_TOPICS):
                    bodies, options = [BODY] * (part // _TOPICS), {"topic": f"topic {topic}"}
                    queue.put_many(bodies, delay=10**6, **options)
                    queue.put_many(bodies, **options)
        return {}

    def cycle(size: int, at: str) -> Mapping[str, float]:
        count = sizes.slow
        with opened(size) as queue:
            marks = Marks()
            for index in range(count):
                queue.put(BODY, topic=f"topic {index % _TOPICS}")
            numbers = {"put": marks.lap(count)}
            for index in range(count):
                queue.get(f"topic {index % _TOPICS}").ack()
            numbers["get of a topic + ack"] = marks.lap(count)
            for index in range(count):
                queue.put(BODY, topic=f"topic {index % _TOPICS}")
            marks = Marks()
            for _ in range(count):
                queue.get().ack()
            numbers["get of any + ack"] = marks.lap(count)
        return numbers

    return Scenario(
        name="messages_backlog",
        compared=(
            f"MessageQueue with {large:,} messages beside ours with {small:,}: a quarter each ready, delayed,"
            f" dead and done, in {_TOPICS} topics. A cycle leaves as many ready messages as there were, and"
            " more done ones."
        ),
        contenders=[Contender(f"{size:,}", "process", partial(cycle, size)) for size in (small, large)],
        figures=[
            ratio(f"{phase}: large / small", [f"{large:,}: {phase}"], [f"{small:,}: {phase}"], at_most=1.3)
            for phase in ("put", "get of a topic + ack", "get of any + ack")
        ],
        prepare=prepare,
    )
