"""The only module that writes, syncs, renames, unlinks and locks.

Everything else asks a :class:`Disk` for it. That is what makes the faults testable
(``persistcoll.testing`` has disks that fail and disks that lose power), and it keeps the
differences between platforms in one place:

=============  ==========================  ======================  ================================
platform       ``sync``                    ``sync_directory``      ``flock``
=============  ==========================  ======================  ================================
Linux, BSD     ``fdatasync``               ``fsync`` of the        ``flock``
                                           directory
macOS          ``F_FULLFSYNC`` (``fsync``  ``F_FULLFSYNC`` of the  ``flock``
               only reaches the drive's    directory
               cache there)
Windows        ``FlushFileBuffers``        not possible, skipped   ``msvcrt.locking`` of one byte
=============  ==========================  ======================  ================================
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from persistcoll.errors import StorageError, StorageFullError

__all__ = [
    "CALLS",
    "EXCLUSIVE",
    "LINKS",
    "MAKING_SECONDS",
    "SIZE",
    "TRY_EXCLUSIVE",
    "TRY_SHARED",
    "UNLOCK",
    "UNSEEN_CALLS",
    "UNSEEN_SECONDS",
    "Disk",
    "OpenFile",
    "Ownership",
    "close_quietly",
    "just_made",
    "network_file_system",
    "new_salt",
    "open_lasting",
    "read_file",
    "read_fully",
    "storage_error",
    "write_fully",
]

# The numbers of flock(2), which every platform's Disk.flock understands.
_SHARED, EXCLUSIVE, _NON_BLOCKING, UNLOCK = 1, 2, 4, 8
TRY_EXCLUSIVE = EXCLUSIVE | _NON_BLOCKING
TRY_SHARED = _SHARED | _NON_BLOCKING

# Every call of a Disk, by name: what a fault can be injected into.
CALLS = (
    "open",
    "close",
    "read",
    "write",
    "pwrite",
    "truncate",
    "reserve",
    "sync",
    "sync_directory",
    "replace",
    "unlink",
    "mkdir",
    "flock",
)

# Where in a Disk.status the number of names and the size stand.
LINKS, SIZE = 3, 6

UNSEEN_CALLS, UNSEEN_SECONDS = 16, 0.004
"""For so many calls, and so long, the removal of a file may stay unnoticed at "process"."""

_WINDOWS_BUSY_SECONDS = 1.0
MAKING_SECONDS = 0.1
# msvcrt.locking forbids others to read what it locks, so the byte lies behind all content.
_WINDOWS_LOCK_OFFSET = 0x3FFFFFFF
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Ownership(NamedTuple):
    """To whom a new file belongs, and what they may do with it. The umask has no say.

    :ivar mode: of a file. A directory has the matching ``x`` bits as well.
    :ivar owner: given where this process is root, which would lock a user out. Below 0: as it comes.
    :ivar group: given where this process may. Below 0: as it comes.
    """

    mode: int = 0o600
    owner: int = -1
    group: int = -1

    @property
    def directory_mode(self) -> int:
        """The mode of a directory."""
        return self.mode | (self.mode & 0o444) >> 2

    def apply(self, fd: int) -> None:
        """To the new file of this descriptor."""
        if not hasattr(os, "fchown"):
            return  # Windows
        found = os.fstat(fd)
        owner = self.owner if os.geteuid() == 0 else -1
        if (owner, self.group) != (-1, -1) and (owner, self.group) != (found.st_uid, found.st_gid):
            _where_possible(os.fchown, fd, owner, self.group)
        if stat.S_IMODE(found.st_mode) != self.mode:
            _where_possible(os.fchmod, fd, self.mode)


def _where_possible(call: Callable[..., None], *arguments: Any) -> None:
    try:
        call(*arguments)
    except OSError as error:
        # The group may be one that this process is not in, and some file systems have neither.
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


class Disk:
    """The file system calls that the journal uses, as plain functions held by one object.

    The attributes are the operating system's own functions wherever it has them, so that a call
    through a ``Disk`` costs what the bare call costs. ``flock`` must be a lock of the open file
    (never a POSIX ``fcntl`` lock, which any ``close`` in the process drops).

    ==================================  ===========================================================
    ``open(path, flags, mode=0o600)``   a descriptor
    ``close(fd)``
    ``read(fd, count, offset)``         up to ``count`` bytes from ``offset``
    ``write(fd, data)``                 bytes written, perhaps fewer; descriptors that are written
                                        this way are opened with ``O_APPEND``
    ``pwrite(fd, data, offset)``        bytes written, perhaps fewer
    ``size(fd, 0, os.SEEK_END)``        the file's size (``lseek``: a third of the cost of ``fstat``)
    ``status(fd)``                      ``fstat``: index it, ``[SIZE]`` and ``[LINKS]``, because its names
                                        cost as much again as the call
    ``truncate(fd, length)``
    ``reserve(fd, length)``             blocks for ``length`` bytes
    ``sync(fd)``                        the file's data and size are on the device
    ``sync_directory(path)``            the names in it are on the device
    ``replace(source, target)``         atomic rename
    ``unlink(path)``, ``mkdir(path)``
    ``flock(fd, operation)``            ``BlockingIOError`` for a ``TRY_`` operation that must wait
    ==================================  ===========================================================

    :ivar ownership: of what is made.
    :param platform: as ``sys.platform``.
    :param fcntl: the module of that name, or a stand-in (tests of another platform).
    :param msvcrt: the same for Windows.
    """

    ownership = Ownership()

    def __init__(
        self,
        platform: str = sys.platform,
        *,
        fcntl: ModuleType | Any = None,
        msvcrt: ModuleType | Any = None,
    ) -> None:
        self.close: Callable[[int], None] = os.close
        self.write: Callable[[int, Any], int] = os.write
        self.size: Callable[[int, int, int], int] = os.lseek
        self.status: Callable[[int], os.stat_result] = os.fstat
        self.truncate: Callable[[int, int], None] = os.ftruncate
        self.unlink: Callable[[str], None] = os.unlink
        self.replace: Callable[[str, str], None] = os.replace
        self.read: Callable[[int, int, int], bytes]
        self.pwrite: Callable[[int, Any, int], int]
        self.sync: Callable[[int], None]
        self._sync_name: Callable[[int], None]
        self.sync_directory: Callable[[str], None] = self._fsync_directory
        self.flock: Callable[[int, int], None]
        self.renames_open_files = platform != "win32"
        if platform == "win32":
            self._use_windows(msvcrt)
        else:
            self._use_posix(platform, fcntl)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor, never inherited, never through a symlink."""
        return os.open(path, flags | _OPEN_FLAGS, mode)

    def mkdir(self, path: str) -> None:
        """Make a directory that only its owner may enter."""
        os.mkdir(path, 0o700)

    def reserve(self, fd: int, length: int) -> None:
        """Have blocks for ``length`` bytes; does nothing where that is impossible."""
        fallocate = getattr(os, "posix_fallocate", None)  # not on macOS and Windows
        if fallocate is None:
            return
        try:
            fallocate(fd, 0, length)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise

    def _use_posix(self, platform: str, fcntl: ModuleType | Any) -> None:
        if fcntl is None:
            import fcntl
        self.read = os.pread
        self.pwrite = os.pwrite
        self.flock = fcntl.flock
        full_sync = getattr(fcntl, "F_FULLFSYNC", None) if platform == "darwin" else None
        if full_sync is None:
            self.sync = getattr(os, "fdatasync", os.fsync)
            self._sync_name = os.fsync
            return

        def sync(fd: int) -> None:
            try:
                fcntl.fcntl(fd, full_sync)
            except OSError as error:
                # File systems that do not know the command (SMB, some FUSE) still have fsync.
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
                os.fsync(fd)

        self.sync = self._sync_name = sync

    def _fsync_directory(self, path: str) -> None:
        # Another disk's `open` would not know directories.
        directory = OpenFile(_PLAIN, path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), follow=True)
        try:
            self._sync_name(directory.fd)
        finally:
            directory.close()

    def _use_windows(self, msvcrt: ModuleType | Any) -> None:
        if msvcrt is None:
            import msvcrt
        # Windows has no pread and pwrite; seek and read belong together.
        seeking = threading.Lock()

        def read(fd: int, count: int, offset: int) -> bytes:
            with seeking:
                os.lseek(fd, offset, os.SEEK_SET)
                return os.read(fd, count)

        def pwrite(fd: int, data: Any, offset: int) -> int:
            with seeking:
                os.lseek(fd, offset, os.SEEK_SET)
                return os.write(fd, data)

        def flock(fd: int, operation: int) -> None:
            while True:
                with seeking:
                    os.lseek(fd, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
                    try:
                        mode = msvcrt.LK_UNLCK if operation & UNLOCK else msvcrt.LK_NBLCK
                        msvcrt.locking(fd, mode, 1)
                        return
                    except OSError as error:
                        if error.errno not in (errno.EACCES, errno.EDEADLK):
                            raise
                        if operation & UNLOCK:
                            return  # it was not held, and flock does not mind
                        if operation & _NON_BLOCKING:
                            raise BlockingIOError(errno.EWOULDBLOCK, "locked") from error
                time.sleep(0.001)

        self.read, self.pwrite, self.flock = read, pwrite, flock
        self.sync = os.fsync
        self.sync_directory = _nothing
        # Another handle on the target (a reader, a virus scanner, an indexer) makes these fail
        # for a moment.
        self.replace = _retry_busy(os.replace)
        self.unlink = _retry_busy(os.unlink)


# O_NOFOLLOW: a planted symlink must not redirect what we write.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | _NO_FOLLOW | getattr(os, "O_BINARY", 0)


# Made now: a destructor may need it when the interpreter imports nothing any more.
_PLAIN = Disk()


class OpenFile:
    """A descriptor that is closed once: by :meth:`close`, or when nobody holds this object any more.

    An interrupt (``KeyboardInterrupt``) may come in behind any call. So the descriptor goes from the
    operating system into a list, and back, within one call of C each: ``extend`` and ``list`` drain a
    ``map`` of C functions, and no line of Python in which it could get lost lies between. Its owner calls
    :meth:`close` all the same, because a destructor swallows the interrupts that come in there.

    The garbage collector calls the destructors of a cycle in any order. A destructor that needs the file asks
    :attr:`held` first, because the number of a closed descriptor may be another file's.

    :ivar fd: its number.
    :ivar held: a list of it, empty when it is closed.
    """

    held: list[int] = []  # noqa: RUF012 - of one whose making was interrupted; never changed

    def __init__(self, disk: Disk, path: str, flags: int, mode: int = 0o600, *, follow: bool = False) -> None:
        self._close = disk.close
        self.held = []
        call: Callable[[str, int, int], int] = disk.open
        if getattr(call, "__func__", None) is Disk.open:
            call = os.open
            flags |= _OPEN_FLAGS & ~_NO_FOLLOW if follow else _OPEN_FLAGS
        self.held.extend(map(call, (path,), (flags,), (mode,)))
        self.fd = self.held[0]
        if flags & os.O_EXCL:
            disk.ownership.apply(self.fd)

    def close(self) -> None:
        """What closing reports is of no use, and comes after every sync that counts."""
        held = self.held
        try:
            list(map(self._close, map(held.pop, range(len(held)))))
        except IndexError:
            pass  # a signal handler, or another thread, was faster
        except OSError as error:
            if error.errno is None:  # a signal handler's
                raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.held:
            self.close()


def open_lasting(disk: Disk, path: str) -> OpenFile:
    """A file that is made once, by the first of several processes, and then stays: a lock's.

    Its maker sets the mode behind making it, so in between others may be refused for no reason: they wait.
    """
    deadline = time.monotonic() + MAKING_SECONDS
    while True:
        try:
            return OpenFile(disk, path, os.O_RDWR)
        except FileNotFoundError:
            pass
        except PermissionError:
            if time.monotonic() > deadline or not just_made(path):
                raise
            time.sleep(0.001)
            continue
        try:
            return OpenFile(disk, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            pass


def just_made(path: str) -> bool:
    """Whether another process may still be about to set its mode."""
    try:
        return abs(time.time() - os.lstat(path).st_ctime) < 1
    except OSError:
        return False


def _nothing(path: str) -> None:
    return None


def _retry_busy(call: Callable[..., None]) -> Callable[..., None]:
    def retry(*arguments: str) -> None:
        deadline = time.monotonic() + _WINDOWS_BUSY_SECONDS
        pause = 0.001
        while True:
            try:
                return call(*arguments)
            except PermissionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    return retry


def storage_error(error: OSError, doing: str, path: str) -> StorageError:
    """The error to raise for ``error``, which happened while ``doing`` something with ``path``.

    An error without a number is not the operating system's but a signal handler's, such as a
    ``TimeoutError``: it is raised.
    """
    if error.errno is None:
        try:
            raise error
        finally:
            del error  # the traceback holds this frame
    kind = StorageFullError if error.errno in _FULL else StorageError
    reason = os.strerror(error.errno) if error.errno else str(error)
    result = kind(f"{doing} {path!r} failed: {reason}{_remedy(error, path)}", error.errno)
    result.__cause__ = error
    return result


def _remedy(error: OSError, path: str) -> str:
    if error.errno == errno.EROFS:
        return "; to look at a store on a read-only file system open it with read_only=True"
    if error.errno not in (errno.EACCES, errno.EPERM) or not hasattr(os, "geteuid"):
        return ""
    place = error.filename if isinstance(error.filename, str) else path
    try:
        found = os.stat(place)
    except OSError:
        return ""  # the way there is barred, or it is missing
    me = os.geteuid()
    remedy = f"; this process is user {me}, and {place!r} belongs to user {found.st_uid} and group"
    remedy += f" {found.st_gid} (mode {stat.S_IMODE(found.st_mode):o})"
    if found.st_uid != me:
        remedy += (
            ". For several users of one group: a directory of that group (chgrp GROUP, chmod 2770), in which"
            " the store is made with mode=0o660 and a serializer that runs no code, as json."
            " To look only: read_only=True"
        )
    elif ~found.st_mode & 0o600:
        remedy += "; chmod u+rw"
    return remedy


def close_quietly(disk: Disk, fd: int) -> None:
    """Close ``fd``; what that reports is of no use, and comes after every sync that counts."""
    try:
        disk.close(fd)
    except OSError:
        pass


def write_fully(disk: Disk, fd: int, data: bytes) -> None:
    """Append all of ``data``, however many writes that takes."""
    view = memoryview(data)
    while view:
        view = view[disk.write(fd, view) :]


def read_file(disk: Disk, path: str) -> bytes:
    """All of a small file."""
    file = OpenFile(disk, path, os.O_RDONLY)
    try:
        return read_fully(disk, file.fd, disk.status(file.fd).st_size, 0)
    finally:
        file.close()


def read_fully(disk: Disk, fd: int, count: int, offset: int) -> bytes:
    """``count`` bytes from ``offset``, fewer only where the file ends."""
    data = disk.read(fd, count, offset)
    if len(data) == count or not data:
        return data
    parts, there = [data], len(data)
    while there < count and (more := disk.read(fd, count - there, offset + there)):
        parts.append(more)
        there += len(more)
    return b"".join(parts)


def network_file_system(path: str) -> str | None:
    """The type of the network file system that ``path`` is on, else ``None``; known on Linux."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            lines = table.readlines()
    except OSError:
        return None
    device = os.stat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        fields = line.split(" ")
        if fields[2] == name:
            kind = fields[fields.index("-") + 1]
            return kind if kind in _NETWORK else None
    return None


_NETWORK = frozenset(
    "9p afs ceph cifs drvfs fuse.glusterfs fuse.sshfs glusterfs lustre ncpfs nfs nfs4 smb2 smb3 smbfs"
    " virtiofs".split()
)


def new_salt() -> int:
    """Thirty-two random bits, never zero."""
    return secrets.randbits(32) or 1
