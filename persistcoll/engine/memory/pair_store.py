"""The reference pair store: :class:`MemoryPairStore`, the simplest store that keeps the laws of pair stores.

Like :class:`~persistcoll.engine.memory.record_store.MemoryRecordStore` it consists of one dict, one lock, and
a search wherever a search is sufficient. The clock is a function, so that a test of expiry need not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.memory.transactions import TransactionalState
from persistcoll.engine.records import Stats
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import ClosedError

__all__ = ["MemoryPairState", "MemoryPairStore"]

T = TypeVar("T")


class _Row(NamedTuple):
    serial: int
    name: bytes
    value: bytes
    end: float | None
    """The time at which the pair expires, in seconds by the clock; ``None``: never."""


class MemoryPairState(TransactionalState):
    """The pairs of a :class:`MemoryPairStore`."""

    NUMBERS = ("last_serial",)

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self.rows: dict[bytes, _Row] = {}
        """The pairs by key, in order. An expired pair stays until the next call."""
        self.last_serial = 0


class MemoryPairStore(PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` in memory.

    Closing a store keeps the state, and a new store of the same state continues with it. Any thread may call
    any method. The time of a call grows with the number of pairs.

    >>> now = 0.0
    >>> mapping = MemoryPairStore(MemoryPairState(clock=lambda: now))
    >>> mapping.set_many([(b"a", b"", b"1")], expires=60)
    >>> mapping.set_many([(b"b", b"", b"2")])
    >>> mapping.get(b"a"), mapping.count()
    (b'1', 2)
    >>> now += 60
    >>> mapping.get(b"a"), mapping.count()
    (None, 1)

    :param state: the state with the pairs; a new and empty one by default.
    """

    def __init__(self, state: MemoryPairState | None = None) -> None:
        self._state = state or MemoryPairState()
        self._closed = False

    def _promote_due(self) -> MemoryPairState:
        """Remove expired pairs and return the state. Each call of the store does it once, under the lock."""
        if self._closed:
            raise ClosedError("this pair store in memory is closed")
        state = self._state
        state.refuse_other_task()
        now = state.clock()
        for key in [key for key, row in state.rows.items() if row.end is not None and row.end <= now]:
            del state.rows[key]
        return state

    def _set(self, key: bytes, name: bytes, value: bytes, end: float | None) -> None:
        state = self._state
        row = state.rows.get(key)
        if row is None:
            state.last_serial += 1
            row = _Row(state.last_serial, bytes(name), value, end)
        state.rows[key] = row._replace(value=bytes(value), end=end)
        state.changes += 1

    def _remove(self, key: bytes) -> None:
        del self._state.rows[key]
        self._state.changes += 1

    # One key.

    def get(self, key: bytes) -> bytes | None:
        with self._state.lock:
            row = self._promote_due().rows.get(key)
            return None if row is None else row.value

    def contains(self, key: bytes) -> bool:
        with self._state.lock:
            return key in self._promote_due().rows

    def change(self, key: bytes, name: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        with self._state.lock:
            row = self._promote_due().rows.get(key)
            present = None if row is None else row.value
            value, result = change(present)
            if value is None:
                if row is not None:
                    self._remove(key)
            elif value is not present:
                self._set(key, name, value, None if row is None else row.end)
            return result

    def remove(self, key: bytes) -> bool:
        with self._state.lock:
            there = key in self._promote_due().rows
            if there:
                self._remove(key)
            return there

    # Several keys.

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        with self._state.lock:
            rows = self._promote_due().rows
            return {key: rows[key].value for key in keys if key in rows}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        with self._state.lock:
            state = self._promote_due()
            end = None if expires is None else state.clock() + expires
            for key, name, value in items:
                self._set(key, name, value, end)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        with self._state.lock:
            rows = self._promote_due().rows
            if not rows:
                raise KeyError("the mapping is empty")
            key = list(rows)[-1 if last else 0]
            result = decode(Pair(key, rows[key].name, rows[key].value))
            self._remove(key)
            return result

    def clear(self) -> int:
        with self._state.lock:
            rows = self._promote_due().rows
            count = len(rows)
            for key in list(rows):
                self._remove(key)
            return count

    def count(self) -> int:
        with self._state.lock:
            return len(self._promote_due().rows)

    # Iteration. It takes a list of the keys at the call, and reads the value of each key when it comes to it.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._state.lock:
            serials = [(key, row.serial) for key, row in self._promote_due().rows.items()]
        return self._pairs_of(reversed(serials) if reverse else serials, values)

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._state.lock:
            rows = self._promote_due().rows
            keys = sorted((key for key in rows if start <= key < stop), reverse=reverse)
        return self._pairs_of([(key, None) for key in keys], values)

    def _pairs_of(self, keys: Iterable[tuple[bytes, int | None]], values: bool) -> Iterator[Pair]:
        for key, serial in keys:
            with self._state.lock:
                row = self._promote_due().rows.get(key)
            if row is not None and serial in (None, row.serial):
                yield Pair(key, row.name, row.value if values else b"")

    # Transactions.

    def transaction(self) -> AbstractContextManager[None]:
        return self._state.transaction(self._promote_due)

    def open_transaction(self) -> TransactionHooks | None:
        return self._state.open_transaction()

    def change_token(self) -> object:
        with self._state.lock:
            return self._promote_due().changes

    def stats(self) -> Stats:
        with self._state.lock:
            rows = self._promote_due().rows
            stored = sum(len(key) + len(row.name) + len(row.value) for key, row in rows.items())
            return Stats(ready=len(rows), bytes=stored)

    # Lifecycle.

    def after_fork_in_child(self) -> None:
        self._state.forked()

    def close(self) -> None:
        with self._state.lock:
            self._closed = True
