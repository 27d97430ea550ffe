"""The lock of a topic: while it is held, one object alone gets messages of the topic."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from persistcoll.arguments import checked_span
from persistcoll.engine.message_core import MessageCore
from persistcoll.engine.message_records import TopicClaim

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TopicLock"]


class TopicLock:
    """A lock of a topic, made by :meth:`MessageQueue.lock_topic`. A ``with`` block releases it at its end.

    It also ends when its lease is over, when its queue is closed, and when its process dies. Any thread may
    call any method. A forked child that leaves the block releases nothing, because its parent does.

    >>> from persistcoll import Empty, MessageQueue
    >>> with MessageQueue("jobs") as mine, MessageQueue("jobs") as other:
    ...     ids = mine.put_many(["a", "b"], topic="reports")
    ...     with mine.lock_topic("reports") as lock:
    ...         try:
    ...             other.get("reports", block=False)
    ...         except Empty:
    ...             print(mine.get(lock.topic).body)
    ...     print(other.get("reports").body)
    a
    b
    """

    def __init__(self, core: MessageCore, claim: TopicClaim, lease: float | None) -> None:
        self._core = core
        self._claim = claim
        self._lease = lease
        self._process = os.getpid()

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._claim.topic

    def extend(self, seconds: float | None = None) -> None:
        """Let the lock end so many seconds from now, which may be earlier than before.

        Cost: 1 transaction, without a sync.

        :param seconds: ``None``: as long as the lock was made for.
        :raise StaleClaimError: the lock has ended.
        :raise TypeError: ``seconds`` is not a number.
        :raise ValueError: ``seconds`` is not above 0, or not finite.
        """
        length = self._lease if seconds is None else checked_span("seconds", seconds)
        self._core.change(lambda store: store.extend_lock(self._claim, length), self.topic)

    def release(self) -> None:
        """End the lock, if it has not ended yet. Idempotent.

        Cost: 1 transaction, without a sync.
        """
        self._core.change(lambda store: store.unlock_topic(self._claim), self.topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._release_own()
        except Exception:
            raise
        except BaseException:  # A signal handler may have raised before the release.
            self._release_own()
            raise

    def _release_own(self) -> None:
        """Release it, but not in a forked child."""
        if self._process == os.getpid():
            self.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} is held by this process, so it can be neither copied nor pickled")

    def __repr__(self) -> str:
        return f"<TopicLock of {self.topic!r}>"
