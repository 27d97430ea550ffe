"""The deliveries that an ack queue remembers, without a queue."""

from __future__ import annotations

import gc
import weakref

import pytest

from persistcoll import StaleClaimError
from persistcoll.engine.in_flight import InFlight, ThreadConsumer
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.records import Record
from persistcoll.queues.deliveries import Deliveries, Delivery
from tests.queues.waits import waiting


class Item:
    """An item that can be weakly referenced."""


def delivery(id, item, raw=None):
    return Delivery(Record(id, b"", 1.5), item, raw)


class Book(Deliveries):
    """Deliveries whose lookups return what they find, for the thread that asks."""

    def __init__(self, table):
        super().__init__(table)
        self.consumer = ThreadConsumer(InFlight())

    def add(self, deliveries, consumer=None, within=False):
        return super().add(deliveries, consumer or self.consumer.own, within)

    def found(self, item):
        into: list[Delivery] = []
        self.pop_item(item, self.consumer.own, into)
        return into[0] if into else None

    def found_by_id(self, id, time=None):
        into: list[Delivery] = []
        self.pop_id(id, into, time)
        return into[0] if into else None


@pytest.fixture
def book():
    return Book(MemoryRecordStore())


def test_an_object_is_found_by_identity_and_leaves_the_book(book):
    item, raw = [1], {"pqid": 1}
    book.add([delivery(1, item, raw=raw)])
    assert book.found([1]) is None
    assert book.found(raw).id == 1
    assert book.found(item) is None
    assert book.found_by_id(1) is None


def test_by_id_and_time(book):
    book.add([delivery(1, None)])
    assert book.found_by_id(1, 1.25) is None
    assert book.found_by_id(1, "1.5") is None
    assert book.found_by_id(1, 1.5).id == 1
    book.add([delivery(2, None)])
    assert book.found_by_id(2).id == 2


def test_nothing_is_kept_alive_longer_than_needed(book):
    item = Item()
    alive = weakref.ref(item)
    book.add([delivery(1, item)])
    found = book.found(item)
    book.settle([found], lambda ids: ids)
    del item, found
    gc.collect()
    assert alive() is None


def test_an_earlier_delivery_is_lost_when_a_later_one_is_expected(book):
    item = [1]
    book.add([delivery(1, item)])
    book.invalidate_previous(1)
    for _ in range(2):
        found = book.found(item)
        with pytest.raises(StaleClaimError):
            book.settle([found], lambda ids: pytest.fail("done"))
    book.invalidate_previous(1)


def test_a_later_delivery_that_was_added_before_an_earlier_one(book):
    """Between its claim and its entry another thread may be faster."""
    items = [1], [2]
    late, present = (delivery(1, item) for item in items)
    book.add([present])
    book.add([late])
    assert book.found(items[0]).stale
    assert not book.found_by_id(1).stale


def test_an_error_puts_it_back_in_front(book):
    for id in (1, 2):
        book.add([delivery(id, None)])
    found = book.found(None)

    def fail(ids):
        raise OSError(ids)

    with pytest.raises(OSError, match="1"):
        book.settle([found], fail)
    assert [book.found(None).id, book.found(None).id] == [1, 2]


def test_own_ones_go_before_older_ones_of_others(book):
    waiting(lambda: book.add([delivery(1, None)]))()
    book.add([delivery(2, None)])
    book.add([delivery(3, None)])
    assert [book.found(None).id for _ in range(3)] == [2, 3, 1]
    assert book.found(None) is None


def test_what_is_settled_is_left_alone(book):
    one = delivery(1, None)
    book.add([one])
    assert book.settle([one], lambda ids: ids) == [1]
    book.ack([one])
    book.nack([one], "too late")


def test_cleared(book):
    book.add([delivery(1, None)])
    book.clear()
    assert book.found(None) is None
    assert book.found_by_id(1) is None


def test_what_an_interrupted_caller_found_can_be_put_back(book):
    one, item = delivery(1, None), None
    book.add([one])
    book.found(item)
    for _ in range(2):
        book.put_back(one)
    assert [book.found(item), book.found(item)] == [one, None]
    book.put_back(one)
    book.invalidate_previous(1)  # the record was released, and another consumer claims it
    book.put_back(one)
    assert book.found_by_id(1) is None
    assert one.stale


def test_what_no_thread_got_is_forgotten(book):
    one = delivery(1, None)
    book.add([one])
    book.forget(one)
    assert book.found(None) is None
