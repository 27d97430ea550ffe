"""The reference store: :class:`MemoryQueueStore`, which keeps the laws in the plainest way.

It is what the other stores are compared with, so it shares no idea with any of them: dicts, one lock,
and a search wherever a search will do. It is also handy in tests of programs that use a container,
where nothing has to outlive the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from persistcoll.engine.contracts import Claim, QueueStore
from persistcoll.engine.records import Record, Stats
from persistcoll.errors import ClosedError, Empty, Full, NotClaimedError

__all__ = ["MemoryQueueState", "MemoryQueueStore"]

T = TypeVar("T")


class MemoryQueueState:
    """What a :class:`MemoryQueueStore` keeps, and what is left when it is closed.

    Stores of the same state are to each other as stores in several processes are that have opened
    the same files. A copy (:meth:`copy`) is what a process that died at this moment leaves behind.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # so that `decode` may copy
        self.records: dict[int, Record] = {}
        """All that is stored, ready or claimed, by id."""
        self.holders: dict[int, MemoryQueueStore] = {}
        """Who has claimed what is claimed, by id."""
        self.tokens: dict[int, object] = {}
        """What tells the claim of an id from earlier ones."""
        self.last_id = 0
        self.puts = 0
        self.gets = 0
        self.changes = 0

    def copy(self) -> MemoryQueueState:
        """The same records, none of them claimed."""
        with self.lock:
            other = MemoryQueueState()
            other.records = dict(self.records)
            other.last_id, other.puts, other.gets = self.last_id, self.puts, self.gets
            return other

    def ready(self) -> list[Record]:
        """With the lock held: what is stored and not claimed, in order."""
        return [self.records[id] for id in sorted(self.records.keys() - self.holders.keys())]


class MemoryQueueStore(QueueStore):
    """A :class:`~persistcoll.engine.contracts.QueueStore` in memory.

    Closing gives back what this store has claimed; opening another one of the same state goes on.
    All methods may be called from any thread. Each costs time in proportion to what is stored.

    >>> state = MemoryQueueState()
    >>> store = MemoryQueueStore(state)
    >>> store.append(b"first"), store.append(b"second")
    (1, 2)
    >>> store.take(lambda record: record.payload)
    b'first'
    >>> store.close()
    >>> [record.payload for record in MemoryQueueStore(state).records()]
    [b'first', b'second']

    :param state: what is stored; a new and empty one by default.
    """

    def __init__(self, state: MemoryQueueState | None = None) -> None:
        self._state = state or MemoryQueueState()
        self._closed = False

    def _check(self) -> MemoryQueueState:
        if self._closed:
            raise ClosedError("this store in memory is closed")
        return self._state

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        return self.append_many((payload,), capacity)[0]

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> range:
        with self._state.lock:
            state = self._check()
            if payloads and 0 < capacity < len(state.ready()) + len(payloads):
                raise Full
            first = state.last_id + 1
            for id, payload in enumerate(payloads, first):
                state.records[id] = Record(id, bytes(payload), time.time())
            state.last_id += len(payloads)
            state.puts += len(payloads)
            state.changes += 1
            return range(first, state.last_id + 1)

    def take(
        self,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        return self.take_many(1, decode, acknowledge, claims=claims)[0]

    def take_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        acknowledge: bool = False,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        with self._state.lock:
            state = self._check()
            ready = state.ready()[:limit]
            values: list[T] = []
            for record in ready:
                try:
                    values.append(decode(record))
                except Exception:
                    if not values:
                        raise
                    break
            if not values:
                raise Empty
            # Only now: what interrupts `decode` (KeyboardInterrupt) leaves every record where it was.
            for record in ready[: len(values)]:
                state.holders[record.id] = self
                state.tokens[record.id] = token = object()
                state.changes += 1
                if acknowledge:
                    self._remove(record.id)
                elif claims is not None:
                    claims.append((record.id, token))
            return values

    def ack(self, ids: Sequence[int]) -> None:
        with self._state.lock:
            self._check()
            for id in ids:
                self._check_claim(id)
            for id in set(ids):
                self._remove(id)

    def nack(self, id: int) -> None:
        with self._state.lock:
            self._check_claim(id)
            del self._state.holders[id]
            self._state.changes += 1

    def release(self, claims: Sequence[Claim]) -> int:
        with self._state.lock:
            state = self._check()
            mine = [id for id, token in claims if state.tokens.get(id) is token]
            mine = [id for id in mine if state.holders.get(id) is self]
            for id in mine:
                del state.holders[id]
                state.changes += 1
            return len(mine)

    def _check_claim(self, id: int) -> None:
        if self._check().holders.get(id) is not self:
            raise NotClaimedError(f"item {id} is not in the hands of this store")

    def _remove(self, id: int) -> None:
        state = self._state
        del state.records[id]
        state.holders.pop(id, None)
        state.gets += 1
        state.changes += 1

    def peek(self, decode: Callable[[Record], T]) -> T:
        with self._state.lock:
            for record in self._check().ready():
                return decode(record)
        raise Empty

    def remove(self, id: int | None = None) -> int | None:
        with self._state.lock:
            for record in self._check().ready():
                if id in (None, record.id):
                    self._remove(record.id)
                    return record.id
        return None

    def clear(self) -> int:
        with self._state.lock:
            ready = self._check().ready()
            for record in ready:
                self._remove(record.id)
            return len(ready)

    def records(self) -> Iterator[Record]:
        with self._state.lock:
            return iter(self._check().ready())

    def count(self) -> int:
        with self._state.lock:
            return len(self._check().ready())

    def claimed(self) -> int:
        with self._state.lock:
            return len(self._check().holders)

    def unfinished(self) -> int:
        with self._state.lock:
            return len(self._check().records)

    def change_token(self) -> object:
        with self._state.lock:
            return self._check().changes

    def stats(self) -> Stats:
        with self._state.lock:
            state = self._check()
            stored, ready = state.records.values(), state.ready()
            return Stats(
                ready=len(ready),
                claimed=len(state.holders),
                oldest_age=max(0.0, time.time() - ready[0].time) if ready else None,
                puts=state.puts,
                gets=state.gets,
                bytes=sum(len(record.payload) for record in stored),
            )

    def after_fork_in_child(self) -> None:
        # The child's memory is a copy, in which the parent's claims are nobody's; a thread that the
        # child does not have may hold the lock.
        self._state.lock = threading.RLock()
        self._state.holders.clear()

    def close(self) -> None:
        with self._state.lock:
            self._closed = True
            holders = self._state.holders
            for id in [id for id, holder in holders.items() if holder is self]:
                del holders[id]
                self._state.changes += 1
