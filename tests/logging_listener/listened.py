"""Loggers, handlers and a child process for the tests of the listener."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import Any

from persistcoll import Queue
from persistcoll.logging import QueueListener

__all__ = ["Failing", "Keeper", "Waiting", "die_while_handling", "logger_of"]


def logger_of(queue: Any, handler: Callable[[Any], logging.Handler] = QueueHandler) -> logging.Logger:
    """Return a logger of its own whose records go into the queue."""
    logger = logging.Logger("shop")  # noqa: LOG001, because getLogger() would keep it after the test
    logger.addHandler(handler(queue))
    return logger


class Keeper(logging.Handler):
    """Keeps the messages of the records that it has got."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


class Failing(Keeper):
    """Raises so many times, and keeps what it gets after that."""

    def __init__(self, times: float, error: Exception | None = None) -> None:
        super().__init__()
        self.times = times
        self.error = error or OSError("the network is down")
        self.failed = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.failed < self.times:
            self.failed += 1
            raise self.error
        super().emit(record)


class Waiting(Keeper):
    """Waits in the middle of each record until ``go_on`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.begun.set()
        assert self.go_on.wait(10)
        super().emit(record)


def die_while_handling(path: str, message: str) -> None:
    """Handle records in this process, and kill it in the middle of the record with this message."""

    class Killed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message:
                os.kill(os.getpid(), signal.SIGKILL)

    with Queue[Any](path, durability="process") as queue:
        QueueListener(queue, Killed()).start()
        threading.Event().wait(60)
