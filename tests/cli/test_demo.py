"""The demo from end to end: real processes, real kills."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from persistcoll import Queue
from persistcoll.cli import demo_run, main
from persistcoll.cli.demo_run import kill_points
from tests.api.tree import PACKAGE
from tests.cli.broken_queues import command_with
from tests.cli.running import environment, persistcoll


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.txt"
    path.write_bytes(b"".join(b"this is line %d\n" % number for number in range(400)))
    return path


def rows(output: str) -> dict[str, str]:
    """The plain table: name to value, without the marks."""
    found = {}
    for line in output.splitlines():
        if line.startswith("  "):
            name, _, value = line.strip().partition("  ")
            found[name] = value.strip().removesuffix("ok").strip()
    return found


def test_nothing_is_lost_by_kill_9(small, tmp_path):
    done = persistcoll("demo", small, "--kills", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["lines in"] == found["lines out"] == "400"
    assert found["lost"] == "0"
    assert found["order per producer"] == "kept"
    assert found["left in the queue"] == "0"
    assert found["consumer killed"] == "4 times"
    assert int(found["delivered twice"].split()[0]) <= 4
    assert "WRONG" not in done.stdout
    assert done.stderr.count("kill -9") == 4


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"one line, and no end", "1"),
        (b"first\nsecond, and no end", "2"),
        (b"\n\n\n", "3"),
        (b"\xff\xfe\n\x00\x00\n\x80 invalid UTF-8 \xc3\n\r\r\n\x1b[2J", "5"),
        (random.Random(1).randbytes(50_000), None),
        (b"x" * 2_500_000, "3"),  # a line that is too long to be one
        (b"x" * 200_000 + b"\n" + b"y" * 100_000 + b"\nz\n", "3"),  # longer than a pipe takes at once
    ],
    ids=["one", "no-end", "empty-lines", "not-text", "noise", "no-line-ends", "long-lines"],
)
def test_any_bytes_come_out_as_they_went_in(content, lines, tmp_path):
    (tmp_path / "file").write_bytes(content)
    done = persistcoll("demo", "file", "--kills", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if lines is not None:
        assert rows(done.stdout)["lines out"] == lines


@pytest.mark.parametrize("durability", ["process", "power"])
def test_both_levels(small, tmp_path, durability):
    done = persistcoll("demo", small, "--durability", durability, "--kills", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert durability in done.stderr


def test_the_default_is_the_standard_library(tmp_path):
    done = persistcoll("demo", "--lines", "3000", "--kills", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3,000 lines of the standard library of Python" in done.stderr
    assert rows(done.stdout)["lines out"] == "3,000"


def test_no_kills(small, tmp_path):
    done = persistcoll("demo", small, "--kills", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["delivered twice"].startswith("0 ")


def test_more_kills_than_lines(tmp_path):
    (tmp_path / "file").write_bytes(b"1\n2\n3\n")
    done = persistcoll("demo", "file", "--kills", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["consumer killed"].startswith("3 times (50 were asked for")


def test_the_temporary_directory_is_removed(small, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = persistcoll("demo", small, "--kills", "1", cwd=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_is_kept(small, tmp_path, exists):
    kept = tmp_path / "kept"
    if exists:
        kept.mkdir(mode=0o700)
    done = persistcoll("demo", small, "--kills", "1", "--directory", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(kept) in done.stdout
    with Queue(kept) as queue:
        assert queue.empty()
        assert queue.stats().puts == 400


def test_modules_in_the_working_directory_are_no_concern_of_the_demo(small, tmp_path):
    for name in ("json", "pickle", "random", "struct", "persistcoll"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')", "utf-8")
    # As the installed command starts: without the working directory on the path.
    found = f"import sys; sys.path[0] = {str(PACKAGE.parent)!r}"
    start = f"{found}; from persistcoll.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start, "demo", str(small), "--kills", "1"],
        cwd=tmp_path,
        env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# The moments.


def test_kills_are_spread_over_the_run():
    points = kill_points(1_000_000, 5, seed=3)
    assert [point // 200_001 for point, _ in points] == [0, 1, 2, 3, 4]
    assert points == kill_points(1_000_000, 5, seed=3)
    assert points != kill_points(1_000_000, 5, seed=4)


@pytest.mark.parametrize(
    ("lines", "kills"), [(1, 1), (1, 5), (7, 5), (100, 100), (99, 100), (50_000, 3), (5, 0)]
)
def test_every_kill_meets_a_consumer_that_got_something(lines, kills):
    for seed in range(20):
        points = kill_points(lines, kills, seed)
        assert len(points) == min(lines, kills)
        held = 0
        for point, hold in points:
            # Whatever the last consumer got before its kill, this one gets a line at least.
            assert held < point <= hold <= lines
            held = hold


# What is not as promised.


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Loses", "lost: 1"),
        ("Alters", "the content is not what was put"),
        ("Mixes", "out of order: 1"),
        ("Repeats", "delivered again after they were acknowledged: 1"),
        ("Invents", "delivered and never put: 1"),
        ("Forgets", "still in the queue at the end: "),
    ],
)
def test_a_broken_promise_is_found(small, monkeypatch, capsys, name, problem):
    monkeypatch.setattr(demo_run, "command", command_with(name))
    assert main(["demo", str(small), "--kills", "2", "--seed", "5"]) == 4
    output = capsys.readouterr()
    assert "WRONG" in output.out
    assert "Every line" not in output.out
    assert "the queue broke its promise" in output.err
    assert problem in output.err


def test_a_queue_that_is_stuck_does_not_stop_the_demo_for_ever(small, monkeypatch, capsys):
    monkeypatch.setattr(demo_run, "command", command_with("Stuck"))
    monkeypatch.setattr(demo_run, "PATIENCE_SECONDS", 3.0)
    assert main(["demo", str(small)]) == 3
    assert "nothing moved for 3 seconds" in capsys.readouterr().err


def test_a_child_that_fails_says_why(small, monkeypatch, capsys):
    monkeypatch.setattr(demo_run, "command", command_with("Fails"))
    assert main(["demo", str(small)]) == 3
    assert "the producer failed: [Errno 5] Input/output error" in capsys.readouterr().err


def test_a_file_that_changes_meanwhile_is_no_fault_of_the_queue(small, monkeypatch, capsys):
    started = demo_run.Run.run

    def run(self):
        with small.open("ab") as file:
            file.write(b"one more\n")
        return started(self)

    monkeypatch.setattr(demo_run.Run, "run", run)
    assert main(["demo", str(small), "--kills", "0"]) == 3
    assert "changed while it was read" in capsys.readouterr().err


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["empty"], 1, "'empty' is empty"),
        (["missing"], 2, "there is no file 'missing'"),
        (["folder"], 2, "'folder' is not a regular file"),
        (["pipe"], 2, "'pipe' is not a regular file"),
        (["empty", "--kills", "-1"], 2, "at least 0"),
        (["empty", "--kills", "x"], 2, "'x' is not a whole number"),
        (["empty", "--lines", "0"], 2, "at least 1"),
        (["empty", "--durability", "none"], 2, "--durability"),
        (["empty", "another"], 2, "another"),
        (["small.txt", "--directory", "folder"], 2, "'folder' is not empty"),
        (["small.txt", "--directory", "empty"], 2, "'empty' is not a directory"),
        (["small.txt", "--directory", "empty/below"], 3, "empty/below"),
    ],
)
def test_bad_input(small, tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "something").touch()
    os.mkfifo(tmp_path / "pipe")
    assert main(["demo", *arguments]) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert "Traceback" not in output.err
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["something"]


def test_a_library_without_source_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert main(["demo"]) == 1
    assert "name a FILE" in capsys.readouterr().err
