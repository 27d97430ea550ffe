"""A polite end, by Ctrl-C or by a signal that asks for it, at a moment at which it leaves nothing behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["held_back", "tidily"]


class _State:
    """Of the process, as handlers of signals are.

    :ivar held_back: a signal has to wait.
    :ivar came: the one that waits.
    """

    held_back = False
    came: int | None = None


def _end(number: int, frame: FrameType | None = None) -> None:
    if _State.held_back:
        _State.came = number
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise SystemExit(128 + number)


@contextmanager
def tidily() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP tidy up as Ctrl-C does; and all three wait for :func:`held_back`."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Python leaves signals to the main thread; elsewhere nobody may set a handler.
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    # Whoever ignores one (nohup) means it.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Within, no such signal comes; it does so at the end of the block.

    For the start of a child: interrupted in the middle of it, nobody would know that there is one, and it
    would go on in a directory that is being removed.
    """
    _State.held_back = True
    try:
        yield
    finally:
        _State.held_back = False
        came, _State.came = _State.came, None
    if came is not None:
        _end(came)
