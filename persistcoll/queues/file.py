"""The queues."""

from __future__ import annotations

import os
import pickle
from typing import Any

from persistcoll.disk.calls import Disk
from persistcoll.disk.path_checks import absolute, checked_path
from persistcoll.engine.arguments import checked_choice, checked_count, checked_mode
from persistcoll.engine.queue_core import QueueCore
from persistcoll.engine.records import Durability, OnCorruption
from persistcoll.journal.directory import OpenOptions
from persistcoll.journal.open import Opening, ReadOnlyOpening
from persistcoll.journal.queue_store import JournalQueueStore
from persistcoll.journal.read_only import ReadOnlyQueueStore
from persistcoll.parameters import T
from persistcoll.queues.base import BaseQueue
from persistcoll.reopening import Reopening
from persistcoll.serializers import codec, locate, resolve

__all__ = ["Queue"]


class Queue(BaseQueue[T]):
    """A first-in, first-out queue in a directory of files.

    Several processes may put, one process at a time gets (the one that got first, until it
    closes the queue or ends). Within a process any number of threads may do either.

    >>> from persistcoll import Queue
    >>> with Queue("jobs") as jobs:
    ...     jobs.put({"id": 1})
    ...     jobs.put({"id": 2})
    >>> with Queue("jobs") as jobs:  # another day
    ...     print(jobs.get(), len(jobs))
    ...     jobs.task_done()
    {'id': 1} 1

    :param path: the directory; made if it is missing.
    :param maxsize: how many items may wait; 0 means without bound.
    :param chunksize: records in one file before the next one is begun; default: as the queue was
        made with, 16384 for a new one.
    :param tempdir: a directory on the same file system for temporary files; default: ``path``.
    :param serializer: how items become bytes: a name (``"pickle"``, ``"json"``, ``"msgpack"``, ``"cbor"``,
        ``"raw"``), one of :mod:`persistcoll.serializers`, or any object with ``dumps`` and ``loads``.
    :param autosave: ``get`` acknowledges the item at once, and a crash loses what was got and is not
        finished; otherwise ``task_done()`` does, and a crash delivers it again.
    :param durability: what an operation that returned survives: ``"power"`` (a power cut) or
        ``"process"`` (the death of the process; a power cut may undo the newest operations).
    :param on_corruption: what reading does at damaged bytes: ``"raise"`` a ``CorruptionError``, which
        opening does too where the end of the queue is damaged; ``"stop"``: deliver what comes before
        them, then raise it; ``"skip"``: set them aside in a file and deliver the rest.
    :param trust_directory: use a serializer that executes code (pickle) although others may write to
        the directory.
    :param allow_network_fs: use a network file system.
    :param mode: permission bits of the files that are made, such as ``0o660`` for a group; directories get
        the matching ``x`` bits. Default: those of the store, ``0o600`` for a new one. The umask has no say.
    :param read_only: only look. Nothing is written, made or locked against others, and whatever would change
        something raises :exc:`~persistcoll.StorageError` (``EROFS``).
    :raise StoreKindError: there is something else at that path.
    :raise StoreMissingError: with ``read_only``: there is nothing to look at.
    :raise SerializerMismatchError: the queue was made with another serializer.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: its end is damaged in a way that no crash explains.
    :raise StorageError: it cannot be opened or made; others may write it while the serializer executes code.
    :raise ValueError: a number is negative, or ``tempdir`` is on another file system; or one of the two paths
        is empty or cannot be one.
    """

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
        _disk: Disk | None = None,
    ) -> None:
        given = frozenset(vars(self))
        directory = absolute(checked_path("path", path))
        checked_choice("durability", durability, "power", "process")
        checked_choice("on_corruption", on_corruption, "raise", "stop", "skip")
        maxsize = checked_count("maxsize", maxsize)
        if chunksize is not None:
            chunksize = checked_count("chunksize", chunksize, 1)
        serializer = resolve(serializer)
        options = OpenOptions(
            serializer=serializer.name,
            executes_code=serializer.executes_code,
            chunksize=chunksize,
            on_corruption=on_corruption,
            trust_directory=trust_directory,
            allow_network_fs=allow_network_fs,
            tempdir=None if tempdir is None else absolute(checked_path("tempdir", tempdir)),
            mode=checked_mode(mode),
        )
        arguments = {
            "path": directory,
            "chunksize": chunksize,
            "tempdir": options.tempdir,
            "serializer": locate(serializer),
            "autosave": autosave,
            "durability": durability,
            "on_corruption": on_corruption,
            "trust_directory": trust_directory,
            "allow_network_fs": allow_network_fs,
            "mode": options.mode,
            "read_only": bool(read_only),
        }
        self.path = directory
        with (ReadOnlyOpening if read_only else Opening)(directory, options, _disk) as opening:
            try:
                item_codec = codec(serializer, opening.begin().store_id)
                kind = ReadOnlyQueueStore if read_only else JournalQueueStore
                store = kind(opening, durability=durability, seal=item_codec.seal)
            finally:
                opening.release()
        try:
            super().__init__(
                QueueCore(store, maxsize, autosave),
                item_codec,
                description=f"{type(self).__name__} {directory!r}",
                read_only=bool(read_only),
                reopening=Reopening(Queue, arguments, given),
            )
        except BaseException:  # nobody will close it
            store.close()
            raise

    @property
    def autosave(self) -> bool:
        """Whether ``get`` acknowledges."""
        return self._core.autosave
