"""An interrupt wherever one can come in: behind any call, and where any function of the package begins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import persistcoll

__all__ = ["interrupted"]

_PACKAGE = str(Path(persistcoll.__file__).parent)
# Where the interpreter looks for signals: it begins a function, or a function of C has returned.
_EVENTS = ("call", "c_return", "return")


def interrupted(call: Callable[[], object], number: int) -> bool:
    """``call()``, with a ``KeyboardInterrupt`` at the so-manieth such moment; whether there was one.

    What was interrupted is gone with its frames when this returns, as where a program catches it.
    """
    left = number

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        code = frame.f_code
        if code.co_name == "<genexpr>" or code.co_filename.endswith("lifecycle.py"):
            return  # what a destructor or a weak reference's callback raises reaches nobody
        if event in _EVENTS and code.co_filename.startswith(_PACKAGE):
            left -= 1
            if not left:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return left <= 0
