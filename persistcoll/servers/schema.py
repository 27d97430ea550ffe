"""Which collections a database has, and how one is made, safely also when many programs begin at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

from persistcoll.engine.records import Registered
from persistcoll.errors import (
    DuplicateError,
    FormatVersionError,
    LockedError,
    SerializerMismatchError,
    StorageError,
    StoreKindError,
    StoreMissingError,
)
from persistcoll.servers.dialect import Dialect
from persistcoll.servers.driver import MissingTableError, TryAgainError
from persistcoll.servers.sessions import Server, Session

__all__ = [
    "VERSION",
    "Collection",
    "Wanted",
    "checked_name",
    "creating",
    "creation_script",
    "open_collection",
    "refuse_later",
    "registered",
    "table_of",
    "text_of",
]

T = TypeVar("T")

VERSION = 1
"""Of the format. A later version's collection is refused."""
_LONGEST_NAME = 255  # bytes
_CREATION_TIMEOUT = 60.0  # seconds


class Wanted(NamedTuple):
    """A collection as its opener wants it."""

    name: str
    kind: str
    serializer: str
    tables: Callable[[Dialect, str | None, int], Sequence[str]]
    """Given a dialect, a schema and a number, returns the statements that make the tables."""


class Collection(NamedTuple):
    """A collection that is open."""

    number: int
    store_id: bytes


def checked_name(name: object) -> str:
    """Return the name of a collection.

    :raise TypeError: it is no str.
    :raise ValueError: it is too long, or no UTF-8, or PostgreSQL cannot store it.
    """
    if not isinstance(name, str):
        raise TypeError(f"'name' must be a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'name' cannot be stored: {name!r} has a surrogate without its pair") from None
    if len(encoded) > _LONGEST_NAME:
        raise ValueError(f"'name' has {len(encoded)} bytes of UTF-8, and a server takes {_LONGEST_NAME}")
    if "\0" in name:
        raise ValueError("'name' cannot be stored: it has a NUL")
    return name


def registered(server: Server) -> list[Registered]:
    """Return what is registered, in the order of creation.

    :raise StoreMissingError: no collection has ever been made there.
    """
    try:
        rows = server.repeat(lambda session: session.run(server.sql.select_collections).rows)
    except MissingTableError as error:
        schema = "" if server.schema is None else f" in the schema {server.schema!r}"
        raise StoreMissingError(f"there are no collections in {server.address}{schema}") from error
    return [
        Registered(number, text_of(name), text_of(kind), text_of(serializer), version, created)
        for number, name, kind, serializer, version, created in rows
    ]


def open_collection(server: Server, wanted: Wanted, create: bool) -> Collection:
    """Return the collection, and make it first if it is missing.

    :param create: otherwise a missing one is an error, whose message has the statements that make it.
    :raise StoreMissingError: it is missing, and is not to be made.
    :raise StoreKindError: the name is another kind's.
    :raise SerializerMismatchError: it was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise LockedError: other programs create for too long.
    :raise StorageError: the server does not let this user make it; the message has the statements.
    """
    found = server.repeat(lambda session: _find(session, server, wanted))
    if found is not None:
        return found
    if not create:
        raise StoreMissingError(
            f"there is no {wanted.name!r} in {server.address}, and create=False forbids to make it; these"
            f" statements do:\n{creation_script(server, wanted)}"
        )
    try:
        made = _create(server, wanted)
        if not _skips_locked(server, made.number):
            _undo_creation(server, made.number)
            raise StorageError("it accepts SKIP LOCKED, which every collection needs, and does not do it")
        return made
    except (StoreKindError, SerializerMismatchError, FormatVersionError, LockedError):
        raise
    except StorageError as error:
        raise type(error)(
            f"{wanted.name!r} cannot be made in {server.address}: {error}; a user who may run these"
            f" statements can make it:\n{creation_script(server, wanted)}"
        ) from error


def _find(session: Session, server: Server, wanted: Wanted) -> Collection | None:
    try:
        rows = session.run(server.sql.find_collection, name=wanted.name).rows
    except MissingTableError:
        return None
    if not rows:
        return None
    ((number, kind, serializer, version, store),) = rows
    kind, serializer = text_of(kind), text_of(serializer)
    refuse_later(server, wanted.name, version)
    if kind != wanted.kind:
        raise StoreKindError(
            f"{wanted.name!r} in {server.address} is a collection of the kind {kind!r}, not {wanted.kind!r}"
        )
    if serializer != wanted.serializer:
        raise SerializerMismatchError(
            f"{wanted.name!r} in {server.address} was made with the serializer {serializer!r}, not"
            f" {wanted.serializer!r}"
        )
    return Collection(number, bytes(store))


def refuse_later(server: Server, name: str, version: int) -> None:
    """Raise ``FormatVersionError`` if a later version has made the collection of this name."""
    if version > VERSION:
        raise FormatVersionError(
            f"{name!r} in {server.address} has format {version}, and this version knows {VERSION}"
        )


@contextmanager
def creating(session: Session, server: Server) -> Iterator[None]:
    """Return a context manager in which no other session makes or drops a collection of the database.

    :raise LockedError: others do so for too long.
    """
    # One lock for all collections of the database, because the shared tables are made under it, too.
    sql, lock = server.sql, f"persistcoll {server.address.database} {server.schema}"
    session.holds_lock = sql.unlock_creation is not None
    (got,) = session.run(sql.lock_creation, name=lock, seconds=_CREATION_TIMEOUT).rows[0]
    if got != 1:
        session.holds_lock = False
        raise LockedError(f"other programs make collections in {server.address} for too long")
    try:
        yield
    except BaseException as error:
        # After an interrupt the answer of a statement may still come. A session that holds the lock is closed
        # at the end of the transaction, which frees the lock, too.
        if isinstance(error, Exception):
            _unlock(session, server, lock)
        raise
    _unlock(session, server, lock)


def _unlock(session: Session, server: Server, lock: str) -> None:
    if server.sql.unlock_creation is not None:
        session.run(server.sql.unlock_creation, name=lock)
        session.holds_lock = False


def _create(server: Server, wanted: Wanted) -> Collection:
    def make(session: Session) -> Collection:
        sql = server.sql
        with creating(session, server):
            _make_tables(session, sql.create)
            found = _find(session, server, wanted)
            if found is not None:
                return found
            number = _new_number(session, server)
            _make_tables(session, wanted.tables(server.driver.dialect, server.schema, number))
            store = secrets.token_bytes(16)
            try:
                # The last statement: where a server commits after each, what is registered is whole.
                session.run(
                    sql.insert_collection,
                    number=number,
                    name=wanted.name,
                    kind=wanted.kind,
                    serializer=wanted.serializer,
                    version=VERSION,
                    store=store,
                )
            except DuplicateError as error:
                # PostgreSQL has rolled the table back, and runs nothing more in this transaction.
                with suppress(StorageError):
                    session.run(f"DROP TABLE {table_of(server, number)}")
                raise TryAgainError(f"others have made {wanted.name!r} meanwhile") from error
            return Collection(number, store)

    return server.transact(make, once=False)


def _make_tables(session: Session, texts: Sequence[str]) -> None:
    """Run these statements.

    :raise TryAgainError: another client runs the statements of :func:`creation_script`, and was faster.
    """
    try:
        for text in texts:
            session.run(text)
    except DuplicateError as error:  # in the catalog of PostgreSQL
        raise TryAgainError("others have made tables meanwhile") from error


def _new_number(session: Session, server: Server) -> int:
    """Return a number that no collection has, and that no other node of a cluster gives to one."""
    number = _free_number(session, server)
    if session.connection.is_cluster:
        # The lock of creation is that of one node. A number that is noted as used is nobody else's.
        try:
            session.run(server.sql.insert_dropped, number=number, name="", kind="")
        except DuplicateError as error:
            raise TryAgainError(f"another node has taken the number {number} meanwhile") from error
    return number


def _free_number(session: Session, server: Server) -> int:
    """Return a number that no collection has, nor a table that is not registered.

    Such a table may be one of :func:`creation_script`, which registers it later. That is why nobody drops it,
    though it may also be left of a creation that was cut short.
    """
    ((number,),) = session.run(server.sql.next_number).rows
    number = int(number)
    while session.run(server.driver.dialect.exists(table_of(server, number))).rows[0][0]:
        number += 1
    return number


def _skips_locked(server: Server, number: int) -> bool:
    """Tell whether ``SKIP LOCKED`` leaves out what another transaction has locked, and does not wait.

    There are servers that accept these words without a meaning. So it is tried out, but only on a collection
    that is new: on another one the lock would stand in the way of its users.
    """
    sql = server.sql

    def find(session: Session) -> bool:
        return bool(session.run(sql.lock_free_collection, number=number).rows)

    def find_locked(session: Session) -> bool:
        session.run(sql.lock_collection, number=number)
        return server.transact(find, once=False)

    if server.is_cluster:  # Its nodes lock nothing for each other, and the two sessions may be of two nodes.
        return True
    try:
        return not server.transact(find_locked, once=False)
    except LockedError:
        return False


def _undo_creation(server: Server, number: int) -> None:
    def undo(session: Session) -> None:
        session.run(server.sql.delete_collection, number=number)
        session.run(f"DROP TABLE IF EXISTS {table_of(server, number)}")

    server.transact(undo, once=False)


def table_of(server: Server, number: int) -> str:
    """Return the name of the collection's own table."""
    return server.driver.dialect.table(server.schema, f"pc_{number}")


def creation_script(server: Server, wanted: Wanted) -> str:
    """Return the statements that make the collection, as a script for the server's own client."""
    sql = server.sql

    def next_number(session: Session) -> int:
        try:
            return _free_number(session, server)
        except MissingTableError:
            return 1

    number = server.repeat(next_number)
    dialect = server.driver.dialect
    values = {
        "number": str(number),
        "version": str(VERSION),
        "store": dialect.hexadecimal(secrets.token_bytes(16)),
        **{name: dialect.literal(getattr(wanted, name)) for name in ("name", "kind", "serializer")},
    }
    texts = (*sql.create, *wanted.tables(dialect, server.schema, number), sql.insert_collection)
    statements = [text % values for text in texts]
    return "".join(f"{text};\n" for text in statements)


def text_of(value: str | bytes) -> str:
    """Return the text of a column, which MySQL gives as bytes."""
    return value.decode() if isinstance(value, bytes) else value
