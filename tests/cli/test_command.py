"""The command itself: help, version, exit statuses, its output in a terminal and elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import persistcoll as package
from persistcoll.cli import main
from persistcoll.cli.command import CommandError, exit_status
from persistcoll.cli.demo import run as demo_run
from persistcoll.errors import CorruptionError, DecodeError, LockedError, StorageFullError
from tests.cli.running import COMMAND, environment, in_terminal, persistcoll

pytest.importorskip("pty")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"persistcoll {package.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help(capsys, arguments):
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: persistcoll")
    assert "Exit status" in output


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-command"], ["--no-such-option"], ["demo", "--no-such-option"]]
)
def test_wrong_usage(capsys, arguments):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: persistcoll" in output.err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandError("nothing", 1), 1),
        (OSError(28, "No space left on device"), 3),
        (StorageFullError("full"), 3),
        (LockedError("held", 1), 3),
        (CorruptionError("damaged"), 4),
        (DecodeError("poison", 1), 4),
    ],
)
def test_exit_status(error, status):
    assert exit_status(error) == status


def test_nobody_reads_on(tmp_path):
    (tmp_path / "file").write_bytes(b"line\n" * 10)
    child = subprocess.Popen(
        [*COMMAND, "demo", "file", "--kills", "0"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.close()
    with child:
        assert child.stderr is not None
        errors = child.stderr.read()
    assert child.returncode == 141
    assert "Error" not in errors
    assert "Exception" not in errors


# Output.


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.txt"
    path.write_bytes(b"line\n" * 200)
    return path


def test_the_table_goes_to_output_and_everything_else_to_errors(small, tmp_path):
    done = persistcoll("demo", small, "--kills", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("  lines in")
    assert "kill -9" not in done.stdout
    assert "kill -9" in done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "\r" not in done.stderr


def test_in_a_terminal(small, tmp_path):
    status, seen = in_terminal("demo", small, "--kills", "2", cwd=tmp_path)
    assert status == 0, seen
    assert seen.isascii()
    assert "\x1b" not in seen
    assert seen.count("kill -9") == 2
    assert seen.endswith(
        "Every line that was put came out, in order and unaltered, and was counted once.\r\n"
    )


def test_the_progress_is_shown_now_and_then(small, monkeypatch, capsys):
    monkeypatch.setattr(demo_run, "PROGRESS_SECONDS", 0.0)
    assert main(["demo", str(small), "--kills", "0"]) == 0
    assert re.search(r"^  put +\d+   got +\d+   backlog #*$", capsys.readouterr().err, re.MULTILINE)


def test_help_imports_no_more_than_it_needs():
    """Help has to be there at once."""
    code = "import sys; from persistcoll.cli import main; main(['--help']); print(*sys.modules)"
    # Without site, because what is installed there may import anything before.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "persistcoll.cli.demo" in imported
    assert not {"dataclasses", "multiprocessing", "pathlib", "sqlite3", "subprocess", "tempfile"} & imported
