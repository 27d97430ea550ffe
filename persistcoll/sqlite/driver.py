"""Make SQLite's connections, with their settings, and translate its errors.

This is the only module that imports ``sqlite3``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import sqlite3
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

from persistcoll.disk.calls import OUTCOME_UNKNOWN
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
    "CHECKPOINT",
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
    "WritingConnection",
    "close",
    "connect",
    "connect_read_only",
    "connect_reader",
    "corruption_error",
    "end_statement",
    "leak",
    "missing_collection",
    "prepare",
    "translate",
]

Connection = sqlite3.Connection
Cursor = sqlite3.Cursor
C = TypeVar("C", bound=sqlite3.Connection)
Execute = Callable[..., sqlite3.Cursor]
"""``cursor.execute``: runs one statement."""

# If a message quotes the bytes of a damaged name, `sqlite3` raises a UnicodeDecodeError instead; in Python
# 3.10 an error of its own without a text.
ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, UnicodeDecodeError)
"""The roots of the driver's exceptions."""

# The oldest release that this module supports. Nothing older is in use with Python 3.10.
_OLDEST = (3, 35, 0)

BEGIN, BEGIN_READING = "BEGIN IMMEDIATE", "BEGIN"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
DATA_VERSION = "PRAGMA data_version"
CHECKPOINT = ("PRAGMA wal_checkpoint(TRUNCATE)",)
# In a file, because VACUUM would otherwise copy the whole database into memory.
SHRINK = ("PRAGMA temp_store=FILE", "VACUUM", "PRAGMA temp_store=MEMORY", *CHECKPOINT)
_FULL, NORMAL = "PRAGMA synchronous=FULL", "PRAGMA synchronous=NORMAL"

# Bytes. A commit writes every changed page into the log as a whole: with 4,096 bytes a put takes 10 us
# instead of 8, and a claim 25 us instead of 17.
_PAGE_SIZE = 1024
# Pages: 4 MiB. A checkpoint costs two syncs.
_CHECKPOINT = 4096
# Bytes: the size of a log when SQLite makes a checkpoint. Each page follows a header of its own.
LOG_SIZE = 32 + _CHECKPOINT * (24 + _PAGE_SIZE)
# Seconds. SQLite counts milliseconds in 32 bits, and a longer timeout would overflow to none.
_LONGEST = 2_000_000.0

# The bytes that a URI need not quote.
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
    "constraint failed",  # the statements violate none, unless a damaged index hides a row
)
# Damaged text becomes another text, which no checksum passes. By an error instead, a statement would give
# neither the row nor its id.
_TEXT = partial(str, encoding="utf-8", errors="replace")
_NO_TABLE = re.compile(r"no such table: (?:main\.)?[a-z]+_(\d+)")
_BUSY = ("database is locked", "database table is locked", "database schema is locked")
# SQLITE_PROTOCOL, after a hundred tries to begin a transaction. SQLite ignores the error of an unlock, and
# then takes the lock for held until all connections of the process are closed.
_NO_LOCK = "locking protocol"
# SQLite reports ENOSPC in a write to a file as "full", and every other lack of space as an I/O error: a quota
# (EDQUOT), the largest size of a file (EFBIG), and an index of the log that cannot grow.
_WRITING, _GROWING_INDEX = 778, 4874  # SQLITE_IOERR_WRITE, SQLITE_IOERR_SHMSIZE

_DROP_OPERATIONS = "DROP TABLE IF EXISTS temp.persistcoll_operations"
# What SQLite asks about each part of a statement before it executes it. The answer is 0 (permitted), except
# where the action is one of these: then it is the action's number, which is no permission. They would end the
# transaction, or outlive it, because all collections of this process write over the same connection. These
# are no Python functions, because an interrupt within one would be lost in SQLite.
_REFUSED = [
    sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA,
]  # fmt: skip
_PERMIT: Any = partial(max, 0, key=[].count)
_PERMIT_ALL_BUT_REFUSED: Any = partial(max, 0, key=_REFUSED.count)


class _LentCursor(sqlite3.Cursor):
    """A cursor for statements of a transaction's caller. The end of the transaction closes it."""

    connection: WritingConnection

    def execute(self, *arguments: Any) -> Any:
        """Execute a statement of the caller."""
        self.connection.check_lent()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        """Execute a statement of the caller once for each of several parameters."""
        self.connection.check_lent()
        return super().executemany(*arguments)


class WritingConnection(sqlite3.Connection):
    """A connection that a transaction lends to its caller, for statements of the caller's own.

    The caller can neither end the transaction nor use the connection after its end. Savepoints are the
    caller's, but none of them may be rolled back with an operation of a collection in it: the process would
    still remember what the database does not. A table of the connection alone counts the operations within
    the transaction, and a rollback to a savepoint changes its count, too.

    The database's lock protects ``_is_used``, ``_operations`` and what the methods do, except those that the
    caller calls.
    """

    _is_lent: bool | None = None
    """Whether a transaction lends it now; ``None``: none ever did."""
    _is_used = False
    _operations = 0
    _text_factory: Any = _TEXT
    _cursors: weakref.WeakSet[sqlite3.Cursor]

    def lend(self) -> None:
        """Let the caller use it until :meth:`take_back`."""
        self._is_used, self._operations, self._cursors = False, 0, weakref.WeakSet()
        self.text_factory = str
        self._is_lent = True

    def take_back(self) -> None:
        """Refuse the caller every further use. Idempotent, and may be called again after an interrupt."""
        self._is_lent = False
        self.row_factory, self.text_factory = None, _TEXT
        if not self._is_used:
            return
        # A statement that is not exhausted would keep the connection in its snapshot.
        for cursor in list(self._cursors):
            cursor.close()
        super().set_authorizer(None if sys.version_info >= (3, 11) else _PERMIT)
        with suppress(sqlite3.Error):  # the next loan drops it, and so does a rollback
            self._execute(_DROP_OPERATIONS)
        self._is_used = False

    def check_lent(self) -> None:
        """Raise ``sqlite3.ProgrammingError`` if the transaction has ended."""
        if not self._is_lent:
            raise sqlite3.ProgrammingError("the transaction that lent this connection has ended")
        if not self.in_transaction:
            raise sqlite3.ProgrammingError("an error of a statement has rolled back the transaction")

    def own_cursor(self) -> sqlite3.Cursor:
        """Return a cursor for statements of the collections."""
        cursor = super().cursor()
        cursor.row_factory = None
        return cursor

    def cursor(self, factory: object = None) -> Any:
        """Return a cursor for statements of the caller; ``factory`` is ignored."""
        if self._is_lent is None:
            return super().cursor()
        self.check_lent()
        if not self._is_used:
            self._execute(_DROP_OPERATIONS)
            self._execute(
                "CREATE TEMP TABLE persistcoll_operations AS SELECT ? AS count", (self._operations,)
            )
            super().set_authorizer(_PERMIT_ALL_BUT_REFUSED)
            self._is_used = True
        cursor = super().cursor(_LentCursor)
        self._cursors.add(cursor)
        return cursor

    def execute(self, *arguments: Any) -> Any:
        """Execute a statement of the caller."""
        return self.cursor().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        """Execute a statement of the caller once for each of several parameters."""
        return self.cursor().executemany(*arguments)

    def _execute(self, text: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.own_cursor().execute(text, parameters)

    def begin_operation(self) -> bool:
        """Begin an operation of a collection within the transaction. :meth:`end_operation` must follow.

        :return: whether the transaction is still open, and the caller has rolled none of its operations back.
        """
        if self.text_factory is not _TEXT:
            self._text_factory, self.text_factory = self.text_factory, _TEXT
        if not self._is_used or not self.in_transaction:
            return self.in_transaction
        (count,) = self._execute("SELECT count FROM temp.persistcoll_operations").fetchone()
        return bool(count == self._operations)

    def count_operation(self) -> None:
        """Count an operation that has changed something."""
        self._operations += 1
        if self._is_used:
            self._execute("UPDATE temp.persistcoll_operations SET count = ?", (self._operations,))

    def end_operation(self) -> None:
        """End an operation, whether it was done or not."""
        if self._text_factory is not _TEXT:
            self.text_factory, self._text_factory = self._text_factory, _TEXT

    def _refuse(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse what would end the transaction, wait for its end, or outlive it."""
        raise sqlite3.ProgrammingError(
            "this connection is lent for statements within the block of transaction(), which the end of the"
            " block commits, and for nothing else"
        )

    commit = rollback = executescript = close = __enter__ = _refuse
    backup = blobopen = deserialize = set_authorizer = load_extension = enable_load_extension = _refuse
    # Python commits when one of them is set.
    isolation_level = property(lambda self: None, _refuse)
    autocommit = property(lambda self: -1, _refuse)


close = sqlite3.Connection.close
"""Closes a connection, also one that refuses that to its callers. No Python function, for the interrupts."""


def connect(path: str, timeout: float) -> WritingConnection:
    """Return a connection that begins no transactions by itself. Writes nothing.

    :param timeout: seconds to wait for a lock of another program.
    :raise BackendUnavailableError: SQLite is too old.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BackendUnavailableError(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed")
    return _connect(path, timeout, WritingConnection)


def _connect(path: str, timeout: float, factory: type[C], uri: bool = False) -> C:
    connection: C = sqlite3.connect(
        path,
        timeout=min(timeout, _LONGEST),
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
        factory=factory,
        uri=uri,
    )
    connection.text_factory = _TEXT
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def connect_reader(path: str, timeout: float) -> sqlite3.Connection:
    """Return a connection that cannot write."""
    connection = _connect(path, timeout, sqlite3.Connection)
    connection.execute("PRAGMA query_only=ON")
    return connection


def connect_read_only(path: str, timeout: float, immutable: bool) -> sqlite3.Connection:
    """Return a connection that makes and writes no file, not even the index of the log.

    :param immutable: nobody writes, and there is no log to read. Otherwise there has to be a log.
    """
    # Without mode=ro SQLite would make the database again if it was removed meanwhile.
    how = "mode=ro&immutable=1" if immutable else "mode=ro&readonly_shm=1"
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(path))
    return _connect(f"file:{name}?{how}", timeout, sqlite3.Connection, uri=True)


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Set what every connection that writes needs. The file is a database of ours, or new."""
    execute = connection.execute
    execute(f"PRAGMA page_size={_PAGE_SIZE}")
    if path != ":memory:":
        (mode,) = execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":  # SQLite returns the mode that it set; without shared memory it sets no other one
            raise StorageError(f"{path!r} cannot be used: SQLite has no write-ahead log there ({mode})")
    execute(_FULL)
    execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")
    execute(f"PRAGMA journal_size_limit={16 * _CHECKPOINT * _PAGE_SIZE}")
    execute("PRAGMA temp_store=MEMORY")
    if path != ":memory:":
        # A process whose sync failed may have left pages in the log that can be read but are not on the
        # device. Copy them into the database.
        execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    execute("PRAGMA secure_delete=OFF")
    if sys.platform == "darwin":  # there fsync reaches the cache of the drive only
        execute("PRAGMA fullfsync=ON")
        execute("PRAGMA checkpoint_fullfsync=ON")


def corruption_error(what: str) -> Exception:
    """Return the driver's error for a damaged database; raised in a transaction, it rolls back."""
    return sqlite3.DatabaseError(f"malformed: {what}")


def missing_collection(error: Exception) -> int | None:
    """Return the number of the collection whose table an error misses; ``None``: it says something else."""
    found = _NO_TABLE.fullmatch(str(error))
    return None if found is None else int(found[1])


def translate(error: Exception, doing: str, path: str) -> StorageError:
    """Return the error to raise for one of ``sqlite3``'s. The caller sets that as its cause."""
    text = str(error)
    # By text, because Python 3.10 does not have the codes; the texts are SQLite's own and stable.
    if not text or isinstance(error, UnicodeDecodeError):
        return CorruptionError(f"{doing} {path!r} failed: the database's schema is damaged", path)
    if any(words in text for words in _BUSY):
        return LockedError(  # SQLite does not tell whose lock it is
            f"{doing} {path!r}: another program, or another connection in this one, keeps the database locked"
        )
    if _NO_LOCK in text:
        return LockedError(
            f"{doing} {path!r}: SQLite tried for ten seconds to lock its index of the log; nothing was done."
            " Another program keeps it locked, or the operating system refuses to lock or unlock it."
            " If calls go on to fail, close all objects of this file in this process, and open them again"
        )
    if any(words in text for words in _FULL_ERRORS):
        return _full(doing, path, errno.ENOSPC)
    if any(words in text for words in _DAMAGED):
        return CorruptionError(f"{doing} {path!r} failed: the database is damaged ({text})", path)
    if "not a database" in text:
        return StoreKindError(f"{path!r} is not an SQLite database")
    if "readonly" in text:
        return unwritable(path)
    if "I/O" in text:
        # Python 3.10 does not have the code, so there every I/O error may be a lack of space.
        if getattr(error, "sqlite_errorcode", _WRITING) in (_WRITING, _GROWING_INDEX):
            wanting = no_room(path)
            if wanting is not None:
                return _full(doing, path, wanting)
        return StorageError(
            f"{doing} {path!r} failed: {text}{OUTCOME_UNKNOWN}",
            errno.EIO,
        )
    return StorageError(f"{doing} {path!r} failed: {text}")


def _full(doing: str, path: str, number: int) -> StorageFullError:
    reason = "no room" if number == errno.ENOSPC else os.strerror(number)
    return StorageFullError(f"{doing} {path!r} failed: {reason}; nothing is stored", number)


def end_statement(execute: Execute) -> None:
    """End the statement that this cursor has not exhausted: it keeps the log from being reset."""
    with suppress(sqlite3.Error):
        execute("SELECT 1").fetchall()


def leak(connection: object) -> None:
    """Never close this connection, because it is the parent's and closing it would disturb the parent.

    SQLite would take the parent's locks for this process's own, and might remove the log that the parent
    writes.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
