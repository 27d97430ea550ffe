"""How many trips to the server each operation takes: a trip costs as much as a statement, or more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest

from persistcoll import Full, MessageQueue, PDict
from persistcoll.servers.address import POSTGRESQL

Made = dict[str, tuple[str, Callable[[Any], object], int, int]]
"""The class, a call, and the trips to PostgreSQL and to MySQL."""

QUEUES: Made = {
    "put": ("Queue", lambda queue: queue.put("x"), 1, 1),
    "put_many": ("Queue", lambda queue: queue.put_many("xyz"), 2, 2),
    "get": ("Queue", lambda queue: queue.get(), 2, 2),
    "get_many": ("Queue", lambda queue: queue.get_many(3), 2, 2),
    "empty": ("Queue", lambda queue: queue.empty(), 1, 1),
    "qsize": ("Queue", lambda queue: queue.qsize(), 2, 2),
    "put of what is unique": ("UniqueQueue", lambda queue: queue.put(queue.qsize()), 4, 4),
    "claim": ("AckQueue", lambda queue: queue.get(), 1, 2),
    "claim of several": ("AckQueue", lambda queue: queue.get_many(3), 1, 2),
    "claim and ack": ("AckQueue", lambda queue: (queue.get(), queue.task_done()), 2, 3),
    "claim and ack of several": ("AckQueue", lambda queue: queue.ack_many(queue.get_many(3)), 3, 4),
    "claim and nack": ("AckQueue", lambda queue: queue.nack(queue.get()), 2, 3),
}


@pytest.mark.parametrize("name", QUEUES)
def test_the_trips_of_a_queue(place, open_queue, trips, name):
    which, call, on_postgres, on_mysql = QUEUES[name]
    queue = open_queue(which)
    queue.put_many(f"{number}" for number in range(40))
    for _ in range(3):  # the first makes the holder, and the second prepares statements
        call(queue)
    trips.clear()
    call(queue)
    assert len(trips) == (on_postgres if place.kind == POSTGRESQL else on_mysql), trips


# The first has credits, the second is so small that it grants none, and the third is full.
BOUNDED: dict[str, tuple[str, int, Callable[[Any], object], int]] = {
    "put by a credit": ("Queue", 1000, lambda queue: queue.put("x"), 1),
    "put_many by credits": ("Queue", 1000, lambda queue: queue.put_many("xyz"), 2),
    "put of what is unique by a credit": ("UniqueQueue", 1000, lambda queue: queue.put(str(uuid4())), 2),
    "put where little room is left": ("Queue", 44, lambda queue: queue.put("x"), 2),
    "put of what is unique where little room is left": (
        "UniqueQueue", 44, lambda queue: queue.put(str(uuid4())), 2,
    ),
    "put where no room is left": ("Queue", 40, lambda queue: suppressed(Full, queue.put_nowait, "x"), 2),
}  # fmt: skip


def suppressed(error: type[Exception], call: Callable[..., object], *arguments: object) -> None:
    with suppress(error):
        call(*arguments)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_trips_of_a_queue_with_a_bound(open_queue, trips, name):
    which, maxsize, call, most = BOUNDED[name]
    queue = open_queue(which, maxsize=maxsize)
    queue.put_many(f"{number}" for number in range(40))
    for _ in range(3):
        call(queue)
    trips.clear()
    call(queue)
    assert len(trips) == most, trips


DICTS: dict[str, tuple[Callable[[Any], object], int]] = {
    "set": (lambda pairs: pairs.__setitem__("a", 1), 2),
    "get": (lambda pairs: pairs["a"], 1),
    "incr": (lambda pairs: pairs.incr("n"), 2),
    "set_many": (lambda pairs: pairs.set_many({"a": 1, "b": 2}), 2),
    "pop": (lambda pairs: pairs.pop("b", None), 2),
}


@pytest.mark.parametrize("name", DICTS)
def test_the_trips_of_a_dict(place, trips, request, name):
    call, most = DICTS[name]
    with PDict(place.where["url"], name=request.node.name, schema=place.schema) as pairs:
        pairs["a"] = 0
        for _ in range(3):
            call(pairs)
        trips.clear()
        call(pairs)
        assert len(trips) == most, trips


MESSAGES: dict[str, tuple[Callable[[Any], object], int, int]] = {
    "put": (lambda queue: queue.put("x"), 1, 1),
    "put_many": (lambda queue: queue.put_many("xyz"), 2, 2),
    "put with a key": (lambda queue: queue.put("x", key=str(queue.stats().puts)), 6, 6),
    "put into a group": (lambda queue: queue.put("x", group="g"), 3, 3),
    "get": (lambda queue: queue.get(), 1, 2),
    "get of a topic": (lambda queue: queue.get("default"), 1, 2),
    "get_many": (lambda queue: queue.get_many(3), 1, 2),
    "get and ack": (lambda queue: queue.get().ack(), 2, 3),
    "get and nack": (lambda queue: queue.get().nack(), 3, 4),
    "get and ack of several": (lambda queue: queue.ack_many(queue.get_many(3)), 3, 4),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_trips_of_a_message_queue(place, trips, request, name):
    call, on_postgres, on_mysql = MESSAGES[name]
    with MessageQueue(place.where["url"], name=request.node.name, schema=place.schema) as queue:
        queue.put_many(f"{number}" for number in range(40))
        for _ in range(3):
            call(queue)
        trips.clear()
        call(queue)
        assert len(trips) == (on_postgres if place.kind == POSTGRESQL else on_mysql), trips


def test_a_statement_runs_several_times_in_one_trip(place, opened):
    store = opened()

    def add(session):
        made = [session.defer("SELECT %(x)s + 1", x=number) for number in range(5)]
        session.flush()
        return [each.result.rows[0][0] for each in made]

    for _ in range(2):
        assert store._server.transact(add) == [1, 2, 3, 4, 5]
