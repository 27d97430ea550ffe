"""The active keys of a unique queue, and the record of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from persistcoll.engine.records import Entry
from persistcoll.errors import DuplicateError
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["UniqueKeys"]


class UniqueKeys:
    """The active keys of a collection: the keys of its ready, delayed and claimed records.

    They have a table of their own, because these records lie in two tables. In a collection that is not
    unique no key is active, and the methods do nothing. Call them within a transaction; the database's lock
    protects the table.
    """

    def __init__(self, unique: bool, sql: RecordStatements) -> None:
        self.unique = unique
        self._sql = sql

    def assign_ids(self, execute: Execute, entries: Sequence[Entry], first: int) -> list[int | None]:
        """Return ids for these entries, from ``first`` on; ``None`` for an entry whose key is active.

        The key of an earlier entry counts as active.
        """
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
        """Tell whether a record with this key is ready, delayed or claimed."""
        return self.unique and execute(self._sql.select_key, (key,)).fetchone() is not None

    def insert(self, execute: Execute, pairs: Iterable[tuple[int, bytes | None]]) -> None:
        """Make the keys of these records active; none of them is yet."""
        if self.unique:
            for id, key in pairs:
                if key is not None:
                    execute(self._sql.insert_key, (key, id))

    def delete(self, execute: Execute, keys: Iterable[bytes | None]) -> None:
        """Make these keys inactive."""
        if self.unique:
            for key in keys:
                if key is not None:
                    execute(self._sql.delete_key, (key,))

    def delete_ready(self, execute: Execute) -> None:
        """Make the keys of all ready records inactive."""
        if self.unique:
            execute(self._sql.delete_ready_keys)

    def exchange(self, execute: Execute, id: int, old: bytes | None, new: bytes | None) -> None:
        """Give a record another key.

        :raise DuplicateError: the new key is active; nothing was changed.
        """
        if not self.unique or old == new:
            return
        if new is not None and not execute(self._sql.insert_key, (new, id)).rowcount:
            raise DuplicateError(f"an item that equals the new item {id} is queued already")
        self.delete(execute, (old,))
