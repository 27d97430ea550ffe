"""The command itself: help, version, exit statuses, its output in a terminal and elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

import persistcoll as package
from persistcoll.cli import main
from persistcoll.cli.command import CommandError, exit_status
from persistcoll.cli.progress import bars, pretty, table
from persistcoll.errors import CorruptionError, DecodeError, LockedError, StorageFullError
from tests.cli.running import COMMAND, environment, in_terminal, persistcoll

pytest.importorskip("pty")


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


def test_the_reader_stops(tmp_path):
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


@pytest.mark.needs("import:rich")
def test_rich_in_a_terminal(small, tmp_path):
    status, seen = in_terminal("demo", small, "--kills", "2", cwd=tmp_path)
    assert status == 0, seen
    assert "━" in seen
    assert "✓" in seen
    assert "✗" not in seen
    assert seen.count("kill -9") == 2
    assert "\x1b[" in seen
    assert seen.endswith(
        "Every line that was put came out, in order and unaltered, and was counted once.\r\n"
    )


def test_plain_in_a_terminal(small, tmp_path):
    status, seen = in_terminal("demo", small, "--kills", "2", "--plain", cwd=tmp_path)
    assert status == 0, seen
    assert seen.isascii()
    assert "\x1b" not in seen
    assert "100%" in seen
    assert "\rEvery line" not in seen


def test_plain_where_rich_is_missing(small, tmp_path):
    # A name that cannot be imported, found before the real one.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None", "utf-8")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    status, seen = in_terminal("demo", small, "--kills", "1", cwd=tmp_path, PYTHONPATH=path)
    assert status == 0, seen
    assert seen.isascii()
    assert "Every line" in seen


def test_plain_where_the_terminal_is_ascii(small, tmp_path):
    more = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    status, seen = in_terminal("demo", small, "--kills", "1", cwd=tmp_path, **more)
    assert status == 0, seen
    assert seen.isascii()
    assert "Every line" in seen


def test_a_plain_table(capsys):
    table([("name", "value", None), ("a longer name", "1", True), ("x", "2", False)], plain=True)
    assert capsys.readouterr().out.splitlines() == [
        "  name           value",
        "  a longer name  1      ok",
        "  x              2      WRONG",
    ]


def test_plain_bars_without_a_terminal(capsys):
    with bars({"put": 2000, "got": 2000}, plain=True) as shown:
        shown.note("a note")
        shown.move("put", 1000)
        shown.move("got", 2000)
    assert capsys.readouterr().err.splitlines() == ["a note", "  put 1,000 of 2,000   got 2,000 of 2,000"]


def test_plain_bars_of_something_empty(capsys):
    with bars({"put": 0}, plain=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_stream_without_an_encoding_is_plain():
    assert not pretty(io.StringIO(), plain=False)


def test_the_command_imports_no_more_than_it_needs(tmp_path):
    """The demo starts a consumer again after every kill, so a consumer must not load what draws the bars."""
    code = (
        "import sys, persistcoll.cli.demo_worker; print(*{'rich', 'persistcoll.cli.demo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert done.returncode == 0, done.stderr
