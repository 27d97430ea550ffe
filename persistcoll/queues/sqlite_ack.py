"""The queues in SQLite databases whose items stay until they are acknowledged one by one."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import Any

from persistcoll.engine.arguments import checked_count, checked_seconds
from persistcoll.engine.records import LIFO, UNIQUE, Backoff, ClaimPolicy, Durability, Record, State
from persistcoll.parameters import T
from persistcoll.queues.ack import BaseAckQueue
from persistcoll.queues.sql import checked_backoff

__all__ = ["AckStatus", "FIFOSQLiteAckQueue", "FILOSQLiteAckQueue", "SQLiteAckQueue", "UniqueAckQ"]

_ALL = (1 << 63) - 1


class AckStatus:
    """What the ``"status"`` of :meth:`SQLiteAckQueue.queue` says."""

    inited = "0"
    """It waits, and was never got."""
    ready = "1"
    """It waits again: it was got before, and given back."""
    unack = "2"
    """Somebody has got it."""
    acked = "5"
    """It was acknowledged, and kept."""
    ack_failed = "9"
    """It was given up: by ``ack_failed``, or because it was got ``max_attempts`` times."""


_STATUS = {
    State.READY: AckStatus.ready,
    State.DELAYED: AckStatus.ready,
    State.CLAIMED: AckStatus.unack,
    State.DONE: AckStatus.acked,
    State.FAILED: AckStatus.ack_failed,
    State.DEAD: AckStatus.ack_failed,
}


class SQLiteAckQueue(BaseAckQueue[T]):
    """A first-in, first-out queue in an SQLite database whose items stay until somebody says what became
    of them.

    :meth:`ack` finishes an item, :meth:`nack` gives it back, :meth:`ack_failed` sets it aside. What a process
    had got when it died is delivered again. Several processes may put and get at the same time, each with any
    number of threads. No item is ever in the hands of two of them, except where a ``lease`` ran out: then the
    late one's ``ack`` is refused.

    >>> from persistcoll import SQLiteAckQueue
    >>> with SQLiteAckQueue("mails") as mails:
    ...     mails.put_many(["to alice", "to bob"])
    ...     mail = mails.get()
    ...     print(mails.nack(mail), mails.ready_count())
    ...     mail = mails.get()
    ...     print(mail, mails.ack(mail), mails.acked_count())
    [1, 2]
    1 2
    to alice 1 1

    An item is found by identity: ``ack`` takes the very object that ``get`` returned. Where the same object
    was got several times, as ``None`` or a small number may be, it is the oldest one that this thread got.
    The raw form and the id are always exact.

    The parameters that :class:`SQLiteQueue` has as well mean the same.

    :param auto_resume: give back what processes that died had got: now, and later whenever there is nothing
        else to get. Never what a living one has got.
    :param auto_commit: accepted, and always true: ``get`` never removes an item.
    :param lease: seconds after which an item that was got and not settled is given back although its holder
        lives; ``None``: never.
    :param max_attempts: an item that was got so often and is given back is set aside; ``None``: never.
    :param backoff: how long an item that is given back waits: a number of seconds, or a
        :class:`~persistcoll.Backoff`, which waits longer each time; ``None``: not at all. It is not for items
        that a crash or the end of a lease gives back.
    :param keep_acked: at least how many of the newest acknowledged items stay in the database; 0: none;
        ``None``: all.
    :param strict: ``ack``, ``nack`` and ``ack_failed`` of what this object does not hold raise
        :exc:`~persistcoll.NotClaimedError`; otherwise they return ``None``.
    """

    _kind = "fifo ack"

    def __init__(
        self,
        path: str | os.PathLike[str],
        auto_resume: bool = True,
        name: str = "default",
        multithreading: bool = True,
        timeout: float = 10.0,
        auto_commit: bool = True,
        serializer: Any = pickle,
        db_file_name: str | None = None,
        *,
        lease: float | None = None,
        max_attempts: int | None = None,
        backoff: float | Backoff | None = None,
        keep_acked: int | None = 1000,
        strict: bool = False,
        maxsize: int = 0,
        durability: Durability = "power",
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
    ) -> None:
        if not auto_commit:
            warnings.warn("an ack queue has no use for auto_commit=False", stacklevel=2)
        if lease is not None:
            lease = checked_seconds("lease", lease)
            if not lease:
                raise ValueError("'lease' must be above 0")
        if max_attempts is not None:
            max_attempts = checked_count("max_attempts", max_attempts, 1)
        if keep_acked is not None:
            keep_acked = checked_count("keep_acked", keep_acked)
        backoff = checked_backoff(backoff)
        retry = ClaimPolicy(
            lease=lease,
            max_attempts=max_attempts,
            backoff=backoff,
            keep_done=_ALL if keep_acked is None else keep_acked,
            auto_reclaim=bool(auto_resume),
        )
        own = {
            "auto_resume": auto_resume,
            "lease": lease,
            "max_attempts": max_attempts,
            "backoff": backoff,
            "keep_acked": keep_acked,
            "strict": bool(strict),
        }
        super().__init__(
            path,
            name=name,
            timeout=timeout,
            auto_commit=True,
            serializer=serializer,
            db_file_name=db_file_name,
            maxsize=maxsize,
            durability=durability,
            trust_directory=trust_directory,
            allow_network_fs=allow_network_fs,
            mode=mode,
            read_only=read_only,
            retry=retry,
            maker=SQLiteAckQueue,
            own=own,
        )

    def resume_unack_tasks(self) -> int:
        """Give back what processes that died had got, and what queues made with ``auto_resume=False`` had
        got when they were closed. Never what a living process has got.

        :return: how many items that were.
        """
        count = self._table.reclaim()
        self._core.settled(count)
        return count

    # Looking.

    def unack_count(self) -> int:
        """How many items were got and are not settled, by whichever process."""
        return self._table.claimed()

    def acked_count(self) -> int:
        """How many acknowledged items are kept."""
        return self._table.stats().done

    def ready_count(self) -> int:
        """How many items wait to be got; the same as :meth:`qsize` before any :meth:`shutdown`."""
        return self._table.count()

    def ack_failed_count(self) -> int:
        """How many items are set aside: by :meth:`ack_failed`, or for having been got too often."""
        stats = self._table.stats()
        return stats.failed + stats.dead

    def active_size(self) -> int:
        """How many items are not finished: they wait, now or for later, or were got and are not settled."""
        return self._table.unfinished()

    def _row(self, state: State, record: Record) -> dict[str, Any]:
        status = _STATUS[state]
        if state is State.READY and not record.attempts:
            status = AckStatus.inited
        return {**super()._row(state, record), "status": status}

    def clear_acked_data(
        self, max_delete: int | None = 1000, keep_latest: int | None = 1000, clear_ack_failed: bool = False
    ) -> int:
        """Remove acknowledged items that are kept, the oldest first.

        :param max_delete: how many at most; 0 or ``None``: any number.
        :param keep_latest: how many of the newest stay; 0 or ``None``: none.
        :param clear_ack_failed: remove those that are set aside as well; of them, too, the newest stay.
        :return: how many were removed.
        """
        limit, keep = checked_count("max_delete", max_delete), checked_count("keep_latest", keep_latest)
        removed = 0
        for state in (State.DONE, State.FAILED, State.DEAD) if clear_ack_failed else (State.DONE,):
            if limit and removed >= limit:
                break
            removed += self._table.purge(state, keep, limit - removed if limit else None)
        return removed


FIFOSQLiteAckQueue = SQLiteAckQueue


class FILOSQLiteAckQueue(SQLiteAckQueue[T]):
    """A :class:`SQLiteAckQueue` that gives the newest item first."""

    _discipline = LIFO
    _kind = "lifo ack"


class UniqueAckQ(SQLiteAckQueue[T]):
    """A :class:`SQLiteAckQueue` that holds no two equal items, as :class:`UniqueQ`.

    An item may be put again once it was acknowledged or set aside.

    >>> from persistcoll import UniqueAckQ
    >>> with UniqueAckQ("pages") as pages:
    ...     print(pages.put("/"), pages.put("/"))
    ...     page = pages.get()
    ...     print("/" in pages, pages.put("/"))  # in work
    ...     pages.ack(page)
    ...     print("/" in pages, pages.put("/"))
    1 None
    True None
    1
    False 2
    """

    _discipline = UNIQUE
    _kind = "unique ack"

    def __contains__(self, item: object) -> bool:
        """Whether an equal item waits, or was got and is not settled."""
        return self._holds(item)
