"""Notice that a process was forked without Python being told, for the cost of reading a byte.

``os.getpid`` is a system call, which takes 0.1 us of the 4 us of a look-up in a dict. Linux gives a forked
child a page of zeros in place of a page that asks for that (``MADV_WIPEONFORK``, since 4.14).
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from persistcoll.engine.forks import notice_unseen_fork

__all__ = ["SAME", "follow_fork"]

_WIPE_ON_FORK = 18


class _ByProcessId:
    """Compares process ids, where the system has no such page."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __getitem__(self, index: int) -> bool:
        return os.getpid() == self._process

    def __setitem__(self, index: int, value: int) -> None:
        self._process = os.getpid()


def _make() -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):
        return _ByProcessId()
    page[0] = 1
    return page


SAME = _make()
"""``SAME[0]`` is false in a forked child until :func:`follow_fork` sets it."""


def _set() -> None:
    SAME[0] = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_set)


def follow_fork() -> None:
    """Release what is the parent's, where ``SAME[0]`` is false. Call it before anything else."""
    SAME[0] = 1
    notice_unseen_fork()
