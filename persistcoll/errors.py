"""Every exception that persistcoll raises, in one tree.

Each one is also the standard library's exception of the same meaning, so that code written
for ``ValueError``, ``OSError``, ``LookupError`` or ``ImportError`` keeps working::

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
    |  |- StoreReplacedError        .path
    |  |- FormatVersionError
    |  `- BackendUnavailableError
    |- ClaimError (LookupError)
    |  |- StaleClaimError
    |  `- NotClaimedError
    |- DuplicateError
    `- ClosedError (ValueError)

``Empty`` and ``Full`` are :class:`queue.Empty` and :class:`queue.Full` themselves; ``ShutDown`` is
:class:`queue.ShutDown` where the standard library has it (Python 3.13 and later).

A message says what happened, where, and what to do next. It never quotes an item or a password.
"""

from __future__ import annotations

import queue
import sys
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
    "ShutDown",
    "StaleClaimError",
    "StorageError",
    "StorageFullError",
    "StoreKindError",
    "StoreMissingError",
    "StoreReplacedError",
]

if sys.version_info >= (3, 13):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by ``put`` and ``get`` after ``shutdown()``, as ``queue.ShutDown`` of Python 3.13."""


class PersistcollError(Exception):
    """The root of the tree."""


class SerializerError(PersistcollError, ValueError):
    """An item and its stored bytes could not be turned into each other."""


class EncodeError(SerializerError):
    """The item could not be serialized, or is too large; nothing was stored."""


class DecodeError(SerializerError):
    """A stored item could not be deserialized. It stays stored.

    :ivar id: the item's id, which ``skip(id)`` takes to remove it; ``None`` outside a store.
    """

    def __init__(self, message: str, id: int | None = None) -> None:
        super().__init__(message)
        self.id = id


class SerializerMismatchError(SerializerError):
    """The store was written with another serializer than the one given; nothing was read."""


class SerializerMissingError(SerializerError, ImportError):
    """The serializer's library is not installed; the message holds the pip command."""


class StorageError(PersistcollError, OSError):
    """The storage did not do what was asked of it.

    :ivar errno: the operating system's number where it gave one, else ``None``.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StorageFullError(StorageError):
    """No room (disk full, quota, file size limit). What was to be stored is not stored."""


class LockedError(StorageError):
    """Another process, or another object of this one, holds what was asked for.

    :ivar pid: the process id of the holder, where it is known.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class CorruptionError(StorageError):
    """Stored bytes are damaged or missing. They were not delivered.

    :ivar path: the damaged (or missing) file.
    :ivar offset: the offset in bytes at which the damage starts, or ``None`` for the whole file.
    :ivar id: the damaged item's id in a database, which ``skip(id)`` takes to remove it, else ``None``.
    """

    def __init__(
        self, message: str, path: str | None = None, offset: int | None = None, id: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.id = id


class StoreKindError(StorageError):
    """What lies at that place is no store of this kind."""


class StoreMissingError(StorageError, FileNotFoundError):
    """There is no such store, and it was not to be made."""


class StoreReplacedError(StorageError):
    """The store's files were removed, renamed or replaced while it was open.

    What this call was to store nobody will find: it was not written, or into a file that is removed. What the
    path names now is another store, or none; opening it again is right.

    :ivar path: the file or directory that is not the store's any more.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class FormatVersionError(StorageError):
    """The store was written in a format that this version does not read."""


class BackendUnavailableError(StorageError):
    """The database server cannot be reached."""


class ClaimError(PersistcollError, LookupError):
    """The item is not in this consumer's hands."""


class StaleClaimError(ClaimError):
    """The claim was lost: its lease ran out, or somebody gave the item back."""


class NotClaimedError(ClaimError):
    """That item is not in these hands."""


class DuplicateError(PersistcollError):
    """An equal item is in force already."""


class ClosedError(PersistcollError, ValueError):
    """The collection is closed."""
