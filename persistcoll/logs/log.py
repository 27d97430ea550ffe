"""The log: items that stay, in order, for any number of consumers."""

from __future__ import annotations

import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar, overload

from persistcoll.arguments import checked_count, checked_integer
from persistcoll.container import DiskContainer, T, option
from persistcoll.disk.calls import Disk
from persistcoll.engine.contracts import CursorState, LogStore
from persistcoll.engine.event_count import EventCount
from persistcoll.engine.log_core import ConsumerCore
from persistcoll.engine.records import Durability, OnCorruption, Retain
from persistcoll.errors import LockedError, TrimmedError, trimmed
from persistcoll.journal.directory import LOG, OpenOptions
from persistcoll.journal.log_store import JournalLogStore
from persistcoll.journal.open import Opening, open_directory
from persistcoll.journal.read_only import ReadOnlyLogStore
from persistcoll.logs.consumer import Consumer, Place
from persistcoll.options import LogOptions
from persistcoll.serializers import codec, resolve
from persistcoll.serializers.base import encode, record_decoder

__all__ = ["Log", "open_store"]

R = TypeVar("R")

_STANDBY = 0.05
"""Seconds between two tries to open a consumer that another process has open."""
_WAY_ON = "it stays in the log, and a consumer's seek({next}) goes on after it"


def open_store(options: LogOptions, disk: Disk | None = None) -> JournalLogStore:
    """Return the store of a log, without anything that waits. It raises what :class:`Log` raises."""
    serializer = resolve(options.serializer)
    kind = ReadOnlyLogStore if options.read_only else JournalLogStore

    def make(opening: Opening, store_id: bytes) -> JournalLogStore:
        seal = codec(serializer, store_id).seal
        return kind(opening, durability=options.durability, seal=seal, retain=options.retain)

    wanted = OpenOptions.of(options, serializer, LOG)
    return open_directory(options.path, wanted, options.read_only, make, disk)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"'name' must be a str, not {type(name).__name__}")
    return name


class Log(DiskContainer, Generic[T]):
    """A durable log of items in a directory of files.

    Items stay until they are trimmed, however many consumers have read them. Each has a *position*: the first
    one has 1, and positions grow. They have no gaps, except where the machine was restarted: then some
    positions are left out, because a power cut may have destroyed items that had them. So ``len(log)`` and a
    consumer's ``lag`` count items, and a difference of positions does not.

    Any number of named consumers read the log (:meth:`consumer`). Each gets every item, and each has a
    durable position of its own. Several processes may append, read and trim at the same time.

    Cost: opening takes the same time however long the log is, and however many consumers it has. Each method
    names its own cost.

    >>> from persistcoll import Log
    >>> with Log("events") as log:
    ...     log.append({"user": "ann", "did": "sign in"})
    ...     log.append({"user": "ann", "did": "sign out"})
    ...     for event in log.consumer("statistics"):
    ...         print(event["did"])
    1
    2
    sign in
    sign out

    :param path: the directory; it is made if it is missing.
    :param chunksize: items in one file before the next file is begun. Default: the number that the log was
        made with; 16384 for a new log. Whole files are trimmed.
    :param serializer: how items become bytes, as for a :class:`~persistcoll.Queue`.
    :param durability: what an operation that returned survives: ``"power"`` (a power cut) or ``"process"``
        (the death of the process; a power cut may undo the newest operations).
    :param retain: which items to keep, at least. The others are removed by this object when it has filled a
        file, but none that a consumer has not committed. Each object that appends needs its own ``retain``.
    :param on_corruption: what a reader does at damaged bytes. ``"raise"``: raise a ``CorruptionError``, also
        at opening if the end of the log is damaged. ``"stop"``: deliver the items before the damage, then
        raise it. ``"skip"``: log a warning, and deliver the items after them.
    :param trust_directory: use a serializer that executes code (pickle) although other users may write to the
        directory.
    :param allow_network_fs: use the directory although it lies on a network file system.
    :param mode: permission bits of the files that are made, as for a :class:`~persistcoll.Queue`.
    :param read_only: only read. The log writes nothing, makes nothing and locks nothing against others, and
        each method that would change something raises :exc:`~persistcoll.StorageError` (``EROFS``).
    :param create: make what is missing. With ``False`` the log raises :exc:`~persistcoll.StoreMissingError`
        instead, and makes nothing.
    :raise StoreKindError: something else lies at that path.
    :raise StoreMissingError: nothing lies there, with ``read_only`` or without ``create``.
    :raise SerializerMismatchError: the log was made with another serializer.
    :raise FormatVersionError: a later version made the log.
    :raise CorruptionError: the end of the log is damaged in a way that no crash explains.
    """

    _unit = "records"

    chunksize: int | None = option("chunksize")
    retain: Retain | None = option("retain")
    on_corruption: OnCorruption = option("on_corruption")

    __reversed__ = None  # positions are no indexes

    def __init__(
        self,
        path: str | bytes | os.PathLike[Any],
        *,
        chunksize: int | None = None,
        serializer: Any = pickle,
        durability: Durability = "power",
        retain: Retain | None = None,
        on_corruption: OnCorruption = "raise",
        trust_directory: bool = False,
        allow_network_fs: bool = False,
        mode: int | None = None,
        read_only: bool = False,
        create: bool = True,
        _disk: Disk | None = None,
    ) -> None:
        self._open(LogOptions.of(locals()), partial(open_store, disk=_disk))

    def _open_store(self, options: LogOptions) -> JournalLogStore:
        return open_store(options)

    def _attach(self, store: LogStore) -> None:
        self._store = store
        self._codec = codec(self.serializer, store.store_id)
        self._decode = record_decoder(self._codec, _WAY_ON)
        self._appended = EventCount(store.max_poll_interval)
        self._append = store.append
        self._cores: weakref.WeakSet[ConsumerCore] = weakref.WeakSet()
        if self.read_only:
            self._refuse_changes(("append", "extend", "trim", "consumer", "forget"))

    # Appending.

    def append(self, item: T) -> int:
        """Store ``item`` after all others, and return its position.

        It is durable when the method returns, as ``durability`` of the log says.

        Cost: 1 write. At ``"power"`` also 1 sync of the device, which threads that append at the same time
        share.

        :raise EncodeError: the serializer cannot store this item.
        :raise StorageFullError: the disk has no room; nothing is stored.
        :raise StorageError: the storage failed; the message says so if the outcome is unknown.
        """
        position = self._append(encode(self._codec, item))
        if self._appended.listeners:
            self._appended.notify(None)
        return position

    def extend(self, items: Iterable[T]) -> range:
        """Store all of ``items``, in order, or none, and return their positions.

        Cost: that of one :meth:`append`, however many items there are.

        It raises the errors that :meth:`append` raises.
        """
        positions = self._store.append_many([encode(self._codec, item) for item in items])
        if self._appended.listeners and positions:
            self._appended.notify(None)
        return range(positions[0], positions[-1] + 1) if positions else range(0)

    # Reading.

    @property
    def first(self) -> int:
        """The position of the first item; in an empty log, that of the next item to be appended."""
        return self._store.bounds().first

    @property
    def last(self) -> int:
        """The position of the last item that was appended; 0 if none was."""
        return self._store.bounds().last

    def __len__(self) -> int:
        """Count the items. Cost: it does not grow with the number of items."""
        return self._store.bounds().records

    _length = __len__

    def __iter__(self) -> Iterator[T]:
        """Iterate over all items. What is appended before the iteration ends is a part of it."""
        return self._items(0)

    def _items(self, after: int) -> Iterator[T]:
        with closing(self._store.records(after)) as records:
            for record in records:
                yield self._decode(record)[1]

    @overload
    def __getitem__(self, position: int) -> T: ...

    @overload
    def __getitem__(self, position: slice) -> list[T]: ...

    def __getitem__(self, position: int | slice) -> T | list[T]:
        """Return the item at a position, or a list of the items between two positions.

        A negative position counts back from the end: ``log[-1]`` is the last item. As in a list, a slice has
        no item at its second position, and takes what there is of positions beyond the ends.

        Cost: at most 1 file is looked through.

        :raise IndexError: no item has this position; a :exc:`~persistcoll.TrimmedError` if it was trimmed.
        :raise TypeError: the position is not a whole number.
        """
        if isinstance(position, slice):
            return self._slice(position)
        position = checked_integer("position", position)
        while True:
            wanted = self._absolute(position)
            record = next(self._store.records(wanted - 1), None) if wanted > 0 else None
            if record is not None and record.id == wanted:
                item: T = self._decode(record)[1]
                return item
            bounds = self._store.bounds()
            if not 0 < wanted < bounds.first or not bounds.last:
                raise IndexError(f"no item has the position {position}; the log ends at {bounds.last}")
            if position > 0:
                raise trimmed(wanted, bounds.first)
            # Others have trimmed since, so count back once more.

    def _absolute(self, position: int) -> int:
        """Return the position that a negative one means; 0 if it is before the first item."""
        if position >= 0:
            return position
        while True:
            first, _, records = self._store.bounds()
            wanted = self._store.nth(records + position) if records + position >= 0 else 0
            if self._store.bounds().first == first:  # otherwise others have trimmed in between
                return wanted

    def _slice(self, wanted: slice) -> list[T]:
        step = 1 if wanted.step is None else checked_integer("step", wanted.step)
        if not step:
            raise ValueError("the step of a slice cannot be 0")
        start, stop = (
            None if each is None else self._absolute(checked_integer("position", each))
            for each in (wanted.start, wanted.stop)
        )
        if step > 0:
            low, high = start or 0, stop
        else:
            low, high = 0 if stop is None else stop + 1, None if start is None else start + 1
        found: list[T] = []
        with closing(self._store.records(low - 1)) as records:
            for record in records:
                if high is not None and record.id >= high:
                    break
                found.append(self._decode(record)[1])
        return found[::step]

    def read(self, after: int = 0, limit: int | None = None) -> list[T]:
        """Return the items after a position, up to ``limit`` of them.

        A position before the first item begins with the first item. One at or past the last item returns an
        empty list.

        Cost: at most 1 file is looked through before the first item.

        :param limit: ``None``: all of them.
        :raise ValueError: a number is negative.
        """
        after = checked_count("after", after)
        most = None if limit is None else checked_count("limit", limit)
        return list(islice(self._items(after), most))

    # Trimming.

    def trim(self, before: int, force: bool = False) -> int:
        """Remove the items before a position that no consumer needs, and return how many these were.

        A consumer needs every item that it has not committed, whether it is open or not;
        :meth:`consumers` says which one lags, and :meth:`forget` removes one. A file is removed when all of
        its items are trimmed.

        Cost: 1 sync of a file and 1 of the directory; also 1 read and 1 sync for each consumer of which this
        object does not know yet that it has passed the position.

        :param before: the position of the first item to keep.
        :param force: remove also what consumers need. They raise a :exc:`~persistcoll.TrimmedError` then.
        """
        return self._store.trim(checked_integer("before", before), bool(force))

    # Consumers.

    def consumer(self, name: str, start: Place = "first", wait: bool = False) -> Consumer[T]:
        """Open the consumer of this name; it is made if it is new.

        One object at a time has a consumer open, in this process or another one. It is free again when that
        object is closed, or its process ends.

        Cost: 1 write. A new consumer: 1 sync of a file and 1 of the directory.

        :param name: any text, of at most 1 MiB.
        :param start: where a new consumer begins, as in :meth:`Consumer.seek`. A consumer that exists
            continues after its position.
        :param wait: stand by until the consumer is free. Otherwise the error comes at once.
        :raise LockedError: the consumer is open; ``pid`` is the process that has it.
        :raise TrimmedError: the consumer is new, and the position was trimmed.
        :raise TypeError: ``name`` or ``start`` has another type.
        :raise ValueError: the consumer is new, and the log does not come to that position yet; ``start`` is
            another text, or below 1; or the name is too long.
        """
        name = _checked_name(name)
        while True:
            try:
                cursor = self._going_to(start, partial(self._store.cursor, name))
                break
            except LockedError:
                if not wait:
                    raise
            time.sleep(_STANDBY)
        core = ConsumerCore(self._store, cursor, self._appended)
        self._cores.add(core)
        return Consumer(self, core, self._decode)

    def _going_to(self, place: Place, go: Callable[[int | None], R]) -> R:
        """Call a function with the id of the record that a place means, and return its result."""
        while True:
            try:
                return go(self._id_at(place))
            except TrimmedError:
                # Others have appended and trimmed in between. The end, or a time, is another record now.
                if isinstance(place, int):
                    raise

    def _id_at(self, place: Place) -> int | None:
        """Return the id of the record that a place means; ``None`` for the first one."""
        if isinstance(place, datetime):
            return self._store.find(place.timestamp())
        if place == "first":
            return None
        if place == "last":
            return self._store.bounds().last + 1
        if isinstance(place, str):
            raise ValueError(f"a place in a log is 'first', 'last', a position or a datetime, not {place!r}")
        position = checked_integer("place", place, "'first', 'last', a position or a datetime")
        if position < 1:
            raise ValueError(f"the positions of a log begin at 1, and {position} is none")
        return position

    def consumers(self) -> dict[str, CursorState]:
        """Return ``position`` and ``lag`` of every consumer, by its name.

        >>> from persistcoll import Log
        >>> with Log("changes") as log:
        ...     positions = log.extend(["created", "deleted"])
        ...     with log.consumer("index") as consumer, consumer.receive() as event:
        ...         print(event)
        ...     log.consumers()
        created
        {'index': CursorState(position=1, lag=1)}

        Cost: 1 read for each consumer.
        """
        return self._store.cursors()

    def forget(self, name: str) -> bool:
        """Remove a consumer and its position, and tell whether there was one.

        Cost: 1 sync of the directory.

        :raise LockedError: the consumer is open.
        :raise TypeError: ``name`` is no text.
        """
        return self._store.forget(_checked_name(name))

    # Closing.

    def close(self) -> None:
        """Close the log and the consumers that this object has opened. It commits nothing. Idempotent.

        Cost: at most 1 write and 1 sync, and as much for each open consumer, at either level of durability.
        """
        self._closed = True
        self._store.close()
        self._appended.notify(None)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._store.after_fork_in_child()
        self._appended = EventCount(self._store.max_poll_interval)
        for core in list(self._cores):
            core.after_fork(self._appended)
