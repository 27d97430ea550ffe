"""The contenders that a program calls, each as its documentation says: put, get, ack, close."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import persistcoll
from persistcoll import CorruptionError, Empty

__all__ = ["ADAPTERS", "Adapter"]


class Adapter:
    """One opened queue.

    :ivar can_recover: whether a program can bring back, by code of its own, what dead consumers held.
    """

    can_recover = False

    def put(self, item: str) -> None:
        raise NotImplementedError

    def get(self) -> Any:
        """Return the next item without waiting; ``None`` where there is none."""
        raise NotImplementedError

    def ack(self) -> None:
        """Acknowledge the item that was got last. Where ``get`` removes, this does nothing."""

    def recover(self) -> None:
        """Bring back what dead consumers held."""

    def skip(self, error: Exception) -> bool:
        """Pass over the damage that an error names; return whether there is a way to do it."""
        return False

    def close(self) -> None:
        """Close it as a program does that ends well."""


class _Stdlib(Adapter):
    """A queue with the methods of the standard library's."""

    def __init__(self, queue: Any, empty: type[Exception] = Empty) -> None:
        self.queue, self._empty = queue, empty

    def put(self, item: str) -> None:
        self.queue.put(item)

    def get(self) -> Any:
        try:
            return self.queue.get(block=False)
        except self._empty:
            return None

    def close(self) -> None:
        self.queue.close()


class _OurFiles(_Stdlib):
    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "queue")
        super().__init__(persistcoll.Queue(self._path))

    def ack(self) -> None:
        self.queue.task_done()

    def skip(self, error: Exception) -> bool:
        self.queue.close()
        self.queue = persistcoll.Queue(self._path, on_corruption="skip")
        return True


class _OurTable(_Stdlib):
    def __init__(self, directory: str) -> None:
        super().__init__(persistcoll.SQLiteQueue(os.path.join(directory, "queue")))

    def skip(self, error: Exception) -> bool:
        if not isinstance(error, CorruptionError) or error.id is None:
            return False
        self.queue.skip(error.id)
        return True


class _OurAckTable(_OurTable):
    def __init__(self, directory: str) -> None:
        self._got: Any = None
        _Stdlib.__init__(self, persistcoll.SQLiteAckQueue(os.path.join(directory, "queue")))

    def get(self) -> Any:
        self._got = super().get()
        return self._got

    def ack(self) -> None:
        self.queue.ack(self._got)


class _PersistQueueFiles(_Stdlib):
    def __init__(self, directory: str) -> None:
        import persistqueue

        super().__init__(persistqueue.Queue(os.path.join(directory, "queue")), persistqueue.Empty)

    def ack(self) -> None:
        self.queue.task_done()

    def close(self) -> None:
        """Do nothing: it has no ``close``."""


class _PersistQueueTable(_Stdlib):
    def __init__(self, directory: str) -> None:
        import persistqueue

        super().__init__(persistqueue.SQLiteQueue(os.path.join(directory, "queue")), persistqueue.Empty)


class _PersistQueueAckTable(_Stdlib):
    def __init__(self, directory: str) -> None:
        import persistqueue

        self._got: Any = None
        super().__init__(persistqueue.SQLiteAckQueue(os.path.join(directory, "queue")), persistqueue.Empty)

    def get(self) -> Any:
        self._got = super().get()
        return self._got

    def ack(self) -> None:
        self.queue.ack(self._got)


class _DiskcacheDeque(Adapter):
    def __init__(self, directory: str, **settings: Any) -> None:
        from diskcache import Cache, Deque

        # What ``Deque(directory=...)`` makes, and with a setting of the cache where there is one.
        path = os.path.join(directory, "queue")
        self._deque: Any = Deque.fromcache(Cache(path, eviction_policy="none", **settings))

    def put(self, item: str) -> None:
        self._deque.append(item)

    def get(self) -> Any:
        try:
            return self._deque.popleft()
        except IndexError:
            return None

    def close(self) -> None:
        self._deque.cache.close()


class _Litequeue(Adapter):
    can_recover = True

    def __init__(self, directory: str, synchronous: str | None = None) -> None:
        from litequeue import LiteQueue

        self._queue: Any = LiteQueue(os.path.join(directory, "queue.db"))
        self._message: Any = None
        if synchronous is not None:
            self._queue.conn.execute(f"PRAGMA synchronous={synchronous}")

    def put(self, item: str) -> None:
        self._queue.put(item)

    def get(self) -> Any:
        self._message = self._queue.pop()
        return None if self._message is None else self._message.data

    def ack(self) -> None:
        self._queue.done(self._message.message_id)

    def recover(self) -> None:
        for message in list(self._queue.list_locked(threshold_seconds=0)):
            self._queue.retry(message.message_id)

    def close(self) -> None:
        self._queue.close()


class _Huey(Adapter):
    """A task as an item. The program does what huey's consumer does: dequeue, then execute."""

    def __init__(self, directory: str) -> None:
        from huey import SqliteHuey

        self._huey: Any = SqliteHuey(filename=os.path.join(directory, "huey.db"))
        self._work: Any = self._huey.task(name="work")(_nothing)
        self._task: Any = None

    def put(self, item: str) -> None:
        self._work(item)

    def get(self) -> Any:
        self._task = self._huey.dequeue()
        return None if self._task is None else self._task.args[0]

    def ack(self) -> None:
        self._huey.execute(self._task)

    def close(self) -> None:
        self._huey.storage.close()


def _nothing(item: str) -> None:
    """Do the work of a task."""


class _RedisList(Adapter):
    """``RPUSH`` and ``LPOP``."""

    def __init__(self, socket: str) -> None:
        import redis

        self._redis: Any = redis.Redis(unix_socket_path=socket, decode_responses=True)

    def put(self, item: str) -> None:
        self._redis.rpush("queue", item)

    def get(self) -> Any:
        return self._redis.lpop("queue")

    def close(self) -> None:
        self._redis.close()


class _RedisReliable(_RedisList):
    """The pattern of the reliable queue: ``LMOVE`` to a second list, ``LREM`` when the item is done."""

    can_recover = True
    _item: Any = None

    def get(self) -> Any:
        self._item = self._redis.lmove("queue", "processing", "LEFT", "RIGHT")
        return self._item

    def ack(self) -> None:
        self._redis.lrem("processing", 1, self._item)

    def recover(self) -> None:
        while self._redis.lmove("processing", "queue", "RIGHT", "LEFT") is not None:
            pass


class _CeleryTasks(Adapter):
    """The producer's side: the consumer is a worker (:mod:`benchmarks.survival.celery_app`)."""

    def __init__(self, socket: str) -> None:
        os.environ["SURVIVAL_SOCKET"] = socket
        from benchmarks.survival.celery_app import work

        self._work = work

    def put(self, item: str) -> None:
        self._work.delay(item)


ADAPTERS: Mapping[str, Callable[[str, str], Adapter]] = {
    "persistcoll Queue": lambda directory, socket: _OurFiles(directory),
    "persistcoll SQLiteQueue": lambda directory, socket: _OurTable(directory),
    "persistcoll SQLiteAckQueue": lambda directory, socket: _OurAckTable(directory),
    "persist-queue Queue": lambda directory, socket: _PersistQueueFiles(directory),
    "persist-queue SQLiteQueue": lambda directory, socket: _PersistQueueTable(directory),
    "persist-queue SQLiteAckQueue": lambda directory, socket: _PersistQueueAckTable(directory),
    "diskcache Deque": lambda directory, socket: _DiskcacheDeque(directory),
    "diskcache Deque, sqlite_synchronous=2": lambda directory, socket: _DiskcacheDeque(
        directory, sqlite_synchronous=2
    ),
    "litequeue": lambda directory, socket: _Litequeue(directory),
    "litequeue, synchronous=FULL": lambda directory, socket: _Litequeue(directory, "FULL"),
    "huey SqliteHuey": lambda directory, socket: _Huey(directory),
    "Redis list": lambda directory, socket: _RedisList(socket),
    "Redis list, appendfsync always, LMOVE": lambda directory, socket: _RedisReliable(socket),
    "Celery + Redis": lambda directory, socket: _CeleryTasks(socket),
    "Celery + Redis, appendfsync always, task_acks_late": lambda directory, socket: _CeleryTasks(socket),
}
"""By the name of the contender: opens it on a directory, or on the socket of a server."""
