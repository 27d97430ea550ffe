"""Message stores that break T5 and T6: they do something wrong with transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

from persistcoll.engine.memory.message_rows import MemoryMessageState, MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_records import (
    MessageClaim,
    MessageRecord,
)
from persistcoll.engine.records import State
from persistcoll.engine.transaction_hooks import TransactionHooks
from persistcoll.errors import StaleClaimError
from tests.conformance.wrong.moments import without_lock
from tests.conformance.wrong_messages.registry import breaks

if TYPE_CHECKING:
    from typing_extensions import Self

# T5


@breaks("T5")
class JoinsNothing(MemoryMessageServerStore):
    def joined(self, connection: MemoryConnection) -> Self:
        return self


class _OutsideOfTheTransaction(MemoryMessageServerStore):
    names: ClassVar[tuple[str, ...]]

    def _call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        connection = self._connection
        try:
            if name in self.names:
                self._connection = None
            return super()._call(name, arguments, options)
        finally:
            self._connection = connection


@breaks("T5")
class PausesAtOnce(_OutsideOfTheTransaction):
    names = ("pause", "resume")


@breaks("T5")
class LocksAtOnce(_OutsideOfTheTransaction):
    names = ("lock_topic", "unlock_topic")


@breaks("T5")
class LimitsAtOnce(_OutsideOfTheTransaction):
    names = ("set_rate",)


@breaks("T5")
class ReleasesKeysAtOnce(_OutsideOfTheTransaction):
    names = ("release_key",)


@breaks("T5")
class DeliversAtOnce(_OutsideOfTheTransaction):
    names = ("extend",)


@breaks("T5")
class LocksNothing(MemoryMessageServerStore):
    """Other stores claim what an open transaction has claimed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.locked = lambda transaction: {}  # type: ignore[method-assign]


@breaks("T5")
class CountsBeforeTheCommit(MemoryMessageServerStore):
    def _attempt(self, name: str, *arguments: Any) -> tuple[bool, Any]:
        if self._connection is not None and name == "put":
            self._state.puts += 1
        return super()._attempt(name, *arguments)


@breaks("T5")
class TellsNobody(MemoryMessageServerStore):
    def change_token(self) -> object:
        return super().change_token() and None


@breaks("T5")
class FencesByTheNumberOfClaims(MemoryMessageServerStore):
    """After a rollback the next claim is equal to the one that was rolled back."""

    def _session(self, *arguments: Any) -> Any:
        session: Any = super()._session(*arguments)
        claim = session._claim

        def fenced(row: MessageRow, *options: Any) -> MessageRecord:
            tokens: Any = iter([row.deliveries + 1])
            session._state.tokens = tokens
            record: MessageRecord = claim(row, *options)
            return record

        session._claim = fenced
        return session


@breaks("T5")
class RemembersWhatItSettledJoined(MemoryMessageServerStore):
    """After a rollback the store takes a claim for settled."""

    def _call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        state: Any = self._state
        settled = state.__dict__.setdefault("settled", set())
        if name == "ack" and settled.intersection(arguments[0]):
            ids = [claim.id for claim in settled.intersection(arguments[0])]
            raise StaleClaimError("a claim was settled", ids)
        result = super()._call(name, arguments, options)
        if name == "ack":
            settled.update(arguments[0])
        return result


# T6


class _Keeps(MemoryMessageStore):
    """A store whose rollback leaves one table as the transaction has made it."""

    table: ClassVar[str]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        state = self._state
        try:
            with super().transaction():
                try:
                    yield
                finally:
                    after = getattr(state, self.table)
        except BaseException:
            if state.open_transaction() is None:
                setattr(state, self.table, after)
            raise


@breaks("T6")
class ARollbackKeepsKeys(_Keeps):
    table = "keys"


@breaks("T6")
class ARollbackKeepsRates(_Keeps):
    table = "rates"


@breaks("T6")
class ARollbackKeepsPauses(_Keeps):
    table = "paused"


@breaks("T6")
class ARollbackKeepsLocks(_Keeps):
    table = "locks"


@breaks("T6")
class ARollbackKeepsCounts(_Keeps):
    table = "puts"


@breaks("T6")
class ARollbackKeepsMessages(_Keeps):
    table = "rows"


@breaks("T6")
class FencesByDeliveries(MemoryMessageStore):
    """After a rollback the next claim is equal to the one that was rolled back."""

    def _claim(self, row: MessageRow, lease: float | None, prefetch: bool) -> MessageRecord:
        tokens: Any = iter([row.deliveries + 1])
        self._state.tokens = tokens
        return super()._claim(row, lease, prefetch)


@breaks("T6")
class RemembersWhatItSettled(MemoryMessageStore):
    """After a rollback the store takes a claim for settled."""

    def ack(self, claims: Sequence[MessageClaim]) -> None:
        state: Any = self._state
        settled = state.__dict__.setdefault("settled", set())
        ids = [claim.id for claim in claims if claim in settled]
        if ids:
            raise StaleClaimError("a claim was settled", ids)
        super().ack(claims)
        settled.update(claims)


@breaks("T6")
class ARollbackReleases(MemoryMessageStore):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with super().transaction():
                yield
        except BaseException:
            if self.open_transaction() is None:
                for row in self._state.select(State.CLAIMED):
                    self.release([row.claim])
            raise


@breaks("T6")
class CommitsWhatRaised(MemoryMessageStore):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        raised: BaseException | None = None
        with super().transaction():
            try:
                yield
            except BaseException as error:
                raised = error
        if raised is not None:
            raise raised


@breaks("T6")
class ForgetsTheHooks(MemoryMessageStore):
    def open_transaction(self) -> TransactionHooks | None:
        return TransactionHooks() if super().open_transaction() else None


@breaks("T6")
class LetsOtherTasksIn(MemoryMessageStore):
    def _promote_due(self) -> MemoryMessageState:
        self._state.refuse_other_task = lambda: None  # type: ignore[method-assign]
        return super()._promote_due()


def _let_in(name: str) -> Callable[..., Any]:
    def method(self: MemoryMessageStore, *arguments: Any) -> Any:
        with patch.object(self._state, "refuse_other_task", lambda: None):
            return getattr(MemoryMessageStore, name)(self, *arguments)

    return method


@breaks("T6")
class LetsOtherTasksCount(MemoryMessageStore):
    count = _let_in("count")


@breaks("T6")
class LetsOtherTasksPause(MemoryMessageStore):
    pause = _let_in("pause")


@breaks("T6")
class LetsOtherThreadsLook(MemoryMessageStore):
    def scan(self, *states: State, topic: str | None = None) -> Iterator[MessageRecord]:
        with without_lock(self._state):
            return super().scan(*states, topic=topic)


@breaks("T6")
class TakesAHolderForAliveAgain(MemoryMessageStore):
    """A rollback restores the claims of a store that was closed in the transaction."""

    def _is_dead(self, holder: object) -> bool:
        return holder is None
