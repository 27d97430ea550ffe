"""Stores on a server that no law may overlook: each is wrong in one point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from persistcoll.engine.contracts import Claim
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_record_store import MemoryServerStore
from persistcoll.engine.records import State

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WRONG_SERVERS"]

WRONG_SERVERS: dict[str, tuple[str, type[MemoryServerStore]]] = {}
"""By the broken law and the class's name: the law's number, and the store."""


def breaks(number: str) -> Callable[[type[MemoryServerStore]], type[MemoryServerStore]]:
    """Register a store to be tried by the law of this number."""

    def note(kind: type[MemoryServerStore]) -> type[MemoryServerStore]:
        WRONG_SERVERS[f"{number} {kind.__name__}"] = number, kind
        return kind

    return note


@breaks("S4")
class AsksAgainUnderAnotherNumber(MemoryServerStore):
    """An operation whose answer was lost happens twice."""

    def _attempt(
        self, name: str, arguments: Any, options: Any, operation: int, early: Any
    ) -> tuple[bool, Any]:
        return super()._attempt(name, arguments, options, next(self._operations), early)


@breaks("S4")
class TakesALostAnswerForNone(MemoryServerStore):
    """The store reports a success though the connection's loss rolled the operation back."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.loss = 0.5

    def _attempt(self, *arguments: Any) -> tuple[bool, Any]:
        lost, value = super()._attempt(*arguments)
        return (False, 0) if lost and arguments[0] == "append" else (lost, value)


@breaks("S4")
class DrawsIdsThatOthersDraw(MemoryServerStore):
    def _draw_last(self) -> int:
        self._drawn = getattr(self, "_drawn", 0) + 1
        return self._drawn


@breaks("T2")
class FencesByTheIdAlone(MemoryServerStore):
    def release(self, claims: Sequence[Claim]) -> int:
        rows = [self._state.rows.get(id) for id, _ in claims]
        held = [row for row in rows if row is not None and row.state is State.CLAIMED]
        for row in held:
            self._state.move(row, State.READY)
        return len(held)


@breaks("T3")
class HearsOfNobody(MemoryServerStore):
    """The store takes a holder for dead if its last claim is longer ago than the patience."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.silence(self._client)


@breaks("T5")
class JoinsNothing(MemoryServerStore):
    def joined(self, connection: MemoryConnection) -> Self:
        return self


@breaks("T5")
class ForgetsWhatItSettledJoined(MemoryServerStore):
    """After a rollback the store no longer knows its claims."""

    def _attempt(
        self, name: str, arguments: Any, options: Any, operation: int, early: Any
    ) -> tuple[bool, Any]:
        result = super()._attempt(name, arguments, options, operation, early)
        if self._connection is not None and name == "ack":
            for id in arguments[0]:
                self._claims.pop(id)
        return result


@breaks("T5")
class ClaimsBesideTheTransaction(MemoryServerStore):
    """A claim of a joined store is there after a rollback."""

    def _call(self, name: str, arguments: Any, options: Any) -> Any:
        store = self._original if name == "claim" else self
        return MemoryServerStore._call(store, name, arguments, options)


@breaks("T5")
class LocksNothing(MemoryServerStore):
    """Other stores claim what an open transaction has popped."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.locked = lambda transaction: {}  # type: ignore[method-assign]


@breaks("T5")
class CountsBeforeTheCommit(MemoryServerStore):
    def _attempt(self, name: str, *arguments: Any) -> tuple[bool, Any]:
        if self._connection is not None and name == "append":
            self._state.puts += 1
        return super()._attempt(name, *arguments)
