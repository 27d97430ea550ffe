"""The disks that fail and the disks that lose power, tried on a toy queue that keeps or breaks the rules."""

from __future__ import annotations

import errno
import os
import random
import re
import struct
import subprocess
import sys
import threading
import zlib

import pytest

from persistcoll.disk.calls import CALLS, Disk
from persistcoll.testing.faults import CrashDisk, CrashState, FaultyDisk, Model, explore

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
MODELS: tuple[Model, ...] = ("ext4", "strict", "weak")
CHUNK = 3


class Toy:
    """A queue of numbered items: chunks of three records, and a head file that is published by rename.

    ``broken`` names the rule that the queue does not keep.
    """

    def __init__(self, disk: Disk, directory: str, broken: str = "") -> None:
        self.disk, self.directory, self.broken = disk, directory, broken
        self.head, chunks = load(directory)
        self.tail = max((number * CHUNK + len(items) for number, items in chunks.items()), default=self.head)
        self.fd = -1

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def put(self) -> int:
        number, used = divmod(self.tail, CHUNK)
        if used == 0:
            self.close()
            self.fd = self.disk.open(self.path(f"q{number}"), APPEND | os.O_EXCL)
            if self.broken != "no directory sync after create":
                self.disk.sync_directory(self.directory)
        elif self.fd < 0:
            self.fd = self.disk.open(self.path(f"q{number}"), APPEND)
        self.append(record(number, self.tail))
        if self.broken != "no sync of data":
            self.disk.sync(self.fd)
        self.tail += 1
        return self.tail - 1

    def append(self, data: bytes) -> None:
        assert self.disk.write(self.fd, data) == len(data)

    def get(self) -> int:
        item = self.head
        self.head += 1
        chunk_done = self.head % CHUNK == 0
        if chunk_done and self.broken == "unlink before head":
            self.disk.unlink(self.path(f"q{item // CHUNK}"))
        fd = self.disk.open(self.path("head.tmp"), APPEND | os.O_EXCL)
        self.disk.write(fd, b"%d" % self.head)
        if self.broken != "no sync of temporary":
            self.disk.sync(fd)
        self.disk.close(fd)
        self.disk.replace(self.path("head.tmp"), self.path("head"))
        if chunk_done and self.broken == "unlink before head is durable":
            self.disk.unlink(self.path(f"q{item // CHUNK}"))
        if self.broken != "no directory sync after rename":
            self.disk.sync_directory(self.directory)
        if chunk_done and not self.broken.startswith("unlink"):
            self.disk.unlink(self.path(f"q{item // CHUNK}"))
        return item

    def recover(self) -> None:
        names = os.listdir(self.directory)
        if "head.tmp" in names:
            self.disk.unlink(self.path("head.tmp"))
        for name in names:
            if name[0] == "q" and int(name[1:]) < self.head // CHUNK:
                self.disk.unlink(self.path(name))
        name = f"q{self.tail // CHUNK}"
        if name not in names:
            return
        good = b"".join(
            record(self.tail // CHUNK, item) for item in range(self.tail // CHUNK * CHUNK, self.tail)
        )
        with open(self.path(name), "rb") as file:
            if file.read() == good:
                return
        if self.broken == "recovery rewrites in place":
            fd = self.disk.open(self.path(name), APPEND | os.O_TRUNC)
            self.disk.write(fd, good)
        else:
            fd = self.disk.open(self.path(name), APPEND)
            self.disk.truncate(fd, len(good))
        self.disk.sync(fd)
        self.disk.close(fd)

    def close(self) -> None:
        if self.fd >= 0:
            self.disk.close(self.fd)
            self.fd = -1


def record(chunk: int, item: int) -> bytes:
    payload = b"item %d " % item * 20
    return struct.pack("<HI", len(payload), zlib.crc32(payload, chunk + 1)) + payload


def load(directory: str) -> tuple[int, dict[int, list[int]]]:
    """Return the head, and the items by chunk up to the first damage; raise where chunks do not join."""
    names = os.listdir(directory)
    head = 0
    if "head" in names:
        with open(os.path.join(directory, "head"), "rb") as file:
            head = int(file.read())
    numbers = sorted(int(name[1:]) for name in names if name[0] == "q")
    numbers = [number for number in numbers if number >= head // CHUNK]
    assert numbers == list(range(head // CHUNK, head // CHUNK + len(numbers))), "a chunk is missing"
    chunks: dict[int, list[int]] = {}
    for number in numbers:
        with open(os.path.join(directory, f"q{number}"), "rb") as file:
            data = file.read()
        items = chunks[number] = []
        while data.startswith(record(number, number * CHUNK + len(items))):
            items.append(number * CHUNK + len(items))
            data = data[len(record(number, items[-1])) :]
        assert number == numbers[-1] or len(items) == CHUNK, "a hole"
    return head, chunks


def check(state: CrashState, directory: str) -> None:
    head, chunks = load(directory)
    items = {item for found in chunks.values() for item in found}
    for mark in state.marks:
        verb, number = mark.split()
        if verb == "got":
            assert int(number) < head, f"{number} comes back"
        else:
            assert int(number) < head or int(number) in items, f"{number} is lost"


def toy_workload(broken: str = ""):
    def workload(disk: CrashDisk) -> None:
        toy = Toy(disk, disk.directory, broken)
        for verb in "ppppp gggg ppp".replace(" ", ""):
            if verb == "p":
                if broken == "returned before the sync":
                    disk.mark(f"put {toy.tail}")
                disk.mark(f"put {toy.put()}")
            else:
                disk.mark(f"got {toy.get()}")
        toy.close()

    return workload


def recover(disk: CrashDisk) -> None:
    Toy(disk, disk.directory).recover()


# What the explorer finds.


@pytest.mark.parametrize("model", MODELS)
def test_toy_that_keeps_the_rules_has_no_violation(model, tmp_path):
    found = explore(toy_workload(), check, model, str(tmp_path), recover=recover)
    assert not found.violations, found
    assert found.states > 40
    assert found.recoveries
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("broken", "found_in"),
    [
        ("no sync of data", MODELS),
        ("returned before the sync", MODELS),
        ("no directory sync after create", ("strict", "weak")),
        ("no sync of temporary", MODELS),
        ("no directory sync after rename", MODELS),
        ("unlink before head", MODELS),
        ("unlink before head is durable", ("strict", "weak")),
    ],
)
def test_each_broken_rule_is_found_in_the_models_that_have_it(broken, found_in, model, tmp_path):
    found = explore(toy_workload(broken), check, model, str(tmp_path))
    assert bool(found.violations) == (model in found_in), found


@pytest.mark.parametrize("model", MODELS)
def test_a_power_cut_during_recovery_is_explored(model, tmp_path):
    def rewriting(disk: CrashDisk) -> None:
        Toy(disk, disk.directory, "recovery rewrites in place").recover()

    found = explore(toy_workload(), check, model, str(tmp_path), recover=rewriting)
    assert found.violations
    assert all("; then, during recovery, " in str(violation) for violation in found.violations)


def test_recovery_that_raises_is_a_violation(tmp_path):
    def refuse(disk: CrashDisk) -> None:
        raise OSError(errno.EIO, "no")

    found = explore(lambda disk: None, check, "strict", str(tmp_path), recover=refuse)
    assert [violation.error for violation in found.violations] == ["recovery raised OSError: [Errno 5] no"]


def test_a_report_names_the_cut_and_what_was_lost(tmp_path):
    found = explore(toy_workload("no directory sync after create"), check, "strict", str(tmp_path))
    report = str(found)
    assert re.match(r"strict: \d+ operations, \d+ states, 0 states of recovery, \d+ violations\n- ", report)
    assert "- strict: power cut after step 3 (sync q0): lost create q0: AssertionError: 0 is lost" in report


# CrashDisk.


@pytest.fixture
def disk(tmp_path):
    return CrashDisk(str(tmp_path / "d"))


def path(disk: CrashDisk, name: str) -> str:
    return os.path.join(disk.directory, name)


def make(disk: CrashDisk, name: str, data: bytes = b"", sync: bool = True, close: bool = True) -> int:
    fd = disk.open(path(disk, name), APPEND)
    if data:
        disk.write(fd, data)
    if sync:
        disk.sync(fd)
        disk.sync_directory(os.path.dirname(path(disk, name)))
    if close:
        disk.close(fd)
    return fd


def last(disk: CrashDisk, model: Model, **options) -> list[dict[str, bytes]]:
    return [state.files for state in disk.states(model, **options) if state.step == len(disk.trace)]


def possible(disk: CrashDisk, model: Model) -> list[dict[str, bytes]]:
    """Return what a cut at the end may leave, even if an earlier cut may leave the same."""
    disk.mark("end")
    return last(disk, model, limit=4096)


def test_every_call_of_the_interface_is_recorded_or_passed_on(disk):
    plain = Disk()
    for call in CALLS:
        same = getattr(disk, call) == getattr(plain, call)
        assert same == (call in ("read", "flock")), call


def test_calls_do_what_they_do_on_a_plain_disk(disk):
    fd = disk.open(path(disk, "a"), os.O_RDWR | os.O_CREAT)
    assert disk.write(fd, b"0123456789") == 10
    assert disk.pwrite(fd, b"xx", 4) == 2
    disk.truncate(fd, 8)
    assert disk.read(fd, 100, 2) == b"23xx67"
    assert disk.size(fd, 0, os.SEEK_END) == 8
    disk.reserve(fd, 600)
    disk.sync(fd)
    disk.flock(fd, 2)
    disk.close(fd)
    disk.mkdir(path(disk, "sub"))
    disk.replace(path(disk, "a"), path(disk, "sub/b"))
    disk.sync_directory(path(disk, "sub"))
    disk.verify()
    disk.unlink(path(disk, "sub/b"))
    disk.verify()
    assert os.listdir(path(disk, "sub")) == []
    kinds = [operation.kind for operation in disk.trace if operation.kind != "reserve"]
    expected = "create write write truncate sync mkdir replace sync_directory unlink"
    assert kinds == expected.split()


@pytest.mark.parametrize("model", MODELS)
def test_what_was_there_at_the_start_is_durable(model, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old").write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    [state] = CrashDisk(str(tmp_path)).states(model)
    assert state.files == {"sub/old": b"old"}
    assert state.directories == ("empty", "sub")
    assert (state.step, state.marks) == (0, ())
    assert str(state) == f"{model}: power cut before the first step: everything kept"


def test_descriptors_on_one_file_share_its_sync(disk):
    writing = make(disk, "a", close=False)
    syncing = disk.open(path(disk, "a"), os.O_RDWR)
    disk.write(writing, b"data")
    disk.replace(path(disk, "a"), path(disk, "b"))
    disk.sync(syncing)
    disk.close(writing)
    disk.close(syncing)
    assert possible(disk, "strict") == [{"b": b"data"}, {"a": b"data"}]


def test_an_unlinked_open_file_is_not_the_new_one_of_its_name(disk):
    old = make(disk, "a", b"old", close=False)
    disk.unlink(path(disk, "a"))
    disk.sync_directory(disk.directory)
    make(disk, "a", b"new")
    disk.write(old, b" and gone")
    disk.sync(old)
    disk.close(old)
    disk.verify()
    for model in MODELS:
        assert possible(disk, model) == [{"a": b"new"}]


@pytest.mark.parametrize("model", MODELS)
def test_a_rename_leaves_the_old_or_the_new(model, disk):
    make(disk, "a", b"old")
    make(disk, "a.tmp", b"new")
    disk.replace(path(disk, "a.tmp"), path(disk, "a"))
    states = possible(disk, model)
    assert len(states) == 2
    assert {"a": b"new"} in states
    assert {"a": b"old", "a.tmp": b"new"} in states


def test_truncating_at_open(disk):
    make(disk, "a", b"old")
    disk.close(disk.open(path(disk, "a"), os.O_WRONLY | os.O_TRUNC))
    for model in MODELS:
        assert sorted(state["a"] for state in possible(disk, model)) == [b"", b"old"]


def test_an_unsynced_write_may_tear_at_a_sector_and_anywhere(disk):
    fd = make(disk, "a", b"x" * 100, close=False)
    disk.write(fd, b"y" * 2000)
    disk.close(fd)
    for model in MODELS:
        lengths = {len(state["a"].rstrip(b"\0")) for state in possible(disk, model)}
        assert {100, 512, 2048, 2099, 2100} <= lengths
        assert any(length % 512 for length in lengths - {100, 2099, 2100})


def test_a_later_write_may_survive_an_earlier_one_except_on_ext4(disk):
    fd = make(disk, "a", close=False)
    disk.write(fd, b"one")
    disk.write(fd, b"two")
    disk.close(fd)
    hole = {"a": b"\0\0\0two"}
    assert hole in possible(disk, "strict")
    assert hole not in possible(disk, "ext4")
    assert {"a": b"one\0\0\0"} in possible(disk, "ext4")
    assert {"a": b"\0\0\0\0\0\0"} in possible(disk, "ext4")


def test_stale_bytes_of_another_file_only_in_weak(disk):
    make(disk, "old", b"RECORD")
    make(disk, "new", b"record", sync=False)
    assert {"old": b"RECORD", "new": b"RECORD"} in possible(disk, "weak")
    assert {"old": b"RECORD", "new": b"RECORD"} not in possible(disk, "strict")


def test_an_overwrite_leaves_old_and_new_bytes_and_no_others(disk):
    make(disk, "a", b"o" * 1024)
    fd = disk.open(path(disk, "a"), os.O_RDWR)
    disk.pwrite(fd, b"n" * 1024, 0)
    disk.close(fd)
    for model in MODELS:
        states = {state["a"] for state in possible(disk, model)}
        assert {b"o" * 1024, b"n" * 1024, b"n" * 512 + b"o" * 512} <= states
        assert {byte for state in states for byte in state} == set(b"on")
        assert (b"o" * 512 + b"n" * 512 in states) == (model == "weak")
        assert (len(states) > 3) == (model != "ext4")


def test_ext4_commits_names_in_order_and_with_a_sync_of_what_grew(disk):
    make(disk, "a", b"1", sync=False)
    make(disk, "b", b"1", sync=False)
    names = {tuple(sorted(state)) for state in possible(disk, "ext4")}
    assert names == {(), ("a",), ("a", "b")}
    assert ("b",) in {tuple(sorted(state)) for state in possible(disk, "strict")}
    fd = disk.open(path(disk, "b"), APPEND)
    disk.sync(fd)
    disk.close(fd)
    assert {tuple(sorted(state)) for state in possible(disk, "ext4")} == {("a", "b")}


def test_ext4_commits_nothing_with_a_sync_after_an_overwrite(disk):
    make(disk, "a", b"old")
    make(disk, "name", sync=False)
    fd = disk.open(path(disk, "a"), os.O_RDWR)
    disk.pwrite(fd, b"new", 0)
    disk.sync(fd)
    disk.close(fd)
    assert possible(disk, "ext4") == [{"a": b"new", "name": b""}, {"a": b"new"}]


def test_ext4_has_data_after_a_truncation_only_with_it(disk):
    fd = make(disk, "a", b"abcdef", close=False)
    disk.truncate(fd, 3)
    disk.write(fd, b"XY")
    disk.close(fd)
    for model in MODELS:
        contents = {state["a"] for state in possible(disk, model)}
        assert {b"abcdef", b"abc", b"abcXY"} <= contents
        assert (b"abcXYf" in contents) == (model != "ext4")


def test_a_new_directory_needs_the_sync_of_its_parent(disk):
    disk.mkdir(path(disk, "sub"))
    make(disk, "sub/a", b"1")
    assert {} in possible(disk, "strict")
    disk.sync_directory(disk.directory)
    assert possible(disk, "strict") == [{"sub/a": b"1"}]


def test_preallocated_bytes_are_zeros_until_synced_data_is_there(disk):
    fd = disk.open(path(disk, "a"), os.O_RDWR | os.O_CREAT)
    disk.reserve(fd, 4)
    if os.fstat(fd).st_size:
        disk.sync(fd)
        disk.sync_directory(disk.directory)
        disk.pwrite(fd, b"data", 0)
        assert {b"\0\0\0\0", b"data"} <= {state["a"] for state in possible(disk, "ext4")}
    disk.close(fd)


def test_marks_say_what_had_returned(disk):
    disk.mark("start")
    fd = make(disk, "a", close=False)
    disk.write(fd, b"1")
    disk.sync(fd)
    disk.mark("put 1")
    disk.close(fd)
    states = list(disk.states("strict"))
    assert {state.marks for state in states} == {("start",), ("start", "put 1")}
    assert [state.files for state in states if state.marks[-1] == "put 1"] == [{"a": b"1"}]


@pytest.mark.parametrize("model", MODELS)
def test_states_are_the_same_each_time_and_differ_from_each_other(model, tmp_path):
    disk = CrashDisk(str(tmp_path))
    toy_workload("no sync of data")(disk)
    states = list(disk.states(model))
    assert states == list(disk.states(model))
    assert [state.step for state in states] == sorted(state.step for state in states)
    contents = {(*sorted(state.files.items()), state.marks) for state in states}
    assert len(contents) == len(states)
    assert len({(state.digest, state.marks) for state in states}) == len(states)
    assert [state.files for state in disk.states(model, seed=1)] != [state.files for state in states]


@pytest.mark.parametrize("model", MODELS)
def test_many_pending_operations_are_sampled_with_the_extremes(model, disk):
    fd = disk.open(path(disk, "a"), APPEND)
    data = [b"%03d" % number for number in range(40)]
    for piece in data:
        disk.write(fd, piece)
    disk.close(fd)
    disk.mark("end")
    states = last(disk, model, limit=50)
    assert 20 < len(states) <= 50
    assert {"a": b"".join(data)} in states
    if model != "ext4":
        assert {"a": b"".join([*data[:35], b"\0\0\0", *data[36:]])} in states
        assert {"a": bytes(39 * 3) + data[39]} in states
    with pytest.raises(ValueError, match="limit"):
        list(disk.states(model, limit=1))


def test_a_random_workload_ends_as_the_directory_looks(disk):
    choose = random.Random(7)
    for _ in range(300):
        name = path(disk, choose.choice("abc"))
        if not os.path.exists(name) or choose.random() < 0.7:
            fd = disk.open(name, choose.choice((APPEND, APPEND | os.O_TRUNC, os.O_RDWR | os.O_CREAT)))
            disk.write(fd, bytes(choose.choices(b"xyz", k=choose.randrange(9))))
            choose.choice((lambda fd: None, disk.sync, lambda fd: disk.truncate(fd, 5)))(fd)
            disk.close(fd)
        elif choose.random() < 0.5:
            disk.unlink(name)
        else:
            disk.replace(name, path(disk, choose.choice("def")))
    disk.verify()
    with open(path(disk, "a"), "ab") as file:
        file.write(b"behind its back")
    with pytest.raises(RuntimeError, match=r"other means than the disk that records: a$"):
        disk.verify()


def test_threads_are_recorded_one_after_the_other(disk):
    fd = make(disk, "a", close=False)

    def write(letter: bytes) -> None:
        for _ in range(50):
            disk.write(fd, letter * 7)
            disk.sync(fd)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.close(fd)
    disk.verify()


def test_only_the_recorded_directory_is_written(disk, tmp_path):
    outside = str(tmp_path / "outside")
    with pytest.raises(ValueError, match="below the recorded directory"):
        disk.open(outside, APPEND)
    with pytest.raises(ValueError, match="below the recorded directory"):
        disk.mkdir(outside)
    make(disk, "a")
    with pytest.raises(ValueError, match="below the recorded directory"):
        disk.replace(path(disk, "a"), outside)
    disk.mkdir(path(disk, "sub"))
    with pytest.raises(ValueError, match="is a directory"):
        disk.replace(path(disk, "sub"), path(disk, "other"))
    with pytest.raises(ValueError, match="not opened through"):
        disk.lose(0x7FFF)
    disk.sync_directory(str(tmp_path))
    (tmp_path / "d" / "stranger").touch()
    with pytest.raises(RuntimeError, match="by other means"):
        disk.open(path(disk, "stranger"), os.O_RDONLY)


def test_an_unknown_model_is_refused(disk):
    with pytest.raises(ValueError, match="ext4"):
        next(disk.states("xfs"))


def test_a_state_is_written_once(tmp_path):
    state = CrashState(0, "", {"sub/a": b"1"}, directories=("sub",))
    state.materialize(str(tmp_path / "new"))
    assert (tmp_path / "new" / "sub" / "a").read_bytes() == b"1"
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileExistsError):
        state.materialize(str(tmp_path))


# FaultyDisk.


@pytest.fixture
def faulty():
    return FaultyDisk()


@pytest.fixture
def fd(faulty, tmp_path):
    fd = faulty.open(str(tmp_path / "a.log"), APPEND)
    yield fd
    faulty.heal()
    faulty.close(fd)


def code_of(function, *arguments) -> int | None:
    with pytest.raises(OSError, match=r"^\[Errno \d+\] ") as caught:
        function(*arguments)
    return caught.value.errno


def test_calls_are_counted_and_pass_through(faulty, fd, tmp_path):
    faulty.write(fd, b"1")
    faulty.sync(fd)
    faulty.sync(fd)
    assert faulty.calls == {"open": 1, "write": 1, "sync": 2}
    assert faulty.size(fd, 0, os.SEEK_END) == 1
    assert (tmp_path / "a.log").read_bytes() == b"1"


@pytest.mark.parametrize("call", CALLS)
def test_every_call_can_fail(call, faulty, tmp_path):
    name, fd = str(tmp_path / "a"), 0
    arguments = {
        "open": (name, APPEND),
        "read": (fd, 1, 0),
        "write": (fd, b""),
        "pwrite": (fd, b"", 0),
        "truncate": (fd, 0),
        "reserve": (fd, 1),
        "sync_directory": (str(tmp_path),),
        "replace": (name, name),
        "unlink": (name,),
        "mkdir": (name,),
        "flock": (fd, 2),
    }.get(call, (fd,))
    fault = faulty.fail(call)
    assert code_of(getattr(faulty, call), *arguments) == errno.EIO
    assert fault.fired == faulty.calls[call] == 1
    assert os.listdir(tmp_path) == []


def test_the_nth_call_fails_and_the_next_does_not(faulty, fd):
    faulty.write(fd, b"before")
    fault = faulty.fail("write", at=2, error=errno.ENOSPC, times=2)
    assert faulty.write(fd, b"1") == 1
    assert code_of(faulty.write, fd, b"2") == errno.ENOSPC
    assert code_of(faulty.write, fd, b"3") == errno.ENOSPC
    assert faulty.write(fd, b"4") == 1
    assert (fault.seen, fault.fired) == (4, 2)


def test_a_call_fails_for_ever_until_healed(faulty, fd):
    faulty.fail("sync", times="forever")
    assert [code_of(faulty.sync, fd) for _ in range(5)] == [errno.EIO] * 5
    faulty.heal()
    faulty.sync(fd)


def test_a_path_chooses_the_calls(faulty, fd, tmp_path):
    other = faulty.open(str(tmp_path / "b.tmp"), APPEND)
    written = faulty.fail("write", path="*.tmp")
    renamed = faulty.fail("replace", path="*/c", effect="after")
    faulty.write(fd, b"1")
    assert code_of(faulty.write, other, b"1") == errno.EIO
    faulty.close(other)
    assert code_of(faulty.replace, str(tmp_path / "b.tmp"), str(tmp_path / "c")) == errno.EIO
    assert (written.seen, renamed.seen) == (1, 1)
    assert (tmp_path / "c").exists()


def test_a_short_write_and_a_short_read(faulty, tmp_path):
    fd = faulty.open(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    faulty.fail("write", short=3)
    faulty.fail("pwrite", short=2)
    faulty.fail("read", short=1)
    assert faulty.write(fd, b"12345") == 3
    assert faulty.pwrite(fd, b"abcd", 1) == 2
    assert faulty.read(fd, 10, 0) == b"1"
    assert faulty.read(fd, 10, 0) == b"1ab"
    faulty.close(fd)


def test_a_write_may_fail_after_it_happened(faulty, fd, tmp_path):
    faulty.fail("write", effect="after")
    assert code_of(faulty.write, fd, b"there") == errno.EIO
    assert (tmp_path / "a.log").read_bytes() == b"there"


def test_an_open_that_fails_afterwards_leaks_nothing(faulty, tmp_path):
    faulty.fail("open", effect="after")
    assert code_of(faulty.open, str(tmp_path / "a"), APPEND) == errno.EIO
    assert (tmp_path / "a").exists()
    assert faulty.calls == {"open": 1}


def test_a_hook_sees_the_arguments_and_may_interrupt(faulty, fd, tmp_path):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    seen: list[object] = []
    faulty.on("write", lambda *arguments: seen.append(arguments), times="forever", effect="after")
    hook = faulty.on("write", interrupt, at=2)
    faulty.write(fd, b"1")
    with pytest.raises(KeyboardInterrupt):
        faulty.write(fd, b"2")
    assert seen == [(fd, b"1")]
    assert hook.fired == 1
    assert (tmp_path / "a.log").read_bytes() == b"1"


def test_a_hook_may_kill_the_process(tmp_path):
    program = (
        "import os, sys\n"
        "from persistcoll.testing.faults import FaultyDisk\n"
        "disk = FaultyDisk()\n"
        "disk.on('sync', lambda fd: os._exit(3), at=2)\n"
        f"fd = disk.open(sys.argv[1], {APPEND})\n"
        "for number in b'123':\n"
        "    disk.write(fd, bytes([number]))\n"
        "    disk.sync(fd)\n"
    )
    name = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", program, str(name)], timeout=60, check=False)
    assert done.returncode == 3
    assert name.read_bytes() == b"12"


def test_a_full_disk_writes_what_fits_and_takes_more_when_it_has_room(faulty, fd, tmp_path):
    faulty.full(10)
    assert faulty.write(fd, b"x" * 8) == 8
    assert faulty.write(fd, b"y" * 8) == 2
    assert code_of(faulty.write, fd, b"z") == errno.ENOSPC
    assert faulty.write(fd, b"") == 0
    faulty.room(1)
    assert faulty.write(fd, b"zz") == 1
    faulty.heal()
    assert faulty.write(fd, b"many") == 4
    assert (tmp_path / "a.log").read_bytes() == b"xxxxxxxxyyzmany"
    with pytest.raises(ValueError, match="no limit"):
        faulty.room(1)


def test_a_full_disk_still_overwrites(faulty, tmp_path):
    fd = faulty.open(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    faulty.write(fd, b"12345678")
    faulty.full(2)
    assert faulty.pwrite(fd, b"abc", 0) == 3
    assert faulty.pwrite(fd, b"abcde", 6) == 4
    assert code_of(faulty.pwrite, fd, b"z", 12) == errno.ENOSPC
    assert code_of(faulty.truncate, fd, 11) == errno.ENOSPC
    assert code_of(faulty.reserve, fd, 11) == errno.ENOSPC
    assert faulty.read(fd, 20, 0) == b"abc456abcd"
    faulty.close(fd)


def test_a_full_disk_gets_bytes_back(faulty, fd, tmp_path):
    faulty.full(8)
    other = faulty.open(str(tmp_path / "b"), APPEND)
    faulty.write(fd, b"1234")
    faulty.write(other, b"5678")
    faulty.truncate(fd, 1)
    assert faulty.write(fd, b"abcdef") == 3
    faulty.close(other)
    faulty.unlink(str(tmp_path / "b"))
    assert faulty.write(fd, b"abcdef") == 4
    other = faulty.open(str(tmp_path / "a.log"), APPEND | os.O_TRUNC)
    assert faulty.write(other, b"123456789") == 8
    faulty.close(other)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not unlink open files")
def test_a_full_disk_gets_an_open_file_back_when_it_is_closed(faulty, tmp_path):
    name, target = str(tmp_path / "a"), str(tmp_path / "b")
    first, second = faulty.open(name, APPEND), faulty.open(name, APPEND)
    faulty.full(8)
    faulty.write(first, b"12345678")
    faulty.close(faulty.open(target, APPEND))
    faulty.replace(target, name)
    new = faulty.open(name, APPEND)
    faulty.close(first)
    assert code_of(faulty.write, new, b"x") == errno.ENOSPC
    faulty.close(second)
    assert faulty.write(new, b"123456789") == 8
    faulty.close(new)


@pytest.mark.parametrize(
    "arguments",
    [
        {"call": "fsync"},
        {"call": "write", "at": 0},
        {"call": "write", "times": 0},
        {"call": "sync", "short": 1},
        {"call": "write", "short": -1},
        {"call": "sync", "effect": "lost"},
    ],
    ids=str,
)
def test_orders_that_make_no_sense_are_refused(arguments, faulty):
    with pytest.raises(ValueError, match=r"\w"):
        faulty.fail(**arguments)


# Both.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("retries", [True, False])
def test_a_sync_that_is_retried_after_it_failed_loses_data(retries, model, tmp_path):
    """The finding of ATC 2020: the second fsync succeeds, and means nothing."""

    def workload(disk: CrashDisk) -> None:
        faulty = FaultyDisk(disk)
        toy = Toy(faulty, disk.directory)
        disk.mark(f"put {toy.put()}")
        fault = faulty.fail("sync", effect="lost")
        assert code_of(toy.put) == errno.EIO
        if retries:
            faulty.sync(toy.fd)
            disk.mark("put 1")
        toy.close()
        assert fault.fired == 1

    found = explore(workload, check, model, str(tmp_path), recover=recover)
    assert bool(found.violations) == retries, found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rolls_back", [True, False])
def test_a_short_write_that_is_not_rolled_back_hides_what_follows(rolls_back, model, tmp_path):
    def workload(disk: CrashDisk) -> None:
        faulty = FaultyDisk(disk)
        toy = Toy(faulty, disk.directory)
        disk.mark(f"put {toy.put()}")
        good = os.fstat(toy.fd).st_size
        faulty.full(20)
        with pytest.raises(AssertionError):
            toy.put()
        if rolls_back:
            faulty.truncate(toy.fd, good)
        faulty.heal()
        disk.mark(f"put {toy.put()}")
        toy.close()

    found = explore(workload, check, model, str(tmp_path), recover=recover)
    assert bool(found.violations) != rolls_back, found
