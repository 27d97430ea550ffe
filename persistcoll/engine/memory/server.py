"""The reference record store that behaves like a database server: :class:`MemoryServerStore`.

It has the properties that make servers harder than files: ids that appear late and with gaps, a clock that no
user sets, answers that are lost, holders that are known only by their heartbeats, and transactions of the
caller. Each call runs a :class:`~persistcoll.engine.memory.record_store.MemoryRecordStore` on a copy of the
committed rows, and commits what it has changed.
"""

from __future__ import annotations

import copy
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from persistcoll.engine.contracts import Claim, RecordStore, StoreCapabilities
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.memory.rows import UNFINISHED, MemoryRecordState, Row
from persistcoll.engine.records import FIFO, ClaimPolicy, Discipline, Entry
from persistcoll.errors import BackendUnavailableError, ClosedError, Empty, EncodeError, LockedError

__all__ = ["MemoryConnection", "MemoryServerState", "MemoryServerStore"]

_MAX_PAYLOAD = 1 << 20  # bytes
_BEGAN = time.time() - time.monotonic()


def _server_clock() -> float:
    return _BEGAN + time.monotonic()


class _Transaction:
    """The changes of an open transaction, which no other transaction sees.

    The lock of the server's state protects every attribute.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row | None] = {}
        """The changed rows by id; ``None`` if the transaction removes the row."""
        self.puts = 0


class MemoryServerState(MemoryRecordState):
    """The state of a server: the committed rows of one collection, its holders and its clients.

    ``lock`` protects every attribute and every row.

    :param clock: returns the time in seconds since the epoch; by default a clock that no user can set.
    :param patience: the seconds without a heartbeat after which a holder is dead.
    :param id_block: how many ids a client draws at once.
    :param loss: the probability that the connection is lost before a commit, and that it is lost after one.
    :param seed: the seed of these chances.
    """

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
        self.open: list[_Transaction] = []
        self.done: dict[tuple[int, int], Any] = {}
        """The results of committed operations whose answer was lost, by client and operation."""
        self.heard: dict[int, float] = {}
        """The time of the last heartbeat of each holder that sends none any more."""
        self.beating: set[int] = set()
        """The holders that send heartbeats: the open ones of this process."""
        self.clients = itertools.count(1)

    def copy(self) -> MemoryServerState:
        """Return a copy of the committed state in which every holder is dead."""
        with self.lock:
            other = MemoryServerState(
                self.clock, patience=self.patience, id_block=self.id_block, loss=self.loss
            )
            other.rows = {id: replace(row) for id, row in self.rows.items()}
            other.last_id, other.puts = self.last_id, self.puts
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

    def view(self, transaction: _Transaction) -> MemoryRecordState:
        """Return a copy of what the transaction sees: the committed rows, with its own changes."""
        view = MemoryRecordState(self.clock)
        rows: dict[int, Row | None] = {**self.rows, **transaction.rows}
        view.rows = {id: replace(row) for id, row in rows.items() if row is not None}
        view.last_id, view.puts, view.changes = self.last_id, self.puts + transaction.puts, self.changes
        return view

    def locked(self, transaction: _Transaction) -> dict[int, Row | None]:
        """Return the rows that other open transactions have changed, by id."""
        others = [other.rows for other in self.open if other is not transaction]
        return {id: row for rows in others for id, row in rows.items()}

    def note(self, transaction: _Transaction, view: MemoryRecordState) -> None:
        """Record the differences between the view and the committed rows as changes of the transaction."""
        for id in self.rows.keys() | view.rows.keys() | transaction.rows.keys():
            if view.rows.get(id) == self.rows.get(id):
                transaction.rows.pop(id, None)
            else:
                transaction.rows[id] = view.rows.get(id)
        transaction.puts = view.puts - self.puts
        self.last_id = max(self.last_id, view.last_id)  # a rollback does not undo it, so ids have gaps

    def commit(self, transaction: _Transaction) -> None:
        """Apply the changes of the transaction to the committed rows."""
        for id, row in transaction.rows.items():
            if row is None:
                self.rows.pop(id, None)
            else:
                self.rows[id] = row
        self.puts += transaction.puts
        self.changes += bool(transaction.rows)


class MemoryConnection:
    """A caller's connection to a server in memory, for :meth:`MemoryServerStore.joined`.

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

    def __init__(self, state: MemoryServerState) -> None:
        self._state = state
        self.transaction: _Transaction | None = None

    def begin(self) -> None:
        """Begin a transaction."""
        with self._state.lock:
            self.transaction = _Transaction()
            self._state.open.append(self.transaction)

    def commit(self) -> None:
        """Commit the open transaction."""
        with self._state.lock:
            self._state.commit(self._end())

    def rollback(self) -> None:
        """Roll back the open transaction."""
        with self._state.lock:
            self._end()

    def _end(self) -> _Transaction:
        transaction, self.transaction = self.transaction, None
        if transaction is None:
            raise ValueError("no transaction is open")
        self._state.open.remove(transaction)
        return transaction


class _Session(MemoryRecordStore):
    """A record store for one call, on the rows that the call sees and changes."""

    def __init__(
        self,
        discipline: Discipline,
        retry: ClaimPolicy,
        view: MemoryRecordState,
        locked: dict[int, Row | None],
        is_dead: Callable[[object], bool],
        draw: Callable[[], int],
    ) -> None:
        super().__init__(discipline, retry._replace(auto_reclaim=False), view)
        self._retry = retry
        self._locked = frozenset(locked)
        self._locked_keys = {
            row.key for row in locked.values() if row is not None and row.state in UNFINISHED
        }
        self._is_dead = is_dead  # type: ignore[method-assign, assignment]
        self._draw = draw
        view.add = self._add  # type: ignore[method-assign]

    def _add(self, row: Row) -> int:
        state = self._state
        row.id = self._draw()
        state.last_id = max(state.last_id, row.id)
        state.changes += 1
        state.rows[row.id] = row
        return row.id

    def _promote_due(self) -> MemoryRecordState:
        state = super()._promote_due()
        if self._retry.auto_reclaim:
            self._reclaim()
        return state

    def reclaim(self) -> int:
        super()._promote_due()
        return self._reclaim()

    def _claimed(self, id: int) -> Row:
        row = super()._claimed(id)
        self._check_unlocked(id)
        return row

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        keys = {entry.key for entry in entries if entry.key is not None}
        if self._discipline.unique and keys & self._locked_keys:
            raise LockedError("another transaction puts or changes an item of this key")
        return super().put(entries, capacity)

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        self._check_unlocked(id)
        return super().update(id, payload, key)

    def _check_unlocked(self, id: int) -> None:
        if id in self._locked:
            raise LockedError(f"item {id} is locked by another transaction")


def _sent(name: str) -> Callable[..., Any]:
    """Return a method that runs the operation ``name`` on the server."""

    def method(self: MemoryServerStore, *arguments: Any, **options: Any) -> Any:
        return self._call(name, arguments, options)

    method.__name__, method.__doc__ = name, getattr(RecordStore, name).__doc__
    return method


class MemoryServerStore(RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in memory that behaves like one on a server.

    It sends each operation with a number. If the answer is lost, it sends the operation again with the same
    number, so that the server runs it once. Closing a store releases its claims. Any thread may call any
    method.

    The lock of the server's state protects every field except the operation numbers, which come from an
    atomic counter.

    :param state: the state of the server; a new one by default.
    """

    _RETRIES = 100

    def __init__(
        self,
        discipline: Discipline = FIFO,
        retry: ClaimPolicy = ClaimPolicy(),  # noqa: B008 - immutable
        state: MemoryServerState | None = None,
    ) -> None:
        self._discipline, self._retry = discipline, retry
        self._state = state or MemoryServerState()
        self._connection: MemoryConnection | None = None
        self._claims: dict[int, int] = {}
        self._closed = False
        self.capabilities = StoreCapabilities(
            total_order=False,
            decodes_once=not self._state.loss,
            death_noticed_after=self._state.patience,
            joins_transactions=True,
            max_payload=_MAX_PAYLOAD,
        )
        self._become_client()

    def _become_client(self) -> None:
        state = self._state
        with state.lock:
            self._client = next(state.clients)
            self._operations = itertools.count(1)
            self._ids: Iterator[int] = iter(())
            state.beating.add(self._client)

    append = _sent("append")
    append_many = _sent("append_many")
    put = _sent("put")
    claim = _sent("claim")
    claim_many = _sent("claim_many")
    pop = _sent("pop")
    pop_many = _sent("pop_many")
    ack = _sent("ack")
    fail = _sent("fail")
    nack = _sent("nack")
    release = _sent("release")
    reclaim = _sent("reclaim")
    update = _sent("update")
    remove = _sent("remove")
    clear = _sent("clear")
    purge = _sent("purge")
    shrink = _sent("shrink")
    peek = _sent("peek")
    has_active_key = _sent("has_active_key")
    records = _sent("records")
    scan = _sent("scan")
    count = _sent("count")
    claimed = _sent("claimed")
    unfinished = _sent("unfinished")
    is_empty = _sent("is_empty")
    has_unfinished = _sent("has_unfinished")
    stats = _sent("stats")

    def joined(self, connection: MemoryConnection) -> MemoryServerStore:
        joined = copy.copy(self)
        joined._connection = connection
        return joined

    def change_token(self) -> object:
        with self._state.lock:
            if not self._closed and self._state.loses():
                raise BackendUnavailableError("the server in memory cannot be reached now")
            self._call("count", (), {})  # this ends due delays and leases, which counts as a change
            return self._state.changes

    def _call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run an operation on the server exactly once, and return its value.

        :raise BackendUnavailableError: the connection was lost too often.
        """
        claims: list[Claim] | None = options.get("claims")
        operation = next(self._operations)
        puts = name in ("append", "append_many", "put")
        if puts:
            self._check_sizes(arguments[0])
        is_bounded = any(arguments[1:]) or bool(options.get("capacity"))
        for _ in range(self._RETRIES):
            early: list[int] = []
            if puts and not is_bounded:
                # Draw the ids before the transaction, so that transactions with higher ids may commit first.
                early = [self._draw() for _ in ([0] if name == "append" else arguments[0])]
                time.sleep(0)
            with self._state.lock:
                if self._closed:
                    raise ClosedError("this store in memory is closed")
                made: list[Claim] = []
                if claims is not None:
                    options["claims"] = made
                lost, value = self._attempt(name, arguments, options, operation, early)
            if not lost:
                if claims is not None:
                    claims.extend(made)
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
            if "claims" in options:
                options["claims"].extend(made)
            return False, value
        if connection is not None and connection.transaction is None:
            raise ValueError("no transaction is open on this connection")
        transaction = _Transaction() if connection is None else connection.transaction
        assert transaction is not None
        view = state.view(transaction)
        drawn = iter(early)
        session = _Session(
            self._discipline,
            self._retry,
            view,
            state.locked(transaction),
            state.is_dead,
            (lambda: next(drawn)) if early else (self._draw_last if name == "nack" else self._draw),
        )
        session._holder, session._claims = self._client, dict(self._claims)
        try:
            value = getattr(session, name)(*arguments, **options)
        except Empty as error:
            due = [row.until for row in view.rows.values() if row.until is not None]
            if due:
                error.next_at = time.monotonic() + min(due) - state.clock()  # type: ignore[attr-defined]
            raise
        if isinstance(value, Iterator):
            value = iter(list(value))
        if connection is not None:
            state.note(transaction, view)
            self._claims.update(session._claims)
            return False, value
        if state.loses():  # the connection is lost before the commit
            return True, None
        state.note(transaction, view)
        state.commit(transaction)
        self._claims.clear()
        self._claims.update(session._claims)
        if state.loses():  # the connection is lost after the commit
            state.done[key] = value, options.get("claims", ())
            return True, None
        return False, value

    def _check_sizes(self, payloads: Any) -> None:
        for payload in (payloads,) if isinstance(payloads, bytes) else payloads:
            data = payload.payload if isinstance(payload, Entry) else payload
            if len(data) > _MAX_PAYLOAD:
                raise EncodeError(f"an item of {len(data)} bytes is too large: at most {_MAX_PAYLOAD}")

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

    def after_fork_in_child(self) -> None:
        # A thread of the parent that the child does not have may hold the old lock. The parent lives on, but
        # its holder sends no heartbeats to this copy of the state.
        self._state.lock = threading.RLock()
        self._state.silence(self._client)
        self._claims = {}
        if not self._closed:
            self._become_client()

    def close(self) -> None:
        with self._state.lock:
            if self._closed:
                return
            self._state.beating.discard(self._client)
            if self._retry.auto_reclaim:
                with suppress(BackendUnavailableError):  # if this fails, the next caller reclaims
                    self.reclaim()
            self._closed = True
            self._claims = {}
