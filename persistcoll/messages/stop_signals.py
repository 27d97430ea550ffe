"""SIGTERM and SIGINT as requests to stop: gracefully at first, then at once, then as without a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_REQUEST = 1.0
"""Seconds within which two signals are one request. A terminal sends SIGINT to all processes of a program,
and the parent of a worker may then send it SIGTERM as well."""


class StopSignals:
    """Handles the signals from :meth:`catch` to :meth:`restore`.

    :param stop: is called in the signal handler when the first signal comes.
    :param interrupt: is called there when a second one comes, with the exception that is to end the program.
    """

    def __init__(self, stop: Callable[[], object], interrupt: Callable[[BaseException], object]) -> None:
        self._stop = stop
        self._interrupt = interrupt
        self._process = 0
        self._stopped_at: float | None = None
        self._replaced: dict[int, Any] = {}  # The handlers that were there before.

    def catch(self) -> None:
        """Replace the handlers of the signals, in the main thread. In another one this does nothing."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                # A signal that is ignored stays so. None is a handler that code in C has set, and that Python
                # could not set again.
                if handler not in (signal.SIG_IGN, None):
                    self._replaced[number] = handler
                    signal.signal(number, self._handle)

    def restore(self) -> None:
        """Set the handlers that were there before. Idempotent."""
        for number, handler in self._replaced.copy().items():
            signal.signal(number, handler)
            del self._replaced[number]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self._process:
            # A forked child inherits this handler, and the signal is for the child alone.
            self.restore()
            signal.raise_signal(number)
        elif self._stopped_at is None:
            self._stopped_at = now
            self._stop()
        elif now - self._stopped_at >= _SAME_REQUEST:
            self.restore()
            self._interrupt(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
