"""What a queue with acknowledgements has delivered, found again by the object that it delivered.

The one book of what is in hand: ``ack`` and its relatives look an item up here, and what stands in a
thread's hand for ``task_done`` is the same :class:`Delivery`. So an item is settled once, whichever way,
and a delivery whose claim was lost settles nothing, however late it comes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.in_flight import Consumer
from persistcoll.engine.records import Record
from persistcoll.errors import ClaimError, StaleClaimError

__all__ = ["Deliveries", "Delivery"]

T = TypeVar("T")

# Lost deliveries whose settlement is still told from that of an item never delivered, or of the present one.
_REMEMBERED = 1000


class Delivery:
    """One item as it was given to somebody.

    :ivar raw: the raw form of the item, if that was given.
    :ivar consumer: the consumer that got it.
    :ivar lost: the item was delivered anew since.
    :ivar settled: it needs nothing any more.
    """

    __slots__ = ("attempts", "consumer", "id", "item", "lost", "raw", "settled", "time")

    def __init__(self, record: Record, item: Any, raw: dict[str, Any] | None) -> None:
        self.id = record.id
        self.time = record.time
        self.attempts = record.attempts
        self.item = item
        self.raw = raw
        self.consumer: Consumer | None = None
        self.lost = False
        self.settled = False

    def __lt__(self, other: Delivery) -> bool:
        """The older item, for who looks for the oldest one in any hand."""
        return self.id < other.id


class Deliveries:
    """The deliveries of one queue that are not settled. From any thread.

    :param table: where the items are claimed.
    """

    def __init__(self, table: RecordStore) -> None:
        self._table = table
        self.clear()

    def clear(self) -> None:
        """Forget all of them; after a fork, too, when a thread that is not there may hold the lock."""
        # Re-entrant: a signal handler may come in within any of its holders, and settle another item.
        self._mutex = threading.RLock()
        self._by_id: dict[int, Delivery] = {}
        # An object is kept alive by its deliveries, so no other one gets its identity meanwhile.
        self._by_identity: dict[int, Delivery | list[Delivery]] = {}
        self._lost: deque[Delivery] = deque()

    # Delivering.

    def expect(self, id: int) -> None:
        """Within ``take``: this record was ready, so an earlier delivery of it is lost."""
        if id in self._by_id:
            with self._mutex:
                delivery = self._by_id.pop(id, None)
                if delivery is not None:
                    self._lose(delivery)

    def _lose(self, delivery: Delivery) -> None:
        delivery.lost = True
        self._lost.append(delivery)

    def add(self, deliveries: Sequence[Delivery], consumer: Consumer) -> Sequence[Delivery]:
        """Enter what was claimed and is given to this consumer.

        :return: lost ones that are not remembered any longer.
        """
        with self._mutex:
            for delivery in deliveries:
                delivery.consumer = consumer
                other = self._by_id.setdefault(delivery.id, delivery)
                if other is not delivery:
                    self._choose(delivery, other)
                self._list(delivery)
            return self._forget() if len(self._lost) > _REMEMBERED else ()

    def _choose(self, delivery: Delivery, other: Delivery) -> None:
        """Of two of the same record the one that was claimed first is lost, however late it comes."""
        if other.attempts > delivery.attempts:
            self._lose(delivery)
        else:
            self._lose(other)
            self._by_id[delivery.id] = delivery

    def _forget(self) -> Sequence[Delivery]:
        forgotten = []
        while len(self._lost) > _REMEMBERED:
            forgotten.append(self._lost.popleft())
            self._unlist(forgotten[-1])
        return forgotten

    def _list(self, delivery: Delivery, first: bool = False) -> None:
        for thing in _objects(delivery):
            # Nearly always alone: a list for each would be a third of what this takes.
            listed = self._by_identity.setdefault(id(thing), delivery)
            if isinstance(listed, list):
                listed.insert(0 if first else len(listed), delivery)
            elif listed is not delivery:
                self._by_identity[id(thing)] = [delivery, listed] if first else [listed, delivery]

    def _unlist(self, delivery: Delivery) -> None:
        for thing in _objects(delivery):
            listed = self._by_identity.get(id(thing))
            if isinstance(listed, list) and delivery in listed:
                listed.remove(delivery)
            if listed is delivery or listed == []:
                self._by_identity.pop(id(thing), None)

    # Finding. What is found leaves the book, so that no other thread finds it; what is lost stays. It goes
    # into a list of the caller's in the same step, so that a caller that is interrupted can put it back.

    def pop_item(self, item: Any, consumer: Consumer, into: list[Delivery]) -> None:
        """The oldest delivery of this object: to this consumer, otherwise to any; if all were lost, a lost
        one.
        """
        with self._mutex:
            found = self._find(self._by_identity.get(id(item), ()), consumer)
            if found is not None:
                into.append(found)
                self._remove(found)

    def _find(self, listed: Delivery | Sequence[Delivery], consumer: Consumer) -> Delivery | None:
        if isinstance(listed, Delivery):
            return listed
        elsewhere = lost = None
        for delivery in listed:
            if delivery.lost:
                lost = lost or delivery
            elif delivery.consumer is consumer:
                return delivery
            else:
                elsewhere = elsewhere or delivery
        return elsewhere or lost

    def pop_id(self, id: int, into: list[Delivery], time: object = None) -> None:
        """The delivery of the record with this id, and put at this time if that is known."""
        with self._mutex:
            found = self._by_id.get(id)
            if found is not None and (time is None or found.time == time):
                into.append(found)
                self._remove(found)

    def _remove(self, delivery: Delivery) -> None:
        # Listed, and not lost, is what is here.
        if self._by_id.get(delivery.id) is delivery:
            self._by_id.pop(delivery.id, None)
            self._unlist(delivery)

    def put_back(self, delivery: Delivery) -> None:
        """It left the book, and was not settled as far as is known. Idempotent."""
        with self._mutex:
            if delivery.settled or delivery.lost:
                return
            if self._by_id.setdefault(delivery.id, delivery) is not delivery:
                self._lose(delivery)
            self._unlist(delivery)
            self._list(delivery, first=True)

    def forget(self, delivery: Delivery) -> None:
        """Nobody has got it after all."""
        with self._mutex:
            self._remove(delivery)

    # Settling.

    def settle(self, delivery: Delivery, verb: Callable[[int], T]) -> T:
        """``verb`` of the id of one that left the book; back in with it if that could not be done.

        A lost one is refused, now and when it comes again.

        :raise StaleClaimError: the claim was lost.
        :raise NotClaimedError: it was settled at the same time.
        """
        if delivery.lost:
            raise StaleClaimError(
                f"item {delivery.id} was delivered again since, because its lease ran out; its present holder"
                " settles it, and a longer lease= prevents that"
            )
        try:
            result = verb(delivery.id)
        except StaleClaimError:
            with self._mutex:
                self._lose(delivery)
                self._list(delivery)
            raise
        except ClaimError:
            raise
        except BaseException:
            self.put_back(delivery)
            raise
        delivery.settled = True
        return result

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """For whom a hand holds them; what was settled already is left alone."""
        for delivery in deliveries:
            self._settle_held(delivery, lambda id: self._table.ack((id,)))

    def nack(self, delivery: Delivery) -> None:
        """Likewise."""
        self._settle_held(delivery, self._table.nack)

    def _settle_held(self, delivery: Delivery, verb: Callable[[int], object]) -> None:
        if not delivery.settled:
            with self._mutex:
                self._remove(delivery)
            self.settle(delivery, verb)


def _objects(delivery: Delivery) -> tuple[Any, ...]:
    return (delivery.item,) if delivery.raw is None else (delivery.item, delivery.raw)
