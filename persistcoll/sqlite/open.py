"""Open a collection in a database, which all collections of this process on one file share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from persistcoll.disk.path_checks import absolute, checked_path, refuse_foreign_link
from persistcoll.engine.message_events import Observer
from persistcoll.engine.message_records import MessagePolicy
from persistcoll.engine.records import ClaimPolicy, Discipline, Durability
from persistcoll.errors import StorageError, StoreMissingError
from persistcoll.sqlite import schema
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.database import Database
from persistcoll.sqlite.database_file import MEMORY, DatabaseFile
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.handle import Collection
from persistcoll.sqlite.holding import sweep
from persistcoll.sqlite.message_statements import message_statements
from persistcoll.sqlite.message_store import SQLiteMessageStore
from persistcoll.sqlite.pair_store import SQLitePairStore
from persistcoll.sqlite.read_only import ReadOnlyDatabase
from persistcoll.sqlite.record_store import SQLiteRecordStore
from persistcoll.sqlite.registry import DATABASES
from persistcoll.sqlite.statements import pair_statements, record_statements

__all__ = [
    "DEFAULT_NAME",
    "DICT",
    "MESSAGES",
    "DatabaseLocation",
    "open_message_store",
    "open_pair_store",
    "open_record_store",
    "to_inspect",
]

C = TypeVar("C")
R = TypeVar("R", SQLiteRecordStore, SQLiteMessageStore)
T = TypeVar("T")

DEFAULT_NAME = "data.db"
"""Of the database in a directory."""
DICT = "dict"
"""The kind of a mapping."""
MESSAGES = "messages"
"""The kind of a message queue."""
_DATABASE = re.compile(r".+\.(db|sqlite|sqlite3)", re.IGNORECASE | re.DOTALL)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Names of files that lie beside a database.
_BESIDE = re.compile(r".*(-wal|-shm|-journal|\.lock|\.turn|\.holder-\d+)", re.IGNORECASE)

_NOT_WITHIN = "there is no {!r} in {!r} yet, and a transaction cannot make it: open it before the transaction"
_NOT_CHANGED_WITHIN = (
    "{!r} in {!r} has an earlier format, and a transaction cannot change that: open it before the transaction"
)


@dataclass(frozen=True)
class DatabaseLocation:
    """Where a constructor was told that its database lies.

    :param path: a directory; a file that ends in ``.db``, ``.sqlite`` or ``.sqlite3``; or ``":memory:"``.
    :param db_file_name: the file's name in the directory; default ``data.db``.
    :param timeout: seconds to wait for a lock of another program, and for another caller's transaction.
    :param mode: the permission bits of the files of a new database.
    :param read_only: only read what is there.
    :param create: make what is not there, unless ``read_only``.
    :raise ValueError: ``db_file_name`` is no plain file name, or names a file that lies beside a database; or
        the path is empty or cannot be one.
    """

    path: str | bytes | os.PathLike[str]
    db_file_name: str | None = None
    timeout: float = 10.0
    trust_directory: bool = False
    allow_network_fs: bool = False
    mode: int | None = None
    read_only: bool = False
    create: bool = True

    @property
    def file(self) -> str:
        """The database's path: absolute, without symbolic links; or ``":memory:"``."""
        return MEMORY if self._named == MEMORY else absolute(self._named, os.path.realpath)

    @property
    def _named(self) -> str:
        path = os.fsdecode(self.path)
        if path == MEMORY:
            return MEMORY
        name = self.db_file_name
        if name is None and _DATABASE.fullmatch(os.path.basename(path)) and not os.path.isdir(path):
            return path
        if name is None:
            name = DEFAULT_NAME
        elif (
            not _FILE_NAME.fullmatch(name)
            or _RESERVED.fullmatch(name)
            or _BESIDE.fullmatch(name)
            or name.endswith(".")
        ):
            raise ValueError(f"'db_file_name' must be a plain file name, not {name!r}")
        return os.path.join(path, name)

    def __post_init__(self) -> None:
        checked_path("path", self.path)
        if self.file == MEMORY:  # computing `file` also raises if the name is wrong
            if self.read_only:
                raise ValueError(f"read_only=True has nothing to look at in {MEMORY!r}")
            if not self.create:
                raise ValueError(
                    f"create=False has nothing to open in {MEMORY!r}: what is there is always new"
                )

    @property
    def source(self) -> DatabaseFile:
        """How to open the database.

        :raise StorageError: the path leads through a symbolic link that another user made.
        """
        if self.file != MEMORY:
            for path in (os.fsdecode(self.path), self._named):
                refuse_foreign_link(os.path.abspath(path))
        return DatabaseFile(self.file, self.timeout, self.allow_network_fs, self.mode, self.create)


def open_record_store(
    location: DatabaseLocation,
    *,
    name: str,
    kind: str,
    discipline: Discipline,
    retry: ClaimPolicy,
    serializer: str,
    executes_code: bool,
    durability: Durability,
    clock: Clock | None = None,
) -> SQLiteRecordStore:
    """Open the queue of this name, and make it first if it is missing.

    :param kind: what the registry calls it. A queue can be opened only as the kind that it was made as.
    :param clock: a clock to use instead of the store's own, in tests.
    :raise StoreMissingError: it is missing, and is not to be made.
    :raise StoreKindError: the file is another program's, or the name is another kind's.
    :raise SerializerMismatchError: it was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: it is damaged, or lost.
    :raise LockedError: another program keeps it locked.
    :raise StorageError: it cannot be opened; or others may write it and the serializer executes code.
    """

    def make(collection: Collection) -> SQLiteRecordStore:
        store = SQLiteRecordStore(collection, discipline, retry)
        return _reclaimed(store) if retry.auto_reclaim and not location.read_only else store

    return _open(
        location,
        schema.Registration(name, kind, serializer, schema.RECORD_VERSION),
        executes_code,
        durability,
        clock,
        lambda number: record_statements(number, discipline).create,
        make,
        lambda number: record_statements(number, discipline).upgrade,
    )


def open_pair_store(
    location: DatabaseLocation,
    *,
    name: str,
    serializer: str,
    executes_code: bool,
    durability: Durability,
    show: Callable[[bytes], str] = repr,
    clock: Clock | None = None,
) -> SQLitePairStore:
    """Open the dict of this name, and make it first if it is missing.

    Parameters and exceptions are those of :func:`open_record_store`.

    :param show: formats a key for messages.
    """
    return _open(
        location,
        schema.Registration(name, DICT, serializer),
        executes_code,
        durability,
        clock,
        lambda number: pair_statements(number).create,
        lambda collection: SQLitePairStore(collection, show),
    )


def open_message_store(
    location: DatabaseLocation,
    *,
    name: str,
    policy: MessagePolicy,
    serializer: str,
    executes_code: bool,
    durability: Durability,
    clock: Clock | None = None,
    observer: Observer | None = None,
) -> SQLiteMessageStore:
    """Open the message queue of this name, and make it first if it is missing.

    Parameters and exceptions are those of :func:`open_record_store`.

    :param policy: what applies to messages that do not say it themselves.
    :param observer: is told what the store does to messages, from its opening on.
    """

    def make(collection: Collection) -> SQLiteMessageStore:
        store = SQLiteMessageStore(collection, policy)
        store.observe(observer)
        return store if location.read_only else _reclaimed(store)

    return _open(
        location,
        schema.Registration(name, MESSAGES, serializer, schema.MESSAGE_VERSION),
        executes_code,
        durability,
        clock,
        lambda number: message_statements(number).create,
        make,
        lambda number: message_statements(number).upgrade,
    )


def to_inspect(path: str, timeout: float) -> ReadOnlyDatabase:
    """Return the database there, for reading that changes nothing, neither there nor in this process.

    :param path: absolute, without symbolic links.
    :param timeout: seconds to wait while another program keeps it locked.
    """
    source = DatabaseFile(path, timeout, allow_network_fs=True)
    return ReadOnlyDatabase(source, DATABASES.read_snapshot_without_opening)


def _reclaimed(store: R) -> R:
    """Return the store after it has reclaimed what dead holders held; close it if that fails."""
    try:
        store.reclaim()
    except BaseException:
        store.close()
        raise
    return store


def _open(
    location: DatabaseLocation,
    wanted: schema.Registration,
    executes_code: bool,
    durability: Durability,
    clock: Clock | None,
    create: Callable[[int], Sequence[str]],
    make: Callable[[Collection], C],
    upgrade: Callable[[int], Sequence[str]] = lambda number: (),
) -> C:
    """Return what ``make`` makes of the collection.

    :param create: given the collection's number, returns the statements that make its tables.
    :param upgrade: the same for those that make tables of version 1 ones of the newest version.
    """
    if not isinstance(wanted.name, str):
        raise TypeError(f"'name' must be a str, not {type(wanted.name).__name__}")
    try:
        wanted.name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"'name' cannot be stored: {wanted.name!r} has a surrogate without its pair"
        ) from None
    source = location.source
    if executes_code and not location.trust_directory:
        source.check_permissions(wanted.serializer)
    users: list[Database] = []
    if not (location.create or location.read_only):
        _refuse_missing(source, wanted)
    try:
        if location.read_only:
            read_only = ReadOnlyDatabase(source, DATABASES.read_snapshot)
            number, version = read_only.find(wanted)
            database = cast(Database, read_only)  # it has every method that a collection calls
        else:
            database, version = DATABASES.acquire(source, users), wanted.version
            number = _register(database, wanted, location, create, upgrade)
        power = durability == "power"
        return make(Collection(database, users, DATABASES, number, version, power, location.timeout, clock))
    except BaseException:
        DATABASES.release(users)
        raise


def _register(
    database: Database,
    wanted: schema.Registration,
    location: DatabaseLocation,
    create: Callable[[int], Sequence[str]],
    upgrade: Callable[[int], Sequence[str]],
) -> int:
    within, path = database.used_here(), database.path
    refusal: StorageError | None = None
    if not location.create:
        refusal = schema.no_collection(wanted.name, path, "open")
    elif within:
        # Rolling the transaction back would remove the collection, and another one would get its number.
        refusal = StorageError(_NOT_WITHIN.format(wanted.name, path))

    def run(execute: Execute) -> int:
        number, version = schema.register(execute, wanted, path, refusal)
        texts: Sequence[str] = ()
        if version is None:
            texts = create(number)
        elif version < wanted.version:
            if within:
                raise StorageError(_NOT_CHANGED_WITHIN.format(wanted.name, path))
            texts = upgrade(number)
            schema.set_version(execute, number, wanted.version)
        for text in texts:
            execute(text)
        if path != MEMORY:
            sweep(execute, database)
        return number

    return database.write(run, True, timeout=location.timeout)


def _refuse_missing(source: DatabaseFile, wanted: schema.Registration) -> None:
    """Raise ``StoreMissingError`` if the collection is missing, before opening it makes any file."""
    try:
        ReadOnlyDatabase(source, DATABASES.read_snapshot, "open").find(wanted)
    except StoreMissingError:
        raise
    except StorageError:
        pass  # opening repairs it, as it does a log without an index, or raises an error that says more
