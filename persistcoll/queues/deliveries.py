"""What a queue with acks has delivered, found again by the object that was delivered.

``ack``, ``nack`` and ``ack_failed`` find an item here, and the claim that ``task_done`` settles is the same
:class:`Delivery`. So an item is settled once, whichever call settles it. A stale delivery, whose claim was
lost, settles nothing, however late the call comes.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.engine.contracts import QueueStore, RecordStore
from persistcoll.engine.in_flight import ClaimList, Consumer, IndexedClaimList
from persistcoll.engine.records import NACKED, Record
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import ClaimError, NotClaimedError, StaleClaimError
from persistcoll.queues.sql import RecordQueueCore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AckQueueCore", "Deliveries", "Delivery", "lost_of"]

T = TypeVar("T")

# How many stale deliveries are remembered. Settling one of these raises StaleClaimError. Settling an older
# one is like settling an item that was never delivered.
_MAX_STALE = 1000
# After how many calls within callers' transactions the store is asked which of their claims have ended.
_MANY_WITHIN = 1000
_serials = itertools.count()


class Delivery:
    """One item as it was given to a consumer.

    ``_mutex`` of its :class:`Deliveries` guards ``consumer`` and ``stale``. ``settled`` becomes true by one
    assignment without a lock, and false again if a caller's transaction is rolled back. ``settled_within``
    only becomes true.

    :ivar raw: the raw form of the item, if the consumer was given that.
    :ivar consumer: the consumer that got it.
    :ivar stale: the claim was lost, or the item was delivered again since.
    :ivar settled: it was settled, so nothing is left to do.
    :ivar settled_within: it was settled in the transaction of a caller's connection. Nothing tells whether
        that was committed, so the claim may be active. If the store says that it has ended, this was why.
    """

    __slots__ = ("consumer", "id", "item", "raw", "serial", "settled", "settled_within", "stale", "time")

    def __init__(self, record: Record, item: Any, raw: dict[str, Any] | None) -> None:
        self.serial = next(_serials)
        self.id = record.id
        self.time = record.time
        self.item = item
        self.raw = raw
        self.consumer: Consumer | None = None
        self.stale = False
        self.settled = False
        self.settled_within = False

    def __lt__(self, other: Delivery) -> bool:
        """Order deliveries by age, because the core searches for the oldest claim of any consumer."""
        return self.serial < other.serial


class Deliveries:
    """The deliveries of one queue that are not settled.

    Any thread may call any method. ``_mutex`` guards ``_by_id``, ``_by_identity``, ``_stale``, ``_within``
    and ``_most_within``.

    :param store: that in which the items are claimed.
    :param joins: whether that is joined to the transaction of a caller's connection.
    """

    def __init__(self, store: RecordStore, joins: bool = False) -> None:
        self._store = store
        self._joins = joins
        self.clear()

    def clear(self) -> None:
        """Forget all deliveries.

        It makes a new lock, because after a fork a thread that the child does not have may hold the old one.
        """
        # Re-entrant, because a signal handler may run within any of its holders and settle another item.
        self._mutex = threading.RLock()
        self._by_id: dict[int, Delivery] = {}
        # A delivery keeps its objects alive, so no other object gets the identity of one meanwhile.
        self._by_identity: dict[int, Delivery | list[Delivery]] = {}
        self._stale: deque[Delivery] = deque()
        # Claimed or settled in the transactions of callers' connections.
        self._within: set[Delivery] = set()
        self._most_within = _MANY_WITHIN

    # Delivering.

    def invalidate_previous(self, id: int) -> None:
        """Mark an earlier delivery of this record as stale, because the record is being claimed again."""
        if id in self._by_id:
            with self._mutex:
                delivery = self._by_id.pop(id, None)
                if delivery is not None:
                    self._reinstate_on_rollback(delivery)
                    self._mark_stale(delivery)

    def _reinstate_on_rollback(self, delivery: Delivery) -> None:
        """Have a delivery that is neither stale nor settled found again, if a transaction is rolled back."""
        if OPEN and (transaction := self._store.open_transaction()) is not None:
            transaction.on_rollback(partial(self._reinstate, delivery))

    def _reinstate(self, delivery: Delivery) -> None:
        with self._mutex:
            if delivery.stale:
                delivery.stale = False
                with suppress(ValueError):
                    self._stale.remove(delivery)
            delivery.settled = False
            self._by_id[delivery.id] = delivery
            self._unindex(delivery)
            self._index(delivery, first=True)

    def _mark_stale(self, delivery: Delivery) -> None:
        delivery.stale = True
        self._stale.append(delivery)

    def add(
        self, deliveries: Sequence[Delivery], consumer: Consumer, within: bool = False
    ) -> Sequence[Delivery]:
        """Enter deliveries of claimed items that this consumer is given.

        :param within: the claims are a part of the transaction of a caller's connection.
        :return: stale deliveries that are not remembered any longer.
        """
        with self._mutex:
            for delivery in deliveries:
                delivery.consumer = consumer
                other = self._by_id.setdefault(delivery.id, delivery)
                if other is not delivery:
                    self._keep_newer(delivery, other)
                self._index(delivery)
            if within or self._joins:
                self._within.update(deliveries)
            return self._forget() if len(self._stale) > _MAX_STALE else ()

    def _keep_newer(self, delivery: Delivery, other: Delivery) -> None:
        """Mark the older of two deliveries of one record as stale, in whichever order they are added."""
        if delivery < other:
            self._mark_stale(delivery)
        else:
            self._mark_stale(other)
            self._by_id[delivery.id] = delivery

    def _forget(self) -> Sequence[Delivery]:
        forgotten = []
        while len(self._stale) > _MAX_STALE:
            forgotten.append(self._stale.popleft())
            self._unindex(forgotten[-1])
        return forgotten

    def _index(self, delivery: Delivery, first: bool = False) -> None:
        for thing in _objects(delivery):
            # An object nearly always has one delivery. A list for each would take a third of the time of this
            # method.
            deliveries = self._by_identity.setdefault(id(thing), delivery)
            if isinstance(deliveries, list):
                deliveries.insert(0 if first else len(deliveries), delivery)
            elif deliveries is not delivery:
                self._by_identity[id(thing)] = [delivery, deliveries] if first else [deliveries, delivery]

    def _unindex(self, delivery: Delivery) -> None:
        for thing in _objects(delivery):
            deliveries = self._by_identity.get(id(thing))
            if isinstance(deliveries, list) and delivery in deliveries:
                deliveries.remove(delivery)
            if deliveries is delivery or deliveries == []:
                self._by_identity.pop(id(thing), None)

    # Finding. A delivery that is found is removed, so that no other thread finds it; a stale one stays. The
    # same step puts it into a list of the caller's, so that a caller that is interrupted can put it back.

    def pop_item(self, item: Any, consumer: Consumer, into: list[Delivery]) -> None:
        """Find the oldest delivery of this object.

        A delivery to this consumer is preferred to one to another consumer, and that to a stale one.

        :param into: the delivery is appended to this list.
        """
        with self._mutex:
            found = self._find(self._by_identity.get(id(item), ()), consumer)
            if found is not None:
                into.append(found)
                self._remove(found)

    def _find(self, deliveries: Delivery | Sequence[Delivery], consumer: Consumer) -> Delivery | None:
        if isinstance(deliveries, Delivery):
            return deliveries
        elsewhere = stale = None
        for delivery in deliveries:
            if delivery.stale:
                stale = stale or delivery
            elif delivery.consumer is consumer:
                return delivery
            else:
                elsewhere = elsewhere or delivery
        return elsewhere or stale

    def pop_id(self, id: int, into: list[Delivery], time: object = None) -> None:
        """Find the delivery of the record with this id.

        :param into: the delivery is appended to this list.
        :param time: when the record was put; ``None`` if the caller does not know it.
        """
        with self._mutex:
            found = self._by_id.get(id)
            if found is not None and (time is None or found.time == time):
                into.append(found)
                self._remove(found)

    def _remove(self, delivery: Delivery) -> None:
        # Each delivery in `_by_id` is indexed, and none of them is stale.
        if self._by_id.get(delivery.id) is delivery:
            self._by_id.pop(delivery.id, None)
            self._unindex(delivery)

    def put_back(self, delivery: Delivery) -> None:
        """Add a delivery again that was found and, as far as is known, not settled. Idempotent."""
        with self._mutex:
            if delivery.settled or delivery.stale:
                return
            if self._by_id.setdefault(delivery.id, delivery) is not delivery:
                self._mark_stale(delivery)
            self._unindex(delivery)
            self._index(delivery, first=True)

    def put_all_back(self, deliveries: Sequence[Delivery], lost: Sequence[Delivery] = ()) -> None:
        """Add deliveries again, as :meth:`put_back` does, but not those that are lost."""
        left_out = set(lost)
        # The first one comes to the front last.
        for delivery in reversed(deliveries):
            if delivery not in left_out:
                self.put_back(delivery)

    def forget(self, delivery: Delivery) -> None:
        """Remove a delivery that no consumer got after all."""
        with self._mutex:
            self._remove(delivery)

    # Settling.

    def settle(
        self, deliveries: Sequence[Delivery], verb: Callable[[list[int]], T], within: bool = False
    ) -> T:
        """Call ``verb`` with the ids of deliveries that were found; those it does not settle are added again.

        A stale delivery is refused each time, and with it all others. A claim that was lost, or that another
        thread settled at the same time, is named by ``ids`` of the error, and its delivery is not found any
        more.

        :param within: ``verb`` is a part of the transaction of a caller's connection. What it settles is
            added again, too, because that may be rolled back.
        :raise StaleClaimError: claims were lost.
        :raise NotClaimedError: another thread settled one at the same time; or it was settled before, in the
            transaction of a caller's connection.
        """
        within = within or self._joins
        stale = [delivery for delivery in deliveries if delivery.stale]
        if stale:
            self.put_all_back(deliveries, stale)
            raise StaleClaimError(
                f"item {stale[0].id} was delivered again since, because its lease ran out; its present holder"
                " settles it, and a longer lease= prevents that",
                [delivery.id for delivery in stale],
            )
        for delivery in deliveries:
            self._reinstate_on_rollback(delivery)
        try:
            result = verb([delivery.id for delivery in deliveries])
        except ClaimError as error:
            lost = lost_of(deliveries, error)
            if ended := [delivery for delivery in lost if delivery.settled_within]:
                for delivery in ended:
                    delivery.settled = not within  # the transaction may be the one that has settled it
                self.put_all_back(deliveries, ended)
                raise NotClaimedError("it was settled before", [each.id for each in ended]) from error
            if isinstance(error, StaleClaimError):
                with self._mutex:
                    for delivery in lost:
                        self._mark_stale(delivery)
                        self._index(delivery)
            self.put_all_back(deliveries, lost)
            raise
        except BaseException:
            self.put_all_back(deliveries)
            raise
        for delivery in deliveries:
            if within:
                delivery.settled_within = True
            else:
                delivery.settled = True
        if within:
            self.put_all_back(deliveries)
            with self._mutex:
                self._within.update(deliveries)
        return result

    def forget_ended(self, ended: Callable[[set[int], set[int]], set[int]]) -> None:
        """Forget what callers' transactions have settled, now and then: nothing tells that they committed.

        :param ended: returns the ids of the claims that have ended. Its arguments are the ids of those that
            transactions have settled, and of those that they have only claimed.
        """
        if len(self._within) < self._most_within:
            return
        with self._mutex:
            self._within = {each for each in self._within if not (each.settled or each.stale)}
            within = list(self._within)
        gone = ended(
            {each.id for each in within if each.settled_within},
            {each.id for each in within if not each.settled_within},
        )
        with self._mutex:
            for delivery in within:
                if delivery.id in gone:
                    self._within.discard(delivery)
                    self._remove(delivery)
            self._most_within = len(self._within) + _MANY_WITHIN

    def ack(self, deliveries: Sequence[Delivery], joined: RecordStore | None = None) -> None:
        """Ack claims of a consumer in one step, except those that are settled already.

        :param joined: the store for that, if it is joined to the transaction of a caller's connection.
        """
        self._settle_held(deliveries, (joined or self._store).ack, joined is not None)

    def nack(self, deliveries: Sequence[Delivery], reason: str) -> None:
        """Nack claims of a consumer in one step, except those that are settled already."""
        self._settle_held(deliveries, partial(self._store.nack_many, reason=reason), False)

    def _settle_held(
        self, deliveries: Sequence[Delivery], verb: Callable[[list[int]], object], within: bool
    ) -> None:
        held = [delivery for delivery in deliveries if not delivery.settled]
        while held:
            with self._mutex:
                for delivery in held:
                    self._remove(delivery)
            try:
                self.settle(held, verb, within=within)
                return
            except NotClaimedError as error:
                # What a caller's transaction has settled is settled, unless that was rolled back.
                before = {each for each in lost_of(held, error) if each.settled_within}
                if not before:
                    raise
                held = [each for each in held if each not in before]


def lost_of(deliveries: Sequence[Delivery], error: ClaimError) -> Sequence[Delivery]:
    """Return those of the deliveries that could not be settled, as the error says; at least one."""
    ids = set(error.ids)
    lost = [delivery for delivery in deliveries if delivery.id in ids]
    return lost or deliveries


def _objects(delivery: Delivery) -> tuple[Any, ...]:
    return (delivery.item,) if delivery.raw is None else (delivery.item, delivery.raw)


class AckQueueCore(RecordQueueCore):
    """The core of a queue whose claims are :class:`Delivery` objects.

    The :class:`Deliveries` guard themselves.
    """

    _hands_over_as_is = False

    def __init__(self, store: RecordStore, maxsize: int, payload_only: bool, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        self._is_joined = False
        super().__init__(store, maxsize, False, payload_only)

    def joined(self, connection: Any) -> Self:
        """Return a core whose calls are part of the transaction that the caller has open on ``connection``.

        It changes nothing in this core. An item that it gets is claimed, and found among the deliveries of
        this core; but no consumer holds it.
        """
        core = super().joined(connection)
        core.autosave, core._is_joined = False, True
        core._ack = partial(core._deliveries.ack, joined=core.store)
        return core

    def _bind(self, store: QueueStore) -> None:
        super()._bind(store)
        self._ack = self._deliveries.ack

    def _nack(self, tokens: Sequence[Delivery], reason: str | None) -> None:
        self._deliveries.nack(tokens, reason or NACKED)

    def _id_of(self, token: Delivery) -> int:
        return token.id

    def _new_claim_list(self) -> ClaimList:
        return IndexedClaimList()

    def _hand_over(self, items: list[Delivery], consumer: Consumer) -> list[Any]:
        for forgotten in self._deliveries.add(items, consumer, self._is_joined):
            self.in_flight.forget(forgotten)
        return [each.item if each.raw is None else each.raw for each in items]

    def _take_back(self, token: Delivery) -> None:
        self._deliveries.forget(token)
