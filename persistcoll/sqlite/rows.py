"""A row of a table and the record that it stands for: sealed, and checked against its checksum."""

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

__all__ = ["Rows", "Seal", "refuse_too_large"]

Seal = Callable[[bytes, int], bytes]
_MASK = 0xFFFFFFFF
# Bytes: SQLite's own limit of a row, which is a thousand million, less some room for the other columns.
_LARGEST = 10**9 - 10**4


def refuse_too_large(payload: bytes) -> None:
    """``EncodeError`` for what no row can hold; SQLite's error would be that of all in the transaction."""
    if len(payload) > _LARGEST:
        raise EncodeError(f"an item of {len(payload)} bytes is too large: a database takes {_LARGEST}")


class Rows:
    """Writes and reads the rows of one table.

    SQLite's pages have no checksum, so each row has one, of the payload, the id and the collection: an
    altered payload, or that of another row, is never delivered, not even from a page that another collection
    has or had. The other columns have none.

    :param store_id: of the collection.
    :ivar seal: what is applied to each payload and its id before it is written; ``None``: nothing.
    :ivar unseal: what undoes that.
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
        """A ready row."""
        if self.seal is not None:
            payload = self.seal(payload, id)
        if len(payload) > _LARGEST:
            refuse_too_large(payload)
        execute(self._sql.insert_ready, (id, 0, None, time, 0, self._checksum(id, payload), payload))

    def append_many(
        self,
        executemany: Callable[[str, list[Any]], Cursor],
        entries: Iterable[tuple[int, Entry]],
        time: float,
    ) -> None:
        """Ready rows."""
        rows = []
        for id, (payload, priority, key) in entries:
            data = payload
            if self.seal is not None:
                data = self.seal(payload, id)
            refuse_too_large(data)
            rows.append((id, priority, key, time, 0, self._checksum(id, data), data))
        executemany(self._sql.insert_ready, rows)

    def remove(self, execute: Execute, rows: Sequence[Any]) -> None:
        """These ready rows are ready no more: any one, or several that are next."""
        if len(rows) == 1:
            ((id, *_),) = rows
            removed = execute(self._sql.delete_ready, (id,)).rowcount
        else:
            removed = execute(self._sql.delete_first, (len(rows),)).rowcount
        if removed != len(rows):
            self.check_found(removed, len(rows))

    def renumbered(self, row: Any, id: int) -> tuple[Any, ...]:
        """The same row with another id, which its seal and its checksum are bound to."""
        old, priority, key, time, attempts, _, _ = row
        payload = self.record(row).payload
        if self.seal is not None and self.unseal is not None:
            payload = self.seal(self.unseal(payload, old), id)
        return id, priority, key, time, attempts, self._checksum(id, payload), payload

    def replacing(
        self, id: int, holder: int | None, payload: bytes, key: bytes | None
    ) -> tuple[str, tuple[Any, ...]]:
        """The statement that stores another payload for a ready row, or for one that ``holder`` holds."""
        if self.seal is not None:
            payload = self.seal(payload, id)
        refuse_too_large(payload)
        values = (payload, self._checksum(id, payload), key)
        if holder is None:
            return self._sql.update_ready, (*values, id)
        return self._sql.update_claimed, (*values, holder, id)

    def record(self, row: Any, attempt: int = 0) -> Record:
        """What the row stands for; with ``attempt`` 1, as it is claimed now.

        :raise CorruptionError: it is damaged.
        """
        id, priority, _, time, attempts, crc, payload = row
        # As _checksum(), in a call less.
        is_intact = type(payload) is bytes and crc32(payload, (id ^ self._seed) & _MASK) == crc
        if not is_intact or type(attempts) is not int or not 0 <= attempts < _MASK:
            raise self._damaged(id)
        return Record(id, payload, time, priority, attempts + attempt)

    def check_found(self, found: int, wanted: int) -> None:
        """A row that a scan gives and its id does not find would be given again and again.

        :raise Exception: the database's own, for damage.
        """
        if found != wanted:
            raise driver.corruption_error("a row is not where its id says")

    def check_absent(self, head: Any, id: int | None) -> None:
        """What no look-up finds must not be what comes first. Raises likewise."""
        if head is not None:
            found, *_ = head
            self.check_found(found != id, True)

    def damaged_database(self, what: str) -> Exception:
        """The database's own error for damage."""
        return driver.corruption_error(what)

    def check_none_left(self, ready: int) -> None:
        """Where no ready row is found, none must be known of.

        :raise Exception: the database's own, for damage.
        """
        if ready:
            raise driver.corruption_error(f"of {ready} waiting items none is found; clear() begins anew")

    def check_order(self, before: int, id: int) -> None:
        """Rows that do not come by their ids would be read again and again.

        :raise CorruptionError: this one does not.
        """
        if id <= before:
            raise CorruptionError(
                f"reading {self._path!r} failed: the database is damaged (item {id} is not where it belongs)",
                self._path,
            )

    def _damaged(self, id: int) -> CorruptionError:
        return CorruptionError(
            f"item {id} in {self._path!r} is damaged: its checksum is not right; skip({id}) removes it,"
            f" or ack_failed(id={id}) while it is held",
            self._path,
            id=id,
        )
