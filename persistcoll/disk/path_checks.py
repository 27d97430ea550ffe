"""Checks of a store's path and place, before any file in it is used."""

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
    "is_unwritable",
    "make_directory",
    "occupied",
    "ownership_of",
    "refuse_foreign_link",
    "refuse_if_others_may_write",
    "refuse_network",
    "unwritable",
]


def checked_path(name: str, path: str | bytes | os.PathLike[Any]) -> str:
    """Return the path as a ``str``, decoded by ``os.fsdecode``.

    :param name: the name of the argument, for messages.
    :raise ValueError: the path is empty, or no file can have that name.
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
    """Return the absolute path.

    :param resolve: the function of ``os.path`` that computes it.
    :raise StorageError: the path is relative and the current directory was removed.
    """
    try:
        return resolve(path)
    except OSError as error:
        raise storage_error(error, "finding", path) from error


def existing(path: str, purpose: str) -> os.stat_result:
    """Return the status of the file or directory at ``path``.

    :param purpose: the purpose of the call, for messages: "open" or "look at".
    :raise StoreMissingError: nothing is at ``path``.
    :raise StorageError: the operating system cannot tell what is at ``path``.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is nothing to {purpose}: {path!r} does not exist"
        raise StoreMissingError(message, errno.ENOENT) from error
    except OSError as error:
        raise storage_error(error, "looking at", path) from error


def make_directory(disk: Disk, path: str) -> None:
    """Create the directory and its missing parents, durably.

    Cost: one sync of a directory for each directory that is created.

    :raise StoreKindError: something else than a directory is at ``path``.
    :raise StorageError: the directory cannot be created or written, or is a symbolic link of another user.
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
    if is_unwritable(path):
        raise unwritable(path)


def ownership_of(path: str, mode: int | None = None) -> Ownership:
    """Return the ownership for new files beside ``path``: that of ``path``, with ``mode`` if it is given.

    If ``path`` is missing, the ownership is the default, with ``mode`` if it is given. A mode that gives
    rights to a group then gives them to the group of the directory.
    """
    try:
        found = os.stat(path)
    except OSError:
        with contextlib.suppress(OSError):
            if mode is not None and mode & 0o060:
                return Ownership(mode, group=os.stat(os.path.dirname(path)).st_gid)
        return Ownership() if mode is None else Ownership(mode)
    return Ownership(found.st_mode & 0o666 | 0o600 if mode is None else mode, found.st_uid, found.st_gid)


def is_unwritable(path: str) -> bool:
    """Tell whether ``path`` exists and this process may not read and write it; a directory: enter it.

    Another process may remove or create the file at any time, as SQLite does with a log. ``os.access``
    refuses a missing file as it refuses a forbidden one; the status read after that answer tells them apart.
    """
    deadline = time.monotonic() + MAKING_SECONDS
    while not os.access(path, os.R_OK | os.W_OK | (os.X_OK if os.path.isdir(path) else 0)):
        try:
            new = just_made(path)
        except OSError:
            return False
        if not new or time.monotonic() > deadline:
            return True
        time.sleep(0.001)
    return False


def unwritable(path: str) -> StorageError:
    """Return the error to raise for a path of which :func:`is_unwritable` returned ``True``."""
    try:
        read_only = hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = False
    return storage_error(OSError(errno.EROFS if read_only else errno.EACCES, ""), "writing", path)


def refuse_foreign_link(path: str) -> None:
    """Raise ``StorageError`` if ``path`` is a symbolic link that neither this user nor root made."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise storage_error(error, "looking at", path) from error
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in _trusted_owners():
        raise StorageError(f"{path!r} is a symbolic link that another user made", errno.EPERM)


def refuse_network(path: str) -> None:
    """Raise ``StorageError`` if ``path`` is on a network file system."""
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
    """Return ``path`` and its parents as far as they are missing, the outermost first.

    This is a loop and no recursion, because a path may have more parts than Python's stack has frames.

    :raise OSError: the path cannot exist, for example with ``ENAMETOOLONG``. No directory is created then.
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
        pass  # another process has created it, and its sync may still be running, so sync here as well
    else:
        _set_mode(path, disk.ownership.directory_mode)
    disk.sync_directory(os.path.dirname(path))


def occupied(paths: Iterable[str]) -> int:
    """Return the total size in bytes of those of the files that exist.

    :raise StorageError: the operating system cannot tell the size of a file.
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
    """Set the mode of a new directory, because the umask may have removed even its owner's rights."""
    found = os.lstat(path).st_mode
    if stat.S_IMODE(found) & 0o777 != mode and os.name == "posix":
        os.chmod(path, mode | found & stat.S_ISGID)


def _trusted_owners() -> tuple[int, ...]:
    return (os.geteuid(), 0) if hasattr(os, "geteuid") else (0,)


def refuse_if_others_may_write(paths: Iterable[str], serializer: str, mode: int | None = None) -> None:
    """Raise ``StorageError`` if another user may write one of the paths.

    The caller uses it for a serializer that executes the code which it reads.

    :param serializer: the name of the serializer, for messages.
    :param mode: the mode that new files will have.
    """
    if not hasattr(os, "geteuid"):
        return  # on Windows the permission bits do not say which users may write
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
            remedy = "use a directory of its own, chmod go-w"
            why = f"others may write {name!r} ({found})"
        elif status.st_uid not in _trusted_owners():
            # This refuses root as well, because the user's code would run with root's rights.
            user = f"this process is user {os.geteuid()}"
            why, remedy = f"{name!r} belongs to another user ({found}; {user})", "run as that user"
        else:
            continue
        raise StorageError(
            f"{why}, and reading a store with {serializer!r} runs whatever code it holds; {remedy},"
            " use another serializer, or trust_directory=True",
            errno.EPERM,
        )
