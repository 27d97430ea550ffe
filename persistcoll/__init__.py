"""Persistent collections: queues that live on disk, keep the standard library's interfaces, and
survive what kills the process or the machine.

>>> from persistcoll import Queue
>>> with Queue("jobs") as jobs:
...     jobs.put("an item")
...     print(jobs.get())
...     jobs.task_done()
an item
"""

from persistcoll.engine.values import Stats
from persistcoll.errors import (
    BackendUnavailableError,
    ClaimError,
    ClosedError,
    CorruptionError,
    DecodeError,
    DuplicateError,
    Empty,
    EncodeError,
    FormatVersionError,
    Full,
    LockedError,
    NotClaimedError,
    PersistcollError,
    SerializerError,
    SerializerMismatchError,
    SerializerMissingError,
    ShutDown,
    StaleClaimError,
    StorageError,
    StorageFullError,
    StoreKindError,
)
from persistcoll.queues import Queue

__version__ = "0.1.0"

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
    "Queue",
    "SerializerError",
    "SerializerMismatchError",
    "SerializerMissingError",
    "ShutDown",
    "StaleClaimError",
    "Stats",
    "StorageError",
    "StorageFullError",
    "StoreKindError",
]
