"""The reference log store: :class:`MemoryLogStore`, the simplest store that keeps the laws of log stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from persistcoll.engine.contracts import CursorState, LogBounds, LogCursor, LogStore
from persistcoll.engine.records import Record, Retain
from persistcoll.errors import ClosedError, Empty, LockedError, trimmed

__all__ = ["MemoryLogCursor", "MemoryLogState", "MemoryLogStore"]

T = TypeVar("T")


class MemoryLogState:
    """What a :class:`MemoryLogStore` holds, which outlives its closing.

    Several stores of one state behave like stores in several processes that have the same log open. A copy
    (:meth:`copy`) is the state that another process finds if this process dies now.

    ``lock`` protects every attribute.

    :param clock: returns the time of a record, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.records: dict[int, Record] = {}
        self.last_id = 0
        self.positions: dict[str, int] = {}
        self.holders: dict[str, object] = {}

    def copy(self) -> MemoryLogState:
        """Return a copy that no object has open."""
        with self.lock:
            other = MemoryLogState(self.clock)
            other.records, other.last_id = dict(self.records), self.last_id
            other.positions = dict(self.positions)
            return other


class MemoryLogCursor(LogCursor):
    """A cursor of a :class:`MemoryLogStore`. The lock of the state protects its fields."""

    def __init__(self, store: MemoryLogStore, name: str) -> None:
        self._store = store
        self._name = name
        self._last_read = store._state.positions[name]
        self.seeks = 0

    @property
    def name(self) -> str:
        return self._name

    def _open(self) -> MemoryLogState:
        """Return the state, unless the cursor is closed. The caller holds the lock."""
        state = self._store._open()
        if state.holders.get(self._name) is not self:
            raise ClosedError(f"the cursor {self._name!r} is closed")
        return state

    def read(self, limit: int, decode: Callable[[Record], T], *, ids: list[int] | None = None) -> list[T]:
        with self._store._state.lock:
            self._open()
            first = self._store.bounds().first
            if self._last_read + 1 < first:
                raise trimmed(self._last_read + 1, first)
            values: list[T] = []
            for record in self._store.records(self._last_read):
                try:
                    values.append(decode(record))
                except Exception:
                    if not values:
                        raise
                    break
                self._last_read = record.id
                if ids is not None:
                    ids.append(record.id)
                if len(values) == limit:
                    break
            if not values:
                raise Empty
            return values

    @property
    def position(self) -> int:
        with self._store._state.lock:
            return self._open().positions[self._name]

    def lag(self) -> int:
        with self._store._state.lock:
            return self._store._lag(self.position)

    def commit(self, id: int, seeks: int | None = None) -> None:
        with self._store._state.lock:
            state = self._open()
            if seeks not in (None, self.seeks):
                return
            self._store._check_given(id)
            state.positions[self._name] = max(id, state.positions[self._name])

    def seek(self, id: int | None) -> None:
        with self._store._state.lock:
            state = self._open()
            state.positions[self._name] = self._last_read = self._store._before(id)
            self.seeks += 1

    def close(self) -> None:
        with self._store._state.lock:
            holders = self._store._state.holders
            if holders.get(self._name) is self:
                del holders[self._name]


class MemoryLogStore(LogStore):
    """A :class:`~persistcoll.engine.contracts.LogStore` in memory.

    Closing a store keeps the state, and a new store of the same state continues with it. Any thread may call
    any method. The time of a call grows with the number of records.

    >>> store = MemoryLogStore()
    >>> store.append_many([b"first", b"second"])
    range(1, 3)
    >>> cursor = store.cursor("reader")
    >>> cursor.read(1, lambda record: record.payload)
    [b'first']
    >>> cursor.commit(1)
    >>> store.cursors()
    {'reader': CursorState(position=1, lag=1)}

    :param state: the state with the records; a new and empty one by default.
    :param retain: which records to keep, at least. The others are trimmed after each append.
    """

    store_id = bytes(16)

    def __init__(self, state: MemoryLogState | None = None, retain: Retain | None = None) -> None:
        self._state = state or MemoryLogState()
        self._retain = retain
        self._closed = False
        self._cursors: list[LogCursor] = []

    def _open(self) -> MemoryLogState:
        if self._closed:
            raise ClosedError("this log in memory is closed")
        return self._state

    def append(self, payload: bytes) -> int:
        return self.append_many([payload])[-1]

    def append_many(self, payloads: Sequence[bytes]) -> range:
        with self._state.lock:
            state = self._open()
            if not payloads:
                return range(0)
            now = state.clock()
            ids = range(state.last_id + 1, state.last_id + 1 + len(payloads))
            state.records.update(
                (id, Record(id, bytes(each), now)) for id, each in zip(ids, payloads, strict=True)
            )
            state.last_id = ids[-1]
            if self._retain is not None:
                self.trim(self._first_to_keep(self._retain))
            return ids

    def _first_to_keep(self, retain: Retain) -> int:
        records = list(self._state.records.values())
        now = self._state.clock()
        first = 0
        if retain.records is not None:
            first = max(
                [first, *(record.id + 1 for record in records[: max(0, len(records) - retain.records)])]
            )
        if retain.bytes is not None:
            size = 0
            for record in reversed(records):
                if size >= retain.bytes:
                    first = max(first, record.id + 1)
                size += len(record.payload)
        if retain.age is not None:
            first = max([first, *(record.id + 1 for record in records if record.time < now - retain.age)])
        return first

    def bounds(self) -> LogBounds:
        with self._state.lock:
            state = self._open()
            first = min(state.records, default=state.last_id + 1)
            return LogBounds(first, state.last_id, len(state.records))

    def records(self, after: int = 0) -> Generator[Record, None, None]:
        while True:
            with self._state.lock:
                ids = [id for id in self._open().records if id > after]
                if not ids:
                    return
                after = min(ids)
                record = self._state.records[after]
            yield record

    def nth(self, index: int) -> int:
        with self._state.lock:
            ids = list(self._open().records)
            return ids[index] if index < len(ids) else self._state.last_id + 1

    def find(self, time: float) -> int:
        with self._state.lock:
            for record in self._open().records.values():
                if record.time >= time:
                    return record.id
            return self._state.last_id + 1

    def trim(self, before: int, force: bool = False) -> int:
        with self._state.lock:
            state = self._open()
            if not force:
                before = min([before, *(position + 1 for position in state.positions.values())])
            removed = [id for id in state.records if id < before]
            for id in removed:
                del state.records[id]
            return len(removed)

    def _before(self, start: int | None) -> int:
        """Return the position before the record ``start``, which must exist or be the next one."""
        first = self.bounds().first
        if start is None:
            return first - 1
        if start < first:
            raise trimmed(start, first)
        self._check_given(start - 1)
        return start - 1

    def _check_given(self, id: int) -> None:
        if id > self._state.last_id:
            raise ValueError(f"the log ends at {self._state.last_id}, before {id}")

    def _lag(self, position: int) -> int:
        return sum(id > position for id in self._state.records)

    def cursor(self, name: str, start: int | None = None) -> MemoryLogCursor:
        with self._state.lock:
            state = self._open()
            if name in state.holders:
                raise LockedError(f"the cursor {name!r} is open in another object")
            if name not in state.positions:
                state.positions[name] = self._before(start)
            cursor = MemoryLogCursor(self, name)
            state.holders[name] = cursor
            self._cursors.append(cursor)
            return cursor

    def cursors(self) -> dict[str, CursorState]:
        with self._state.lock:
            positions = sorted(self._open().positions.items())
            return {name: CursorState(position, self._lag(position)) for name, position in positions}

    def forget(self, name: str) -> bool:
        with self._state.lock:
            state = self._open()
            if name in state.holders:
                raise LockedError(f"the cursor {name!r} is open")
            return state.positions.pop(name, None) is not None

    def change_token(self) -> object:
        with self._state.lock:
            return self._open().last_id

    def after_fork_in_child(self) -> None:
        pass

    def close(self) -> None:
        for cursor in self._cursors:
            cursor.close()
        self._closed = True
