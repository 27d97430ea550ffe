"""Store pairs of keys and values on a database server, find them, and iterate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.records import Stats
from persistcoll.errors import DuplicateError
from persistcoll.servers.blocks import Blocks
from persistcoll.servers.handle import BaseHandle
from persistcoll.servers.pair_statements import PageStatements, pair_statements
from persistcoll.servers.pairs import LONGEST_KEY, PairPages, PairRows
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session, Sessions
from persistcoll.servers.statements import BEFORE_ALL, LONGEST_SPAN

__all__ = ["ServerPairStore"]

T = TypeVar("T")

# Expired pairs that a call removes that sets a pair which expires: more than one, so that they do not
# accumulate.
_SWEPT = 16


class ServerPairStore(BaseHandle, PairStore):
    """A :class:`~persistcoll.engine.contracts.PairStore` in a table on a database server.

    A call that writes shares a lock of the dict to the end of its transaction, and :meth:`transaction` has
    it alone.

    :param format_key: formats a key for messages.
    :param clock: returns the time in seconds, by which pairs expire that have been read.
    """

    max_key = LONGEST_KEY

    def __init__(
        self,
        server: Server,
        collection: Collection,
        format_key: Callable[[bytes], str],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(server, collection)
        self._sql = pair_statements(server.driver.dialect, server.schema, self._number, self.store_id)
        self.max_value = server.max_payload
        self._rows = PairRows(self.store_id, str(server.address), self.max_value, format_key)
        self._clock = clock
        self._blocks = Blocks(server, self._number)

    # Where statements run.

    def _where(self) -> Sessions:
        return self._sessions if self._is_joined else self._blocks.current() or self._sessions

    def _query(self, text: str, **parameters: Any) -> list[Any]:
        self._check()
        where = self._sessions if self._is_joined else self._blocks.readable() or self._sessions
        return where.repeat(lambda session: session.run(text, **parameters).rows)

    def _write(self, work: Callable[[Session], T], alone: bool = False) -> T:
        """Run ``work`` in a transaction that happens once, in which others write as well unless ``alone``."""
        lock = self._sql.lock_alone if alone else self._sql.lock_shared

        def locked(session: Session) -> T:
            session.defer(lock)
            return work(session)

        return self._where().transact(locked, number=self._number)

    def transaction(self) -> AbstractContextManager[Any]:
        self._check()
        if self._is_joined:
            return self._part_of_joined()
        return nullcontext() if self._blocks.current() else self._blocks.begin(self._sql.lock_alone)

    @contextmanager
    def _part_of_joined(self) -> Iterator[None]:
        with self.undone_if_it_raises():
            self._write(lambda session: None, alone=True)
            yield

    # One key.

    def get(self, key: bytes) -> bytes | None:
        for crc, value in self._query(self._sql.get, key=key):
            return self._rows.verify(key, crc, value)
        return None

    def contains(self, key: bytes) -> bool:
        return bool(self._query(self._sql.contains, key=key))

    def change(
        self, key: bytes, original_key: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]
    ) -> T:
        self._check()
        self._rows.checked_key(key)

        def run(session: Session) -> T:
            is_there = self._may_lock(session, key)
            while True:
                id, present = self._locked(session, key) if is_there else (None, None)
                value, result = change(present)
                if value is present:
                    return result
                if value is None:
                    session.defer(self._sql.delete, ids=[id])
                elif id is not None:
                    session.defer(self._sql.update, id=id, **self._rows.columns(key, value))
                elif not self._insert(session, key, original_key, value):
                    is_there = True
                    continue
                return result

        return self._write(run)

    def _may_lock(self, session: Session, key: bytes) -> bool:
        """Tell whether a lock of this key keeps nobody from setting others.

        That of a missing key would, to the end of the caller's transaction, at MySQL's REPEATABLE READ.
        """
        return not self._is_joined or bool(session.run(self._sql.contains, key=key).rows)

    def _locked(self, session: Session, key: bytes) -> tuple[int | None, bytes | None]:
        """Lock a pair, and return its id and value. An expired one is deleted."""
        for id, is_expired, crc, value in session.run(self._sql.lock_pair, key=key).rows:
            if not is_expired:
                return id, self._rows.verify(key, crc, value)
            session.defer(self._sql.delete, ids=[id])
        return None, None

    def _insert(self, session: Session, key: bytes, name: bytes, value: bytes) -> bool:
        """Insert a pair; tell whether nobody else has set the key meanwhile."""
        columns = self._rows.columns(key, value)
        try:
            return session.run(self._sql.insert, key=key, name=name, **columns).count > 0
        except DuplicateError:
            return False

    def remove(self, key: bytes) -> bool:
        self._check()

        def run(session: Session) -> bool:
            return self._may_lock(session, key) and session.run(self._sql.remove, key=key).count > 0

        return self._write(run)

    # Several keys.

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        self._check()
        rows = self._query(self._sql.get_many, keys=list(keys)) if keys else []
        found = {bytes(key): self._rows.verify(bytes(key), crc, value) for key, crc, value in rows}
        return {key: found[key] for key in keys if key in found}

    def set_many(self, items: Sequence[tuple[bytes, bytes, bytes]], expires: float | None = None) -> None:
        self._check()
        seconds = None if expires is None else min(expires, LONGEST_SPAN)
        pairs: dict[bytes, dict[str, Any]] = {}
        for key, name, value in items:
            # Of a key that comes twice the first name and the last value count.
            pair = pairs.setdefault(key, {"key": self._rows.checked_key(key), "name": name})
            pair.update(self._rows.columns(key, value))

        def run(session: Session) -> None:
            if seconds is not None and not self._is_joined:
                self._sweep(session)
            # Locked in one order, so that two calls do not wait for each other. And a pair that another
            # transaction deletes is gone before the new one gets its id, so that no iteration gives both.
            find = self._sql.find_keys if self._is_joined else self._sql.lock_keys
            rows = session.run(find, keys=sorted(pairs)).rows
            self._delete(session, self._sql.delete_if_expired, [id for id, is_expired in rows if is_expired])
            self._upsert(session, list(pairs.values()), seconds)

        if pairs:
            self._write(run)

    def _sweep(self, session: Session) -> None:
        rows = session.run(self._sql.lock_expired, limit=_SWEPT).rows
        self._delete(session, self._sql.delete, [id for (id,) in rows])

    def _delete(self, session: Session, text: str, ids: list[int]) -> None:
        if ids:
            session.defer(text, ids=ids)

    def _upsert(self, session: Session, pairs: list[dict[str, Any]], seconds: float | None) -> None:
        rows = [{**pair, "seconds": seconds} for pair in pairs]
        if len(rows) == 1:
            session.defer(self._sql.upsert, **rows[0])
        else:
            session.connection.defer_rows(self._sql.upsert_many, rows)

    def pop(self, decode: Callable[[Pair], T], last: bool = True) -> T:
        self._check()

        def run(session: Session) -> T:
            rows = session.run(self._sql.select_end[last]).rows
            if not rows:
                raise KeyError("the dict is empty")
            ((id, *pair),) = rows
            result = decode(self._rows.pair(*pair))
            session.defer(self._sql.delete, ids=[id])
            return result

        # Alone, so that no other transaction sets or removes what is the first or last pair.
        return self._write(run, alone=True)

    def clear(self) -> int:
        self._check()

        def run(session: Session) -> int:
            session.defer(self._sql.delete_expired)
            return session.run(self._sql.delete_all).count

        return self._write(run, alone=True)

    def count(self) -> int:
        ((count,),) = self._query(self._sql.count_pairs)
        return int(count)

    # Iteration.

    def pairs(self, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        ((last,),) = self._query(self._sql.last_id)
        within = BEFORE_ALL, BEFORE_ALL if last is None else last + 1
        return self._pages(self._sql.by_id[reverse], within, False, reverse, values)

    def scan(self, start: bytes, stop: bytes, reverse: bool = False, values: bool = True) -> Iterator[Pair]:
        self._check()
        return self._pages(self._sql.by_key[reverse], (start, stop), True, reverse, values)

    def _pages(
        self, sql: PageStatements, within: tuple[Any, Any], by_key: bool, reverse: bool, values: bool
    ) -> Iterator[Pair]:
        return PairPages(
            self._query,
            self._rows,
            sql,
            within,
            by_key=by_key,
            reverse=reverse,
            values=values,
            clock=self._clock,
        )

    # Lifecycle.

    def change_token(self) -> object:
        return self._query(self._sql.token)[0]

    def stats(self) -> Stats:
        ((count, size),) = self._query(self._sql.stats)
        return Stats(ready=int(count), bytes=int(size or 0))

    def after_fork_in_child(self) -> None:
        """Have no transaction open. The server's connections follow forks by themselves."""
        self._blocks.forget()
