"""Persistent collections: queues and dicts on disk, with the standard library's interfaces.

They survive the death of the process, and with ``durability="power"`` a power cut.

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
    from persistcoll import logging as logging
    from persistcoll import metrics as metrics
    from persistcoll import serializers as serializers
    from persistcoll.catalog import collections as collections
    from persistcoll.catalog import drop
    from persistcoll.dicts.pdict import PDict
    from persistcoll.engine.message_events import EventKind, MessageEvent
    from persistcoll.engine.records import Backoff, CollectionInfo, Retain, State, Stats
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
        ServerWarning,
        ShutDown,
        StaleClaimError,
        StorageError,
        StorageFullError,
        StoreKindError,
        StoreMissingError,
        StoreReplacedError,
        TrimmedError,
    )
    from persistcoll.logs.consumer import Consumer
    from persistcoll.logs.log import Log
    from persistcoll.messages.message import Message, MessageInfo, OutgoingMessage
    from persistcoll.messages.queue import MessageQueue
    from persistcoll.messages.topic_lock import TopicLock
    from persistcoll.messages.worker import Worker
    from persistcoll.queues.ack_status import AckStatus
    from persistcoll.queues.file import Queue
    from persistcoll.queues.mysql import (
        MySQLAckQueue,
        MySQLLIFOQueue,
        MySQLPriorityQueue,
        MySQLQueue,
        MySQLUniqueQueue,
    )
    from persistcoll.queues.postgres import (
        PostgresAckQueue,
        PostgresLIFOQueue,
        PostgresPriorityQueue,
        PostgresQueue,
        PostgresUniqueQueue,
    )
    from persistcoll.queues.server import ddl
    from persistcoll.queues.shortcuts import get as get
    from persistcoll.queues.shortcuts import put as put
    from persistcoll.queues.sqlite import (
        FIFOSQLiteAckQueue,
        FIFOSQLiteQueue,
        FILOSQLiteAckQueue,
        FILOSQLiteQueue,
        LIFOSQLiteQueue,
        PriorityQueue,
        SQLiteAckQueue,
        SQLiteQueue,
        UniqueAckQ,
        UniqueQ,
    )

__version__ = "0.1.0"

__all__ = [
    "AckStatus",
    "BackendUnavailableError",
    "Backoff",
    "ClaimError",
    "ClosedError",
    "CollectionInfo",
    "Consumer",
    "CorruptionError",
    "DecodeError",
    "DuplicateError",
    "Empty",
    "EncodeError",
    "EventKind",
    "FIFOSQLiteAckQueue",
    "FIFOSQLiteQueue",
    "FILOSQLiteAckQueue",
    "FILOSQLiteQueue",
    "FormatVersionError",
    "Full",
    "LIFOSQLiteQueue",
    "LockedError",
    "Log",
    "Message",
    "MessageEvent",
    "MessageInfo",
    "MessageQueue",
    "MySQLAckQueue",
    "MySQLLIFOQueue",
    "MySQLPriorityQueue",
    "MySQLQueue",
    "MySQLUniqueQueue",
    "NotClaimedError",
    "OutgoingMessage",
    "PDict",
    "PersistcollError",
    "PostgresAckQueue",
    "PostgresLIFOQueue",
    "PostgresPriorityQueue",
    "PostgresQueue",
    "PostgresUniqueQueue",
    "PriorityQueue",
    "Queue",
    "Retain",
    "SQLiteAckQueue",
    "SQLiteQueue",
    "SerializerError",
    "SerializerMismatchError",
    "SerializerMissingError",
    "ServerWarning",
    "ShutDown",
    "StaleClaimError",
    "State",
    "Stats",
    "StorageError",
    "StorageFullError",
    "StoreKindError",
    "StoreMissingError",
    "StoreReplacedError",
    "TopicLock",
    "TrimmedError",
    "UniqueAckQ",
    "UniqueQ",
    "Worker",
    "ddl",
    "drop",
]

# A name is imported when it is first asked for, because most programs need one class, and not both SQLite and
# the file queues. Names of `__all__` that are missing here are in persistcoll.errors.
_HOMES = {
    "AckStatus": "persistcoll.queues.ack_status",
    "Backoff": "persistcoll.engine.records",
    "CollectionInfo": "persistcoll.engine.records",
    "Consumer": "persistcoll.logs.consumer",
    "EventKind": "persistcoll.engine.message_events",
    "FIFOSQLiteAckQueue": "persistcoll.queues.sqlite",
    "FIFOSQLiteQueue": "persistcoll.queues.sqlite",
    "FILOSQLiteAckQueue": "persistcoll.queues.sqlite",
    "FILOSQLiteQueue": "persistcoll.queues.sqlite",
    "LIFOSQLiteQueue": "persistcoll.queues.sqlite",
    "Log": "persistcoll.logs.log",
    "Message": "persistcoll.messages.message",
    "MessageEvent": "persistcoll.engine.message_events",
    "MessageInfo": "persistcoll.messages.message",
    "MessageQueue": "persistcoll.messages.queue",
    "MySQLAckQueue": "persistcoll.queues.mysql",
    "MySQLLIFOQueue": "persistcoll.queues.mysql",
    "MySQLPriorityQueue": "persistcoll.queues.mysql",
    "MySQLQueue": "persistcoll.queues.mysql",
    "MySQLUniqueQueue": "persistcoll.queues.mysql",
    "OutgoingMessage": "persistcoll.messages.message",
    "PDict": "persistcoll.dicts.pdict",
    "PostgresAckQueue": "persistcoll.queues.postgres",
    "PostgresLIFOQueue": "persistcoll.queues.postgres",
    "PostgresPriorityQueue": "persistcoll.queues.postgres",
    "PostgresQueue": "persistcoll.queues.postgres",
    "PostgresUniqueQueue": "persistcoll.queues.postgres",
    "PriorityQueue": "persistcoll.queues.sqlite",
    "Queue": "persistcoll.queues.file",
    "Retain": "persistcoll.engine.records",
    "SQLiteAckQueue": "persistcoll.queues.sqlite",
    "SQLiteQueue": "persistcoll.queues.sqlite",
    "State": "persistcoll.engine.records",
    "Stats": "persistcoll.engine.records",
    "TopicLock": "persistcoll.messages.topic_lock",
    "UniqueAckQ": "persistcoll.queues.sqlite",
    "UniqueQ": "persistcoll.queues.sqlite",
    "Worker": "persistcoll.messages.worker",
    "ddl": "persistcoll.queues.server",
    "drop": "persistcoll.catalog",
    # These are not of `__all__`: `from persistcoll import *` would hide the standard library's module of the
    # first name, and a program's own functions of the other two.
    "collections": "persistcoll.catalog",
    "get": "persistcoll.queues.shortcuts",
    "put": "persistcoll.queues.shortcuts",
}


if not TYPE_CHECKING:  # Otherwise a type checker would accept any name.

    def __getattr__(name: str) -> Any:
        if name in ("errors", "logging", "metrics", "serializers"):
            return import_module(f"persistcoll.{name}")
        if name not in __all__ and name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "persistcoll.errors")), name)
        globals()[name] = value  # From now on the name is found without this function.
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES, "errors", "logging", "metrics", "serializers"})
