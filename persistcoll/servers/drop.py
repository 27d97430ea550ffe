"""Remove a collection from a server, with everything in it.

What registers it goes first, and its table after that, because MySQL commits before and after it drops a
table. A note of the number stays, so that no later collection gets it: a store that has the collection open
would otherwise use the tables of another one. If a table cannot be dropped now, the next call does it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from persistcoll.errors import LockedError, StorageError, StoreMissingError
from persistcoll.servers.driver import MissingTableError
from persistcoll.servers.holders import patience_with
from persistcoll.servers.joined import undone_alone
from persistcoll.servers.message_statements import tables_of
from persistcoll.servers.open import MESSAGES
from persistcoll.servers.schema import checked_name, creating, refuse_later, table_of, text_of
from persistcoll.servers.sessions import Server, Session

__all__ = ["drop_collection"]


def drop_collection(server: Server, name: str) -> None:
    """Remove the collection of this name, whatever its kind.

    :raise StoreMissingError: there is none.
    :raise LockedError: a living process has claims in it; or another transaction uses it for too long.
    :raise FormatVersionError: a later version made it.
    :raise StorageError: the server refuses; the message says if the collection is not registered any more.
    """
    checked_name(name)
    found = server.transact(lambda session: _unregister(session, server, name))
    left = server.repeat(lambda session: session.run(server.sql.select_dropped).rows)
    for number, _, kind in left:
        try:
            server.repeat(partial(_remove, server=server, number=number, kind=kind))
        except StorageError as error:
            raise type(error)(
                f"the table pc_{number} in {server.address} could not be dropped: {error}; its collection is"
                " not registered any more, and the next drop() tries again"
            ) from error
    if not found and name not in [text_of(dropped) for _, dropped, _ in left]:
        raise _missing(server, name)


def _missing(server: Server, name: str) -> StoreMissingError:
    return StoreMissingError(f"there is no {name!r} in {server.address}")


def _unregister(session: Session, server: Server, name: str) -> bool:
    """Register the collection no more, and note its number; return whether it was registered."""
    sql = server.sql
    with creating(session, server):
        try:
            rows = session.run(sql.find_collection, name=name).rows
        except MissingTableError as error:
            raise _missing(server, name) from error
        if not rows:
            return False
        ((number, kind, _, version, _),) = rows
        refuse_later(server, name, version)
        _refuse_living(session, server, name, number)
        lock = server.driver.dialect.lock_table(table_of(server, number))
        if lock is not None:
            # Until no transaction uses it, because what is registered no more cannot be used any more.
            with suppress(MissingTableError):
                undone_alone(session, lambda session: session.run(lock))
        # Another session may have done it in a transaction that this one did not see.
        if not session.run(sql.delete_collection, number=number).count:
            return False
        session.run(sql.insert_dropped, number=number, name=name, kind=text_of(kind))
        return True


def _refuse_living(session: Session, server: Server, name: str, number: int) -> None:
    patience = patience_with(session, server)
    rows = session.run(server.sql.select_living, number=number, patience=patience).rows
    if rows:
        who = ", ".join(sorted({text_of(info) for (info,) in rows}))
        raise LockedError(f"{name!r} in {server.address} has claims of processes that live: {who}")


def _remove(session: Session, server: Server, number: int, kind: str | bytes) -> None:
    sql = server.sql
    session.run(f"DROP TABLE IF EXISTS {table_of(server, number)}")
    session.run(sql.delete_holders, number=number)
    session.run(sql.delete_credits, number=number)
    if text_of(kind) == MESSAGES:
        for table in tables_of(server.driver.dialect, server.schema, number)[1:]:
            session.run(f"DELETE FROM {table} WHERE number = %(number)s", number=number)
    session.run(sql.finish_dropped, number=number)
    session.run(sql.delete_dropped, number=number)
