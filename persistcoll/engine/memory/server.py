"""A reference model that behaves like a database server: :class:`ServerState` and :class:`ServerStore`.

It has the properties that make servers harder than files: ids that appear late and with gaps, a clock that no
user sets, answers that are lost, and transactions of the caller. Each call runs a store of the plain model on
a copy of the committed rows, and commits what it has changed.
"""

from __future__ import annotations

import copy
import itertools
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from persistcoll.engine.memory.transactions import TransactionalState
from persistcoll.errors import BackendUnavailableError, ClosedError, EncodeError, LockedError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "MAX_PAYLOAD",
    "MemoryConnection",
    "ServerState",
    "ServerStore",
    "Transaction",
    "sent",
]

S = TypeVar("S", bound="ServerState")

MAX_PAYLOAD = 1 << 20  # bytes
_NOTES = ("claims", "locks")
"""The parameters of the contracts that name a list to which an operation appends what it has made."""
_BEGAN = time.time() - time.monotonic()


def _server_clock() -> float:
    return _BEGAN + time.monotonic()


class Transaction:
    """The changes of an open transaction, which no other transaction sees.

    The lock of the server's state protects every attribute.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Any], Any] = {}
        """The changed rows by table and key; ``None`` if the transaction removes the row."""
        self.numbers: dict[str, int] = {}
        """What the transaction adds to the state's numbers."""


class ServerState(TransactionalState):
    """The state of a server: the committed rows of one collection, and its clients.

    ``lock`` protects every attribute and every row.

    :param clock: returns the time in seconds since the epoch; by default a clock that no user can set.
    :param patience: the seconds without a heartbeat after which a holder is dead.
    :param id_block: how many ids a client draws at once.
    :param loss: the probability that the connection is lost before a commit, and that it is lost after one.
    :param seed: the seed of these chances.
    """

    last_id: int

    def __init__(
        self,
        clock: Callable[[], float] = _server_clock,
        *,
        patience: float = 0.2,
        id_block: int = 4,
        loss: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(clock)
        self.patience, self.id_block, self.loss = patience, id_block, loss
        self.chance = random.Random(seed)
        self.open: list[Transaction] = []
        self.done: dict[tuple[int, int], Any] = {}
        """The results of committed operations whose answer was lost, by client and operation."""
        self.heard: dict[int, float] = {}
        """The time of the last heartbeat of each holder that sends none any more."""
        self.beating: set[int] = set()
        """The holders that send heartbeats: the open ones of this process."""
        self.clients = itertools.count(1)

    def empty(self) -> Self:
        return type(self)(self.clock, patience=self.patience, id_block=self.id_block, loss=self.loss)

    def copy(self) -> Self:
        # The holders of the claims keep their numbers. In the copy none of them sends heartbeats.
        with self.lock:
            other = self.empty()
            other.restore(self.snapshot())
            other.clients = itertools.count(max(self.beating | self.heard.keys(), default=0) + 1)
            return other

    # The caller of the methods below holds the lock.

    def silence(self, holder: int) -> None:
        """Stop the heartbeats of this holder."""
        self.beating.discard(holder)
        self.heard[holder] = self.clock()

    def is_dead(self, holder: Any) -> bool:
        """Tell whether this holder has closed, or has sent no heartbeat for ``patience`` seconds."""
        if holder in self.beating:
            return False
        return holder not in self.heard or self.clock() - self.heard[holder] >= self.patience

    def loses(self) -> bool:
        """Tell whether the connection is lost now, by chance."""
        return self.chance.random() < self.loss

    def view(self, transaction: Transaction) -> Self:
        """Return a copy of what the transaction sees: the committed rows, with its own changes."""
        view = self.empty()
        view.restore(self.snapshot())
        view.changes = self.changes
        for (table, key), row in transaction.rows.items():
            if row is None:
                getattr(view, table).pop(key, None)
            else:
                getattr(view, table)[key] = copy.copy(row)
        for name, added in transaction.numbers.items():
            setattr(view, name, getattr(view, name) + added)
        return view

    def locked(self, transaction: Transaction) -> dict[tuple[str, Any], Any]:
        """Return the rows that other open transactions have changed, by table and key."""
        others = [other.rows for other in self.open if other is not transaction]
        return {key: row for rows in others for key, row in rows.items()}

    def note(self, transaction: Transaction, view: ServerState) -> None:
        """Record the differences between the view and the committed rows as changes of the transaction.

        :raise LockedError: another open transaction has changed one of these rows.
        """
        # A rollback does not undo it, so ids have gaps.
        self.last_id = max(self.last_id, view.last_id)
        rows: dict[tuple[str, Any], Any] = {}
        for table in self.TABLES:
            mine, other = getattr(self, table), getattr(view, table)
            rows |= {
                (table, key): other.get(key)
                for key in mine.keys() | other.keys()
                if other.get(key) != mine.get(key)
            }
        if rows.keys() & self.locked(transaction).keys():
            raise LockedError("another transaction has changed what this one changes")
        transaction.rows = rows
        numbers = [name for name in self.NUMBERS if name != "last_id"]
        transaction.numbers = {name: getattr(view, name) - getattr(self, name) for name in numbers}

    def commit(self, transaction: Transaction) -> None:
        """Apply the changes of the transaction to the committed rows."""
        for (table, key), row in transaction.rows.items():
            if row is None:
                getattr(self, table).pop(key, None)
            else:
                getattr(self, table)[key] = row
        for name, added in transaction.numbers.items():
            setattr(self, name, getattr(self, name) + added)
        self.changes += bool(transaction.rows)


class MemoryConnection:
    """A caller's connection to a server in memory, for the ``joined`` of its stores.

    >>> from persistcoll.engine.memory.server_record_store import MemoryServerState, MemoryServerStore
    >>> state = MemoryServerState()
    >>> store, connection = MemoryServerStore(state=state), MemoryConnection(state)
    >>> connection.begin()
    >>> id = store.joined(connection).append(b"order")
    >>> store.count()
    0
    >>> connection.commit()
    >>> store.count()
    1
    >>> store.close()
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.transaction: Transaction | None = None

    def begin(self) -> None:
        """Begin a transaction."""
        with self._state.lock:
            if self.transaction is not None:
                raise ValueError("a transaction is open already")
            self.transaction = Transaction()
            self._state.open.append(self.transaction)

    def commit(self) -> None:
        """Commit the open transaction."""
        with self._state.lock:
            self._state.commit(self._end())

    def rollback(self) -> None:
        """Roll back the open transaction."""
        with self._state.lock:
            self._end()

    def _end(self) -> Transaction:
        transaction, self.transaction = self.transaction, None
        if transaction is None:
            raise ValueError("no transaction is open")
        self._state.open.remove(transaction)
        return transaction


def sent(contract: type, name: str) -> Callable[..., Any]:
    """Return a method that runs the operation ``name`` of the contract on the server."""

    def method(self: ServerStore[Any], *arguments: Any, **options: Any) -> Any:
        return self._call(name, arguments, options)

    method.__name__, method.__doc__ = name, getattr(contract, name).__doc__
    return method


class ServerStore(ABC, Generic[S]):
    """What the stores on a server in memory share: how an operation reaches the server, exactly once.

    It sends each operation with a number. If the answer is lost, it sends the operation again with the same
    number, so that the server runs it once.

    The lock of the server's state protects every field except the operation numbers, which come from an
    atomic counter.
    """

    _RETRIES = 100
    _READS: ClassVar[frozenset[str]] = frozenset()
    """The operations that in a caller's transaction change nothing, not even what is due."""
    _state: S

    def __init__(self) -> None:
        self._connection: MemoryConnection | None = None
        self._closed = False
        self._original = self
        """The store of which this one is joined to a transaction; otherwise itself."""
        self._become_client()

    def _become_client(self) -> None:
        state = self._state
        with state.lock:
            self._client = next(state.clients)
            self._operations = itertools.count(1)
            self._ids: Iterator[int] = iter(())
            state.beating.add(self._client)

    @abstractmethod
    def _session(self, name: str, view: S, locked: dict[tuple[str, Any], Any], ids: Iterator[int]) -> Any:
        """Return a store of the plain model for one call of ``name``, on the rows that the call sees.

        :param ids: the ids that were drawn for the call before it began.
        """

    @abstractmethod
    def _payloads(self, name: str, arguments: Sequence[Any]) -> Sequence[bytes]:
        """Return the payloads that an operation stores."""

    @abstractmethod
    def _draws_early(self, name: str, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
        """Tell whether the call draws its ids before its transaction, so that higher ids may precede them."""

    def _ran(self, session: Any) -> None:
        """Remember what a session knows that ran. The caller holds the lock."""

    def joined(self, connection: MemoryConnection) -> Self:
        """Return this store bound to the transaction that is open on the connection."""
        joined = copy.copy(self)
        joined._connection = connection
        return joined

    def _call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run an operation on the server exactly once, and return its value.

        :raise BackendUnavailableError: the connection was lost too often.
        """
        notes = {name: options[name] for name in _NOTES if options.get(name) is not None}
        operation = next(self._operations)
        payloads = self._payloads(name, arguments)
        for payload in payloads:
            if len(payload) > MAX_PAYLOAD:
                raise EncodeError(f"an item of {len(payload)} bytes is too large: at most {MAX_PAYLOAD}")
        for _ in range(self._RETRIES):
            early: list[int] = []
            if payloads and self._draws_early(name, arguments, options):
                early = [self._draw() for _ in payloads]
                time.sleep(0)
            with self._state.lock:
                if self._original._closed:
                    raise ClosedError("this store in memory is closed")
                made: dict[str, list[Any]] = {each: [] for each in notes}
                lost, value = self._attempt(name, arguments, {**options, **made}, operation, early)
            if not lost:
                for each, noted in notes.items():
                    noted.extend(made[each])
                return value
        raise BackendUnavailableError("the server in memory cannot be reached")

    def _attempt(
        self,
        name: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        operation: int,
        early: list[int],
    ) -> tuple[bool, Any]:
        """Send the operation once. The caller holds the lock.

        :return: whether the answer was lost, and the answer.
        """
        state, connection = self._state, self._connection
        key = self._client, operation
        if key in state.done:
            value, made = state.done.pop(key)
            for each, noted in made.items():
                options[each].extend(noted)
            return False, value
        if connection is not None and connection.transaction is None:
            raise ValueError("no transaction is open on this connection")
        transaction = Transaction() if connection is None else connection.transaction
        assert transaction is not None
        view = state.view(transaction)
        session = self._session(name, view, state.locked(transaction), iter(early))
        value = getattr(session, name)(*arguments, **options)
        if isinstance(value, Iterator):
            value = iter(list(value))
        if connection is not None:
            if name not in self._READS:
                state.note(transaction, view)
            self._ran(session)
            return False, value
        if state.loses():  # the connection is lost before the commit
            return True, None
        state.note(transaction, view)
        state.commit(transaction)
        self._ran(session)
        if state.loses():  # the connection is lost after the commit
            state.done[key] = value, {each: options[each] for each in _NOTES if options.get(each)}
            return True, None
        return False, value

    def _draw(self) -> int:
        """Draw the next id of this client."""
        with self._state.lock:
            id = next(self._ids, None)
            return self._draw_last() if id is None else id

    def _draw_last(self) -> int:
        """Draw an id that is higher than every drawn id, and a new block of ids for this client."""
        state = self._state
        with state.lock:
            first = state.last_id + 1
            state.last_id += state.id_block
            self._ids = iter(range(first + 1, state.last_id + 1))
            return first

    def change_token(self) -> object:
        """Return the number of changes."""
        with self._state.lock:
            if not self._closed and self._state.loses():
                raise BackendUnavailableError("the server in memory cannot be reached now")
        self._call("count", (), {})  # this ends due delays and leases, which counts as a change
        with self._state.lock:
            return self._state.changes

    def after_fork_in_child(self) -> None:
        """Become another client. It is the first call in a forked child."""
        # A thread of the parent that the child does not have may hold the old lock. The parent lives on, but
        # its holder sends no heartbeats to this copy of the state.
        self._state.lock = threading.RLock()
        self._state.open.clear()
        self._state.silence(self._client)
        if not self._closed:
            self._become_client()
