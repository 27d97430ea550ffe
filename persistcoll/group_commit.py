"""Group commit: one of those who wait for a sync makes it for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence

from persistcoll.disk import Disk, close_quietly, storage_error
from persistcoll.engine.combining import Combiner, Request
from persistcoll.errors import StorageError

__all__ = ["GroupCommit"]


class _Ticket(Request):
    def __init__(self, number: int) -> None:
        self.number = number


class GroupCommit:
    """Syncs one file for many callers.

    The owner writes under a lock of its own, sets :attr:`end` and then :attr:`written` (a number that
    grows) under that lock, and calls :meth:`commit` outside it.

    A sync that fails is never tried again on the descriptor: the kernel reports it once and may
    have dropped the pages (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
    ATC 2020). Everyone who waits gets the error, and so does everyone who comes later.

    :param failed: called once, with the error, before anybody is told.
    """

    def __init__(self, disk: Disk, path: str, failed: Callable[[StorageError], None]) -> None:
        self._disk = disk
        self._path = path
        self._failed = failed
        self._combiner = Combiner[_Ticket](self._sync)
        # Re-entrant, for a signal handler that writes and syncs within a sync of its thread.
        self._mutex = threading.RLock()
        self._fd = -1
        self._in_sync: dict[object, int] = {}  # by call: the descriptor that it syncs
        self._retired: list[int] = []  # to be closed after that; -1: closed
        self._failure: StorageError | None = None
        self.written = 0
        self.end = 0
        self.durable = 0
        self.durable_end = 0

    @property
    def users(self) -> Container[int]:
        """The threads within :meth:`commit`."""
        return self._combiner.users

    @property
    def syncing(self) -> bool:
        """Whether somebody syncs at this moment, or is about to."""
        return self._combiner.leading

    def switch(self, fd: int, path: str, end: int) -> None:
        """From now on sync ``fd``; all that was written is durable, in the old file or in this one."""
        with self._mutex:
            old, self._fd, self._path = self._fd, fd, path
            self.durable = self.written
            self.end = self.durable_end = end
            self._retire(old)

    def close(self) -> None:
        """Close the file, when nobody syncs it any more."""
        with self._mutex:
            old, self._fd = self._fd, -1
            self._retire(old)

    def finish(self) -> None:
        """Sync what nobody has synced yet, and close the file; from then on all of it is durable.

        The owner lets nobody write meanwhile. A sync that fails is told to those who wait.
        """
        with self._mutex:
            if self._fd >= 0 and self._failure is None and self.durable < self.written:
                try:
                    self._disk.sync(self._fd)
                    self.durable = self.written
                except OSError as error:
                    self._fail(error)
            old, self._fd = self._fd, -1
            self._retire(old)

    def abandon(self) -> None:
        """In a forked child: the descriptors are closed, nothing is written."""
        for fd in (self._fd, *self._retired):
            if fd >= 0:
                close_quietly(self._disk, fd)
        self._fd = -1
        self._retired.clear()

    def _retire(self, fd: int) -> None:
        if fd >= 0:
            self._retired.append(fd)
            self._close_retired()

    def _close_retired(self) -> None:
        """With the mutex held: close what nobody syncs.

        A descriptor that somebody is syncing must not be closed, because its number could come back as
        another file.
        """
        retired, in_sync = self._retired, self._in_sync
        for at, fd in enumerate(retired):
            if fd >= 0 and fd not in in_sync.values():
                retired[at] = -1  # before, without a call in between: nobody closes it twice
                try:
                    self._disk.close(fd)
                except OSError:
                    pass  # it comes after every sync that counts
        if max(retired, default=-1) < 0:
            retired.clear()

    def commit(self, ticket: int) -> None:
        """Return when what was ``written`` up to ``ticket`` is durable; ``StorageError`` if it may not be."""
        if self.durable < ticket:
            self._combiner.submit(_Ticket(ticket))

    def _sync(self, tickets: Sequence[_Ticket], waiting: Callable[[], None]) -> None:
        call = object()
        try:
            with self._mutex:
                fd, written, end = self._fd, self.written, self.end
                wanted = max([ticket.number for ticket in tickets]) > self.durable
                if self._failure is None and wanted and fd >= 0:  # below 0: the owner closed, having synced
                    self._in_sync[call] = fd
            waiting()
            if call in self._in_sync:
                self._disk.sync(fd)
                with self._mutex:
                    if fd == self._fd and written > self.durable:
                        self.durable, self.durable_end = written, end
            self._let_go(call)
        except OSError as error:
            self._let_go(call)
            if error.errno is None:  # a signal handler's own, such as TimeoutError
                raise
            self._fail(error)
        except BaseException:  # out of a signal handler, perhaps where _let_go() began
            self._let_go(call)
            raise
        if self._failure is not None:
            for ticket in tickets:
                ticket.failure = self._unknown(self._failure)

    def _let_go(self, call: object) -> None:
        with self._mutex:
            self._in_sync.pop(call, None)
            self._close_retired()

    def _fail(self, error: OSError) -> None:
        self._failure = storage_error(error, "syncing", self._path)
        self._failed(self._failure)

    def _unknown(self, failure: StorageError) -> StorageError:
        result = StorageError(
            f"{failure}; whether the operation survives a power cut is unknown;"
            " close and open again to recover",
            failure.errno,
        )
        result.__cause__ = failure
        return result
