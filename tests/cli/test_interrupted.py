"""The demo ended from outside: nothing goes on running, nothing is left behind."""

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


def heed_signals() -> None:
    # A shell that runs the tests in the background ignores SIGINT, nohup SIGHUP, and that is inherited.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def running(queue, tmp_path):
    """A demo in full swing: it has killed a consumer and started the next one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    child = subprocess.Popen(
        [*COMMAND, "demo", "--lines", "60000", "--kills", "200", "--queue", queue],
        cwd=tmp_path,
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,  # noqa: PLW1509
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
    """Descriptors that become readable when the processes end, even if they have another parent by then."""
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it was just being killed
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
    """No chance to tidy up: the children notice by themselves."""
    with contextlib.ExitStack() as stack:
        descriptors = watch(children(running.pid), stack)
        assert len(descriptors) >= 2
        running.kill()
        running.wait(_SECONDS)
        expect_end(descriptors)


@pytest.mark.parametrize("queue", ["file", "sqlite"])
def test_ctrl_c_in_a_terminal_is_for_the_demo_alone(running):
    """A terminal sends it to all processes of the group: the children leave it to their parent."""
    with contextlib.ExitStack() as stack:
        descriptors = watch(children(running.pid), stack)
        for pid in children(running.pid):
            with contextlib.suppress(ProcessLookupError):  # it was just being killed
                os.kill(pid, signal.SIGINT)
        line = next(line for line in running.stderr if "goes on" in line)
        assert "Traceback" not in line
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=_SECONDS)
        expect_end(descriptors)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "persistcoll: stopped"
    assert "Traceback" not in errors


def test_who_ignores_a_signal_means_it(tmp_path):
    """As ``nohup`` does, and a shell for what it runs in the background."""
    (tmp_path / "file").write_bytes(b"line\n" * 10_000)
    child = subprocess.Popen(
        [*COMMAND, "demo", "file", "--kills", "20"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # noqa: PLW1509
    )
    with child:
        assert child.stderr is not None
        next(line for line in child.stderr if "goes on" in line)
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=_SECONDS)
    assert child.returncode == 0
