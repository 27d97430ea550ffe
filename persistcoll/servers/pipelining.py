"""Several statements in one trip to the server.

A trip takes as long as a statement, or longer. So the begin of a transaction, and each statement of which
nobody needs the result at once, travel with the statement that follows, or with the commit.
"""

from __future__ import annotations

import selectors
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from persistcoll.servers.driver import Deferred, Result

__all__ = ["DirectConnection", "PipeliningConnection", "Step"]


class Step(NamedTuple):
    """A statement, its parameters, and the object that gets its result.

    :ivar rows: how many rows it inserts, if its result must have their ids.
    """

    text: str
    parameters: Mapping[str, Any] | None = None
    deferred: Deferred | None = None
    rows: int = 0


class DirectConnection(ABC):
    """What callers' connections have in common: each statement runs at once."""

    is_cluster = False

    @abstractmethod
    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result: ...

    def defer(self, text: str, parameters: Mapping[str, Any]) -> Deferred:
        return Deferred(self.run(text, parameters))

    def flush(self) -> None:
        return  # nothing waits


class PipeliningConnection(ABC):
    """What the connections of this library's own have in common, for one thread at a time.

    All fields belong to the thread that uses the connection.

    :param channel: the number of the socket.
    """

    keeps_session = True

    def __init__(self, channel: int) -> None:
        self._waiting: list[Step] = []
        self._has_begun = False
        self.is_answered = True
        self._events = selectors.EVENT_READ
        self._waiter = selectors.DefaultSelector()
        try:
            self._waiter.register(channel, self._events)
        except BaseException:
            self._waiter.close()
            raise
        self._channel = channel

    def _ready(self, events: int, timeout: float) -> int:
        """Return for which of these events the socket is ready, or will be within so many seconds."""
        if events != self._events:
            self._waiter.modify(self._channel, events)
            self._events = events
        ready = self._waiter.select(timeout)
        return ready[0][1] if ready else 0

    def is_closed(self) -> bool:
        return bool(self._ready(selectors.EVENT_READ, 0.0))

    def notifications(self) -> Sequence[str]:
        return ()  # unless the server passes any on

    @abstractmethod
    def _send(self, steps: Sequence[Step]) -> list[Result]:
        """Run these statements in one trip, and return their results. The first that fails is the last."""

    @abstractmethod
    def _beginning(self, sync: bool, lock_timeout: float | None, idles: bool) -> Sequence[str]:
        """Return the statements that begin a transaction."""

    def begin(self, sync: bool, lock_timeout: float | None, idles: bool = False) -> None:
        self._waiting = [Step(text) for text in self._beginning(sync, lock_timeout, idles)]
        self._has_begun = False

    def defer(self, text: str, parameters: Mapping[str, Any]) -> Deferred:
        return self._defer(Step(text, parameters))

    def _defer(self, step: Step) -> Deferred:
        deferred = Deferred()
        self._waiting.append(step._replace(deferred=deferred))
        return deferred

    def run(self, text: str, parameters: Mapping[str, Any] | None = None) -> Result:
        self._waiting.append(Step(text, parameters))
        return self._send_waiting()[-1]

    def flush(self) -> None:
        if self._waiting:
            self._send_waiting()

    def _send_waiting(self) -> list[Result]:
        steps, self._waiting = self._waiting, []
        self._has_begun = True
        self.is_answered = False
        results = self._send(steps)
        self.is_answered = True
        for step, result in zip(steps, results, strict=True):
            if step.deferred is not None:
                step.deferred.result = result
        return results

    def _end(self, text: str) -> None:
        """Run what is deferred and the statement that ends the transaction."""
        self.run(text)

    def commit(self) -> None:
        if self._has_begun or any(step.deferred is not None for step in self._waiting):
            self._end("COMMIT")
        self._waiting.clear()

    def rollback(self) -> None:
        self._waiting.clear()
        if self._has_begun:
            self._end("ROLLBACK")
