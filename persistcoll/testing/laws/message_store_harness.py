"""The harness of the laws of message stores: a factory, and functions that read a store."""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import EllipsisType
from typing import Any, Protocol

from persistcoll.engine.contracts import MessageStore
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageEntry,
    MessagePolicy,
    MessageRecord,
    TopicClaim,
)
from persistcoll.engine.records import Backoff, State
from persistcoll.errors import Empty, StaleClaimError
from persistcoll.testing.children import check
from persistcoll.testing.harness import Capabilities, Law, LawTime, laws_with
from persistcoll.testing.laws.record_store_harness import Connection

__all__ = [
    "KEEPS",
    "PLAIN",
    "MessageStoreFactory",
    "MessageStoreHarness",
    "MessageStoreLaw",
    "claim_all",
    "claim_of",
    "claimable",
    "claims_of",
    "contents",
    "empty",
    "ends",
    "lock_of",
    "message_store_law",
    "notices_death",
    "payloads",
    "put",
    "refuses",
    "settling",
    "stale",
    "standing",
    "together",
    "totals",
]

PLAIN = MessagePolicy(lease=3600.0, max_attempts=None, backoff=None)
"""The policy of most laws: nothing ends by itself, and no attempt is the last one."""

KEEPS = PLAIN._replace(keep_done=1000)
"""The plain policy, which keeps every acked message that a law makes."""

UNFINISHED = (State.READY, State.DELAYED, State.BLOCKED, State.CLAIMED)


class MessageStoreFactory(Protocol):
    """Opens message stores of one kind. All are empty at first, and no other factory opens them."""

    @property
    def capabilities(self) -> Capabilities:
        """What its stores can do."""

    def open(self, name: str, policy: MessagePolicy) -> MessageStore:
        """Open the store of this name, which is made if it is missing."""

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass for all of its stores, and for what they leave after a crash.

        Where the clock cannot be set (``capabilities.real_time``), wait.
        """

    def now(self) -> float:
        """Return the time by the clock of the stores."""

    # Where `capabilities.crashes`, it also has
    #   def crashed(self, name: str, policy: MessagePolicy) -> MessageStore
    # which opens a copy, whose changes do not touch the store. Its claims are those of a process that died.
    # Where `capabilities.joins`, it also has
    #   def connect(self, name: str) -> Connection
    # which returns a connection whose transactions the store of that name can join.


class MessageStoreHarness:
    """A factory, and the stores that a law opened, which are closed at the end."""

    def __init__(self, factory: MessageStoreFactory, again: int = 0) -> None:
        self._factory = factory
        self._again = f" {again}" if again else ""
        self.time = LawTime(factory, again)
        self.seconds, self.advance, self.now = self.time.seconds, self.time.advance, factory.now
        self.capabilities = factory.capabilities
        self.opened: list[MessageStore] = []

    def open(self, name: str = "a", policy: MessagePolicy = PLAIN) -> MessageStore:
        """Open the store ``name``.

        :param policy: its times are in the law's seconds.
        """
        self.opened.append(self._factory.open(name + self._again, self._scaled(policy)))
        return self.opened[-1]

    def another(self, store: MessageStore, name: str = "a", policy: MessagePolicy = PLAIN) -> MessageStore:
        """Return another handle of the same store, or ``store`` if only one may be open."""
        return self.open(name, policy) if self.capabilities.handles else store

    def crash(self, name: str = "a", policy: MessagePolicy = PLAIN) -> MessageStore:
        """Open what the store ``name`` would leave if the process died now."""
        crashed: Any = getattr(self._factory, "crashed")  # noqa: B009
        self.opened.append(crashed(name + self._again, self._scaled(policy)))
        return self.opened[-1]

    def connect(self, store: MessageStore, name: str = "a") -> Connection:
        """Connect as a caller whose transactions ``store`` joins."""
        check(
            store.capabilities.joins_transactions,
            "the factory connects, and the store says that it joins nothing",
        )
        connection: Connection = getattr(self._factory, "connect")(name + self._again)  # noqa: B009
        return connection

    def backoff(self, base: float, factor: float = 2.0, limit: float = 3600.0) -> Backoff:
        """Return a back-off without jitter, in the law's seconds."""
        return Backoff(self.seconds(base), factor, self.seconds(limit), 0.0)

    def _scaled(self, policy: MessagePolicy) -> MessagePolicy:
        lease, backoff = policy.lease, policy.backoff
        if lease is not None:
            lease = self.seconds(lease)
        if backoff is not None:
            base, limit = self.seconds(backoff.base), self.seconds(backoff.limit)
            backoff = Backoff(base, backoff.factor, limit, backoff.jitter)
        return policy._replace(lease=lease, backoff=backoff)

    def entry(self, payload: str = "a", **fields: Any) -> MessageEntry:
        """Return an entry, whose times are given in the law's seconds."""
        for name in ("delay", "key_window", "ttl", "lease"):
            if isinstance(fields.get(name), (int, float)):
                fields[name] = self.seconds(fields[name])
        return MessageEntry(payload.encode(), **fields)


MessageStoreLaw = Law[MessageStoreHarness]
message_store_law = laws_with(MessageStoreHarness)


def put(store: MessageStore, *entries: MessageEntry) -> list[int]:
    """Put entries, of which none may be refused, and return their ids."""
    ids = store.put(entries)
    check(len(ids) == len(entries), f"put() of {len(entries)} entries gave {ids}")
    check(None not in ids, f"put() refused an entry: {ids}")
    return [id for id in ids if id is not None]


def claim_all(
    store: MessageStore,
    topics: Sequence[str] | None = None,
    lease: float | EllipsisType | None = ...,
) -> list[MessageRecord]:
    """Claim one message after the other until none can be claimed."""
    found: list[MessageRecord] = []
    with contextlib.suppress(Empty):
        while True:
            found += store.claim(1, topics, lease=lease)
    return found


def claims_of(records: Sequence[MessageRecord]) -> list[MessageClaim]:
    """Return the claims of records that were claimed."""
    claims = [record.claim for record in records]
    check(None not in claims, f"claim() gave a record without a claim: {records}")
    return [claim for claim in claims if claim is not None]


def payloads(records: Sequence[MessageRecord]) -> list[str]:
    """Return the payloads as text."""
    return [record.payload.decode() for record in records]


def empty(store: MessageStore, topics: Sequence[str] | None = None) -> Empty:
    """Check that no message of these topics can be claimed, and return the error."""
    try:
        found = store.claim(1, topics)
    except Empty as error:
        return error
    raise AssertionError(f"claim() gave {found}, though none can be claimed")


def contents(store: MessageStore) -> list[MessageRecord]:
    """Return all messages of a store, and check that every other way to read them agrees."""
    records = list(store.scan())
    ids = [record.id for record in records]
    check(ids == sorted(set(ids)), f"scan() is not in the order of the ids: {ids}")
    check(all(record.claim is None for record in records), "scan() gives claims away")
    by_state = {state: [record for record in records if record.state is state] for state in State}
    for state, expected in by_state.items():
        alone = list(store.scan(state))
        check(alone == expected, f"scan({state}) gave {alone}, not {expected}")
    for record in records:
        found = store.find(record.id)
        check(found == record, f"find() gave {found}, scan() {record}")
    ready = Counter(record.topic for record in by_state[State.READY])
    topics = {record.topic: ready[record.topic] for record in records}
    check(store.topics() == topics, f"topics() gave {store.topics()}, not {topics}")
    for topic in (None, *topics):
        _check_counts(store, topic, [record for record in records if topic in (None, record.topic)])
    unfinished = any(by_state[state] for state in UNFINISHED)
    check(store.has_unfinished() == unfinished, f"has_unfinished() is {store.has_unfinished()}: {records}")
    _check_groups(records)
    return records


def _check_counts(store: MessageStore, topic: str | None, records: list[MessageRecord]) -> None:
    ready = [record for record in records if record.state is State.READY]
    where = f"of topic {topic}" if topic is not None else "of the queue"
    counts = store.count(topic), store.is_empty(topic)
    check(counts == (len(ready), not ready), f"count() and is_empty() {where} are {counts}, of {ready}")
    told = store.stats(topic)
    sizes = Counter(record.state for record in records)
    found = {state: getattr(told, state.value) for state in State}
    check(found == {state: sizes[state] for state in State}, f"stats() {where} are {told}, of {records}")
    check((told.oldest_age is None) == (not ready), f"stats() {where} are {told}, of {ready}")
    try:
        first = store.peek(topic)
    except Empty:
        check(not ready, f"peek() {where} raised Empty, of {ready}")
    else:
        wanted = min(ready, key=lambda record: (-record.priority, record.id), default=None)
        check(first == wanted, f"peek() {where} gave {first}, not {wanted}")


def _check_groups(records: list[MessageRecord]) -> None:
    groups: dict[tuple[str, str], list[MessageRecord]] = {}
    for record in records:
        if record.group is not None and record.state in UNFINISHED:
            groups.setdefault((record.topic, record.group), []).append(record)
        else:
            check(record.state is not State.BLOCKED, f"blocked without a group: {record}")
    for members in groups.values():
        heads = [record for record in members if record.state is not State.BLOCKED]
        check(len(heads) == 1, f"a group has {len(heads)} heads: {members}")


def standing(store: MessageStore) -> dict[str, State]:
    """Return by payload the state of each message."""
    return {record.payload.decode(): record.state for record in contents(store)}


@contextlib.contextmanager
def refuses(error: type[BaseException], what: str, *stores: MessageStore) -> Iterator[None]:
    """Check that the block raises ``error``, and changes nothing."""
    before = [contents(store) for store in stores]
    try:
        yield
    except error as raised:
        check(type(raised) is error, f"{what} raised {raised!r}, not {error.__name__}")
    else:
        raise AssertionError(f"{what} did not raise {error.__name__}")
    after = [contents(store) for store in stores]
    check(after == before, f"{what} raised {error.__name__} and changed {before} to {after}")


@contextlib.contextmanager
def stale(ids: Sequence[int], what: str, *stores: MessageStore) -> Iterator[None]:
    """Check that the block raises ``StaleClaimError`` for exactly these ids, and changes nothing."""
    with refuses(StaleClaimError, what, *stores):
        try:
            yield
        except StaleClaimError as error:
            check(sorted(error.ids) == sorted(ids), f"{what} named {error.ids} as stale, not {ids}")
            raise


def settling(
    harness: MessageStoreHarness, store: MessageStore, claims: Sequence[MessageClaim]
) -> dict[str, Callable[[], object]]:
    """Return, by the name for messages, each call that needs these claims and refuses stale ones."""
    return {
        "ack()": partial(store.ack, claims),
        "nack()": partial(store.nack, claims, error="nacked"),
        "nack() without a delay": partial(store.nack, claims, 0.0),
        "nack() with a delay": partial(store.nack, claims, harness.seconds(500.0)),
        "fail()": partial(store.fail, claims, "failed"),
        "extend()": partial(store.extend, claims, harness.seconds(500.0)),
        "deliver()": partial(store.deliver, claims),
    }


def totals(store: MessageStore) -> tuple[int, int, int]:
    """Return how many messages were put, will not be delivered again, and were removed after their ttl."""
    told = store.stats()
    return told.puts, told.gets, told.expired


def claim_of(store: MessageStore, topic: str, prefetch: bool = False) -> MessageClaim:
    """Claim the next message of a topic, and return its claim."""
    (claim,) = claims_of(store.claim(1, [topic], prefetch=prefetch))
    return claim


def notices_death(store: MessageStore) -> bool:
    """Tell whether the store notices the death of a holder at some time."""
    return not math.isinf(store.capabilities.death_noticed_after)


def ends(
    harness: MessageStoreHarness, what: str, at: float | None, seconds: float | None, since: float
) -> None:
    """Check that a time ``at`` is so many of the law's seconds after a call that began at ``since``.

    :param seconds: ``None``: there is no such time.
    """
    if seconds is None or at is None:
        check(at is seconds, f"{what} ends at {at}, and should after {seconds} s")
        return
    early, late = since + harness.seconds(seconds), harness.now() + harness.seconds(seconds)
    # The clock has no more digits.
    check(early - 1e-5 <= at <= late + 1e-5, f"{what} ends at {at}, not between {early} and {late}")


def together(harness: MessageStoreHarness, *parts: Iterator[float]) -> None:
    """Run parts of a law at the same time. Each one yields how many seconds it waits for."""
    # With a clock that nobody sets, each part waits from the end of its own step.
    due = [(harness.now(), number, part) for number, part in enumerate(parts)]
    while due:
        at, number, part = heapq.heappop(due)
        rest = at - harness.now()
        if rest > 0:
            harness.advance(rest / harness.seconds(1.0))
        wait = next(part, None)
        if wait is not None:
            heapq.heappush(due, (harness.now() + harness.seconds(wait), number, part))


def lock_of(store: MessageStore, topic: str, lease: float | None = 3600.0) -> TopicClaim:
    """Lock a topic that nobody has locked. The lease is in the store's seconds."""
    lock = store.lock_topic(topic, lease)
    if lock is None:
        raise AssertionError(f"lock_topic() of {topic!r}, which nobody has locked, gave None")
    check(lock.topic == topic, f"lock_topic() of {topic!r} gave {lock}")
    return lock


def claimable(store: MessageStore, topics: Sequence[str] | None = None) -> list[str]:
    """Return the payloads of what one call can claim, in the order in which it gives them."""
    try:
        records = store.claim(1000, topics)
    except Empty:
        return []
    count = store.release(claims_of(records))
    check(count == len(records), f"release() of {len(records)} claims ended {count}")
    return payloads(records)
