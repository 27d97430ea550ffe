"""Persistent collections: queues that live on disk, keep the standard library's interfaces, and
survive what kills the process or the machine.

>>> from persistcoll import Queue
>>> with Queue("jobs") as jobs:
...     jobs.put("an item")
...     print(jobs.get())
...     jobs.task_done()
an item
"""

from persistcoll.ack_queues import (
    AckStatus,
    FIFOSQLiteAckQueue,
    FILOSQLiteAckQueue,
    SQLiteAckQueue,
    UniqueAckQ,
)
from persistcoll.engine.values import Backoff, Stats
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
    StoreReplacedError,
)
from persistcoll.pdict import PDict
from persistcoll.queues import Queue
from persistcoll.sql_queues import (
    FIFOSQLiteQueue,
    FILOSQLiteQueue,
    LIFOSQLiteQueue,
    PriorityQueue,
    SQLiteQueue,
    UniqueQ,
)

__version__ = "0.1.0"

__all__ = [
    "AckStatus",
    "BackendUnavailableError",
    "Backoff",
    "ClaimError",
    "ClosedError",
    "CorruptionError",
    "DecodeError",
    "DuplicateError",
    "Empty",
    "EncodeError",
    "FIFOSQLiteAckQueue",
    "FIFOSQLiteQueue",
    "FILOSQLiteAckQueue",
    "FILOSQLiteQueue",
    "FormatVersionError",
    "Full",
    "LIFOSQLiteQueue",
    "LockedError",
    "NotClaimedError",
    "PDict",
    "PersistcollError",
    "PriorityQueue",
    "Queue",
    "SQLiteAckQueue",
    "SQLiteQueue",
    "SerializerError",
    "SerializerMismatchError",
    "SerializerMissingError",
    "ShutDown",
    "StaleClaimError",
    "Stats",
    "StorageError",
    "StorageFullError",
    "StoreKindError",
    "StoreReplacedError",
    "UniqueAckQ",
    "UniqueQ",
]
