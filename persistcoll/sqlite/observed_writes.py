"""Tell the observer of a message store what the writes of the store have done to messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from persistcoll.engine.message_events import MessageEvent, Observer, tell
from persistcoll.sqlite.driver import Execute

if TYPE_CHECKING:
    from persistcoll.sqlite.message_store import SQLiteMessageStore

__all__ = ["ObservedWrites", "Write"]

T = TypeVar("T")


class Write(Protocol):
    """The method ``write`` of a :class:`~persistcoll.sqlite.database.Database`, or what takes its place."""

    def __call__(
        self,
        run: Callable[[Execute], T],
        sync: bool,
        single_change: bool = False,
        after: Callable[[T], Any] | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> T:
        """Execute ``run`` in a transaction, commit it, and return what ``run`` returned."""


class ObservedWrites:
    """The writes of one store. Any thread may call it, and no field changes.

    Another thread may execute ``run`` together with its own write, and may do so again after an interrupt. So
    each call has a list of its own, which the steps of the messages fill under the database's lock.
    """

    def __init__(self, store: SQLiteMessageStore, observer: Observer) -> None:
        self._store = store
        self._database, self._life = store._database, store._life
        self._observer = observer

    def __call__(self, run: Callable[[Execute], T], sync: bool, *arguments: Any, **options: Any) -> T:
        """Write as the database does, and then tell the observer what is committed of it."""
        events: list[MessageEvent] = []
        refusal: Exception | None = None

        def observed(execute: Execute) -> T:
            nonlocal refusal
            events.clear()
            refusal = None
            self._life.events = events
            try:
                return run(execute)
            except Exception as error:
                if self._database.is_refusal(error):
                    refusal = error
                raise

        try:
            value: T = self._database.write(observed, sync, *arguments, **options)
        except Exception as error:
            # Of a refusal what was due is committed. After any other error nothing is, or nobody knows.
            is_committed = error is refusal
            refusal = None  # otherwise the error and this frame would refer to each other
            if is_committed:
                tell(self._store, self._observer, events)
            raise
        tell(self._store, self._observer, events)
        return value
