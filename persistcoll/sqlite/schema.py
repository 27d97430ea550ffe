"""Make and read what a database holds besides the collections' own tables: its id and a registry of names."""

from __future__ import annotations

import errno
import time
import uuid
from typing import NamedTuple

from persistcoll.disk.calls import boot_id
from persistcoll.engine.records import Registered
from persistcoll.errors import (
    CorruptionError,
    FormatVersionError,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.sqlite.clock import Clock, steady
from persistcoll.sqlite.driver import Execute

__all__ = [
    "APPLICATION_ID",
    "IS_REGISTERED",
    "MESSAGE_VERSION",
    "RECORD_VERSION",
    "TABLES",
    "VERSION",
    "Registration",
    "clock",
    "collections",
    "create",
    "dropped",
    "find",
    "next_holder",
    "no_collection",
    "register",
    "set_version",
    "store_id",
    "unregister",
]

APPLICATION_ID = 0x70636F6C
"""``pcol``: by this number ``file`` and this module recognize a database of persistcoll."""
VERSION = 1
"""Of the database, and of a dict in it."""
RECORD_VERSION = 2
"""Of a queue in it. Version 1 keeps no reasons."""
MESSAGE_VERSION = 2
"""Of a message queue in it. Version 1 has one checksum, without what a put says beside the body."""

_CREATE = (
    """CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1), id BLOB, created REAL, boot TEXT, clock REAL, holders INTEGER
    )""",
    """CREATE TABLE collections (
        number INTEGER PRIMARY KEY, name TEXT UNIQUE, kind TEXT, serializer TEXT, version INTEGER,
        created REAL
    )""",
    # Not a part of the registry, so that a change of the counters changes one small page.
    """CREATE TABLE counters (
        number INTEGER PRIMARY KEY, last_id INTEGER, absent INTEGER, claimed INTEGER, delayed INTEGER,
        done INTEGER, failed INTEGER, dead INTEGER, gone INTEGER
    )""",
    """CREATE TABLE holders (
        collection INTEGER, holder INTEGER, PRIMARY KEY (collection, holder)
    ) WITHOUT ROWID""",
)

TABLES = frozenset({"store", "collections", "counters", "holders"})
"""The tables that every database of persistcoll has."""

IS_REGISTERED = "SELECT 1 FROM collections WHERE number = ?"
"""Number -> a row if there is such a collection."""

_DAMAGED = "{!r} is damaged: its registry of names is"


class Registration(NamedTuple):
    """What an opener wants a collection to be."""

    name: str
    kind: str
    serializer: str
    version: int = VERSION
    """The newest version of its format; opening it makes one of an earlier version such a one."""


def create(execute: Execute) -> None:
    """Make an empty database one of persistcoll, within a transaction."""
    for text in _CREATE:
        execute(text)
    execute(
        "INSERT INTO store (one, id, created, boot, clock, holders) VALUES (1, ?, ?, NULL, NULL, 0)",
        (uuid.uuid4().bytes, time.time()),
    )
    execute(f"PRAGMA application_id={APPLICATION_ID}")
    execute(f"PRAGMA user_version={VERSION}")


def store_id(execute: Execute) -> bytes:
    """Return the id of the database."""
    (id,) = execute("SELECT id FROM store").fetchone()
    if type(id) is not bytes or len(id) != 16:
        raise ValueError("the id of the store")
    return id


def clock(execute: Execute, may_set: bool = True) -> Clock:
    """Return the store's clock, within a transaction.

    :param may_set: whether to store the clock's offset if the machine was booted since that was done.
    """
    present = boot_id()
    if present is None:
        return time.time
    known, offset = execute("SELECT boot, clock FROM store").fetchone()
    if known != present:
        offset = time.time() - steady()
        if may_set:
            execute("UPDATE store SET boot = ?, clock = ?", (present, offset))

    offset = float(offset)

    def now() -> float:
        return steady() + offset

    return now


def find(execute: Execute, wanted: Registration, path: str) -> tuple[int, int] | None:
    """Return number and version of the collection of that name, or ``None`` if there is none.

    :raise StoreKindError: there is one of another kind.
    :raise SerializerMismatchError: it was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: its registration is damaged.
    """
    row = execute(
        "SELECT number, kind, serializer, version FROM collections WHERE name = ?", (wanted.name,)
    ).fetchone()
    if row is None:
        # The index on the names may be damaged, which not even an INSERT would notice.
        names = "SELECT count(*) FROM collections NOT INDEXED WHERE name = ?"
        (count,) = execute(names, (wanted.name,)).fetchone()
        if count:
            raise CorruptionError(_DAMAGED.format(path), path)
        return None
    number, kind, serializer, version = row
    is_versioned = type(version) is int and version >= 1
    if type(number) is not int or not is_versioned or not _is_text(execute, number, kind, serializer):
        raise CorruptionError(_DAMAGED.format(path), path)
    if kind != wanted.kind:
        raise StoreKindError(
            f"{wanted.name!r} in {path!r} is a collection of the kind {kind!r}, not {wanted.kind!r};"
            " choose another name"
        )
    if version > wanted.version:
        raise FormatVersionError(
            f"{wanted.name!r} in {path!r} has format version {version}; this release reads version"
            f" {wanted.version}"
        )
    if serializer != wanted.serializer:
        raise SerializerMismatchError(
            f"{wanted.name!r} in {path!r} was written with the serializer {serializer!r} and opened with"
            f" {wanted.serializer!r}; open it with serializer={serializer!r}"
        )
    return number, version


def _is_text(execute: Execute, number: int, *values: object) -> bool:
    """Tell whether these values of a registration are stored as they were read.

    The connection puts a sign in the place of damaged characters, which a name may also have by itself.
    """
    if not any(isinstance(value, str) and "\ufffd" in value for value in values):
        return True
    stored = (
        "SELECT name, kind, serializer FROM collections WHERE number = ? AND ? IN (name, kind, serializer)"
    )
    return all(execute(stored, (number, value)).fetchone() is not None for value in values)


def collections(execute: Execute, path: str) -> list[Registered]:
    """All that are registered, in the order in which they were made.

    :raise CorruptionError: the registry is damaged.
    """
    text = "SELECT number, name, kind, serializer, version, created FROM collections ORDER BY number"
    found = [Registered(*row) for row in execute(text).fetchall()]
    for one in found:
        types = [type(value) for value in one]
        if types != [int, str, str, str, int, float] or not _is_text(
            execute, one.number, one.name, one.kind, one.serializer
        ):
            raise CorruptionError(_DAMAGED.format(path), path)
    return found


def register(
    execute: Execute, wanted: Registration, path: str, refusal: StorageError | None = None
) -> tuple[int, int | None]:
    """Return the number of the collection of that name, and the version that it had, within a transaction.

    The version is ``None`` if the collection is new; then the caller makes its tables. Raises as
    :func:`find`.

    :param refusal: raised if there is no such collection; ``None``: it is made.
    """
    found = find(execute, wanted, path)
    if found is not None:
        return found
    if refusal is not None:
        raise refusal
    # Above the numbers of the collections that were dropped, whose counters stay.
    (number,) = execute("SELECT coalesce(max(number), 0) + 1 FROM counters").fetchone()
    execute(
        "INSERT INTO collections (number, name, kind, serializer, version, created)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (number, wanted.name, wanted.kind, wanted.serializer, wanted.version, time.time()),
    )
    execute("INSERT INTO counters VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0)", (number,))
    return number, None


def unregister(execute: Execute, number: int) -> None:
    """Register the collection no more, within a transaction. Its counters keep its number from reuse."""
    execute("DELETE FROM collections WHERE number = ?", (number,))
    execute("DELETE FROM holders WHERE collection = ?", (number,))


def set_version(execute: Execute, number: int, version: int) -> None:
    """Register that the collection's tables are those of this version, within a transaction."""
    execute("UPDATE collections SET version = ? WHERE number = ?", (version, number))


def no_collection(name: str, path: str, purpose: str) -> StoreMissingError:
    """Return the error for a collection that does not exist."""
    return StoreMissingError(f"there is nothing to {purpose}: {path!r} holds no {name!r}", errno.ENOENT)


def dropped(path: str) -> StoreMissingError:
    """Return the error for a collection that was dropped while an object had it open."""
    return StoreMissingError(
        f"this collection was dropped from {path!r} while it was open; nothing was done", errno.ENOENT
    )


def next_holder(execute: Execute) -> int:
    """Return a number that no other holder of this database ever had, within a transaction."""
    execute("UPDATE store SET holders = holders + 1")
    (number,) = execute("SELECT holders FROM store").fetchone()
    return int(number)
