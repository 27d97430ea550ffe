"""Where a store may lie: what is checked of its path and place before anything in it is used."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any

from persistcoll.disk.calls import (
    MAKING_SECONDS,
    Disk,
    Ownership,
    just_made,
    network_file_system,
    storage_error,
)
from persistcoll.errors import StorageError, StoreKindError, StoreMissingError

__all__ = [
    "absolute",
    "checked_path",
    "existing",
    "make_directory",
    "may_write",
    "occupied",
    "ownership_of",
    "refuse_foreign_link",
    "refuse_if_others_may_write",
    "refuse_network",
    "unwritable",
]


def checked_path(name: str, path: str | bytes | os.PathLike[Any]) -> str:
    """The path as a ``str``, as ``os.fsdecode`` gives it.

    :param name: of the argument, for messages.
    :raise ValueError: it is empty, or no file can have that name.
    """
    decoded = os.fsdecode(path)
    if not decoded:
        raise ValueError(f"{name!r} must not be empty; '.' is the current directory")
    try:
        encoded = os.fsencode(decoded)
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} cannot be the name of a file: {decoded!r}") from None
    if b"\0" in encoded:
        raise ValueError(f"{name!r} cannot be the name of a file: {decoded!r} has a null character")
    return decoded


def absolute(path: str, resolve: Callable[[str], str] = os.path.abspath) -> str:
    """The absolute path, by that function of ``os.path``.

    :raise StorageError: the path is relative and the current directory was removed.
    """
    try:
        return resolve(path)
    except OSError as error:
        raise storage_error(error, "finding", path) from error


def existing(path: str, purpose: str) -> os.stat_result:
    """The status of what is at ``path``.

    :param purpose: what it is wanted for, for messages: "open" or "look at".
    :raise StoreMissingError: nothing is there.
    :raise StorageError: nobody can tell.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is nothing to {purpose}: {path!r} does not exist"
        raise StoreMissingError(message, errno.ENOENT) from error
    except OSError as error:
        raise storage_error(error, "looking at", path) from error


def make_directory(disk: Disk, path: str) -> None:
    """Make the directory, durably, if it is missing, and those that lead to it.

    :raise StoreKindError: there is something else.
    :raise StorageError: it cannot be made or written, or is a link that another user made.
    """
    try:
        for missing in _missing(path):
            _make_durably(disk, missing)
        refuse_foreign_link(path)
        if not os.path.isdir(path):
            raise StoreKindError(f"{path!r} is not a directory", errno.ENOTDIR)
    except StorageError:
        raise
    except OSError as error:
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
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise storage_error(error, "looking at", path) from error
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in _trusted_owners():
        raise StorageError(f"{path!r} is a symbolic link that another user made", errno.EPERM)


def refuse_network(path: str) -> None:
    """``StorageError`` if ``path`` is on a network file system."""
    try:
        kind = network_file_system(path)
    except OSError as error:
        raise storage_error(error, "looking at", path) from error
    if kind is not None:
        raise StorageError(
            f"{path!r} is on a network file system ({kind}), where locks and renames cannot be relied"
            " on; use a local disk, or allow_network_fs=True if you know better"
        )


def _missing(path: str) -> list[str]:
    """The directories that are missing on the way to ``path``, the outermost first.

    In a loop, because a path may have more parts than Python's stack has frames.

    :raise OSError: such as ``ENAMETOOLONG``, before anything is made.
    """
    missing: list[str] = []
    while True:
        try:
            os.lstat(path)
        except FileNotFoundError:
            missing.append(path)
            path = os.path.dirname(path)
        else:
            return missing[::-1]


def _make_durably(disk: Disk, path: str) -> None:
    try:
        disk.mkdir(path)
    except FileExistsError:
        pass  # another process was faster; its sync may still be under way, so ours follows too
    else:
        _set_mode(path, disk.ownership.directory_mode)
    disk.sync_directory(os.path.dirname(path))


def occupied(paths: Iterable[str]) -> int:
    """The size of those of these files that are there, in bytes.

    :raise StorageError: one of them cannot be looked at.
    """
    total = 0
    for path in paths:
        try:
            total += os.stat(path).st_size
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error, "looking at", path) from error
    return total


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
