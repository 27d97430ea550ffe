"""The demo ended from outside: no process goes on running, and no file stays."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import COMMAND, environment

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open") or not Path("/proc/self/task").is_dir(),
    reason="needs Linux, to look at the children of another process",
)

_SECONDS = 30


@pytest.fixture
def queue():
    return "file"


@pytest.fixture
def running(queue, tmp_path):
    """Start a demo, and wait until it has killed a consumer and started the next one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    child = subprocess.Popen(
        [*COMMAND, "demo", "--lines", "60000", "--kills", "200", "--queue", queue],
        cwd=tmp_path,
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with child:
        assert child.stderr is not None
        for line in child.stderr:
            if "goes on" in line:
                break
        yield child
        child.kill()


def children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.update(map(int, (task / "children").read_text("ascii").split()))
    return found


def watch(pids: set[int], stack: contextlib.ExitStack) -> list[int]:
    """Open descriptors that become readable when the processes end, in whatever process group they are."""
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the demo may just be killing it
            descriptor = os.pidfd_open(pid)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
    return descriptors


def expect_end(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], _SECONDS)[0], "a child went on"


@pytest.mark.parametrize(
    ("queue", "number", "status"),
    [
        ("file", signal.SIGINT, 130),
        ("file", signal.SIGTERM, 143),
        ("file", signal.SIGHUP, 129),
        ("sqlite", signal.SIGINT, 130),
    ],
)
def test_it_is_told_to_end(running, tmp_path, number, status):
    with contextlib.ExitStack() as stack:
        descriptors = watch(children(running.pid), stack)
        assert len(descriptors) >= 2
        running.send_signal(number)
        output, errors = running.communicate(timeout=_SECONDS)
        expect_end(descriptors)
    assert running.returncode == status
    assert output == ""
    assert "Traceback" not in errors
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("queue", ["file", "sqlite"])
def test_it_is_killed(running):
    """The demo has no chance to clean up, so its children must notice by themselves."""
    with contextlib.ExitStack() as stack:
        descriptors = watch(children(running.pid), stack)
        assert len(descriptors) >= 2
        running.kill()
        running.wait(_SECONDS)
        expect_end(descriptors)


def test_ctrl_c_does_not_reach_the_children(running):
    """Otherwise each child would print a traceback of its own."""
    group = os.getpgid(running.pid)
    for pid in children(running.pid):
        with contextlib.suppress(ProcessLookupError):
            assert os.getpgid(pid) != group
