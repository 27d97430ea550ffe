"""What all commands have in common: exit statuses, errors, messages."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

from persistcoll.errors import CorruptionError, DecodeError

__all__ = [
    "BROKEN_PIPE",
    "DAMAGED",
    "DONE",
    "EXITS",
    "INTERRUPTED",
    "NOTHING",
    "STORAGE",
    "USAGE",
    "CommandError",
    "Commands",
    "exit_status",
    "int_min",
    "print_error",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, NOTHING, USAGE, STORAGE, DAMAGED = range(5)
INTERRUPTED, BROKEN_PIPE = 130, 141
EXITS = "Exit status: 0 done, 1 nothing there, 2 wrong usage, 3 storage error, 4 damaged data."


class CommandError(Exception):
    """The command cannot go on: what to say, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def exit_status(error: Exception) -> int:
    """Return the exit status that an exception stands for."""
    if isinstance(error, CommandError):
        return error.status
    if isinstance(error, (CorruptionError, DecodeError)):
        return DAMAGED
    return STORAGE


def print_error(message: str, status: int) -> int:
    """Print ``message`` on standard error and return ``status``."""
    print(f"persistcoll: {message}", file=sys.stderr)
    return status


def int_min(least: int, text: str) -> int:
    """Convert ``text`` to a whole number of at least ``least``, for argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number
