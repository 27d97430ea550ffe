"""The check that a path still names the file that is open in this process.

A user may remove, rename, replace or restore a directory from a backup while a store in it is open. The open
files continue to exist, but no other process finds them, and their names may belong to another store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from persistcoll.disk.calls import Disk, storage_error
from persistcoll.errors import StoreReplacedError

__all__ = ["refuse_replaced", "replaced"]


def replaced(path: str, how: str = "removed, renamed or replaced") -> StoreReplacedError:
    """Return the error to raise for a file of the store that ``path`` no longer names."""
    return StoreReplacedError(
        f"{path!r} was {how} while the store was open, and this call stored nothing; close the store,"
        " and open what is there now",
        path,
    )


def refuse_replaced(disk: Disk, files: Iterable[tuple[str, int]]) -> None:
    """Raise ``StoreReplacedError`` unless each of these paths names the file of its descriptor.

    The check compares with open descriptors and not with inode numbers, because the file system may reuse
    the inode number of a removed file.

    Cost: two system calls for each file.
    """
    for path, fd in files:
        try:
            same = os.path.samestat(os.stat(path), disk.status(fd))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        except OSError as error:
            raise storage_error(error, "looking at", path) from error
        if not same:
            raise replaced(path)
