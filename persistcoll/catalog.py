"""What lies at a path or in a database on a server: its collections, and of each the kind and the counts.

Nothing is opened for a look. It makes, changes and locks nothing, and asks for no serializer: it works for a
user who may only read, on a file system that is mounted read-only, and beside whatever uses the collections.
Only ``drop`` changes something.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from persistcoll.arguments import names_server
from persistcoll.disk.path_checks import absolute, checked_path, existing
from persistcoll.engine.records import CollectionInfo
from persistcoll.errors import StoreKindError, StoreMissingError
from persistcoll.journal import inspect as files
from persistcoll.sqlite import inspect as databases
from persistcoll.sqlite.database_file import MEMORY
from persistcoll.sqlite.drop import drop_collection as drop_from_database
from persistcoll.sqlite.open import DEFAULT_NAME

__all__ = ["collections", "drop"]


def collections(
    target: str | bytes | os.PathLike[Any], *, schema: str | None = None
) -> dict[str | None, CollectionInfo]:
    """Say what lies at a path or in a database on a server, by name, and change nothing there.

    >>> from persistcoll import PDict, SQLiteQueue, collections
    >>> with SQLiteQueue("office", name="mails") as mails, PDict("office", name="ages") as ages:
    ...     mails.put_many(["to alice", "to bob"])
    ...     ages["ann"] = 41
    [1, 2]
    >>> for name, found in collections("office").items():
    ...     print(name, found.kind, found.serializer, found.ready)
    mails fifo pickle 2
    ages dict pickle 1

    No serializer is needed, and nothing that is stored is decoded. No file and no table is made, written or
    locked against others. Any thread and any process may call it at any time. The counts of one collection
    are of one moment.

    Cost: a look into the registry and 1 statement for each collection of a database; of a queue in files at
    most 1 chunk is read. It does not grow with what is stored, except on a server, which counts rows.

    :param target: the directory of a queue in files, a directory with a database ``data.db`` in it, or a
        file, which is taken for a database whatever its name. Where a directory holds both, both are told.
        Or the URL of a database on a server, as :class:`PostgresQueue` and :class:`MySQLQueue` take it;
        ``PERSISTCOLL_PASSWORD`` is the password of a URL without one.
    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :return: in the order in which they were made. The queue in files has no name: its key is ``None``.
    :raise StoreMissingError: nothing is there: no such path, an empty directory, an empty file, a database on
        a server in which no collection was ever made.
    :raise StoreKindError: something else is there; the message says what, where that can be told.
    :raise FormatVersionError: a later version made what is there. A single collection of a later version in a
        database that this one reads is told, without its counts.
    :raise CorruptionError: what says what is there is damaged or lost. Damage elsewhere costs only the
        counts.
    :raise LockedError: another program has locked the database against readers.
    :raise StorageError: it cannot be read; or a log without its index lies beside the database, which only
        opening can read; or the server refuses the connection or the statement, or is too old.
    :raise BackendUnavailableError: the server cannot be reached within 10 seconds.
    :raise ImportError: the driver for the server is not installed.
    :raise ValueError: ``target`` is ``":memory:"``, is empty, or cannot be a path, or is a URL that names no
        server of a known kind; or ``schema`` is given, and the target has none.
    """
    given = checked_path("target", target)
    if names_server(given):
        found = _on_server(given, schema)
    else:
        _refuse_schema(schema)
        found = _at_path(given)
    return {one.name: one for one in found}


def drop(target: str | bytes | os.PathLike[Any], name: str, *, schema: str | None = None) -> None:
    """Remove a collection from a database, with everything in it. It cannot be undone.

    >>> from persistcoll import SQLiteQueue, collections, drop
    >>> with SQLiteQueue("attic", name="old jobs") as queue:
    ...     queue.put("never done")
    1
    >>> drop("attic", "old jobs")
    >>> collections("attic")
    {}

    On a server it needs the right to drop tables. Any thread and any process may call it at any time. An
    object that has the collection open raises :exc:`StoreMissingError` from its next call on that reads or
    writes what is stored, and never uses the tables of another collection, not even if one of the same
    name is made.

    Cost: in a file one transaction that grows with the pages of the collection, and one sync; the file does
    not shrink until ``shrink_disk_usage()``. On a server a few statements, and for a message queue the
    removal of the rows of its keys, groups and topics.

    :param target: a database file, the directory of a database ``data.db``, or the URL of a database on a
        server, as for :func:`collections`. A queue in files and a log go with their directories.
    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :raise StoreMissingError: there is no collection of this name.
    :raise LockedError: a process that lives has claimed items or messages of it; or another transaction is
        open for longer than 10 seconds. In a file and on PostgreSQL nothing has changed then. On MySQL the
        second case comes when the collection is not registered any more, which the message says, and the
        next call of this function removes the rest.
    :raise FormatVersionError: a later version made it.
    :raise StorageError: the file cannot be written; or the server refuses the connection or a statement, or
        is too old.
    :raise BackendUnavailableError: the server cannot be reached within 10 seconds.
    :raise ImportError: the driver for the server is not installed.
    :raise TypeError: ``target`` is no path, or ``name`` is no str.
    :raise ValueError: ``name`` is none of a collection; ``target`` is ``":memory:"``; or ``schema`` is given,
        and the target has none.
    """
    given = checked_path("target", target)
    if not isinstance(name, str):
        raise TypeError(f"'name' must be a str, not {type(name).__name__}")
    if not names_server(given):
        _refuse_schema(schema)
        path = _database_at(given)
        drop_from_database(path, name)
        return
    # Imported here, because most programs have no server.
    from persistcoll.servers.address import address_of
    from persistcoll.servers.drop import drop_collection
    from persistcoll.servers.open import server_at

    with server_at(address_of(None, given), schema) as server:
        drop_collection(server, name)


def _on_server(url: str, schema: str | None) -> list[CollectionInfo]:
    # Imported here, because most programs have no server.
    from persistcoll.servers import inspect as servers
    from persistcoll.servers.address import address_of

    return servers.inspect(address_of(None, url), schema)


def _refuse_schema(schema: str | None) -> None:
    if schema is not None:
        raise ValueError("a path has no schemas: leave 'schema' out")


def _database_at(given: str) -> str:
    """Return the path of the database that is there, or in that directory."""
    if given == MEMORY:
        raise ValueError(f"what is in {MEMORY!r} goes with its object")
    path = absolute(given)
    if not stat.S_ISDIR(existing(path, "drop from").st_mode):
        return path
    database = os.path.join(path, DEFAULT_NAME)
    if not os.path.lexists(database):
        raise StoreMissingError(
            f"there is no database {DEFAULT_NAME!r} in {path!r}; a queue in files and a log go with their"
            " directory",
            errno.ENOENT,
        )
    return database


def _at_path(given: str) -> list[CollectionInfo]:
    if given == MEMORY:
        raise ValueError(
            f"there is nothing to look at in {MEMORY!r}: only its own object knows what is in it"
        )
    path = absolute(given)
    if stat.S_ISDIR(existing(path, "look at").st_mode):
        return _in_directory(path)
    return databases.inspect(absolute(path, os.path.realpath))


def _in_directory(path: str) -> list[CollectionInfo]:
    database = absolute(os.path.join(path, DEFAULT_NAME), os.path.realpath)
    has_database = os.path.lexists(database)
    found: list[CollectionInfo] = []
    errors: list[StoreKindError | StoreMissingError] = []
    try:
        found.append(files.inspect(path))
    except (StoreKindError, StoreMissingError) as error:
        errors.append(error)
    try:
        found += databases.inspect(database)
    except (StoreKindError, StoreMissingError) as error:
        errors.append(error)
    if len(errors) == 2:
        raise errors[has_database]  # where that is what lies there, it knows more
    return found
