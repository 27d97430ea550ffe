"""Opening a file queue's directory in two steps, with one lock held across both.

What an item is sealed with depends on the store's id, which only the directory tells. So the first step reads
what the store says of itself, and the second one makes the store. In between, the producer lock stays held
and the locks' files stay open. Otherwise another directory could take the place of this one between the
steps, and its chunks would seem to belong to another store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from persistcoll.disk.calls import Disk, OpenFile, open_lasting, storage_error
from persistcoll.disk.path_checks import refuse_if_others_may_write, refuse_network
from persistcoll.errors import StorageError, StoreKindError, StoreMissingError
from persistcoll.journal.directory import (
    CONSUMER_LOCK,
    INFO,
    PRODUCER_LOCK,
    OpenOptions,
    StoreInfo,
    look_at_info,
    open_info,
    prepare_directory,
)
from persistcoll.journal.ground import refuse_replaced
from persistcoll.journal.producer_lock import ProducerLock
from persistcoll.journal.recovery import JournalLocation

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Opening", "ReadOnlyOpening"]


class Opening:
    """Holds a directory between its check and its use.

    ::

        with Opening(path, options) as opening:
            try:
                info = opening.begin()
                store = JournalQueueStore(opening)
            finally:
                opening.release()

    A block that raises closes all files that were opened, and raises what the operating system raised as a
    ``StorageError``. Otherwise the files are the store's.

    :ivar undo: closes the files that were opened, those of the store, too.
    :ivar location: for the store, after :meth:`begin`.
    :ivar producer_lock: held from :meth:`begin` on.
    :ivar chunksize: as asked for, or as the store was made with.
    :ivar consumer_file: the consumer lock's.
    :ivar release: lets go of the producer lock. It goes first into a ``finally`` that covers :meth:`begin`:
        because it is C alone, no interrupt comes in between the two.
    """

    location: JournalLocation
    producer_lock: ProducerLock
    chunksize: int
    consumer_file: OpenFile
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

    def _fail(self, error: BaseException) -> None:
        self.undo.close()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(error, "opening", self.path) from error

    def _open_files(self) -> None:
        disk, path = self.disk, self.path
        prepare_directory(disk, path, self.options)
        self._paths = [os.path.join(path, name) for name in (PRODUCER_LOCK, CONSUMER_LOCK)]
        self._files = [self.undo.enter_context(open_lasting(disk, path)) for path in self._paths]
        self.consumer_file = self._files[1]
        self.producer_lock = ProducerLock(disk, self._files[0], self._paths[0])
        self.release = self.producer_lock.release

    def begin(self) -> StoreInfo:
        """Take the producer lock, and read what the store says of itself. A new one is made."""
        self.producer_lock.acquire()
        landmarks = tuple((path, file.fd) for path, file in zip(self._paths, self._files, strict=True))
        refuse_replaced(self.disk, landmarks)
        info = open_info(self.disk, self.path, self.options)
        self.chunksize = self.options.chunksize or info.chunksize
        self.location = self._location(info, landmarks)
        return info

    def _location(self, info: StoreInfo, landmarks: tuple[tuple[str, int], ...]) -> JournalLocation:
        options = self.options
        return JournalLocation(
            self.disk,
            self.path,
            info.store_id,
            info.serializer,
            options.tempdir,
            options.on_corruption,
            landmarks,
        )


class ReadOnlyOpening(Opening):
    """The same for looking only: nothing is made or locked."""

    def _open_files(self) -> None:
        path, options = self.path, self.options
        if not os.path.lexists(path):
            raise StoreMissingError(f"there is nothing to look at: {path!r} does not exist")
        if not os.path.isdir(path):
            raise StoreKindError(f"{path!r} is not a directory")
        if not options.allow_network_fs:
            refuse_network(path)
        if options.executes_code and not options.trust_directory:
            refuse_if_others_may_write((path, os.path.join(path, INFO)), options.serializer)
        # Before the lock's file, because that says best what is missing.
        self._info = look_at_info(self.disk, path, options)
        self._lock_path = os.path.join(path, CONSUMER_LOCK)
        self.consumer_file = self.undo.enter_context(OpenFile(self.disk, self._lock_path, os.O_RDONLY))
        self.release = _nothing

    def begin(self) -> StoreInfo:
        """What the store says of itself."""
        self.location = self._location(self._info, ((self._lock_path, self.consumer_file.fd),))
        return self._info


def _nothing() -> None:
    """There is no lock to let go of."""
