"""Group commit: callers write, one of them syncs for all that have written."""

from __future__ import annotations

import threading
from collections.abc import Callable

from persistcoll.errors import StorageError
from persistcoll.journal.disk import Disk, close_quietly, storage_error

__all__ = ["GroupCommit"]


class _Waiter:
    __slots__ = ("failure", "gate", "leads", "ticket")

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket
        self.gate = threading.Lock()
        self.gate.acquire()
        self.leads = False
        self.failure: StorageError | None = None


class GroupCommit:
    """Syncs one file for many callers.

    The owner writes under a lock of its own, sets :attr:`written` (a number that grows) and
    :attr:`end` under that lock, and calls :meth:`commit` outside it. The first caller syncs; those who
    come meanwhile wait, and one of those who wrote too late for that sync does the next one. Each
    waiter has a gate of its own, so that being woken costs no fight for a common lock: with 32
    threads a condition variable here gave two thirds of the throughput.

    A sync that fails is never tried again on the descriptor: the kernel reports it once and may
    have dropped the pages (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
    ATC 2020). Everyone who waits gets the error, and so does everyone who comes later.

    :param failed: called once, with the error, before anybody is told.
    """

    def __init__(self, disk: Disk, path: str, failed: Callable[[StorageError], None]) -> None:
        self._disk = disk
        self._path = path
        self._failed = failed
        self._mutex = threading.Lock()
        self._waiters: list[_Waiter] = []
        self._leading = False
        self._fd = -1
        self._syncing = -1  # the descriptor in a sync right now
        self._retired: list[int] = []  # to be closed after that sync
        self.written = 0
        self.end = 0
        self.durable = 0
        self.durable_end = 0
        self.failure: StorageError | None = None

    def switch(self, fd: int, path: str, end: int) -> None:
        """From now on sync ``fd``; all that was written is durable, in the old file or in this one."""
        with self._mutex:
            old, self._fd, self._path = self._fd, fd, path
            self.durable = self.written
            self.end = self.durable_end = end
            self._retire(old)

    def close(self) -> None:
        with self._mutex:
            old, self._fd = self._fd, -1
            self._retire(old)

    def _retire(self, fd: int) -> None:
        # A descriptor that somebody is syncing must not be closed: its number could come back as
        # another file.
        if fd == self._syncing and fd >= 0:
            self._retired.append(fd)
        elif fd >= 0:
            close_quietly(self._disk, fd)

    def commit(self, ticket: int) -> None:
        """Return when what was ``written`` up to ``ticket`` is durable; ``StorageError`` if it may not be."""
        if self.durable >= ticket:
            return
        with self._mutex:
            if self.durable >= ticket:
                return
            if self.failure is not None:
                raise self._unknown()
            waiter = _Waiter(ticket)
            if self._leading:
                self._waiters.append(waiter)
            else:
                self._leading = waiter.leads = True
        if not waiter.leads:
            self._wait(waiter)
            if waiter.failure is not None:
                raise waiter.failure
            if not waiter.leads:
                return
        self._lead()

    def _wait(self, waiter: _Waiter) -> None:
        try:
            waiter.gate.acquire()
        except BaseException:  # KeyboardInterrupt: do not leave the others without a leader
            with self._mutex:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                elif waiter.leads:
                    self._pass_on()
            raise

    def _lead(self) -> None:
        with self._mutex:
            fd, written, end = self._fd, self.written, self.end
            self._syncing = fd
        failure: StorageError | None = None
        synced = False
        try:
            if fd >= 0:  # else the owner closed, having synced
                self._disk.sync(fd)
            synced = True
        except OSError as error:
            failure = storage_error(error, "syncing", self._path)
        finally:
            with self._mutex:
                self._syncing = -1
                for retired in self._retired:
                    close_quietly(self._disk, retired)
                self._retired.clear()
                if failure is not None:
                    self.failure = failure
                elif synced and fd == self._fd:  # not after a KeyboardInterrupt, nor after a switch
                    self.durable = max(self.durable, written)
                    self.durable_end = end
            if failure is not None:
                self._failed(failure)
            with self._mutex:
                self._pass_on()
        if failure is not None:
            raise self._unknown()

    def _pass_on(self) -> None:
        """Let go whoever is covered, and give the lead to one of the others."""
        left = []
        for waiter in self._waiters:
            if waiter.ticket > self.durable:
                if self.failure is None:
                    left.append(waiter)
                    continue
                waiter.failure = self._unknown()
            waiter.gate.release()
        self._waiters = left
        self._leading = bool(left)
        if left:
            leader = left.pop(0)
            leader.leads = True
            leader.gate.release()

    def _unknown(self) -> StorageError:
        assert self.failure is not None
        result = StorageError(
            f"{self.failure}; whether the operation survives a power cut is unknown;"
            " close and open again to recover",
            self.failure.errno,
        )
        result.__cause__ = self.failure
        return result
