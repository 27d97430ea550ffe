"""Record stores opened in another process and called from this one, as several processes share one file."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest

from persistcoll.engine.contracts import StoreCapabilities

__all__ = ["StoreProcess", "store_process"]


class _Use:
    """Stands for a function that is called on this side."""


class StoreProcess:
    """Another process, and the stores that it has opened. Any thread may use it, one call at a time.

    :ivar clock: the clock of the stores.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.time
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()
        self._mutex = threading.RLock()

    def open(self, opener: Callable[..., Any], *arguments: Any) -> Any:
        """Return the store that ``opener(*arguments, clock=...)`` opens there.

        All arguments must be picklable.
        """
        return _Remote(self, *self.ask(opener, arguments, {}))

    def ask(self, what: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Make a call there, and call functions among its arguments here."""
        used: list[Callable[..., Any]] = []

        def portable(argument: Any) -> Any:
            if not callable(argument):
                return argument
            used.append(argument)
            return _Use()

        with self._mutex:
            arguments = tuple(map(portable, arguments))
            options = {name: portable(argument) for name, argument in options.items()}
            self._connection.send((self.clock(), what, arguments, options))
            while True:
                kind, value = self._connection.recv()
                if kind == "use":
                    self._connection.send(_outcome(partial(used[0], value)))
                elif kind == "raised":
                    raise value
                else:
                    return value

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(60)
        self._process.close()


class _Remote:
    """A store in the other process.

    :ivar capabilities: those of the store, which never change.
    """

    def __init__(self, store_process: StoreProcess, number: int, capabilities: StoreCapabilities) -> None:
        self._process = store_process
        self._number = number
        self.capabilities = capabilities

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = self._process.ask((self._number, name), arguments, options)
            return iter(result) if name in ("records", "scan") else result

        return call


def _outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "returned", call()
    except BaseException as error:
        return "raised", error


def _serve(connection: Connection) -> None:
    opened: list[Any] = []
    now = 0.0

    def use(value: Any) -> Any:
        connection.send(("use", value))
        kind, answer = connection.recv()
        if kind == "raised":
            raise answer
        return answer

    def local(argument: Any) -> Any:
        return use if isinstance(argument, _Use) else argument

    def perform(what: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        arguments = tuple(map(local, arguments))
        options = {name: local(argument) for name, argument in options.items()}
        if callable(what):
            opened.append(what(*arguments, clock=lambda: now))
            return len(opened) - 1, opened[-1].capabilities
        number, name = what
        result = getattr(opened[number], name)(*arguments, **options)
        return list(result) if name in ("records", "scan") else result

    while True:
        try:
            now, *request = connection.recv()
        except EOFError:  # the other side has ended
            return
        connection.send(_outcome(partial(perform, *request)))


@pytest.fixture(scope="session")
def store_process() -> Iterator[StoreProcess]:
    """Give one other process for all tests."""
    process = StoreProcess()
    yield process
    process.end()
