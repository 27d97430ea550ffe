"""What the stores on a journal share: how they are opened and closed, and how they follow a fork."""

from __future__ import annotations

import threading
from collections.abc import Callable

from persistcoll.engine.forks import REENTRANT, in_operation, owned, register_used, unregister_used
from persistcoll.engine.poison import Poison
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.engine.records import Durability
from persistcoll.errors import StorageError
from persistcoll.journal.journal import Journal
from persistcoll.journal.open import Opening
from persistcoll.journal.reader import ReadableJournal
from persistcoll.journal.replaced_files import replaced
from persistcoll.journal.tail import UsedIds

__all__ = ["JournalStore"]


class JournalStore:
    """A store in a directory, on a journal. Thread-safe.

    Two re-entrant locks protect the fields:

    - ``_consuming`` protects what consumes, and the opening and closing of the store.
    - ``_appending`` protects the journal's tail, and more that a subclass names. A thread that needs both
      locks acquires ``_consuming`` first.

    A subclass opens the journal and its own files in ``_use``, and says what to do with these files at the
    end.

    :param opening: the opened directory. Its lock files become the store's. The producer lock is held.
    :param durability: what an operation that returned survives.
    :param seal: called with the payload and the id of each record; returns the payload to write.
    """

    _journal: ReadableJournal
    # Refuses every call: the journal's poison, or a child of it.
    _poison: Poison

    def __init__(
        self,
        opening: Opening,
        *,
        durability: Durability = "power",
        seal: Callable[[bytes, int], bytes] | None = None,
    ) -> None:
        self._power = durability == "power"
        self._seal = seal
        self._path, self._options, self._disk = opening.path, opening.options, opening.disk
        self._open_again = type(opening)
        self.store_id = opening.location.store_id
        self._released = False
        self._forked = False  # True in a forked child, until the next call opens the store again
        self._make_locks()
        register_used(self)
        with self._consuming:
            self._use(opening)

    def _make_locks(self) -> None:
        self._consuming, self._appending = threading.RLock(), threading.RLock()
        self._is_consuming, self._appends = owned(self._consuming), owned(self._appending)

    def _use(self, opening: Opening) -> None:
        """Open the journal and set every field that needs it."""
        raise NotImplementedError

    def _open_writable(self, opening: Opening, used_ids: UsedIds) -> Journal:
        """Return a journal that can be appended to, which the end of a failed opening closes."""
        journal = Journal(
            opening.location,
            opening.producer_lock,
            self._appending,
            chunksize=opening.chunksize,
            sync=self._power,
            used_ids=used_ids,
            seal=self._seal,
        )
        opening.undo.callback(journal.close_without_sync)
        self._append, self._append_many = journal.append, journal.append_many
        return journal

    def _reopen(self) -> None:
        with self._open_again(self._path, self._options, self._disk) as opening:
            try:
                if opening.begin().store_id != self.store_id:
                    raise replaced(self._path)
                self._use(opening)
            finally:
                opening.release()
        # Not before: an error or an interrupt up to here has closed the files, and the next call tries again.
        self._forked = False

    # Entering a call. A signal handler or a destructor may call the store within another call of the same
    # thread. A C library may fork the process without Python's fork handlers.

    def used_here(self) -> bool:
        """Tell whether this thread is within an operation of this store."""
        return self._is_consuming() or self._appends()

    def _arrive(self) -> None:
        """Raise ``StorageError`` if this thread already holds a lock of this store."""
        if not SAME[0]:
            self._follow_fork()
        if self._is_consuming() or self._appends():
            raise StorageError(REENTRANT)

    def _follow_fork(self) -> None:
        follow_fork()  # calls `after_fork_in_child` of every store that a container holds
        self.after_fork_in_child()

    def _check(self) -> None:
        """Raise if the store is closed or poisoned, and open it again in a forked child.

        The caller holds ``_consuming``.
        """
        if self._poison.unusable_because is not None:
            raise self._poison.unusable_error(self._path)
        if self._forked:
            self._reopen()

    def _check_usable(self) -> None:
        self._arrive()
        with self._consuming:
            self._check()

    # Closing.

    def close(self) -> None:
        """Make all that returned durable, and close the files. Idempotent.

        Within another operation of the same thread the call waits for nothing. If that is an operation of
        this store, the operation completes, every later call raises ``ClosedError``, and the next ``close``
        or the destructor closes the files. If it is an operation of another store, as in a destructor, the
        files are closed without a sync, as by the death of the process.
        """
        if not SAME[0]:
            self._follow_fork()
        if self.used_here():
            self._journal.poison.close()
        elif not in_operation():
            with self._consuming:
                self._close(clean=True)
        elif self._consuming.acquire(blocking=False):
            try:
                if self._appending.acquire(blocking=False):
                    try:
                        self._close(clean=False)
                    finally:
                        self._appending.release()
                else:
                    self._journal.poison.close()
            finally:
                self._consuming.release()
        else:
            self._journal.poison.close()

    def _close(self, clean: bool) -> None:
        clean = clean and self._poison.unusable_because is None and not self._released and self._is_open()
        self._journal.poison.close()
        if self._released or self._forked:
            return
        try:
            if clean:
                self._close_cleanly()
        finally:
            self._close_without_sync()
            self._released = True
            unregister_used(self)

    def _is_open(self) -> bool:
        """Tell whether all files are open. The garbage collector may have destroyed one before the store."""
        return self._journal.is_open

    def _close_cleanly(self) -> None:
        """Make everything durable, and close the files."""
        self._journal.close()

    def _close_without_sync(self) -> None:
        """Close the files without a sync, as the death of the process would."""
        self._journal.close_without_sync()

    def after_fork_in_child(self) -> None:
        """Close what belongs to the parent, and write nothing. It is the first call in a forked child."""
        if self._forked:
            return
        self._forked = True
        self._make_locks()
        if not self._released:
            self._abandon()

    def _abandon(self) -> None:
        """Close the parent's descriptors in a forked child, and write nothing."""
        self._journal.after_fork_in_child()
