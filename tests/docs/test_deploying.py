"""Other programs can read what the page about deployment gives them, and process 1 is as it says.

The programs are not a part of the tests' environment: where one is missing, its test is skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from persistcoll import MessageQueue
from tests.api.tree import PACKAGE
from tests.docs.snippets import blocks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deploying.rst"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")


def texts(language: str) -> list[str]:
    """Return the blocks of the page in this language."""
    return [block.text for block in blocks(PAGE) if block.language == language]


def complaints(unit: str, directory: Path) -> str:
    """Return what systemd says about a unit."""
    path = directory / "shop-worker.service"
    path.write_text(unit.replace("/srv/shop/.venv/bin/python", sys.executable), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one(tmp_path):
    (unit,) = texts("ini")
    assert "shop-worker.service" not in complaints(unit, tmp_path)
    wrong = unit.replace("KillMode=mixed", "KillMode=most")
    assert "shop-worker.service" in complaints(wrong, tmp_path)


def test_the_yaml_is_yaml():
    yaml = pytest.importorskip("yaml")
    compose, pod = map(yaml.safe_load, texts("yaml"))
    assert compose["services"].keys() == {"web", "worker"}
    assert pod["kind"] == "StatefulSet"
    volumes = {claim["metadata"]["name"] for claim in pod["spec"]["volumeClaimTemplates"]}
    containers = pod["spec"]["template"]["spec"]["containers"]
    assert {mount["name"] for each in containers for mount in each["volumeMounts"]} == volumes


AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--kill-child"]

SIGNALLED = """
import os, signal, sys
from persistcoll import MessageQueue, Worker

def handle(message):
    os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, signal.SIG_DFL)
with MessageQueue("jobs.db", durability="process") as jobs:
    jobs.put("a job")
    if sys.argv[1] == "worker":
        Worker(jobs, handle).run()
    else:
        with jobs.get() as message:
            handle(message)
    print("process", os.getpid(), "goes on")
"""

HOLDING = """
import os, sys
from persistcoll import Empty, MessageQueue

with MessageQueue("jobs.db", durability="process", lease=None) as jobs:
    try:
        message = jobs.get(block=False)
    except Empty:
        print("process", os.getpid(), "gets nothing", flush=True)
    else:
        print("process", os.getpid(), "gets attempt", message.attempts, flush=True)
        sys.stdin.read()
"""


@cache
def lacking() -> str:
    """Return why no process can be the first of a namespace here; an empty text if one can."""
    if shutil.which("unshare") is None:
        return "needs unshare"
    done = subprocess.run([*AS_PROCESS_1, "true"], capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.fixture
def namespaces(monkeypatch):
    """Skip the test where no process can be process 1; let programs find the tested persistcoll."""
    if lacking():
        pytest.skip(lacking())
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))


def program(text: str, *arguments: str) -> list[str]:
    """Return the command that runs a program."""
    return [sys.executable, "-c", text, *arguments]


@pytest.mark.parametrize("kind", ["worker", "loop"])
def test_process_1_ends_only_with_a_handler(kind, tmp_path, namespaces):
    command = program(SIGNALLED, kind)
    first = subprocess.run(
        [*AS_PROCESS_1, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert first.stdout == "process 1 goes on\n"  # the worker has ended; the loop has noticed nothing
    other = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert other.stdout.endswith(" goes on\n") == (kind == "worker")


@contextmanager
def holding(directory: Path) -> Iterator[str]:
    """Run a process 1 that gets a message, and give what it says; kill it at the end."""
    command = [*AS_PROCESS_1, *program(HOLDING)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=directory, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.kill()


def test_two_processes_1_share_a_queue(tmp_path, namespaces):
    with MessageQueue(tmp_path / "jobs.db", durability="process") as jobs:
        jobs.put("a job")
        with holding(tmp_path) as first:
            assert first == "process 1 gets attempt 1\n"
            with holding(tmp_path) as second:
                assert second == "process 1 gets nothing\n"
        assert jobs.get(timeout=60).attempts == 2
