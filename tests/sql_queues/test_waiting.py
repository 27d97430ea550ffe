"""Waits and claims over the model alone."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest

from persistcoll import Empty
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import Select
from persistcoll.engine.in_flight import IndexedClaimList
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Entry
from persistcoll.queues.sql import RecordQueueCore
from tests.queues.waits import until, waiting


def pair(record):
    return record.id, record.payload


class Watched(MemoryRecordStore):
    """A store that calls ``looks`` after the record is claimed and before the consumer has it."""

    looks = staticmethod(lambda: None)

    def claim(self, *arguments, **options):
        return self._looked_at(super().claim(*arguments, **options))

    def claim_many(self, *arguments, **options):
        return self._looked_at(super().claim_many(*arguments, **options))

    def pop(self, *arguments, **options):
        return self._looked_at(super().pop(*arguments, **options))

    def pop_many(self, *arguments, **options):
        return self._looked_at(super().pop_many(*arguments, **options))

    def _looked_at(self, taken):
        self.looks()
        return taken


@pytest.mark.parametrize("autosave", [False, True])
@pytest.mark.parametrize("call", ["get", "get many", "choose", "wait"])
def test_an_item_on_its_way_is_unfinished(autosave, call):
    table = Watched()
    blocking = BlockingQueue(QueueCore(table, 0, autosave))
    seen = []
    table.looks = lambda: seen.append(blocking.core.unfinished())
    if call == "wait":
        finish = waiting(lambda: blocking.get(pair, True, 10))
        until(lambda: blocking.core.not_empty.listeners)
    blocking.put(b"1", False, None)
    if call == "get":
        blocking.get(pair, False, None)
    elif call == "get many":
        blocking.get_many(5, pair, False, None)
    elif call == "choose":
        blocking.get(pair, False, None, Select(1))
    else:
        finish()
    assert seen
    assert min(seen) >= 1
    assert blocking.core.unfinished() == 1
    (blocking.task_done if call != "wait" or autosave else waiting(blocking.task_done))()
    assert blocking.core.unfinished() == 0


def test_a_join_ends_when_a_get_finds_nothing():
    """A get that finds nothing counts for a short time as an item on its way."""
    table = Watched()
    blocking = BlockingQueue(QueueCore(table, 0, True))
    joining = []

    def look(*arguments, **options):
        joining.append(waiting(blocking.join))
        until(lambda: blocking.core.all_done._wakes)
        raise Empty

    table.pop = look  # type: ignore[method-assign]
    with pytest.raises(Empty):
        blocking.get(pair, False, None)
    joining[0]()
    del table.pop
    for call in (lambda: blocking.get(pair, False, None), lambda: blocking.get_many(9, pair, False, None)):
        with pytest.raises(Empty):
            call()
        blocking.join()
    with pytest.raises(ValueError, match="too many"):
        blocking.task_done()


def test_what_is_put_in_another_way():
    table = MemoryRecordStore()
    blocking = BlockingQueue(RecordQueueCore(table, 1, False, payload_only=False))
    assert blocking.put(Entry(b"1"), False, None) == 1
    finish = waiting(lambda: blocking.put_many([Entry(b"2")], True, 10))
    until(lambda: blocking.core.not_full._wakes)
    assert blocking.get(pair, False, None) == b"1"
    assert finish() == [2]


@pytest.mark.parametrize("make", [deque, IndexedClaimList])
def test_what_a_claim_list_is(make):
    hand = make()
    for call in (hand.popleft, lambda: hand[0]):
        with pytest.raises(IndexError):
            call()
    hand.append(1)
    hand.extend([2, 3, 4])
    assert (hand[0], len(hand), bool(hand)) == (1, 4, True)
    hand.remove(3)
    with pytest.raises(ValueError):  # noqa: PT011 - the deque's own words
        hand.remove(3)
    assert hand.popleft() == 1
    hand.appendleft(1)
    assert [hand.popleft() for _ in range(3)] == [1, 2, 4]
    assert not hand


def test_what_is_in_the_middle_of_a_claim_list_costs_no_more():
    """A hundred times as many claims, newest first, cost a hundred times the time, not ten thousand times."""
    hand = IndexedClaimList()
    hand.extend(range(100_000))
    began = time.process_time()
    for id in reversed(range(100_000)):
        hand.remove(id)
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize("hand", [deque, IndexedClaimList])
def test_a_claim_list_that_another_thread_empties(hand):
    """Another thread acks between the check of the own claims and the removal of the oldest."""

    class Emptied(hand):  # type: ignore[misc, valid-type]
        def popleft(self):
            blocking.core.in_flight.forget(self[0])
            return super().popleft()

    class Core(QueueCore):
        def _new_claim_list(self):
            return Emptied()

    blocking = BlockingQueue(Core(MemoryRecordStore(), 0, False))
    blocking.put_many([b"1", b"2"], False, None)
    blocking.get(pair, False, None)
    with pytest.raises(ValueError, match="too many"):
        blocking.task_done()


def test_a_choice_is_taken_at_once_where_it_can_be():
    table = MemoryRecordStore()
    blocking = BlockingQueue(QueueCore(table, 0, False))
    blocking.put_many([b"1", b"2"], False, None)
    got = blocking.get(pair, True, None, Select(2))
    assert got == b"2"
    with pytest.raises(Empty):
        blocking.get(pair, True, 0.01, Select(2))
    assert not blocking.core.not_empty.listeners
    assert not blocking.core.any_put.listeners


def test_many_threads_with_an_id_and_many_without(no_polling):
    """Each thread gets something, though there is no polling."""
    table = MemoryRecordStore()
    blocking = BlockingQueue(QueueCore(table, 0, True))
    count = 40
    stop = threading.Event()

    def choose(id):
        return blocking.get(pair, True, 60, Select(id))

    # The threads that ask for an id want the last records, so each record has one thread for it.
    choosers = [waiting(lambda id=id: choose(id)) for id in range(count + 1, 2 * count + 1)]
    others = [waiting(lambda: blocking.get(pair, True, 60)) for _ in range(count)]
    until(lambda: len(blocking.core.any_put._wakes) == count and len(blocking.core.not_empty._wakes) == count)
    putters = [waiting(lambda: [blocking.put(b"", False, None) for _ in range(count // 4)]) for _ in range(4)]
    for each in [*putters, *others]:
        each()
    blocking.put_many([b""] * count, False, None)
    for each in choosers:
        each()
    assert blocking.core.qsize() == 0
    stop.set()
