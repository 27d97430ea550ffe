"""What every face shares besides its items: how it is opened, closed, forked, pickled and shown.

Type parameters of the faces, as in ``Queue[T]`` and ``PDict[K, V]``, default to ``Any`` for a type checker.
So ``Queue("jobs")`` is a queue of anything, and not an error that asks for an annotation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from persistcoll.engine.forks import read_only_error, register_forkable, warn_unclosed
from persistcoll.engine.records import Durability
from persistcoll.errors import PersistcollError
from persistcoll.options import Options, ServerOptions

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    T = TypeVar("T", default=Any)
    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    T, K, V = map(TypeVar, "TKV")

__all__ = [
    "Closable",
    "Container",
    "DatabaseContainer",
    "DiskContainer",
    "SQLiteContainer",
    "ServerContainer",
    "option",
]


def option(name: str) -> Any:
    """Return a read-only attribute with the value of the option of this name."""
    return property(attrgetter(f"_options.{name}"), doc=f"The constructor's ``{name}``.")


class Closable:
    """An object whose ``with`` block closes it."""

    def close(self) -> None:
        """Close the store. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Container(Closable):
    """An object that has a store open, until :meth:`close`. One that is never closed warns.

    A pickle of it holds the place of the store and its options. Unpickling, as ``multiprocessing`` does,
    opens the store again. ``copy.copy`` and ``copy.deepcopy`` do the same in this process. They do not copy
    what is stored, because a container that is a member of some object would then be copied to a place that
    nobody knows. Items that this object has claimed and changes that it has not committed stay its own. A
    container in memory cannot be opened a second time, so pickling and copying it raise :exc:`TypeError`.

    Subclasses: unpickling does not call the ``__init__`` of a subclass, which may have other parameters. It
    opens the store with the options that the library's constructor had, and then sets the attributes that the
    subclass has set on this object. An attribute that cannot be pickled, for example a lock, is an error, as
    always. To leave it out, override ``__getstate__``, which returns a dict of the attributes; to make it
    anew, override ``__setstate__``.

    No lock guards ``_closed`` and ``_inherited``: each is set by one assignment, and a store may be closed
    twice.
    """

    serializer: Any = option("serializer")
    durability: Durability = option("durability")
    create: bool = option("create")
    read_only: bool = False

    # What ``_length`` counts.
    _unit = "ready"
    # True until the store is open, so that nothing is closed if the constructor raises before.
    _closed = True
    _options: Any
    _own: frozenset[str]

    @property
    def _is_on_server(self) -> bool:
        """Whether the store is on a database server; a class may have both kinds."""
        return isinstance(self._options, ServerOptions)

    def _open(self, options: Any, opener: Callable[[Any], Any] | None = None) -> None:
        """Open the store: all that a constructor does.

        Attributes that are set after this call are a subclass's.

        :param opener: called in place of :meth:`_open_store`.
        """
        given = frozenset(vars(self))  # A subclass set them before it called the library's constructor.
        store = (opener or self._open_store)(options)
        try:
            self._options = options
            self._inherited = False  # Whether a forked process has it from its parent.
            self._attach(store)
            register_forkable(self)
            self._own = frozenset((*vars(self), "_closed", "_own", "__orig_class__")) - given
            self._closed = False
        except BaseException:  # No other code closes it.
            store.close()
            raise

    def _open_store(self, options: Any) -> Any:
        raise NotImplementedError

    def _attach(self, store: Any) -> None:
        """Set every attribute that needs the open store."""
        raise NotImplementedError

    def _refuse_changes(self, names: Iterable[str]) -> None:
        """Let the methods of these names raise an error, because the container is opened for reading only.

        They are replaced on the object and not in the class, so that a container that may be written to pays
        nothing for it.
        """
        description = self._description

        def refuse(*arguments: object, **options: object) -> NoReturn:
            raise read_only_error(description)

        vars(self).update(dict.fromkeys(names, refuse))

    @property
    def _location(self) -> str:
        """Where the store lies, without the name of a collection in it."""
        raise NotImplementedError

    @property
    def _place(self) -> str:
        """Where the store lies, for ``repr`` and messages."""
        return repr(self._location)

    @property
    def _description(self) -> str:
        """What the container is, for messages. Unlike ``repr`` it never reads the store."""
        return f"{type(self).__name__} {self._place}"

    def __del__(self) -> None:
        if not self._closed:
            try:
                if not self._inherited:  # A forked child did not open it, so it does not warn.
                    warn_unclosed(self, f"<{self._description}>")
            finally:  # A warning may be an error.
                self.close()

    def _after_fork(self) -> None:
        self._inherited = True

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes that a subclass has set on this object."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    def __reduce__(self) -> tuple[Any, ...]:
        self._refuse_copies()
        return _opened_again, (type(self), self._present_options()), self.__getstate__() or None

    def _refuse_copies(self) -> None:
        """Raise ``TypeError`` if there can be no second object on the same store."""

    def _present_options(self) -> Options:
        return self._options  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        """Say the class, the place and the length, or that it is closed.

        No length is said where it cannot be read now, nor on a server, because a debugger must not wait for
        the network or for a transaction.
        """
        if "_options" not in vars(self):  # The constructor has not opened it yet, or a subclass's has failed.
            return f"<{type(self).__name__} not open>"
        if self._closed:
            return f"<{self._description} closed>"
        length = ""
        if self._counts_at_once:
            with suppress(PersistcollError, OSError):
                length = f", {self._length():,} {self._unit}"
        return f"<{self._description}{length}>"

    @property
    def _counts_at_once(self) -> bool:
        """Whether ``_length`` waits for nobody."""
        return not self._is_on_server

    def _length(self) -> int:
        raise NotImplementedError


class DiskContainer(Container):
    """A container in a directory or a database file of this machine."""

    path: str = option("path")
    trust_directory: bool = option("trust_directory")
    allow_network_fs: bool = option("allow_network_fs")
    mode: int | None = option("mode")
    read_only: bool = option("read_only")

    @property
    def _location(self) -> str:
        return self.path


class SQLiteContainer(DiskContainer):
    """A container in an SQLite database."""

    name: str = option("name")
    multithreading: bool = option("multithreading")
    timeout: float = option("timeout")

    def transaction(self) -> AbstractContextManager[Any]:
        """Return a context manager: what this thread does in its block happens at once, at its end.

        The transaction takes in every collection in the same database file, whichever of them it was asked
        of: queues, queues with acks or messages, and dicts. Until its end this thread alone sees what was
        done in it. If the block raises, nothing of it was done, and each object is as it was before: what was
        got in the block is ready again and cannot be settled any more, and what was acked, nacked or finished
        in it is claimed as before. A transaction within another one of the same file is a part of it.
        Transactions of two files are two, of which one may be stored without the other.

        Other threads and processes that write to the file wait for the end, so the block should be short. For
        the same reason nothing is waited for in the block: ``get`` raises ``Empty`` at once where no item is
        ready, and ``put`` raises ``Full``. The transaction belongs to the thread and, where one runs, to the
        asyncio task or greenlet: a task must leave the block before it awaits anything, because all other
        tasks of the thread are refused meanwhile. A collection cannot be made in the block.

        The block is given the :class:`sqlite3.Connection`, for statements on tables of the program's own in
        the same file. It refuses what would end the transaction and what would outlive it, such as ``PRAGMA``
        and ``ATTACH``. Savepoints are possible, and none may be rolled back that an operation of a collection
        follows. A ``PDict`` without ``auto_commit`` gives ``None``, because there the transaction is about
        the buffered changes, and ``task_done()`` is what commits them.

        Cost: that of one operation that writes, however many the block does: 1 transaction, and at
        ``"power"`` 1 sync.

        >>> from persistcoll import PDict, SQLiteQueue
        >>> with PDict("shop.db", "stock") as stock, SQLiteQueue("shop.db", "orders") as orders:
        ...     stock["nut"] = 10
        ...     with stock.transaction():
        ...         stock["nut"] -= 3
        ...         id = orders.put({"nut": 3})
        ...     print(stock["nut"], len(orders))
        7 1

        :raise LockedError: another transaction is open in the file for longer than ``timeout``; at once if it
            is another task's of this thread.
        :raise StorageError: the end of the block raises it if the transaction cannot be stored; the message
            says so if the outcome is unknown.
        """
        # Each container calls its store so.
        return self._store.transaction()  # type: ignore[attr-defined, no-any-return]

    @property
    def _counts_at_once(self) -> bool:
        return super()._counts_at_once and not self._store.is_held_up()  # type: ignore[attr-defined]

    @property
    def db_file_name(self) -> str:
        """The database's name in its directory."""
        return str(os.path.basename(self._options.file))

    @property
    def _location(self) -> str:
        return str(self._options.file)

    @property
    def _place(self) -> str:
        return f"{self.name!r} in {self._location!r}"

    def _refuse_copies(self) -> None:
        if self.path == ":memory:":
            raise TypeError(
                f"{self._description} is in memory, so there is no second object on it: it can neither be"
                " copied nor be passed to another process"
            )


class ServerContainer(Container):
    """A container on a database server.

    A pickle of it has no password. Where it is unpickled, the password is ``PERSISTCOLL_PASSWORD``.
    """

    name: str = option("name")
    schema: str | None = option("schema")
    timeout: float = option("timeout")
    patience: float = option("patience")

    @property
    def url(self) -> str:
        """The server's address, without a password."""
        return str(self._options.address)

    def _refuse_copies(self) -> None:
        if self._options.connection is not None:
            raise TypeError(
                f"{self._description} is a part of the transaction on a connection, so it can neither be"
                " copied nor be passed to another process"
            )

    def _joined(self, store: Any, connection: Any) -> Any:
        """Return the store, as a part of the transaction on the caller's connection if there is one."""
        try:
            return store if connection is None else store.joined(connection)
        except BaseException:  # No other code closes it.
            store.close()
            raise

    @property
    def _location(self) -> str:
        return self.url

    @property
    def _place(self) -> str:
        return f"{self.name!r} in {self.url}"


class DatabaseContainer(SQLiteContainer, ServerContainer):
    """A container in an SQLite database, or on a server if the place is a URL. Its options say which."""

    @property
    def _database(self) -> type[Container]:
        """The class whose attributes the options have."""
        return ServerContainer if self._is_on_server else SQLiteContainer

    @property
    def _location(self) -> str:
        return str(self._database._location.fget(self))  # type: ignore[attr-defined]

    @property
    def _place(self) -> str:
        return str(self._database._place.fget(self))  # type: ignore[attr-defined]

    def _refuse_copies(self) -> None:
        self._database._refuse_copies(self)


def _opened_again(kind: type[Container], options: Options) -> Container:
    container = object.__new__(kind)
    container._open(replace(options))  # Checked again, because another machine may have made the pickle.
    return container
