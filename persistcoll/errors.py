"""Every exception that persistcoll raises, in one tree.

Each exception is also the standard library's exception of the same meaning, so that code written for
``ValueError``, ``OSError``, ``LookupError`` or ``ImportError`` works with it::

    PersistcollError
    |- SerializerError (ValueError)
    |  |- EncodeError
    |  |- DecodeError               .id
    |  |- SerializerMismatchError
    |  `- SerializerMissingError (ImportError)
    |- StorageError (OSError)
    |  |- StorageFullError
    |  |- LockedError               .pid
    |  |- CorruptionError           .path  .offset  .id
    |  |- StoreKindError
    |  |- StoreMissingError (FileNotFoundError)
    |  |- StoreReplacedError        .path
    |  |- FormatVersionError
    |  `- BackendUnavailableError
    |- ClaimError (LookupError)
    |  |- StaleClaimError           .ids
    |  `- NotClaimedError
    |- DuplicateError
    |- TrimmedError (IndexError)    .first
    `- ClosedError (ValueError)

``Empty`` and ``Full`` are :class:`queue.Empty` and :class:`queue.Full` themselves. ``ShutDown`` is
:class:`queue.ShutDown` where the standard library has it (Python 3.13 and later).

A message says what happened, where, and what to do next. It never quotes an item or a password.

``ServerWarning`` (:class:`UserWarning`) is not in the tree, because nothing has failed: it goes to
:mod:`warnings`.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from queue import Empty, Full

__all__ = [
    "BackendUnavailableError",
    "ClaimError",
    "ClosedError",
    "CorruptionError",
    "DecodeError",
    "DuplicateError",
    "Empty",
    "EncodeError",
    "FormatVersionError",
    "Full",
    "LockedError",
    "NotClaimedError",
    "PersistcollError",
    "SerializerError",
    "SerializerMismatchError",
    "SerializerMissingError",
    "ServerWarning",
    "ShutDown",
    "StaleClaimError",
    "StorageError",
    "StorageFullError",
    "StoreKindError",
    "StoreMissingError",
    "StoreReplacedError",
    "TrimmedError",
    "trimmed",
]

if sys.version_info >= (3, 13):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by ``put`` and ``get`` after ``shutdown()``, as ``queue.ShutDown`` of Python 3.13."""


class PersistcollError(Exception):
    """The root of the tree."""


class SerializerError(PersistcollError, ValueError):
    """An item and its stored bytes could not be converted into each other."""


class EncodeError(SerializerError):
    """The item cannot be serialized, or is too large; nothing was stored."""


class DecodeError(SerializerError):
    """A stored item cannot be deserialized. It stays stored.

    :ivar id: the item's id, with which ``skip(id)`` removes it; ``None`` outside of a queue.
    """

    def __init__(self, message: str, id: int | None = None) -> None:
        super().__init__(message)
        self.id = id


class SerializerMismatchError(SerializerError):
    """The store was written with another serializer than the given one; nothing was read."""


class SerializerMissingError(SerializerError, ImportError):
    """The serializer's library is not installed; the message has the pip command."""


class StorageError(PersistcollError, OSError):
    """The storage did not do what was asked of it.

    :ivar errno: the operating system's error number, or ``None`` if there is none.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StorageFullError(StorageError):
    """There is no room: the disk is full, or a quota or a limit of file sizes is reached.

    What was to be stored is not stored.
    """


class LockedError(StorageError):
    """Another process, or another object of this one, holds the lock that is needed.

    :ivar pid: the process id of the holder, or ``None`` if it is not known.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class CorruptionError(StorageError):
    """Stored bytes are damaged or missing. They were not delivered.

    :ivar path: the damaged or missing file.
    :ivar offset: the offset in bytes at which the damage starts, or ``None`` for the whole file.
    :ivar id: the damaged item's id in a database, with which ``skip(id)`` removes it; otherwise ``None``.
    """

    def __init__(
        self, message: str, path: str | None = None, offset: int | None = None, id: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.id = id


class StoreKindError(StorageError):
    """What lies at the path is no store of the wanted kind."""


class StoreMissingError(StorageError, FileNotFoundError):
    """No store lies at the path, and none was to be made."""


class StoreReplacedError(StorageError):
    """The store's files were removed, renamed or replaced while it was open.

    What this call was to store cannot be found again: it was not written, or it was written into a removed
    file. The path now names another store, or none. Open the store again.

    :ivar path: the file or directory that is not the store's any more.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class FormatVersionError(StorageError):
    """The store was written in a format that this version does not read."""


class BackendUnavailableError(StorageError):
    """The database server cannot be reached."""


class ServerWarning(UserWarning):
    """A database server is set, or used, so that it endangers what a collection promises.

    The message names the server and says what to do. A process is told once for each address and
    ``durability``, when it first opens a collection there. If a filter makes an exception of it, the
    collection is not opened, and the next opening raises it again.
    """


class ClaimError(PersistcollError, LookupError):
    """The consumer has no claim on the item.

    :ivar ids: the ids of those items or messages, as far as they have any.
    """

    def __init__(self, message: str, ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class StaleClaimError(ClaimError):
    """The claim was lost: its lease ran out, or its item became ready in another way."""


class NotClaimedError(ClaimError):
    """The consumer never claimed the item, or has settled it already."""


class DuplicateError(PersistcollError):
    """An equal item is queued already."""


class TrimmedError(PersistcollError, IndexError):
    """The record was removed from its log, because it was trimmed or not retained.

    :ivar first: the position of the first record that is left. ``seek("first")`` goes on there.
    """

    def __init__(self, message: str, first: int) -> None:
        super().__init__(message)
        self.first = first


def trimmed(position: int, first: int) -> TrimmedError:
    """Return the error to raise for a position before the first one."""
    return TrimmedError(
        f"position {position} was trimmed, and the log begins at {first} now; seek('first') goes on there",
        first,
    )


class ClosedError(PersistcollError, ValueError):
    """The container is closed."""
