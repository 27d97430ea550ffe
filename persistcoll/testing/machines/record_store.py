"""The state machine of a record store. See :mod:`persistcoll.testing.machines`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from persistcoll.engine.contracts import RecordStore, Select
from persistcoll.engine.memory.record_store import MemoryRecordState, MemoryRecordStore
from persistcoll.engine.memory.rows import FINISHED
from persistcoll.engine.records import (
    FIFO,
    HOLDER_CLOSED,
    HOLDER_DIED,
    LIFO,
    NACKED,
    PRIORITY,
    UNIQUE,
    Backoff,
    ClaimPolicy,
    Discipline,
    Entry,
    Record,
    State,
)
from persistcoll.errors import ClaimError, Empty
from persistcoll.testing._hypothesis import ExpectedError, StepMachine, outcome, st, stateful, weighted
from persistcoll.testing.children import check
from persistcoll.testing.laws.queue_store_harness import calls
from persistcoll.testing.laws.record_store_harness import RecordStoreFactory

__all__ = ["RecordStoreMachine"]

_Told = tuple[int, bytes, float, int, str | None]
_Tell = Callable[[Record], _Told]

_KEYS = (b"k", b"l", b"m")
_NUMBERS = ("puts", "gets", *(state.value for state in State))
_LOOKS: dict[str, Callable[[RecordStore, _Tell], Any]] = {
    "scan": lambda table, told: [(state, *told(record)) for state, record in table.scan()],
    "numbers": lambda table, _: [getattr(table.stats(), name) for name in _NUMBERS],
    "count": lambda table, _: table.count(),
    "records": lambda table, told: [told(record) for record in table.records()],
    "claimed": lambda table, _: table.claimed(),
    "first": lambda table, told: outcome(lambda: table.peek(told)),
    "unfinished": lambda table, _: table.unfinished(),
    "keys": lambda table, _: [table.has_active_key(key) for key in _KEYS],
}
_handles = st.integers(0, 2)
_picks = st.integers(0, 30)
_some = st.lists(_picks, min_size=1, max_size=4)
_payloads = st.binary(max_size=20)
_keys = st.none() | st.sampled_from(_KEYS)
_delays = st.sampled_from([0.0, 0.0, 0.0, 0.0, 3.0, 20.0])
_entries = st.lists(st.builds(Entry, _payloads, st.integers(0, 2), _keys, _delays), min_size=1, max_size=6)
_reasons = st.sampled_from([NACKED, "busy"])
_capacities = st.sampled_from([0, 0, 0, 2, 5, 8])
_pops = st.sampled_from([False, False, False, True])
_disciplines = st.sampled_from(
    [
        FIFO,
        LIFO,
        PRIORITY,
        UNIQUE,
        Discipline("unique lifo", newest_first=True, unique=True),
        Discipline("unique priority", by_priority=True, unique=True),
    ]
)
_retries = st.builds(
    ClaimPolicy,
    lease=st.sampled_from([None, 5.0, 5.0]),
    max_attempts=st.sampled_from([None, None, 1, 2, 3]),
    backoff=st.sampled_from([None, Backoff(base=4.0, factor=2.0, limit=10.0, jitter=0.0)]),
    # A store may keep more done records than this, so any other number would compare nothing.
    keep_done=st.sampled_from([0, 10**6]),
    auto_reclaim=st.booleans(),
)


# Each step, how often it is chosen, and its arguments.
_STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "put": (3, (_handles, _entries, _capacities)),
    "append": (1, (_handles, st.lists(_payloads, max_size=4), _capacities)),
    "claim": (5, (_handles, _pops, st.sampled_from([False, False, False, True]))),
    "claim_id": (3, (_handles, _pops, _picks, st.booleans())),
    "claim_many": (2, (_handles, st.integers(1, 5), _pops, st.integers(0, 6))),
    "finish": (4, (_handles, _some, st.booleans(), st.none() | _reasons)),
    "nack": (4, (_handles, _picks, st.sampled_from([None, 0.0, 3.0, 20.0]), st.booleans(), _reasons)),
    "nack_many": (1, (_handles, _some, _reasons)),
    "requeue": (2, (_handles, st.none() | _picks)),
    "reclaim": (1, (_handles,)),
    "advance": (4, (st.sampled_from([0.25, 1.0, 3.0, 4.0, 9.75, 25.0]), st.booleans())),
    "update": (2, (_handles, _picks, _payloads, _keys)),
    "remove": (1, (_handles, _picks, st.integers(0, 9))),
    "purge": (1, (_handles, st.sampled_from(FINISHED), st.integers(0, 3), st.none() | st.integers(0, 3))),
    "open_another": (2, ()),
    "close": (1, (_handles,)),
    "crash": (1, ()),
}


class _Pair(NamedTuple):
    """One handle of the tested store, and the model's."""

    real: RecordStore
    model: MemoryRecordStore


def _told(record: Record) -> _Told:
    """Return the fields of a record that are compared; the time of its put is not.

    A store may know no more than that a holder is gone.
    """
    reason = HOLDER_DIED if record.reason == HOLDER_CLOSED else record.reason
    return record.id, record.payload, record.priority, record.attempts, reason


class RecordStoreMachine(StepMachine):
    """A record store compared with a ``MemoryRecordStore``, for all that the contract has.

    The machine uses several handles, lets time pass, and covers every discipline and claim policy.
    """

    steps = weighted(_STEPS)

    def __init__(self) -> None:
        super().__init__()
        self.factory = self.tables()
        self.now = 0.0
        self.state = MemoryRecordState(lambda: self.now)
        self.pairs: list[_Pair] = []
        # Ids grow in both, but the tested store may leave some out.
        self.ids: dict[int, int] = {}
        self.blind = False
        self.comparisons = 0

    def tables(self) -> RecordStoreFactory:
        """Return a factory for one run; to be overridden. :meth:`teardown` may clean up after it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close all handles at the end of a run."""
        for pair in self.pairs:
            pair.real.close()

    @stateful.initialize(discipline=_disciplines, retry=_retries, entries=_entries)
    def begin(self, discipline: Discipline, retry: ClaimPolicy, entries: list[Entry]) -> None:
        """Choose the kind of record store."""
        self.discipline, self.retry = discipline, retry
        self._open()
        self.put(0, entries, 0)

    def _open(self) -> None:
        real = self.factory.open("a", self.discipline, self.retry)
        self.pairs.append(_Pair(real, MemoryRecordStore(self.discipline, self.retry, self.state)))

    def _pair(self, handle: int) -> _Pair:
        return self.pairs[handle % len(self.pairs)]

    def _id(self, pick: int) -> int:
        """Return an id: ``pick`` 0 is the newest, the last pick one that never existed."""
        known = [max(self.ids, default=0) + 1, *sorted(self.ids)]
        return known[-1 - pick % len(known)]

    def _hand(self, handle: int) -> _Pair:
        """Return a handle that has claimed a record, if there is one to claim."""
        pair = max(self._pair(handle), *self.pairs, key=lambda pair: len(pair.model._claims) > 0)
        if not pair.model._claims:
            self._claim(pair, False, False, None)
        return pair

    def _claimed(self, pair: _Pair, pick: int) -> int:
        """Return an id that this handle has claimed, or lost meanwhile; now and then another id."""
        claims = [id for id, model in self.ids.items() if model in pair.model._claims]
        return claims[pick % len(claims)] if claims and pick < 27 else self._id(pick)

    def _model_id(self, id: int) -> int:
        return self.ids.get(id, -id)

    def _added(self, ids: Any, model_ids: Any) -> None:
        if isinstance(ids, type) or isinstance(model_ids, type):
            check(ids is model_ids, f"{ids}, and the model says {model_ids}")
            return
        for id, model in zip(ids, model_ids, strict=True):
            check((id is None) == (model is None), f"put {list(ids)}, the model {list(model_ids)}")
            if id is not None:
                check(id > max(self.ids, default=0), f"id {id} after {max(self.ids, default=0)}")
                self.ids[id] = model

    def _seen(self, record: Record) -> _Told:
        return _told(record._replace(id=self.ids[record.id]))

    # Puts.

    def put(self, handle: int, entries: list[Entry], capacity: int) -> None:
        """Put entries, with a capacity or without."""
        pair = self._pair(handle)
        got = outcome(lambda: pair.real.put(entries, capacity))
        self._added(got, outcome(lambda: pair.model.put(entries, capacity)))

    def append(self, handle: int, payloads: list[bytes], capacity: int) -> None:
        """Append one payload, several, or none."""
        pair = self._pair(handle)

        def append(table: RecordStore) -> Sequence[int]:
            if len(payloads) == 1:
                return [table.append(payloads[0], capacity)]
            return table.append_many(payloads, capacity)

        self._added(outcome(lambda: append(pair.real)), outcome(lambda: append(pair.model)))

    # Claims.

    def claim(self, handle: int, pop: bool, raises: bool) -> None:
        """Claim or pop the next record. In some runs ``decode`` raises."""
        self._claim(self._pair(handle), pop, raises, None)

    def claim_id(self, handle: int, pop: bool, pick: int, after: bool) -> None:
        """Claim or pop a record by its id, or the one after it."""
        id = self._id(pick)
        if id in self.ids or not after:
            self._claim(self._pair(handle), pop, False, Select(id, after))

    def _claim(self, pair: _Pair, pop: bool, raises: bool, select: Select | None) -> None:
        used: list[int] = []

        def decode(record: Record) -> _Told:
            used.append(record.id)
            if raises:
                raise ExpectedError
            return self._seen(record)

        def model_use(record: Record) -> _Told:
            if raises:
                raise ExpectedError
            return _told(record)

        model_select = None if select is None else select._replace(id=self._model_id(select.id))
        got = outcome(lambda: (pair.real.pop if pop else pair.real.claim)(decode, select))
        wanted = outcome(lambda: (pair.model.pop if pop else pair.model.claim)(model_use, model_select))
        check(got == wanted, f"took {got}, the model {wanted}")
        check(len(calls(pair.real, used)) == (wanted is not Empty), f"claim() called decode with {used}")

    def claim_many(self, handle: int, limit: int, pop: bool, bad: int) -> None:
        """Claim or pop up to ``limit`` records. In some runs ``decode`` raises at the ``bad``-th of them."""
        pair = self._pair(handle)
        used: list[int] = []

        def decode(record: Record) -> _Told:
            used.append(record.id)
            if list(dict.fromkeys(used)).index(record.id) + 1 == bad:
                raise ExpectedError
            return self._seen(record)

        got = outcome(lambda: (pair.real.pop_many if pop else pair.real.claim_many)(limit, decode))
        if isinstance(got, type):
            ready = pair.model.count()
            wanted = Empty if not ready else ExpectedError if bad == 1 else None
            check(got is wanted, f"claim_many() raised {got}, with {ready} ready")
            return
        check(1 <= len(got) <= limit, f"{len(got)} records, of at most {limit}")
        same = (pair.model.pop_many if pop else pair.model.claim_many)(len(got), _told)
        check(got == same, f"took {got}, the model {same}")

    # Settling.

    def finish(self, handle: int, picks: list[int], fail: bool, reason: str | None) -> None:
        """Ack or fail records that are claimed, and records that are not."""
        if fail:
            self._settle(handle, picks, lambda store, ids: store.fail(ids, reason))
        else:
            self._settle(handle, picks, lambda store, ids: store.ack(ids))

    def nack_many(self, handle: int, picks: list[int], reason: str) -> None:
        """Nack several records, all or none."""
        self._settle(handle, picks, lambda store, ids: store.nack_many(ids, reason))

    def _settle(self, handle: int, picks: list[int], verb: Callable[[RecordStore, list[int]], None]) -> None:
        pair = self._hand(handle)
        ids = [self._claimed(pair, pick) for pick in picks]
        got = outcome(lambda: verb(pair.real, ids))
        wanted = outcome(lambda: verb(pair.model, [self._model_id(id) for id in ids]))
        # With several unclaimed ids, the error may name any of them.
        both = got is not None and wanted is not None and len(set(ids)) > 1
        check(got is wanted or (both and issubclass(got, ClaimError)), f"settled {got}, the model {wanted}")

    def nack(self, handle: int, pick: int, delay: float | None, to_back: bool, reason: str) -> None:
        """Nack a record: now or later, to its old place or to the end."""
        pair = self._hand(handle)
        id = self._claimed(pair, pick)
        newest = self.state.last_id
        got = outcome(lambda: pair.real.nack(id, delay, to_back, reason))
        wanted = outcome(lambda: pair.model.nack(self._model_id(id), delay, to_back, reason))
        if isinstance(wanted, int) and wanted > newest:
            self._added([got], [wanted])
        else:
            found = self.ids.get(got) if isinstance(got, int) else got
            check(found == wanted, f"nack() gave {got}, the model {wanted}")

    def requeue(self, handle: int, pick: int | None) -> None:
        """Requeue what is set aside: all of it, or one record, which may be in any state."""
        pair = self._pair(handle)
        id = None if pick is None else self._id(pick)
        got = outcome(lambda: pair.real.requeue(id))
        wanted = outcome(lambda: pair.model.requeue(None if id is None else self._model_id(id)))
        check(got == wanted, f"requeue() of {id} made ready {got}, the model {wanted}")

    def reclaim(self, handle: int) -> None:
        """Reclaim what dead holders claimed, and make space, which changes nothing that can be read."""
        real, model = self._pair(handle)
        got, wanted = real.reclaim(), model.reclaim()
        check(got == wanted, f"reclaim() made ready {got}, the model {wanted}")
        real.shrink()

    def advance(self, seconds: float, blind: bool) -> None:
        """Let time pass. The next step or the comparison is the first operation to notice it."""
        self.factory.advance(seconds)
        self.now += seconds
        self.blind = blind

    # Changes and removals.

    def update(self, handle: int, pick: int, payload: bytes, key: bytes | None) -> None:
        """Replace the payload of a record in any state."""
        pair, id = self._pair(handle), self._id(pick)
        got = outcome(lambda: pair.real.update(id, payload, key))
        wanted = outcome(lambda: pair.model.update(self._model_id(id), payload, key))
        check(got is wanted, f"replaced {got}, the model {wanted}")

    def remove(self, handle: int, pick: int, how: int) -> None:
        """Remove without reading: any record that ever was, none, the first one, or all ready ones."""
        real, model = self._pair(handle)
        if how == 9:
            found, wanted = real.clear(), model.clear()
        else:
            id = None if how > 5 else self._id(pick)
            got = real.remove(id)
            found = -1 if got is None else self.ids[got]
            wanted = model.remove(None if id is None else self._model_id(id)) or -1
        check(found == wanted, f"removed {found}, the model {wanted}")

    def purge(self, handle: int, state: State, keep: int, limit: int | None) -> None:
        """Remove finished records, the oldest first."""
        pair = self._pair(handle)
        got = pair.real.purge(state, keep, limit)
        pair.model.count()
        rows = self.state.select(state)
        count = max(0, len(rows) - keep)
        wanted = count if limit is None else min(count, limit)
        check(got == wanted, f"purge() of {state} removed {got}, the model {wanted}")
        kept = [self.ids[record.id] for _, record in pair.real.scan(state)]
        left = [row.id for row in rows[got:]]
        check(kept == left, f"purge() of {state} left {kept}, not {left}")
        for row in rows[:got]:
            self.state.remove(row)

    # Opening and closing.

    def open_another(self) -> None:
        """Open one more handle."""
        if self.factory.capabilities.handles and len(self.pairs) < 3:
            self._open()

    def close(self, handle: int) -> None:
        """Close a handle, and open a new one if it was the only one."""
        pair = self._pair(handle)
        self.pairs.remove(pair)
        pair.real.close()
        pair.model.close()
        if not self.pairs:
            self._open()

    def crash(self) -> None:
        """Check what would remain if every process died now."""
        if not self.factory.capabilities.crashes:
            return
        left: RecordStore = getattr(self.factory, "crashed")("a", self.discipline, self.retry)  # noqa: B009
        pair = _Pair(left, MemoryRecordStore(self.discipline, self.retry, self.state.copy()))
        try:
            self._compare(pair, "a crash left")
            counts = left.reclaim(), pair.model.reclaim()
            check(counts[0] == counts[1], f"after a crash, reclaim() made ready {counts[0]}, not {counts[1]}")
            for _ in range(pair.model.count() + 1):
                self._claim(pair, True, False, None)
            self._compare(pair, "a crash left, when all was taken,")
        finally:
            left.close()

    # Inspection.

    def _compare(self, pair: _Pair, what: str) -> None:
        # Each kind of read is the first one in turn, because the first read promotes what is due.
        names = [name for name in _LOOKS if name != "keys" or self.discipline.unique]
        self.comparisons += 1
        first = self.comparisons % len(names)
        for name in names[first:] + names[:first]:
            found, wanted = _LOOKS[name](pair.real, self._seen), _LOOKS[name](pair.model, _told)
            check(found == wanted, f"{what} {name} {found}, of the model {wanted}")

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal, through every handle."""
        if self.blind:
            self.blind = False
            return
        for pair in self.pairs:
            self._compare(pair, "there is")
