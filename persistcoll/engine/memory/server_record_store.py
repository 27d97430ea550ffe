"""The reference record store that behaves like one on a database server: :class:`MemoryServerStore`.

Beside what :mod:`persistcoll.engine.memory.server` says, it knows holders by their heartbeats alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from persistcoll.engine.contracts import RecordStore, StoreCapabilities
from persistcoll.engine.memory.record_store import MemoryRecordStore
from persistcoll.engine.memory.rows import UNFINISHED, MemoryRecordState, Row
from persistcoll.engine.memory.server import MAX_PAYLOAD, ServerState, ServerStore, sent
from persistcoll.engine.records import FIFO, ClaimPolicy, Discipline, Entry
from persistcoll.errors import BackendUnavailableError, LockedError

__all__ = ["MemoryServerState", "MemoryServerStore"]


class MemoryServerState(ServerState, MemoryRecordState):
    """The state of a server, with the records of one collection.

    :param clock: returns the time in seconds since the epoch; by default a clock that no user can set.
    :param patience: the seconds without a heartbeat after which a holder is dead.
    :param id_block: how many ids a client draws at once.
    :param loss: the probability that the connection is lost before a commit, and that it is lost after one.
    :param seed: the seed of these chances.
    """


class _Session(MemoryRecordStore):
    """A record store for one call, on the rows that the call sees and changes."""

    def __init__(
        self,
        discipline: Discipline,
        retry: ClaimPolicy,
        view: MemoryRecordState,
        locked: dict[tuple[str, Any], Row | None],
        is_dead: Callable[[object], bool],
        draw: Callable[[], int],
    ) -> None:
        super().__init__(discipline, retry._replace(auto_reclaim=False), view)
        self._retry = retry
        self._locked = frozenset(id for _, id in locked)
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

    def requeue(self, id: int | None = None) -> int:
        if id is not None:
            self._check_unlocked(id)
        super()._promote_due()
        keys = {row.key for row in self._set_aside(id) if row.key is not None}
        if self._discipline.unique and keys & self._locked_keys:
            raise LockedError("another transaction puts or changes an item of this key")
        return super().requeue(id)

    def _check_unlocked(self, id: int) -> None:
        if id in self._locked:
            raise LockedError(f"item {id} is locked by another transaction")


class MemoryServerStore(ServerStore[MemoryServerState], RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in memory that behaves like one on a server.

    Closing a store releases its claims. Any thread may call any method.

    :param state: the state of the server; a new one by default.
    """

    def __init__(
        self,
        discipline: Discipline = FIFO,
        retry: ClaimPolicy = ClaimPolicy(),  # noqa: B008 - immutable
        state: MemoryServerState | None = None,
    ) -> None:
        self._discipline, self._retry = discipline, retry
        self._state = state or MemoryServerState()
        self._claims: dict[int, int] = {}
        self.capabilities = StoreCapabilities(
            total_order=False,
            decodes_once=not self._state.loss,
            death_noticed_after=self._state.patience,
            joins_transactions=True,
            max_payload=MAX_PAYLOAD,
        )
        super().__init__()

    append = sent(RecordStore, "append")
    append_many = sent(RecordStore, "append_many")
    put = sent(RecordStore, "put")
    claim = sent(RecordStore, "claim")
    claim_many = sent(RecordStore, "claim_many")
    pop = sent(RecordStore, "pop")
    pop_many = sent(RecordStore, "pop_many")
    ack = sent(RecordStore, "ack")
    fail = sent(RecordStore, "fail")
    nack = sent(RecordStore, "nack")
    nack_many = sent(RecordStore, "nack_many")
    release = sent(RecordStore, "release")
    reclaim = sent(RecordStore, "reclaim")
    requeue = sent(RecordStore, "requeue")
    update = sent(RecordStore, "update")
    remove = sent(RecordStore, "remove")
    clear = sent(RecordStore, "clear")
    purge = sent(RecordStore, "purge")
    shrink = sent(RecordStore, "shrink")
    peek = sent(RecordStore, "peek")
    has_active_key = sent(RecordStore, "has_active_key")
    records = sent(RecordStore, "records")
    scan = sent(RecordStore, "scan")
    count = sent(RecordStore, "count")
    claimed = sent(RecordStore, "claimed")
    unfinished = sent(RecordStore, "unfinished")
    is_empty = sent(RecordStore, "is_empty")
    has_unfinished = sent(RecordStore, "has_unfinished")
    stats = sent(RecordStore, "stats")

    def _session(
        self,
        name: str,
        view: MemoryServerState,
        locked: dict[tuple[str, Any], Any],
        ids: Iterator[int],
    ) -> _Session:
        def draw() -> int:
            drawn = next(ids, None)
            return drawn or (self._draw_last() if name == "nack" else self._draw())

        session = _Session(self._discipline, self._retry, view, locked, self._state.is_dead, draw)
        session._holder, session._claims = self._client, dict(self._claims)
        return session

    def _payloads(self, name: str, arguments: Sequence[Any]) -> Sequence[bytes]:
        if name == "append":
            return arguments[:1]
        if name not in ("append_many", "put"):
            return ()
        return [each.payload if isinstance(each, Entry) else each for each in arguments[0]]

    def _draws_early(self, name: str, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
        return not (any(arguments[1:]) or options.get("capacity"))

    def _ran(self, session: _Session) -> None:
        if self._connection is None:
            self._claims.clear()
        self._claims.update(session._claims)

    def after_fork_in_child(self) -> None:
        self._claims = {}
        super().after_fork_in_child()

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
