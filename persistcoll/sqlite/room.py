"""Find out whether a file system has space, because SQLite does not say why it could not write."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress

from persistcoll.disk.calls import Disk, storage_error
from persistcoll.errors import StorageFullError

__all__ = ["no_room"]

# Bytes: more than SQLite writes in one call, so that the probe fails if that call did.
_PROBE = 1 << 16
_BESIDE = ("", "-wal", "-shm")


def no_room(database: str) -> int | None:
    """Return the error number for which the file system has no space, or ``None`` if it has.

    The probe writes a block into a new file beside the database, at the end of the longest of the database's
    files. So it fails for a full disk, for a quota and for a limit of a file's size, but not for a broken
    device. The probe has no name, or for a short time one that no other file has, and leaves nothing.

    Cost: one write of 64 KiB, without a sync.
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
        # After a short write the next one gets the error.
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
