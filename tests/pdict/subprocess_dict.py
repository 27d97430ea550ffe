"""A ``PDict`` in another process, which follows the orders of a test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from persistcoll.dicts.pdict import PDict
from tests.concurrency.workers import Remote

__all__ = ["RemoteDict"]


class RemoteDict(Remote):
    """Calls each method in the other process; an iterator's values come as a list.

    An error there is raised here. Functions of a module run there as ``function(d, *arguments)``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(functools.partial(PDict, *arguments), **options)
        self.run(call, "stats", (), {})  # wait until it is open

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().start(_apply, function, arguments)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self.run(call, name, arguments, options)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.run(enter, "transaction")
        try:
            yield
        except BaseException as error:
            self.run(leave, error)
            raise
        self.run(leave, None)

    @contextmanager
    def edit(self, key: Any) -> Iterator[Any]:
        with self.transaction():
            value = self[key]
            yield value
            self[key] = value

    def __getitem__(self, key: Any) -> Any:
        return self.run(call, "__getitem__", (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.run(call, "__setitem__", (key, value), {})

    def __delitem__(self, key: Any) -> None:
        self.run(call, "__delitem__", (key,), {})

    def __contains__(self, key: Any) -> bool:
        return self.run(call, "__contains__", (key,), {})  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self.run(call, "__len__", (), {})  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.run(call, "__iter__", (), {}))

    def __reversed__(self) -> Iterator[Any]:
        return iter(self.run(call, "__reversed__", (), {}))

    def __eq__(self, other: object) -> bool:
        return self.run(call, "__eq__", (other,), {})  # type: ignore[no-any-return]

    __hash__ = None  # type: ignore[assignment]


def _apply(d: PDict[Any, Any], tell: object, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(d, *arguments)


def call(d: PDict[Any, Any], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a method."""
    value = getattr(d, name)(*arguments, **options)
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, _PLAIN) else value


_PLAIN = (str, bytes, list, tuple, dict)
_entered: list[Any] = []


def enter(d: PDict[Any, Any], name: str) -> None:
    """Enter a block that a method returns."""
    block = getattr(d, name)()
    block.__enter__()
    _entered.append(block)


def leave(d: PDict[Any, Any], error: BaseException | None) -> None:
    """Leave the block, with what was raised in it."""
    block = _entered.pop()
    if error is None:
        block.__exit__(None, None, None)
    elif not block.__exit__(type(error), error, None):
        return
