"""Atomic writes of whole files: write a temporary file, sync it, rename it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from persistcoll.disk.calls import Disk, OpenFile, write_fully

__all__ = ["remove_temp_file", "remove_temp_files", "write_atomic"]


def write_atomic(
    disk: Disk,
    path: str,
    parts: Iterable[bytes],
    tempdir: str | None = None,
    reopen: int = os.O_RDONLY,
    *,
    durable: bool = True,
) -> OpenFile:
    """Create or replace the file ``path`` durably with ``parts`` as its content, or change nothing.

    The order of the steps matters. Without the sync of the temporary file a power cut may leave an empty file
    under the final name (on xfs it always does). Without the sync of the directory it may leave the old file.

    Cost: one sync of the file and one of the directory.

    :param tempdir: the directory of the temporary file, on the same file system; ``None``: that of ``path``.
    :param reopen: the flags with which to open the file for the caller.
    :param durable: whether to sync. Otherwise a power cut may leave the old file, the new one, or an empty
        one.
    :return: the open file.
    :raise OSError: a step failed. If it was the sync of the directory, the file may have been replaced.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(tempdir or directory, _temporary_prefix(directory, tempdir) + name + ".tmp")
    file: OpenFile | None = None
    try:
        file = _create_anew(disk, temporary)
        try:
            for part in parts:
                write_fully(disk, file.fd, part)
            if durable:
                disk.sync(file.fd)
        finally:
            file.close()
        # Open the file before the rename, so that a process without a free descriptor fails before anything
        # has changed.
        file = OpenFile(disk, temporary, reopen) if disk.renames_open_files else None
        disk.replace(temporary, path)
    except BaseException:
        if file is not None:
            file.close()
        _unlink_quietly(disk, temporary)
        raise
    try:
        if durable:
            disk.sync_directory(directory)
    except BaseException:
        if file is not None:
            file.close()
        raise
    return file or OpenFile(disk, path, reopen)


def _create_anew(disk: Disk, path: str) -> OpenFile:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    try:
        return OpenFile(disk, path, flags)
    except FileExistsError:  # the temporary file of a process that died
        disk.unlink(path)
        return OpenFile(disk, path, flags)


def _unlink_quietly(disk: Disk, path: str) -> None:
    try:
        disk.unlink(path)
    except OSError:
        pass  # the caller raises the error that came first


def _temporary_prefix(directory: str, tempdir: str | None) -> str:
    if tempdir is None:
        return ""
    # Several stores may share the tempdir, so the prefix contains a hash of the store's directory.
    return hashlib.sha256(directory.encode("utf-8", "surrogateescape")).hexdigest()[:16] + "-"


def remove_temp_file(disk: Disk, directory: str, tempdir: str | None, name: str) -> None:
    """Remove the temporary file for ``name`` that a dead process left, if there is one.

    The caller holds the lock under which processes write that file, so that no living process uses it.
    """
    temporary = os.path.join(tempdir or directory, f"{_temporary_prefix(directory, tempdir)}{name}.tmp")
    if os.path.lexists(temporary):
        _unlink_quietly(disk, temporary)


def remove_temp_files(disk: Disk, directory: str, tempdir: str | None, names: re.Pattern[str]) -> None:
    """Remove the temporary files for all ``names`` that match, as :func:`remove_temp_file` does."""
    prefix = _temporary_prefix(directory, tempdir)
    for found in os.listdir(tempdir or directory):
        if found.startswith(prefix) and found.endswith(".tmp"):
            name = found[len(prefix) : -len(".tmp")]
            if names.fullmatch(name):
                remove_temp_file(disk, directory, tempdir, name)
