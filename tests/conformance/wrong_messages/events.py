"""Message stores that tell their observers something wrong, at a wrong time, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from persistcoll.engine.memory.message_rows import MessageRow
from persistcoll.engine.memory.message_store import MemoryMessageStore
from persistcoll.engine.memory.server import MemoryConnection
from persistcoll.engine.memory.server_message_store import MemoryMessageServerStore
from persistcoll.engine.message_events import EventKind, MessageEvent, Observer, tell
from persistcoll.engine.message_records import MessageEntry
from persistcoll.engine.records import State
from tests.conformance.wrong_messages.registry import breaks

if TYPE_CHECKING:
    from typing_extensions import Self


@breaks("Q19")
class ObservesNothing(MemoryMessageStore):
    def observe(self, observer: Observer | None) -> None:
        pass


@breaks("Q19")
class ObservesForEver(MemoryMessageStore):
    def observe(self, observer: Observer | None) -> None:
        super().observe(observer or self._observer)


@breaks("Q19")
class TellsTwice(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        super()._tell(observer, [*events, *events])


@breaks("Q19")
class TellsInAnotherThread(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        thread = threading.Thread(target=super()._tell, args=(observer, events))
        thread.start()
        thread.join()


@breaks("Q19")
class TellsUnderItsLock(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        with self._state.lock:
            super()._tell(observer, events)


@breaks("Q19")
class TellsBeforeItChanges(MemoryMessageStore):
    """The observer does not see what it is told."""

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        now = self._state.snapshot()
        if events and events[0].kind is EventKind.PUT:
            self._state.rows.popitem()
        super()._tell(observer, events)
        self._state.restore(now)


@breaks("Q19")
class TellsWithinTheTransaction(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        if events:
            observer(events)


@breaks("Q19")
class TellsAtTheCommit(MemoryMessageStore):
    """It tells while other callers are kept out."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._state.lock, super().transaction():
            yield


@breaks("Q19")
class TellsAfterARollback(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        hooks = self.open_transaction()
        if hooks is not None:
            hooks.on_rollback(lambda: observer(events))
        super()._tell(observer, events)


@breaks("Q19")
class TellsNothingOfTransactions(MemoryMessageStore):
    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        if self.open_transaction() is None:
            super()._tell(observer, events)


@breaks("Q19")
class TellsNothingOfItsClosing(MemoryMessageStore):
    def close(self) -> None:
        self.observe(None)
        super().close()


@breaks("Q19")
class TellsNothingAfterAnError(MemoryMessageStore):
    """What a call noticed before it raised is told by nobody."""

    failed = False

    @contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            with super()._observed():
                try:
                    yield
                except Exception:
                    self.failed = True
                    raise
        finally:
            self.failed = False

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        if not self.failed:
            super()._tell(observer, events)


@breaks("Q19")
class TellsAllObservers(MemoryMessageStore):
    def observe(self, observer: Observer | None) -> None:
        super().observe(observer)
        vars(self._state).setdefault("observers", {})[id(self)] = observer

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        for each in list(vars(self._state)["observers"].values()):
            if each is not None:
                super()._tell(each, events)


@breaks("Q19")
class TellsOfRefusedPuts(MemoryMessageStore):
    def _put(self, entry: MessageEntry) -> int | None:
        id = super()._put(entry)
        if id is None and self._events is not None:
            self._events.append(MessageEvent(EventKind.PUT, entry.topic, self._now))
        return id


class _Says(MemoryMessageStore):
    """A store that says something else of some events, or nothing."""

    kind: ClassVar[EventKind | None] = None

    def _note(self, kind: EventKind, row: MessageRow, error: str | None = None) -> None:
        super()._note(kind, row, error)
        if self._events is not None and kind is self.kind:
            event = self._events.pop()
            self._events += self.says(event, row)

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return []


@breaks("Q19")
class TellsNoPut(_Says):
    kind = EventKind.PUT


@breaks("Q19")
class TellsNoClaim(_Says):
    kind = EventKind.CLAIMED


@breaks("Q19")
class TellsNoAck(_Says):
    kind = EventKind.ACKED


@breaks("Q19")
class TellsNoNack(_Says):
    kind = EventKind.NACKED


@breaks("Q19")
class TellsNoRelease(_Says):
    kind = EventKind.RELEASED


@breaks("Q19")
class TellsNoReclaim(_Says):
    kind = EventKind.RECLAIMED


@breaks("Q19")
class TellsNoDeath(_Says):
    kind = EventKind.DEAD


@breaks("Q19")
class TellsNoExpiry(_Says):
    kind = EventKind.EXPIRED


@breaks("Q19")
class TellsNoRedrive(_Says):
    kind = EventKind.REDRIVEN


@breaks("Q19")
class TellsNoCancel(_Says):
    kind = EventKind.CANCELLED


@breaks("Q19")
class TellsNoPurge(_Says):
    kind = EventKind.PURGED


@breaks("Q19")
class TellsOneOfAPurge(MemoryMessageStore):
    """One event stands for all, and its count is 1."""

    def _tell(self, observer: Observer, events: Sequence[MessageEvent]) -> None:
        purged = [event for event in events if event.kind is EventKind.PURGED]
        others = [event for event in events if event.kind is not EventKind.PURGED]
        super()._tell(observer, [*others, *(replace(event, id=None) for event in purged[:1])])


@breaks("Q19")
class TellsTheErrorOfBefore(_Says):
    kind = EventKind.NACKED

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return [replace(event, error=row.error)]


@breaks("Q19")
class TellsNoError(_Says):
    kind = EventKind.DEAD

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return [replace(event, error=None)]


@breaks("Q19")
class TellsTheAttemptsBeforeARelease(_Says):
    kind = EventKind.RELEASED

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return [replace(event, attempts=row.attempts + 1)]


@breaks("Q19")
class TellsAnotherTime(_Says):
    kind = EventKind.ACKED

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return [replace(event, time=row.time - 1.0)]


@breaks("Q19")
class TellsAnotherId(_Says):
    kind = EventKind.CLAIMED

    def says(self, event: MessageEvent, row: MessageRow) -> list[MessageEvent]:
        return [replace(event, id=row.id + 100)]


@breaks("Q19")
class TellsOfTheNextOfTheGroup(MemoryMessageStore):
    def _next_head(self, group: tuple[str, str]) -> None:
        super()._next_head(group)
        for row in self._state.select(State.READY):
            if row.group == group:
                self._note(EventKind.RELEASED, row)


@breaks("Q19")
class TellsAnExpiryAsAReturnToo(MemoryMessageStore):
    def _note_return(self, kind: EventKind, row: MessageRow, error: str | None = None) -> None:
        self._note(kind, row, error)


@breaks("Q19")
class TellsWhatJoinedStoresDo(MemoryMessageServerStore):
    def joined(self, connection: MemoryConnection) -> Self:
        joined = super().joined(connection)
        joined._told = True
        return joined

    _told = False

    def _tell(self) -> None:
        if self._observer is not None and self._told:
            tell(self, self._observer, self._present.events)
        super()._tell()


@breaks("Q19")
class TellsWhatTheServerHasNotDone(MemoryMessageServerStore):
    """A call whose connection was lost before the commit is told, too."""

    def _attempt(self, *arguments: Any) -> tuple[bool, Any]:
        lost, value = super()._attempt(*arguments)
        self._tell()
        return lost, value
