"""Changes of a mapping that are kept back until they are committed: :class:`WriteBuffer`.

It is a mapping over a mapping. What is changed through it lies in memory, where only it sees it, and goes
into the mapping below in one transaction. Nobody has to wait meanwhile, which is why this is no
transaction held open: one of those locks out every writer of the file, for as long as its owner pleases.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.records import Stats
from persistcoll.errors import ClosedError

__all__ = ["WriteBuffer"]

T = TypeVar("T")


class _Value(NamedTuple):
    """A value to be stored."""

    name: bytes
    value: bytes
    end: float | None = None
    """When it expires, by the clock."""
    inherits: bool = False
    """It is there for as long as the one below is, and expires with it."""

    def in_place(self, present: bytes | None) -> tuple[bytes | None, None]:
        """For ``change``: this value in the place of the present one, if there is one."""
        return (None if present is None else self.value), None


class WriteBuffer(PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` whose changes wait for :meth:`commit`.

    Reads see them. What others do to the mapping below is seen as well; where they and this one change the
    same key, the last to commit wins. A pair that was replaced here keeps its place as long as it is there
    below; if it expires there meanwhile, the new one goes behind the others. Iterations, ``count`` and the
    last pair take longer the more was gathered. All methods may be called from any thread.

    >>> from persistcoll.engine.memory.pair_store import MemoryPairStore
    >>> below = MemoryPairStore()
    >>> gathering = WriteBuffer(below)
    >>> gathering.set_many([(b"key", b"", b"value")])
    >>> gathering.get(b"key"), below.get(b"key")
    (b'value', None)
    >>> gathering.commit()
    >>> below.get(b"key")
    b'value'

    :param clock: the time in seconds, to expire by until the commit.
    """

    def __init__(self, below: PairStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._below = below
        self._clock = clock
        self._closed = False
        self._within = False
        self._lock = threading.RLock()  # a transaction holds it
        self._forget()

    def _forget(self) -> None:
        # What is to be done below, in this order.
        self._cleared = False
        self._removed: set[bytes] = set()
        self._replaced: dict[bytes, _Value] = {}  # there below: they keep their place
        self._added: dict[bytes, _Value] = {}  # behind all others; some are also among the removed
        self._ends: list[tuple[float, bytes]] = []  # a heap of when which one expires, at the earliest

    def commit(self) -> None:
        """Do below, in one transaction, what was gathered. If that fails, it stays gathered."""
        with self._lock:
            self._check()
            if not (self._cleared or self._removed or self._replaced or self._added):
                return
            with self._below.transaction():
                if self._cleared:
                    self._below.clear()
                for key in self._removed:
                    self._below.remove(key)
                self._store(self._replaced)
                self._store(self._added)
            self._forget()

    def _store(self, changed: dict[bytes, _Value]) -> None:
        for (end, inherits), run in itertools.groupby(changed.items(), lambda item: item[1][2:]):
            if inherits:
                for key, new in run:
                    self._below.change(key, new.name, new.in_place)
            else:
                items = [(key, new.name, new.value) for key, new in run]
                self._below.set_many(items, None if end is None else end - self._clock())

    # With the lock held.

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("this mapping is closed")
        if not self._ends:
            return
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            end, key = heapq.heappop(self._ends)
            new = self._changed(key)
            if new is not None and new.end == end:  # not set again since
                self._remove(key)

    def _changed(self, key: bytes) -> _Value | None:
        new = self._added.get(key)
        if new is None:
            new = self._replaced.get(key)
            if new is not None and new.inherits and not self._below.contains(key):
                del self._replaced[key]
                return None
        return new

    def _place(self) -> None:
        """Put behind all others what was replaced, and is gone below: there it has no place any more."""
        gone = [key for key in self._replaced if not self._below.contains(key)]
        if gone:
            found = {key: self._replaced.pop(key) for key in gone}
            mine = {key: new for key, new in found.items() if not new.inherits}
            # Before those that were there neither, as the commit does it.
            self._added = {**mine, **self._added}

    def _hidden(self, key: bytes) -> bool:
        return self._cleared or key in self._removed

    def _remove(self, key: bytes) -> None:
        self._added.pop(key, None)
        self._replaced.pop(key, None)
        if self._below.contains(key):
            self._removed.add(key)

    # One key.

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            self._check()
            new = self._changed(key)
            if new is not None:
                return new.value
            return None if self._hidden(key) else self._below.get(key)

    def contains(self, key: bytes) -> bool:
        with self._lock:
            self._check()
            return self._changed(key) is not None or (not self._hidden(key) and self._below.contains(key))

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
                new = self._replaced.get(key) or _Value(name, value, inherits=True)
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
            changed = {key: self._changed(key) for key in keys}
            found = {key: new.value for key, new in changed.items() if new is not None}
            rest = [key for key, new in changed.items() if new is None and not self._hidden(key)]
            return {**found, **self._below.get_many(rest)}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        with self._lock:
            self._check()
            end = None if expires is None else self._clock() + expires
            # All of it before the first change: it may fail.
            below = {key for key, _, _ in items if self._keeps_place(key)}
            for key, name, value in items:
                if key in below:
                    self._replaced[key] = _Value(name, value, end)
                else:
                    present = self._added.get(key)
                    self._added[key] = _Value(name if present is None else present.name, value, end)
                if end is not None:
                    heapq.heappush(self._ends, (end, key))

    def _keeps_place(self, key: bytes) -> bool:
        if key in self._added or self._hidden(key):
            return False
        return self._changed(key) is not None or self._below.contains(key)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        with self._lock:
            for pair in self.pairs(reverse=last):
                result = decode(pair)
                self._remove(pair.key)
                return result
        raise KeyError("the mapping is empty")

    def clear(self) -> int:
        with self._lock:
            count = self.count()
            self._forget()
            self._cleared = True
            return count

    def count(self) -> int:
        with self._lock:
            self._check()
            self._place()
            count = len(self._added)
            if not self._cleared:
                hidden = self._removed | self._added.keys()
                count += self._below.count() - sum(map(self._below.contains, hidden))
            return count

    # Iteration. The keys added so far come in their turn, whether they are committed meanwhile or not.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._lock:
            self._check()
            self._place()
            names = {key: new.name for key, new in self._added.items()}
            below = self._below.pairs(reverse, values)
        others = self._others(below, names, values)
        if reverse:
            return itertools.chain(self._mine(names, reversed(names), values), others)
        return itertools.chain(others, self._mine(names, names, values))

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        with self._lock:
            self._check()
            self._place()
            names = {key: new.name for key, new in self._added.items() if start <= key < stop}
            below = self._below.scan(start, stop, reverse, values)
        mine = self._mine(names, sorted(names, reverse=reverse), values)
        others = self._others(below, names, values)
        return heapq.merge(mine, others, key=lambda pair: pair.key, reverse=reverse)

    def _mine(self, names: dict[bytes, bytes], keys: Iterable[bytes], values: bool) -> Iterator[Pair]:
        for key in keys:
            value = self.get(key)
            if value is not None:
                yield Pair(key, names[key], value if values else b"")

    def _others(self, below: Iterator[Pair], names: dict[bytes, bytes], values: bool) -> Iterator[Pair]:
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
            if self._within:
                yield
                return
            before = (
                self._cleared,
                set(self._removed),
                dict(self._replaced),
                dict(self._added),
                list(self._ends),
            )
            self._within = True
            try:
                yield
            except BaseException:
                self._cleared, self._removed, self._replaced, self._added, self._ends = before
                raise
            finally:
                self._within = False

    def change_token(self) -> object:
        return self._below.change_token()

    def stats(self) -> Stats:
        with self._lock:
            return replace(self._below.stats(), ready=self.count())

    # Life and death.

    def after_fork_in_child(self) -> None:
        # What the parent gathered the parent commits.
        self._lock = threading.RLock()
        self._within = False
        self._forget()
        self._below.after_fork_in_child()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._forget()
            self._below.close()
