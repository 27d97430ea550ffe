"""Opening a store's directory in two steps, under one lock.

The key of an item's seal depends on the store's id, which only the directory tells. So the first step reads
``info``, and the second step creates the store object. Between the steps the producer lock stays held and the
lock files stay open. Otherwise another directory could replace this one between the steps, and its chunks
would seem to belong to another store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from persistcoll.disk.calls import Disk, OpenFile, open_lasting, storage_error
from persistcoll.disk.path_checks import existing, refuse_if_others_may_write, refuse_network
from persistcoll.errors import StorageError, StoreKindError
from persistcoll.journal.directory import (
    INFO,
    PRODUCER_LOCK,
    OpenOptions,
    StoreInfo,
    check_serializer,
    existing_info,
    open_info,
    prepare_directory,
)
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.replaced_files import refuse_replaced

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Opening", "ReadOnlyOpening", "open_directory"]

S = TypeVar("S")


class Opening:
    """A directory that is checked, and kept open until a store uses it.

    Not thread-safe: one thread opens a store::

        with Opening(path, options) as opening:
            try:
                info = opening.begin()
                store = JournalQueueStore(opening)
            finally:
                opening.release()

    A block that raises closes all files that were opened. If the operating system raised the error, the block
    raises a ``StorageError`` instead. Otherwise the files belong to the store.

    :ivar undo: closes all files that were opened, including those of the store.
    :ivar location: the location for the store, after :meth:`begin`.
    :ivar producer_lock: the producer lock, held from :meth:`begin` on.
    :ivar chunksize: the option's number of records in a chunk, or the one that the store was created with.
    :ivar lock_files: the files of the locks, by name.
    :ivar release: release the producer lock. The caller calls it as the first statement of the ``finally``
        block that covers :meth:`begin`. The function is written in C, so that no interrupt can come between
        the start of the block and the release.
    """

    location: JournalLocation
    producer_lock: ProducerLock
    chunksize: int
    lock_files: dict[str, OpenFile]
    release: Callable[[], None]

    def __init__(self, path: str, options: OpenOptions, disk: Disk | None = None) -> None:
        self.path = path
        self.options = options
        self.disk = disk or Disk()
        self.undo = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open_files()
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        else:
            self._finish()

    def _finish(self) -> None:
        # The lock is released. From now on the journal's mutex tells which thread holds it.
        self.producer_lock.opener = None

    def _fail(self, error: BaseException) -> None:
        self.undo.close()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(error, "opening", self.path) from error

    def _open_files(self) -> None:
        disk, path = self.disk, self.path
        prepare_directory(disk, path, self.options)
        self.lock_files = {
            name: self.undo.enter_context(open_lasting(disk, os.path.join(path, name)))
            for name in self.options.kind.locks
        }
        lock_path = os.path.join(path, PRODUCER_LOCK)
        self.producer_lock = ProducerLock(disk, self.lock_files[PRODUCER_LOCK], lock_path)
        self.release = self.producer_lock.release

    def begin(self) -> StoreInfo:
        """Acquire the producer lock, and return the content of ``info``. A new store is created."""
        self.producer_lock.acquire()
        refuse_replaced(self.disk, self._landmarks())
        info = open_info(self.disk, self.path, self.options)
        self.chunksize = self.options.chunksize or info.chunksize
        self.location = self._location(info)
        return info

    def _landmarks(self) -> tuple[tuple[str, int], ...]:
        return tuple((os.path.join(self.path, name), file.fd) for name, file in self.lock_files.items())

    def _location(self, info: StoreInfo) -> JournalLocation:
        options = self.options
        return JournalLocation(
            self.disk,
            self.path,
            info.store_id,
            info.serializer,
            options.tempdir,
            options.on_corruption,
            self._landmarks(),
            max(info.chunksize, options.chunksize or 0),
        )


class ReadOnlyOpening(Opening):
    """A directory that is opened for reading only: nothing is created or locked."""

    def _open_files(self) -> None:
        path, options = self.path, self.options
        if not stat.S_ISDIR(existing(path, "look at").st_mode):
            raise StoreKindError(f"{path!r} is not a directory")
        if not options.allow_network_fs:
            refuse_network(path)
        if options.executes_code and not options.trust_directory:
            refuse_if_others_may_write((path, os.path.join(path, INFO)), options.serializer)
        # Read `info` before the lock's file is opened, because its errors say best what is missing.
        self._info = existing_info(self.disk, path, options.kind)
        check_serializer(path, self._info, options)
        name = options.kind.locks[-1]
        file = OpenFile(self.disk, os.path.join(path, name), os.O_RDONLY)
        self.lock_files = {name: self.undo.enter_context(file)}
        self.release = _nothing

    def _finish(self) -> None:
        """Do nothing, because there is no producer lock."""

    def begin(self) -> StoreInfo:
        """Return the content of ``info``."""
        self.location = self._location(self._info)
        return self._info


def open_directory(
    path: str,
    options: OpenOptions,
    read_only: bool,
    make: Callable[[Opening, bytes], S],
    disk: Disk | None = None,
) -> S:
    """Open a directory, and return the store that ``make`` makes of it.

    :param make: called with the opening and the id of the store.
    """
    with (ReadOnlyOpening if read_only else Opening)(path, options, disk) as opening:
        try:
            return make(opening, opening.begin().store_id)
        finally:
            opening.release()


def _nothing() -> None:
    """Do nothing, because no lock is held."""
