"""One handle of a collection: what the stores of records and of pairs have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import ClosedError
from persistcoll.sqlite import driver
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.counters import Counters
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.database_file import MEMORY
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.message_statements import MessageStatements
from persistcoll.sqlite.statements import PairStatements, RecordStatements

if TYPE_CHECKING:
    from persistcoll.sqlite.registry import Registry

__all__ = ["Collection", "Handle"]

S = TypeVar("S", RecordStatements, PairStatements, MessageStatements)
T = TypeVar("T")


class Collection(NamedTuple):
    """A collection that is registered in a database, which stays open for it.

    :ivar users: holds the database for as long as the handle counts among its users; the registry empties it.
    :ivar version: that of its format.
    :ivar power: whether the changes of an operation that returned survive a power cut.
    :ivar timeout: seconds to wait for the end of another caller's transaction, if no deadline is given.
    :ivar clock: a clock to use instead of the database's; ``None``: the database's.
    """

    database: Database
    users: list[Database]
    registry: Registry
    collection_id: int
    version: int
    power: bool
    timeout: float
    clock: Clock | None


class Handle(Generic[S]):
    """An open collection, for use by any thread.

    The database's lock protects the counters, which all handles of a process on one collection share.
    ``_closed`` only ever becomes true and is read without a lock; the database checks again, under its lock,
    that it is open.
    """

    # A subclass sets it at the end of its constructor, so that the destructor closes only whole handles.
    _users: list[Database] = []  # noqa: RUF012 - never changed

    def __init__(self, collection: Collection, sql: S) -> None:
        self._database, _, self._registry, id, _, self._power, self._timeout, self._clock = collection
        self.store_id = self._database.store_id + id.to_bytes(8, "big")
        self._collection_id = id
        self._sql: S = sql
        # One atomic call, because two threads may open a collection for the first time: with counters of its
        # own, a handle would not know what the other one has put.
        self._counters = self._database.counters_by_number.setdefault(id, self._new_counters(sql))
        self._closed = False

    def _new_counters(self, sql: S) -> Counters:
        return Counters(sql)

    def __del__(self) -> None:
        # An interrupt ended the call that opened it, before it returned, or the call that closed it.
        if self._users:
            self.close()

    def close(self) -> None:
        """Release the database, which closes when no handle uses it. Idempotent."""
        try:
            if not self._closed:
                self._closed = True
                self._warn_if_replaced()
        finally:
            self._registry.release(self._users)

    def _warn_if_replaced(self) -> None:
        if not self._power:  # otherwise each write has checked it
            self._database.warn_if_replaced()

    def _now(self) -> float:
        # Not stored, because the database's clock changes when a forked child opens it again.
        return self._clock() if self._clock is not None else self._database.now()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"the store in {self._database.path!r} is closed")

    @contextmanager
    def transaction(self) -> Iterator[driver.Connection]:
        """Return a context manager for a transaction of this task; it gives the writing connection."""
        self._check()
        try:
            with self._database.transaction(self._power, self._timeout) as connection:
                yield connection
        finally:
            self._registry.close_pending()

    def await_transaction(self) -> None:
        """Return when no other caller's transaction is open in the database."""
        self._database.await_transaction(self._timeout)

    def open_transaction(self) -> TransactionHooks | None:
        """Return the hooks of the transaction that this task has open in the database."""
        return self._database.open_transaction()

    def is_held_up(self) -> bool:
        """Tell whether reading waits for another caller's transaction, as it only does in memory."""
        database = self._database
        return database.path == MEMORY and database.in_transaction and database.open_transaction() is None

    def _write(self, run: Callable[[Execute], T]) -> T:
        """Write with the durability of this handle. The most frequent operations call the database."""
        return self._database.write(run, self._power, timeout=self._timeout)

    def _write_unsynced(self, run: Callable[[Execute], T], timeout: float) -> T:
        """Write what need not survive a power cut. ``timeout`` is as of ``write`` of the database."""
        return self._database.write(run, False, timeout=timeout)

    def _refresh_counters(self, execute: Execute, now: float | None = None) -> Counters:
        """Return the true counters, after what is due was done. Call it within a transaction.

        :param now: the time of the call, if the caller knows it.
        """
        counters = self._counters
        if counters.epoch != self._database.epoch:
            counters.load(execute)
            counters.epoch = self._database.epoch
        if counters.next_due_at is not None and counters.next_due_at <= (self._now() if now is None else now):
            self._database.begin()
            self._release_due(execute, counters)
            self._database.mark_dirty(counters)
            self._database.keep_changes()
        return counters

    def _release_due(self, execute: Execute, counters: Counters) -> None:
        """Do what is due, and set when the next is."""
        raise NotImplementedError
