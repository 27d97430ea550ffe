"""The demo from end to end: real processes, real kills."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from persistcoll import Queue
from persistcoll.cli import main
from persistcoll.cli.demo import power_cut
from persistcoll.cli.demo import run as demo_run
from persistcoll.cli.demo.lines import Check, count_words
from persistcoll.cli.demo.workers import Store
from tests.api.tree import PACKAGE
from tests.cli.broken_stores import KINDS, break_stores, kill_at_the_last_line
from tests.cli.running import environment, persistcoll
from tests.crash.unsynced_disk import UnsyncedDisk

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

each_queue = pytest.mark.parametrize("kind", KINDS)
LINES = 400


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.txt"
    words = (b"line", b"line", b"def", b"  return", b"# none")
    path.write_bytes(b"".join(b"%b %d\n" % (words[number % 5], number) for number in range(LINES)))
    return path


def rows(output: str) -> dict[str, str]:
    """The plain table: name to value, without the marks."""
    found = {}
    for line in output.splitlines():
        if line.startswith("  "):
            name, _, value = line.strip().partition("  ")
            found[name] = value.strip().removesuffix("ok").strip()
    return found


@each_queue
def test_nothing_is_lost_by_kill_9(small, tmp_path, kind):
    done = persistcoll("demo", small, "--queue", kind, "--kills", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["lines in"] == found["lines out"] == "400"
    assert found["lost"] == "0"
    assert found["out of order"] == "0"
    assert found["still in the queue at the end"] == "0"
    assert found["consumers killed"] == "4"
    assert found["lines counted"] == "400 by 4 first words"
    assert found["counts['line']"] == "160 (160 in the text)"
    assert found["counts['def']"] == found["counts['return']"] == "80 (80 in the text)"
    assert "WRONG" not in done.stdout
    assert done.stderr.count("kill -9") == 4
    assert not found["delivered twice"].startswith("0 ")
    if kind == "file":
        assert "2 producers -> Queue -> 1 consumer" in done.stderr
    else:
        assert "2 producers -> SQLiteQueue -> 2 consumers" in done.stderr


@each_queue
def test_kills_between_counting_and_acknowledging(small, monkeypatch, capsys, kind):
    """At each place, what the consumer held comes again, and is not counted again."""
    kill_at_the_last_line(monkeypatch)
    assert main(["demo", str(small), "--queue", kind, "--kills", "6"]) == 0
    found = rows(capsys.readouterr().out)
    twice, _, in_hand, *_ = found["delivered twice"].replace(",", "").split()
    assert int(twice) == int(in_hand) >= 6
    assert found["lines counted"] == "400 by 4 first words"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"one line, and no end", "1"),
        (b"first\nsecond, and no end", "2"),
        (b"\n\n\n", "3"),
        (b"\xff\xfe\n\x00\x00\n\x80 invalid UTF-8 \xc3\n\r\r\n\x1b[2J", "5"),
        (random.Random(1).randbytes(50_000), None),
        (b"x" * 150_000, "3"),  # a line that is too long to be one
        (b"x" * 60_000 + b"\n" + b"y" * 65_000 + b"\nz\n", "3"),  # together longer than a pipe takes at once
    ],
    ids=["one", "no-end", "empty-lines", "not-text", "noise", "no-line-ends", "long-lines"],
)
def test_any_bytes_come_out_as_they_went_in(content, lines, tmp_path, capsys):
    (tmp_path / "file").write_bytes(content)
    assert main(["demo", str(tmp_path / "file"), "--kills", "2"]) == 0
    if lines is not None:
        assert rows(capsys.readouterr().out)["lines out"] == lines


@pytest.mark.parametrize(
    "content", [b"one", random.Random(2).randbytes(50_000), b"x" * 150_000], ids=["one", "noise", "long"]
)
def test_any_bytes_come_out_of_the_sqlite_queue(content, tmp_path, capsys):
    (tmp_path / "file").write_bytes(content)
    assert main(["demo", str(tmp_path / "file"), "--queue", "sqlite", "--kills", "2"]) == 0


def test_a_terminal_that_knows_ascii_only(tmp_path):
    (tmp_path / "file").write_bytes("Übung 1\n  Übung 2\n日本語\n\xff\n".encode())
    more = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = persistcoll("demo", "file", "--kills", "1", cwd=tmp_path, **more)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["counts['\\xdcbung']"] == "2 (2 in the text)"


@each_queue
def test_a_level_may_be_chosen(small, tmp_path, kind):
    arguments = ("demo", small, "--queue", kind, "--durability", "process", "--kills", "1")
    done = persistcoll(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "durability 'process'" in done.stderr


def test_the_power_is_cut_at_the_end(small, capsys):
    assert main(["demo", str(small), "--kills", "0"]) == 0
    found = re.findall(r"durability '(\w+)', (\d+) different disks +at worst (.*)", capsys.readouterr().out)
    assert [(level, worst) for level, _, worst in found] == [
        ("power", "put and lost: 0, acknowledged and back: 0, wrong: 0"),
        ("process", "put and lost: 4, acknowledged and back: 4, wrong: 0"),
    ]
    assert all(int(disks) > 100 for _, disks, _ in found)


@pytest.mark.parametrize(
    ("sync", "problem"), [("q0*", "put and lost: "), ("cursor", "acknowledged and back: ")]
)
def test_the_power_cut_finds_that_a_sync_is_missing(small, monkeypatch, capsys, sync, problem):
    def opened(path: str, _disk: Any = None, **options: Any) -> Any:
        return Queue(path, **options, _disk=_disk and UnsyncedDisk(_disk, sync=sync))

    monkeypatch.setattr(power_cut, "Queue", opened)
    assert main(["demo", str(small), "--kills", "0"]) == 4
    output = capsys.readouterr()
    assert f"a promise was broken: {problem}" in output.err
    assert "Every line" not in output.out


def test_the_defaults_are_the_file_queue_and_the_standard_library(tmp_path):
    done = persistcoll("demo", "--lines", "3000", "--kills", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "-> Queue -> 1 consumer" in done.stderr
    assert "3,000 lines of the standard library of Python" in done.stderr
    assert rows(done.stdout)["lines out"] == "3,000"


def test_no_kills(small, tmp_path):
    done = persistcoll("demo", small, "--kills", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["delivered twice"].startswith("0 ")


@each_queue
def test_more_kills_than_lines(tmp_path, kind):
    (tmp_path / "file").write_bytes(b"1\n2\n3\n")
    done = persistcoll("demo", "file", "--queue", kind, "--kills", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["consumers killed"] == "50"


def test_the_temporary_directory_is_removed(small, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = persistcoll("demo", small, "--kills", "1", cwd=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []


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


def test_the_seed_decides_when_consumers_are_killed(tmp_path):
    def kill_points(seed):
        store = Store("file", str(tmp_path), "process")
        run = demo_run.Run(store, Check(range(1000)), 5, random.Random(seed))
        return run._kill_points[:-1]

    assert kill_points(3) == kill_points(3) == sorted(kill_points(3))
    assert kill_points(3) != kill_points(4)
    assert all(1 <= point <= 1000 for seed in range(20) for point in kill_points(seed))


# What is not as promised.


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("kind", "name", "kills", "problem"),
    [
        ("file", "Loses", 2, "lost: 1"),
        ("file", "Alters", 2, "the content is not what was put"),
        ("file", "Mixes", 2, "out of order: 1"),
        ("file", "Repeats", 2, "delivered again after they were acknowledged: "),
        ("file", "Invents", 2, "delivered and never put: 1"),
        ("file", "Forgets", 2, "still in the queue at the end: "),
        ("sqlite", "Loses", 2, "lost: 1"),
        ("sqlite", "Mixes", 0, "out of order: 1"),
        ("sqlite", "Repeats", 2, "delivered again after they were acknowledged: "),
        ("sqlite", "Forgets", 2, "still in the queue at the end: "),
    ],
)
def test_a_broken_queue_is_found(small, monkeypatch, capsys, kind, name, kills, problem):
    break_stores(monkeypatch, queue=name)
    assert main(["demo", str(small), "--queue", kind, "--kills", str(kills), "--seed", "5"]) == 4
    expect_broken(capsys.readouterr(), problem)


def expect_broken(output, problem: str) -> None:
    assert "WRONG" in output.out
    assert "Every line" not in output.out
    assert "a promise was broken: " in output.err
    assert problem in output.err


@pytest.mark.parametrize(
    ("kind", "name", "kills"),
    [
        ("file", "Miscounts", 0),
        ("file", "Nameless", 3),
        ("sqlite", "Miscounts", 0),
        ("sqlite", "Unfinished", 3),
    ],
)
def test_a_broken_dict_is_found(small, monkeypatch, capsys, kind, name, kills):
    break_stores(monkeypatch, counts=name)
    kill_at_the_last_line(monkeypatch)
    assert main(["demo", str(small), "--queue", kind, "--kills", str(kills)]) == 4
    expect_broken(capsys.readouterr(), "counted wrongly: ")


def test_a_queue_that_is_stuck_does_not_stop_the_demo_for_ever(small, monkeypatch, capsys):
    break_stores(monkeypatch, queue="Stuck")
    monkeypatch.setattr(demo_run, "PATIENCE_SECONDS", 2.0)
    assert main(["demo", str(small)]) == 3
    assert "nothing moved for 2 seconds" in capsys.readouterr().err


def test_a_child_that_fails_says_why(small, monkeypatch, capsys):
    break_stores(monkeypatch, queue="Fails")
    assert main(["demo", str(small)]) == 3
    assert "the producer failed: [Errno 5] Input/output error" in capsys.readouterr().err


def test_a_file_that_changes_meanwhile_is_no_fault_of_the_queue(small, monkeypatch, capsys):
    follow = demo_run.Run.follow

    def change_and_follow(self, *arguments):
        with small.open("ab") as file:
            file.write(b"one more\n")
        return follow(self, *arguments)

    monkeypatch.setattr(demo_run.Run, "follow", change_and_follow)
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
        (["empty", "--queue", "postgresql"], 2, "--queue"),
        (["empty", "another"], 2, "another"),
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


# Words.


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"import os\n", "import"),
        (b"\tdef __init__(self):", "def"),
        (b"_private = 1", "_private"),
        (b"# no word", ""),
        (b"\n", ""),
        (b"", ""),
        (b"1 line", ""),
        ("Übung".encode(), "Übung"),
        (b"\xff\xfe word", "\\xff\\xfe"),
        (b"a" * 30, "a" * 20),
        (b"\x00word", ""),
    ],
)
def test_the_word_that_a_line_begins_with(line, word):
    assert count_words([line]) == {word: 1}


def test_words_are_counted():
    assert count_words(b"a\n b\n#\na c\n".splitlines()) == {"a": 2, "b": 1, "": 1}
