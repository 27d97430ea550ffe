"""Opening a collection in a database, which all collections of this process on one file share."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from persistcoll.disk.path_checks import absolute, checked_path, refuse_foreign_link
from persistcoll.engine.forks import (
    FORK_PATIENCE,
    acquire_noted,
    fork_was_seen,
    quiesce_for_forks,
    within_an_operation,
)
from persistcoll.engine.process import SAME, follow_fork
from persistcoll.engine.records import ClaimPolicy, Discipline, Durability
from persistcoll.errors import StorageError, StoreMissingError, StoreReplacedError
from persistcoll.sqlite import schema
from persistcoll.sqlite.claims import sweep
from persistcoll.sqlite.clock import Clock
from persistcoll.sqlite.database import REMEDY, UNSEEN, Database
from persistcoll.sqlite.database_file import INDEX, LOG, MEMORY, DatabaseFile
from persistcoll.sqlite.driver import Execute
from persistcoll.sqlite.pair_store import SQLitePairStore
from persistcoll.sqlite.read_only import ReadOnlyDatabase
from persistcoll.sqlite.record_store import SQLiteRecordStore
from persistcoll.sqlite.rows import Seal
from persistcoll.sqlite.statements import pair_statements, record_statements

__all__ = ["DEFAULT_NAME", "DICT", "DatabaseLocation", "open_mapping", "open_table", "to_inspect"]

C = TypeVar("C")
T = TypeVar("T")

DEFAULT_NAME = "data.db"
"""Of the database in a directory."""
DICT = "dict"
"""The kind of a mapping."""
_DATABASE = re.compile(r".+\.(db|sqlite|sqlite3)", re.IGNORECASE | re.DOTALL)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# What lies beside another database.
_BESIDE = re.compile(r".*(-wal|-shm|-journal|\.lock|\.turn|\.holder-\d+)", re.IGNORECASE)

_PAUSE = 0.0005  # seconds

_NOT_WITHIN = "there is no {!r} in {!r} yet, and within a transaction it cannot be made: open it before"
_OPENING = "nothing can be opened while this thread opens or closes something else"

SealFor = Callable[[bytes], Seal | None]


def _no_seal(store_id: bytes) -> Seal | None:
    return None


@dataclass(frozen=True)
class DatabaseLocation:
    """What a constructor was told of where its database lies.

    :param path: a directory; a file that ends in ``.db``, ``.sqlite`` or ``.sqlite3``; or ``":memory:"``.
    :param db_file_name: the file's name in the directory; default ``data.db``.
    :param mode: of the files of a new database.
    :param read_only: only look at what is there.
    :param create: make what is not there, unless ``read_only``.
    :raise ValueError: that is no plain file name, or one of a file that lies beside a database; or the path
        is empty or cannot be one.
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
        if self.file == MEMORY:  # `file` refuses what is wrong now
            if self.read_only:
                raise ValueError(f"read_only=True has nothing to look at in {MEMORY!r}")
            if not self.create:
                raise ValueError(
                    f"create=False has nothing to open in {MEMORY!r}: what is there is always new"
                )

    @property
    def source(self) -> DatabaseFile:
        """How to open it.

        :raise StorageError: the way to it is a symbolic link that another user made.
        """
        if self.file != MEMORY:
            for path in (os.fsdecode(self.path), self._named):
                refuse_foreign_link(os.path.abspath(path))
        return DatabaseFile(self.file, self.timeout, self.allow_network_fs, self.mode, self.create)


class _Registry:
    """The databases that this process has open, and by how many collections each."""

    def __init__(self) -> None:
        # Who has it waits for no operation of this process: that may be waiting for it.
        self._mutex = threading.Lock()
        self._user: int | None = None  # the thread that has the mutex
        self._open: dict[str, Database] = {}
        self._inherited: set[str] = set()  # open in the process that this one was forked from, unseen
        self._left: deque[Database] = deque()
        self._held: list[threading.Lock] = []  # for a fork
        quiesce_for_forks(self)

    def acquire(self, source: DatabaseFile, users: list[Database]) -> Database:
        """The database, noted in ``users`` for :meth:`release` before anything can be interrupted."""
        if source.path == MEMORY:  # each one its own
            users.append(Database(source))
            return users[0]
        if not SAME[0]:
            follow_fork()
        if source.path in self._inherited:
            raise StorageError(UNSEEN.format(source.path))
        me = threading.get_ident()
        if self._user == me:
            raise StorageError(_OPENING)
        with self._mutex:
            self._user = me  # nothing is called before that, behind which a destructor could come
            try:
                database = self._open.get(source.path)
                if database is not None and not self._is_usable(database):
                    database = None
                if database is None:
                    database = self._open[source.path] = Database(source)
                database.users += 1
                users.append(database)
            finally:
                self._user = None
        self.shut_left()
        return database

    def look(
        self, path: str, look: Callable[[Execute], T], beside: Callable[[Callable[[Execute], T]], T]
    ) -> T:
        """``look`` through the database that this process has open there; otherwise ``beside`` does it."""

        def through(database: Database) -> T:
            try:
                return database.look(look)
            except StorageError as error:
                if error.errno not in (errno.EACCES, errno.EROFS):
                    raise
                # Inherited by a fork, and this process has fewer rights: nobody here will ever write.
                return beside(look)

        return self._look(path, through, lambda: beside(look))

    def look_without_opening(
        self, path: str, look: Callable[[Execute], T], beside: Callable[[Callable[[Execute], T]], T]
    ) -> T:
        """As :meth:`look`, at what is committed, and where a fork has closed the database it stays closed."""
        return self._look(
            path, lambda database: database.look_without_opening(look, beside), lambda: beside(look)
        )

    def _look(self, path: str, through: Callable[[Database], T], beside: Callable[[], T]) -> T:
        """``through`` the database that is open there; otherwise ``beside`` it, and nothing is opened
        meanwhile: SQLite shares the index of the log between all connections of a process, which could not
        write if the first one could not.
        """
        if not SAME[0]:
            follow_fork()
        if path in self._inherited:
            raise StorageError(UNSEEN.format(path))
        me = threading.get_ident()
        if self._user == me:
            raise StorageError(_OPENING)
        users: list[Database] = []
        try:
            with self._mutex:
                self._user = me
                try:
                    database = self._open.get(path)
                    if database is None or not self._is_usable(database):
                        return beside()
                    database.users += 1
                    users.append(database)
                finally:
                    self._user = None
            return through(database)
        finally:
            self.release(users)

    def release(self, users: list[Database]) -> None:
        """By a handle that used what is in the list, which is empty then. Idempotent."""
        try:
            self._release(users)
        except BaseException:  # out of a signal handler: what it cut short is done all the same
            self._release(users)
            raise

    def _release(self, users: list[Database]) -> None:
        with suppress(IndexError):
            self._left.extend(iter(users.pop, None))  # one call: either still there or already here
        self.shut_left()

    def shut_left(self) -> None:
        """Shut those that nobody uses any more.

        By a thread that is within an operation, as the garbage collector may be, it is left to whoever calls
        this next; one in a caller's transaction is left to who calls this at its end.
        """
        me = threading.get_ident()
        while self._left and not within_an_operation():
            with self._mutex:
                self._user = me
                try:
                    for _ in range(len(self._left)):
                        self._shut_first()
                finally:
                    self._user = None
            if all(database.in_transaction for database in list(self._left)):
                return
            time.sleep(_PAUSE)

    def _is_usable(self, database: Database) -> bool:
        """Whether it can be opened once more: otherwise a new one is, and that one is left to its users."""
        if database.is_shut:  # not to its end, because that was interrupted
            database.shut()
            return False
        with suppress(StoreReplacedError):
            database.check_files()
        replaced = database.replaced
        if replaced is not None and (replaced.path or "").endswith((LOG, INDEX)):
            # SQLite itself shares these within a process, for as long as the same database is open.
            raise StoreReplacedError(f"{replaced}; {REMEDY}", replaced.path)
        return replaced is None

    def _shut_first(self) -> None:
        """Of those left. Under the mutex: two databases of one process on a file would close each other's
        locks.
        """
        left = self._left
        database = left[0]
        if database.users > 1:
            database.users -= 1
            del left[0]  # nothing was called in between, behind which an interrupt could come
        elif database.shut():
            if self._open.get(database.path) is database:
                del self._open[database.path]
            del left[0]
        else:
            left.rotate(-1)

    def used_here(self) -> bool:
        """Whether this thread is opening or shutting one."""
        return self._user == threading.get_ident()

    # A database that is being opened while the process forks would be inherited half open.

    def _before_fork(self) -> None:
        me = threading.get_ident()
        if self._user != me and acquire_noted(self._mutex, FORK_PATIENCE, self._held):
            self._user = me

    def _after_fork_in_parent(self) -> None:
        if self._held:
            self._user = None
            del self._held[:]
            self._mutex.release()  # nothing was called since, behind which an interrupt could come

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._held = []
        self._user = None
        if not fork_was_seen():
            self._inherited.update(self._open)


_databases = _Registry()


def open_table(
    place: DatabaseLocation,
    *,
    name: str,
    kind: str,
    discipline: Discipline,
    retry: ClaimPolicy,
    serializer: str,
    executes_code: bool,
    durability: Durability,
    seal_for: SealFor = _no_seal,
    unseal_for: SealFor = _no_seal,
    clock: Clock | None = None,
) -> SQLiteRecordStore:
    """The table of this name, made if it is missing.

    :param kind: what the registry calls it; a table is opened only as what it was made.
    :param seal_for: given the collection's id, what to apply to each payload and its id before writing;
        ``unseal_for`` undoes it.
    :param clock: instead of the store's own, in tests.
    :raise StoreMissingError: it is missing, and is not to be made.
    :raise StoreKindError: the file is not ours, or the name is another kind's.
    :raise SerializerMismatchError: it was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: it is damaged, or lost.
    :raise LockedError: another program keeps it locked.
    :raise StorageError: it cannot be opened; others may write it while the serializer executes code.
    """

    def make(database: Database, users: list[Database], number: int, store_id: bytes) -> SQLiteRecordStore:
        table = SQLiteRecordStore(
            database,
            number,
            discipline,
            retry,
            power=durability == "power",
            timeout=place.timeout,
            store_id=store_id,
            seal=seal_for(store_id),
            unseal=unseal_for(store_id),
            clock=clock,
            users=users,
            leave=_databases.release,
        )
        try:
            if retry.resume and not place.read_only:
                table.resume()
        except BaseException:
            table.close()
            raise
        return table

    def create(database: Database, number: int) -> tuple[str, ...]:
        return record_statements(number, discipline).create

    return _open(place, schema.Registration(name, kind, serializer), executes_code, create, make)


def open_mapping(
    place: DatabaseLocation,
    *,
    name: str,
    serializer: str,
    executes_code: bool,
    durability: Durability,
    show: Callable[[bytes], str] = repr,
    clock: Clock | None = None,
) -> SQLitePairStore:
    """The mapping of this name, made if it is missing. Parameters and exceptions as of :func:`open_table`.

    :param show: a key, for messages.
    """

    def make(database: Database, users: list[Database], number: int, store_id: bytes) -> SQLitePairStore:
        return SQLitePairStore(
            database,
            number,
            power=durability == "power",
            timeout=place.timeout,
            store_id=store_id,
            clock=clock,
            show=show,
            users=users,
            leave=_databases.release,
            rested=_databases.shut_left,
        )

    def create(database: Database, number: int) -> tuple[str, ...]:
        return pair_statements(number).create

    return _open(place, schema.Registration(name, DICT, serializer), executes_code, create, make)


def to_inspect(path: str, timeout: float) -> ReadOnlyDatabase:
    """The database there, for a look that changes nothing, in this process neither.

    :param path: absolute, without symbolic links.
    :param timeout: seconds to wait while another program keeps it locked.
    """
    source = DatabaseFile(path, timeout, allow_network_fs=True)
    return ReadOnlyDatabase(source, _databases.look_without_opening)


def _open(
    place: DatabaseLocation,
    wanted: schema.Registration,
    executes_code: bool,
    create: Callable[[Database, int], Sequence[str]],
    make: Callable[[Database, list[Database], int, bytes], C],
) -> C:
    """The collection that ``make`` makes of the database, its number there and its id.

    :param create: the statements that make its tables.
    """
    if not isinstance(wanted.name, str):
        raise TypeError(f"'name' must be a str, not {type(wanted.name).__name__}")
    try:
        wanted.name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"'name' cannot be stored: {wanted.name!r} has a surrogate without its pair"
        ) from None
    source = place.source
    if executes_code and not place.trust_directory:
        source.refuse_unsafe(wanted.serializer)
    users: list[Database] = []
    if place.read_only:
        looking = ReadOnlyDatabase(source, _databases.look)
        number = looking.find(wanted)
        # It has all that a collection asks of one.
        return make(cast(Database, looking), users, number, looking.store_id + number.to_bytes(8, "big"))
    if not place.create:
        _refuse_missing(source, wanted)
    try:
        database = _databases.acquire(source, users)
        refusal: StorageError | None = None
        if not place.create:
            refusal = schema.no_collection(wanted.name, source.path, "open")
        elif database.used_here():
            # What is made within a transaction could be rolled back with it, and its number be given to
            # another.
            refusal = StorageError(_NOT_WITHIN.format(wanted.name, source.path))

        def run(execute: Execute) -> int:
            number, new = schema.register(execute, wanted, database.path, refusal)
            if new:
                for text in create(database, number):
                    execute(text)
            if database.path != MEMORY:
                sweep(execute, database)
            return number

        number = database.write(run, True, timeout=place.timeout)
        return make(database, users, number, database.store_id + number.to_bytes(8, "big"))
    except BaseException:
        _databases.release(users)
        raise


def _refuse_missing(source: DatabaseFile, wanted: schema.Registration) -> None:
    """Raise ``StoreMissingError`` where the collection is missing, before anything is made for opening it."""
    try:
        ReadOnlyDatabase(source, _databases.look, "open").find(wanted)
    except StoreMissingError:
        raise
    except StorageError:
        pass  # opening mends it, as a log without its index, or raises an error that says more
