"""Disks for tests: :class:`FaultyDisk` fails on order, :class:`CrashDisk` loses power.

Each is a :class:`persistcoll.disk.calls.Disk` around another disk, and they may be stacked: a ``FaultyDisk``
around a ``CrashDisk`` shows what a fault and a power cut leave together.

What is simulated, and why:

- "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014): the order and atomicity in which
  operations reach a device differ between file systems. :mod:`persistcoll.testing.crash.states` has the
  models.
- "Can Applications Recover from fsync Failures?" (Rebello et al., ATC 2020): after a failed ``fsync`` ext4
  and xfs mark the pages clean. Until the machine restarts the data can be read and the next ``fsync``
  succeeds, but the device never had the data: ``effect="lost"``.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

from persistcoll.disk.calls import CALLS, Disk
from persistcoll.testing.crash.disk import CrashDisk
from persistcoll.testing.crash.explore import Exploration, Violation, explore
from persistcoll.testing.crash.model import CrashState, Model, Operation

__all__ = [
    "CrashDisk",
    "CrashState",
    "Exploration",
    "Fault",
    "FaultyDisk",
    "Model",
    "Operation",
    "Violation",
    "explore",
]

_SHORTENED = frozenset({"read", "write", "pwrite"})


@dataclass
class Fault:
    """A fault arranged with :meth:`FaultyDisk.fail`, or a hook arranged with :meth:`FaultyDisk.on`."""

    call: str
    at: int
    times: float
    path: str | None
    effect: Literal["before", "after", "lost"]
    action: Callable[..., object]
    short: int | None = None
    seen: int = 0
    """How many calls matched so far."""
    fired: int = 0
    """How often the fault happened. A test that asserts this number cannot pass without the fault."""

    def due(self, call: str, paths: tuple[str, ...]) -> bool:
        """Count the call if it matches, and tell whether the fault acts on it."""
        if call != self.call or not any(self._matches(path) for path in paths):
            return False
        self.seen += 1
        if not self.at <= self.seen < self.at + self.times:
            return False
        self.fired += 1
        return True

    def _matches(self, path: str) -> bool:
        pattern = self.path
        return pattern is None or fnmatchcase(path, pattern) or fnmatchcase(os.path.basename(path), pattern)


class FaultyDisk(Disk):
    """A :class:`Disk` whose calls fail on order, and that counts them.

    :param disk: the disk that does the work; a plain ``Disk`` by default.
    :ivar calls: how often each call of ``CALLS`` was made, failed ones included.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     disk = FaultyDisk()
    ...     fault = disk.fail("write", at=2, error=errno.ENOSPC, path="*.log")
    ...     fd = disk.open(os.path.join(directory, "a.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ...     _ = disk.write(fd, b"first")
    ...     try:
    ...         disk.write(fd, b"second")
    ...     except OSError as error:
    ...         print(errno.errorcode[error.errno])
    ...     disk.close(fd)
    ENOSPC
    >>> fault.fired, disk.calls["write"], disk.calls["sync"]
    (1, 2, 0)

    Safe to use from several threads. While a limit of :meth:`full` is active, the calls that
    change sizes happen one after the other.
    """

    def __init__(self, disk: Disk | None = None) -> None:
        # Disk.__init__ is not called, because this method makes every attribute that it would make.
        # `_lock` protects `calls` and `_faults`; `_sizing` protects `_room` and the changes of sizes.
        self._disk = disk if disk is not None else Disk()
        self.calls: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._room: int | None = None
        self._sizing = threading.RLock()
        self.size = self._disk.size
        self.status = self._disk.status
        self.renames_open_files = self._disk.renames_open_files
        for call in CALLS:
            setattr(self, call, partial(self._run, call))

    def fail(
        self,
        call: str,
        at: int = 1,
        error: int = errno.EIO,
        times: int | Literal["forever"] = 1,
        path: str | None = None,
        short: int | None = None,
        effect: Literal["before", "after", "lost"] = "before",
    ) -> Fault:
        """Make a coming call fail.

        :param call: a name of ``CALLS``.
        :param at: which call fails, counted from 1 over the coming calls that match ``call`` and ``path``.
        :param error: the ``errno`` of the ``OSError`` that is raised.
        :param times: how many calls in a row fail, or ``"forever"`` (until :meth:`heal`).
        :param path: only calls on paths that match this pattern of :mod:`fnmatch`, as a whole or in their
            last part. A descriptor has the path that it was opened with or that its file was renamed to;
            ``replace`` has two.
        :param short: for ``read``, ``write`` and ``pwrite``: raise nothing, but move only so many bytes.
        :param effect: ``"before"``: the call does not happen. ``"after"``: it happens, then the error is
            raised (a write that reached the cache, a rename whose answer was lost). ``"lost"``, for ``sync``
            of a disk around a :class:`CrashDisk`: the sync does not happen, and no later sync makes up for
            it.
        :raises ValueError: for a name that is no call, a number below 1, or parameters that exclude each
            other.
        """
        if short is not None and (call not in _SHORTENED or short < 0):
            raise ValueError(f"short={short} makes no sense for {call!r}")
        if effect == "lost" and not (call == "sync" and isinstance(self._disk, CrashDisk)):
            raise ValueError('effect="lost" is for "sync" of a FaultyDisk around a CrashDisk')

        def strike(*arguments: Any) -> None:
            if effect == "lost" and isinstance(self._disk, CrashDisk):
                self._disk.lose(arguments[0])
            raise OSError(error, os.strerror(error))

        return self._arrange(Fault(call, at, _count(times), path, effect, strike, short))

    def on(
        self,
        call: str,
        function: Callable[..., object],
        at: int = 1,
        times: int | Literal["forever"] = 1,
        path: str | None = None,
        effect: Literal["before", "after"] = "before",
    ) -> Fault:
        """Run ``function`` with the arguments of a coming call: to kill the process, fork, or inspect.

        What the function raises, ``KeyboardInterrupt`` too, comes out of the call. The other parameters are
        those of :meth:`fail`.
        """
        return self._arrange(Fault(call, at, _count(times), path, effect, function))

    def full(self, limit_bytes: int) -> None:
        """Let only ``limit_bytes`` more bytes fit, from now on.

        A write that does not fit is cut short at the limit; where nothing fits, it raises ``ENOSPC``.
        ``truncate`` and ``reserve`` that need too much change nothing and raise it. Shortening, unlinking and
        replacing files free bytes; those of an open file become free when its last descriptor is closed. The
        disk counts the files' lengths: a hole costs what it spans, a name or directory nothing.
        """
        self._room = limit_bytes

    def room(self, more: int) -> None:
        """Let ``more`` further bytes fit (after :meth:`full`)."""
        with self._sizing:
            if self._room is None:
                raise ValueError("the disk has no limit; full() sets one")
            self._room += more

    def heal(self) -> None:
        """Forget all faults and hooks, and the limit of :meth:`full`. The counters stay."""
        with self._lock:
            self._faults.clear()
            self._room = None

    def _arrange(self, fault: Fault) -> Fault:
        if fault.call not in CALLS:
            raise ValueError(f"no call is named {fault.call!r}; there are {', '.join(CALLS)}")
        if fault.at < 1 or fault.times < 1:
            raise ValueError("at and times are counted from 1")
        with self._lock:
            self._faults.append(fault)
        return fault

    def _run(self, call: str, *arguments: Any, **keywords: Any) -> Any:
        if call in ("open", "unlink", "mkdir", "sync_directory", "replace"):
            paths = arguments[: 2 if call == "replace" else 1]
        else:
            paths = (self._paths.get(arguments[0], ""),)
        with self._lock:
            self.calls[call] += 1
            # Every matching fault counts the call, even where an earlier fault raises.
            due = [fault for fault in self._faults if fault.due(call, paths)]
        for fault in due:
            if fault.short is not None:
                arguments = _shorten(call, arguments, fault.short)
            elif fault.effect != "after":
                fault.action(*arguments)
        result = self._follow(call, arguments, keywords)
        for fault in due:
            if fault.effect == "after" and fault.short is None:
                try:
                    fault.action(*arguments)
                except BaseException:
                    if call == "open":  # The caller never learns the descriptor, so it cannot close it.
                        self._follow("close", (result,), {})
                    raise
        return result

    def _follow(self, call: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Make the call, and update the paths of the descriptors."""
        if call == "close":
            # Remove the path first: after the close another thread may get the same number.
            self._paths.pop(arguments[0], None)
        result = self._fit(call, arguments, keywords)
        if call == "open":
            self._paths[result] = arguments[0]
        elif call == "replace":
            source, target = arguments
            for fd, path in list(self._paths.items()):
                if path == source:
                    self._paths[fd] = target
        return result

    def _fit(self, call: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Make the call within the free space."""
        function: Callable[..., Any] = getattr(self._disk, call)
        if self._room is None or call in ("read", "sync", "sync_directory", "mkdir", "flock"):
            return function(*arguments, **keywords)
        with self._sizing:
            if call in ("write", "pwrite", "truncate", "reserve"):
                fd = arguments[0]
                before = os.fstat(fd).st_size
                arguments = self._cut(call, arguments, before)
                result = function(*arguments, **keywords)
                self._room -= os.fstat(fd).st_size - before
                return result
            freed = self._freed(call, arguments)
            result = function(*arguments, **keywords)
            self._room += freed
            return result

    def _cut(self, call: str, arguments: tuple[Any, ...], size: int) -> tuple[Any, ...]:
        room = max(0, self._room or 0)
        if call in ("truncate", "reserve"):
            if arguments[1] - size > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return arguments
        start = arguments[2] if call == "pwrite" else size
        length = len(arguments[1])
        fitting = min(length, size + room - start)
        if length and fitting <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _shorten(call, arguments, fitting)

    def _freed(self, call: str, arguments: tuple[Any, ...]) -> int:
        """Return the number of bytes that the call frees if it succeeds."""
        if call == "close":
            status = os.fstat(arguments[0])
            return 0 if status.st_nlink or self._is_open(status) else status.st_size
        if call == "open" and not arguments[1] & os.O_TRUNC:
            return 0
        try:
            status = os.lstat(arguments[-1] if call == "replace" else arguments[0])
        except FileNotFoundError:
            return 0
        if call != "open" and (status.st_nlink > 1 or self._is_open(status)):
            return 0
        return status.st_size

    def _is_open(self, status: os.stat_result) -> bool:
        for fd in tuple(self._paths):
            other = os.fstat(fd)
            if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
                return True
        return False


def _count(times: int | Literal["forever"]) -> float:
    return math.inf if times == "forever" else times


def _shorten(call: str, arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    first, amount, *rest = arguments
    less: Any = min(amount, count) if call == "read" else memoryview(amount)[:count]
    return (first, less, *rest)
