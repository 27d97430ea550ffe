"""A disk that omits what a rule of the journal needs: for tests of the tests."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase

from persistcoll.disk.calls import CALLS, Disk

__all__ = ["UnsyncedDisk"]


class UnsyncedDisk(Disk):
    """Passes every call on, except the syncs that it was told to omit.

    :param sync: files whose sync does nothing, by a pattern of the name that they were opened with.
    :param names_of: the sync of a directory does nothing while the last rename in it was to a name of this
        pattern.
    :param flags: removed from the flags of every ``open``.
    :ivar omissions: how often something was omitted. A test that asserts this knows that the rule was broken.
    """

    def __init__(self, disk: Disk, *, sync: str = "", names_of: str = "", flags: int = 0) -> None:
        # Disk.__init__ is not called, because this method makes every attribute that it would make.
        self._disk = disk
        self._unsynced, self._unnamed, self._flags = sync, names_of, flags
        self._paths: dict[int, str] = {}
        self._renamed = ""
        self.omissions = 0
        self.size = disk.size
        self.status = disk.status
        self.renames_open_files = disk.renames_open_files
        self.renames_open_files = disk.renames_open_files
        for call in CALLS:
            if call not in ("open", "sync", "sync_directory", "replace"):
                setattr(self, call, getattr(disk, call))
        self.sync = self._sync
        self.sync_directory = self._sync_directory
        self.replace = self._replace

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self.omissions += bool(flags & self._flags)
        fd = self._disk.open(path, flags & ~self._flags, mode)
        self._paths[fd] = os.path.basename(path)
        return fd

    def _sync(self, fd: int) -> None:
        if self._unsynced and fnmatchcase(self._paths[fd], self._unsynced):
            self.omissions += 1
        else:
            self._disk.sync(fd)

    def _replace(self, source: str, target: str) -> None:
        self._disk.replace(source, target)
        for fd, name in self._paths.items():
            if name == os.path.basename(source):
                self._paths[fd] = os.path.basename(target)
        self._renamed = os.path.basename(target)

    def _sync_directory(self, path: str) -> None:
        if self._unnamed and fnmatchcase(self._renamed, self._unnamed):
            self.omissions += 1
        else:
            self._disk.sync_directory(path)
