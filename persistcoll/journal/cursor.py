"""A cursor that is written: what one consumer of a journal has acknowledged, made durable."""

from __future__ import annotations

from persistcoll.disk.calls import LINKS, storage_error
from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError, StoreReplacedError
from persistcoll.journal.cursors import Acknowledged, CursorReader, CursorWriter
from persistcoll.journal.recovery import JournalLocation

__all__ = ["Cursor"]


class Cursor(CursorWriter):
    """The file, and its syncs. Its owner holds a lock around every call but :meth:`commit`.

    It removes no chunks: a chunk may go when the position that is stated here, durably, has passed it.

    :param poison: the cursor's. A sync of it that fails does not poison the journal.
    :param power: what was acknowledged survives a power cut.
    :ivar stated_chunk: the chunk of the position that the file is known to say, durably.
    """

    def __init__(
        self, location: JournalLocation, path: str, acknowledged: Acknowledged, poison: Poison, power: bool
    ) -> None:
        super().__init__(
            location.disk, path, location.store_id, acknowledged, location.tempdir, check_always=power
        )
        self._location = location
        self._poison = poison
        self._synced = GroupCommit(location.disk, path, poison)
        self.stated_chunk = acknowledged.position[0]

    @property
    def is_open(self) -> bool:
        """Whether the file is."""
        return self._synced.is_open

    @property
    def is_poisoned(self) -> bool:
        """Whether a sync has failed, its own or the journal's."""
        return self._poison.failure is not None

    def begin(self, reader: CursorReader, can_append: bool) -> bool:
        """Have a file to write on, which says what ``reader`` has read.

        :param can_append: the file may be written on; otherwise it is written anew.
        :return: whether it was written anew, so that all it says is on the device.
        """
        self.acknowledged = reader.acknowledged
        self.stated_chunk = reader.acknowledged.position[0]
        anew = False
        if can_append:
            self.resume(reader)
        else:
            # Written anew, because the page cache may show what a failed sync did not put on the device.
            try:
                self._location.check()
                self.compact()
                anew = True
            except OSError as error:
                if isinstance(error, StorageError) or error.errno is None or not reader.exists:
                    raise
                try:
                    self.resume(reader)  # a full disk must not keep anybody from draining the queue
                except StoreReplacedError:  # by what failed
                    raise error from None
                self._sync()
        self._switch()
        return anew

    def _switch(self) -> None:
        """Have the file synced from now on by the threads that wait for that."""
        assert self.file is not None
        self._synced.written = self.acknowledged.count
        self._synced.switch(self.file, self.path, 0)

    def commit(self) -> None:
        """Return when everything acknowledged so far is durable. No lock is held."""
        # The count grows with each write.
        self._synced.written = ticket = self.acknowledged.count
        self._synced.commit(ticket)

    def compact_and_switch(self) -> None:
        """Replace the file by one that says the same in few entries, durably; it states the position."""
        self._location.check()
        chunk = self.acknowledged.position[0]
        try:
            self.compact()
        except OSError as error:
            if error.errno is not None and not self._status(self.fd)[LINKS]:
                # Renamed, but perhaps not durably, and what is open here is the old file.
                self._poison.set(storage_error(error, "replacing", self.path))
            raise
        self.stated_chunk = chunk
        self._switch()

    def state_and_sync(self) -> None:
        """State the position in the file that there is, durably. It needs no room but that of an entry."""
        chunk = self.acknowledged.position[0]
        self.state_position()
        self._sync()
        self.stated_chunk = chunk

    def _sync(self) -> None:
        try:
            self._disk.sync(self.fd)
        except OSError as error:
            failure = storage_error(error, "syncing", self.path)
            self._poison.set(failure)
            raise failure from error

    def close(self) -> None:
        """Make what was acknowledged durable, at either level, and close the file."""
        try:
            self._disk.sync(self.fd)
        except OSError as error:
            raise storage_error(error, "syncing", self.path) from error
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the file, as the death of the process would."""
        self._synced.close()

    def after_fork_in_child(self) -> None:
        """In a forked child: the parent's descriptor is closed, nothing is written."""
        self._synced.after_fork_in_child()
