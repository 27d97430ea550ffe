"""The queue in files: its options, how its store is opened, and ``put`` and ``get``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from functools import partial
from typing import Any

from persistcoll.container import DiskContainer, T, option
from persistcoll.disk.calls import Disk
from persistcoll.engine.blocking import deadline_after
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Durability, OnCorruption
from persistcoll.errors import Empty, Full
from persistcoll.journal.directory import QUEUE, OpenOptions
from persistcoll.journal.open import Opening, open_directory
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.journal.read_only import ReadOnlyQueueStore
from persistcoll.options import FileQueueOptions
from persistcoll.queues.base import BaseQueue
from persistcoll.serializers import codec, resolve

__all__ = ["Queue", "open_store"]


def open_store(options: FileQueueOptions, disk: Disk | None = None) -> JournalQueueStore:
    """Return the store of a queue in files, without anything that waits.

    It raises what :class:`Queue` raises.
    """
    serializer = resolve(options.serializer)
    kind = ReadOnlyQueueStore if options.read_only else JournalQueueStore

    def make(opening: Opening, store_id: bytes) -> JournalQueueStore:
        seal = codec(serializer, store_id).seal
        return kind(opening, durability=options.durability, seal=seal)

    wanted = OpenOptions.of(options, serializer, QUEUE)
    return open_directory(options.path, wanted, options.read_only, make, disk)


class Queue(DiskContainer, BaseQueue[T]):
    """A first-in, first-out queue in a directory of files.

    Several processes may put at the same time. One process at a time may get: the one that got first, until
    it closes the queue or ends. Within a process any number of threads may put and get.

    Cost: opening takes the same time at any backlog, because it reads the journal from the newest tail mark
    on. Each method names its own cost.

    >>> from persistcoll import Queue
    >>> with Queue("jobs") as jobs:
    ...     jobs.put({"id": 1})
    ...     jobs.put({"id": 2})
    >>> with Queue("jobs") as jobs:  # another day
    ...     print(jobs.get(), len(jobs))
    ...     jobs.task_done()
    {'id': 1} 1

    :param path: the directory; it is made if it is missing.
    :param maxsize: how many items may be ready; 0 means without bound.
    :param chunksize: records in one file before the next file is begun. Default: the number that the queue
        was made with; 16384 for a new queue.
    :param tempdir: a directory on the same file system for temporary files. Default: ``path``.
    :param serializer: how items become bytes: a name (``"pickle"``, ``"json"``, ``"msgpack"``, ``"cbor"``,
        ``"raw"``), one of :mod:`persistcoll.serializers`, or any object with ``dumps`` and ``loads``.
    :param autosave: ``get`` acks the item at once, so a crash loses an item that was got and is not finished.
        Otherwise ``task_done()`` acks it, and a crash delivers it again.
    :param durability: what an operation that returned survives: ``"power"`` (a power cut) or ``"process"``
        (the death of the process; a power cut may undo the newest operations).
    :param on_corruption: what a reader does at damaged bytes. ``"raise"``: raise a ``CorruptionError``, also
        at opening if the end of the queue is damaged. ``"stop"``: deliver the items before the damage, then
        raise it. ``"skip"``: copy the damaged bytes into a file, and deliver the items after them.
    :param trust_directory: use a serializer that executes code (pickle) although other users may write to the
        directory.
    :param allow_network_fs: use the directory although it lies on a network file system.
    :param mode: permission bits of the files that are made, such as ``0o660`` for a group. Directories get
        the matching ``x`` bits. The umask is not applied. Default: the bits of the store, ``0o600`` for a new
        one.
    :param create: make what is missing. With ``False`` the queue raises :exc:`~persistcoll.StoreMissingError`
        instead, and makes nothing.
    :param read_only: only read. The queue writes nothing, makes nothing and locks nothing against others, and
        each method that would change something raises :exc:`~persistcoll.StorageError` (``EROFS``).
    :raise StoreKindError: something else lies at that path.
    :raise StoreMissingError: nothing lies there, with ``read_only`` or without ``create``.
    :raise SerializerMismatchError: the queue was made with another serializer.
    :raise FormatVersionError: a later version made the queue.
    :raise CorruptionError: the end of the queue is damaged in a way that no crash explains.
    :raise StorageError: the queue cannot be opened or made, or other users may write to it and the serializer
        executes code.
    :raise ValueError: a number is negative, ``tempdir`` is on another file system, or one of the two paths is
        empty or cannot be a path.
    """

    chunksize: int | None = option("chunksize")
    tempdir: str | None = option("tempdir")
    autosave: bool = option("autosave")
    on_corruption: OnCorruption = option("on_corruption")

    def __init__(
        self,
        path: str | os.PathLike[str],
        maxsize: int = 0,
        chunksize: int | None = None,
        tempdir: str | os.PathLike[str] | None = None,
        serializer: Any = pickle,
        autosave: bool = False,
        *,
        durability: Durability = "power",
        on_corruption: OnCorruption = "raise",
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        create: bool = True,
        _disk: Disk | None = None,
    ) -> None:
        self._open(FileQueueOptions.of(locals()), partial(open_store, disk=_disk))

    def _open_store(self, options: FileQueueOptions) -> JournalQueueStore:
        return open_store(options)

    def _make_core(self, store: JournalQueueStore) -> QueueCore:
        return QueueCore(store, self._options.maxsize, self._options.autosave)

    def _attach(self, store: JournalQueueStore) -> None:
        super()._attach(store)
        # Bound once, because each further attribute look-up is 1 % of a put or get at "process" (benchmarks:
        # single).
        self._try_put = self._core.try_put
        self._try_get = self._core.try_get

    # Putting.

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Store ``item``. It is durable on return, as ``durability`` of the queue says.

        Cost: 1 write. At ``"power"`` also 1 sync of the device, which takes most of the time, and which
        threads that put at the same time share; at ``"process"`` none.

        :param block: wait for room while the queue is full.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :raise Full: there was no room.
        :raise ShutDown: :meth:`shutdown` was called.
        :raise EncodeError: the serializer cannot store this item.
        :raise StorageFullError: the disk has no room; nothing is stored.
        :raise StorageError: the storage failed; the message says so if the outcome is unknown.
        :raise ValueError: the timeout is negative.
        """
        payload = self._encode(item)
        # The same as `self._blocking.put` without the cost of calling it.
        deadline = None if block and timeout is None else deadline_after(block, timeout)
        try:
            self._try_put(payload, deadline)
            return
        except Full:
            if not block:
                raise
        self._blocking.wait_and_put(payload, deadline)

    def put_nowait(self, item: T) -> None:
        """Call ``put(item, block=False)``. Cost: that of :meth:`put`."""
        self.put(item, False)

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> None:
        """Store all of ``items``, in order, or none.

        Cost: that of one :meth:`put`, however many items there are.

        :raise ValueError: there are more items than ``maxsize``, or the timeout is negative.

        It raises the other errors that :meth:`put` raises as well.
        """
        self._blocking.put_many([self._encode(item) for item in items], block, timeout)

    # Getting.

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the next item, and claim it.

        The item stays stored until it is acked: by :meth:`task_done`, or with ``autosave`` here.

        Cost: 1 write of a few bytes and no sync; with ``autosave`` that of :meth:`task_done`.

        :param block: wait for an item while none is ready.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :raise Empty: no item was ready.
        :raise ShutDown: :meth:`shutdown` was called, and no item is left.
        :raise DecodeError: the next item cannot be deserialized. It stays stored; ``skip(error.id)`` removes
            it.
        :raise CorruptionError: the next item is damaged.
        :raise LockedError: another process consumes from this queue.
        :raise ValueError: the timeout is negative.
        """
        # The same as `self._blocking.get` without the cost of calling it.
        deadline = None if block and timeout is None else deadline_after(block, timeout)
        try:
            return self._try_get(self._decode, self._blocking.consumer.own, None, deadline)  # type: ignore[no-any-return]
        except Empty:
            if not block:
                raise
        return self._blocking.wait_and_get(self._decode, None, deadline)  # type: ignore[no-any-return]

    def get_nowait(self) -> T:
        """Call ``get(block=False)``. Cost: that of :meth:`get`."""
        return self._try_get(self._decode, self._blocking.consumer.own, None, 0.0)  # type: ignore[no-any-return]
