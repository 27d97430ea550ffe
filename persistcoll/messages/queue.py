"""The message queue: topics, priorities, delays, leases, retries and dead letters."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from persistcoll.arguments import checked_number_of, checked_seconds
from persistcoll.container import T, option
from persistcoll.engine.blocking import deadline_after, wait
from persistcoll.engine.contracts import Awaited, MessageStore
from persistcoll.engine.message_core import MessageCore
from persistcoll.engine.message_events import MessageEvent
from persistcoll.engine.message_records import MessageClaim, MessageEntry
from persistcoll.engine.records import Backoff, Durability
from persistcoll.engine.transaction_hooks import OPEN
from persistcoll.errors import StorageError
from persistcoll.messages.base import BaseMessageQueue
from persistcoll.messages.claiming import Claiming, Wanted
from persistcoll.messages.fields import checked_lease, checked_topics, entry_of
from persistcoll.messages.message import Message, OutgoingMessage
from persistcoll.options import MessageQueueOptions, ServerMessageQueueOptions, database_options
from persistcoll.serializers import resolve
from persistcoll.serializers.base import encode
from persistcoll.serializers.registry import sealed
from persistcoll.sqlite.open import open_message_store

if TYPE_CHECKING:
    from persistcoll.servers.message_store import ServerMessageStore

__all__ = ["MessageQueue", "open_store"]


class _Unfinished(Exception):
    """Raised within a wait while there are unfinished messages."""


def open_store(options: MessageQueueOptions | ServerMessageQueueOptions) -> MessageStore:
    """Return the store of a message queue, without anything that waits. It raises what the queue raises."""
    serializer = resolve(options.serializer)
    if isinstance(options, ServerMessageQueueOptions):
        return sealed(_open_on_server(options, serializer.name), serializer)
    store = open_message_store(
        options.location,
        name=options.name,
        policy=options.policy,
        serializer=serializer.name,
        executes_code=serializer.executes_code,
        durability=options.durability,
        observer=options.observer,
    )
    return sealed(store, serializer)


def _open_on_server(options: ServerMessageQueueOptions, serializer: str) -> ServerMessageStore:
    from persistcoll.servers import open as servers  # most programs have no server

    return servers.open_message_store(
        options.address,
        name=options.name,
        policy=options.policy,
        serializer=serializer,
        durability=options.durability,
        schema=options.schema,
        create=options.create,
        timeout=options.timeout,
        observer=options.observer,
    )


class MessageQueue(BaseMessageQueue[T]):
    """A queue of messages with topics, priorities, delays, leases, retries and dead letters, in a database.

    The database is a file of SQLite, or on a server of PostgreSQL or MySQL, which processes on several
    machines share.

    A consumer gets a :class:`Message` and settles it. If it does not, because its process dies or works for
    longer than the *lease*, the message is delivered again. After ``max_attempts`` deliveries it is a *dead
    letter*, which stays stored until a program looks at it. :doc:`/explanation/message-guarantees` says what
    the queue guarantees.

    Any thread may call any method. Several processes may put and get at the same time, and a message is
    claimed by at most one consumer at a time. In a forked child the queue can be used, too.

    Cost: opening takes the same time at any backlog. Each method names its own cost.

    >>> from persistcoll import MessageQueue
    >>> with MessageQueue("jobs") as jobs:
    ...     print(jobs.put("resize a.png", topic="images"))
    ...     print(jobs.put("resize b.png", topic="images", priority=5))
    ...     print(jobs.put("remind ann", topic="mails", delay=3600))
    ...     with jobs.get("images") as message:
    ...         print(message.body)
    ...     print(jobs.topics())
    1
    2
    3
    resize b.png
    {'images': 1, 'mails': 0}

    A consumer that works until the queue is shut down:

    >>> with MessageQueue("jobs") as jobs:
    ...     for message in jobs.consume("images"):
    ...         with message:
    ...             print(message.body)
    ...             jobs.shutdown()
    resize a.png

    On a server a message comes back with its lease, and nothing notices earlier that its consumer died. So
    everything there has a lease, also a lock of a topic. There is no :meth:`transaction`: pass a connection
    of your own to the methods that take one. :doc:`/how-to/servers` says what else differs.

    :param target: where the database is: the directory or the file of one in SQLite, as the ``path`` of a
        :class:`SQLiteQueue`; or the URL of one on a server, as for :class:`PostgresQueue` and
        :class:`MySQLQueue`.
    :param name: queues with different names share a database and do not see each other's messages. At most
        255 bytes of UTF-8.
    :param lease: seconds after which a claim ends by itself; ``None``: it lasts until its process dies or its
        queue is closed. A message may have a lease of its own, as well as the next two.
    :param max_attempts: a message that was delivered this often is a dead letter when its claim ends without
        an ack; ``None``: never.
    :param backoff: how long a message is delayed after a ``nack``: a number of seconds, or a
        :class:`~persistcoll.Backoff`, which grows with each attempt; ``None``: not at all.
    :param keep_done: how many of the newest acked messages stay in the database, at least.
    :param keep_dead: how many of the newest dead letters stay, at least; ``None``: all.
    :param events: a function that is called with a :class:`MessageEvent` for each thing that this object does
        to a message, or notices, as the end of a lease. It is called in the thread that does it, after the
        commit and without any lock: it may use the queue, and it keeps only its own thread waiting. In a
        :meth:`transaction` it is called after the end, and not at all after a rollback. What it raises is
        logged (logger ``persistcoll``). :doc:`/how-to/monitoring` shows what it is for.

    :param password: of the server's user, if the URL has none. It is never shown, and a pickle of the queue
        has none: where it is unpickled, the password is ``PERSISTCOLL_PASSWORD``.
    :param schema: where the tables are, on PostgreSQL; ``None``: where the server looks first.

    ``serializer``, ``durability``, ``timeout``, ``db_file_name``, ``trust_directory``, ``allow_network_fs``,
    ``mode``, ``read_only`` and ``create`` are those of :class:`SQLiteQueue`. On a server ``serializer``,
    ``durability``, ``timeout`` and ``create`` are those of :class:`PostgresQueue`; the others apply to files,
    and ``password`` and ``schema`` to servers. All objects of one queue should
    have the same ``lease``, ``max_attempts``, ``backoff``, ``keep_done`` and ``keep_dead``, because each
    object applies its own.

    :raise TypeError: an option is of a wrong type.
    :raise ValueError: a number is negative or not finite, or ``lease`` is 0, or ``None`` on a server; or an
        option applies to the other place.

    It raises the other errors that :class:`SQLiteQueue` raises as well, and on a server those that
    :class:`PostgresQueue` raises.
    """

    _changing = (
        *BaseMessageQueue._changing, "put", "put_many", "get", "get_many", "consume", "ack_many",
    )  # fmt: skip

    lease: float | None = option("lease")
    max_attempts: int | None = option("max_attempts")
    backoff: Backoff | None = option("backoff")
    keep_done: int = option("keep_done")
    keep_dead: int | None = option("keep_dead")
    events: Callable[[MessageEvent], object] | None = option("events")

    def __init__(
        self,
        target: str | os.PathLike[str],
        name: str = "messages",
        *,
        lease: float | None = 60.0,
        max_attempts: int | None = 5,
        backoff: float | Backoff | None = Backoff(),  # noqa: B008 - immutable
        keep_done: int = 0,
        keep_dead: int | None = None,
        events: Callable[[MessageEvent], object] | None = None,
        serializer: Any = pickle,
        durability: Durability = "power",
        timeout: float = 10.0,
        db_file_name: str | None = None,
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        create: bool = True,
        password: str | None = None,
        schema: str | None = None,
    ) -> None:
        given = {**locals(), "path": target, "multithreading": True, "auto_commit": True}
        options = database_options(given, MessageQueueOptions, ServerMessageQueueOptions, "a message queue")
        self._open(options)

    def _open_store(self, options: MessageQueueOptions | ServerMessageQueueOptions) -> MessageStore:
        return open_store(options)

    @classmethod
    def _wanted(cls, name: str, serializer: str) -> Any:
        from persistcoll.servers.open import wanted_messages

        return wanted_messages(name, serializer)

    @property
    def target(self) -> str:
        """Where the queue is: the path of its database, or the URL of its server without a password."""
        return self.url if isinstance(self._options, ServerMessageQueueOptions) else self.path

    def _attach(self, store: Any) -> None:
        super()._attach(store)
        self._claiming: Claiming[T] = Claiming(self._core, self._decode)

    def _at(self, connection: Any) -> MessageCore:
        return self._core if connection is None else self._core.joined(connection)

    # Putting.

    def put(
        self,
        body: T,
        *,
        topic: str = "default",
        priority: float = 0,
        delay: float | datetime = 0,
        key: str | bytes | None = None,
        key_window: float | None = None,
        group: str | None = None,
        lease: float | EllipsisType | None = ...,
        max_attempts: int | EllipsisType | None = ...,
        backoff: float | Backoff | EllipsisType | None = ...,
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
        connection: Any = None,
    ) -> int | None:
        """Store a message. It is durable on return, as ``durability`` of the queue says.

        >>> from persistcoll import MessageQueue
        >>> with MessageQueue("mails") as mails:
        ...     print(mails.put("welcome ann", key="welcome/7"))
        ...     print(mails.put("welcome ann", key="welcome/7"))
        ...     print(mails.put("invoice", group="ann", headers={"trace": "7f"}, ttl=86400))
        1
        None
        2

        Cost: 1 transaction. At ``"power"`` also 1 sync of the device, which takes most of the time, and which
        threads that write at the same time share; at ``"process"`` none. A ``key`` is one row more.

        :param topic: what consumers choose messages by, at most 255 bytes of UTF-8.
        :param priority: the highest comes first, and among equal ones the oldest. A number that a float
            represents exactly.
        :param delay: seconds until it may be delivered, or the aware ``datetime`` from which on it may be.
        :param key: while another message with this key is unfinished, nothing is stored. All topics of the
            queue share their keys. A str and bytes are never equal.
        :param key_window: seconds after the put for which the key stays active in any case, even if the
            message is finished earlier.
        :param group: the messages of one topic and one group are delivered one at a time, in the order in
            which they were put. At most 255 bytes of UTF-8.
        :param lease: as that of the queue, for this message; ``None``: without a lease.
        :param max_attempts: as that of the queue, for this message; ``None``: without a limit.
        :param backoff: as that of the queue, for this message; ``None``: without one.
        :param ttl: seconds after which it is removed unless it has been delivered; ``None``: never.
        :param headers: a dict of str to str, which comes with the message.
        :param connection: a connection of a database server with a transaction of the caller, of which this
            becomes a part. In SQLite :meth:`transaction` does that.
        :return: its id; ``None`` if its key is active, so that nothing was stored. Ids grow, and none is used
            twice.
        :raise ShutDown: :meth:`shutdown` was called.
        :raise EncodeError: the serializer cannot store this body.
        :raise TypeError: an option is of a wrong type.
        :raise ValueError: an option is negative, not finite, too long, or cannot be stored; ``delay`` is a
            ``datetime`` without a time zone, or not shorter than ``ttl``; or ``connection`` is given, and the
            queue joins no transactions.
        :raise StorageFullError: the disk has no room; nothing is stored.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open, for
            longer than ``timeout``.
        :raise StorageError: the storage failed; the message says so if the outcome is unknown.
        """
        if isinstance(body, OutgoingMessage):
            raise TypeError(
                "put() takes the options of a message as parameters; put_many() takes this object"
            )
        message = OutgoingMessage(
            body, topic, priority, delay, key, key_window, group, lease, max_attempts, backoff, ttl, headers
        )
        return self._at(connection).try_put([self._entry(message)])[0]

    def put_many(
        self, messages: Iterable[T | OutgoingMessage[T]], *, connection: Any = None, **defaults: Any
    ) -> list[int | None]:
        """Store several messages, in order, or none of them.

        Cost: that of one :meth:`put`, however many messages there are.

        :param messages: of each the body, or an :class:`OutgoingMessage` with options of its own.
        :param defaults: parameters of :meth:`put`, for those that are only bodies.
        :return: for each message what :meth:`put` would return. Of several with one key the first is stored.

        It raises the errors that :meth:`put` raises.
        """
        # All of them are checked, even if no message uses them.
        default = entry_of(b"", vars(OutgoingMessage(None, **defaults)))
        return self._at(connection).try_put(
            [
                self._entry(each)
                if isinstance(each, OutgoingMessage)
                else default._replace(payload=encode(self._codec, each))
                for each in messages
            ]
        )

    def _entry(self, message: OutgoingMessage[Any]) -> MessageEntry:
        return entry_of(encode(self._codec, message.body), vars(message))

    # Getting.

    def get(
        self,
        topic: str | Iterable[str] | None = None,
        block: bool = True,
        timeout: float | None = None,
        *,
        lease: float | None = None,
        connection: Any = None,
    ) -> Message[T]:
        """Return the next message, and claim it. The consumer settles it; a ``with`` block does that.

        A message that cannot be deserialized is nacked with the error as ``last_error``, and the next one is
        returned. One whose stored bytes are damaged is a dead letter at once.

        In the block of :meth:`transaction`, and with ``connection``, nothing is waited for.

        Cost: 1 transaction, without a sync. Of the threads of a process that wait, one looks at the queue, up
        to 100 times a second.

        :param topic: the topic, or several; ``None``: any. Topics that are paused, limited or locked by
            another object are passed over.
        :param block: wait for a message while none can be delivered.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :param lease: seconds after which the claim ends by itself; ``None``: as the message or else the queue
            says.
        :param connection: as for :meth:`put`. To settle the message in the same transaction, its methods take
            the connection, too.
        :raise Empty: no message could be delivered.
        :raise ShutDown: :meth:`shutdown` was called, and no message is ready.
        :raise TypeError: ``topic`` is no name and no names, or a number is none.
        :raise ValueError: ``timeout`` is negative; ``lease`` is not above 0, or not finite; no topic was
            named, or one that is too long; or the queue joins no transactions.
        :raise LockedError: another program keeps the database locked, or a transaction in it is open, for
            longer than ``timeout``; where that is ``None``, for longer than the queue's own ``timeout``.
        """
        wanted = Wanted(1, checked_topics(topic), _lease(lease))
        deadline, core = deadline_after(block, timeout), self._at(connection)
        claims: list[MessageClaim] = []
        process = os.getpid()
        try:
            return self._claiming.claim(core, wanted, claims, block, deadline)[0]
        except BaseException:
            core.take_back(claims, process)
            raise

    def get_many(
        self,
        n: int,
        topic: str | Iterable[str] | None = None,
        block: bool = True,
        timeout: float | None = None,
        *,
        linger: float = 0.0,
        lease: float | None = None,
        connection: Any = None,
    ) -> list[Message[T]]:
        """Return the next 1 to ``n`` messages, and claim them.

        Only the first one is waited for, unless ``linger`` says more.
        They have one group at most once, and of a limited topic they are as many as its rate allows now.

        Cost: that of one :meth:`get`. With a ``linger`` that of two or three: what is ready is claimed at
        once and the rest together at the end of the wait, and leases of which a tenth has passed by then
        begin again.

        :param linger: seconds to wait, when the first messages are claimed, until there are ``n``. In the
            block of :meth:`transaction`, and with ``connection``, nothing is waited for. A message whose
            lease is over before the end of the wait is not returned.
        :raise ValueError: ``n`` is below 1, or ``linger`` negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        wanted = Wanted(checked_number_of("n", n), checked_topics(topic), _lease(lease))
        seconds = checked_seconds("linger", linger)
        deadline, core = deadline_after(block, timeout), self._at(connection)
        claims: list[MessageClaim] = []
        process = os.getpid()
        try:
            return self._claiming.claim_batch(core, wanted, claims, block, deadline, seconds)
        except BaseException:
            core.take_back(claims, process)
            raise

    def consume(
        self, topic: str | Iterable[str] | None = None, *, lease: float | None = None, prefetch: int = 1
    ) -> Generator[Message[T], None, None]:
        """Return an iterator that gets one message after the other, and waits for ever, until a shutdown.

        One thread at a time may use it. The consumer settles each message; the iteration settles none. At its
        end, however it comes, what was only prefetched is released. A prefetched message whose lease is over
        is not yielded, and an iteration extends the leases of its prefetched messages each time that it is
        asked for the next one. In the block of :meth:`transaction` it raises ``Empty`` where it would wait.

        Cost: for each ``prefetch`` messages that of one :meth:`get`. With a ``prefetch`` above 1 also 1
        transaction without a sync for each message, which notes that the work on it begins, and now and then
        one for the leases.

        :param topic: as for :meth:`get`.
        :param lease: as for :meth:`get`.
        :param prefetch: how many messages to claim at once. A crash does not count as an attempt for those
            that were only prefetched.
        :raise TypeError: ``topic`` is no name and no names, or a number is none.
        :raise ValueError: ``prefetch`` is below 1, or what :meth:`get` refuses.
        """
        limit = checked_number_of("prefetch", prefetch)
        wanted = Wanted(limit, checked_topics(topic), _lease(lease), limit > 1)
        return self._claiming.consume(wanted, self)

    def ack_many(self, messages: Iterable[Message[T]], *, connection: Any = None) -> None:
        """Ack several messages that were got, all of them or none.

        Cost: that of one :meth:`Message.ack`, however many messages there are.

        :raise StaleClaimError: some of the claims have ended, and no message is acked. The ``ids`` of the
            error name the messages of these claims, so that the caller can ack the others.
        :raise TypeError: one of them is no :class:`Message`.
        :raise ValueError: ``connection`` is given, and the queue joins no transactions.
        """
        held = list(messages)
        for message in held:
            if not isinstance(message, Message):
                raise TypeError(
                    f"'messages' must be messages that get() returned, not {type(message).__name__}"
                )
        core = self._at(connection)
        for_good = connection is None and not (OPEN and self._store.open_transaction() is not None)
        wakes: dict[str | None, int | None] = {}
        for message in held:
            if message.group is not None:
                wakes[message.topic] = (wakes.get(message.topic) or 0) + 1
        core.ack([message._claim for message in held], wakes)
        for message in held:
            message._note_settled(for_good)

    # The end.

    def join(self) -> None:
        """Wait until no message is ready, delayed, blocked or claimed, by whichever process.

        Messages of a paused topic count, and dead letters do not.

        Cost: no write and no sync. A waiting thread looks at the queue now and then, for well under 1 % of a
        core.

        :raise StorageError: it was called in the block of :meth:`transaction`, whose end nobody could see.
        """

        def attempt() -> None:
            if self._store.has_unfinished():
                raise _Unfinished

        if OPEN and self._store.open_transaction() is not None:
            if self._store.has_unfinished():
                raise StorageError(
                    "join() would wait for ever, because nothing can be finished by others before this"
                    " transaction ends; leave its block first"
                )
            return
        wait(self._store.watch(Awaited.LEFT), self._core.all_done, attempt, _Unfinished, None)

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse every ``put``, and every ``get`` once no message is ready; end every ``consume``.

        Waiting threads are woken and raise ``ShutDown``. Each ``consume`` ends before its next message, and
        releases what it has only prefetched. Messages that consumers have got may be settled. Only this
        object is shut down: nothing stored is removed, and other objects and processes do not notice.

        Cost: no write and no sync.

        :param immediate: refuse every ``get`` at once.
        """
        self._core.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether :meth:`shutdown` was called."""
        return self._core.is_shutdown

    def close(self) -> None:
        """Close the queue. Idempotent.

        Messages that were got and not settled are delivered again, and the delivery counts as an attempt.
        Locks of topics end.

        Cost: 1 transaction without a sync if something is claimed or locked. In a file the last object on it
        makes a checkpoint with 2 syncs.
        """
        self._closed = True
        self._core.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._core.after_fork()


def _lease(lease: float | None) -> float | EllipsisType:
    return ... if lease is None else checked_lease(lease)
