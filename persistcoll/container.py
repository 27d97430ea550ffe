"""What every face shares besides its items: how it is closed, forked, pickled and shown.

Type parameters of the faces, as in ``Queue[T]`` and ``PDict[K, V]``, default to ``Any`` for a type checker.
So ``Queue("jobs")`` is a queue of anything, and not an error that asks for an annotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from persistcoll.engine.forks import follow_forks, warn_unclosed

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    T = TypeVar("T", default=Any)
    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    T, K, V = map(TypeVar, "TKV")

__all__ = ["Container", "K", "Reopening", "T", "V"]


class Reopening(NamedTuple):
    """How to make another object on the same store."""

    maker: type[Any]
    """The class of the library whose constructor takes these arguments."""
    arguments: Mapping[str, Any]
    given: frozenset[str] = frozenset()
    """Attributes that a subclass had set before that constructor ran."""

    def __deepcopy__(self, memo: object) -> Reopening:
        return self  # a serializer may refuse to be copied, as one with keys refuses to be pickled


class Container:
    """An object that has a store open, until :meth:`close`. One that is never closed warns.

    It is pickled by its place and its options: unpickling, as ``multiprocessing`` does, opens the store
    again. ``copy.copy`` and ``copy.deepcopy`` do the same in this process. They do not copy what is stored: a
    container that is a member of some object would then be copied to a place that nobody knows. What this
    object has claimed, or has buffered and not committed, stays its own. A container in memory has no place,
    so it is refused.

    Subclasses: the ``__init__`` of a subclass, which may have other parameters, is not called again. The
    library's is, with the arguments that it had, and then the new object gets the attributes that the
    subclass has set on this one. One that cannot be pickled, such as a lock, is an error, as always: override
    ``__getstate__``, which gives a dict of them, to leave it out, and ``__setstate__`` to make it anew.
    """

    _in_memory = False
    _closed = True  # until the constructor has the store: there is nothing to close if it raises before
    _description: str
    _reopening: Reopening
    _own: frozenset[str]

    def _opened(self, description: str, reopening: Reopening) -> None:
        """Begin to live; the last call of the library's constructor, because later attributes are a
        subclass's.

        :param description: the class and the place, for ``repr`` and messages.
        """
        self._description = description
        self._reopening = reopening
        self._inherited = False  # whether a forked process has it from its parent
        follow_forks(self)
        self._own = frozenset((*vars(self), "_closed", "_own", "__orig_class__")) - reopening.given
        self._closed = False

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

    def _arguments(self) -> Mapping[str, Any]:
        return self._reopening.arguments

    def __getstate__(self) -> dict[str, Any]:
        """What a subclass has set on this object."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._in_memory:
            raise TypeError(
                f"{self!r} is in memory, so there is no second object on it: it can neither be copied nor be"
                " passed to another process"
            )
        reopening = Reopening(self._reopening.maker, self._arguments())
        return _reopened, (type(self), reopening), self.__getstate__() or None

    def __repr__(self) -> str:
        return f"<{self._description}{' closed' if self._closed else ''}>"


def _reopened(kind: type[Any], reopening: Reopening) -> Any:
    container = object.__new__(kind)
    reopening.maker.__init__(container, **reopening.arguments)
    return container
