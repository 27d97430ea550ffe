"""Runs the command as a user does: in a process of its own, with pipes or in a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.api.tree import PACKAGE

__all__ = ["COMMAND", "environment", "in_terminal", "persistcoll"]

COMMAND = [sys.executable, "-m", "persistcoll"]
_SECONDS = 120


def environment(**more: str) -> dict[str, str]:
    """Return the command's environment: this persistcoll wherever it runs, and no colours in its output."""
    left_out = {"COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    found = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**found, "PYTHONPATH": str(PACKAGE.parent), "PYTHONUTF8": "1", "TERM": "xterm", **more}


def persistcoll(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )


def in_terminal(*arguments: str | Path, cwd: Path, **more: str) -> tuple[int, str]:
    """Run the command in a terminal; return its exit status and everything that the terminal shows."""
    import pty

    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=cwd,
            env=environment(COLUMNS="100", **more),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = bytearray()
        try:
            while data := os.read(ours, 1 << 16):
                seen += data
        except OSError:  # Linux raises this when no process has the other side open any more.
            pass
        return child.wait(_SECONDS), seen.decode(errors="replace")
    finally:
        os.close(ours)
