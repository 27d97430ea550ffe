"""What every queue class offers: the standard library's interface, over serialized items.

The classes of queues open a store, and add ``put`` and ``get``, because the parameters differ. What waits is
in :mod:`persistcoll.engine.blocking`; what is stored and how is the store's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, NoReturn

from persistcoll.arguments import checked_count, checked_integer
from persistcoll.container import Container, T
from persistcoll.engine.blocking import BlockingQueue
from persistcoll.engine.contracts import Claim
from persistcoll.engine.forks import read_only_error
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Record, Stats
from persistcoll.errors import DecodeError
from persistcoll.options import Options
from persistcoll.serializers import codec
from persistcoll.serializers.base import Codec, decode_error, encode_error

__all__ = ["BaseQueue"]


def _decoder(codec: Codec) -> Callable[[Record], tuple[int, Any]]:
    # A function, no method: an object that holds a method of its own is not collected, so not closed, when
    # the last reference to it goes, but at some later time.
    loads = codec.loads

    def plain(record: Record) -> tuple[int, Any]:
        try:
            return record.id, loads(record.payload)
        except Exception as cause:
            raise decode_error(codec, record.id, cause) from cause

    unseal = codec.unseal
    if unseal is None:
        return plain

    def sealed(record: Record) -> tuple[int, Any]:
        try:
            return record.id, loads(unseal(record.payload, record.mark))
        except DecodeError:
            raise
        except Exception as cause:
            raise decode_error(codec, record.id, cause) from cause

    return sealed


def _refusing(queue: BaseQueue[Any]) -> Callable[..., NoReturn]:
    description = f"{type(queue).__name__} {queue._place}"

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise read_only_error(description)

    return refuse


class BaseQueue(Container, Generic[T]):
    """A :class:`queue.Queue` whose items, of type ``T``, live in a store.

    All methods may be called from any thread, and, as the class says, from several processes.
    """

    _changing: tuple[str, ...] = (
        "put", "put_nowait", "put_many", "get", "get_nowait", "get_many", "receive", "task_done", "skip",
        "clear",
    )  # fmt: skip
    """The methods that change what is stored."""

    def _attach(self, store: Any) -> None:
        self._codec = codec(self.serializer, store.store_id)
        self._dumps = self._codec.dumps
        self._decode = _decoder(self._codec)
        self._core = self._make_core(store)
        self._blocking = BlockingQueue(self._core)
        if self.read_only:
            # On the object, so that queues that may be written to pay nothing for it.
            vars(self).update(dict.fromkeys(self._changing, _refusing(self)))

    def _make_core(self, store: Any) -> QueueCore:
        raise NotImplementedError

    # Codec.

    def _encode(self, item: Any) -> bytes:
        try:
            return self._dumps(item)
        except Exception as cause:
            raise encode_error(self._codec, item, cause) from cause

    # Getting.

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Take 1 to ``n`` items, in order, waiting only for the first. Raises as :meth:`get`.

        Cost: that of one :meth:`get`, and with ``autosave`` 1 write more.
        """
        return self._blocking.get_many(checked_count("n", n, 1), self._decode, block, timeout)

    @contextmanager
    def receive(self, block: bool = True, timeout: float | None = None) -> Iterator[T]:
        """A context manager that gives the next item.

        It is acknowledged when the block ends well, and back in its place when the block raises.
        ``task_done()`` is not to be called for it. Raises as :meth:`get`.

        Cost: that of one :meth:`get` and one :meth:`task_done`.
        """
        claims: list[Claim] = []
        try:
            token, item = self._claim(block, timeout, claims)
            try:
                yield item
            except GeneratorExit:
                raise
            except BaseException:
                self._core.settle(token, claims, done=False)
                raise
            self._core.settle(token, claims, done=True)
        except BaseException:
            if claims:  # a signal handler raised before the block began, or where settling began
                self._blocking.take_back(claims)
            raise

    def _claim(self, block: bool, timeout: float | None, claims: list[Claim]) -> tuple[Any, Any]:
        """What stands for the claimed item, and the item."""
        return self._blocking.claim(self._decode, block, timeout, claims)

    def task_done(self) -> None:
        """Acknowledge the oldest item that this thread got and has not acknowledged.

        A thread that holds none acknowledges the oldest one that any thread holds. When this
        returns, the removal is durable.

        Cost: 1 write, in a database 1 transaction. At ``"power"`` also 1 sync, which threads that acknowledge
        at the same time share; at ``"process"`` none. Nothing where ``get`` acknowledged.

        :raise ValueError: called more often than items were got.
        """
        self._core.task_done(self._blocking.consumer.own)

    def join(self) -> None:
        """Wait until every stored item has been got and acknowledged, by whichever process."""
        self._blocking.join()

    @property
    def unfinished_tasks(self) -> int:
        """How many items :meth:`join` would wait for."""
        return self._core.unfinished()

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse to ``put``, and to ``get`` once the queue is empty (``immediate``: at once).

        Those who wait are woken with ``ShutDown``. This is about this object only: nothing stored is
        deleted, and other processes do not notice.
        """
        self._core.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether :meth:`shutdown` was called."""
        return self._core.is_shutdown

    # Inspection and removal.

    def peek(self) -> T:
        """The item that ``get`` would take next, which stays where it is.

        Cost: no write and no sync.

        :raise Empty: there is none.
        """
        return self._core.store.peek(self._decode)[1]  # type: ignore[no-any-return]

    def items(self) -> Iterator[T]:
        """The items waiting at this moment, oldest first, without taking them.

        Cost: no write and no sync.
        """
        for record in self._core.store.records():
            yield self._decode(record)[1]

    def skip(self, id: int | None = None) -> int | None:
        """Remove an item unseen: the one with this id (of a ``DecodeError``), else the next one.

        :return: its id; ``None`` if no such item waits.
        :raise TypeError: ``id`` is no id.
        """
        return self._core.remove(None if id is None else checked_integer("id", id))

    def clear(self) -> int:
        """Remove every waiting item; return how many there were."""
        return self._core.clear()

    @property
    def maxsize(self) -> int:
        """How many items may wait; 0 means without bound. May be set at any time."""
        return self._core.maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self._core.maxsize = checked_count("maxsize", value)

    def qsize(self) -> int:
        """How many items wait, exactly, across threads and processes.

        Cost: no write and no sync.
        """
        return self._core.qsize()

    def __len__(self) -> int:
        return self._core.qsize()

    def __bool__(self) -> bool:
        # A queue is a thing, not a sequence: an empty one is not false (nor is queue.Queue's).
        return True

    @property
    def size(self) -> int:
        """The same as :meth:`qsize`."""
        return self._core.qsize()

    def empty(self) -> bool:
        """Whether no item waits."""
        return self._core.is_empty()

    def full(self) -> bool:
        """Whether ``maxsize`` items wait; never without a ``maxsize``."""
        return self._core.full()

    def stats(self) -> Stats:
        """The queue's numbers at this moment."""
        return self._core.store.stats()

    # Lifecycle.

    def close(self) -> None:
        """Let go of files and locks. What was got and not acknowledged stays stored. Idempotent."""
        self._closed = True
        self._core.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._blocking.after_fork()

    def _present_options(self) -> Options:
        return replace(self._options, maxsize=self.maxsize)  # type: ignore[no-any-return]
