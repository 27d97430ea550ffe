"""Changes of pairs that stay in memory until they are committed: :class:`WriteBuffer`.

It is a pair store over a pair store. A change through it stays in memory, where only its owner sees it, and
the commit writes all changes in one transaction. Other writers do not wait meanwhile. A transaction that
stayed open would lock them out for as long as its owner likes.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.records import Stats
from persistcoll.engine.tasks import current_task
from persistcoll.engine.transaction_hooks import OPEN, TransactionHooks
from persistcoll.errors import ClosedError, LockedError, StorageError

__all__ = ["WriteBuffer"]

T = TypeVar("T")


class _Value(NamedTuple):
    """A value to be stored."""

    name: bytes
    value: bytes
    end: float | None = None
    """When it expires, by the buffer's clock; ``None``: never."""
    keeps_expiry: bool = False
    """Whether it exists only while the stored pair does, and expires with that."""

    def replace_if_present(self, present: bytes | None) -> tuple[bytes | None, None]:
        """Return what ``change`` needs to replace the stored value, if there is one, by this one."""
        return (None if present is None else self.value), None


_Snapshot = tuple[bool, set[bytes], dict[bytes, _Value], dict[bytes, _Value], list[tuple[float, bytes]]]


class WriteBuffer(PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` whose changes wait for :meth:`commit`.

    Reads see the buffered changes and what other writers do to the store. Where another writer and this
    buffer change the same key, the last commit wins. A pair that was replaced here keeps its place as long as
    the store has it. If it expires there meanwhile, the new pair comes after all others. Any thread may call
    any method.

    ``_lock`` guards every attribute that changes. A transaction holds it from its beginning to its end.

    If a transaction of the store is rolled back, the buffer holds again what it did when this object was
    first used within it. That includes what other threads have buffered since.

    Cost: iterations, ``count`` and the last pair take longer the more is buffered. Only :meth:`commit`
    writes.

    >>> from persistcoll.engine.memory.pair_store import MemoryPairStore
    >>> store = MemoryPairStore()
    >>> buffer = WriteBuffer(store)
    >>> buffer.set_many([(b"key", b"", b"value")])
    >>> buffer.get(b"key"), store.get(b"key")
    (b'value', None)
    >>> buffer.commit()
    >>> store.get(b"key")
    b'value'

    :param clock: returns the time in seconds, by which buffered pairs expire.
    """

    def __init__(self, store: PairStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self.max_key, self.max_value = store.max_key, store.max_value
        self._clock = clock
        self._closed = False
        self._in_transaction = False
        self._task: Any = None  # Of the transaction.
        self._joined: object = None  # The store's transaction whose rollback restores the buffer.
        self._lock = threading.RLock()  # Re-entrant, and held by a transaction.
        self._reset()

    def _reset(self) -> None:
        # What the commit does to the store, in this order.
        self._cleared = False
        self._removed: set[bytes] = set()
        self._replaced: dict[bytes, _Value] = {}  # Stored pairs; they keep their place.
        self._added: dict[bytes, _Value] = {}  # They come after all others; some are also in `_removed`.
        self._expiry_heap: list[tuple[float, bytes]] = []  # A heap of when each key expires, at the earliest.

    def commit(self) -> None:
        """Write the buffered changes in one transaction. If that fails, they stay buffered."""
        with self._lock:
            self._check()
            if self._in_transaction:
                raise StorageError("the block of transaction() must end before its changes are committed")
            if not (self._cleared or self._removed or self._replaced or self._added):
                return
            with self._store.transaction():
                if self._cleared:
                    self._store.clear()
                for key in self._removed:
                    self._store.remove(key)
                self._write(self._replaced)
                self._write(self._added)
            self._reset()

    def _restore_on_rollback(self) -> None:
        """Have the buffer hold what it does now, if the store's open transaction is rolled back."""
        transaction = self._store.open_transaction()
        if transaction is not None and transaction is not self._joined:
            self._joined = transaction
            transaction.on_rollback(partial(self._restore, self._snapshot()))

    def _snapshot(self) -> _Snapshot:
        return (
            self._cleared,
            set(self._removed),
            dict(self._replaced),
            dict(self._added),
            list(self._expiry_heap),
        )

    def _restore(self, snapshot: _Snapshot) -> None:
        with self._lock:
            cleared, removed, replaced, added, expiry_heap = snapshot
            self._cleared, self._removed, self._expiry_heap = cleared, set(removed), list(expiry_heap)
            self._replaced, self._added = dict(replaced), dict(added)

    def _write(self, changed: dict[bytes, _Value]) -> None:
        for (end, keeps_expiry), run in itertools.groupby(changed.items(), lambda item: item[1][2:]):
            if keeps_expiry:
                for key, new in run:
                    self._store.change(key, new.name, new.replace_if_present)
            else:
                items = [(key, new.name, new.value) for key, new in run]
                self._store.set_many(items, None if end is None else end - self._clock())

    # The methods of this section need the lock.

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this dict is closed")
        if self._in_transaction and self._task is not current_task():
            # The lock lets it in, because it is the same thread.
            raise LockedError("another task of this thread has a transaction of this dict open")
        if OPEN:
            self._restore_on_rollback()
        if not self._expiry_heap:
            return
        now = self._clock()
        while self._expiry_heap and self._expiry_heap[0][0] <= now:
            end, key = heapq.heappop(self._expiry_heap)
            new = self._buffered(key)
            if new is not None and new.end == end:  # The key was not set again since.
                self._remove(key)

    def _buffered(self, key: bytes) -> _Value | None:
        new = self._added.get(key)
        if new is None:
            new = self._replaced.get(key)
            if new is not None and new.keeps_expiry and not self._store.contains(key):
                del self._replaced[key]
                return None
        return new

    def _move_orphans_to_end(self) -> None:
        """Move replaced pairs that the store has no more after all others, because they have no place."""
        gone = [key for key in self._replaced if not self._store.contains(key)]
        if gone:
            found = {key: self._replaced.pop(key) for key in gone}
            mine = {key: new for key, new in found.items() if not new.keeps_expiry}
            # Before the pairs that were added, as the commit does it.
            self._added = {**mine, **self._added}

    def _hidden(self, key: bytes) -> bool:
        return self._cleared or key in self._removed

    def _remove(self, key: bytes) -> None:
        self._added.pop(key, None)
        self._replaced.pop(key, None)
        if self._store.contains(key):
            self._removed.add(key)

    # One key.

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            self._check()
            new = self._buffered(key)
            if new is not None:
                return new.value
            return None if self._hidden(key) else self._store.get(key)

    def contains(self, key: bytes) -> bool:
        with self._lock:
            self._check()
            return self._buffered(key) is not None or (not self._hidden(key) and self._store.contains(key))

    def change(self, key: bytes, name: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        with self._lock:
            present = self.get(key)
            value, result = change(present)
            if value is present:
                return result
            if value is None:
                self._remove(key)
            elif present is None:
                self._added[key] = _Value(name, value)
            elif key in self._added:
                self._added[key] = self._added[key]._replace(value=value)
            else:
                new = self._replaced.get(key) or _Value(name, value, keeps_expiry=True)
                self._replaced[key] = new._replace(value=value)
            return result

    def remove(self, key: bytes) -> bool:
        with self._lock:
            there = self.contains(key)
            if there:
                self._remove(key)
            return there

    # Several.

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        with self._lock:
            self._check()
            changed = {key: self._buffered(key) for key in keys}
            found = {key: new.value for key, new in changed.items() if new is not None}
            rest = [key for key, new in changed.items() if new is None and not self._hidden(key)]
            return {**found, **self._store.get_many(rest)}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        with self._lock:
            self._check()
            end = None if expires is None else self._clock() + expires
            # All reads of the store come before the first change, because a read may fail.
            below = {key for key, _, _ in items if self._keeps_place(key)}
            for key, name, value in items:
                if key in below:
                    self._replaced[key] = _Value(name, value, end)
                else:
                    present = self._added.get(key)
                    self._added[key] = _Value(name if present is None else present.name, value, end)
                if end is not None:
                    heapq.heappush(self._expiry_heap, (end, key))

    def _keeps_place(self, key: bytes) -> bool:
        if key in self._added or self._hidden(key):
            return False
        return self._buffered(key) is not None or self._store.contains(key)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        with self._lock:
            for pair in self.pairs(reverse=last):
                result = decode(pair)
                self._remove(pair.key)
                return result
        raise KeyError("the dict is empty")

    def clear(self) -> int:
        with self._lock:
            count = self.count()
            self._reset()
            self._cleared = True
            return count

    def count(self) -> int:
        with self._lock:
            self._check()
            self._move_orphans_to_end()
            count = len(self._added)
            if not self._cleared:
                hidden = self._removed | self._added.keys()
                count += self._store.count() - sum(map(self._store.contains, hidden))
            return count

    # Iteration. The keys added so far come in their order, whether they are committed meanwhile or not.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._lock:
            self._check()
            self._move_orphans_to_end()
            names = {key: new.name for key, new in self._added.items()}
            below = self._store.pairs(reverse, values)
        others = self._stored_pairs(below, names, values)
        if reverse:
            return itertools.chain(self._buffered_pairs(names, reversed(names), values), others)
        return itertools.chain(others, self._buffered_pairs(names, names, values))

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._lock:
            self._check()
            self._move_orphans_to_end()
            names = {key: new.name for key, new in self._added.items() if start <= key < stop}
            below = self._store.scan(start, stop, reverse, values)
        mine = self._buffered_pairs(names, sorted(names, reverse=reverse), values)
        others = self._stored_pairs(below, names, values)
        return heapq.merge(mine, others, key=lambda pair: pair.key, reverse=reverse)

    def _buffered_pairs(
        self, names: dict[bytes, bytes], keys: Iterable[bytes], values: bool
    ) -> Iterator[Pair]:
        for key in keys:
            value = self.get(key)
            if value is not None:
                yield Pair(key, names[key], value if values else b"")

    def _stored_pairs(self, below: Iterator[Pair], names: dict[bytes, bytes], values: bool) -> Iterator[Pair]:
        for pair in below:
            with self._lock:
                self._check()
                gone = self._hidden(pair.key) or pair.key in self._added
                new = None if gone else self._replaced.get(pair.key)
            if not gone and pair.key not in names:
                yield pair if new is None or not values else pair._replace(value=new.value)

    # Transactions.

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            self._check()
            if self._in_transaction:
                yield
                return
            before = self._snapshot()
            self._task = current_task()
            self._in_transaction = True
            try:
                yield
            except BaseException:
                self._restore(before)
                raise
            finally:
                self._in_transaction, self._task = False, None

    def open_transaction(self) -> TransactionHooks | None:
        return self._store.open_transaction()

    def change_token(self) -> object:
        return self._store.change_token()

    def stats(self) -> Stats:
        with self._lock:
            return replace(self._store.stats(), ready=self.count())

    # Lifecycle.

    def after_fork_in_child(self) -> None:
        # The parent commits what the parent buffered.
        self._lock = threading.RLock()
        self._in_transaction = False
        self._reset()
        self._store.after_fork_in_child()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._reset()
            self._store.close()
