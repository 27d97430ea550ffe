"""An exception out of a signal handler, at any place where a handler may run, one place after the other.

CPython runs signal handlers behind calls and where a Python function begins. A profile function is called at
the same places, and what it raises comes out there, once, because the interpreter then takes it away.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

import persistcoll

__all__ = ["Interruption", "interruptions"]

_PACKAGE = os.path.dirname(persistcoll.__file__) + os.sep
_SERIALIZERS = os.path.realpath(os.path.join(_PACKAGE, "serializers")) + os.sep
_PLACES = frozenset({"call", "return", "c_return"})


class Interruption(BaseException):
    """As ``KeyboardInterrupt``, and nobody else's."""


class _Interrupter:
    """Raises at the ``number``-th place within the package, or within these files of it."""

    def __init__(self, number: int, error: type[BaseException], files: Collection[str]) -> None:
        self.left = number
        self.error = error
        self.files = files
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in _PLACES or not self.covers(frame.f_back if event == "return" else frame):
            return
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return  # where an exception is thrown into it no handler runs, and this is called all the same
        self.left -= 1
        if not self.left:
            name = getattr(argument, "__qualname__", "") if event == "c_return" else ""
            code = frame.f_code
            self.where = f"{event} {name} in {code.co_name}, {code.co_filename}:{frame.f_lineno}"
            raise self.error

    def covers(self, frame: FrameType | None) -> bool:
        """Whether that place is one. Behind a call is a place of its caller."""
        if frame is None:
            return False
        path = frame.f_code.co_filename
        inside = path.startswith((_PACKAGE, _SERIALIZERS))
        return inside and (not self.files or os.path.basename(path) in self.files)


def interruptions(
    prepare: Callable[[], Any],
    call: Callable[[Any], object],
    error: type[BaseException] = Interruption,
    *,
    files: Collection[str] = (),
    step: int = 1,
    first: int = 1,
) -> Iterator[tuple[Any, str]]:
    """Interrupt ``call(prepare())`` at one place after the other, until it ends uninterrupted.

    :param files: the modules, by the names of their files; all of the package by default.
    :param step: try each ``step``-th place only, from the ``first`` one on.
    :return: each time what ``prepare`` gave, and where that was.
    """
    number = first
    while True:
        subject = prepare()
        interrupter = _Interrupter(number, error, files)
        before = sys.getprofile()
        try:
            sys.setprofile(interrupter)
            call(subject)
        except error:
            pass
        finally:
            sys.setprofile(before)
        yield subject, interrupter.where
        if interrupter.left > 0:
            return
        number += step
