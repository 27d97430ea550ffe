"""The search through every state that a power cut may leave: :func:`explore`.

A workload runs once. Each state is written to a fresh directory, and the store under test is opened there.
The search finds a missing sync in milliseconds, even one that the file system of the test machine would
forgive.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from persistcoll.testing.crash.disk import CrashDisk
from persistcoll.testing.crash.model import CrashState, Model

__all__ = ["Exploration", "Violation", "explore"]


@dataclass(frozen=True)
class Violation:
    """A state that the check refused."""

    state: CrashState
    error: str

    def __str__(self) -> str:
        return f"{self.state}: {self.error}"


@dataclass
class Exploration:
    """What :func:`explore` found. Its ``str()`` is fit for an assertion's message."""

    model: Model
    operations: int
    """The length of the workload's trace."""
    states: int = 0
    """How many states of the workload were checked."""
    recoveries: int = 0
    """How many further states were checked, left by power cuts during recovery."""
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        shown = [f"\n- {violation}" for violation in self.violations[:10]]
        more = f"\n- and {len(self.violations) - 10} more" if len(self.violations) > 10 else ""
        return (
            f"{self.model}: {self.operations} operations, {self.states} states, {self.recoveries} states of"
            f" recovery, {len(self.violations)} violations" + "".join(shown) + more
        )


def explore(
    workload: Callable[[CrashDisk], object],
    check: Callable[[CrashState, str], object],
    model: Model = "strict",
    directory: str | None = None,
    *,
    recover: Callable[[CrashDisk], object] | None = None,
    limit: int = 64,
    recovery_limit: int = 8,
    seed: int = 0,
) -> Exploration:
    """Run ``workload`` once, and ``check`` every state that a power cut during it may leave.

    :param workload: called with a :class:`CrashDisk` whose ``directory`` is empty and used by nothing else.
        Keep the workload below some 300 operations.
    :param check: called with the state and a directory that holds it, which it may change. Any exception is a
        violation: an ``AssertionError``, or what the store raised.
    :param directory: the directory to work in, best in memory; ``None`` for the system's temporary directory.
    :param recover: called with a :class:`CrashDisk` on each state, to open the store and close it. The states
        that a power cut during *recovery* may leave are checked too. Their ``marks`` begin with the
        workload's.
    :param limit: combinations at one cut; see :meth:`CrashDisk.states`.
    :param recovery_limit: the same for cuts during recovery.
    :raises RuntimeError: if the workload changed files by other means than the disk.

    >>> def workload(disk: CrashDisk) -> None:
    ...     path = os.path.join(disk.directory, "value")
    ...     fd = disk.open(path, os.O_WRONLY | os.O_CREAT)
    ...     disk.write(fd, b"7")
    ...     disk.sync(fd)
    ...     disk.close(fd)
    ...     disk.mark("stored")  # too early: the name needs a sync of the directory
    >>> def check(state: CrashState, directory: str) -> None:
    ...     if "stored" in state.marks:
    ...         assert os.path.exists(os.path.join(directory, "value")), "lost"
    >>> print(explore(workload, check, "ext4"))
    ext4: 3 operations, 5 states, 0 states of recovery, 0 violations
    >>> print(explore(workload, check, "strict"))
    strict: 3 operations, 6 states, 0 states of recovery, 1 violations
    - strict: power cut after step 3 (sync value): lost create value: AssertionError: lost
    """
    with tempfile.TemporaryDirectory(prefix="persistcoll-", dir=directory) as scratch:
        disk = CrashDisk(os.path.join(scratch, "run", "store"))
        workload(disk)
        disk.verify()
        found = Exploration(model, len(disk.trace))
        place = os.path.join(scratch, "cut", "store")
        seen: set[tuple[bytes, tuple[str, ...]]] = set()
        for state in disk.states(model, limit=limit, seed=seed):
            found.states += 1
            seen.add((state.digest, state.marks))
            _judge(check, state, place, found)
            if recover is None:
                continue
            for again in _recovery_states(recover, state, place, found, recovery_limit, seed):
                if (again.digest, again.marks) not in seen:
                    seen.add((again.digest, again.marks))
                    found.recoveries += 1
                    _judge(check, again, place, found)
    return found


def _judge(
    check: Callable[[CrashState, str], object], state: CrashState, place: str, to: Exploration
) -> None:
    state.materialize(place)
    try:
        check(state, place)
    except Exception as error:
        to.violations.append(Violation(state, _text(error)))
    finally:
        shutil.rmtree(place)


def _recovery_states(
    recover: Callable[[CrashDisk], object],
    state: CrashState,
    place: str,
    to: Exploration,
    limit: int,
    seed: int,
) -> list[CrashState]:
    state.materialize(place)
    try:
        disk = CrashDisk(place)
        try:
            recover(disk)
            disk.verify()
        except Exception as error:
            to.violations.append(Violation(state, f"recovery raised {_text(error)}"))
        return [
            replace(
                again,
                description=f"{state}; then, during recovery, {again}",
                marks=state.marks + again.marks,
            )
            for again in disk.states(to.model, limit=limit, seed=seed)
        ]
    finally:
        shutil.rmtree(place)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
