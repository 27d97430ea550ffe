"""What pickles and copies of a container are: another object on the same store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Reopenable", "Reopening"]


class Reopening(NamedTuple):
    """How to make another object on the same store."""

    maker: type[Any]
    """The class of the library whose constructor takes these arguments."""
    arguments: Mapping[str, Any]
    given: frozenset[str] = frozenset()
    """Attributes that a subclass had set before that constructor ran."""

    def __deepcopy__(self, memo: object) -> Reopening:
        return self  # a serializer may refuse to be copied, as one with keys refuses to be pickled


class Reopenable:
    """Pickled by its place and its options: unpickling, as ``multiprocessing`` does, opens the store again.

    ``copy.copy`` and ``copy.deepcopy`` do the same in this process. They do not copy what is stored: a
    container that is a member of some object would then be copied to a place that nobody knows. What this
    object has got, or has gathered and not committed, stays its own. One in memory has no place, so it is
    refused.

    Subclasses: the ``__init__`` of a subclass, which may have other parameters, is not called again. The
    library's is, with the arguments that it had, and then the new object gets the attributes that the
    subclass has set on this one. One that cannot be pickled, such as a lock, is an error, as always: override
    ``__getstate__``, which gives a dict of them, to leave it out, and ``__setstate__`` to make it anew.
    """

    _in_memory = False
    _reopening: Reopening
    _own: frozenset[str]

    def _reopen_with(self, reopening: Reopening) -> None:
        """Behind the last attribute that the library's constructor sets: later ones are a subclass's."""
        self._reopening = reopening
        self._own = frozenset((*vars(self), "_own", "__orig_class__")) - reopening.given

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


def _reopened(kind: type[Any], reopening: Reopening) -> Any:
    container = object.__new__(kind)
    reopening.maker.__init__(container, **reopening.arguments)
    return container
