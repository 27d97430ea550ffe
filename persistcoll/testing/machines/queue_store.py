"""The state machine of a queue store. See :mod:`persistcoll.testing.machines`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import QueueStore
from persistcoll.engine.memory.queue_store import MemoryQueueState, MemoryQueueStore
from persistcoll.engine.memory.rows import UNFINISHED
from persistcoll.engine.records import Record
from persistcoll.errors import Empty, NotClaimedError
from persistcoll.testing._hypothesis import ExpectedError, outcome, st, stateful
from persistcoll.testing.children import check
from persistcoll.testing.laws.queue_store_harness import StoreFactory

__all__ = ["StoreMachine"]

_payloads = st.binary(max_size=40)
_capacities = st.sampled_from([0, 1, 2, 3, 5])
_picks = st.integers(0, 7)


class StoreMachine(stateful.RuleBasedStateMachine):
    """A queue store compared with a ``MemoryQueueStore``, for all that the contract has."""

    def __init__(self) -> None:
        super().__init__()
        self.factory = self.stores()
        self.store: QueueStore = self.factory.open("a")
        self.state = MemoryQueueState()
        self.model = MemoryQueueStore(self.state)
        # Ids grow in both, but the tested store may leave some out.
        self.ids: dict[int, int] = {}
        self.claimed: list[int] = []

    def stores(self) -> StoreFactory:
        """Return a factory for one run; to be overridden. :meth:`teardown` may clean up after it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close the store at the end of a run."""
        self.store.close()

    def _added(self, ids: Any, model_ids: Any) -> None:
        if isinstance(ids, type) or isinstance(model_ids, type):
            check(ids is model_ids, f"{ids}, and the model says {model_ids}")
            return
        pairs = list(zip(ids, model_ids, strict=True))
        newest = max(self.ids, default=0)
        check(all(id > newest for id in ids), f"ids {ids} after {newest}")
        self.ids.update(pairs)

    @stateful.rule(payload=_payloads, capacity=_capacities)
    def append(self, payload: bytes, capacity: int) -> None:
        """Append one record, with a capacity or without."""
        self._added(
            outcome(lambda: [self.store.append(payload, capacity)]),
            outcome(lambda: [self.model.append(payload, capacity)]),
        )

    @stateful.rule(payloads=st.lists(_payloads, max_size=6), capacity=_capacities)
    def append_many(self, payloads: list[bytes], capacity: int) -> None:
        """Append several records."""
        self._added(
            outcome(lambda: self.store.append_many(payloads, capacity)),
            outcome(lambda: self.model.append_many(payloads, capacity)),
        )

    def _seen(self, record: Record) -> tuple[int, bytes]:
        return self.ids[record.id], record.payload

    def _verb(self, store: QueueStore, pop: bool) -> Callable[..., Any]:
        return store.pop if pop else store.claim

    def _verb_many(self, store: QueueStore, pop: bool) -> Callable[..., Any]:
        return store.pop_many if pop else store.claim_many

    @stateful.rule(pop=st.booleans())
    def claim(self, pop: bool) -> None:
        """Claim or pop one record."""
        real: list[int] = []

        def decode(record: Record) -> tuple[int, bytes]:
            real.append(record.id)
            return self._seen(record)

        got = outcome(lambda: self._verb(self.store, pop)(decode))
        wanted = outcome(lambda: self._verb(self.model, pop)(lambda record: record[:2]))
        check(got == wanted, f"took {got}, the model {wanted}")
        check(len(real) <= 1, "claim() called decode twice")
        self.claimed += [] if pop else real

    @stateful.rule(limit=st.integers(1, 7), pop=st.booleans(), bad=st.integers(0, 5))
    def claim_many(self, limit: int, pop: bool, bad: int) -> None:
        """Claim or pop up to ``limit`` records. In some runs ``decode`` raises at the ``bad``-th of them."""
        used: list[int] = []

        def decode(record: Record) -> tuple[int, bytes]:
            used.append(record.id)
            if len(used) == bad:
                raise ExpectedError
            return self._seen(record)

        got = outcome(lambda: self._verb_many(self.store, pop)(limit, decode))
        if isinstance(got, type):
            ready = self.model.count()
            wanted = Empty if not ready else ExpectedError if bad == 1 else None
            check(got is wanted, f"claim_many() raised {got}, with {ready} ready")
            return
        check(1 <= len(got) <= limit, f"{len(got)} records, of at most {limit}")
        same = self._verb_many(self.model, pop)(len(got), lambda record: record[:2])
        check(got == same, f"took {got}, the model {same}")
        self.claimed += [] if pop else used[: len(got)]

    @stateful.rule(pop=st.booleans())
    def claim_and_raise(self, pop: bool) -> None:
        """Check that a claim whose ``decode`` raises changes nothing."""

        def decode(record: Record) -> None:
            raise ExpectedError

        got = outcome(lambda: self._verb(self.store, pop)(decode))
        check(
            got is (ExpectedError if self.model.count() else Empty), f"{got} from {self.model.count()} ready"
        )

    @stateful.rule(picks=st.lists(_picks, min_size=1, max_size=4, unique=True))
    def ack(self, picks: list[int]) -> None:
        """Ack claimed records, in any order."""
        ids = list(dict.fromkeys(self.claimed[pick % len(self.claimed)] for pick in picks if self.claimed))
        if not ids:
            return
        self.store.ack(ids)
        self.model.ack([self.ids[id] for id in ids])
        self.claimed = [id for id in self.claimed if id not in ids]

    @stateful.rule(picks=st.lists(_picks, min_size=1, max_size=4))
    def nack(self, picks: list[int]) -> None:
        """Nack claimed records: one, or several together."""
        ids = list(dict.fromkeys(self.claimed[pick % len(self.claimed)] for pick in picks if self.claimed))
        if len(ids) == 1:
            self.store.nack(ids[0])
        elif ids:
            self.store.nack_many(ids)
        self.model.nack_many([self.ids[id] for id in ids])
        self.claimed = [id for id in self.claimed if id not in ids]

    @stateful.rule(pick=st.integers(0, 60))
    def touch_what_is_not_claimed(self, pick: int) -> None:
        """Ack and release records that are ready or removed, or never existed."""
        known = sorted(self.ids)
        id = known[pick % len(known)] if known and pick % 4 else max(known, default=0) + pick + 1
        if id not in self.claimed:
            for call in (
                lambda: self.store.ack([*self.claimed, id]),
                lambda: self.store.nack(id),
                lambda: self.store.nack_many([*self.claimed, id]),
            ):
                check(outcome(call) is NotClaimedError, f"{id} is not claimed, and was accepted")

    @stateful.rule(pick=st.none() | st.integers(0, 60))
    def remove(self, pick: int | None) -> None:
        """Remove without reading: the first record, any record that ever was, or none."""
        if pick is None:
            id, known = None, None
        else:
            id = list(self.ids)[pick] if pick < len(self.ids) else max(self.ids, default=0) + pick
            known = self.ids.get(id, -1)
        got, wanted = self.store.remove(id), self.model.remove(known)
        found = None if got is None else self.ids[got]
        check(found == wanted, f"remove() removed {found}, the model {wanted}")

    @stateful.rule()
    def clear(self) -> None:
        """Remove all ready records."""
        got, wanted = self.store.clear(), self.model.clear()
        check(got == wanted, f"clear() removed {got}, the model {wanted}")

    @stateful.rule()
    def reopen(self) -> None:
        """Close the store and open it again."""
        self.store.close()
        self._begin_again(self.factory.open("a"))

    @stateful.precondition(lambda self: self.factory.capabilities.crashes)
    @stateful.rule()
    def crash(self) -> None:
        """Check that a process that died now would lose no record, and would leave nothing claimed."""
        left = getattr(self.factory, "crashed")("a")  # noqa: B009
        try:
            found = [self._seen(record) for record in left.records()]
            wanted = [(row.id, row.payload) for row in self.state.copy().select(*UNFINISHED)]
            check(found == wanted, f"a crash left {found}, the model {wanted}")
            taken = [outcome(lambda: left.pop(self._seen)) for _ in range(len(wanted) + 1)]
            check(taken == [*wanted, Empty], f"after a crash {taken} were taken, by the model {wanted}")
        finally:
            left.close()

    def _begin_again(self, store: QueueStore) -> None:
        self.store = store
        self.model.close()
        self.model = MemoryQueueStore(self.state)
        self.claimed = []

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal."""
        store, model = self.store, self.model
        found = [self._seen(record) for record in store.records()]
        wanted = [record[:2] for record in model.records()]
        check(found == wanted, f"records() are {found}, the model's {wanted}")
        first = outcome(lambda: store.peek(self._seen))
        check(first == (wanted[0] if wanted else Empty), f"peek() is {first}, of {wanted}")
        numbers, same = store.stats(), model.stats()
        counts = (store.count(), store.claimed(), store.unfinished(), numbers.puts, numbers.gets)
        expected = (model.count(), model.claimed(), model.unfinished(), same.puts, same.gets)
        check(counts == expected, f"ready, claimed, unfinished, puts, gets: {counts}, the model's {expected}")
        check((numbers.ready, numbers.claimed) == counts[:2], f"{numbers} does not agree with {counts}")
