"""Turn records into rows and rows into records: sealed, and checked against a checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

from persistcoll.engine.records import Entry, Record
from persistcoll.errors import CorruptionError, EncodeError
from persistcoll.sqlite import driver
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Cursor, Execute
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["Rows", "Seal", "refuse_too_large", "time_of"]

Seal = Callable[[bytes, int], bytes]
_MASK = 0xFFFFFFFF
# Bytes: SQLite's limit of a row, 10**9, less some space for the other columns.
_LARGEST = 10**9 - 10**4


def refuse_too_large(payload: bytes) -> None:
    """Raise ``EncodeError`` for a payload that no row can hold.

    SQLite's own error would fail all operations of the transaction.
    """
    if len(payload) > _LARGEST:
        raise EncodeError(f"an item of {len(payload)} bytes is too large: a database takes {_LARGEST}")


def time_of(value: object) -> float:
    """Return the time that a row has.

    :raise DatabaseError: it is none, so the row is damaged.
    """
    if not isinstance(value, float):
        raise driver.corruption_error("a time of a row")
    return value


class Rows:
    """Writes and reads the rows of one collection.

    SQLite's pages have no checksum, so each row has one, over the payload, the id and the collection. So an
    altered payload, or that of another row, is never delivered, not even if SQLite reads a page that another
    collection has or had. The other columns have no checksum.

    ``seal`` and ``unseal`` are set once, before the first write; no lock protects them.

    :param store_id: the collection's.
    :ivar seal: applied to each payload and its id before it is written; ``None``: nothing is.
    :ivar unseal: undoes ``seal``.
    """

    seal: Seal | None = None
    unseal: Seal | None = None

    def __init__(self, database: Database, sql: RecordStatements, store_id: bytes) -> None:
        self._seed = crc32(store_id)
        self._path = database.path
        self._sql = sql

    def _checksum(self, id: int, payload: bytes) -> int:
        return crc32(payload, (id ^ self._seed) & _MASK)

    def append(self, execute: Execute, id: int, payload: bytes, time: float) -> None:
        """Insert a ready row."""
        if self.seal is not None:
            payload = self.seal(payload, id)
        if len(payload) > _LARGEST:
            refuse_too_large(payload)
        execute(self._sql.insert_ready, (id, 0, None, time, 0, self._checksum(id, payload), payload, None))

    def append_many(
        self,
        executemany: Callable[[str, list[Any]], Cursor],
        entries: Iterable[tuple[int, Entry]],
        time: float,
        now: float,
    ) -> None:
        """Insert ready rows, and delayed ones.

        :param time: when they are put, in seconds since the epoch.
        :param now: the same by the store's clock.
        """
        ready, delayed = [], []
        for id, (payload, priority, key, delay) in entries:
            data = payload
            if self.seal is not None:
                data = self.seal(payload, id)
            refuse_too_large(data)
            row = id, priority, key, time, 0, self._checksum(id, data), data, None
            if delay > 0:
                delayed.append((now + delay, *row))
            else:
                ready.append(row)
        if ready:
            executemany(self._sql.insert_ready, ready)
        if delayed:
            executemany(self._sql.insert_delayed, delayed)

    def remove(self, execute: Execute, rows: Sequence[Any]) -> None:
        """Delete ready rows: any one, or the first several in the order of delivery."""
        if len(rows) == 1:
            ((id, *_),) = rows
            removed = execute(self._sql.delete_ready, (id,)).rowcount
        else:
            removed = execute(self._sql.delete_first, (len(rows),)).rowcount
        if removed != len(rows):
            self.check_found(removed, len(rows))

    def renumbered(self, row: Any, id: int, reason: str) -> tuple[Any, ...]:
        """Return the row with another id and reason, because seal and checksum are bound to the id."""
        old, priority, key, time, attempts, *_ = row
        payload = self.record(row).payload
        if self.seal is not None and self.unseal is not None:
            payload = self.seal(self.unseal(payload, old), id)
        return id, priority, key, time, attempts, self._checksum(id, payload), payload, reason

    def replacing(
        self, id: int, holder: int | None, payload: bytes, key: bytes | None
    ) -> tuple[str, tuple[Any, ...]]:
        """Return the statement that stores another payload, and its parameters.

        :param holder: the holder of a claimed or delayed row; ``None`` for a ready row.
        """
        if self.seal is not None:
            payload = self.seal(payload, id)
        refuse_too_large(payload)
        values = (payload, self._checksum(id, payload), key)
        if holder is None:
            return self._sql.update_ready, (*values, id)
        return self._sql.update_claimed, (*values, holder, id)

    def record(self, row: Any, attempt: int = 0) -> Record:
        """Return the record of a row.

        :param attempt: 1 if the record is being claimed, which counts as one attempt more.
        :raise CorruptionError: the row is damaged.
        """
        id, priority, _, time, attempts, crc, payload, reason = row
        # As _checksum(), in one call less.
        is_intact = type(payload) is bytes and crc32(payload, (id ^ self._seed) & _MASK) == crc
        if not is_intact or type(attempts) is not int or not 0 <= attempts < _MASK:
            raise self._damaged(id)
        return Record(id, payload, time, priority, attempts + attempt, None, reason)

    def check_found(self, found: int, wanted: int) -> None:
        """Raise the database's error for damage if a row that a scan found was not found by its id.

        Otherwise the same row would be delivered again and again.
        """
        if found != wanted:
            raise driver.corruption_error("a row is not where its id says")

    def check_absent(self, head: Any, id: int | None) -> None:
        """Raise the database's error for damage if the first ready row has the id that was not found."""
        if head is not None:
            found, *_ = head
            self.check_found(found != id, True)

    def damaged_database(self, what: str) -> Exception:
        """Return the database's error for damage."""
        return driver.corruption_error(what)

    def check_none_left(self, ready: int) -> None:
        """Raise the database's error for damage if no row is ready but the counters say that some are."""
        if ready:
            raise driver.corruption_error(f"none of {ready} ready items is found; clear() begins anew")

    def _damaged(self, id: int) -> CorruptionError:
        return CorruptionError(
            f"item {id} in {self._path!r} is damaged: its checksum is not right; skip({id}) removes it,"
            f" or ack_failed(id={id}) while it is claimed",
            self._path,
            id=id,
        )
