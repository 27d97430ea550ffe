"""What once made a log lose, skip or refuse something: each test shows one defect that was mended."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone

import pytest

from persistcoll import Consumer, LockedError, Log, StoreReplacedError, TrimmedError
from persistcoll.engine.log_core import ConsumerCore
from persistcoll.journal.log_cursor import JournalLogCursor, LogParts
from persistcoll.journal.log_store import JournalLogStore
from persistcoll.journal.log_trim import LogTrim
from persistcoll.journal.places import Places
from persistcoll.journal.tail import Tail
from persistcoll.testing.faults import FaultyDisk
from tests.crash.test_fork import fork, succeeded
from tests.interrupting import interruptions
from tests.leaks import open_below


def _in_another_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def _at_commit(monkeypatch, consumer, before=None, after=None):
    """Make the next commit of the cursor call these functions before and after it."""
    cursor = consumer._core.cursor
    original = cursor.commit

    def commit(*arguments):
        monkeypatch.undo()
        if before is not None:
            before()
        original(*arguments)
        if after is not None:
            after()

    monkeypatch.setattr(cursor, "commit", commit)


def test_a_commit_that_ends_after_a_seek_back_has_no_effect_on_later_ones(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(10)
        _at_commit(monkeypatch, consumer, after=lambda: _in_another_thread(lambda: consumer.seek("first")))
        consumer.commit()
        with consumer.receive() as item:
            assert item == 1
        assert consumer.position == 1


def test_a_commit_does_not_undo_a_seek_that_overtakes_it(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(5)
        _at_commit(monkeypatch, consumer, before=lambda: _in_another_thread(lambda: consumer.seek("first")))
        consumer.commit()
        assert consumer.position == 0
        with consumer.receive() as item:
            assert item == 1
            _at_commit(
                monkeypatch, consumer, before=lambda: _in_another_thread(lambda: consumer.seek("first"))
            )
        assert consumer.position == 0
        assert consumer.get() == 1


def test_an_interrupted_seek_leaves_no_claims_behind(tmp_path, monkeypatch):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        consumer.get_many(5)

        def interrupted(core):
            raise KeyboardInterrupt

        monkeypatch.setattr(ConsumerCore, "_begin", interrupted)
        try:
            consumer.seek("first")
        except KeyboardInterrupt:
            monkeypatch.undo()
        consumer.commit()
        assert consumer.position == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_where_the_consumer_was_closed(tmp_path):
    """What the parent got, claimed and released is nothing to the child."""
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 11))
        consumer = log.consumer("reader")
        end, begin = os.pipe()
        consumer.get_many(2)
        receiving = consumer.receive()
        assert receiving.__enter__() == 3

        def child():
            os.close(begin)
            os.read(end, 1)  # until the parent has closed the consumer
            with consumer.receive() as item:
                assert item == 4
            assert consumer.position == 4
            consumer.get()
            consumer.commit()
            assert consumer.position == 5
            log.close()

        pid = fork(child)
        receiving.__exit__(None, None, None)
        consumer.close()
        os.close(begin)
        os.close(end)
        assert succeeded(pid)


def test_a_released_item_that_is_trimmed_is_no_end_of_the_log(tmp_path):
    with Log(tmp_path / "log") as log:
        log.extend(range(1, 4))
        consumer = log.consumer("reader")
        with pytest.raises(KeyError), consumer.receive() as item:
            raise KeyError(item)
        log.trim(2, force=True)
        with pytest.raises(TrimmedError):
            consumer.get(block=False)
        with pytest.raises(TrimmedError):
            list(consumer)
        consumer.seek("first")
        assert list(consumer) == [2, 3]


@pytest.fixture
def logs(tmp_path) -> Iterator[tuple[Log, Log]]:
    """Two objects on a log whose files have two items each, as two processes have it open."""
    with (
        Log(tmp_path / "log", chunksize=2, durability="process") as first,
        Log(tmp_path / "log", durability="process") as second,
    ):
        yield first, second


def _once(monkeypatch, kind, name, before=None, after=None):
    """Call these functions before and after the next call of the method."""
    original = getattr(kind, name)

    def method(*arguments, **options):
        monkeypatch.setattr(kind, name, original)
        if before is not None:
            before()
        result = original(*arguments, **options)
        if after is not None:
            after()
        return result

    monkeypatch.setattr(kind, name, method)


def _append_and_trim(log):
    """Leave two items, which have files of their own."""
    log.extend(range(7, 10))
    log.extend(range(10, 13))
    log.trim(log.last - 1)


def _reads(log):
    return {
        "len": lambda: len(log),
        "first": lambda: log.first,
        "last": lambda: log[-1],
        "read": log.read,
        "slice": lambda: log[-2:],
        "find": lambda: log._store.find(0.0),
    }


_AFTERWARDS = {"len": 2, "first": 11, "last": 12, "read": [11, 12], "slice": [11, 12], "find": 11}


@pytest.mark.parametrize("what", ["len", "first", "last", "read", "slice", "find"])
def test_what_is_trimmed_between_two_looks_is_seen_at_once(what, logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    _once(monkeypatch, LogTrim, "refresh", before=lambda: _append_and_trim(other))
    assert _reads(log)[what]() == _AFTERWARDS[what]


@pytest.mark.parametrize("what", ["read", "slice", "find"])
def test_a_file_that_is_trimmed_before_it_is_opened_is_no_damage(what, logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    _once(monkeypatch, LogParts, "reader", before=lambda: _append_and_trim(other))
    assert _reads(log)[what]() == _AFTERWARDS[what]


def test_a_file_that_is_trimmed_before_it_is_looked_through_is_no_damage(logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    _once(monkeypatch, Places, "chunk_of", after=lambda: _append_and_trim(other))
    assert log.read() == [11, 12]


def test_a_consumer_finds_its_place_when_the_file_before_it_is_trimmed(logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 3))
    with log.consumer("reader") as consumer:
        assert list(consumer) == [1, 2]
    with log.consumer("reader") as consumer:
        _once(monkeypatch, LogParts, "reader", before=lambda: _append_and_trim(other))
        assert consumer.get(block=False) == 7


def test_a_consumer_whose_file_is_trimmed_by_force_is_told_so(logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    with log.consumer("reader") as consumer:
        _once(monkeypatch, LogParts, "reader", before=lambda: other.trim(5, force=True))
        with pytest.raises(TrimmedError):
            consumer.get(block=False)


def test_a_file_that_is_finished_and_trimmed_during_a_look_is_not_replaced(logs, monkeypatch):
    log, other = logs
    log.append(1)
    other.append(2)
    _once(monkeypatch, Tail, "_read_new_frames", after=lambda: _append_and_trim(other))
    assert log.read() == [11, 12]


@pytest.mark.parametrize("call", ["get", "seek"])
def test_a_log_that_is_closed_frees_a_consumer_that_another_thread_uses(call, logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 4))
    consumer = log.consumer("reader")
    closer = threading.Thread(target=log.close)

    def close():
        closer.start()
        closer.join(0.2)  # the close waits for this call, or is over

    _once(monkeypatch, JournalLogCursor, "_fill" if call == "get" else "_seek", before=close)
    consumer.get() if call == "get" else consumer.seek(2)
    closer.join()
    with other.consumer("reader") as again:
        assert again.get() == (1 if call == "get" else 2)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_close_of_the_log_closes_its_consumers_in_good_order(durability, tmp_path):
    """Their commits are durable, and the next opening writes no cursor anew."""
    disk = FaultyDisk()
    with Log(tmp_path / "log", durability=durability, _disk=disk) as log:
        log.extend(range(1, 4))
        consumer = log.consumer("reader")
        consumer.get()
        consumer.commit()
        syncs = disk.calls["sync"]
    assert disk.calls["sync"] > syncs
    with Log(tmp_path / "log", durability=durability, _disk=disk) as log:
        syncs = disk.calls["sync"]
        consumer = log.consumer("reader")
        assert disk.calls["sync"] == syncs


@pytest.mark.parametrize("when", ["bounds", "nth", "records"])
def test_an_item_counted_from_the_end_is_there_whatever_is_trimmed_meanwhile(when, logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    _once(monkeypatch, JournalLogStore, when, before=lambda: _append_and_trim(other))
    assert log[-1] in (6, 12)
    _once(monkeypatch, JournalLogStore, when, after=lambda: _append_and_trim(other))
    assert log[-2] in (11, 12)


@pytest.mark.parametrize("place", ["last", datetime(9999, 1, 1, tzinfo=timezone.utc)])
def test_the_end_of_the_log_is_never_trimmed(place, logs, monkeypatch):
    log, other = logs
    log.extend(range(1, 7))
    _once(monkeypatch, Log, "_id_at", after=lambda: _append_and_trim(other))
    with log.consumer("reader", place) as consumer:
        assert consumer.lag == 0
        consumer.seek("first")
        _once(monkeypatch, Log, "_id_at", after=lambda: (other.extend("ab"), other.trim(99, force=True)))
        consumer.seek(place)
        assert consumer.lag == 0


def test_an_interrupted_look_at_what_was_trimmed_is_repeated(tmp_path):
    names = map(str, itertools.count())
    with ExitStack() as logs:

        def prepare():
            path = tmp_path / next(names)
            log, other = (logs.enter_context(Log(path, chunksize=2, durability="process")) for _ in range(2))
            log.extend(range(1, 7))
            assert len(log) == 6
            _append_and_trim(other)
            return log

        for log, where in interruptions(prepare, len, files={"cursors.py"}):
            assert log.read() == [11, 12], where


@pytest.mark.long
def test_an_interrupted_opening_leaves_no_consumer_open(tmp_path):
    numbers = itertools.count()
    with Log(tmp_path / "log", durability="process") as log:

        def prepare():
            return f"reader {next(numbers)}"

        def call(name):
            log.consumer(name)

        for name, where in interruptions(prepare, call, step=7):
            gc.collect()
            try:
                log.consumer(name).close()
            except LockedError:
                pytest.fail(where)


@pytest.mark.long
def test_an_interrupted_close_of_a_consumer_can_be_repeated(tmp_path):
    numbers = itertools.count()
    with Log(tmp_path / "log", durability="process") as log:
        log.append(1)

        def prepare():
            consumer = log.consumer(f"reader {next(numbers)}")
            consumer.get()
            return consumer

        assert len(log) == 1
        before = len(open_below(tmp_path))
        for consumer, where in interruptions(prepare, Consumer.close):
            consumer.close()
            assert len(open_below(tmp_path)) == before, where


def test_what_is_no_position_is_called_so(logs):
    log, _ = logs
    log.extend(range(1, 4))
    consumer = log.consumer("reader")
    with pytest.raises(ValueError, match="ends at 3, before 4"):
        consumer.commit(4)
    for place in (0, -1):
        with pytest.raises(ValueError, match="begin at 1"):
            consumer.seek(place)
        with pytest.raises(ValueError, match="begin at 1"):
            log.consumer("new", place)
    log.trim(3, force=True)
    consumer.commit(1)  # what was trimmed can be committed
    assert consumer.position == 1


def test_a_name_that_could_not_be_read_again_is_refused(logs):
    log, other = logs
    log.append(1)
    longest = "é" * (1 << 19)
    with log.consumer(longest, "last") as consumer:
        assert consumer.position == 1
    assert other.consumers() == {longest: (1, 0)}
    for call in (log.consumer, log.forget):
        with pytest.raises(ValueError, match="1048576 bytes at most"):
            call(longest + "a")


def test_a_late_commit_does_not_make_a_rewound_cursor_durable_ahead(tmp_path):
    """A thread that wrote before a rewind may note its ticket after it."""
    disk = FaultyDisk()
    with Log(tmp_path / "log", _disk=disk) as log, log.consumer("reader") as consumer:
        log.extend(range(20))
        consumer.get_many(10)
        consumer.commit()
        cursor = consumer._core.cursor._cursor  # type: ignore[attr-defined]
        ticket = cursor._ticket()
        consumer.seek("first")
        cursor._synced.written = ticket
        cursor._synced.commit(ticket)
        for _ in range(3):
            consumer.get()
            syncs = disk.calls["sync"]
            consumer.commit()
            assert disk.calls["sync"] == syncs + 1


def test_a_consumer_waits_for_a_lock_that_is_held_for_a_moment(tmp_path, monkeypatch):
    """A process that forgets the consumer holds its lock, and has no process id in its file."""
    with Log(tmp_path / "log") as log:
        log.consumer("reader").close()
        (path,) = (tmp_path / "log").glob("consumer-*.lock")
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
            log.consumer("reader").close()


def test_a_consumer_whose_files_were_removed_rewinds_no_other(logs):
    log, other = logs
    log.extend(range(1, 6))
    first = log.consumer("reader")
    first.get_many(3)
    first.commit()
    for name in os.listdir(log.path):
        if name.startswith("consumer-"):
            os.unlink(os.path.join(log.path, name))
    second = other.consumer("reader")
    second.get_many(2)
    second.commit()
    with pytest.raises(StoreReplacedError):
        first.seek("first")
    assert (second.position, other.consumers()["reader"].position) == (2, 2)
