"""Open a collection on a server, which all stores of this process on one address share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from persistcoll.engine.message_events import Observer
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import ClaimPolicy, Discipline, Durability
from persistcoll.servers.address import MYSQL, Address
from persistcoll.servers.message_statements import message_statements
from persistcoll.servers.message_store import ServerMessageStore
from persistcoll.servers.pair_statements import create_pairs
from persistcoll.servers.pair_store import ServerPairStore
from persistcoll.servers.record_store import ServerRecordStore
from persistcoll.servers.schema import Collection, Wanted, checked_name, creation_script, open_collection
from persistcoll.servers.sessions import SERVERS, Server
from persistcoll.servers.settings import warn_of_settings
from persistcoll.servers.statements import record_statements

__all__ = [
    "DICT",
    "MESSAGES",
    "PATIENCE",
    "TIMEOUT",
    "open_message_store",
    "open_pair_store",
    "open_record_store",
    "server_at",
    "store_script",
    "wanted_messages",
    "wanted_pairs",
    "wanted_records",
]

S = TypeVar("S")

DICT = "dict"
"""The kind of a dict in the registry."""
MESSAGES = "messages"
"""The kind of a message queue in the registry."""
PATIENCE = 30.0
"""The seconds without a heartbeat after which a process is taken for dead."""
TIMEOUT = 10.0
"""The seconds to wait for a connection, and for a lock of another transaction."""


def open_record_store(
    address: Address,
    *,
    name: str,
    kind: str,
    discipline: Discipline,
    retry: ClaimPolicy,
    serializer: str,
    durability: Durability = "power",
    schema: str | None = None,
    create: bool = True,
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
) -> ServerRecordStore:
    """Open the queue of this name, and make it first if it is missing.

    :param kind: what the registry calls it. A queue can be opened only as the kind that it was made as.
    :param durability: MySQL has one for the whole server, so there it changes nothing.
    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :param create: otherwise a missing queue is an error, whose message has the statements that make it.
    :param timeout: seconds to wait for a connection, and for a lock of another transaction.
    :param patience: the seconds without a heartbeat after which a process is taken for dead.
    :raise StoreMissingError: it is missing, and is not to be made.
    :raise StoreKindError: the name is another kind's.
    :raise SerializerMismatchError: it was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise BackendUnavailableError: the server cannot be reached.
    :raise StorageError: the server refuses, or is too old.
    :raise ImportError: the driver is not installed; the message names the extra that installs it.
    """
    store = _open(
        address,
        schema,
        wanted_records(name, kind, discipline, serializer),
        lambda server, collection: ServerRecordStore(server, collection, discipline, retry),
        create=create,
        timeout=timeout,
        durability=durability,
        patience=patience,
        lease=retry.lease,
    )
    if retry.auto_reclaim:
        try:
            store.reclaim()
        except BaseException:
            store.close()
            raise
    return store


def open_pair_store(
    address: Address,
    *,
    name: str,
    serializer: str,
    durability: Durability = "power",
    schema: str | None = None,
    create: bool = True,
    timeout: float = TIMEOUT,
    format_key: Callable[[bytes], str] = repr,
    clock: Callable[[], float] = time.monotonic,
) -> ServerPairStore:
    """Open the dict of this name, and make it first if it is missing.

    Parameters and exceptions are those of :func:`open_record_store`.

    :param format_key: formats a key for messages.
    :param clock: returns the time in seconds, by which pairs expire that have been read.
    """
    return _open(
        address,
        schema,
        wanted_pairs(name, serializer),
        lambda server, collection: ServerPairStore(server, collection, format_key, clock),
        create=create,
        timeout=timeout,
        durability=durability,
    )


def open_message_store(
    address: Address,
    *,
    name: str,
    policy: MessagePolicy,
    serializer: str,
    durability: Durability = "power",
    schema: str | None = None,
    create: bool = True,
    timeout: float = TIMEOUT,
    observer: Observer | None = None,
) -> ServerMessageStore:
    """Open the message queue of this name, and make it first if it is missing.

    Parameters and exceptions are those of :func:`open_record_store`.

    :param policy: how it treats messages that do not say it themselves. It has a lease.
    :param observer: as that of ``MessageStore.observe``.
    :raise ValueError: the policy has no lease.
    """
    store = _open(
        address,
        schema,
        wanted_messages(name, serializer),
        lambda server, collection: ServerMessageStore(server, collection, policy),
        create=create,
        timeout=timeout,
        durability=durability,
        lease=policy.lease,
    )
    store.observe(observer)
    return store


def wanted_messages(name: str, serializer: str) -> Wanted:
    """Return the message queue that :func:`open_message_store` opens with these arguments."""
    return Wanted(
        checked_name(name),
        MESSAGES,
        serializer,
        lambda dialect, schema, number: message_statements(dialect, schema, number).create,
    )


def wanted_pairs(name: str, serializer: str) -> Wanted:
    """Return the dict that :func:`open_pair_store` opens with these arguments."""
    return Wanted(checked_name(name), DICT, serializer, create_pairs)


def wanted_records(name: str, kind: str, discipline: Discipline, serializer: str) -> Wanted:
    """Return the queue that :func:`open_record_store` opens with these arguments."""
    return Wanted(
        checked_name(name),
        kind,
        serializer,
        lambda dialect, schema, number: record_statements(dialect, schema, number, discipline).create,
    )


def _open(
    address: Address,
    schema: str | None,
    wanted: Wanted,
    make: Callable[[Server, Collection], S],
    *,
    create: bool,
    timeout: float,
    durability: Durability,
    patience: float = PATIENCE,
    lease: float | None = None,
) -> S:
    """Return the store that ``make`` makes of the collection; without one the server is released.

    :param lease: that of the collection, if it has one.
    """
    _refuse_schema(address, schema)
    server = SERVERS.acquire(address, schema, timeout, patience, durability == "power")
    try:
        collection = open_collection(server, wanted, create)
        warn_of_settings(server, lease)
        return make(server, collection)
    except BaseException:
        SERVERS.release(server)
        raise


def store_script(address: Address, schema: str | None, wanted: Wanted) -> str:
    """Return the statements with which a user makes this collection.

    It raises what opening it raises, except that nothing is missing.
    """
    with server_at(address, schema) as server:
        return creation_script(server, wanted)


@contextmanager
def server_at(address: Address, schema: str | None) -> Iterator[Server]:
    """Return a context manager that gives the server at this address, with no collection open.

    :raise ValueError: the server has no schemas, and one is named.
    """
    _refuse_schema(address, schema)
    server = SERVERS.acquire(address, schema, TIMEOUT, PATIENCE, True)
    try:
        yield server
    finally:
        SERVERS.release(server)


def _refuse_schema(address: Address, schema: str | None) -> None:
    if schema is not None and address.kind == MYSQL:
        raise ValueError("a database of MySQL has no schemas: leave 'schema' out")
