"""What is done to a message queue that crashes, and the account of what was asked and answered.

A worker says each operation before it does it, and then its result, as :mod:`tests.crash.dict_accounts` does.
An :class:`Account` does the same to a queue in memory, which is the reference model. After a crash the tested
queue must equal that one at some moment that the crash allows, message by message and count by count, after
the claims of the dead worker have ended.

Every delay, lease and ``ttl`` of an operation is far longer than a test, so that no result depends on times.
"""

from __future__ import annotations

import ast
import contextlib
import random
import sqlite3
from pathlib import Path
from typing import Any, Literal

from persistcoll import DuplicateError, Empty, StaleClaimError
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy, TopicClaim
from persistcoll.engine.records import Durability, State
from tests.crash.dict_accounts import Op, Pairs, difference, look, stored
from tests.crash.messages import POLICY, is_consistent, opened

__all__ = ["Account", "Author", "Hands", "contents", "found"]

TOPICS = ("a", "b", "c")
LONG = 1e6  # seconds


# Operations.


class Hands:
    """A store and what was claimed and locked through it.

    :param store: of SQLite, or the model.
    :ivar claims: each claim that the store gave, by the id of the message and the number of its delivery.
    :ivar ids: the ids of the messages that were put.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.claims: dict[tuple[int, int], MessageClaim] = {}
        self.locks: dict[str, TopicClaim] = {}
        self.ids: list[int] = []

    def do(self, op: Op) -> Any:
        """Do the operation; return its result, in numbers and words."""
        verb, *given = op
        try:
            return getattr(self, f"_{verb}", self._call)(verb, *given)
        except StaleClaimError as error:
            return "stale", list(error.ids)
        except Empty:
            return "empty"
        except DuplicateError:
            return "duplicate"

    def _call(self, verb: str, *given: Any) -> Any:
        return getattr(self.store, verb)(*given)

    def _put(self, verb: str, entries: list[tuple[int, dict[str, Any]]]) -> Any:
        ids = self.store.put([MessageEntry(stored(number), **more) for number, more in entries])
        self.ids += [id for id in ids if id is not None]
        return ids

    def _claim(self, verb: str, limit: int, topics: list[str] | None, lease: Any, prefetch: bool) -> Any:
        claims: list[MessageClaim] = []
        records = self.store.claim(limit, topics, lease=lease, prefetch=prefetch, claims=claims)
        assert claims == [record.claim for record in records]
        self.claims.update({(record.id, record.deliveries): record.claim for record in records})
        return [(record.id, record.deliveries, record.attempts, look(record.payload)) for record in records]

    def _settle(self, verb: str, how: str, which: list[tuple[int, int]], *given: Any) -> Any:
        # A claim that a rollback has undone is unknown to a worker that was started after it.
        result = getattr(self.store, how)([self.claims[each] for each in which], *given)
        return None if how == "extend" else result

    def _lock_topic(self, verb: str, topic: str | None) -> Any:
        lock = self.store.lock_topic(topic, LONG)
        if lock is not None:
            self.locks[lock.topic] = lock
        return lock and lock.topic

    def _with_lock(self, verb: str, how: str, topic: str, *given: Any) -> Any:
        return getattr(self.store, how)(self.locks[topic], *given)

    def _purge(self, verb: str, topic: str | None, dead: bool) -> Any:
        return self.store.purge(topic, dead=dead)

    def _transaction(self, verb: str, ops: list[Op], well: bool) -> Any:
        with contextlib.suppress(ZeroDivisionError), self.store.transaction():
            results = [self.do(op) for op in ops]
            if not well:
                raise ZeroDivisionError
            return results
        return None


def is_synced(op: Op, result: Any) -> bool:
    """Tell whether an operation at ``"power"`` has synced all that came before, when it returns this."""
    verb, *given = op
    if verb == "transaction":
        return given[1] is True
    if result in ("empty", "duplicate") or (isinstance(result, tuple) and result[0] == "stale"):
        return False
    if verb == "settle":
        return given[0] in ("ack", "nack", "fail")
    return verb not in ("claim", "lock_topic", "with_lock", "reclaim")


class Author:
    """Invents operations.

    :param hands: of the worker, which says what is claimed.
    """

    def __init__(self, rng: random.Random, hands: Hands) -> None:
        self.rng = rng
        self.hands = hands

    def op(self) -> Op:
        """Return the next operation."""
        stats = self.hands.store.stats()
        unclaimed = stats.ready + stats.delayed + stats.blocked
        if unclaimed + stats.dead > 60:
            return "purge", None, unclaimed < stats.dead
        if self.rng.random() < 0.15:
            ops = [self._op() for _ in range(self.rng.randrange(1, 5))]
            return "transaction", ops, self.rng.random() < 0.7
        return self._op()

    def _op(self) -> Op:
        makers = [self._put, self._claim, self._settle, self._manage, self._gate]
        (make,) = self.rng.choices(makers, weights=(6, 6, 10, 2, 2))
        return make()

    def _put(self) -> Op:
        rng = self.rng
        entries = []
        for _ in range(rng.choice((1, 1, 2, 6))):
            more: dict[str, Any] = {"topic": rng.choice(TOPICS)}
            more["priority"] = rng.choice((0, 0, 1, 2.5))
            more["group"] = rng.choice((None, "x", "y"))
            more["delay"] = LONG if rng.random() < 0.1 else 0
            if rng.random() < 0.2:
                more["key"] = b"key %d" % rng.randrange(10)
                more["key_window"] = rng.choice((0, LONG))
            more["ttl"] = rng.choice((None, 2 * LONG))
            more["max_attempts"] = rng.choice((..., 1, None)) if rng.random() < 0.2 else 3
            more["headers"] = b"headers" if rng.random() < 0.2 else b""
            entries.append((rng.randrange(10**8), more))
        return "put", entries

    def _claim(self) -> Op:
        rng = self.rng
        topics = None if rng.random() < 0.6 else rng.sample(TOPICS, rng.randrange(1, 3))
        return "claim", rng.choice((1, 1, 3)), topics, rng.choice((..., None, LONG)), rng.random() < 0.3

    def _settle(self) -> Op:
        rng, held = self.rng, list(self.hands.claims)
        if not held:
            return self._claim()
        # Most of the newest claims have not ended, and most of the others have.
        which = rng.sample(held[-6:] if rng.random() < 0.9 else held, 1)
        if rng.random() < 0.2:
            which += rng.sample(held[-6:], 1)
        how = rng.choice(("ack", "ack", "ack", "nack", "nack", "release", "fail", "extend", "deliver"))
        more: list[Any] = []
        if how == "nack":
            more = [rng.choice((None, None, 0, LONG)), rng.choice((None, "an error"))]
        elif how == "fail":
            more = [rng.choice((None, "a failure"))]
        elif how == "extend":
            more = [rng.choice((None, LONG))]
        return "settle", how, which, *more

    def _manage(self) -> Op:
        rng = self.rng
        id = rng.choice(self.hands.ids[-30:]) if self.hands.ids else 1
        ops: list[Op] = [
            ("redrive", id),
            ("redrive_all", rng.choice((None, *TOPICS))),
            ("cancel", id),
            ("release_key", b"key %d" % rng.randrange(10)),
            ("reclaim",),
        ]
        if rng.random() < 0.2:
            ops.append(("purge", rng.choice(TOPICS), rng.random() < 0.5))
        return rng.choice(ops)

    def _gate(self) -> Op:
        rng = self.rng
        topic = rng.choice(TOPICS)
        ops: list[Op] = [("pause", topic), ("resume", topic), ("resume", topic), ("lock_topic", topic)]
        ops += [("set_rate", topic, *rng.choice(((None,), (None,), (LONG, 5))))]
        ops += [("lock_topic", None)]
        for topic in self.hands.locks:
            ops += [("with_lock", "unlock_topic", topic)] * 2 + [("with_lock", "extend_lock", topic, LONG)]
        return rng.choice(ops)


# What is there.


def contents(store: Any) -> Pairs:
    """Return all that a store tells, in numbers and words: its messages by their ids, and its counts."""
    pairs: Pairs = []
    for each in store.scan():
        of = look(each.payload), each.topic, each.priority, each.state.value, each.attempts, each.deliveries
        more = each.key, each.group, each.headers, each.error
        pairs.append((each.id, (*of, *more, each.until is not None, each.finished is not None)))
    stats = store.stats()
    names = [state.value for state in State]
    counts = [(name, getattr(stats, name)) for name in (*names, "puts", "gets", "expired")]
    pairs.append(("stats", counts))
    pairs.append(("topics", dict(sorted(store.topics().items()))))
    for topic in sorted(store.topics()):
        pairs.append((("stats", topic), [getattr(store.stats(topic), name) for name in names]))
    return pairs


def found(policy: MessagePolicy, durability: Durability, path: str) -> Pairs:
    """Return what another process finds there, where the holder of each claim is dead."""
    with contextlib.closing(opened(path, policy, durability)) as store:
        assert store.count() == sum(store.topics().values())
        pairs = contents(store)
        now = store._now()
    is_consistent(path)
    with contextlib.closing(sqlite3.connect(Path(path, "data.db"))) as connection:
        keys = connection.execute("SELECT key, id, unfinished, until > ? FROM keys_1", (now,)).fetchall()
        gates = connection.execute(
            "SELECT topic, paused, interval, burst, next FROM topics_1 WHERE gated = 1"
        ).fetchall()
    active = [(key, id, bool(unfinished)) for key, id, unfinished, window in keys if unfinished or window]
    paused = [topic for topic, is_paused, *_ in gates if is_paused]
    rates = [
        (topic, interval, burst, _turns(next_at, interval, now))
        for topic, _, interval, burst, next_at in gates
        if interval is not None
    ]
    return [*pairs, *_unseen(active, paused, rates)]


def _unseen(keys: list[Any], paused: list[str], rates: list[Any]) -> Pairs:
    """Return what no call tells, and what therefore a crash must leave as it was at the same moment."""
    return [("keys", sorted(keys)), ("paused", sorted(paused)), ("rates", sorted(rates))]


def _turns(next_at: float, interval: float, now: float) -> int:
    """Return after how many intervals the next delivery comes, which hardly changes during a test."""
    return round((next_at - now) / interval)


class Account:
    """What a message queue must be after a crash of its only worker.

    :param crash: ``"kill"``: all that was committed survives. ``"power cut"``: what was synced survives, and
        of what came later a prefix. ``"without syncs"``: a prefix survives.
    :ivar done, undone: how many operations that a crash cut short were found done, and not done.
    :ivar between: how many states were neither the first nor the last of a run.
    """

    def __init__(
        self,
        crash: Literal["kill", "power cut", "without syncs"] = "kill",
        policy: MessagePolicy = POLICY,
    ) -> None:
        self.crash = crash
        self.policy = policy
        self.asked: Op | None = None
        self.done = self.undone = self.between = 0
        self._begin(MemoryMessageState(lambda: 1e9))

    def _begin(self, state: MemoryMessageState) -> None:
        self._state = state
        self._model = Hands(MemoryMessageStore(self.policy, state))
        self._model.store.reclaim()
        self._moments = [state.copy()]  # the states that a crash may leave

    def add(self, said: str) -> None:
        """Record what a worker said."""
        verb, _, what = said.partition(" ")
        if verb == "ask":
            assert self.asked is None, (self.asked, said)
            self.asked = ast.literal_eval(what.replace("Ellipsis", "..."))
        elif verb == "ok":
            op, self.asked = self.asked, None
            assert op is not None, said
            result, wanted = ast.literal_eval(what), self._model.do(op)
            assert result == wanted, f"lost or undone: {op} gave {result}, not {wanted}"
            if self.crash != "kill":
                if self.crash == "power cut" and is_synced(op, result):
                    self._moments.clear()
                self._moments.append(self._state.copy())
        elif verb == "no":
            op, self.asked = self.asked, None
            assert op is not None, said
            if op[0] == "transaction":
                # The worker keeps the claims and locks of a transaction that failed, and may settle them:
                # the model must know them, because the answer to both is "stale".
                self._model.do(("transaction", op[1], False))
        else:
            assert verb == "open", said

    def check(self, found: Pairs, *, prefix: bool = False) -> None:
        """Check what was found after a crash; the next run begins with it.

        :param prefix: must be true without syncs.
        """
        assert prefix == (self.crash == "without syncs")
        if self.crash == "kill":
            self._moments = [self._state.copy()]
        before = len(self._moments) - 1
        if self.asked is not None:
            self._model.do(self.asked)
            self._moments.append(self._state.copy())
        states = [self._crashed(moment) for moment in self._moments]
        # The moments of operations that change nothing are equal; the last one counts.
        matches = [number for number, pairs in enumerate(states) if pairs == found]
        if not matches:
            where = difference(found, states[before])
            raise AssertionError(f"lost or undone, or half of {self.asked}: {where}")
        if states[-1] != states[before]:
            self.done += matches[-1] > before
            self.undone += matches[-1] == before
        self.between += states[0] != found != states[before] and matches[-1] <= before
        self.asked = None
        self._begin(self._moments[matches[-1]])

    def _crashed(self, moment: MemoryMessageState) -> Pairs:
        """Return what is there when the holders of that moment are dead."""
        state = moment.copy()
        pairs, now = contents(MemoryMessageStore(self.policy, state)), state.clock()
        keys = [(key, active.id, active.unfinished) for key, active in state.keys.items()]
        rates = [
            (topic, rate.interval, rate.burst, _turns(rate.next, rate.interval, now))
            for topic, rate in state.rates.items()
        ]
        return [*pairs, *_unseen(keys, list(state.paused), rates)]
