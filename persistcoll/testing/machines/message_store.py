"""The state machine of a message store. See :mod:`persistcoll.testing.machines`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType
from typing import Any, NamedTuple

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageEntry,
    MessagePolicy,
    MessageRecord,
    TopicClaim,
)
from persistcoll.engine.records import Backoff, State
from persistcoll.testing._hypothesis import ExpectedError, StepMachine, outcome, st, stateful, weighted
from persistcoll.testing.children import check
from persistcoll.testing.laws.message_store_harness import MessageStoreFactory

__all__ = ["MessageStoreMachine"]

# All times are multiples of a quarter of a second, which a float of this century represents exactly.
_TOPICS = ("default", "b", "c")
_KEYS = (b"k", b"l")
_NUMBERS = ("puts", "gets", "expired", *(state.value for state in State))
_Told = tuple[Any, ...]
_Tell = Callable[[MessageRecord], _Told]
# Most messages have one topic, so that its rate, its pause and its lock meet many of them.
_topics = st.sampled_from(["default", "default", "default", "b", "c"])
_choices = st.sampled_from([None, None, ("default",), ("b", "default"), ("c",)])
_handles = st.integers(0, 2)
_picks = st.integers(0, 30)
_some = st.lists(_picks, min_size=1, max_size=4)
_errors = st.sampled_from([None, None, "it failed", "it failed again"])
_leases = st.sampled_from([..., ..., ..., 3.0, 8.0])
_backoffs = st.sampled_from([None, Backoff(base=2.0, factor=2.0, limit=5.0, jitter=0.0)])
_entries = st.lists(
    st.builds(
        MessageEntry,
        st.binary(max_size=8),
        topic=_topics,
        priority=st.sampled_from([0, 0, 0, 1, -1, 0.5]),
        delay=st.sampled_from([0, 0, 0, 0, 2.0, 7.0]),
        key=st.sampled_from([None, None, None, *_KEYS]),
        key_window=st.sampled_from([0, 0, 6.0]),
        group=st.sampled_from([None, None, "g", "g", "h"]),
        ttl=st.sampled_from([None, None, 9.0, 20.0]),
        headers=st.sampled_from([b"", b"h"]),
        lease=_leases,
        max_attempts=st.sampled_from([..., ..., ..., None, 1, 2]),
        backoff=st.sampled_from([..., ...]) | _backoffs,
    ),
    min_size=1,
    max_size=5,
)
_policies = st.builds(
    MessagePolicy,
    lease=st.sampled_from([5.0, 5.0, 1000.0]),
    max_attempts=st.sampled_from([None, 1, 2, 3]),
    backoff=_backoffs,
    # A store may keep more than this, so any other number would compare nothing.
    keep_done=st.sampled_from([0, 10**6]),
    keep_dead=st.sampled_from([None, None, 0]),
)


def _firsts(store: MessageStore, tell: _Tell) -> list[Any]:
    return [outcome(partial(_first, store, tell, topic)) for topic in (None, *_TOPICS)]


def _first(store: MessageStore, tell: _Tell, topic: str | None) -> _Told:
    return tell(store.peek(topic))


_LOOKS: dict[str, Callable[[MessageStore, _Tell], Any]] = {
    "scan": lambda store, tell: [tell(record) for record in store.scan()],
    "numbers": lambda store, _: [getattr(store.stats(), name) for name in _NUMBERS],
    "topics": lambda store, _: store.topics(),
    "count": lambda store, _: [store.count(topic) for topic in (None, *_TOPICS)],
    "first": _firsts,
    "unfinished": lambda store, _: store.has_unfinished(),
    "emptiness": lambda store, _: [store.is_empty(topic) for topic in (None, *_TOPICS)],
}

# Each step, how often it is chosen, and its arguments.
_STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "put": (4, (_handles, _entries)),
    "claim": (6, (_handles, st.integers(1, 4), _choices, _leases, st.booleans())),
    "deliver": (1, (_handles, _some)),
    "ack": (3, (_handles, _some)),
    "nack": (4, (_handles, _some, st.sampled_from([None, 0.0, 3.0, 20.0]), _errors)),
    "release": (2, (_handles, _some)),
    "fail": (2, (_handles, _some, _errors)),
    "extend": (1, (_handles, _some, st.sampled_from([1.0, 6.0, 30.0]))),
    "redrive": (2, (_handles, _picks)),
    "redrive_all": (1, (_handles, _choices)),
    "cancel": (2, (_handles, _picks)),
    "purge": (1, (_handles, _choices, st.booleans(), st.sampled_from([None, None, 5.0]))),
    "release_key": (1, (_handles, st.sampled_from(_KEYS))),
    "set_rate": (2, (_handles, _topics, st.sampled_from([None, 2.0, 4.0, 4.0]), st.integers(1, 3))),
    "pause": (1, (_handles, _topics)),
    "resume": (1, (_handles, _topics)),
    "lock": (3, (_handles, st.sampled_from([None, "default", "default", "b"]), st.sampled_from([4.0, 10.0]))),
    "change_lock": (3, (_handles, _picks, st.sampled_from([None, None, 1.0, 8.0]))),
    "reclaim": (1, (_handles,)),
    "advance": (5, (st.sampled_from([0.25, 1.0, 1.75, 2.0, 3.0, 5.0, 9.75, 25.0]), st.booleans())),
    "begin": (1, (_handles,)),
    "end": (2, (st.booleans(),)),
    "open_another": (2, ()),
    "close": (1, (_handles,)),
    "crash": (1, ()),
}


class _Pair(NamedTuple):
    """One handle of the tested store, and the model's."""

    real: MessageStore
    model: MemoryMessageStore


class _Claims(NamedTuple):
    """A claim of the tested store, and the model's."""

    real: MessageClaim
    model: MessageClaim


class _Locks(NamedTuple):
    """A lock of a topic in the tested store, and the model's."""

    real: TopicClaim
    model: TopicClaim


class MessageStoreMachine(StepMachine):
    """A message store compared with a ``MemoryMessageStore``, for the whole life of messages.

    The machine uses several handles, lets time pass, and covers every policy. Claims and locks stay in use
    after they have ended. Where the store has transactions, some steps are in one.
    """

    steps = weighted(_STEPS)

    def __init__(self) -> None:
        super().__init__()
        self.factory = self.stores()
        self.now = 0.0
        self.began = self.factory.now()
        self.state = MemoryMessageState(lambda: self.now)
        self.pairs: list[_Pair] = []
        # Ids grow in both, but the tested store may leave some out.
        self.ids: dict[int, int] = {}
        self.claims: list[_Claims] = []
        self.locks: list[_Locks] = []
        # The transactions that are open in both, and the ids at their beginning.
        self.transactions: list[Any] = []
        self.ids_before: dict[int, int] = {}
        self.blind = False
        self.comparisons = 0

    def stores(self) -> MessageStoreFactory:
        """Return a factory for one run; to be overridden. :meth:`teardown` may clean up after it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close all handles at the end of a run."""
        self.end(False)
        for pair in self.pairs:
            pair.real.close()

    @stateful.initialize(policy=_policies, entries=_entries)
    def begin_with(self, policy: MessagePolicy, entries: list[MessageEntry]) -> None:
        """Choose the policy."""
        self.policy = policy
        self._open()
        self.put(0, entries)

    def _open(self) -> None:
        self.pairs.append(self._paired(self.factory.open("a", self.policy), self.state))

    def _paired(self, real: MessageStore, state: MemoryMessageState) -> _Pair:
        model = MemoryMessageStore(self.policy, state)
        model.capabilities = real.capabilities
        if real.capabilities.death_noticed_after == math.inf:
            model._is_dead = lambda holder: False  # type: ignore[method-assign]
        return _Pair(real, model)

    def _pair(self, handle: int) -> _Pair:
        return self.pairs[handle % len(self.pairs)]

    def _id(self, pick: int) -> int:
        """Return an id: ``pick`` 0 is the newest, the last pick one that never existed."""
        known = [max(self.ids, default=0) + 1, *sorted(self.ids)]
        return known[-1 - pick % len(known)]

    def _dead_id(self, pick: int) -> int:
        """Return the id of a dead message, if there is one; now and then another id."""
        dead = {row.id for row in self.state.select(State.DEAD)}
        ids = [id for id, model in self.ids.items() if model in dead]
        return ids[pick % len(ids)] if ids and pick < 24 else self._id(pick)

    def _model_id(self, id: int) -> int:
        return self.ids.get(id, -id)

    def _some_claims(self, handle: int, picks: Sequence[int]) -> list[_Claims]:
        """Return claims, most of which have not ended. Any handle may use them."""
        model = self._pair(handle).model
        alive = [claims for claims in self.claims if model._of_claim(claims.model)]
        if not alive:
            self.claim(handle, 2, None, ..., False)
            alive = [claims for claims in self.claims if model._of_claim(claims.model)]
        known = self.claims if max(picks) >= 27 or not alive else alive
        return list(dict.fromkeys(known[-1 - pick % len(known)] for pick in picks if known))

    def _seen(self, record: MessageRecord) -> _Told:
        return self._told(record._replace(id=self.ids[record.id]), self.began)

    def _told(self, record: MessageRecord, began: float = 0.0) -> _Told:
        """Return the fields that are compared. Times are relative to the machine's clock."""
        times = [None if time is None else time - began for time in (record.until, record.finished)]
        told = record._replace(until=None, finished=None, claim=None, own_mark=None)
        return (*told._replace(time=record.time - began), *times)

    def _both(self, what: str, handle: int, call: Callable[[MessageStore], Any]) -> Any:
        """Do the same with the tested store and the model, and compare the results."""
        pair = self._pair(handle)
        got, wanted = outcome(lambda: call(pair.real)), outcome(lambda: call(pair.model))
        check(got == wanted, f"{what} gave {got}, the model {wanted}")
        return got

    # Puts and claims.

    def put(self, handle: int, entries: list[MessageEntry]) -> None:
        """Put messages of every kind."""
        pair = self._pair(handle)
        ids, model_ids = pair.real.put(entries), pair.model.put(entries)
        for id, model in zip(ids, model_ids, strict=True):
            check((id is None) == (model is None), f"put() gave {ids}, the model {model_ids}")
            if id is not None and model is not None:
                check(id > max(self.ids, default=0), f"id {id} after {max(self.ids, default=0)}")
                self.ids[id] = model

    def claim(
        self,
        handle: int,
        limit: int,
        topics: Sequence[str] | None,
        lease: float | EllipsisType,
        prefetch: bool,
    ) -> None:
        """Claim messages of some topics."""
        pair = self._pair(handle)

        def claim(store: MessageStore) -> list[MessageRecord]:
            return store.claim(limit, topics, lease=lease, prefetch=prefetch)

        got, wanted = outcome(lambda: claim(pair.real)), outcome(lambda: claim(pair.model))
        if isinstance(got, type) or isinstance(wanted, type):
            check(got is wanted, f"claim() gave {got}, the model {wanted}")
            return
        found, expected = [self._seen(each) for each in got], [self._told(each) for each in wanted]
        check(found == expected, f"claim() gave {found}, the model {expected}")
        check(None not in [each.claim for each in got], f"claim() gave no claim: {got}")
        self.claims += [_Claims(real.claim, model.claim) for real, model in zip(got, wanted, strict=True)]

    # Settling.

    def _settle(
        self,
        what: str,
        handle: int,
        picks: Sequence[int],
        verb: Callable[[MessageStore, list[MessageClaim]], Any],
    ) -> None:
        pair, chosen = self._pair(handle), self._some_claims(handle, picks)
        got = outcome(lambda: verb(pair.real, [claims.real for claims in chosen]))
        wanted = outcome(lambda: verb(pair.model, [claims.model for claims in chosen]))
        check(got == wanted, f"{what} gave {got}, the model {wanted}")

    def deliver(self, handle: int, picks: list[int]) -> None:
        """Begin to work on prefetched messages."""
        self._settle("deliver()", handle, picks, lambda store, claims: store.deliver(claims))

    def ack(self, handle: int, picks: list[int]) -> None:
        """Ack messages, some of whose claims may have ended."""
        self._settle("ack()", handle, picks, lambda store, claims: store.ack(claims))

    def nack(self, handle: int, picks: list[int], delay: float | None, error: str | None) -> None:
        """Nack messages: at once, later, or with their back-off."""
        self._settle("nack()", handle, picks, lambda store, claims: store.nack(claims, delay, error))

    def release(self, handle: int, picks: list[int]) -> None:
        """Release messages."""
        self._settle("release()", handle, picks, lambda store, claims: store.release(claims))

    def fail(self, handle: int, picks: list[int], error: str | None) -> None:
        """Make messages dead."""
        self._settle("fail()", handle, picks, lambda store, claims: store.fail(claims, error))

    def extend(self, handle: int, picks: list[int], seconds: float) -> None:
        """Let leases end later or earlier."""
        pair, chosen = self._pair(handle), self._some_claims(handle, picks)
        got = outcome(lambda: pair.real.extend([claims.real for claims in chosen], seconds))
        wanted = outcome(lambda: pair.model.extend([claims.model for claims in chosen], seconds))
        found = got - self.began if isinstance(got, float) else got
        check(found == wanted, f"extend() gave {found}, the model {wanted}")

    # Dead letters and removal.

    def _by_id(self, what: str, handle: int, id: int, verb: Callable[[MessageStore, int], Any]) -> None:
        pair = self._pair(handle)
        got = outcome(lambda: verb(pair.real, id))
        wanted = outcome(lambda: verb(pair.model, self._model_id(id)))
        check(got == wanted, f"{what} of {id} gave {got}, the model {wanted}")

    def redrive(self, handle: int, pick: int) -> None:
        """Redrive a dead message, or one in any state."""
        self._by_id("redrive()", handle, self._dead_id(pick), lambda store, id: store.redrive(id))

    def redrive_all(self, handle: int, topics: Sequence[str] | None) -> None:
        """Redrive all dead messages, of a topic or of all."""
        topic = topics[0] if topics else None
        self._both("redrive_all()", handle, lambda store: store.redrive_all(topic))

    def cancel(self, handle: int, pick: int) -> None:
        """Cancel a message in any state."""
        self._by_id("cancel()", handle, self._id(pick), lambda store, id: store.cancel(id))

    def purge(self, handle: int, topics: Sequence[str] | None, dead: bool, age: float | None) -> None:
        """Remove messages, all or those that were put some seconds ago."""
        topic = topics[0] if topics else None
        pair = self._pair(handle)
        before = None if age is None else self.now - age
        got = pair.real.purge(topic, dead=dead, before=None if before is None else before + self.began)
        wanted = pair.model.purge(topic, dead=dead, before=before)
        check(got == wanted, f"purge() removed {got}, the model {wanted}")

    def release_key(self, handle: int, key: bytes) -> None:
        """Make a key inactive."""
        self._both("release_key()", handle, lambda store: store.release_key(key))

    # Topics.

    def set_rate(self, handle: int, topic: str, interval: float | None, burst: int) -> None:
        """Limit a topic, or lift the limit."""
        self._both("set_rate()", handle, lambda store: store.set_rate(topic, interval, burst))

    def pause(self, handle: int, topic: str) -> None:
        """Pause a topic."""
        self._both("pause()", handle, lambda store: store.pause(topic))

    def resume(self, handle: int, topic: str) -> None:
        """Resume a topic."""
        self._both("resume()", handle, lambda store: store.resume(topic))

    def lock(self, handle: int, topic: str | None, lease: float) -> None:
        """Lock a topic, or the fullest one."""
        pair = self._pair(handle)
        got, wanted = pair.real.lock_topic(topic, lease), pair.model.lock_topic(topic, lease)
        if got is None or wanted is None:
            check(got is None and wanted is None, f"lock_topic() gave {got}, the model {wanted}")
            return
        check(got.topic == wanted.topic, f"lock_topic() locked {got.topic}, the model {wanted.topic}")
        self.locks.append(_Locks(got, wanted))

    def change_lock(self, handle: int, pick: int, seconds: float | None) -> None:
        """Extend a lock, or end it; any handle may, even if the lock has ended."""
        if not self.locks:
            return
        pair, locks = self._pair(handle), self.locks[pick % len(self.locks)]

        def change(store: MessageStore, lock: TopicClaim) -> Any:
            return store.unlock_topic(lock) if seconds is None else store.extend_lock(lock, seconds)

        got = outcome(lambda: change(pair.real, locks.real))
        wanted = outcome(lambda: change(pair.model, locks.model))
        check(got == wanted, f"the change of a lock gave {got}, the model {wanted}")

    def reclaim(self, handle: int) -> None:
        """End what is due."""
        self._both("reclaim()", handle, lambda store: store.reclaim())

    def advance(self, seconds: float, blind: bool) -> None:
        """Let time pass. The next step or the comparison is the first operation to notice it."""
        self.factory.advance(seconds)
        self.now += seconds
        self.blind = blind

    # Transactions, opening and closing.

    def begin(self, handle: int) -> None:
        """Begin a transaction, of which all steps until its end are a part."""
        if not self.factory.capabilities.transactions or self.transactions:
            return
        pair = self._pair(handle)
        self.ids_before = dict(self.ids)
        self.transactions = [pair.real.transaction(), pair.model.transaction()]
        for transaction in self.transactions:
            transaction.__enter__()

    def end(self, commit: bool) -> None:
        """Commit the open transaction, or roll it back."""
        if not self.transactions:
            return
        error = None if commit else ExpectedError()
        for transaction in self.transactions:
            suppressed = transaction.__exit__(None if error is None else ExpectedError, error, None)
            check(not suppressed, "transaction() suppressed an error")
        self.transactions = []
        if not commit:
            self.ids = self.ids_before

    def open_another(self) -> None:
        """Open one more handle."""
        if self.factory.capabilities.handles and len(self.pairs) < 3 and not self.transactions:
            self._open()

    def close(self, handle: int) -> None:
        """Close a handle, and open a new one if it was the only one."""
        if self.transactions:
            return
        pair = self._pair(handle)
        self.pairs.remove(pair)
        pair.real.close()
        pair.model.close()
        if not self.pairs:
            self._open()

    def crash(self) -> None:
        """Check what would remain if every process died now."""
        if not self.factory.capabilities.crashes or self.transactions:
            return
        left: MessageStore = getattr(self.factory, "crashed")("a", self.policy)  # noqa: B009
        pair = self._paired(left, self.state.copy())
        try:
            self._compare(pair, "a crash left")
            counts = left.reclaim(), pair.model.reclaim()
            check(counts[0] == counts[1], f"after a crash, reclaim() ended {counts[0]}, not {counts[1]}")
        finally:
            left.close()

    # Inspection.

    def _compare(self, pair: _Pair, what: str) -> None:
        # Each kind of read is the first one in turn, because the first read promotes what is due.
        names = list(_LOOKS)
        self.comparisons += 1
        first = self.comparisons % len(names)
        for name in names[first:] + names[:first]:
            found, wanted = _LOOKS[name](pair.real, self._seen), _LOOKS[name](pair.model, self._told)
            check(found == wanted, f"{what} {name} {found}, of the model {wanted}")

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal, through every handle."""
        if self.blind:
            self.blind = False
            return
        for pair in self.pairs:
            self._compare(pair, "there is")
