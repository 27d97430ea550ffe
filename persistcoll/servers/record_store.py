"""Store records with states on a database server: put, claim, settle and read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from persistcoll.engine.contracts import Awaited, Claim, RecordStore, Select, StoreCapabilities
from persistcoll.engine.records import ClaimPolicy, Discipline, Entry, Record, State, Stats
from persistcoll.errors import DuplicateError, Empty
from persistcoll.servers.bounds import Bound, NoCreditError, Put, put_of
from persistcoll.servers.claims import ClaimingHandle
from persistcoll.servers.driver import Deferred, TryAgainError
from persistcoll.servers.handle import count_stored
from persistcoll.servers.rows import Seal
from persistcoll.servers.schema import Collection
from persistcoll.servers.sessions import Server, Session
from persistcoll.servers.settling import FINISHED
from persistcoll.servers.statements import ALL, BEFORE_ALL, LONGEST_SPAN, NUMBERS, PAGE

__all__ = ["ServerRecordStore"]

T = TypeVar("T")

_LONGEST_KEY = 255  # bytes
_STATES = {number: state for state, number in NUMBERS.items()}
_READY, _DELAYED = NUMBERS[State.READY], NUMBERS[State.DELAYED]


class ServerRecordStore(ClaimingHandle, RecordStore):
    """A :class:`~persistcoll.engine.contracts.RecordStore` in a table on a database server."""

    def __init__(
        self, server: Server, collection: Collection, discipline: Discipline, retry: ClaimPolicy
    ) -> None:
        super().__init__(server, collection, discipline, retry)
        self._bound = Bound(server, self._number, self._sql, self._promote_page)
        self.capabilities = StoreCapabilities(
            total_order=False,
            decodes_once=False,
            death_noticed_after=server.patience,
            joins_transactions=True,
            max_payload=server.max_payload,
        )

    def seal_with(self, seal: Seal | None, unseal: Seal | None) -> None:
        """Apply ``seal`` to each payload and its mark before it is written, from now on.

        ``unseal`` undoes it.
        """
        self._rows.seal, self._rows.unseal = seal, unseal

    # Putting.

    def append(self, payload: bytes, capacity: int = 0, *, deadline: float | None = None) -> int:
        return cast(int, self.put((Entry(payload),), capacity, deadline=deadline)[0])

    def append_many(
        self, payloads: Sequence[bytes], capacity: int = 0, *, deadline: float | None = None
    ) -> Sequence[int]:
        entries = [Entry(payload) for payload in payloads]
        return cast(list[int], self.put(entries, capacity, deadline=deadline))

    def put(
        self, entries: Sequence[Entry], capacity: int = 0, *, deadline: float | None = None
    ) -> list[int | None]:
        self._check()
        if not entries:
            return []
        rows = [self._row(entry) for entry in entries]
        needing_room = sum(row["delay"] is None for row in rows)
        if capacity and needing_room and self._bound.was_full:
            self._look()
            self._bound.refuse_full(self._sessions, capacity, needing_room, self._discipline.unique)

        is_alone = len(rows) == 1 and not (self._discipline.unique or self._is_joined)
        id = self._put_alone(rows[0], capacity, deadline) if is_alone else 0
        ids: list[int | None] = [id] if id else self._put_in_steps(rows, capacity, deadline)
        self._lower(rows, ids)
        return ids

    def _put_alone(self, row: dict[str, Any], capacity: int, deadline: float | None) -> int:
        """Insert one row in one trip, and return its id, or 0 if the session has no credit."""
        if not capacity:
            return self._insert_noted(self._sql.insert_noted, row, deadline)
        bounded = {**row, "capacity": capacity}
        return self._insert_noted(self._sql.insert_by_credit, bounded, deadline, by_credit=True)

    def _put_in_steps(
        self, rows: list[dict[str, Any]], capacity: int, deadline: float | None
    ) -> list[int | None]:
        """Insert rows in a transaction, and return their ids; ``None`` for a row whose key is active."""

        def transact(insert: Callable[..., list[int | None]], *bound: Any) -> list[int | None]:
            def run(session: Session) -> list[int | None]:
                ids = insert(session, rows, *bound)
                if count_stored(ids):
                    self._notify(session, Awaited.READY)
                return ids

            return self._transact(run, puts=count_stored, deadline=deadline)

        if not capacity:
            return transact(self._insert)
        if self._is_joined:
            return transact(self._insert_reserved, capacity, deadline)
        with suppress(NoCreditError):
            return transact(self._insert_by_credit, capacity)
        return transact(self._insert_in_turn, capacity)

    def _lower(self, rows: list[dict[str, Any]], ids: list[int | None]) -> None:
        """Lower the floor to what this object has put."""
        by_priority = self._discipline.by_priority
        ready = [
            (row["place"] if by_priority else 0.0, id)
            for row, id in zip(rows, ids, strict=True)
            if id is not None and row["delay"] is None
        ]
        if ready:
            self._heads.lower(*min(ready))

    def _row(self, entry: Entry) -> dict[str, Any]:
        place = float(entry.priority)
        if place != entry.priority:
            raise ValueError(f"a server stores priorities as floats, and {entry.priority} is none")
        is_delayed = entry.delay > 0
        row = self._rows.columns(entry.payload)
        row["place"] = place
        row["key"] = self._checked_key(entry.key)
        row["state"] = _DELAYED if is_delayed else _READY
        row["delay"] = min(entry.delay, LONGEST_SPAN) if is_delayed else None
        return row

    def _checked_key(self, key: bytes | None) -> bytes | None:
        """Return the key to store: none, if keys need not be unique."""
        if not self._discipline.unique:
            return None
        if key is not None and len(key) > _LONGEST_KEY:
            raise ValueError(f"a key has at most {_LONGEST_KEY} bytes on a server, not {len(key)}")
        return key

    def _insert_by_credit(
        self, session: Session, rows: list[dict[str, Any]], capacity: int
    ) -> list[int | None]:
        """Insert rows by credits of the session, or under the lock if it has too few.

        :raise NoCreditError: another session has revoked them.
        """
        if not session.expects_credits(self._number, len(rows)):
            return self._insert_in_turn(session, rows, capacity)
        taken: list[Deferred] = []
        ids = self._insert(
            session, rows, lambda: taken.append(self._bound.use_credits(session, len(rows), capacity))
        )
        self._bound.settle_credits(session, taken[0], len(rows), put_of(rows, ids, capacity))
        return ids

    def _insert_in_turn(
        self, session: Session, rows: list[dict[str, Any]], capacity: int
    ) -> list[int | None]:
        """Insert rows under the lock of the collection, and get credits for later ones.

        :raise Full: there is no room.
        """
        counted: list[Deferred] = []
        most = Put(len(rows), 0, capacity)
        ids = self._insert(session, rows, lambda: counted.append(self._bound.lock_and_count(session, most)))
        put = put_of(rows, ids, capacity)
        if put.total:
            # What was due, and is not now, was counted.
            self._bound.admit(session, put, None if None in ids else counted[0])
        return ids

    def _insert_reserved(
        self, session: Session, rows: list[dict[str, Any]], capacity: int, deadline: float | None
    ) -> list[int | None]:
        """Insert rows in a caller's transaction.

        :raise Full: there is no room.
        """
        ids = self._insert(session, rows)
        self._bound.reserve(session, put_of(rows, ids, capacity), deadline)
        return ids

    def _insert(
        self, session: Session, rows: list[dict[str, Any]], defer: Callable[[], object] = lambda: None
    ) -> list[int | None]:
        """Insert ready and delayed rows, and return their ids; ``None`` for a row whose key is active.

        :param defer: defers statements that run after the inserts, in the same trip.
        """
        many = self._sql.insert_many
        if many is not None:
            ids: list[int | None] = []
            ids.extend(session.insert_rows(many, rows, defer))
            return ids
        sent = [session.defer(self._sql.insert, **row) for row in rows]
        defer()
        session.flush()
        ids = [each.id or None for each in sent]
        for index, row in enumerate(rows):
            # A record that is dead by now, because its lease is over, has no active key.
            if ids[index] is None and self._promote_page(session):
                ids[index] = session.run(self._sql.insert, **row).id or None
        return ids

    # Claiming.

    def claim(
        self,
        decode: Callable[[Record], T],
        select: Select | None = None,
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> T:
        return self._claim(1, decode, select, claims, deadline)[0]

    def claim_many(
        self,
        limit: int,
        decode: Callable[[Record], T],
        *,
        claims: list[Claim] | None = None,
        deadline: float | None = None,
    ) -> list[T]:
        return self._claim(limit, decode, None, claims, deadline)

    def pop(
        self, decode: Callable[[Record], T], select: Select | None = None, *, deadline: float | None = None
    ) -> T:
        return self._pop(1, decode, select, deadline)[0]

    def pop_many(
        self, limit: int, decode: Callable[[Record], T], *, deadline: float | None = None
    ) -> list[T]:
        return self._pop(limit, decode, None, deadline)

    # Changing and removing.

    def requeue(self, id: int | None = None) -> int:
        self._check()
        self._look()
        if id is None:
            return self._transact(self._requeue_all)
        text = f"an item that equals item {id} is queued already"

        def requeue(session: Session) -> int:
            rows = session.run(self._sql.lock_aside_by_id, id=id).rows
            count = self._requeue(session, rows)
            if count < len(rows):
                raise DuplicateError(text)
            return count

        try:
            return self._transact(requeue)
        except DuplicateError as error:  # Another transaction has put an equal item meanwhile.
            raise DuplicateError(text) from error

    def _requeue_all(self, session: Session) -> int:
        total, low = 0, BEFORE_ALL
        while True:
            rows: list[Any] = []
            for state in (State.FAILED, State.DEAD):
                page = session.run(self._sql.lock_aside, state=NUMBERS[state], low=low, limit=PAGE).rows
                rows.extend(page)
            # By id, because of records with one key the first is requeued.
            rows = sorted(rows, key=lambda row: row[0])[:PAGE]
            if not rows:
                return total
            low = rows[-1][0]
            try:
                total += self._requeue(session, rows)
            except DuplicateError as error:
                raise TryAgainError("an equal item was put meanwhile") from error

    def _requeue(self, session: Session, rows: list[Any]) -> int:
        """Make those of these locked rows ready whose keys are not active; return how many these are."""
        ids: list[int] = []
        keys: set[bytes] = set()
        for id, key, active in rows:
            if active is None and key not in keys:
                ids.append(id)
                if key is not None:
                    keys.add(key)
        if ids:
            session.run(self._sql.requeue, ids=ids)  # now, because the callers expect its error
            # They take up room that may have been granted.
            self._bound.lock(session)
            self._bound.revoke(session)
            self._came_back(ids)
            self._notify(session, Awaited.READY)
        return len(ids)

    def update(self, id: int, payload: bytes, key: bytes | None = None) -> bool:
        self._check()
        self._look()
        columns = {"key": self._checked_key(key), **self._rows.columns(payload)}
        try:
            return self._transact(lambda session: session.run(self._sql.update, id=id, **columns).count > 0)
        except DuplicateError as error:
            raise DuplicateError(f"an item that equals the new item {id} is queued already") from error

    def remove(self, id: int | None = None) -> int | None:
        self._check()
        self._look()

        def remove(session: Session) -> int | None:
            rows = self._lock(session, 1, None if id is None else Select(id), promoted=True)
            if not rows:
                return None
            ((found, *_),) = rows
            session.defer(self._sql.delete, ids=[found])
            self._notify(session, Awaited.LEFT)
            return cast(int, found)

        return self._transact(remove)

    def clear(self) -> int:
        self._check()
        self._look()

        def clear(session: Session) -> int:
            total = 0
            while ids := [id for (id,) in session.run(self._sql.lock_ready, limit=PAGE).rows]:
                session.defer(self._sql.delete, ids=ids)
                total += len(ids)
            self._notify(session, Awaited.LEFT)
            return total

        return self._transact(clear)

    def purge(self, state: State, keep: int = 0, limit: int | None = None) -> int:
        self._check()
        if state not in FINISHED:
            raise ValueError(f"only what is done, failed or dead can be purged, not what is {state.value}")
        self._look()
        return self._purge(state, keep, ALL if limit is None else limit)

    def shrink(self) -> None:
        self._check()

    # Reading.

    def peek(self, decode: Callable[[Record], T]) -> T:
        for row in self._read(self._sql.select_next):
            return decode(self._rows.record(row))
        raise Empty

    def has_active_key(self, key: bytes) -> bool:
        return bool(self._read(self._sql.has_key, key=key)[0][0])

    def records(self) -> Iterator[Record]:
        pages = self._pages(self._sql.select_page, 0)
        return (self._rows.record(row) for page in pages for row in page)

    def scan(self, *states: State) -> Iterator[tuple[State, Record]]:
        pages = self._pages(self._sql.scan_page, 1, states=[NUMBERS[state] for state in states or State])
        return ((_STATES[row[0]], self._rows.record(row[1:])) for page in pages for row in page)

    def count(self) -> int:
        return int(self._read(self._sql.count_ready, limit=ALL)[0][0])

    def claimed(self) -> int:
        _, claimed, _ = self._read(self._sql.counts)[0]
        return int(claimed)

    def unfinished(self) -> int:
        return sum(self._read(self._sql.counts)[0])

    def is_empty(self) -> bool:
        self._check()
        ready, _ = self._look()
        return not ready

    def has_unfinished(self) -> bool:
        return bool(self._read(self._sql.has_unfinished)[0][0])

    def stats(self) -> Stats:
        ((*counts, age, puts, size),) = self._read(self._sql.stats)
        ready, claimed, delayed, done, failed, dead = counts
        return Stats(
            ready=ready,
            claimed=claimed,
            delayed=delayed,
            done=done,
            failed=failed,
            dead=dead,
            oldest_age=None if age is None else max(0.0, age),
            puts=int(puts),
            gets=int(puts) - ready - claimed - delayed,
            bytes=int(size or 0),
        )
