"""The cursor of the consuming process: a cursor file that is written and made durable."""

from __future__ import annotations

from persistcoll.disk.calls import LINKS, storage_error
from persistcoll.disk.group_commit import GroupCommit
from persistcoll.engine.poison import Poison
from persistcoll.errors import StorageError, StoreReplacedError
from persistcoll.journal.cursors import Acknowledged, CursorReader, CursorWriter, Position
from persistcoll.journal.recovery import JournalLocation

__all__ = ["Cursor"]


class Cursor(CursorWriter):
    """A cursor file and its syncs.

    A lock of the owner protects every field. The owner holds it around every call except :meth:`commit`,
    which any thread calls without a lock.

    The cursor removes no chunks. A chunk may be removed when the position that the cursor states durably has
    passed it.

    :param poison: the cursor's own. A failed sync of the cursor does not poison the journal.
    :param power: whether an ack survives a power cut.
    :param reserved: as that of :class:`~persistcoll.journal.cursors.CursorWriter`.
    :param name: the name of the consumer whose cursor it is, for a log; ``None`` for a queue.
    :ivar stated_chunk: the number of the chunk of the position that the file states durably.
    """

    def __init__(
        self,
        location: JournalLocation,
        path: str,
        acknowledged: Acknowledged,
        poison: Poison,
        power: bool,
        name: bytes | None = None,
        reserved: int | None = None,
    ) -> None:
        super().__init__(
            location.disk,
            path,
            location.store_id,
            acknowledged,
            location.tempdir,
            check_always=power,
            name=name,
            reserved=reserved,
        )
        self._location = location
        self._base = 0
        self._poison = poison
        self._synced = GroupCommit(location.disk, path, poison)
        self.stated_chunk = acknowledged.position[0]

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._synced.is_open

    @property
    def is_poisoned(self) -> bool:
        """Whether a sync of the cursor or of the journal has failed."""
        return self._poison.failure is not None

    def begin(self, reader: CursorReader, can_append: bool) -> bool:
        """Open a file to append to that states what ``reader`` has read.

        :param can_append: whether the existing file may be appended to. Otherwise a new file replaces it.
        :return: whether a new file replaced it, so that everything in the file is on the device.
        :raise StoreReplacedError: the file was removed or replaced.
        """
        before = self.acknowledged
        self.acknowledged = reader.acknowledged
        self._base += before.count
        self.stated_chunk = reader.acknowledged.position[0]
        anew = False
        if can_append:
            self.resume(reader)
        else:
            # A new file, because the page cache may show entries that a failed sync did not put on the
            # device.
            try:
                self._location.check()
                self.compact()
                anew = True
            except OSError as error:
                if isinstance(error, StorageError) or error.errno is None or not reader.exists:
                    raise
                try:
                    self.resume(reader)  # a full disk must not prevent a consumer from draining the queue
                except StoreReplacedError:  # the failed compact() replaced the file
                    raise error from None
                self._sync()
        self._switch()
        return anew

    def _switch(self) -> None:
        """Make the current file the one that :meth:`commit` syncs."""
        assert self.file is not None
        self._synced.written = self._ticket()
        self._synced.switch(self.file, self.path, 0)

    def _ticket(self) -> int:
        """Return a number that grows with each write, and with each rewind."""
        # The base is read first and changed last, so that a thread without the lock never reads too much.
        base = self._base
        return base + self.acknowledged.count

    def commit(self) -> None:
        """Return when everything acked so far is durable. The caller holds no lock.

        Cost: one sync, which all waiting threads share.

        :raise StorageError: a sync has failed, and whether the acks survive a power cut is unknown.
        """
        self._synced.written = ticket = self._ticket()
        self._synced.commit(ticket)

    def compact_and_switch(self) -> None:
        """Replace the file durably by one with few entries, which states the position."""
        self._location.check()
        chunk = self.acknowledged.position[0]
        try:
            self.compact()
        except OSError as error:
            if error.errno is not None and not self._status(self.fd)[LINKS]:
                # The rename happened, perhaps not durably, and this object still has the old file open.
                self._poison.set(storage_error(error, "replacing", self.path))
            raise
        self.stated_chunk = chunk
        self._switch()

    def rewind(self, last: int, position: Position) -> None:
        """State durably that the ids up to ``last`` are acked, and no later ones."""
        before = self.acknowledged
        self.acknowledged = Acknowledged(last, position)
        try:
            self._base += before.count
            self.compact_and_switch()
        except BaseException:
            self.acknowledged = before
            raise

    def state_and_sync(self) -> None:
        """State the position durably in the existing file. It needs room for one entry only."""
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
        """Make the acks durable, at either level of durability, and close the file."""
        try:
            self._disk.sync(self.fd)
        except OSError as error:
            raise storage_error(error, "syncing", self.path) from error
        finally:
            self.close_without_sync()

    def close_without_sync(self) -> None:
        """Close the file without a sync, as the death of the process would."""
        self._synced.close()

    def after_fork_in_child(self) -> None:
        """Close the parent's descriptor in a forked child, and write nothing."""
        self._synced.after_fork_in_child()
