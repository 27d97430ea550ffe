"""Several statements in one trip to the server.

A trip takes as long as a statement, or longer. So the begin of a transaction, and each statement of which
nobody needs the result at once, travel with the statement that follows, or with the commit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from persistcoll.servers.driver import Deferred, Result

__all__ = ["PipeliningConnection", "Step"]


class Step(NamedTuple):
    """A statement, its parameters, and the object that gets its result."""

    text: str
    parameters: Mapping[str, Any] | None = None
    deferred: Deferred | None = None


class PipeliningConnection(ABC):
    """What the connections of this library's own have in common, for one thread at a time.

    ``_waiting`` belongs to the thread that uses the connection.
    """

    def __init__(self) -> None:
        self._waiting: list[Step] = []
        self._has_begun = False

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
        deferred = Deferred()
        self._waiting.append(Step(text, parameters, deferred))
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
        results = self._send(steps)
        for step, result in zip(steps, results, strict=True):
            if step.deferred is not None:
                step.deferred.result = result
        return results

    def commit(self) -> None:
        if self._has_begun or any(step.deferred is not None for step in self._waiting):
            self.run("COMMIT")
        self._waiting.clear()

    def rollback(self) -> None:
        self._waiting.clear()
        if self._has_begun:
            self.run("ROLLBACK")
