"""What all commands have in common: exit statuses, errors, messages."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

from persistcoll.errors import CorruptionError, DecodeError

__all__ = [
    "DAMAGED",
    "DONE",
    "EXITS",
    "NOTHING",
    "STOPPED",
    "STORAGE",
    "UNREAD",
    "USAGE",
    "CommandError",
    "Commands",
    "at_least",
    "exit_status",
    "failed",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, NOTHING, USAGE, STORAGE, DAMAGED = range(5)
STOPPED, UNREAD = 130, 141
EXITS = "Exit status: 0 done, 1 nothing there, 2 wrong usage, 3 storage error, 4 damaged data."


class CommandError(Exception):
    """The command cannot go on: what to say, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def exit_status(error: Exception) -> int:
    """The exit status that an exception stands for."""
    if isinstance(error, CommandError):
        return error.status
    if isinstance(error, (CorruptionError, DecodeError)):
        return DAMAGED
    return STORAGE


def failed(message: str, status: int) -> int:
    """Say ``message`` on standard error and return ``status``."""
    print(f"persistcoll: {message}", file=sys.stderr)
    return status


def at_least(least: int, text: str) -> int:
    """For argparse: ``text`` as a whole number of at least ``least``."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number
