"""Refusals of operations that first make ready what is due: the refusal is that one operation's alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from persistcoll import Empty, Full, PDict, SQLiteAckQueue, SQLiteQueue, StaleClaimError, StorageError
from persistcoll.sqlite import holding
from persistcoll.testing.children import in_forked_child
from tests.queues.waits import until, waiting

LEASE = 10.0


class Refusal(NamedTuple):
    queue: Any
    call: Callable[[], object]
    error: type[Exception]


def late_ack(open_file, clock) -> Refusal:
    queue = open_file(SQLiteAckQueue, lease=LEASE)
    queue.put("a")
    item = queue.get()
    clock.now += LEASE
    return Refusal(queue, lambda: queue.ack(item), StaleClaimError)


def put_when_full(open_file, clock) -> Refusal:
    queue = open_file(SQLiteAckQueue, maxsize=1)
    queue.put("a")
    queue.nack(queue.get(), delay=LEASE)
    queue.put("b")
    clock.now += LEASE
    return Refusal(queue, lambda: queue.put_nowait("c"), Full)


def get_after_a_death(open_file, clock) -> Refusal:
    """The dead holder has claimed nothing, so only its row is removed."""
    queue = open_file(SQLiteAckQueue)

    def work_and_die() -> None:
        other = SQLiteAckQueue(queue.path, durability="process")
        other.put("a")
        other.ack(other.get())
        os._exit(0)

    in_forked_child(work_and_die)
    queue.put("b")
    queue.get()
    queue._store._claims.holding._last_liveness_check -= 2 * holding._LIVENESS_INTERVAL
    return Refusal(queue, queue.get_nowait, Empty)


@pytest.fixture(
    params=[
        late_ack,
        put_when_full,
        pytest.param(
            get_after_a_death, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
        ),
    ],
    ids=lambda case: case.__name__,
)
def refusal(request, open_file, clock) -> Refusal:
    open_file.clock = clock
    made: Refusal = request.param(open_file, clock)
    return made


def test_a_transaction_goes_on_after_it(refusal):
    queue, call, error = refusal
    with PDict[str, int](queue.path, name="dict", durability="process") as d:
        with d.transaction():
            d["before"] = 1
            with pytest.raises(error):
                call()
            d["after"] = 2
        assert d == {"before": 1, "after": 2}
    assert queue.qsize() == len([*queue.items()])
    with pytest.raises(error):
        call()


def test_what_was_made_ready_before_it_cannot_be_undone_by_a_savepoint(refusal):
    """Otherwise the process would count what the database does not hold."""
    queue, call, error = refusal

    def roll_back() -> None:
        with queue.transaction() as connection:
            connection.execute("SAVEPOINT here")
            with pytest.raises(error):
                call()
            connection.execute("ROLLBACK TO here")

    with pytest.raises(StorageError, match="savepoint"):
        roll_back()
    assert queue.qsize() == len([*queue.items()])


def test_other_threads_whose_operations_share_its_write_do_not_notice(refusal, open_file):
    queue, call, error = refusal
    other = open_file(SQLiteQueue, name="other")
    database = queue._store._database
    with database._lock.mutex:
        database._is_writing = True
        puts = [waiting(lambda: other.put("first"))]
        until(lambda: database._combiner.has_leader)
        puts.append(waiting(lambda: other.put("second")))
        until(lambda: len(database._combiner._pending) == 1)
        refused = waiting(call)
        until(lambda: len(database._combiner._pending) == 2)
        database._is_writing = False
    for finish in puts:
        finish()
    with pytest.raises(error):
        refused()
    assert [*other.items()] == ["first", "second"]
