"""An open collection on a server: how its statements run, and what is done before each look at it."""

from __future__ import annotations

import copy
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from persistcoll.engine.contracts import Awaited, Select
from persistcoll.engine.records import LEASE_RAN_OUT, ClaimPolicy, Discipline
from persistcoll.errors import ClosedError, Empty
from persistcoll.servers.heads import FullLooks, Heads, finds_ready
from persistcoll.servers.holders import Holding
from persistcoll.servers.joined import JoinedSessions
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import SERVERS, OwnSession, Server, Session, Sessions
from persistcoll.servers.statements import BEFORE_ALL, PAGE, record_statements

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BaseHandle", "DueHandle", "Handle", "count_stored", "empty"]

R = TypeVar("R", bound=list[Any])
T = TypeVar("T")


class BaseHandle:
    """An open collection: where its statements run. Any thread may call any method.

    ``_closed`` only ever becomes true.
    """

    def __init__(self, server: Server, collection: Collection) -> None:
        self._server = server
        self._sessions: Sessions = server
        self._number, self.store_id = collection
        self._closed = False
        self._closing = threading.Lock()  # the thread that closes the store never releases it
        self._original = self
        """The store of which this one is joined to a transaction; otherwise itself."""

    def joined(self, connection: Any) -> Self:
        """Return this store bound to the transaction that the caller has open on ``connection``.

        :raise TypeError: it is no connection of the server's driver, nor wraps one.
        :raise ValueError: no transaction is open on it, or the open one has failed.
        """
        self._check()
        store = copy.copy(self)
        store._sessions = JoinedSessions(self._server, connection)
        return store

    def undone_if_it_raises(self) -> AbstractContextManager[None]:
        """Return a context manager for a joined store.

        If its block raises, all is rolled back that was done in it on the caller's connection.
        """
        assert isinstance(self._sessions, JoinedSessions)
        return self._sessions.undone_if_it_raises()

    @property
    def _is_joined(self) -> bool:
        return self._sessions is not self._server

    def _check(self) -> None:
        if self._original._closed:
            raise ClosedError(f"the store in {self._server.address} is closed")

    def _transact(self, work: Callable[[Session], T], **options: Any) -> T:
        """Run ``work`` in a transaction that happens once."""
        value: T = self._sessions.transact(work, number=self._number, **options)
        return value

    def _query(self, text: str, **parameters: Any) -> list[Any]:
        """Return the rows of a statement that only reads."""
        return self._sessions.repeat(lambda session: session.run(text, **parameters).rows)

    def close(self) -> None:
        """Close the store. Idempotent."""
        if self._original is not self:
            self._original.close()
        elif self._closing.acquire(blocking=False):
            self._closed = True
            try:
                self._end()
            finally:
                SERVERS.release(self._server)

    def _end(self) -> None:
        """End what this store has on the server."""


class DueHandle(BaseHandle, ABC):
    """What the stores have in common in which something becomes due. It is done before each look.

    :ivar _sql: the statements of the collection.
    :ivar _heads: where this object's looks begin, other than those in callers' transactions.
    """

    _sql: Any

    def __init__(self, server: Server, collection: Collection) -> None:
        super().__init__(server, collection)
        self.max_poll_interval = server.driver.dialect.max_poll_interval
        self._heads = Heads()
        wakes = server.wakes
        self._channels = (
            {} if wakes is None else {awaited: wakes.channel(self.store_id, awaited) for awaited in Awaited}
        )

    def joined(self, connection: Any) -> Self:
        store = super().joined(connection)
        store._heads = FullLooks()
        return store

    # What is due.

    def _look(self) -> tuple[bool, float | None]:
        """Return whether something is ready, and in how many seconds the next thing is due, if one will be.

        What is due by now is done before.
        """
        ready, due = self._look_once()
        if due is not None and due <= 0:
            self._promote()
            ready, due = self._look_once()
        return ready, due

    def _look_once(self, deadline: float | None = None) -> tuple[bool, float | None]:
        run = partial(self._heads.look, sql=self._sql, name="look", finds=finds_ready)
        look = self._sessions.repeat(run, deadline)
        ready, due = look.result.rows[0]
        if due is None or due > 0:
            self._heads.nothing_due(look)
        if due is None and not look.is_full:  # from the floor it is not seen what will be due
            due = self.max_poll_interval
        return bool(ready), due

    @abstractmethod
    def _promote(self) -> None:
        """Do what is due."""

    def _read(self, text: str, **parameters: Any) -> list[Any]:
        """Return the rows of a statement that only reads, after what is due was done."""
        self._check()
        self._look()
        return self._query(text, **parameters)

    # Reading.

    def _pages(self, text: str, id_at: int, **where: Any) -> Iterator[list[Any]]:
        """Return the rows that there are at the time of the call, page after page.

        :param text: takes low and limit, and returns rows by id.
        :param id_at: the column of the id.
        """
        ((last,),) = self._read(self._sql.last_id)

        def page(low: int) -> list[Any]:
            self._check()
            # The end is no bound of the statement. With two, PostgreSQL takes the rows of a table that it has
            # not analyzed for so few that it sorts them.
            rows = self._query(text, low=low, limit=PAGE, **where)
            return [row for row in rows if row[id_at] <= last]

        def pages(rows: list[Any]) -> Iterator[list[Any]]:
            while rows:
                yield rows
                rows = page(rows[-1][id_at]) if len(rows) == PAGE else []

        return pages([] if last is None else page(BEFORE_ALL))

    # Waiting.

    def change_token(self) -> object:
        """Return an object that differs from an earlier one if something has changed since."""
        return *self._poll(self._sql.token), self._liveness_check_due()

    def _poll(self, text: str) -> Any:
        """Return the row of a statement that a waiter runs now and then."""
        self._check()
        # A waiter asks again later, so this call does not wait for a server that cannot be reached.
        now = time.monotonic()
        (row,) = self._sessions.repeat(lambda session: session.run(text).rows, now)
        return row

    def _liveness_check_due(self) -> float | None:
        """Return a part of the change token that differs once the holders are to be checked again."""
        return None

    def watch(self, awaited: Awaited) -> Callable[[], object]:
        """Return the change token of one wait."""
        wakes = self._server.wakes
        if wakes is not None:
            return wakes.watch(self._channels[awaited], self.change_token)
        return self._token_until_ready if awaited is Awaited.READY else self.change_token

    def _token_until_ready(self) -> object:
        """Return the same token while nothing is ready or due, and otherwise a new one at each call.

        What is ready need not be what the waiter waits for, or enough of it. So it looks then at each poll.
        """
        self._check()
        ready, due = self._look_once(time.monotonic())
        is_any = ready or (due is not None and due <= 0)
        return object() if is_any else (None, self._liveness_check_due())

    def _insert_noted(
        self, texts: tuple[str, ...], row: dict[str, Any], deadline: float | None, **options: Any
    ) -> int:
        """Insert one row in a transaction of its own, in one trip, and return its id.

        :param texts: as those of :meth:`~persistcoll.servers.sessions.Server.insert`, which has the options.
        """
        server, number, wakes = self._server, self._number, self._server.wakes
        channel = self._channels.get(Awaited.READY, "")
        notification = () if wakes is None else wakes.notification(channel)
        if wakes is None or not notification:
            return server.insert(texts, row, number, deadline, **options)
        notified = {**row, "channel": channel}
        id = server.insert((*texts, *notification), notified, number, deadline, **options)
        if id:
            wakes.has_notified({channel})
        return id

    def _notify(self, session: Session, *awaited: Awaited) -> None:
        """Notify processes in which a thread waits for this, when the transaction is committed."""
        wakes = self._server.wakes
        if wakes is not None:
            for each in awaited:
                channel = self._channels[each]
                for text in wakes.notification(channel, always=not isinstance(session, OwnSession)):
                    session.defer(text, channel=channel)
                    session.notified.add(channel)


class Handle(DueHandle):
    """What the stores of records have in common. Any thread may call any method.

    ``_last_look_was_empty`` is a hint that any thread reads and sets without a lock.
    """

    def __init__(
        self, server: Server, collection: Collection, discipline: Discipline, retry: ClaimPolicy
    ) -> None:
        super().__init__(server, collection)
        self._discipline = discipline
        self._retry = retry
        self._sql = record_statements(server.driver.dialect, server.schema, self._number, discipline)
        self._holding = Holding(server, self._number, self._sql, retry, self._came_back, self._notify)
        self._last_look_was_empty = False

    # What is due.

    def _promote(self) -> None:
        """Make ready, or dead, what is delayed or leased until now."""
        while self._sessions.transact(self._promote_page, sync=False, once=False) == PAGE:
            pass

    def _promote_page(self, session: Session) -> int:
        return self._holding.come_back(session, LEASE_RAN_OUT, self._sql.lock_due)

    def _came_back(self, ids: Sequence[int]) -> None:
        """Lower the floor, because this object has made these records ready.

        :param ids: if there are none, it is not known which.
        """
        if self._discipline.by_priority or not ids:
            self._heads.forget_floors()
        else:
            self._heads.lower(0.0, min(ids))

    def _search(self, attempt: Callable[[bool], R], select: Select | None) -> R:
        """Return what ``attempt`` finds; if it finds nothing, again after what is due was done.

        :param attempt: called with whether that was done. Otherwise it finds nothing while something is due.
        :raise Empty: nothing is found.
        """
        if select is None and self._last_look_was_empty:
            # Only read, so that polling an empty queue locks nothing.
            self._last_look_was_empty = False
            ready, due = self._look()
            if not ready and not self._holding.may_reclaim():
                self._last_look_was_empty = True
                raise empty(due)
        if self._holding.may_reclaim():  # otherwise a queue that is never empty would keep what the dead have
            self._reclaim(thorough=False)
        found = attempt(False)
        if found:
            return found
        _, due = self._look()
        found = attempt(True)
        if not found:
            self._last_look_was_empty = select is None
            raise empty(due)
        return found

    # Holders.

    def reclaim(self) -> int:
        """Make the records of dead holders ready again, or dead if they have no attempts left."""
        self._check()
        self._look()
        return self._reclaim(thorough=True)

    def _reclaim(self, *, thorough: bool) -> int:
        return self._holding.reclaim(self._sessions, thorough)

    def _liveness_check_due(self) -> float | None:
        return self._holding.liveness_check_due()

    # Life and death.

    def after_fork_in_child(self) -> None:
        """Be no holder in a forked child. The server's connections follow forks by themselves."""
        self._holding.forget()

    def _end(self) -> None:
        self._holding.end()


def count_stored(ids: list[int | None]) -> int:
    """Return how many of the entries of a put were stored."""
    return len(ids) - ids.count(None)


def empty(seconds: float | None) -> Empty:
    """Return an ``Empty`` that says when a record becomes ready by itself, if that is known."""
    error = Empty()
    if seconds is not None:
        error.next_at = time.monotonic() + max(0.0, seconds)  # type: ignore[attr-defined]
    return error
