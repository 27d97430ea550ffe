"""A signal handler at every place where one may run, one place after the other; and an exception out of it.

CPython runs signal handlers after calls and at the start of a Python function. A profile function is called
at the same places. What it raises comes out there, and only once, because the interpreter then removes it.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import FrameType
from typing import Any

import persistcoll

__all__ = ["Interruption", "handled", "interruptions"]

_PACKAGE = os.path.dirname(persistcoll.__file__) + os.sep
_SERIALIZERS = os.path.realpath(os.path.join(_PACKAGE, "serializers")) + os.sep
_PLACES = frozenset({"call", "return", "c_return"})


def _unheard(frame: FrameType | None) -> bool:
    """Tell whether the frame runs in a destructor or a callback of the collector or of a weak reference.

    What these raise reaches no caller. Hypothesis times the collector with a callback.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("__del__", "_forget", "gc_callback") or code.co_filename.endswith(
            ("forks.py", "weakref.py")
        ):
            return True
        frame = frame.f_back
    return False


class Interruption(BaseException):
    """An exception like ``KeyboardInterrupt`` that no other code raises."""


class _Profile:
    """Runs the action at the ``number``-th place in the package, or in these files of it."""

    def __init__(self, number: int, files: Collection[str], act: Callable[[], object]) -> None:
        self.left = number
        self.files = files
        self.act = act
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in _PLACES or not self.covers(frame.f_back if event == "return" else frame):
            return
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            # The profile function is called when an exception is thrown into a generator, but no handler runs
            # there.
            return
        if _unheard(frame) or frame.f_code.co_name == "<genexpr>":
            return
        self.left -= 1
        if not self.left:
            name = getattr(argument, "__qualname__", "") if event == "c_return" else ""
            code = frame.f_code
            self.where = f"{event} {name} in {code.co_name}, {code.co_filename}:{frame.f_lineno}"
            self.act()

    def covers(self, frame: FrameType | None) -> bool:
        """Tell whether the frame's place counts. The place after a call belongs to the caller's frame."""
        if frame is None:
            return False
        path = frame.f_code.co_filename
        inside = path.startswith((_PACKAGE, _SERIALIZERS))
        return inside and (not self.files or os.path.basename(path) in self.files)


def handled(
    prepare: Callable[[], Any],
    call: Callable[[Any], object],
    handler: Callable[[Any], object],
    *,
    files: Collection[str] = (),
    step: int = 1,
    first: int = 1,
) -> Iterator[tuple[Any, str]]:
    """Run ``call(prepare())`` again and again, with ``handler(subject)`` at one place after the other.

    :param files: the modules, by the names of their files; all of the package by default.
    :param step: try each ``step``-th place only, from the ``first`` one on, and at least one.
    :return: each time the result of ``prepare``, and the place.
    """
    number = first
    anywhere = False
    while True:
        subject = prepare()
        profile = _Profile(number, files, partial(handler, subject))
        before = sys.getprofile()
        try:
            sys.setprofile(profile)
            call(subject)
        finally:
            sys.setprofile(before)
        yield subject, profile.where
        there = number - profile.left
        if profile.left <= 0:
            anywhere = True
            number += step
        elif anywhere or not there:
            return
        else:  # There are fewer than `first` places: take one of them.
            number = first % there + 1


def interruptions(
    prepare: Callable[[], Any],
    call: Callable[[Any], object],
    error: type[BaseException] = Interruption,
    **options: Any,
) -> Iterator[tuple[Any, str]]:
    """Run :func:`handled` with a handler that raises ``error``, which ends the call."""

    def interrupted(subject: Any) -> None:
        try:
            call(subject)
        except error:
            pass
        # While an item is encoded or decoded, the error looks like the serializer's.
        except Exception as wrapped:
            if not isinstance(wrapped.__cause__, error):
                raise

    def interrupt(subject: Any) -> None:
        raise error

    return handled(prepare, interrupted, interrupt, **options)
