"""SQLite's connections, their settings and their errors. The only module that knows ``sqlite3``."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress

from persistcoll.disk.path_checks import unwritable
from persistcoll.errors import (
    BackendUnavailableError,
    CorruptionError,
    LockedError,
    StorageError,
    StorageFullError,
    StoreKindError,
)
from persistcoll.sqlite.room import no_room

__all__ = [
    "BEGIN",
    "BEGIN_READING",
    "COMMIT",
    "DATA_VERSION",
    "ERRORS",
    "LOG_SIZE",
    "NORMAL",
    "ROLLBACK",
    "SHRINK",
    "Connection",
    "Cursor",
    "Execute",
    "connect",
    "connect_read_only",
    "connect_reader",
    "corruption_error",
    "end_statement",
    "leak",
    "prepare",
    "translate",
]

Connection = sqlite3.Connection
Cursor = sqlite3.Cursor
Execute = Callable[..., sqlite3.Cursor]
"""``cursor.execute``: runs one statement."""

# Of a message that quotes the bytes of a damaged name, `sqlite3` makes a UnicodeDecodeError; in Python 3.10
# an error of its own without a text.
ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, UnicodeDecodeError)
"""The roots of the driver's exceptions."""

# The oldest that the suite could be thought to pass with; nothing older is in use with Python 3.10.
_OLDEST = (3, 35, 0)

BEGIN, BEGIN_READING = "BEGIN IMMEDIATE", "BEGIN"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
DATA_VERSION = "PRAGMA data_version"
# The copy that VACUUM makes would otherwise be in memory.
SHRINK = (
    "PRAGMA temp_store=FILE",
    "VACUUM",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA wal_checkpoint(TRUNCATE)",
)
_FULL, NORMAL = "PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL"

# Bytes. A commit writes every page that it changed into the log, whole: with 4,096 a put takes 10 us instead
# of 8, a claim 25 instead of 17.
_PAGE_SIZE = 1024
# Pages: 4 MiB. A checkpoint costs two syncs.
_CHECKPOINT = 4096
# Bytes: what a log grows to by itself, each page behind a header of its own.
LOG_SIZE = 32 + _CHECKPOINT * (24 + _PAGE_SIZE)
# Seconds. SQLite counts milliseconds in 32 bits; what is more would be no time at all.
_LONGEST = 2_000_000.0

# Bytes that stand for themselves in a URI.
_PLAIN = frozenset(b"/._-:" + b"0123456789" + b"abcdefghijklmnopqrstuvwxyz" + b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")

_log = logging.getLogger("persistcoll")
_FULL_ERRORS = ("database or disk is full",)
_DAMAGED = (
    "malformed",
    "corrupt",
    "no such table",
    "no such column",
    "has no column",
    "Could not decode",
    "unsupported file format",
    "constraint failed",  # ours hold, unless an index does not find what is there
)
_BUSY = ("database is locked", "database table is locked", "database schema is locked")
# SQLite tells ENOSPC in a write to a file as "full", and every other want of room as an I/O error: a quota
# (EDQUOT), the largest size of a file (EFBIG), and a shared-memory index that cannot grow.
_WRITING, _GROWING_INDEX = 778, 4874  # SQLITE_IOERR_WRITE, SQLITE_IOERR_SHMSIZE


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """A connection that begins no transactions by itself. Nothing is written.

    :param timeout: seconds to wait for a lock of another program.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BackendUnavailableError(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed")
    return _connect(path, timeout)


def _connect(path: str, timeout: float, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=min(timeout, _LONGEST),
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
        uri=uri,
    )
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def connect_reader(path: str, timeout: float) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = connect(path, timeout)
    connection.execute("PRAGMA query_only=ON")
    return connection


def connect_read_only(path: str, timeout: float, immutable: bool) -> sqlite3.Connection:
    """A connection that makes and writes no file, the index of the log included.

    :param immutable: nobody writes: there is no log to look for. Otherwise there has to be one.
    """
    # Without mode=ro SQLite would make a database that is removed meanwhile.
    how = "mode=ro&immutable=1" if immutable else "mode=ro&readonly_shm=1"
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(path))
    return _connect(f"file:{name}?{how}", timeout, uri=True)


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Set what has to be set for every connection that writes; the file is ours or new."""
    execute = connection.execute
    execute(f"PRAGMA page_size={_PAGE_SIZE}")
    if path != ":memory:":
        mode = execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":  # what was really set: a file system without shared memory stays as it was
            raise StorageError(f"{path!r} cannot be used: SQLite has no write-ahead log there ({mode})")
    execute(_FULL)
    execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")
    execute(f"PRAGMA journal_size_limit={16 * _CHECKPOINT * _PAGE_SIZE}")
    execute("PRAGMA temp_store=MEMORY")
    if path != ":memory:":
        # What a process left in the log whose sync had failed can be read, but may not be on the device.
        execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    execute("PRAGMA secure_delete=OFF")
    if sys.platform == "darwin":  # fsync only reaches the drive's cache there
        execute("PRAGMA fullfsync=ON")
        execute("PRAGMA checkpoint_fullfsync=ON")


def corruption_error(what: str) -> Exception:
    """An error as the driver raises it for a damaged database: it rolls back."""
    return sqlite3.DatabaseError(f"malformed: {what}")


def translate(error: Exception, doing: str, path: str) -> StorageError:
    """The error to raise for one of ``sqlite3``'s, which the caller sets as its cause."""
    text = str(error)
    # By text: the codes are not there before Python 3.11; the texts are SQLite's own and stable.
    if not text or isinstance(error, UnicodeDecodeError):
        return CorruptionError(f"{doing} {path!r} failed: the database's schema is damaged", path)
    if any(words in text for words in _BUSY):
        return LockedError(f"{doing} {path!r}: another program keeps the database locked")
    if any(words in text for words in _FULL_ERRORS):
        return _full(doing, path, errno.ENOSPC)
    if any(words in text for words in _DAMAGED):
        return CorruptionError(f"{doing} {path!r} failed: the database is damaged ({text})", path)
    if "not a database" in text:
        return StoreKindError(f"{path!r} is no SQLite database")
    if "readonly" in text:
        return unwritable(path)
    if "I/O" in text:
        # Python 3.10 does not tell the code.
        if getattr(error, "sqlite_errorcode", _WRITING) in (_WRITING, _GROWING_INDEX):
            wanting = no_room(path)
            if wanting is not None:
                return _full(doing, path, wanting)
        return StorageError(
            f"{doing} {path!r} failed: {text}; whether what was being written is stored is unknown",
            errno.EIO,
        )
    return StorageError(f"{doing} {path!r} failed: {text}")


def _full(doing: str, path: str, number: int) -> StorageFullError:
    reason = "no room" if number == errno.ENOSPC else os.strerror(number)
    return StorageFullError(f"{doing} {path!r} failed: {reason}; nothing is stored", number)


def end_statement(execute: Execute) -> None:
    """End the statement that this cursor has not exhausted: it keeps the log from being taken over."""
    with suppress(sqlite3.Error):
        execute("SELECT 1").fetchall()


def leak(connection: object) -> None:
    """Never let go of this connection: it is the parent's, and closing it here would disturb the parent.

    SQLite would think that this process holds its locks, and might clean up the log that the parent
    writes.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
