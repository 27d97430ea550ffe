"""An open file, and how far its content is on the device."""

from __future__ import annotations

import threading

from persistcoll.disk.calls import Disk, OpenFile, storage_error
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError

__all__ = ["SyncedFile"]


class SyncedFile:
    """Syncs one file, which the owner may replace by another file at any time. Thread-safe.

    The owner writes under a lock of its own. Under that lock it sets :attr:`end` and then :attr:`written`. It
    calls :meth:`sync` without that lock.

    A failed sync is never repeated on the same descriptor, because the kernel reports the error once and may
    have dropped the pages (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
    The syncing thread raises the error, and so does every later call. For the same reason two calls of
    :meth:`sync` never overlap: of two syncs of one descriptor only one would get the error.

    A thread holds ``_syncing`` while it syncs. It acquires ``_syncing`` before ``_mutex``, and never while it
    holds a lock of the owner. ``_mutex`` protects ``_file``, ``_path``, ``_in_sync``, ``_retired``,
    :attr:`durable` and :attr:`durable_end`. The owner's lock protects :attr:`written` and :attr:`end`. After
    a sync of its own the owner sets the durable attributes under its lock alone. ``_syncing`` and ``_mutex``
    are re-entrant, because a signal handler may write and sync within a sync of its thread.

    :param poison: the owner's. A failed sync poisons it before any thread learns of the failure.
    :ivar written: a ticket that grows with each write.
    :ivar end: the size of the file after the last write, in bytes.
    :ivar durable: the highest ticket whose write is on the device.
    :ivar durable_end: the size up to which the file is on the device, in bytes.
    """

    def __init__(self, disk: Disk, path: str, poison: Poison) -> None:
        self._disk = disk
        self._path = path
        self._poison = poison
        self._make_locks()
        self._file: OpenFile | None = None
        self._in_sync: dict[object, OpenFile] = {}  # the file that each running call of sync() syncs
        self._retired: list[OpenFile] = []  # replaced files, to be closed when no call syncs them
        self.written = 0
        self.end = 0
        self.durable = 0
        self.durable_end = 0

    def _make_locks(self) -> None:
        self._syncing, self._mutex = threading.RLock(), threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether there is an open file."""
        return self._file is not None and bool(self._file.held)

    def switch(self, file: OpenFile | None, path: str, end: int) -> None:
        """Sync ``file`` from now on, and own it.

        The caller guarantees that everything written so far is durable, in the old file or in this one.

        :param end: the size up to which ``file`` is durable, in bytes.
        """
        with self._mutex:
            self._replace(file)
            self._path = path
            self.durable = self.written
            self.end = self.durable_end = end
            self._close_retired()

    def close(self) -> None:
        """Close the file as soon as no thread syncs it."""
        with self._mutex:
            self._replace(None)
            self._close_retired()

    def finish(self) -> None:
        """Sync what is not durable yet, and close the file.

        The owner ensures that no thread writes meanwhile. A failed sync poisons the owner, and the waiting
        threads raise the error.
        """
        with self._mutex:
            if self._file is not None and self._poison.failure is None and self.durable < self.written:
                try:
                    self._disk.sync(self._file.fd)
                    self.durable = self.written
                except OSError as error:
                    if error.errno is None:  # a signal handler raised it
                        raise
                    self._fail(error)
            self._replace(None)
            self._close_retired()

    def after_fork_in_child(self) -> None:
        """Close the descriptors in a forked child, and write nothing."""
        self._make_locks()  # a thread of the parent that the child does not have may hold the old ones
        self._in_sync.clear()
        self.close()

    def _replace(self, file: OpenFile | None) -> None:
        if self._file is not None and self._file is not file:
            self._retired = [*self._retired, self._file]
        self._file = file

    def _close_retired(self) -> None:
        """Close the retired files that no thread syncs. The caller holds ``_mutex``.

        A descriptor must stay open while a thread syncs it, because otherwise its number could come to belong
        to another file.
        """
        in_sync = [*self._in_sync.values()]
        for file in self._retired:
            if file not in in_sync:
                file.close()
        self._retired = [file for file in self._retired if file.held]

    def sync(self, ticket: int) -> None:
        """Return when everything ``written`` up to ``ticket`` is durable.

        Cost: one sync, unless another thread has synced it already.

        :raise StorageError: a sync has failed, so that the data may not be durable.
        """
        if self.durable >= ticket:
            return
        call = object()
        with self._syncing:
            try:
                with self._mutex:
                    file, written, end = self._file, self.written, self.end
                    wanted = self._poison.failure is None and self.durable < ticket
                    if file is not None and wanted:  # otherwise the file was synced and closed
                        self._in_sync[call] = file
                if file is not None and call in self._in_sync:
                    self._disk.sync(file.fd)
                    with self._mutex:
                        if file is self._file and written > self.durable:
                            self.durable, self.durable_end = written, end
                        del self._in_sync[call]
                    if self._retired:
                        self._release_file(call)
            except OSError as error:
                self._release_file(call)
                if error.errno is None:  # a signal handler raised it, for example a TimeoutError
                    raise
                self._fail(error)
            except BaseException:  # from a signal handler, perhaps at the beginning of _release_file()
                self._release_file(call)
                raise
        if self._poison.failure is not None and self.durable < ticket:
            raise self._outcome_unknown_error(self._poison.failure)

    def _release_file(self, call: object) -> None:
        with self._mutex:
            self._in_sync.pop(call, None)
            self._close_retired()

    def _fail(self, error: OSError) -> None:
        self._poison.set(storage_error(error, "syncing", self._path))

    def _outcome_unknown_error(self, failure: StorageError) -> StorageError:
        result = StorageError(
            f"{failure}; whether the operation survives a power cut is unknown;"
            " close and open again to recover",
            failure.errno,
        )
        result.__cause__ = failure
        return result
