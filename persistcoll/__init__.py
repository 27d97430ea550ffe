"""Persistent collections: queues that live on disk, keep the standard library's interfaces, and
survive what kills the process or the machine.

>>> from persistcoll import Queue
>>> with Queue("jobs") as jobs:
...     jobs.put("an item")
...     print(jobs.get())
...     jobs.task_done()
an item
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persistcoll import errors as errors
    from persistcoll import serializers as serializers
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
        StoreMissingError,
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
    "StoreMissingError",
    "StoreReplacedError",
    "UniqueAckQ",
    "UniqueQ",
]

# A name is imported when it is asked for first: most programs need one class, and not SQLite and the file
# queues both. Names of `__all__` that are not here are those of persistcoll.errors.
_HOMES = {
    "AckStatus": "persistcoll.ack_queues",
    "Backoff": "persistcoll.engine.values",
    "FIFOSQLiteAckQueue": "persistcoll.ack_queues",
    "FIFOSQLiteQueue": "persistcoll.sql_queues",
    "FILOSQLiteAckQueue": "persistcoll.ack_queues",
    "FILOSQLiteQueue": "persistcoll.sql_queues",
    "LIFOSQLiteQueue": "persistcoll.sql_queues",
    "PDict": "persistcoll.pdict",
    "PriorityQueue": "persistcoll.sql_queues",
    "Queue": "persistcoll.queues",
    "SQLiteAckQueue": "persistcoll.ack_queues",
    "SQLiteQueue": "persistcoll.sql_queues",
    "Stats": "persistcoll.engine.values",
    "UniqueAckQ": "persistcoll.ack_queues",
    "UniqueQ": "persistcoll.sql_queues",
}


if not TYPE_CHECKING:  # a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        if name in ("errors", "serializers"):
            return import_module(f"persistcoll.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "persistcoll.errors")), name)
        globals()[name] = value  # found without this function from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "errors", "serializers"})
