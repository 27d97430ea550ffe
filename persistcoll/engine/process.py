"""Noticing, for the cost of a look at a byte, that a process was forked without Python being told.

``os.getpid`` is a call of the system: 0.1 us of the 4 of a look-up. Linux gives a forked child a page of
zeros in the place of one that asks for that (``MADV_WIPEONFORK``, since 4.14).
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from persistcoll.engine.forks import notice_unseen_fork

__all__ = ["SAME", "follow_fork"]

_WIPE_ON_FORK = 18


class _ByProcessId:
    """Where there is no such page."""

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
"""``SAME[0]`` is false in a forked child until it is set again."""


def _set() -> None:
    SAME[0] = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_set)


def follow_fork() -> None:
    """Where ``SAME[0]`` is false, before anything else is done: let go of what is the parent's."""
    SAME[0] = 1
    notice_unseen_fork()
