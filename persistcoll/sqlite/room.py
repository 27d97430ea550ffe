"""Finding out whether a file system has room, where SQLite does not say why it could not write."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress

from persistcoll.disk.calls import Disk, storage_error
from persistcoll.errors import StorageFullError

__all__ = ["no_room"]

# Bytes: more than SQLite writes in one call, whose failure is to be explained.
_PROBE = 1 << 16
_BESIDE = ("", "-wal", "-shm")


def no_room(database: str) -> int | None:
    """The error number with which the file system refuses a file beside the database that is as long as the
    longest of the database's own files, and one block longer; ``None`` if it takes it.

    So a full disk, a quota and a limit of a file's size tell themselves from a broken device. The probe has
    no name, or for a moment one that nothing else has; it leaves nothing.
    """
    longest = 0
    for suffix in _BESIDE:
        with suppress(OSError):
            longest = max(longest, os.stat(database + suffix).st_size)
    try:
        _write_beside(Disk(), database, longest)
    except OSError as error:
        return error.errno if isinstance(storage_error(error, "", ""), StorageFullError) else None
    return None


def _write_beside(disk: Disk, database: str, offset: int) -> None:
    fd = _make_unnamed(disk, database)
    try:
        data = bytes(_PROBE)
        # A short write stands for the error that the rest of it gets.
        while data:
            written = disk.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
    finally:
        disk.close(fd)


def _make_unnamed(disk: Disk, database: str) -> int:
    unnamed = getattr(os, "O_TMPFILE", None)  # Linux; not on every file system
    if unnamed is not None:
        try:
            return disk.open(os.path.dirname(database), unnamed | os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    path = f"{database}.probe-{secrets.token_hex(8)}"
    fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        disk.unlink(path)
    except BaseException:
        disk.close(fd)
        raise
    return fd
