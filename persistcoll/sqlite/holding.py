"""One handle as a holder of claims, and what it knows of the other holders of its collection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from persistcoll.engine.forks import in_operation
from persistcoll.errors import ClosedError, LockedError, StorageError, StoreMissingError
from persistcoll.sqlite import schema
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Handle
from persistcoll.sqlite.holders import Holder, holder_files, is_dead

__all__ = ["HOLDERS", "Holding", "sweep"]

HOLDERS = "SELECT holder FROM holders WHERE collection = ?"
_SOME_HOLDERS = f"{HOLDERS} AND holder > ? ORDER BY holder LIMIT ?"
_NEW_HOLDER = "INSERT INTO holders (collection, holder) VALUES (?, ?)"
_IS_HOLDER = "SELECT 1 FROM holders WHERE collection = ? AND holder = ?"
_FORGET_HOLDER = "DELETE FROM holders WHERE collection = ? AND holder = ?"

# Seconds between two checks of whether the other holders live.
_LIVENESS_INTERVAL = 1.0
# The same for claims that find something: seconds, and how many holders a check is for. With any number of
# processes each of them makes as many calls of the operating system under the writer lock.
_BUSY_INTERVAL = 1.0
_CHECKED_AT_ONCE = 8


class Holding:
    """The holder that a handle is, from its first claim on.

    The database's lock protects ``_epoch``, ``_last_liveness_check``, ``_last_busy_check``, ``_last_checked``
    and the setting of ``_holder``.
    ``_holder`` is also read without it, and a fork removes it. ``_closed`` only ever becomes true:
    :meth:`close` sets it first and reads ``_holder`` second, and a claim sets ``_holder`` first and reads
    ``_closed`` second, so at least one of the two sees the other.

    :param end_claims: ends all that a holder holds, within a transaction; returns how many claims that were.
        Its last argument says whether it is this handle, which closes.
    :param auto_reclaim: whether dead holders are noticed without :meth:`reclaim`.
    """

    def __init__(
        self,
        handle: Handle[Any],
        end_claims: Callable[[Execute, int, bool], int],
        auto_reclaim: bool = True,
    ) -> None:
        self._database = handle._database
        self._timeout = handle._timeout
        self._collection_id = handle._collection_id
        self._counters = handle._counters
        self._refresh_counters = handle._refresh_counters
        self._write = handle._write_unsynced
        self._end_claims = end_claims
        self._auto_reclaim = auto_reclaim
        self._holder: Holder | None = None
        self._epoch = -1  # the database's, when it was last known to hold this holder's row
        self._closed = False
        self._last_liveness_check = -_LIVENESS_INTERVAL
        self._last_busy_check = time.monotonic()  # because opening a collection checks all holders
        self._last_checked = 0  # the number of the holder after which the next busy check begins

    @property
    def number(self) -> int | None:
        """The number of this handle as a holder; ``None`` before its first claim."""
        holder = self._holder
        return None if holder is None else holder.number

    def ensure(self, execute: Execute) -> int:
        """Return the number of this handle as a holder, after making it one if it is none.

        Call it within the transaction that claims. A claim under a number that was released meanwhile, or
        whose transaction was rolled back, would never be reclaimed.
        """
        holder, epoch = self._holder, self._database.epoch
        known = holder is not None and (
            self._epoch == epoch
            or execute(_IS_HOLDER, (self._collection_id, holder.number)).fetchone() is not None
        )
        if holder is None or not known:
            if holder is not None:
                holder.close_and_unlink()
            holder = self._holder = self._become_holder(execute)
        self._epoch = epoch
        if self._closed:  # after `_holder` was set, because close() sets `_closed` before it reads `_holder`
            if not known:
                holder.close_and_unlink()
            raise ClosedError(f"the store in {self._database.path!r} is closed")
        return holder.number

    def _become_holder(self, execute: Execute) -> Holder:
        while True:
            number = schema.next_holder(execute)
            try:
                # Lock the file before the row exists: otherwise another process could see the row, find the
                # file unlocked, and take this process for dead.
                holder = Holder(self._database, number)
            except BlockingIOError:  # a holder has that number whose transaction was rolled back
                continue
            try:
                execute(_NEW_HOLDER, (self._collection_id, number))
            except BaseException:
                holder.close_and_unlink()
                raise
            return holder

    def reclaim(self, execute: Execute) -> int:
        """End what dead holders hold; return how many claims that were."""
        count = 0
        for (number,) in execute(HOLDERS, (self._collection_id,)).fetchall():
            if self._is_dead(number):
                count += self._end(execute, number, False)
        return count

    def _is_dead(self, number: int) -> bool:
        return number != self.number and is_dead(self._database.disk, self._database.path, number)

    def _end(self, execute: Execute, number: int, closes: bool) -> int:
        count = self._end_claims(execute, number, closes)
        execute(_FORGET_HOLDER, (self._collection_id, number))
        return count

    def may_reclaim(self) -> bool:
        """Tell whether records are claimed, and it is time to check whether their holders live."""
        if not self._auto_reclaim or not self._counters.has_held():
            return False
        return time.monotonic() - self._last_liveness_check >= _LIVENESS_INTERVAL

    def liveness_check_due(self) -> float | None:
        """Return when the holders were checked last, if :meth:`may_reclaim`; otherwise ``None``."""
        return self._last_liveness_check if self.may_reclaim() else None

    def reclaim_if_due(self, execute: Execute) -> bool:
        """Call :meth:`reclaim` if it is time for it; return whether it found a claim."""
        if not self.may_reclaim():
            return False
        self._last_liveness_check = time.monotonic()
        found = self.reclaim(execute) > 0
        self._database.keep_changes()
        return found

    def reclaim_while_busy(self, execute: Execute) -> None:
        """End what some dead holders hold, if it is time to look for them, before a claim chooses.

        Otherwise what a dead process has claimed would wait for as long as other processes never find the
        queue empty. The holders take turns, so a check costs as much with any number of them.
        """
        if not self._auto_reclaim or not self._counters.has_held():
            return
        now = time.monotonic()
        if now - self._last_busy_check < _BUSY_INTERVAL:
            return
        self._last_busy_check = now
        where = self._collection_id, self._last_checked, _CHECKED_AT_ONCE
        numbers = [number for (number,) in execute(_SOME_HOLDERS, where).fetchall()]
        self._last_checked = numbers[-1] if len(numbers) == _CHECKED_AT_ONCE else 0
        for number in numbers:
            try:
                is_over = self._is_dead(number)
            except StorageError:  # such as too few descriptors: the claim finds something without this
                break
            if is_over:
                self._end(execute, number, False)
        self._database.keep_changes()

    def close(self) -> None:
        """End what this handle holds, or leave it to be reclaimed from a dead holder."""
        self._closed = True  # before `_holder` is read: see ensure()
        holder = self._holder
        if holder is None:
            return

        def run(execute: Execute) -> None:
            self._refresh_counters(execute)
            self._end(execute, holder.number, True)

        if not self._auto_reclaim or in_operation():
            holder.close()  # from a dead holder its claims can be reclaimed
            return
        try:
            self._write(run, self._timeout)
        except StoreMissingError:
            pass  # the collection was dropped, and no living holder had a claim
        except BaseException as error:
            holder.close()  # its claims can be reclaimed, if the database is still there
            # After a failed sync the error has told the caller to close this.
            is_poisoned = isinstance(error, StorageError) and self._database._poison.failure is not None
            if not is_poisoned and not isinstance(error, LockedError):
                raise
        holder.close_and_unlink()

    def after_fork_in_child(self) -> None:
        """Be no holder in a forked child, because the claims are the parent's."""
        if self._holder is not None:
            self._holder.close()
        self._holder = None


def sweep(execute: Execute, database: Database) -> None:
    """Remove the files of dead holders that have no row. Call it within a transaction."""
    found = holder_files(database.path)
    if found:
        known = {number for (number,) in execute("SELECT holder FROM holders").fetchall()}
        for number in set(found) - known:
            is_dead(database.disk, database.path, number)
