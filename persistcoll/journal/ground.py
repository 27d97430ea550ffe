"""Whether what a path names is still the file that is open here.

A directory may be removed, renamed, replaced or restored from a backup while a store in it is open. What is
open goes on existing, but nothing finds it any more, and the same names may belong to another store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from persistcoll.disk.calls import Disk, storage_error
from persistcoll.errors import StoreReplacedError

__all__ = ["refuse_replaced", "replaced"]


def replaced(path: str, how: str = "removed, renamed or replaced") -> StoreReplacedError:
    """The error to raise for a file of the store that is not at ``path`` any more."""
    return StoreReplacedError(
        f"{path!r} was {how} while the store was open, and this call stored nothing; close the store,"
        " and open what is there now",
        path,
    )


def refuse_replaced(disk: Disk, files: Iterable[tuple[str, int]]) -> None:
    """``StoreReplacedError`` unless each of these paths names the file of its descriptor.

    Open descriptors, because the number of a removed file may be another one's by now.
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
