"""The queues on database servers, whatever the server: their options, and how their stores are opened."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

from persistcoll.arguments import checked_number_of, checked_seconds
from persistcoll.container import ServerContainer, T
from persistcoll.engine.contracts import Claim
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Backoff, Discipline, Durability
from persistcoll.errors import StorageError
from persistcoll.options import ServerAckQueueOptions, ServerQueueOptions
from persistcoll.queues.ack import AckQueue
from persistcoll.queues.sql import PlainGets, warn_of_auto_commit
from persistcoll.serializers import resolve
from persistcoll.serializers.registry import sealed
from persistcoll.servers.address import Address, address_of
from persistcoll.servers.open import PATIENCE, TIMEOUT, open_record_store, store_script, wanted_records
from persistcoll.servers.record_store import ServerRecordStore
from persistcoll.servers.schema import Wanted
from persistcoll.servers.sessions import driver_of
from persistcoll.servers.transactions import OpenTransaction

__all__ = ["WHERE", "PlainServerQueue", "ServerAckQueue", "ServerQueue", "address_in", "ddl", "open_store"]

R = TypeVar("R")

WHERE = ("url", "host", "port", "user", "password", "passwd", "dbname", "db_name")
"""The parameters that name a server."""


def open_store(options: ServerQueueOptions, kind: str, discipline: Discipline) -> ServerRecordStore:
    """Return the store of a queue on a database server, without anything that waits.

    It raises what the queues raise.

    :param kind: what the database calls it; a queue is opened only as the kind that it was made as.
    """
    serializer = resolve(options.serializer)
    store = open_record_store(
        options.address,
        name=options.name,
        kind=kind,
        discipline=discipline,
        retry=options.claim_policy,
        serializer=serializer.name,
        durability=options.durability,
        schema=options.schema,
        create=options.create,
        timeout=options.timeout,
        patience=options.patience,
    )
    return sealed(store, serializer)


class ServerQueue(ServerContainer):
    """What :func:`ddl` needs of every queue on a server.

    :cvar _server: the kind of the server.
    """

    _server: ClassVar[str]
    _kind: str
    _discipline: Discipline

    @classmethod
    def _wanted(cls, name: str, serializer: str) -> Wanted:
        return wanted_records(name, cls._kind, cls._discipline, serializer)

    def _open_at(self, kind: type[ServerQueueOptions], arguments: dict[str, Any]) -> None:
        """Open the queue with options of this kind.

        :param arguments: the ``locals()`` of the constructor.
        """
        self._open(kind.of({**arguments, "address": address_in(self._server, arguments)}))

    def _open_store(self, options: ServerQueueOptions) -> ServerRecordStore:
        store = open_store(options, self._kind, self._discipline)
        return cast(ServerRecordStore, self._joined(store, options.connection))

    def _attach(self, store: Any) -> None:
        self._joins = self._options.connection is not None
        super()._attach(store)


class PlainServerQueue(ServerQueue, PlainGets[T]):
    """How the queues are made whose items ``get`` or ``task_done`` acks."""

    _store: ServerRecordStore

    def __init__(
        self,
        name: str = "default",
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        user: str | None = None,
        password: str | None = None,
        passwd: str | None = None,
        dbname: str | None = None,
        db_name: str | None = None,
        connection: Any = None,
        schema: str | None = None,
        create: bool = True,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        auto_commit: bool = True,
        serializer: Any = pickle,
        maxsize: int = 0,
        durability: Durability = "power",
    ) -> None:
        if connection is not None and not auto_commit:
            raise ValueError("'auto_commit' must be True with 'connection': the caller's commit is the ack")
        self._open_at(ServerQueueOptions, locals())

    def get_many(
        self,
        n: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        linger: float = 0.0,
        connection: Any = None,
    ) -> list[T]:
        """Return 1 to ``n`` items, in order. Only the first one is waited for, unless ``linger`` says more.

        Cost: that of one :meth:`get`.

        :param linger: seconds to wait, when the first item is ready, until ``n`` of them are. All are claimed
            at the end of this wait; meanwhile another consumer may get them.
        :param connection: as for :meth:`get`.
        :raise ValueError: ``n`` is below 1, or a time is negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        n, linger = checked_number_of("n", n), checked_seconds("linger", linger)
        blocking, block = self._at(connection, block)
        return blocking.get_many(n, self._decode, block, timeout, linger if block else 0.0)

    def receive(
        self, block: bool = True, timeout: float | None = None, *, connection: Any = None
    ) -> AbstractContextManager[T]:
        """Return a context manager that gets the next item in a transaction of its own.

        The end of the block commits the transaction, and only then the item is gone. If the block raises, or
        if the process dies in it, the server rolls the transaction back: the item is ready again at once.
        Until the end no other consumer gets the item, and counts take it for ready. The block should take
        seconds and not minutes, because the server cannot clean up its tables while a transaction is open.
        ``task_done()`` must not be called for the item. The errors are those of :meth:`get`.

        Cost: that of one :meth:`get`, and a connection for the time of the block.

        :param connection: a connection with a transaction of the caller, of which the block becomes a part;
            then nothing is waited for. If the block raises, also the rows are as before that it has changed
            on this connection. The item is gone when the caller commits.
        :raise BackendUnavailableError: the end of the block raises it if the connection was lost; the item is
            ready again.
        """
        return self._first_of(self._received(1, block, timeout, 0.0, connection))

    def receive_many(
        self,
        n: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        linger: float = 0.0,
        connection: Any = None,
    ) -> AbstractContextManager[list[T]]:
        """Return a context manager that gets 1 to ``n`` items, as :meth:`receive` gets one.

        Cost: that of one :meth:`receive`.

        It raises the errors that :meth:`get_many` raises.
        """
        n, linger = checked_number_of("n", n), checked_seconds("linger", linger)
        return self._received(n, block, timeout, linger, connection)

    @contextmanager
    def _first_of(self, received: AbstractContextManager[list[T]]) -> Iterator[T]:
        with received as items:
            yield items[0]

    @contextmanager
    def _received(
        self, n: int, block: bool, timeout: float | None, linger: float, connection: Any
    ) -> Iterator[list[T]]:
        """Give items that are got in a transaction; the end of the block commits one of its own."""
        if connection is None:
            connection = self._options.connection
        if connection is not None:
            blocking, _ = self._at(connection, False)
            store = cast(ServerRecordStore, blocking.core.store)
            with store.undone_if_it_raises():
                yield blocking.get_many(n, self._decode, False, timeout)
            return
        begun: list[OpenTransaction] = []
        try:
            begin = partial(self._begin_pop, n, begun)
            pairs = self._blocking.begin_pop_many(n, begin, block, timeout, linger)
            yield [item for _, item in pairs]
            begun[0].end()
        except BaseException as error:
            for transaction in begun:
                transaction.roll_back(error)
                self._store.pop_undone()
                self._core.pop_ended(False)
            raise
        self._core.pop_ended(True)

    def _begin_pop(self, n: int, begun: list[OpenTransaction], deadline: float | None) -> list[tuple[int, T]]:
        return self._store.begin_pop(n, self._decode, begun, deadline)


class ServerAckQueue(ServerQueue, AckQueue[T]):
    """How the queues are made whose items are settled one by one."""

    _kind = "fifo ack"
    _store: ServerRecordStore

    def __init__(
        self,
        name: str = "default",
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        user: str | None = None,
        password: str | None = None,
        passwd: str | None = None,
        dbname: str | None = None,
        db_name: str | None = None,
        connection: Any = None,
        schema: str | None = None,
        create: bool = True,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        auto_resume: bool = True,
        auto_commit: bool = True,
        lease: float | None = None,
        max_attempts: int | None = None,
        backoff: float | Backoff | None = None,
        keep_acked: int | None = 1000,
        strict: bool = False,
        serializer: Any = pickle,
        maxsize: int = 0,
        durability: Durability = "power",
    ) -> None:
        warn_of_auto_commit(auto_commit)
        self._open_at(ServerAckQueueOptions, locals())

    def _settle(
        self, wanted: Sequence[tuple[Any, Any]], verb: Any, ready: int, connection: Any
    ) -> list[int | None]:
        results = super()._settle(wanted, verb, ready, connection)
        if connection is not None or self._joins:
            self._forget_ended()
        return results

    def _forget_ended(self) -> None:
        with suppress(StorageError):  # then a later call does it
            self._deliveries.forget_ended(self._store.forget_ended)

    def receive(
        self, block: bool = True, timeout: float | None = None, *, connection: Any = None
    ) -> AbstractContextManager[T]:
        """Return a context manager that gets the next item.

        When the block ends well, the queue acks the item. When the block raises, the queue nacks it, so that
        it is delivered again. ``task_done()`` must not be called for it, because the end of the block settles
        it. The errors are those of :meth:`get`.

        Cost: that of one :meth:`get` and one :meth:`ack`.

        :param connection: a connection with a transaction of the caller, of which the block becomes a part;
            then nothing is waited for. If the block raises, or if the claim was lost meanwhile, all is as
            before it that it has done on this connection, and no attempt counts. The item is acked if the
            caller commits.
        """
        if connection is None:
            return super().receive(block, timeout)
        blocking, _ = self._at(connection, False)
        claim: Any = partial(blocking.claim, self._deliver, False, None)
        return self._receive_within(blocking.core, claim)

    def receive_many(
        self,
        n: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        linger: float = 0.0,
        connection: Any = None,
    ) -> AbstractContextManager[list[T]]:
        """Return a context manager that gets 1 to ``n`` items, as :meth:`receive` gets one.

        The end of the block acks all of them in one step. If claims were lost meanwhile, it acks the other
        items, and raises a :exc:`StaleClaimError` whose ``ids`` name the lost ones.

        Cost: that of one :meth:`receive`, however many items there are.

        It raises the errors that :meth:`get_many` raises.
        """
        if connection is None:
            return super().receive_many(n, block, timeout, linger=linger)
        n, _ = checked_number_of("n", n), checked_seconds("linger", linger)
        blocking, _ = self._at(connection, False)
        claim: Any = partial(blocking.claim_many, n, self._deliver, False, None, 0.0)
        return self._receive_within(blocking.core, claim)

    @contextmanager
    def _receive(self, claim: Callable[[list[Claim]], tuple[Sequence[Any], R]]) -> Iterator[R]:
        block = self._receive_within(self._core, claim) if self._joins else super()._receive(claim)
        with block as received:
            yield received

    @contextmanager
    def _receive_within(
        self, core: QueueCore, claim: Callable[[list[Claim]], tuple[Sequence[Any], R]]
    ) -> Iterator[R]:
        """Give claimed items as a part of a caller's transaction; the end of the block acks them in it."""
        # The savepoint undoes the claim, too, so there is nothing to settle if the block raises.
        with cast(ServerRecordStore, core.store).undone_if_it_raises():
            claims: list[Claim] = []
            tokens, received = self._claim(claim, claims)
            yield received
            core.settle(tokens, claims, done=True)
        self._forget_ended()


def ddl(
    kind: type[Any],
    name: str = "default",
    url: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    passwd: str | None = None,
    dbname: str | None = None,
    db_name: str | None = None,
    schema: str | None = None,
    serializer: Any = pickle,
) -> str:
    """Return the statements of SQL that make a collection, for a user with the right to make tables.

    The program then opens it with ``create=False``, as a user who may only read and write rows. The
    statements number the collection after those that are there, so run them before another one is made.

    Cost: nothing is written. The server is asked which collections there are.

    >>> from persistcoll import PostgresQueue, ddl
    >>> print(ddl(PostgresQueue, "jobs").partition(" ")[0])  # at PERSISTCOLL_URL
    CREATE

    :param kind: the class of the collection: that of a queue, such as :class:`PostgresQueue`, or
        :class:`PDict`.
    :param serializer: that with which the collection will be opened.

    The other parameters and the errors are those of :class:`PostgresQueue`.
    """
    checked: Any = kind
    # A face does not import another one.
    wanted = getattr(checked, "_wanted", None)
    if not isinstance(checked, type) or wanted is None:
        raise TypeError(f"'kind' must be a class of collections on a server, not {kind!r}")
    address = address_in(getattr(kind, "_server", None), locals())
    return store_script(address, schema, wanted(name, resolve(serializer).name))


def address_in(kind: str | None, arguments: dict[str, Any]) -> Address:
    """Return the address that the arguments of a constructor name, all of ``WHERE`` among them.

    :param kind: that of the server; ``None``: what the arguments say, and then ``connection`` is none of
        them.
    :raise ValueError: an argument was given under both of its names.
    """
    connection = arguments.get("connection")
    if connection is not None and all(arguments[name] is None for name in WHERE):
        assert kind is not None
        return driver_of(kind).address_of(connection)
    given = {name: arguments[name] for name in ("url", "host", "port", "user")}
    for name, first, second in (("password", "password", "passwd"), ("database", "dbname", "db_name")):
        if arguments[first] is not None and arguments[second] is not None:
            raise ValueError(f"{first!r} and {second!r} are the same, so give one of them")
        given[name] = arguments[second] if arguments[first] is None else arguments[first]
    return address_of(kind, **given)
