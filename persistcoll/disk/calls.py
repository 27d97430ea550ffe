"""The calls of the file system that change or lock a file.

All other modules make these calls through a :class:`Disk`. So tests can inject faults
(``persistcoll.testing`` has disks that fail and disks that lose power), and the differences between
platforms are in one place:

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

import contextlib
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
    "OUTCOME_UNKNOWN",
    "SIZE",
    "TRY_EXCLUSIVE",
    "TRY_SHARED",
    "UNLOCK",
    "UNSEEN_CALLS",
    "UNSEEN_SECONDS",
    "Disk",
    "OpenFile",
    "Ownership",
    "boot_id",
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

# The names of all calls of a Disk into which a test can inject a fault.
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

# The indices of the number of names and of the size in the result of Disk.status.
LINKS, SIZE = 3, 6

OUTCOME_UNKNOWN = "; whether what was being written is stored is unknown"
"""The end of the message of an error after which an operation may have happened."""

UNSEEN_CALLS, UNSEEN_SECONDS = 16, 0.004
"""At ``"process"`` the removal of a file is noticed after at most this many calls, or this many seconds."""

_WINDOWS_BUSY_SECONDS = 1.0
MAKING_SECONDS = 0.1
# msvcrt.locking forbids other processes to read the locked byte, so the byte lies beyond all content.
_WINDOWS_LOCK_OFFSET = 0x3FFFFFFF
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str | None:
    """Return what tells this boot of the machine from all others, or ``None`` if the system does not say."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


class Ownership(NamedTuple):
    """The owner, the group and the mode of a new file, whatever the umask is. Immutable.

    :ivar mode: the permission bits of a file. A directory gets the matching ``x`` bits as well.
    :ivar owner: the user id. Only root sets it, because otherwise the files that root creates would exclude
        the user. Below 0 the owner is not changed.
    :ivar group: the group id. It is set if this process has the right to. Below 0 the group is not changed.
    """

    mode: int = 0o600
    owner: int = -1
    group: int = -1

    @property
    def directory_mode(self) -> int:
        """The permission bits of a directory."""
        return self.mode | (self.mode & 0o444) >> 2

    def apply(self, fd: int) -> None:
        """Set owner, group and mode of the new file that ``fd`` refers to. On Windows this does nothing."""
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
        # This process may not be in the group, and some file systems have no owners or modes.
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


class Disk:
    """The file system calls of persistcoll, as functions that are attributes of one object. Thread-safe.

    The attributes are the operating system's own functions wherever it has them, so that a call through a
    ``Disk`` costs as much as the bare call. ``flock`` must lock the open file. A POSIX ``fcntl`` lock is
    wrong, because any ``close`` of the same file in the process drops it.

    ==================================  ===========================================================
    ``open(path, flags, mode=0o600)``   open a file and return a descriptor
    ``close(fd)``                       close the descriptor
    ``read(fd, count, offset)``         return up to ``count`` bytes from ``offset``
    ``write(fd, data)``                 append, and return the number of bytes written, which may be
                                        less than all; the descriptor is opened with ``O_APPEND``
    ``pwrite(fd, data, offset)``        write at ``offset``, and return the number of bytes written
    ``size(fd, 0, os.SEEK_END)``        return the file's size (``lseek`` costs a third of ``fstat``)
    ``status(fd)``                      return ``fstat``. Use the indices ``[SIZE]`` and ``[LINKS]``,
                                        because access by name costs as much as the call itself
    ``truncate(fd, length)``            cut the file to ``length`` bytes
    ``reserve(fd, length)``             reserve blocks for ``length`` bytes
    ``sync(fd)``                        return when the file's data and size are on the device
    ``sync_directory(path)``            return when the names in the directory are on the device
    ``replace(source, target)``         rename atomically
    ``unlink(path)``, ``mkdir(path)``   remove a file, create a directory
    ``flock(fd, operation)``            lock or unlock; raise ``BlockingIOError`` for a ``TRY_``
                                        operation that must wait
    ``boot_id()``                       return what tells this boot of the machine from all others
    ==================================  ===========================================================

    :ivar ownership: the ownership of new files and directories.
    :param platform: the platform, as in ``sys.platform``.
    :param fcntl: the module ``fcntl``, or a substitute in tests of another platform.
    :param msvcrt: the module ``msvcrt``, or a substitute in tests of another platform.
    """

    ownership = Ownership()
    boot_id = staticmethod(boot_id)

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
        """Open a file and return a descriptor, which child processes do not inherit; refuse a symlink."""
        return os.open(path, flags | _OPEN_FLAGS, mode)

    def mkdir(self, path: str) -> None:
        """Create a directory that only its owner may enter."""
        os.mkdir(path, 0o700)

    def reserve(self, fd: int, length: int) -> None:
        """Reserve blocks for ``length`` bytes. Where the platform cannot, this does nothing."""
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
                # Some file systems do not know the command (SMB, some FUSE), but all have fsync.
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
                os.fsync(fd)

        self.sync = self._sync_name = sync

    def _fsync_directory(self, path: str) -> None:
        # Use a plain disk, because the `open` of a test's disk may not support directories.
        directory = OpenFile(_PLAIN, path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), follow=True)
        try:
            self._sync_name(directory.fd)
        finally:
            directory.close()

    def _use_windows(self, msvcrt: ModuleType | Any) -> None:
        if msvcrt is None:
            import msvcrt
        # Windows has no pread and pwrite. This lock makes a seek and the read or write after it one step.
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
                            return  # the lock was not held, and flock allows to unlock it then
                        if operation & _NON_BLOCKING:
                            raise BlockingIOError(errno.EWOULDBLOCK, "locked") from error
                time.sleep(0.001)

        self.read, self.pwrite, self.flock = read, pwrite, flock
        self.sync = os.fsync
        self.sync_directory = _nothing
        # Another open handle of the target (a reader, a virus scanner, an indexer) makes these calls fail for
        # a short time.
        self.replace = _retry_busy(os.replace)
        self.unlink = _retry_busy(os.unlink)


# O_NOFOLLOW prevents a symlink of another user from redirecting a write.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | _NO_FOLLOW | getattr(os, "O_BINARY", 0)


# Created at import, because a destructor may need it when the interpreter can import nothing any more.
_PLAIN = Disk()


class OpenFile:
    """A descriptor that is closed exactly once, by :meth:`close` or by the destructor. Thread-safe.

    An interrupt (``KeyboardInterrupt``) may come after any call. So one call of a C function moves the
    descriptor from the operating system into a list, and another one closes it and removes it from the list:
    ``extend`` and ``list`` drain a ``map`` of C functions. No line of Python runs in between, so that an
    interrupt cannot lose the descriptor. The owner calls :meth:`close` nevertheless, because a destructor
    swallows an interrupt.

    The garbage collector calls the destructors of a cycle in any order. A destructor that needs the file
    tests :attr:`held` first, because the number of a closed descriptor may belong to another file.

    :ivar fd: the number of the descriptor.
    :ivar held: a list with the number, which is empty when the descriptor is closed.
    """

    held: list[int] = []  # noqa: RUF012 - for an object whose __init__ was interrupted; never changed

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
        """Close the descriptor, and ignore errors of the operating system.

        An error means nothing here, because everything that must be durable is synced before.
        """
        held = self.held
        try:
            list(map(self._close, map(held.pop, range(len(held)))))
        except IndexError:
            pass  # a signal handler or another thread has closed it meanwhile
        except OSError as error:
            if error.errno is None:  # a signal handler raised it
                raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.held:
            self.close()


def open_lasting(disk: Disk, path: str) -> OpenFile:
    """Open a lock's file, which the first of several processes creates and no process removes.

    The process that creates the file sets its mode afterwards. Another process that is refused in between
    waits up to ``MAKING_SECONDS``.

    :raise OSError: the file cannot be created or opened.
    """
    deadline = time.monotonic() + MAKING_SECONDS
    while True:
        try:
            return OpenFile(disk, path, os.O_RDWR)
        except FileNotFoundError:
            pass
        except PermissionError:
            with contextlib.suppress(FileNotFoundError):
                if time.monotonic() > deadline or not just_made(path):
                    raise
            time.sleep(0.001)
            continue
        try:
            return OpenFile(disk, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            pass


def just_made(path: str) -> bool:
    """Tell whether ``path`` is so new that the process which created it may not have set its mode yet.

    :raise OSError: ``path`` is missing or cannot be read.
    """
    return abs(time.time() - os.stat(path).st_ctime) < 1


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


def storage_error(error: OSError, doing: str, path: str, *, unknown: bool = False) -> StorageError:
    """Return the error to raise for ``error``, which occurred while ``doing`` something with ``path``.

    :param unknown: whether the error says that the outcome of the operation is unknown.

    An ``OSError`` without a number comes from a signal handler and not from the operating system, for example
    a ``TimeoutError``. This function raises it unchanged.
    """
    if error.errno is None:
        try:
            raise error
        finally:
            del error  # the traceback holds this frame
    kind = StorageFullError if error.errno in _FULL else StorageError
    reason = os.strerror(error.errno) if error.errno else str(error)
    outcome = OUTCOME_UNKNOWN if unknown else ""
    result = kind(f"{doing} {path!r} failed: {reason}{_remedy(error, path)}{outcome}", error.errno)
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
        return ""  # the path is missing, or this process may not reach it
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
    """Close ``fd``, and ignore errors, because everything that must be durable is synced before."""
    try:
        disk.close(fd)
    except OSError:
        pass


def write_fully(disk: Disk, fd: int, data: bytes) -> None:
    """Append all of ``data``, with as many writes as necessary."""
    view = memoryview(data)
    while view:
        view = view[disk.write(fd, view) :]


def read_file(disk: Disk, path: str) -> bytes:
    """Return the whole content of a small file."""
    file = OpenFile(disk, path, os.O_RDONLY)
    try:
        return read_fully(disk, file.fd, disk.status(file.fd).st_size, 0)
    finally:
        file.close()


def read_fully(disk: Disk, fd: int, count: int, offset: int) -> bytes:
    """Return ``count`` bytes from ``offset``, or fewer if the file ends before."""
    data = disk.read(fd, count, offset)
    if len(data) == count or not data:
        return data
    parts, there = [data], len(data)
    while there < count and (more := disk.read(fd, count - there, offset + there)):
        parts.append(more)
        there += len(more)
    return b"".join(parts)


def network_file_system(path: str) -> str | None:
    """Return the type of the network file system that ``path`` is on.

    :return: ``None`` if ``path`` is on a local file system, or if the platform is not Linux.
    """
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
    """Return a random number of 32 bits that is not zero."""
    return secrets.randbits(32) or 1
