"""Files that appear under their names as a whole: written aside, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from persistcoll.disk.calls import Disk, OpenFile, write_fully

__all__ = ["remove_temp_file", "remove_temp_files", "write_atomic"]


def write_atomic(
    disk: Disk, path: str, parts: Iterable[bytes], tempdir: str | None = None, reopen: int = os.O_RDONLY
) -> OpenFile:
    """Make ``path`` a file that holds ``parts``: wholly, durably, or not at all.

    The order is the point. Without the sync of the temporary file a power cut leaves an empty
    file under the final name (always on xfs); without the sync of the directory, the old one.

    :param reopen: flags to open the file with.
    :return: the file, open.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(tempdir or directory, _temporary_prefix(directory, tempdir) + name + ".tmp")
    file: OpenFile | None = None
    try:
        file = _create_anew(disk, temporary)
        try:
            for part in parts:
                write_fully(disk, file.fd, part)
            disk.sync(file.fd)
        finally:
            file.close()
        # Opened before the rename: a process without a descriptor to spare fails while nothing
        # has changed yet.
        file = OpenFile(disk, temporary, reopen) if disk.renames_open_files else None
        disk.replace(temporary, path)
    except BaseException:
        if file is not None:
            file.close()
        _unlink_quietly(disk, temporary)
        raise
    try:
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
    except FileExistsError:  # left behind by a process that died here
        disk.unlink(path)
        return OpenFile(disk, path, flags)


def _unlink_quietly(disk: Disk, path: str) -> None:
    try:
        disk.unlink(path)
    except OSError:
        pass  # the failure that led here is the one to tell


def _temporary_prefix(directory: str, tempdir: str | None) -> str:
    if tempdir is None:
        return ""
    # Several stores may share it.
    return hashlib.sha256(directory.encode("utf-8", "surrogateescape")).hexdigest()[:16] + "-"


def remove_temp_file(disk: Disk, directory: str, tempdir: str | None, name: str) -> None:
    """Remove the temporary file for ``name`` that a dead process left, if there is one.

    The caller holds the lock under which that file is written.
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
