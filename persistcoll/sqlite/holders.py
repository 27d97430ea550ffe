"""Who holds what is claimed, and whether they still live.

A claim carries the number of its holder. A holder keeps a ``flock`` on a file of its own for as long as
it lives; the kernel drops it at the process's death, however it dies. So what a dead holder had claimed can
be given back, and what a living one holds is left to it, until a lease runs out, if there is one.
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
    """One that claims. ``number`` is above 0 and never used again.

    The database watches its file: where that is missing, the others take this process for dead and get what
    it holds.

    :param database: where it claims; in memory nobody else asks whether it lives.
    :raise BlockingIOError: another one has that number.
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
        # Its maker was interrupted before it had it. Others will remove the file.
        if self._file is not None:
            self._database.ignore(self._path)

    def close_and_unlink(self) -> None:
        """It holds nothing any more: remove its file."""
        self._database.ignore(self._path)
        if self._file is not None and self._file.held and self._is_own(self._file.fd):
            forget(self._disk, self._path)
        self.close()

    def _is_own(self, fd: int) -> bool:
        """Whether its file is where it was: what lies there now may be another store's."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file and leave it: who finds it unlocked knows that this holder is dead.

        In a forked child the parent's descriptor still keeps the lock.
        """
        self._database.ignore(self._path)
        if self._file is not None:
            self._file.close()


def forget(disk: Disk, path: str) -> None:
    """Remove a holder's file, if it can be: one that is left tells nothing wrong."""
    try:
        disk.unlink(path)
    except OSError:
        pass


def is_dead(disk: Disk, database: str, number: int) -> bool:
    """Whether that holder does not live any more; then its file is gone. The writer lock is held."""
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
    """The numbers of all holders that have a file."""
    folder, name = os.path.split(database)
    pattern = re.compile(re.escape(name) + r"\.holder-(\d+)")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise storage_error(error, "listing", folder) from error
    return [int(match[1]) for match in map(pattern.fullmatch, names) if match]
