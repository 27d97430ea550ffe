"""A ``PDict`` in another process, which does what it is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from persistcoll.pdict import PDict

__all__ = ["RemoteDict"]

# Not fork: these processes have nothing of this one, as those of a user.
CONTEXT = multiprocessing.get_context("spawn")
SECONDS = 60.0  # far more than anything here takes


class RemoteDict:
    """Each method is called there; what it raised is raised here, what it iterates over comes as a list."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, arguments, options), daemon=True)
        self._process.start()
        theirs.close()
        self._closed = False
        self._result()

    def start(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Begin ``function(d, *arguments)``, a function of a module."""
        self._pipe.send((function, arguments, options))

    def _result(self) -> Any:
        assert self._pipe.poll(SECONDS), "the other process does not answer"
        well, value = self._pipe.recv()
        if not well:
            raise value
        return value

    result = _result

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.start(function, *arguments, **options)
        return self._result()

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

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._end()

    def close(self) -> None:
        """Let it close its dict and end."""
        if not self._closed:
            self._pipe.send(None)
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe.close()


def _serve(pipe: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    d: PDict[Any, Any]
    with PDict(*arguments, **options) as d:
        pipe.send((True, None))
        while (order := pipe.recv()) is not None:
            function, given, named = order
            try:
                pipe.send((True, function(d, *given, **named)))
            except Exception as error:
                pipe.send((False, error))


def call(d: PDict[Any, Any], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a method."""
    value = getattr(d, name)(*arguments, **options)
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, _PLAIN) else value


_PLAIN = (str, bytes, list, tuple, dict)
_entered: list[Any] = []


def enter(d: PDict[Any, Any], name: str) -> None:
    """Enter a block that a method gives."""
    block = getattr(d, name)()
    block.__enter__()
    _entered.append(block)


def leave(d: PDict[Any, Any], error: BaseException | None) -> None:
    """Leave it, with what was raised within."""
    block = _entered.pop()
    if error is None:
        block.__exit__(None, None, None)
    elif not block.__exit__(type(error), error, None):
        return
