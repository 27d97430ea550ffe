"""What is checked of the place that a store lies in, before anything in it is used."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable

from persistcoll.disk import MAKING_SECONDS, Disk, Ownership, just_made, network_file_system, storage_error
from persistcoll.errors import StorageError, StoreKindError

__all__ = [
    "make_directory",
    "may_write",
    "ownership_of",
    "refuse_foreign_link",
    "refuse_if_others_may_write",
    "refuse_network",
    "unwritable",
]


def make_directory(disk: Disk, path: str) -> None:
    """Make the directory, durably, if it is missing.

    :raise StoreKindError: there is something else.
    :raise StorageError: it cannot be made or written, or is a link that another user made.
    """
    try:
        if not os.path.lexists(path):
            _make_durably(disk, path)
        refuse_foreign_link(path)
        if not os.path.isdir(path):
            raise StoreKindError(f"{path!r} is not a directory", errno.ENOTDIR)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, "creating", path) from error
    if not may_write(path):
        raise unwritable(path)


def ownership_of(path: str, mode: int | None = None) -> Ownership:
    """What files beside ``path`` are to get: its own, or with this mode.

    Where it is missing, the default; a mode that is for a group is for the one of the directory.
    """
    try:
        found = os.stat(path)
    except OSError:
        with contextlib.suppress(OSError):
            if mode is not None and mode & 0o060:
                return Ownership(mode, group=os.stat(os.path.dirname(path)).st_gid)
        return Ownership() if mode is None else Ownership(mode)
    return Ownership(found.st_mode & 0o666 | 0o600 if mode is None else mode, found.st_uid, found.st_gid)


def may_write(path: str) -> bool:
    """Whether this process may read and write it (and, a directory, enter it)."""
    wanted = os.R_OK | os.W_OK | (os.X_OK if os.path.isdir(path) else 0)
    deadline = time.monotonic() + MAKING_SECONDS
    while not os.access(path, wanted):
        if time.monotonic() > deadline or not just_made(path):
            return False
        time.sleep(0.001)
    return True


def unwritable(path: str) -> StorageError:
    """The error to raise where :func:`may_write` says no."""
    try:
        read_only = hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = False
    return storage_error(OSError(errno.EROFS if read_only else errno.EACCES, ""), "writing", path)


def refuse_foreign_link(path: str) -> None:
    """``StorageError`` if ``path`` is a symbolic link that another user made."""
    if os.path.islink(path) and os.lstat(path).st_uid not in _trusted_owners():
        raise StorageError(f"{path!r} is a symbolic link that another user made", errno.EPERM)


def refuse_network(path: str) -> None:
    """``StorageError`` if ``path`` is on a network file system."""
    kind = network_file_system(path)
    if kind is not None:
        raise StorageError(
            f"{path!r} is on a network file system ({kind}), where locks and renames cannot be relied"
            " on; use a local disk, or allow_network_fs=True if you know better"
        )


def _make_durably(disk: Disk, path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.lexists(parent):
        _make_durably(disk, parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        pass  # another process was faster; its sync may still be under way, so ours follows too
    else:
        _set_mode(path, disk.ownership.directory_mode)
    disk.sync_directory(parent)


def _set_mode(path: str, mode: int) -> None:
    """Of a directory just made: the umask may have taken its owner's own rights, even that of opening it."""
    found = os.lstat(path).st_mode
    if stat.S_IMODE(found) & 0o777 != mode and os.name == "posix":
        os.chmod(path, mode | found & stat.S_ISGID)


def _trusted_owners() -> tuple[int, ...]:
    return (os.geteuid(), 0) if hasattr(os, "geteuid") else (0,)


def refuse_if_others_may_write(paths: Iterable[str], serializer: str, mode: int | None = None) -> None:
    """``StorageError`` if another user may write one of these, as ``serializer`` runs what it reads there.

    :param mode: that files there are to get.
    """
    if not hasattr(os, "geteuid"):
        return  # Windows: the permission bits say nothing
    if mode is not None and mode & 0o022:
        raise StorageError(
            f"with mode={mode:#o} others may write, and reading a store with {serializer!r} runs whatever"
            " code it holds; use another mode, another serializer, or trust_directory=True",
            errno.EPERM,
        )
    for name in paths:
        try:
            status = os.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise storage_error(error, "opening", name) from error
        found = f"mode {status.st_mode & 0o777:o}, owner {status.st_uid}"
        if status.st_mode & 0o022:
            why, remedy = f"others may write {name!r} ({found})", "chmod go-w"
        elif status.st_uid not in _trusted_owners():
            # Refuses root, too: the user's code would run with root's rights.
            user = f"this process is user {os.geteuid()}"
            why, remedy = f"{name!r} belongs to another user ({found}; {user})", "run as that user"
        else:
            continue
        raise StorageError(
            f"{why}, and reading a store with {serializer!r} runs whatever code it holds; {remedy},"
            " use another serializer, or trust_directory=True",
            errno.EPERM,
        )
