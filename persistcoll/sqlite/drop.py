"""Remove a collection from a database, with everything in it, in one transaction.

Its row of the counters stays, so that no later collection gets its number: a store that has the collection
open, in whichever process, would otherwise use the tables of another one.
"""

from __future__ import annotations

import re

from persistcoll.errors import FormatVersionError, LockedError
from persistcoll.sqlite import schema
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.holders import is_dead
from persistcoll.sqlite.holding import HOLDERS
from persistcoll.sqlite.inspect import Statements, statements_of
from persistcoll.sqlite.message_statements import MessageStatements
from persistcoll.sqlite.open import DatabaseLocation
from persistcoll.sqlite.registry import DATABASES
from persistcoll.sqlite.statements import RecordStatements

__all__ = ["drop_collection"]

_TABLE = re.compile(r"CREATE TABLE (\w+)")


def drop_collection(path: str, name: str) -> None:
    """Remove the collection of this name, whatever its kind.

    :param path: of the database.
    :raise StoreMissingError: there is no database, or no such collection in it.
    :raise LockedError: a living process has claims in it; or another transaction is open for too long.
    :raise FormatVersionError: a later version made it.
    :raise StorageError: the database cannot be opened or written.
    """
    location = DatabaseLocation(path, create=False)
    users: list[Database] = []
    try:
        database = DATABASES.acquire(location.source, users)
        database.write(lambda execute: _drop(execute, database, name), True, timeout=location.timeout)
    finally:
        DATABASES.release(users)


def _drop(execute: Execute, database: Database, name: str) -> None:
    path = database.path
    found = {one.name: one for one in schema.collections(execute, path)}.get(name)
    if found is None:
        raise schema.no_collection(name, path, "drop")
    sql = statements_of(found)
    if sql is None:
        raise FormatVersionError(
            f"{name!r} in {path!r} is of the kind {found.kind!r}, version {found.version}, which this release"
            " does not know"
        )
    for (holder,) in execute(HOLDERS, (found.number,)).fetchall():
        if not is_dead(database.disk, path, holder) and _has_claims(execute, sql, holder):
            raise LockedError(
                f"{name!r} in {path!r} has claims of an object that is open, here or in another process;"
                " settle them or close it; nothing was done"
            )
    # First, because a DROP TABLE counts as no change, and the database commits after an error of a signal
    # handler that comes before the first change.
    schema.unregister(execute, found.number)
    for text in sql.create:
        for table in _TABLE.findall(text):
            execute(f"DROP TABLE {table}")
    counters = database.counters_by_number.get(found.number)
    if counters is not None:  # what was put in the same transaction is not counted any more
        database._dirty.pop(counters, None)
    # The objects of this process on it must not use what they remember of it.
    database.epoch += 1


def _has_claims(execute: Execute, sql: Statements, holder: int) -> bool:
    if isinstance(sql, MessageStatements):
        return execute(sql.select_of_holder, (holder, 1)).fetchone() is not None
    if isinstance(sql, RecordStatements):
        return execute(sql.select_of_holder, (holder,)).fetchone() is not None
    return False
