"""The options of containers, checked and converted: frozen, comparable, and what a pickle holds.

A constructor names its parameters and their defaults, because they are its interface. These classes say what
becomes of them. The options of a container are also its read-only attributes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from persistcoll.arguments import (
    checked_backoff,
    checked_choice,
    checked_count,
    checked_finite_backoff,
    checked_length,
    checked_limit,
    checked_mode,
    checked_seconds,
    checked_short_name,
    checked_span,
    names_server,
)
from persistcoll.disk.path_checks import absolute, checked_path
from persistcoll.engine.message_events import MessageEvent, Observer, observer_of
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import Backoff, ClaimPolicy, Durability, OnCorruption, Retain
from persistcoll.serializers import picklable_reference

if TYPE_CHECKING:
    from typing_extensions import Self

    from persistcoll.servers.address import Address
    from persistcoll.sqlite.open import DatabaseLocation

__all__ = [
    "AckOptions",
    "DirectoryOptions",
    "DiskOptions",
    "FileQueueOptions",
    "LogOptions",
    "MessageOptions",
    "MessageQueueOptions",
    "Options",
    "QueueOptions",
    "SQLiteAckQueueOptions",
    "SQLiteOptions",
    "SQLiteQueueOptions",
    "ServerAckQueueOptions",
    "ServerDictOptions",
    "ServerMessageQueueOptions",
    "ServerOptions",
    "ServerQueueOptions",
    "database_options",
]

F = TypeVar("F", bound="Options")
S = TypeVar("S", bound="Options")
T = TypeVar("T")

_ALL = (1 << 63) - 1


@dataclass(frozen=True)
class Options:
    """The options of every container.

    :ivar serializer: what stands for the serializer in a pickle; :func:`~persistcoll.serializers.resolve`
        accepts it.
    """

    serializer: Any
    durability: Durability
    create: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Make options of the ``locals()`` of a constructor: each field is the parameter of its name."""
        return cls(**{each.name: arguments[each.name] for each in fields(cls) if each.init})

    def __post_init__(self) -> None:
        checked_choice("durability", self.durability, "power", "process")
        vars(self).update(serializer=picklable_reference(self.serializer), create=bool(self.create))

    def __deepcopy__(self, memo: object) -> Self:
        # Frozen, so no copy is needed. A serializer may refuse to be copied, as one with keys refuses to be
        # pickled.
        return self


@dataclass(frozen=True)
class DiskOptions(Options):
    """The options of a container in a directory or a database file of this machine.

    :ivar path: absolute, so that it means the same in another process.
    """

    path: str
    trust_directory: bool
    allow_network_fs: bool
    mode: int | None
    read_only: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(mode=checked_mode(self.mode), read_only=bool(self.read_only))


def _not_a_url(path: T) -> T:
    """Return the path. A URL would be taken for a directory, which would be made in silence."""
    if names_server(path):
        raise ValueError(
            "'path' is a URL, and this class takes a path; PostgresQueue, MySQLQueue, MessageQueue and PDict"
            " take the URL of a server"
        )
    return path


@dataclass(frozen=True)
class DirectoryOptions(DiskOptions):
    """The options of a container that has a directory of its own."""

    chunksize: int | None
    on_corruption: OnCorruption

    def __post_init__(self) -> None:
        path = absolute(checked_path("path", _not_a_url(self.path)))
        super().__post_init__()
        checked_choice("on_corruption", self.on_corruption, "raise", "stop", "skip")
        chunksize = self.chunksize
        vars(self).update(
            path=path, chunksize=None if chunksize is None else checked_count("chunksize", chunksize, 1)
        )


@dataclass(frozen=True)
class FileQueueOptions(DirectoryOptions):
    """The options of a queue in files."""

    maxsize: int
    tempdir: str | None
    autosave: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        tempdir = self.tempdir
        vars(self).update(
            maxsize=checked_count("maxsize", self.maxsize),
            tempdir=None if tempdir is None else absolute(checked_path("tempdir", tempdir)),
        )


@dataclass(frozen=True)
class LogOptions(DirectoryOptions):
    """The options of a log."""

    retain: Retain | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.retain, (Retain, type(None))):
            raise TypeError(f"'retain' must be a Retain, not {type(self.retain).__name__}")


@dataclass(frozen=True)
class SQLiteOptions(DiskOptions):
    """The options of a container in an SQLite database.

    :ivar location: where the database lies, as the caller of the constructor said.
    :ivar file: the database's path: absolute, without symbolic links; or ``":memory:"``.
    """

    name: str
    multithreading: bool
    timeout: float
    auto_commit: bool
    db_file_name: str | None
    location: DatabaseLocation = field(init=False, repr=False, compare=False)
    file: str = field(init=False)

    def __post_init__(self) -> None:
        from persistcoll.sqlite.open import DatabaseLocation  # Here, because the file queues need no SQLite.

        super().__post_init__()
        _not_a_url(self.path)
        timeout = checked_seconds("timeout", self.timeout)
        location = DatabaseLocation(
            self.path, self.db_file_name, timeout, self.trust_directory, self.allow_network_fs, self.mode,
            self.read_only, self.create,
        )  # fmt: skip
        path = os.fsdecode(self.path)
        vars(self).update(
            path=path if location.file == path else absolute(path),
            multithreading=True,
            timeout=timeout,
            location=location,
            file=location.file,
        )


@dataclass(frozen=True)
class QueueOptions(Options):
    """The options that every queue in a database has."""

    auto_commit: bool
    maxsize: int

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(auto_commit=bool(self.auto_commit), maxsize=checked_count("maxsize", self.maxsize))

    @property
    def claim_policy(self) -> ClaimPolicy:
        """How the store treats claimed records."""
        return ClaimPolicy()


@dataclass(frozen=True)
class SQLiteQueueOptions(QueueOptions, SQLiteOptions):
    """The options of a queue in an SQLite database."""


@dataclass(frozen=True)
class AckOptions(Options):
    """The options that every queue with acks has."""

    auto_resume: bool
    lease: float | None
    max_attempts: int | None
    backoff: Backoff | None
    keep_acked: int | None
    strict: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        lease, most, kept = self.lease, self.max_attempts, self.keep_acked
        vars(self).update(
            auto_commit=True,
            auto_resume=bool(self.auto_resume),
            lease=None if lease is None else checked_seconds("lease", lease),
            max_attempts=None if most is None else checked_count("max_attempts", most, 1),
            backoff=checked_backoff(self.backoff),
            keep_acked=None if kept is None else checked_count("keep_acked", kept),
            strict=bool(self.strict),
        )
        if self.lease == 0:
            raise ValueError("'lease' must be above 0")

    @property
    def claim_policy(self) -> ClaimPolicy:
        """How the store treats claimed records."""
        kept = _ALL if self.keep_acked is None else self.keep_acked
        return ClaimPolicy(self.lease, self.max_attempts, self.backoff, kept, self.auto_resume)


@dataclass(frozen=True)
class SQLiteAckQueueOptions(AckOptions, SQLiteQueueOptions):
    """The options of a queue with acks in an SQLite database."""


@dataclass(frozen=True)
class ServerOptions(Options):
    """The options of a container on a database server.

    :ivar address: where the server is. A pickle has no password, and neither has a ``repr``.
    :ivar schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.
    :ivar connection: the caller's, whose transaction every call is a part of; ``None``: there is none.
    """

    read_only: ClassVar[bool] = False

    name: str
    address: Address
    schema: str | None
    timeout: float
    patience: float
    connection: Any = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        schema = self.schema
        if schema is not None:
            if not isinstance(schema, str):
                raise TypeError(f"'schema' must be a str, not {type(schema).__name__}")
            if not schema or "\0" in schema:
                raise ValueError("'schema' must be the name of a schema, or None")
        vars(self).update(
            timeout=checked_length("timeout", self.timeout), patience=checked_span("patience", self.patience)
        )


@dataclass(frozen=True)
class ServerDictOptions(ServerOptions):
    """The options of a dict on a database server."""

    auto_commit: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(auto_commit=bool(self.auto_commit))
        if self.connection is not None and not self.auto_commit:
            raise ValueError("'auto_commit' must be True with 'connection': the caller's commit is the last")


@dataclass(frozen=True)
class ServerQueueOptions(QueueOptions, ServerOptions):
    """The options of a queue on a database server."""


@dataclass(frozen=True)
class ServerAckQueueOptions(AckOptions, ServerQueueOptions):
    """The options of a queue with acks on a database server."""


@dataclass(frozen=True)
class MessageOptions(Options):
    """The options that every message queue has."""

    name: str
    lease: float | None
    max_attempts: int | None
    backoff: Backoff | None
    keep_done: int
    keep_dead: int | None
    events: Callable[[MessageEvent], object] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        lease, most, kept = self.lease, self.max_attempts, self.keep_dead
        if self.events is not None and not callable(self.events):
            raise TypeError(f"'events' must be callable, not {type(self.events).__name__}")
        vars(self).update(
            name=checked_short_name("name", self.name),
            lease=None if lease is None else checked_span("lease", lease),
            max_attempts=None if most is None else checked_limit("max_attempts", most, 1),
            backoff=checked_finite_backoff(self.backoff),
            keep_done=checked_limit("keep_done", self.keep_done),
            keep_dead=None if kept is None else checked_limit("keep_dead", kept),
        )

    @property
    def policy(self) -> MessagePolicy:
        """What applies to messages that do not say it themselves."""
        return MessagePolicy(self.lease, self.max_attempts, self.backoff, self.keep_done, self.keep_dead)

    @property
    def observer(self) -> Observer | None:
        """What the store tells of its messages; ``None``: nobody is told."""
        return None if self.events is None else observer_of(self.events)


@dataclass(frozen=True)
class MessageQueueOptions(MessageOptions, SQLiteOptions):
    """The options of a message queue in an SQLite database."""


@dataclass(frozen=True)
class ServerMessageQueueOptions(MessageOptions, ServerOptions):
    """The options of a message queue on a database server."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lease is None:
            raise ValueError("'lease' is needed on a server, which notices no death of a consumer")


_OF_FILES = ("db_file_name", "trust_directory", "allow_network_fs", "mode", "read_only")
_OF_SERVERS = ("password", "schema", "connection")
"""The parameters that apply to one of the two places."""


def database_options(arguments: Mapping[str, Any], in_file: type[F], on_server: type[S], what: str) -> F | S:
    """Make the options of a container in an SQLite database, or on a server if the ``path`` is a URL.

    :param arguments: the ``locals()`` of its constructor.
    :param what: names the container in messages.
    :raise ValueError: an argument applies to the other place, or the URL names no server.
    """
    path = arguments["path"]
    is_server = names_server(path)
    place, other = ("on a server", "in a file") if is_server else ("in a file", "on a server")
    for name in _OF_FILES if is_server else _OF_SERVERS:
        if arguments.get(name) not in (None, False):
            raise ValueError(f"{name!r} is for {what} {other}, and not {place}")
    if not is_server:
        return in_file.of(arguments)
    # Imported here, because most programs have no server.
    from persistcoll.servers.address import address_of
    from persistcoll.servers.open import PATIENCE

    address = address_of(None, path, password=arguments["password"])
    given = {"patience": PATIENCE, "connection": None, **arguments, "address": address}
    return on_server.of(given)
