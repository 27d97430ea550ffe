"""The reference message store that behaves like one on a database server: :class:`MemoryMessageServerStore`.

Beside what :mod:`persistcoll.engine.memory.server` says, it never notices the death of a holder.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from persistcoll.engine.contracts import MessageStore, StoreCapabilities
from persistcoll.engine.memory.message_life_cycle import NO_LEASE
from persistcoll.engine.memory.message_rows import MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server import MAX_PAYLOAD, ServerState, ServerStore, sent
from persistcoll.engine.message_events import MessageEvent, Observer, tell
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy
from persistcoll.errors import BackendUnavailableError, LockedError

__all__ = ["MemoryMessageServerState", "MemoryMessageServerStore"]


class MemoryMessageServerState(ServerState, MemoryMessageState):
    """The state of a server, with the messages of one queue.

    :param clock: returns the time in seconds since the epoch; by default a clock that no user can set.
    :param patience: has no effect.
    :param id_block: how many ids a client draws at once.
    :param loss: the probability that the connection is lost before a commit, and that it is lost after one.
    :param seed: the seed of these chances.
    """

    def copy(self) -> MemoryMessageServerState:
        other = super().copy()
        other.tokens = itertools.count(next(self.tokens))
        return other


class _Session(MemoryMessageStore):
    """A message store for one call, on the rows that the call sees and changes."""

    def __init__(
        self,
        store: MemoryMessageServerStore,
        view: MemoryMessageServerState,
        locked: dict[tuple[str, Any], Any],
        draw: Callable[[], int],
    ) -> None:
        super().__init__(store._policy, view)
        self.capabilities = store.capabilities
        self._holder = store._client
        self._locked = locked.keys()
        committed = [store._state.rows.get(key) for table, key in locked if table == "rows"]
        rows = [row for row in (*committed, *locked.values()) if isinstance(row, MessageRow)]
        self._locked_groups = {row.group for row in rows if row.group is not None}
        self._draw = draw
        view.tokens = store._state.tokens
        view.add = self._add  # type: ignore[method-assign]

    def _is_dead(self, holder: object) -> bool:
        return False

    def _add(self, row: MessageRow) -> int:
        state = self._state
        row.id = self._draw()
        state.last_id = max(state.last_id, row.id)
        state.rows[row.id] = row
        return row.id

    def _is_locked(self, table: str, key: Any) -> bool:
        return (table, key) in self._locked

    def _may_change(self, row: MessageRow) -> bool:
        is_locked = self._is_locked("rows", row.id) or self._is_locked("keys", row.entry.key)
        return not (is_locked or row.group in self._locked_groups)

    def _refuse_locked(self, row: MessageRow | None) -> None:
        if row is not None and not self._may_change(row):
            raise LockedError(f"message {row.id} is locked by another transaction")

    def _put(self, entry: MessageEntry) -> int | None:
        # Another transaction may have put the head of this group, which this one does not see.
        if (entry.topic, entry.group) in self._locked_groups:
            raise LockedError("another transaction changes this group")
        return super()._put(entry)

    def _of_claim(self, claim: MessageClaim) -> MessageRow | None:
        row = super()._of_claim(claim)
        self._refuse_locked(row)
        return row

    def redrive(self, id: int) -> bool:
        self._refuse_locked(self._state.rows.get(id))
        return super().redrive(id)

    def cancel(self, id: int) -> bool:
        self._refuse_locked(self._state.rows.get(id))
        return super().cancel(id)


class MemoryMessageServerStore(ServerStore[MemoryMessageServerState], MessageStore):
    """A :class:`~persistcoll.engine.contracts.MessageStore` in memory that behaves like one on a server.

    Closing a store ends its claims. Any thread may call any method.

    :param state: the state of the server; a new one by default.
    """

    _READS = frozenset(
        ("find", "peek", "scan", "topics", "count", "is_empty", "has_unfinished", "stats", "now")
    )

    def __init__(
        self,
        policy: MessagePolicy = MessagePolicy(),  # noqa: B008 - immutable
        state: MemoryMessageServerState | None = None,
    ) -> None:
        self._policy = policy
        self._state = state or MemoryMessageServerState()
        self.capabilities = StoreCapabilities(
            total_order=False,
            death_noticed_after=math.inf,
            joins_transactions=True,
            counts_delivered=False,
            max_payload=MAX_PAYLOAD,
        )
        if policy.lease is None:
            raise ValueError(NO_LEASE)
        self._observer: Observer | None = None
        # What the present call of each thread has done.
        self._present = threading.local()
        super().__init__()

    put = sent(MessageStore, "put")
    claim = sent(MessageStore, "claim")
    deliver = sent(MessageStore, "deliver")
    ack = sent(MessageStore, "ack")
    nack = sent(MessageStore, "nack")
    release = sent(MessageStore, "release")
    fail = sent(MessageStore, "fail")
    extend = sent(MessageStore, "extend")
    redrive = sent(MessageStore, "redrive")
    redrive_all = sent(MessageStore, "redrive_all")
    cancel = sent(MessageStore, "cancel")
    purge = sent(MessageStore, "purge")
    now = sent(MessageStore, "now")
    release_key = sent(MessageStore, "release_key")
    find = sent(MessageStore, "find")
    peek = sent(MessageStore, "peek")
    scan = sent(MessageStore, "scan")
    topics = sent(MessageStore, "topics")
    count = sent(MessageStore, "count")
    is_empty = sent(MessageStore, "is_empty")
    has_unfinished = sent(MessageStore, "has_unfinished")
    stats = sent(MessageStore, "stats")
    set_rate = sent(MessageStore, "set_rate")
    pause = sent(MessageStore, "pause")
    resume = sent(MessageStore, "resume")
    lock_topic = sent(MessageStore, "lock_topic")
    extend_lock = sent(MessageStore, "extend_lock")
    unlock_topic = sent(MessageStore, "unlock_topic")
    reclaim = sent(MessageStore, "reclaim")
    shrink = sent(MessageStore, "shrink")
    checkpoint = sent(MessageStore, "checkpoint")

    def _session(
        self,
        name: str,
        view: MemoryMessageServerState,
        locked: dict[tuple[str, Any], Any],
        ids: Iterator[int],
    ) -> _Session:
        # The ids of messages with a group are drawn behind the lock, so that their order is that of the puts.
        session = _Session(self, view, locked, lambda: next(ids, None) or self._draw_last())
        events: list[MessageEvent] = []
        self._present.events = events
        if self._observer is not None:
            session.observe(events.extend)
        return session

    def _call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        value = super()._call(name, arguments, options)
        self._tell()
        return value

    def _tell(self) -> None:
        """Tell the observer what the call has done that has just ended."""
        if self._observer is not None and self._connection is None:
            tell(self, self._observer, self._present.events)

    def observe(self, observer: Observer | None) -> None:
        self._observer = observer

    def _payloads(self, name: str, arguments: Sequence[Any]) -> Sequence[bytes]:
        return [entry.payload for entry in arguments[0]] if name == "put" else ()

    def _draws_early(self, name: str, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
        return all(entry.group is None for entry in arguments[0])

    def close(self) -> None:
        ended = False
        with self._state.lock:
            if self._closed:
                return
            with suppress(BackendUnavailableError):  # if this fails, the claims end with their leases
                super()._call("end_own_claims", (), {})
                ended = True
            self._closed = True
        if ended:
            self._tell()
