"""What a directory says of the file queue or the log in it.

All is read and nothing is written. No lock is taken either, not even for the instant in which others find out
whether a consumer lives. At most one chunk and one cursor are read, however many items wait.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress

from persistcoll.disk.calls import Disk, OpenFile, read_fully, storage_error
from persistcoll.engine.records import CollectionInfo
from persistcoll.errors import CorruptionError, FormatVersionError, StorageError
from persistcoll.journal.consumer_files import ConsumerFiles
from persistcoll.journal.consumer_lock import CONTENT_SIZE, unpack_state
from persistcoll.journal.cursors import CursorReader
from persistcoll.journal.directory import CONSUMER_LOCK, CURSOR, LOG, VERSION, StoreInfo, existing_info
from persistcoll.journal.log_trim import LogTrim
from persistcoll.journal.places import Places
from persistcoll.journal.recovery import JournalLocation
from persistcoll.journal.tail_view import TailView

__all__ = ["inspect"]

# Bytes that are read for a count. A record takes 3 us, an entry of the cursor 1 us.
_MOST_OF_CHUNK, _MOST_OF_CURSOR = 1 << 24, 1 << 21
_PATIENCE = 100  # tries


def inspect(path: str) -> CollectionInfo:
    """Describe the store in that directory.

    :raise StoreMissingError: there is no store.
    :raise StoreKindError: there is something else.
    :raise FormatVersionError: a later version made it.
    :raise CorruptionError: its ``info`` is damaged or missing.
    :raise StorageError: it cannot be read.
    """
    disk = Disk()
    try:
        info = existing_info(disk, path)
        unfinished = claimed = None
        # Lost files cost the counts only: what is left can still be told.
        with suppress(FileNotFoundError, CorruptionError, FormatVersionError):
            if info.kind is LOG:
                unfinished, claimed = _count_log(disk, path, info), 0
            else:
                unfinished, claimed = _count(disk, path, info)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, "looking at", path) from error
    return CollectionInfo(
        info.kind.name,
        None,
        path,
        info.serializer,
        VERSION,
        info.created,
        info.chunksize,
        unfinished=unfinished,
        ready=None if unfinished is None or claimed is None else unfinished - claimed,
        claimed=claimed,
        delayed=0,
        done=0,
        failed=0,
        dead=0,
        blocked=0,
    )


def _count_log(disk: Disk, path: str, info: StoreInfo) -> int | None:
    """Count the records of a log that are not trimmed."""
    location = JournalLocation(disk, path, info.store_id, info.serializer)
    with closing(TailView(location)) as tail:
        tail.locate()
        if tail.unread > _MOST_OF_CHUNK or (tail.mark is not None and tail.tail[0] < tail.mark.number):
            return None
        last = tail.last_chunk()
        places = Places(location, can_write=False)
        with closing(LogTrim(location, places, ConsumerFiles(location, None))) as trim:
            trim.refresh(last)
            return last.ordinal - places.ordinal_of(trim.trimmed + 1, trim.lowest, last)


def _count(disk: Disk, path: str, info: StoreInfo) -> tuple[int | None, int | None]:
    """How many records are not acknowledged, and how many of them a consumer has."""
    tail = TailView(JournalLocation(disk, path, info.store_id, info.serializer))
    cursor_path = os.path.join(path, CURSOR)
    with closing(tail), closing(CursorReader(disk, cursor_path, info.store_id)) as cursor:
        tail.locate()
        if tail.mark is not None and tail.tail[0] < tail.mark.number:
            return None, None  # the last chunk is missing
        if tail.unread > _MOST_OF_CHUNK or os.stat(cursor_path).st_size > _MOST_OF_CURSOR:
            return None, None
        for _ in range(_PATIENCE):
            # Numbers that other processes change: they are of one moment if the ones that were read first are
            # still the same after the last was read.
            before = _read_consumer(disk, path, cursor)
            last = tail.refresh()
            done, gone = _read_consumer(disk, path, cursor)
            if (done, gone) == before:
                break
        if cursor.damaged or not cursor.acknowledged.position[1]:
            return None, None  # opening finds out what is acknowledged
        # The number of a consumer that died stays in the file.
        return max(0, last - done), 0 if gone <= done else None


def _read_consumer(disk: Disk, path: str, cursor: CursorReader) -> tuple[int, int]:
    """How many records are acknowledged, and how many the last consumer said that are not ready."""
    cursor.refresh()
    with OpenFile(disk, os.path.join(path, CONSUMER_LOCK), os.O_RDONLY) as file:
        pid, state = unpack_state(read_fully(disk, file.fd, CONTENT_SIZE, 0))
    return cursor.acknowledged.count, state.not_ready if pid else 0
