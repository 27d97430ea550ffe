"""The contract of a log store: bytes that stay, and named cursors that read them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from persistcoll.engine.contracts.store import MAX_POLL_INTERVAL
from persistcoll.engine.records import Record

__all__ = ["CursorState", "LogBounds", "LogCursor", "LogStore"]

T = TypeVar("T")


class LogBounds(NamedTuple):
    """Which records a log holds, at one moment."""

    first: int
    """The id of the first record; in an empty log, above every id that was ever given."""
    last: int
    """The highest id that a record has or had; 0 in a new log."""
    records: int
    """How many records the log holds. Ids may have gaps, so this is no difference of ids."""


class CursorState(NamedTuple):
    """How far a cursor has come."""

    position: int
    """The id up to which every record is committed; 0 if none is."""
    lag: int
    """How many of the log's records are not committed."""


class LogCursor(Protocol):
    """One named cursor of a log, which no other object has open. Any thread may call any method.

    The cursor has two places. ``position`` is stored, and only :meth:`commit` and :meth:`seek` move it. The
    reading place is in memory: :meth:`read` moves it, and a new object begins to read after ``position``.

    :ivar seeks: how many seeks there were; a fork counts as one in the child.
    """

    seeks: int

    @property
    def name(self) -> str:
        """The name of the cursor."""

    def read(self, limit: int, decode: Callable[[Record], T], *, ids: list[int] | None = None) -> list[T]:
        """Return ``decode`` of the next 1 to ``limit`` records, and move the reading place after them.

        If ``decode`` raises at the first record, the call raises the same error, and the reading place stays.
        If it raises at a later record, the call returns the results before it.

        :param ids: a list to which the store appends the ids in the same step in which the reading place
            moves, so that a caller that is interrupted (``KeyboardInterrupt``) knows what it has missed.
        :raise Empty: the reading place is at the end of the log.
        :raise TrimmedError: the next record was trimmed.
        """

    @property
    def position(self) -> int:
        """The id up to which every record is committed; 0 if none is."""

    def lag(self) -> int:
        """Return how many records of the log are not committed."""

    def commit(self, id: int, seeks: int | None = None) -> None:
        """Move ``position`` forward to ``id``; do nothing if it is there or beyond.

        :param seeks: what ``seeks`` was when the caller chose the id. The call does nothing if the cursor has
            been moved since, because another thread may seek between the choice and the call.
        :raise ValueError: no record has had this id yet.
        """

    def seek(self, id: int | None) -> None:
        """Move both places, forward or back, so that the record ``id`` is the next one.

        :param id: ``None``: the first record of the log.
        :raise TrimmedError: the record was trimmed.
        :raise ValueError: ``id`` is above the id that the next record will have.
        """

    def close(self) -> None:
        """Let others open the cursor, and commit nothing. Idempotent."""


class LogStore(Protocol):
    """Keep records of bytes in the order of their ids until they are trimmed, and any number of cursors.

    A call is one short atomic operation, from any thread. Several processes may append, trim and read. A
    cursor is open in one object at a time.

    :ivar store_id: what tells this store from every other one.
    :ivar max_poll_interval: as that of a queue store.
    """

    store_id: bytes
    max_poll_interval: float = MAX_POLL_INTERVAL

    def append(self, payload: bytes) -> int:
        """Store ``payload`` after all others, and return its id."""

    def append_many(self, payloads: Sequence[bytes]) -> Sequence[int]:
        """Store all payloads, in order, or none, and return their ids, which have no gaps."""

    def bounds(self) -> LogBounds:
        """Return which records there are."""

    def records(self, after: int = 0) -> Generator[Record, None, None]:
        """Iterate over the records with an id above ``after``, to the end of the log.

        A record that is appended before the iteration ends is a part of it. One that is trimmed before the
        iteration reaches it is left out.
        """

    def nth(self, index: int) -> int:
        """Return the id of the record that ``index`` records come before; the next id if there is none."""

    def find(self, time: float) -> int:
        """Return the id of the first record that was put at ``time`` or later, by the clock of its producer.

        Where there is none, it is above every id that was ever given.
        """

    def trim(self, before: int, force: bool = False) -> int:
        """Remove the records below the id ``before`` that no cursor needs, and return how many these were.

        A cursor needs every record that it has not committed.

        :param force: also remove what cursors need.
        """

    def cursor(self, name: str, start: int | None = None) -> LogCursor:
        """Open a cursor.

        :param start: the id of the first record to read, if the cursor is new. ``None``: the first one of the
            log.
        :raise LockedError: the cursor is open in another object.
        :raise TrimmedError: the cursor is new, and the record ``start`` was trimmed.
        :raise ValueError: the cursor is new, and ``start`` is above the id that the next record will have.
        """

    def cursors(self) -> dict[str, CursorState]:
        """Return every cursor's state by its name, in the order of the names."""

    def forget(self, name: str) -> bool:
        """Remove a cursor, and tell whether there was one.

        :raise LockedError: the cursor is open.
        """

    def change_token(self) -> object:
        """Return a token that differs from an earlier one if another process has appended since."""

    def used_here(self) -> bool:
        """Tell whether this thread is within a call of this store."""
        return False

    def after_fork_in_child(self) -> None:
        """Close what belongs to the parent, and write nothing. It is the first call in a forked child.

        A cursor that the parent has open raises ``LockedError`` in the child for as long as that is so.
        """

    def close(self) -> None:
        """Close the log and every cursor that this object has opened. Idempotent."""
