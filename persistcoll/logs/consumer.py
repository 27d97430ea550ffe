"""A consumer of a log: it gets every item, and remembers how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from persistcoll.arguments import checked_count, checked_integer
from persistcoll.container import Closable, T
from persistcoll.engine.blocking import deadline_after, wait
from persistcoll.engine.contracts import Claim
from persistcoll.engine.log_core import ConsumerCore
from persistcoll.errors import Empty

if TYPE_CHECKING:
    from persistcoll.logs.log import Log

__all__ = ["Consumer", "Place"]

R = TypeVar("R")
Place = str | int | datetime
"""Where to go in a log: ``"first"``, ``"last"``, a position, or a time."""


class Consumer(Closable, Generic[T]):
    """A named consumer of a :class:`~persistcoll.Log`, made by :meth:`~persistcoll.Log.consumer`.

    It gets every item of the log, in order. What it has committed it does not get again. After a crash, and
    after ``close()``, the consumer of this name begins after its position: so it gets again what it got and
    did not commit.

    Several threads may share one consumer, and each item goes to one of them. An iteration and
    :meth:`receive` commit their items one by one, and the position never passes an item that another thread
    still processes. An item that was got with :meth:`get` or :meth:`get_many` is committed together with any
    later one. :meth:`commit` passes everything that this object got, whichever thread got it.

    >>> from persistcoll import Log
    >>> with Log("events") as log:
    ...     log.extend(["created", "renamed", "deleted"])
    ...     with log.consumer("index") as consumer:
    ...         print(consumer.get(), consumer.get())
    ...         consumer.commit()
    ...     with log.consumer("index") as consumer:
    ...         print(consumer.position, consumer.lag, list(consumer))
    range(1, 4)
    created renamed
    2 1 ['deleted']

    A consumer cannot be pickled, because it is open in one object only. Another process opens the log, and
    the consumer by its name.
    """

    def __init__(self, log: Log[T], core: ConsumerCore, decode: Callable[[Any], tuple[int, T]]) -> None:
        self._log = log
        self._core = core
        self._decode = decode

    @property
    def name(self) -> str:
        """The name of the consumer."""
        return self._core.cursor.name

    # Getting.

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the next item.

        Cost: at most 1 read for many items, and no write.

        :param block: wait for an item at the end of the log.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :raise Empty: no item came.
        :raise TrimmedError: the next item was trimmed; ``seek("first")`` goes on.
        :raise DecodeError: the next item cannot be deserialized; ``seek(error.id + 1)`` goes on after it.
        :raise CorruptionError: the next item is damaged.
        :raise LockedError: in a forked child, while the parent has the consumer open.
        :raise ValueError: the timeout is negative.
        """
        deadline = deadline_after(block, timeout)
        claims: list[Claim] = []
        try:
            return self._attempt(partial(self._core.try_get, self._decode, claims), block, deadline)
        except BaseException:
            if claims:  # an interrupt came after the item was got
                self._core.release(claims)
            raise

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Return the next 1 to ``n`` items, in order. Only the first one is waited for.

        Cost: that of one :meth:`get`.

        :raise ValueError: ``n`` is below 1, or the timeout is negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        limit = checked_count("n", checked_integer("n", n), 1)
        deadline = deadline_after(block, timeout)
        claims: list[Claim] = []
        attempt = partial(self._core.try_get_many, limit, self._decode, claims)
        try:
            return self._attempt(attempt, block, deadline)
        except BaseException:
            if claims:  # an interrupt came after the items were got
                self._core.release(claims)
            raise

    def _attempt(self, attempt: Callable[[], R], block: bool, deadline: float | None) -> R:
        try:
            return attempt()
        except Empty:
            if not block:
                raise
        return wait(self._log._store.change_token, self._log._appended, attempt, Empty, deadline)

    @contextmanager
    def receive(self, block: bool = True, timeout: float | None = None) -> Iterator[T]:
        """Return a context manager that gets the next item, and commits it when its block ends well.

        When the block raises, the item is the next one again. The errors are those of :meth:`get`.

        Cost: that of one :meth:`get` and one :meth:`commit`.
        """
        deadline = deadline_after(block, timeout)
        claims: list[Claim] = []
        try:
            try:
                attempt = partial(self._core.try_get, self._decode, claims, True)
                yield self._attempt(attempt, block, deadline)
                self._core.ack(claims)
                claims.clear()
            except BaseException:
                if claims:
                    self._core.release(claims)
                    claims.clear()
                raise
        except BaseException:
            if claims:  # an interrupt came where releasing began
                self._core.release(claims)
            raise

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items to the end of the log.

        An item is committed when the next one is asked for. One at which the iteration is left has been got
        and is not committed.
        """
        return self._iterate(block=False)

    def follow(self) -> Iterator[T]:
        """Iterate as ``for item in consumer`` does, and wait at the end of the log for further items.

        Cost: for each item that of one :meth:`get` and one :meth:`commit`.
        """
        return self._iterate(block=True)

    def _iterate(self, block: bool) -> Generator[T, None, None]:
        claims: list[Claim] = []
        delivered = False
        try:
            try:
                while True:
                    try:
                        attempt = partial(self._core.try_get, self._decode, claims, True)
                        item = self._attempt(attempt, block, None)
                    except Empty:
                        return
                    delivered = True
                    yield item
                    self._core.ack(claims)
                    claims.clear()
                    delivered = False
            finally:
                self._end(claims, delivered)
        except BaseException:
            self._end(claims, delivered)  # again, if an interrupt came where ending began
            raise

    def _end(self, claims: list[Claim], delivered: bool) -> None:
        """End the claims of an iteration without an ack, and empty the list."""
        if claims:
            (self._core.forget if delivered else self._core.release)(claims)
            claims.clear()

    # Committing.

    def commit(self, position: int | None = None) -> None:
        """Say that everything up to a position is done. It is durable when the method returns.

        A position at or before :attr:`position` changes nothing: a commit only moves forward.

        Cost: 1 write of 28 bytes. At ``"power"`` also 1 sync, which threads that commit at the same time
        share.

        :param position: ``None``: that of the item that this object got last, in whichever thread.
        :raise TypeError: the position is not a whole number.
        :raise ValueError: the log has no such position yet.
        :raise StorageFullError: the disk has no room, and nothing was committed.
        """
        self._core.commit(None if position is None else checked_integer("position", position))

    def seek(self, place: Place) -> None:
        """Go to a place, so that its item is the next one, also after a crash.

        What this object got before and did not commit is forgotten.

        Cost: that of one :meth:`commit` to go forward. To go back, 1 sync of a file and 1 of the directory,
        at either level of durability, because a cursor that went back must not be trimmed past.

        :param place: a position; ``"first"``: that of the first item; ``"last"``: after the last item, so
            that the next one to be appended comes next; a :class:`~datetime.datetime`: the first item that
            was appended then or later. One without a time zone is in local time.
        :raise TrimmedError: the position was trimmed.
        :raise TypeError: ``place`` is none of these.
        :raise ValueError: the log does not come to that position yet, or ``place`` is another text, or below
            1.
        """
        self._log._going_to(place, self._core.seek)

    @property
    def position(self) -> int:
        """The position up to which everything is committed; 0 if nothing is."""
        return self._core.position

    @property
    def lag(self) -> int:
        """How many items of the log are not committed."""
        return self._core.lag()

    # Closing.

    def close(self) -> None:
        """Let others open the consumer. It commits nothing. Idempotent.

        Cost: at most 1 write and 1 sync, at either level of durability.
        """
        self._core.close()

    def __del__(self) -> None:
        core = self.__dict__.get("_core")
        if core is not None:
            core.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} is open in this object only; another process opens the log, and the consumer by its"
            " name"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._log._place}>"
