"""What is checked of the place that a store lies in, before anything in it is used."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from persistcoll.disk import Disk, network_file_system, storage_error
from persistcoll.errors import StorageError, StoreKindError

__all__ = ["make_directory", "refuse_foreign_link", "refuse_if_others_may_write", "refuse_network"]


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
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StorageError(f"{path!r} cannot be written", errno.EACCES)


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
    disk.sync_directory(parent)


def _trusted_owners() -> tuple[int, ...]:
    return (os.geteuid(), 0) if hasattr(os, "geteuid") else (0,)


def refuse_if_others_may_write(paths: Iterable[str], serializer: str) -> None:
    """``StorageError`` if another user may write one of these, as ``serializer`` runs what it reads there."""
    if not hasattr(os, "geteuid"):
        return  # Windows: the permission bits say nothing
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
