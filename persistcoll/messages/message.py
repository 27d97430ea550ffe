"""A message: what is put, what a consumer gets, and what a look at the queue shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from persistcoll.arguments import checked_delay, checked_span, error_text
from persistcoll.container import T
from persistcoll.engine.message_core import MessageCore, Wakes
from persistcoll.engine.message_records import MessageClaim, MessageRecord
from persistcoll.engine.records import Backoff, State
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import DecodeError, NotClaimedError, StaleClaimError
from persistcoll.messages.fields import headers_of, key_of, text_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Message", "MessageInfo", "OutgoingMessage"]


@dataclass(frozen=True)
class OutgoingMessage(Generic[T]):
    """A message for :meth:`MessageQueue.put_many`, with options of its own.

    Each field is the parameter of :meth:`MessageQueue.put` of its name.

    >>> from persistcoll import MessageQueue, OutgoingMessage
    >>> with MessageQueue("mails") as mails:
    ...     mails.put_many(["newsletter", OutgoingMessage("new password", priority=9)])
    ...     print(mails.get().body)
    [1, 2]
    new password
    """

    body: T
    topic: str = "default"
    priority: float = 0
    delay: float | datetime = 0
    key: str | bytes | None = None
    key_window: float | None = None
    group: str | None = None
    lease: float | EllipsisType | None = ...
    max_attempts: int | EllipsisType | None = ...
    backoff: float | Backoff | EllipsisType | None = ...
    ttl: float | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class MessageInfo(Generic[T]):
    """A message as a look at the queue shows it. Immutable.

    Times are seconds since the epoch by the queue's clock, which no setting of the system's clock moves.
    """

    id: int
    topic: str
    priority: float
    state: State
    attempts: int
    """How many of its deliveries count towards ``max_attempts``."""
    deliveries: int
    """How often it was delivered. The number never falls."""
    enqueued_at: float
    """When it was put."""
    due_at: float | None
    """When its delay ends; ``None`` unless it is delayed, or blocked with a delay."""
    headers: Mapping[str, str]
    key: str | bytes | None
    group: str | None
    last_error: str | None
    """Why its last delivery failed, or why it is dead; ``None`` if nothing failed."""
    leased_until: float | None
    """When its lease ends; ``None`` unless it is claimed with a lease."""
    finished_at: float | None
    """When it became done or dead; ``None`` while it is unfinished."""
    _body: T | None = field(repr=False)
    _refusal: str | None = field(repr=False)

    @property
    def body(self) -> T:
        """What was put.

        :raise DecodeError: it cannot be deserialized. All other attributes can be read.
        """
        if self._refusal is not None:
            raise DecodeError(self._refusal, self.id)
        return self._body  # type: ignore[return-value]


class Message(Generic[T]):
    """A message that a consumer has got and may settle, once.

    Each of :meth:`ack`, :meth:`nack`, :meth:`release` and :meth:`fail` settles it. As a context manager it is
    acked where the block ends well. Where the block raises an :exc:`Exception`, it is nacked with the
    exception's type and text as ``last_error``. Where something else ends the block, such as
    :exc:`KeyboardInterrupt` or the cancellation of a task, it is released. What the block has settled already
    stays as it is.

    The queue decides whether the claim holds, and this object remembers no truth. So any thread may settle
    it. After a rollback of the transaction that has settled it, it can be settled again. A forked child that
    leaves the block settles nothing, because its parent does.

    >>> from persistcoll import MessageQueue
    >>> with MessageQueue("jobs") as queue:
    ...     id = queue.put("resize", headers={"trace": "7f"})
    ...     with queue.get() as message:
    ...         print(message.body, message.topic, message.attempts, message.headers["trace"])
    ...     print(queue.find(id))
    resize default 1 7f
    None

    A message that its consumer cannot process is delivered again, after a while, until its attempts are used
    up. Then it is a dead letter:

    >>> with MessageQueue("jobs", max_attempts=1) as queue:
    ...     id = queue.put("resize")
    ...     with queue.get() as message:
    ...         raise ValueError("no image")
    Traceback (most recent call last):
    ValueError: no image
    >>> with MessageQueue("jobs") as queue:
    ...     for letter in queue.dead_letters():
    ...         print(letter.body, letter.last_error)
    resize ValueError: no image
    """

    __slots__ = ("_core", "_is_settled", "_leased_until", "_process", "_record", "_settled_for_good", "body")

    def __init__(self, core: MessageCore, record: MessageRecord, body: T) -> None:
        self._core = core
        self._record = record
        self._leased_until = record.until
        self._is_settled = False
        # Whether no rollback can undo that it was settled.
        self._settled_for_good = False
        self._process = os.getpid()
        self.body = body

    @property
    def id(self) -> int:
        """The id, as ``put`` returned it."""
        return self._record.id

    @property
    def topic(self) -> str:
        """The topic."""
        return self._record.topic

    @property
    def priority(self) -> float:
        """The priority; the highest comes first."""
        return self._record.priority

    @property
    def attempts(self) -> int:
        """How many deliveries count towards ``max_attempts``, this one included."""
        return self._record.attempts

    @property
    def deliveries(self) -> int:
        """How often the message was delivered, this time included. The number never falls."""
        return self._record.deliveries

    @property
    def enqueued_at(self) -> float:
        """When it was put: seconds since the epoch, by the queue's clock."""
        return self._record.time

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, as a new dict."""
        return headers_of(self._record)

    @property
    def key(self) -> str | bytes | None:
        """The key; ``None`` without one."""
        return key_of(self._record)

    @property
    def group(self) -> str | None:
        """The group; ``None`` without one."""
        return self._record.group

    @property
    def last_error(self) -> str | None:
        """Why an earlier delivery failed; ``None`` if none did."""
        return self._record.error

    @property
    def leased_until(self) -> float | None:
        """When the lease ends: seconds since the epoch, by the queue's clock; ``None`` without a lease."""
        return self._leased_until

    def raw(self) -> bytes:
        """Return the body as it is stored. Cost: no write and no sync."""
        return self._record.payload

    @property
    def _claim(self) -> MessageClaim:
        claim = self._record.claim
        assert claim is not None
        return claim

    @property
    def _is_parents(self) -> bool:
        """Whether this is a forked child, and its parent is the one that settles the message."""
        return self._process != os.getpid()

    @property
    def _wakes(self) -> Wakes:
        """What the end of this message makes ready: without a group nothing, otherwise the next message."""
        return {} if self._record.group is None else {self._record.topic: 1}

    # Settling.

    def ack(self, *, connection: Any = None) -> None:
        """Finish the message, so that it is never delivered again.

        Cost: 1 transaction. At ``"power"`` also 1 sync, which threads that write at the same time share.

        :param connection: a connection of a database server with a transaction of the caller, of which this
            becomes a part. In SQLite :meth:`MessageQueue.transaction` does that.
        :raise StaleClaimError: the claim has ended, for example because the lease ran out. Another consumer
            may have the message.
        :raise NotClaimedError: this object has settled the message already.
        :raise ValueError: ``connection`` is given, and the queue joins no transactions.
        :raise StorageError: the storage failed; the message says so if the outcome is unknown.
        """
        self._settle(connection, lambda core: core.ack((self._claim,), self._wakes))

    def nack(
        self, delay: float | datetime | None = None, error: str | None = None, *, connection: Any = None
    ) -> None:
        """Return the message to its place, or make it dead if it has no attempts left.

        Cost: that of :meth:`ack`. Errors: those of :meth:`ack`.

        :param delay: seconds until it may be delivered again, or an aware ``datetime``; ``None``: as its
            back-off says.
        :param error: becomes ``last_error``, up to 10,000 characters; ``None``: it stays as it is.
        :raise TypeError: ``delay`` is no number and no ``datetime``, or ``error`` is no str.
        :raise ValueError: ``delay`` is negative, not finite, or a ``datetime`` without a time zone.
        """
        seconds, text = None if delay is None else checked_delay(delay), text_of(error)
        wakes: Wakes = {self._record.topic: 1 if seconds == 0 else None}
        self._settle(connection, lambda core: core.nack((self._claim,), wakes, seconds, text))

    def release(self, *, connection: Any = None) -> None:
        """Return the message to its place at once, as if it had not been delivered: no attempt counts.

        Cost: 1 transaction, without a sync. Errors: those of :meth:`ack`.
        """

        def release(core: MessageCore) -> None:
            if not core.release((self._claim,), {self._record.topic: 1}):
                raise StaleClaimError(f"the claim of message {self.id} has ended", [self.id])

        self._settle(connection, release)

    def fail(self, error: str | None = None, *, connection: Any = None) -> None:
        """Make the message a dead letter now, whatever attempts it has left.

        Cost: that of :meth:`ack`. Errors: those of :meth:`ack`.

        :param error: becomes ``last_error``, up to 10,000 characters; ``None``: it stays as it is.
        :raise TypeError: ``error`` is no str.
        """
        text = text_of(error)
        self._settle(connection, lambda core: core.fail((self._claim,), self._wakes, text))

    def extend(self, seconds: float | None = None, *, connection: Any = None) -> None:
        """Let the lease end so many seconds from now, which may be earlier than before.

        Cost: 1 transaction, without a sync. Errors: those of :meth:`ack`.

        :param seconds: ``None``: the length of the lease with which the message was got.
        :raise TypeError: ``seconds`` is not a number.
        :raise ValueError: ``seconds`` is not above 0, or not finite.
        """
        length = self._record.lease if seconds is None else checked_span("seconds", seconds)

        def extend(core: MessageCore) -> None:
            self._leased_until = core.extend(self._claim, self.topic, length, self._leased_until)

        self._ask(self._core if connection is None else self._core.joined(connection), extend)

    def _settle(self, connection: Any, verb: Callable[[MessageCore], object]) -> None:
        core = self._core if connection is None else self._core.joined(connection)
        within = connection is not None or (OPEN and core.store.open_transaction() is not None)
        self._ask(core, verb)
        self._note_settled(not within)

    def _note_settled(self, for_good: bool) -> None:
        self._is_settled, self._settled_for_good = True, for_good

    def _ask(self, core: MessageCore, verb: Callable[[MessageCore], object]) -> None:
        """Call a verb of the core. What this object remembers only chooses the class of the error."""
        try:
            verb(core)
        except StaleClaimError as error:
            if self._is_settled:
                raise NotClaimedError(f"message {self.id} was settled already") from error
            raise

    # The block.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settled_for_good:
            return
        try:
            if self._is_parents:
                return
            if error is None:
                self.ack()
            elif isinstance(error, Exception):
                self.nack(error=error_text(error))
            else:
                self.release()
        except NotClaimedError:  # The block has settled it, in a transaction that was not rolled back.
            pass
        except StaleClaimError:
            if error is None:
                raise
            # Otherwise the block's own error is raised.
        except Exception:
            raise
        except BaseException:  # A signal handler raised, perhaps before the message was settled.
            if not self._is_parents:
                self._core.release_unused([self._claim])
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} is claimed by this process, so it can be neither copied nor pickled")

    def __repr__(self) -> str:
        state = "settled" if self._is_settled else f"attempt {self.attempts}"
        return f"<Message {self.id} of topic {self.topic!r}, {state}>"
