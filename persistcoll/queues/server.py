"""The queues on database servers, whatever the server: their options, and how their stores are opened."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

from persistcoll.container import ServerContainer, T
from persistcoll.engine.contracts import RecordStore
from persistcoll.engine.records import Backoff, Discipline, Durability
from persistcoll.options import ServerAckQueueOptions, ServerQueueOptions
from persistcoll.queues.ack import AckQueue
from persistcoll.queues.sql import PlainGets, sealed, warn_of_auto_commit
from persistcoll.serializers import resolve
from persistcoll.servers.address import Address, address_of
from persistcoll.servers.open import PATIENCE, TIMEOUT, open_record_store

__all__ = ["PlainServerQueue", "ServerAckQueue", "open_store"]


def open_store(options: ServerQueueOptions, kind: str, discipline: Discipline) -> RecordStore:
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


class PlainServerQueue(ServerContainer, PlainGets[T]):
    """How the queues are made whose items ``get`` or ``task_done`` acks.

    :cvar _server: the kind of the server.
    """

    _server: ClassVar[str]

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
        schema: str | None = None,
        create: bool = True,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        auto_commit: bool = True,
        serializer: Any = pickle,
        maxsize: int = 0,
        durability: Durability = "power",
    ) -> None:
        address = _address(self._server, locals())
        self._open(ServerQueueOptions.of(locals()))

    def _open_store(self, options: ServerQueueOptions) -> RecordStore:
        return open_store(options, self._kind, self._discipline)


class ServerAckQueue(ServerContainer, AckQueue[T]):
    """How the queues are made whose items are settled one by one.

    :cvar _server: the kind of the server.
    """

    _kind = "fifo ack"
    _server: ClassVar[str]

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
        address = _address(self._server, locals())
        warn_of_auto_commit(auto_commit)
        self._open(ServerAckQueueOptions.of(locals()))

    def _open_store(self, options: ServerQueueOptions) -> RecordStore:
        return open_store(options, self._kind, self._discipline)


def _address(kind: str, arguments: dict[str, Any]) -> Address:
    """Return the address that the arguments of a constructor name.

    :raise ValueError: an argument was given under both of its names.
    """
    given = {name: arguments[name] for name in ("url", "host", "port", "user")}
    for name, first, second in (("password", "password", "passwd"), ("database", "dbname", "db_name")):
        if arguments[first] is not None and arguments[second] is not None:
            raise ValueError(f"{first!r} and {second!r} are the same, so give one of them")
        given[name] = arguments[second] if arguments[first] is None else arguments[first]
    return address_of(kind, **given)
