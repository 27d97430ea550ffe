"""What this process holds at one moment, and what it holds too much later."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Left", "Snapshot", "kill", "open_below"]

# A thread that was joined or a child that was waited for may still be listed in /proc for a while.
_PATIENCE_SECONDS = 2.0
_DESCRIPTORS = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")
# Those that programs handle. The test runner keeps SIGALRM to itself.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Left:
    """The threads, descriptors, children and handlers of signals that were not there before."""

    threads: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.threads or self.descriptors or self.children or self.signals)

    def __str__(self) -> str:
        parts = {
            "threads": self.threads,
            "descriptors": self.descriptors,
            "children": [f"{pid} ({_command(pid)})" for pid in self.children],
            "handlers of signals": self.signals,
        }
        return "; ".join(f"{name}: {', '.join(what)}" for name, what in parts.items() if what)


@dataclass(frozen=True)
class Snapshot:
    """What the process holds: its descriptors and children where /proc shows them."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]
    handlers: dict[signal.Signals, Any]

    @classmethod
    def now(cls) -> Snapshot:
        return cls(frozenset(threading.enumerate()), _descriptors(), _children(), _handlers())

    def restore_handlers(self) -> None:
        """Set the handlers of this snapshot again, so that those of one test cannot disturb the next."""
        for number, handler in self.handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    def settle(self) -> Left:
        """Return what exceeds this snapshot, after a time in which it may end."""
        left = self._left()
        if not left:
            return left
        # Both calls are slow, so they run only here: one frees cycles that hold a file, the other waits for
        # children that ended.
        gc.collect()
        multiprocessing.active_children()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pause = threading.Event()
        left = self._left()
        while left and time.monotonic() < deadline:
            pause.wait(0.01)
            left = self._left()
        return left

    def _left(self) -> Left:
        keep_pids, keep_descriptors = _of_multiprocessing()
        return Left(
            threads=[repr(thread) for thread in threading.enumerate() if thread not in self.threads],
            descriptors=[
                f"{number} -> {target}"
                for number, target in sorted(_descriptors() - self.descriptors)
                if number not in keep_descriptors
            ],
            children=sorted(_children() - self.children - keep_pids),
            signals=[
                f"{number.name} -> {handler!r}"
                for number, handler in _handlers().items()
                if handler is not self.handlers[number]
            ],
        )


def kill(pid: int) -> None:
    """Kill a child that a test forgot, so that it cannot disturb the next test."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(pid, 0)


def _descriptors() -> frozenset[tuple[int, str]]:
    found = set()
    for name in os.listdir(_DESCRIPTORS) if _DESCRIPTORS.is_dir() else ():
        # The descriptor that listed the directory is closed by now.
        with contextlib.suppress(OSError):
            found.add((int(name), os.readlink(_DESCRIPTORS / name)))
    return frozenset(found)


def open_below(directory: Path) -> list[str]:
    """Return what this process has open in the directory and is not garbage."""
    prefix = f"{directory}{os.sep}"
    for collect in (True, False):
        found = sorted(target for _, target in _descriptors() if target.startswith(prefix))
        if found and collect:  # Only the collector closes a connection whose constructor was interrupted.
            gc.collect()
    return found


def _handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _children() -> frozenset[int]:
    found: set[int] = set()
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        # A thread may end between being listed and being read.
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_text().split()))
    return frozenset(found)


def _of_multiprocessing() -> tuple[set[int], set[int]]:
    """Return pids and descriptors of the helpers that multiprocessing starts once per process and keeps."""
    from multiprocessing import forkserver, resource_tracker

    tracker, server = resource_tracker._resource_tracker, forkserver._forkserver
    pids = {getattr(tracker, "_pid", None), getattr(server, "_forkserver_pid", None)}
    descriptors = {getattr(tracker, "_fd", None), getattr(server, "_forkserver_alive_fd", None)}
    return {pid for pid in pids if pid}, {number for number in descriptors if number is not None}


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    return " ".join(word.decode(errors="replace") for word in words if word)[:80] or "ended, not waited for"
