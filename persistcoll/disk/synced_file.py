"""One open file, and how far it is on the device."""

from __future__ import annotations

import threading

from persistcoll.disk.calls import Disk, OpenFile, storage_error
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError

__all__ = ["SyncedFile"]


class SyncedFile:
    """Syncs one file, which its owner may replace by another one at any moment.

    The owner writes under a lock of its own, sets :attr:`end` and then :attr:`written` (a number that
    grows) under that lock, and calls :meth:`sync` outside it.

    A sync that fails is never tried again on the descriptor: the kernel reports it once and may
    have dropped the pages (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
    ATC 2020). That thread gets the error, and so does every later one. For the same reason two calls of
    :meth:`sync` never overlap: of two syncs of one descriptor only one would get the error.

    ``_syncing`` is held while a thread syncs. It is taken before ``_mutex``, and with no lock of the owner
    held. ``_mutex`` protects which file is synced, which ones are in a sync or retired, and how much is
    durable. Both are re-entrant, for a signal handler that writes and syncs within a sync of its thread.

    :param poison: its owner's. A failed sync poisons it before any thread is told.
    """

    def __init__(self, disk: Disk, path: str, poison: Poison) -> None:
        self._disk = disk
        self._path = path
        self._poison = poison
        self._make_locks()
        self._file: OpenFile | None = None
        self._in_sync: dict[object, OpenFile] = {}  # by call: what it syncs
        self._retired: list[OpenFile] = []  # to be closed after that
        self.written = 0
        self.end = 0
        self.durable = 0
        self.durable_end = 0

    def _make_locks(self) -> None:
        self._syncing, self._mutex = threading.RLock(), threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether there is a file, and it is open."""
        return self._file is not None and bool(self._file.held)

    def switch(self, file: OpenFile | None, path: str, end: int) -> None:
        """From now on sync ``file``, and close it in the end.

        All that was written is durable, in the old file or in this one.
        """
        with self._mutex:
            self._replace(file)
            self._path = path
            self.durable = self.written
            self.end = self.durable_end = end
            self._close_retired()

    def close(self) -> None:
        """Close the file, when nobody syncs it any more."""
        with self._mutex:
            self._replace(None)
            self._close_retired()

    def finish(self) -> None:
        """Sync what nobody has synced yet, and close the file; from then on all of it is durable.

        The owner lets nobody write meanwhile. A sync that fails is told to those who wait.
        """
        with self._mutex:
            if self._file is not None and self._poison.failure is None and self.durable < self.written:
                try:
                    self._disk.sync(self._file.fd)
                    self.durable = self.written
                except OSError as error:
                    if error.errno is None:  # a signal handler's own
                        raise
                    self._fail(error)
            self._replace(None)
            self._close_retired()

    def after_fork_in_child(self) -> None:
        """In a forked child: the descriptors are closed, nothing is written."""
        self._make_locks()  # a thread that is not here may hold them
        self._in_sync.clear()
        self.close()

    def _replace(self, file: OpenFile | None) -> None:
        if self._file is not None and self._file is not file:
            self._retired = [*self._retired, self._file]
        self._file = file

    def _close_retired(self) -> None:
        """With the mutex held: close what nobody syncs.

        A descriptor that a thread is syncing must not be closed, because its number could come back as
        another file.
        """
        in_sync = [*self._in_sync.values()]
        for file in self._retired:
            if file not in in_sync:
                file.close()
        self._retired = [file for file in self._retired if file.held]

    def sync(self, ticket: int) -> None:
        """Return when what was ``written`` up to ``ticket`` is durable; ``StorageError`` if it may not be."""
        if self.durable >= ticket:
            return
        call = object()
        with self._syncing:
            try:
                with self._mutex:
                    file, written, end = self._file, self.written, self.end
                    wanted = self._poison.failure is None and self.durable < ticket
                    if file is not None and wanted:  # otherwise it was closed, and synced before
                        self._in_sync[call] = file
                if file is not None and call in self._in_sync:
                    self._disk.sync(file.fd)
                    with self._mutex:
                        if file is self._file and written > self.durable:
                            self.durable, self.durable_end = written, end
                        del self._in_sync[call]
                    if self._retired:
                        self._let_go(call)
            except OSError as error:
                self._let_go(call)
                if error.errno is None:  # a signal handler's own, such as TimeoutError
                    raise
                self._fail(error)
            except BaseException:  # out of a signal handler, perhaps where _let_go() began
                self._let_go(call)
                raise
        if self._poison.failure is not None and self.durable < ticket:
            raise self._outcome_unknown_error(self._poison.failure)

    def _let_go(self, call: object) -> None:
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
