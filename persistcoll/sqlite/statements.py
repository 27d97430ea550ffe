"""SQLite's words, its connection and its errors. The only module that knows ``sqlite3``.

What is ready has a table of its own, so that nothing else ever lies in its way, and needs no index but the
id: a ``put`` changes one page. All else lies in another one, by who holds it, or by what became of it: to
finish a record changes one number. Measured beside one table with a state column and a partial index over
what is ready, in microseconds: a put 6 and not 9, a removal 7 and not 9.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import sqlite3
import sys
from contextlib import suppress
from typing import ClassVar

from persistcoll.disk.path_checks import unwritable
from persistcoll.engine.records import Discipline, State
from persistcoll.errors import (
    BackendUnavailableError,
    CorruptionError,
    LockedError,
    StorageError,
    StorageFullError,
    StoreKindError,
)
from persistcoll.sqlite.dialect import Execute, MappingWords, TableWords
from persistcoll.sqlite.room import no_room

__all__ = [
    "BEGIN",
    "BEGIN_READING",
    "COMMIT",
    "DATA_VERSION",
    "LOG_SIZE",
    "NORMAL",
    "ROLLBACK",
    "SHRINK",
    "SQLite",
    "end_statement",
    "leak",
]

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


class SQLite:
    """The dialect (see :class:`~persistcoll.sqlite.dialect.Dialect`) of SQLite 3.35 and later."""

    # Of a message that quotes the bytes of a damaged name, `sqlite3` makes a UnicodeDecodeError; in Python
    # 3.10 an error of its own without a text.
    Error: ClassVar[tuple[type[Exception], ...]] = (sqlite3.Error, UnicodeDecodeError)

    def connect(self, path: str, timeout: float) -> sqlite3.Connection:
        """A connection that begins no transactions by itself. Nothing is written.

        :param timeout: seconds to wait for a lock of another program.
        """
        if sqlite3.sqlite_version_info < _OLDEST:
            raise BackendUnavailableError(
                f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed"
            )
        return self._connect(path, timeout)

    def _connect(self, path: str, timeout: float, uri: bool = False) -> sqlite3.Connection:
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

    def connect_reader(self, path: str, timeout: float) -> sqlite3.Connection:
        """A connection that cannot write."""
        connection = self.connect(path, timeout)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def connect_looking(self, path: str, timeout: float, immutable: bool) -> sqlite3.Connection:
        """A connection that makes and writes no file, the index of the log included.

        :param immutable: nobody writes: there is no log to look for. Otherwise there has to be one.
        """
        how = "immutable=1" if immutable else "mode=ro&readonly_shm=1"
        name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(path))
        return self._connect(f"file:{name}?{how}", timeout, uri=True)

    def prepare(self, connection: sqlite3.Connection, path: str) -> None:
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

    def table_words(self, number: int, discipline: Discipline) -> TableWords:
        """The words of the table with this number."""
        return _table_words(number, discipline)

    def mapping_words(self, number: int) -> MappingWords:
        """The words of the mapping with this number."""
        return _mapping_words(number)

    def damaged(self, what: str) -> Exception:
        """An error as the driver raises it for a damaged database: it rolls back."""
        return sqlite3.DatabaseError(f"malformed: {what}")

    def translate(self, error: Exception, doing: str, path: str) -> StorageError:
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


_ROW = "id, priority, key, time, attempts, crc, payload"
_COLUMNS = "priority, key BLOB, time REAL, attempts INTEGER, crc INTEGER, payload BLOB"
# In the place of a holder.
_NOBODY = 0
_FINISHED = {State.DONE: -1, State.FAILED: -2, State.DEAD: -3}


def _table_words(number: int, discipline: Discipline) -> TableWords:
    ready, held, due, keys = (f"{name}_{number}" for name in ("ready", "held", "due", "keys"))
    direction, beyond, before = ("DESC", "<", ">") if discipline.newest_first else ("ASC", ">", "<")
    order = "priority, id" if discipline.by_priority else f"id {direction}"
    one_held = "WHERE holder = ? AND id = ?"
    heads = f"id IN (SELECT id FROM {ready} ORDER BY {order} LIMIT ?)"
    if not discipline.by_priority:  # up to the last of them, in one go
        heads = f"id {before}= (SELECT id FROM {ready} ORDER BY {order} LIMIT 1 OFFSET ? - 1)"
    claim = (
        f"INSERT INTO {held} (holder, id, until, priority, key, time, attempts, crc, payload)"
        f" SELECT ?, id, ?, priority, key, time, attempts + 1, crc, payload FROM {ready}"
    )
    create = [
        f"CREATE TABLE {ready} (id INTEGER PRIMARY KEY, {_COLUMNS})",
        # By holder, so that what a dead one held is found without an index of its own, nor what is finished.
        f"""CREATE TABLE {held} (
            holder INTEGER NOT NULL, id INTEGER NOT NULL, until REAL, {_COLUMNS}, PRIMARY KEY (holder, id)
        ) WITHOUT ROWID""",
        f"CREATE INDEX {due} ON {held} (until) WHERE until IS NOT NULL",
    ]
    if discipline.by_priority:
        create.append(f"CREATE INDEX order_{number} ON {ready} (priority, id)")
    if discipline.unique:
        create.append(f"CREATE TABLE {keys} (key BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID")
    return TableWords(
        create=tuple(create),
        load="SELECT last_id, absent, claimed, delayed, done, failed, dead, gone,"
        f" (SELECT max(id) FROM {ready}), (SELECT min(until) FROM {held} WHERE until IS NOT NULL)"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        append=f"INSERT INTO {ready} ({_ROW}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        heads=f"SELECT {_ROW} FROM {ready} ORDER BY {order} LIMIT ?",
        one=f"SELECT {_ROW} FROM {ready} WHERE id = ?",
        following=f"SELECT {_ROW} FROM {ready} WHERE id {beyond} ? ORDER BY id {direction} LIMIT 1",
        page=f"SELECT {_ROW} FROM {ready} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
        remove=f"DELETE FROM {ready} WHERE id = ?",
        remove_heads=f"DELETE FROM {ready} WHERE {heads}",
        remove_all=f"DELETE FROM {ready}",
        claim=f"{claim} WHERE id = ?",
        claim_heads=f"{claim} ORDER BY {order} LIMIT ?",
        held=f"SELECT {_ROW} FROM {held} {one_held}",
        is_held=f"SELECT 1 FROM {held} {one_held} AND attempts = ?",
        drop=f"DELETE FROM {held} {one_held} AND attempts = ?",
        of_holder=f"SELECT id, attempts FROM {held} WHERE holder = ?",
        postpone=f"UPDATE {held} SET holder = {_NOBODY}, until = ? {one_held}",
        hold=f"INSERT INTO {held} (holder, until, {_ROW}) VALUES ({_NOBODY}, ?, ?, ?, ?, ?, ?, ?, ?)",
        due=f"SELECT holder, id, attempts FROM {held} WHERE until <= ? ORDER BY until LIMIT ?",
        next_due=f"SELECT min(until) FROM {held} WHERE until IS NOT NULL",
        release=f"INSERT INTO {ready} ({_ROW}) SELECT {_ROW} FROM {held} {one_held}",
        finish={
            state: f"UPDATE {held} SET holder = {end}, until = NULL {one_held} AND attempts = ?"
            for state, end in _FINISHED.items()
        },
        trim={
            state: f"DELETE FROM {held} WHERE holder = {end} AND id <="
            f" (SELECT id FROM {held} WHERE holder = {end} ORDER BY id LIMIT 1 OFFSET ? - 1)"
            for state, end in _FINISHED.items()
        },
        replace_ready=f"UPDATE {ready} SET payload = ?, crc = ?, key = ? WHERE id = ?",
        replace_held=f"UPDATE {held} SET payload = ?, crc = ?, key = ? {one_held}",
        listing={
            State.READY: f"SELECT {_ROW} FROM {ready}",
            State.CLAIMED: f"SELECT {_ROW} FROM {held} WHERE holder > {_NOBODY}",
            State.DELAYED: f"SELECT {_ROW} FROM {held} WHERE holder = {_NOBODY}",
            **{state: f"SELECT {_ROW} FROM {held} WHERE holder = {end}" for state, end in _FINISHED.items()},
        },
        take_key=f"INSERT INTO {keys} (key, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
        find_key=f"SELECT id FROM {keys} WHERE key = ?",
        free_key=f"DELETE FROM {keys} WHERE key = ?",
        free_ready_keys=f"DELETE FROM {keys} WHERE key IN (SELECT key FROM {ready})",
    )


_PAIR = "serial, key, name, expires, crc, value"


def _mapping_words(number: int) -> MappingWords:
    pairs, expiring = f"pairs_{number}", f"expiring_{number}"
    last = f"(SELECT max(serial) FROM {pairs})"
    # Any number comes before any text: what damage made of a time is left to who reads that pair.
    next_end = f"SELECT min(expires) FROM {pairs} WHERE expires < ''"
    insert = f"INSERT INTO {pairs} ({_PAIR}) VALUES (?, ?, ?, ?, ?, ?)"
    page, scan = {}, {}
    for reverse, values in itertools.product((False, True), repeat=2):
        select = f"SELECT {_PAIR if values else _PAIR.replace('value', 'NULL')} FROM {pairs} WHERE"
        order = "DESC" if reverse else "ASC"
        page[reverse, values] = f"{select} serial > ? AND serial < ? ORDER BY serial {order} LIMIT ?"
        scan[reverse, values] = f"{select} key >= ? AND key < ? ORDER BY key {order} LIMIT ?"
    return MappingWords(
        create=(
            # By serial: what is added comes to the end, what is replaced stays where it is, and an iteration
            # goes straight through. The value last, as what is read without it may be read without its pages.
            f"""CREATE TABLE {pairs} (
                serial INTEGER PRIMARY KEY, key BLOB, name BLOB, expires REAL, crc INTEGER, value BLOB
            )""",
            f"CREATE UNIQUE INDEX keys_{number} ON {pairs} (key)",
            f"CREATE INDEX {expiring} ON {pairs} (expires) WHERE expires IS NOT NULL",
        ),
        load=f"SELECT last_id, absent, 0, 0, 0, 0, 0, 0, {last}, ({next_end})"
        f" FROM counters WHERE number = {number}",
        save="UPDATE counters SET last_id = ?, absent = ?, claimed = ?, delayed = ?, done = ?, failed = ?,"
        f" dead = ?, gone = ? WHERE number = {number}",
        value=f"SELECT value, crc, expires FROM {pairs} WHERE key = ?",
        one=f"SELECT {_PAIR} FROM {pairs} WHERE key = ?",
        end={
            last: f"SELECT {_PAIR} FROM {pairs} ORDER BY serial {'DESC' if last else 'ASC'} LIMIT 1"
            for last in (False, True)
        },
        insert=insert,
        add=insert + " ON CONFLICT (key) DO NOTHING",
        upsert=insert + " ON CONFLICT (key) DO UPDATE SET expires = excluded.expires, crc = excluded.crc,"
        " value = excluded.value",
        replace=f"UPDATE {pairs} SET crc = ?, value = ? WHERE key = ? AND expires IS NULL",
        set=f"UPDATE {pairs} SET expires = ?, crc = ?, value = ? WHERE key = ?",
        added=f"SELECT count(*), max(serial) FROM {pairs} WHERE serial > ?",
        remove=f"DELETE FROM {pairs} WHERE key = ?",
        remove_all=f"DELETE FROM {pairs}",
        purge=f"DELETE FROM {pairs} WHERE expires <= ?",
        next_end=next_end,
        living=f"SELECT max(last_id, coalesce({last}, 0)) - absent"
        f" - (SELECT count(*) FROM {pairs} WHERE expires <= ?) FROM counters WHERE number = {number}",
        page=page,
        scan=scan,
    )
