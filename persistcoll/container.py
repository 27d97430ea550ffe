"""What every face shares besides its items: how it is closed, forked, pickled and shown.

Type parameters of the faces, as in ``Queue[T]`` and ``PDict[K, V]``, default to ``Any`` for a type checker.
So ``Queue("jobs")`` is a queue of anything, and not an error that asks for an annotation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from persistcoll.engine.forks import register_forkable, warn_unclosed
from persistcoll.engine.records import Durability
from persistcoll.options import Options

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    T = TypeVar("T", default=Any)
    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    T, K, V = map(TypeVar, "TKV")

__all__ = ["Container", "SQLiteContainer", "option"]


def option(name: str) -> Any:
    """A read-only attribute: the option of this name."""
    return property(attrgetter(f"_options.{name}"), doc=f"The constructor's ``{name}``.")


class Container:
    """An object that has a store open, until :meth:`close`. One that is never closed warns.

    It is pickled by its place and its options: unpickling, as ``multiprocessing`` does, opens the store
    again. ``copy.copy`` and ``copy.deepcopy`` do the same in this process. They do not copy what is stored: a
    container that is a member of some object would then be copied to a place that nobody knows. What this
    object has claimed, or has buffered and not committed, stays its own. A container in memory has no place,
    so it is refused.

    Subclasses: the ``__init__`` of a subclass, which may have other parameters, is not called again. The
    store is opened with the options that the library's had, and then the new object gets the attributes that
    the subclass has set on this one. One that cannot be pickled, such as a lock, is an error, as always:
    override ``__getstate__``, which gives a dict of them, to leave it out, and ``__setstate__`` to make it
    anew.
    """

    path: str = option("path")
    serializer: Any = option("serializer")
    durability: Durability = option("durability")
    trust_directory: bool = option("trust_directory")
    allow_network_fs: bool = option("allow_network_fs")
    mode: int | None = option("mode")
    read_only: bool = option("read_only")
    create: bool = option("create")

    _closed = True  # until it has its store: there is nothing to close if the constructor raises before
    _options: Any
    _own: frozenset[str]

    def _open(self, options: Any, opener: Callable[[Any], Any] | None = None) -> None:
        """Open the store: all that a constructor does. Attributes that are set later are a subclass's.

        :param opener: in place of :meth:`_open_store`.
        """
        given = frozenset(vars(self))  # set by a subclass, before it called the library's constructor
        store = (opener or self._open_store)(options)
        try:
            self._options = options
            self._inherited = False  # whether a forked process has it from its parent
            self._attach(store)
            register_forkable(self)
            self._own = frozenset((*vars(self), "_closed", "_own", "__orig_class__")) - given
            self._closed = False
        except BaseException:  # nobody will close it
            store.close()
            raise

    def _open_store(self, options: Any) -> Any:
        raise NotImplementedError

    def _attach(self, store: Any) -> None:
        """Set everything that needs the store, which is open."""
        raise NotImplementedError

    @property
    def _place(self) -> str:
        """Where the store lies, for ``repr`` and messages."""
        return repr(self.path)

    def close(self) -> None:
        """Let go of the store. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            try:
                if not self._inherited:  # a forked child did not open it
                    warn_unclosed(self)
            finally:  # a warning may be an error
                self.close()

    def _after_fork(self) -> None:
        self._inherited = True

    def __getstate__(self) -> dict[str, Any]:
        """What a subclass has set on this object."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path == ":memory:":
            raise TypeError(
                f"{self!r} is in memory, so there is no second object on it: it can neither be copied nor be"
                " passed to another process"
            )
        return _opened_again, (type(self), self._present_options()), self.__getstate__() or None

    def _present_options(self) -> Options:
        return self._options  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._place}{' closed' if self._closed else ''}>"


class SQLiteContainer(Container):
    """A container in an SQLite database."""

    name: str = option("name")
    multithreading: bool = option("multithreading")
    timeout: float = option("timeout")

    @property
    def db_file_name(self) -> str:
        """The database's name in its directory."""
        return str(os.path.basename(self._options.file))

    @property
    def _place(self) -> str:
        return f"{self.name!r} in {self._options.file!r}"


def _opened_again(kind: type[Container], options: Options) -> Container:
    container = object.__new__(kind)
    container._open(replace(options))  # checked anew: another machine may have made the pickle
    return container
