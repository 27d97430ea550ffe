"""The keys of a unique table: which are in force, and for which record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from persistcoll.engine.records import Entry
from persistcoll.errors import DuplicateError
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["UniqueKeys"]


class UniqueKeys:
    """In force is the key of every record that is ready, delayed or claimed.

    They lie in a table of their own, as these records lie in two. Where a table is not unique, nothing
    has a key that counts, and nothing is done. All within a transaction.
    """

    def __init__(self, unique: bool, sql: RecordStatements) -> None:
        self.unique = unique
        self._sql = sql

    def assign_ids(self, execute: Execute, entries: Sequence[Entry], first: int) -> list[int | None]:
        """Ids for these entries, from ``first`` on; none for one whose key is in force or comes before it."""
        if not self.unique:
            return list(range(first, first + len(entries)))
        ids: list[int | None] = []
        seen: set[bytes] = set()
        for entry in entries:
            key = entry.key
            if key is not None and (key in seen or self.is_active(execute, key)):
                ids.append(None)
                continue
            if key is not None:
                seen.add(key)
            ids.append(first)
            first += 1
        return ids

    def is_active(self, execute: Execute, key: bytes) -> bool:
        """Whether a record of this key is ready, delayed or claimed."""
        return self.unique and execute(self._sql.select_key, (key,)).fetchone() is not None

    def insert(self, execute: Execute, pairs: Iterable[tuple[int, bytes | None]]) -> None:
        """In force for these ids; each one was free."""
        if self.unique:
            for id, key in pairs:
                if key is not None:
                    execute(self._sql.insert_key, (key, id))

    def delete(self, execute: Execute, keys: Iterable[bytes | None]) -> None:
        """Not in force any more."""
        if self.unique:
            for key in keys:
                if key is not None:
                    execute(self._sql.delete_key, (key,))

    def delete_ready(self, execute: Execute) -> None:
        """No ready record's key is in force any more."""
        if self.unique:
            execute(self._sql.delete_ready_keys)

    def exchange(self, execute: Execute, id: int, old: bytes | None, new: bytes | None) -> None:
        """Another key for this record.

        :raise DuplicateError: it is in force; nothing was changed.
        """
        if not self.unique or old == new:
            return
        if new is not None and not execute(self._sql.insert_key, (new, id)).rowcount:
            raise DuplicateError(f"an item that equals the new item {id} is queued already")
        self.delete(execute, (old,))
