"""Tell which holders live, so that what a dead one had claimed can be reclaimed.

A claim carries the number of its holder. A holder keeps a ``flock`` on a file of its own for as long as it
lives. The kernel drops the lock when the process dies, however it dies. So what a dead holder had claimed can
be reclaimed, and what a living one has claimed stays claimed until it is settled or its lease ends.
"""

from __future__ import annotations

import os
import re
from typing import Protocol

from persistcoll.disk.calls import TRY_EXCLUSIVE, Disk, OpenFile, close_quietly, open_lasting, storage_error

__all__ = ["Holder", "forget", "holder_files", "is_dead"]


def _path(database: str, number: int) -> str:
    return f"{database}.holder-{number}"


class _Database(Protocol):
    path: str
    disk: Disk

    def watch(self, path: str, fd: int) -> None: ...

    def ignore(self, path: str) -> None: ...


class Holder:
    """A holder, with a number above 0 that is never used again.

    The database checks that the holder's file stays where it is. Without the file other processes would take
    this process for dead, and reclaim what it has claimed.

    Only the owner's close calls and its destructor use the fields after the constructor. All of them may be
    called again and need no lock.

    :param database: where the holder claims. In memory it has no file, because no other process can claim.
    :raise BlockingIOError: another holder has that number.
    """

    _file: OpenFile | None = None

    def __init__(self, database: _Database, number: int) -> None:
        self.number = number
        self._database = database
        self._disk = disk = database.disk
        self._path = _path(database.path, number)
        if database.path == ":memory:":
            return
        try:
            self._file = open_lasting(disk, self._path)
            disk.flock(self._file.fd, TRY_EXCLUSIVE)
            if not self._is_own(self._file.fd):
                # Another thread has removed it since it was opened: the last holder of this number closes.
                raise BlockingIOError
            database.watch(self._path, self._file.fd)
        except BlockingIOError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise storage_error(error, "locking", self._path) from error
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # An interrupt came before close(). The file stays, and another process removes it.
        if self._file is not None:
            self._database.ignore(self._path)

    def close_and_unlink(self) -> None:
        """Close and remove the file, because the holder has no claim any more."""
        self._database.ignore(self._path)
        if self._file is not None and self._file.held and self._is_own(self._file.fd):
            forget(self._disk, self._path)
        self.close()

    def _is_own(self, fd: int) -> bool:
        """Tell whether the file still has its path; another store's file may have it now."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file and leave it: another process that finds it unlocked takes this holder for dead.

        In a forked child the parent's descriptor still keeps the lock.
        """
        self._database.ignore(self._path)
        if self._file is not None:
            self._file.close()


def forget(disk: Disk, path: str) -> None:
    """Remove a holder's file, if possible; a file that remains does no harm."""
    try:
        disk.unlink(path)
    except OSError:
        pass


def is_dead(disk: Disk, database: str, number: int) -> bool:
    """Tell whether that holder is dead, and remove its file if it is.

    The caller holds the writer lock, so no other process makes a holder with that number meanwhile.
    """
    path = _path(database, number)
    try:
        fd = disk.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise storage_error(error, "opening", path) from error
    try:
        disk.flock(fd, TRY_EXCLUSIVE)
    except BlockingIOError:
        return False
    finally:
        close_quietly(disk, fd)
    forget(disk, path)
    return True


def holder_files(database: str) -> list[int]:
    """Return the numbers of all holders that have a file."""
    folder, name = os.path.split(database)
    pattern = re.compile(re.escape(name) + r"\.holder-(\d+)")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise storage_error(error, "listing", folder) from error
    return [int(match[1]) for match in map(pattern.fullmatch, names) if match]
