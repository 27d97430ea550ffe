"""What every queue class offers: the standard library's interface, over serialized items.

Each class of queues opens a store, and adds ``put`` and ``get``, because their parameters differ. The waits
are in :mod:`persistcoll.engine.blocking`. The store decides what is stored, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from persistcoll.arguments import (
    checked_count,
    checked_integer,
    checked_number_of,
    checked_seconds,
    error_text,
)
from persistcoll.container import Container, T
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import Claim
from persistcoll.engine.queue_core import Decode, QueueCore
from persistcoll.engine.records import Stats
from persistcoll.options import Options
from persistcoll.serializers import codec
from persistcoll.serializers.base import encode_error, record_decoder

__all__ = ["BaseQueue"]

R = TypeVar("R")


class BaseQueue(Container, Generic[T]):
    """A :class:`queue.Queue` whose items, of type ``T``, are kept in a store.

    Any thread may call any method. The class says what several processes may do at the same time.

    Cost: each method that writes names its own. A property, a count or an iteration neither writes nor syncs.
    """

    _changing: tuple[str, ...] = (
        "put", "put_nowait", "put_many", "get", "get_nowait", "get_many", "receive", "receive_many",
        "task_done", "skip", "clear",
    )  # fmt: skip
    """The methods that change what is stored. With ``read_only`` each of them raises."""

    def _attach(self, store: Any) -> None:
        self._codec = codec(self.serializer, store.store_id)
        self._dumps = self._codec.dumps
        self._decode = record_decoder(self._codec)
        self._core = self._make_core(store)
        self._blocking = BlockingQueue(self._core)
        if self.read_only:
            self._refuse_changes(self._changing)

    def _make_core(self, store: Any) -> QueueCore:
        raise NotImplementedError

    # Codec.

    def _encode(self, item: Any) -> bytes:
        try:
            return self._dumps(item)
        except Exception as cause:
            raise encode_error(self._codec, item, cause) from cause

    # Getting.

    @property
    def _decode_claimed(self) -> Decode[Any]:
        """Makes of a record that is claimed what stands for it in a claim list, and the item."""
        return self._decode

    def get_many(
        self, n: int, block: bool = True, timeout: float | None = None, *, linger: float = 0.0
    ) -> list[T]:
        """Return 1 to ``n`` items, in order. Only the first one is waited for, unless ``linger`` says more.

        Cost: that of one :meth:`get`, and with ``autosave`` 1 write more.

        :param linger: seconds to wait, when the first item is ready, until ``n`` of them are. All are claimed
            at the end of this wait; meanwhile another consumer may get them. If the queue has a ``maxsize``
            below ``n``, the wait ends when the queue is full.
        :raise ValueError: ``n`` is below 1, or a time is negative.

        It raises the other errors that :meth:`get` raises as well.
        """
        n, linger = checked_number_of("n", n), checked_seconds("linger", linger)
        return self._blocking.get_many(n, self._decode_claimed, block, timeout, linger)

    def receive(self, block: bool = True, timeout: float | None = None) -> AbstractContextManager[T]:
        """Return a context manager that gets the next item.

        When the block ends well, the queue acks the item. When the block raises, the queue nacks it, so that
        it is delivered again. ``task_done()`` must not be called for it, because the end of the block settles
        it. The errors are those of :meth:`get`.

        Cost: that of one :meth:`get` and one :meth:`task_done`.
        """
        return self._receive(partial(self._blocking.claim, self._decode_claimed, block, timeout))

    def receive_many(
        self, n: int, block: bool = True, timeout: float | None = None, *, linger: float = 0.0
    ) -> AbstractContextManager[list[T]]:
        """Return a context manager that gets 1 to ``n`` items, as :meth:`get_many` does.

        When the block ends well, the queue acks all of them in one step. When the block raises, the queue
        nacks all of them, so that each is delivered again in its place. ``task_done()`` must not be called
        for them. If claims were lost meanwhile, the queue acks the other items, and the end of the block
        raises a :exc:`StaleClaimError` whose ``ids`` name the lost ones. The other errors are those of
        :meth:`get_many`.

        Cost: that of one :meth:`get_many` and one :meth:`task_done`, however many items there are.
        """
        n, linger = checked_number_of("n", n), checked_seconds("linger", linger)
        claim = partial(self._blocking.claim_many, n, self._decode_claimed, block, timeout, linger)
        return self._receive(claim)

    @contextmanager
    def _receive(self, claim: Callable[[list[Claim]], tuple[Sequence[Any], R]]) -> Iterator[R]:
        claims: list[Claim] = []
        try:
            tokens, received = self._claim(claim, claims)
            try:
                yield received
            except GeneratorExit:
                raise
            except BaseException as error:
                self._core.settle(tokens, claims, done=False, reason=error_text(error))
                raise
            self._core.settle(tokens, claims, done=True)
        except BaseException:
            if claims:  # A signal handler raised before the block began, or where settling began.
                self._blocking.take_back(claims)
            raise

    def _claim(
        self, claim: Callable[[list[Claim]], tuple[Sequence[Any], R]], claims: list[Claim]
    ) -> tuple[Sequence[Any], R]:
        """Return what ``claim`` returns: what stands for the claimed items, and the items."""
        return claim(claims)

    def task_done(self, n: int = 1) -> None:
        """Ack the ``n`` oldest items that this thread got and has not settled: all of them, or none.

        If the thread holds fewer items, the oldest ones that any thread holds are acked as well. The ack is
        durable when this method returns, as ``durability`` of the queue says.

        Cost: 1 write, in a database 1 transaction, however many items there are. At ``"power"`` also 1 sync,
        which threads that ack at the same time share; at ``"process"`` none. Nothing where ``get`` acked the
        items.

        :raise ValueError: fewer than ``n`` items were got and are not finished yet, or ``n`` is below 1.
        """
        self._core.task_done(self._blocking.consumer.own, checked_number_of("n", n))

    def join(self) -> None:
        """Wait until every stored item has been got and acked, by any process.

        Cost: no write and no sync. A waiting thread looks at the store now and then, for well under 1 % of a
        core.
        """
        self._blocking.join()

    @property
    def unfinished_tasks(self) -> int:
        """How many items :meth:`join` waits for."""
        return self._core.unfinished()

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse every ``put``, and every ``get`` once the queue is empty.

        Waiting threads are woken and raise ``ShutDown``. Only this object is shut down: nothing stored is
        removed, and other objects and processes do not notice.

        Cost: no write and no sync.

        :param immediate: refuse every ``get`` at once, as if the queue were empty.
        """
        self._core.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether :meth:`shutdown` was called."""
        return self._core.is_shutdown

    # Inspection and removal.

    def peek(self) -> T:
        """Return the item that ``get`` would return next, and leave it where it is.

        Cost: no write and no sync.

        :raise Empty: no item is ready.
        :raise DecodeError: the item cannot be deserialized.
        """
        return self._core.store.peek(self._decode)[1]  # type: ignore[no-any-return]

    def items(self) -> Iterator[T]:
        """Return an iterator over the items that are ready now, oldest first. It claims none of them.

        Cost: no write and no sync.

        :raise DecodeError: an item cannot be deserialized.
        """
        for record in self._core.store.records():
            yield self._decode(record)[1]

    def skip(self, id: int | None = None) -> int | None:
        """Remove a ready item without decoding it.

        Cost: that of one :meth:`get` and one :meth:`task_done`.

        :param id: the id of the item, which a ``DecodeError`` has as its attribute; ``None``: the next item.
        :return: its id; ``None`` if no such item is ready.
        :raise TypeError: ``id`` is not a whole number.
        """
        return self._core.remove(None if id is None else checked_integer("id", id))

    def clear(self) -> int:
        """Remove every ready item, and return how many there were.

        Cost: the writes and syncs of one :meth:`skip`, however many items there are.
        """
        return self._core.clear()

    @property
    def maxsize(self) -> int:
        """How many items may be ready; 0 means without bound. May be set at any time."""
        return self._core.maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._core.maxsize = checked_count("maxsize", value)

    def qsize(self) -> int:
        """Return how many items are ready, exactly, across threads and processes.

        Cost: no write and no sync.
        """
        return self._core.qsize()

    def __len__(self) -> int:
        return self._core.qsize()

    _length = __len__

    def __bool__(self) -> bool:
        # As with queue.Queue, an empty queue is true: a queue is a thing and not a sequence.
        return True

    @property
    def size(self) -> int:
        """The same number as :meth:`qsize` returns."""
        return self._core.qsize()

    def empty(self) -> bool:
        """Tell whether no item is ready.

        Cost: no write and no sync.
        """
        return self._core.is_empty()

    def full(self) -> bool:
        """Tell whether ``maxsize`` items are ready; false without a ``maxsize``.

        Cost: no write and no sync.
        """
        return self._core.full()

    def stats(self) -> Stats:
        """Return the queue's numbers at this moment.

        Cost: no write and no sync.
        """
        return self._core.store.stats()

    # Lifecycle.

    def close(self) -> None:
        """Close the queue's files and release its locks. Idempotent.

        Items that were got and not acked stay stored, and are delivered again.

        Cost: in files at most 2 writes and 2 syncs, at either level of durability. In a database 1
        transaction without a sync if something is claimed; the last object on the file makes a checkpoint
        with 2 syncs. On a server a few round trips at most.
        """
        self._closed = True
        self._core.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._blocking.after_fork()

    def _present_options(self) -> Options:
        return replace(self._options, maxsize=self.maxsize)  # type: ignore[no-any-return]
