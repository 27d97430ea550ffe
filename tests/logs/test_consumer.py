"""What a ``Consumer`` of a log does: getting, committing, seeking, and how many objects have it open."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from persistcoll import (
    ClosedError,
    DecodeError,
    Empty,
    LockedError,
    Log,
    TrimmedError,
)
from persistcoll.testing.children import in_forked_child, run_threads
from tests.logs import workers
from tests.logs.workers import remote_log
from tests.queues.test_lifecycle import Picky
from tests.queues.waits import until, waiting

AT_ONCE = 0.5
"""Seconds. A loaded machine is slow, but a lost wake-up would take forever."""


def drain(consumer) -> list[Any]:
    found: list[Any] = []
    with contextlib.suppress(Empty):
        while True:
            found.append(consumer.get(False))
    return found


def someone_waits(log) -> bool:
    return bool(log._appended._wakes)


# Getting.


def test_get_and_get_many(open_log):
    log = open_log(chunksize=3)
    for number in range(10):
        log.append(number)
    with log.consumer("c") as consumer:
        assert consumer.name == "c"
        assert [consumer.get(), consumer.get(timeout=0), consumer.get(block=False)] == [0, 1, 2]
        assert consumer.get_many(1) == [3]
        found: list[Any] = []
        while len(found) < 6:
            batch = consumer.get_many(4)
            assert 1 <= len(batch) <= 4
            found += batch
        assert found == [4, 5, 6, 7, 8, 9]
        for empty in (
            partial(consumer.get, False),
            partial(consumer.get, timeout=0),
            partial(consumer.get, timeout=0.01),
            partial(consumer.get_many, 3, False),
            partial(consumer.get_many, 3, timeout=0.01),
            consumer.receive(False).__enter__,
            consumer.receive(timeout=0.01).__enter__,
        ):
            with pytest.raises(Empty):
                empty()
        assert list(consumer) == []
        assert consumer.position == 0
        log.append(None)
        assert consumer.get() is None


@pytest.mark.parametrize("wrong", [-1, -0.001, float("-inf"), float("nan")])
def test_a_timeout_below_zero_is_refused(log, wrong):
    log.append(1)
    with log.consumer("c") as consumer:
        for call in (
            partial(consumer.get, timeout=wrong),
            partial(consumer.get_many, 1, timeout=wrong),
            consumer.receive(timeout=wrong).__enter__,
        ):
            with pytest.raises(ValueError, match="timeout"):
                call()
        assert consumer.get() == 1


def test_arguments_of_other_types_are_refused(log):
    log.append(1)
    with log.consumer("c") as consumer:
        for wrong in (None, 1.5, "1", True, object()):
            with pytest.raises(TypeError, match="n"):
                consumer.get_many(wrong)
            if wrong is not None:
                with pytest.raises(TypeError, match="position"):
                    consumer.commit(wrong)
        for wrong in ("1", b"1", [], object()):
            for call in (consumer.get, partial(consumer.get_many, 1), consumer.receive):
                with pytest.raises(TypeError, match="timeout"), contextlib.ExitStack() as stack:
                    stack.enter_context(call(timeout=wrong))
        for number in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                consumer.get_many(number)
        for wrong in (None, 1.5, b"first", True, object()):
            with pytest.raises(TypeError, match="'first', 'last', a position or a datetime"):
                consumer.seek(wrong)
        with pytest.raises(ValueError, match="'first', 'last', a position or a datetime, not 'middle'"):
            consumer.seek("middle")
        assert (consumer.get(), consumer.position) == (1, 0)
    for wrong in (None, 5, b"c", object()):
        with pytest.raises(TypeError, match="'name' must be a str"):
            log.consumer(wrong)
        with pytest.raises(TypeError, match="'name' must be a str"):
            log.forget(wrong)
    assert list(log.consumers()) == ["c"]


def test_a_get_waits_for_the_time_that_it_is_given(log):
    with log.consumer("c") as consumer:
        for call in (consumer.get, partial(consumer.get_many, 5)):
            began = time.monotonic()
            with pytest.raises(Empty):
                call(timeout=0.05)
            assert 0.05 <= time.monotonic() - began < 2


@pytest.mark.parametrize("way", ["get", "get_many", "receive", "follow"])
def test_an_append_wakes_a_waiting_thread_at_once(open_log, way):
    log, other = open_log(), open_log()
    with log.consumer("c") as consumer, contextlib.ExitStack() as blocks:
        calls: dict[str, Any] = {
            "get": consumer.get,
            "get_many": lambda: consumer.get_many(5)[0],
            "receive": lambda: blocks.enter_context(consumer.receive()),
            "follow": consumer.follow().__next__,
        }
        for appender in (log, other):
            finish = waiting(lambda: (calls[way](), time.monotonic()))
            until(lambda: someone_waits(log))
            began = time.monotonic()
            appender.append("item")
            item, ended = finish()
            assert item == "item"
            assert ended - began < AT_ONCE
            del finish


def test_extend_wakes_every_thread_that_waits(log):
    with log.consumer("c") as consumer, log.consumer("d") as other:
        waits = [waiting(each.get) for each in (consumer, consumer, consumer, other)]
        until(lambda: len(log._appended._wakes) == 4)
        log.extend("abc")
        assert sorted(wait() for wait in waits) == ["a", "a", "b", "c"]


def test_an_append_of_another_process_wakes_a_follower_at_once(log, tmp_path):
    with remote_log(tmp_path / "log") as remote, log.consumer("c") as consumer:
        items = consumer.follow()
        for number in range(3):
            finish = waiting(lambda: (next(items), time.monotonic()))
            until(lambda: someone_waits(log))
            began = remote.run(workers.append, number)
            item, ended = finish()
            assert item == number
            assert ended - began < AT_ONCE


def test_an_append_here_wakes_a_follower_in_another_process(log, tmp_path):
    with remote_log(tmp_path / "log") as remote:
        remote.start(workers.wait_for_items, "c", 3)
        assert remote.told() == "follows"
        times = []
        for number in range(3):
            log.append(number)
            times.append(time.monotonic())
        found = remote.result()
        assert [item for item, _ in found] == [0, 1, 2]
        assert all(came - began < AT_ONCE for (_, came), began in zip(found, times, strict=True))
    assert log.consumers() == {"c": (2, 1)}  # the item at which the iteration was left is not committed


# Committing.


def test_an_iteration_commits_an_item_when_the_next_one_is_asked_for(log):
    log.extend("abc")
    with log.consumer("c") as consumer:
        positions = [(item, consumer.position) for item in consumer]
        assert positions == [("a", 0), ("b", 1), ("c", 2)]
        assert consumer.position == 3
        log.extend("de")
        for item in consumer:
            assert item == "d"
            break
        assert consumer.position == 3
        assert consumer.get() == "e"  # "d" has been got
        consumer.commit()
        assert consumer.position == 5
    with log.consumer("c") as consumer:
        assert list(consumer) == []


def test_an_iteration_that_raises_has_got_its_item_and_does_not_commit_it(log):
    log.extend("abc")
    with log.consumer("c") as consumer:
        with pytest.raises(RuntimeError):  # noqa: PT012
            for item in consumer:
                if item == "b":
                    raise RuntimeError
        assert consumer.position == 1
    with log.consumer("c") as consumer:
        assert list(consumer) == ["b", "c"]


def test_receive_commits_if_its_block_ends_well(log):
    log.extend("abc")
    with log.consumer("c") as consumer:
        with consumer.receive() as item:
            assert (item, consumer.position) == ("a", 0)
        assert consumer.position == 1
        for _ in range(3):
            with pytest.raises(RuntimeError), consumer.receive() as item:  # noqa: PT012
                assert item == "b"
                raise RuntimeError
            assert consumer.position == 1
        assert drain(consumer) == ["b", "c"]


def test_receives_within_each_other(log):
    log.extend("abcd")
    with log.consumer("c") as consumer:
        with consumer.receive() as first:
            with consumer.receive() as second:
                pass
            assert (first, second, consumer.position) == ("a", "b", 0)
            with pytest.raises(RuntimeError), consumer.receive():
                raise RuntimeError
        assert consumer.position == 2
        assert drain(consumer) == ["c", "d"]


def test_a_released_item_comes_before_later_ones(log):
    log.extend("abc")
    with log.consumer("c") as consumer:
        with pytest.raises(RuntimeError), consumer.receive():  # noqa: PT012
            assert consumer.get() == "b"
            raise RuntimeError
        consumer.commit()
        assert consumer.position == 0  # "a" is to come again
        assert drain(consumer) == ["a", "c"]
        consumer.commit()
        assert consumer.position == 3


def test_commit(log):
    log.extend(range(1, 11))
    with log.consumer("c") as consumer:
        consumer.commit()
        assert consumer.position == 0
        assert consumer.get_many(4) == [1, 2, 3, 4]
        consumer.commit(2)
        assert (consumer.position, consumer.lag) == (2, 8)
        for earlier in (2, 1, 0, -5):
            consumer.commit(earlier)
            assert consumer.position == 2
        consumer.commit()
        assert consumer.position == 4
        for beyond in (11, 2**64):
            with pytest.raises(ValueError, match="the log ends at 10"):
                consumer.commit(beyond)
        consumer.commit(7)
        assert (consumer.position, consumer.get()) == (7, 5)  # a commit moves no reading place
    with log.consumer("c") as consumer:
        assert drain(consumer) == [8, 9, 10]


def test_what_is_not_committed_comes_again(open_log):
    log = open_log(chunksize=2)
    for number in range(6):
        log.append(number)
    for expected in ([0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [4, 5], []):
        with log.consumer("c") as consumer:
            assert drain(consumer) == expected
            if expected:
                consumer.commit(consumer.position + 2)
        log.close()
        log = open_log()


def test_positions_and_lag_of_all_consumers(open_log, tmp_path):
    log = open_log()
    log.extend(range(5))
    with log.consumer("b") as one, log.consumer("a", 3) as other:
        one.commit(1)
        assert log.consumers() == {"a": (2, 3), "b": (1, 4)}
        assert list(log.consumers()) == ["a", "b"]
        state = log.consumers()["b"]
        assert (state.position, state.lag) == (one.position, one.lag) == (1, 4)
        with remote_log(tmp_path / "log") as remote:
            remote.run(workers.append, 5)
        assert (one.lag, other.lag) == (5, 4)
        log.trim(3, force=True)
        assert (one.position, one.lag, other.lag) == (1, 4, 4)
        one.seek("last")
        assert one.lag == 0
        assert log.consumers() == {"a": (2, 4), "b": (6, 0)}


# Seeking.


def test_seek(open_log):
    log = open_log(chunksize=3)
    for number in range(1, 11):
        log.append(number)
    with log.consumer("c") as consumer:
        for place, expected in (("first", 1), (5, 5), (10, 10), (1, 1), (7, 7)):
            consumer.seek(place)
            assert (consumer.position, consumer.get()) == (expected - 1, expected)
        for place in ("last", 11):
            consumer.seek(place)
            assert (consumer.position, drain(consumer)) == (10, [])
        log.append(11)
        assert drain(consumer) == [11]
        for place in (13, 2**64):
            with pytest.raises(ValueError, match="the log ends at 11"):
                consumer.seek(place)
        log.trim(5, force=True)
        for place in (1, 4):
            with pytest.raises(TrimmedError) as caught:
                consumer.seek(place)
            assert caught.value.first == 5
        for place in (0, -3):
            with pytest.raises(ValueError, match="begin at 1"):
                consumer.seek(place)
        consumer.seek("first")
        assert consumer.get_many(2) == [5, 6]
    with log.consumer("c") as consumer:
        assert (consumer.position, consumer.get()) == (4, 5)


def test_where_a_new_consumer_starts(open_log, clock):
    log = open_log(chunksize=2)
    for number in range(1, 7):
        log.append(number)
        clock.now += 10
    moment = datetime.fromtimestamp(clock.now - 25, timezone.utc)
    places = {"first": 1, "last": None, 4: 4, 7: None, moment: 5}
    for number, (place, expected) in enumerate(places.items()):
        with log.consumer(f"c{number}", place) as consumer:
            assert drain(consumer)[:1] == ([] if expected is None else [expected])
    with log.consumer("c0", "last") as consumer:
        assert consumer.get() == 1  # one that exists continues
    with pytest.raises(ValueError, match="the log ends at 6"):
        log.consumer("new", 8)
    log.trim(3, force=True)
    with pytest.raises(TrimmedError):
        log.consumer("new", 2)
    assert "new" not in log.consumers()
    with log.consumer("c0", 2) as consumer:
        assert consumer.position == 0


def test_a_seek_forgets_what_was_got(log):
    log.extend(range(1, 8))
    with log.consumer("c") as consumer:
        with consumer.receive() as item:
            assert item == 1
            consumer.seek(5)
        assert consumer.position == 4  # the block's item is not committed any more
        with pytest.raises(RuntimeError), consumer.receive():  # noqa: PT012
            consumer.seek(2)
            raise RuntimeError
        assert drain(consumer) == [2, 3, 4, 5, 6, 7]
        consumer.seek(3)
        consumer.commit()
        assert consumer.position == 2


def test_a_seek_within_an_iteration_goes_on_there(log):
    log.extend(range(1, 8))
    with log.consumer("c") as consumer:
        found = []
        for item in consumer:
            found.append(item)
            if item == 2:
                consumer.seek(6)
        assert found == [1, 2, 6, 7]
        assert consumer.position == 7


def test_seek_by_time(open_log, clock):
    log = open_log(chunksize=2)
    began = clock.now
    for number in range(1, 8):
        log.append(number)
        clock.now += 60

    def first_at(seconds):
        moments = [
            datetime.fromtimestamp(began + seconds),  # noqa: DTZ006 - in local time
            datetime.fromtimestamp(began + seconds, timezone.utc),
            datetime.fromtimestamp(began + seconds, timezone(timedelta(hours=-7))),
        ]
        found = []
        for moment in moments:
            consumer.seek(moment)
            found.append(drain(consumer)[:1])
        assert found[0] == found[1] == found[2]
        return found[0]

    with log.consumer("c") as consumer:
        assert [first_at(seconds) for seconds in (-1e6, 0, 1, 60, 61, 359, 360)] == [
            [1], [1], [2], [2], [3], [7], [7],
        ]  # fmt: skip
        assert first_at(361) == []
        assert consumer.position == 7


@pytest.mark.parametrize("chunksize", [1, 2, 100])
def test_seek_by_time_after_the_clock_was_set(open_log, clock, chunksize):
    """The first item of that time or later is found, although the times between go back and forth."""
    log = open_log(chunksize=chunksize)
    began = clock.now
    steps = [0, 10, -500, -490, 700, 5, 6, 800]
    for step in steps:
        clock.now = began + step
        log.append(step)
    with log.consumer("c") as consumer:
        for wanted in (-501, -500, -100, 0, 1, 10, 11, 700, 701, 800, 801):
            consumer.seek(datetime.fromtimestamp(began + wanted, timezone.utc))
            expected = next((index for index, step in enumerate(steps) if step >= wanted), len(steps))
            assert drain(consumer) == steps[expected:]


# Several threads.


def _share(consumer, take, count, threads=4):
    """Let threads take all items, and return what each took."""
    taken: list[list[Any]] = [[] for _ in range(threads)]

    def run(mine):
        take(consumer, mine)

    run_threads(*(partial(run, mine) for mine in taken))
    everything = sorted(item for mine in taken for item in mine)
    assert everything == list(range(1, count + 1))
    assert all(mine == sorted(mine) for mine in taken)
    return taken


def _by_receive(consumer, mine):
    with contextlib.suppress(Empty):
        while True:
            with consumer.receive(False) as item:
                assert consumer.position < item
                mine.append(item)
                assert consumer.position < item


def _by_iteration(consumer, mine):
    for item in consumer:
        assert consumer.position < item
        mine.append(item)
        assert consumer.position < item


def _by_get(consumer, mine):
    with contextlib.suppress(Empty):
        while True:
            mine.append(consumer.get(False))
            consumer.commit()
            assert consumer.position >= mine[-1]


def _by_get_many(consumer, mine):
    with contextlib.suppress(Empty):
        while True:
            mine += consumer.get_many(7, False)


@pytest.mark.parametrize("take", [_by_receive, _by_iteration, _by_get, _by_get_many])
@pytest.mark.parametrize("chunksize", [3, None])
def test_threads_share_a_consumer(open_log, take, chunksize):
    """No item is lost or goes to two threads, and the position passes none that is being processed."""
    log = open_log(chunksize=chunksize)
    for number in range(0, 300, 5):
        log.extend(range(number + 1, number + 6))
    with log.consumer("c") as consumer:
        _share(consumer, take, 300)
        consumer.commit()
        assert (consumer.position, consumer.lag) == (300, 0)


def test_threads_share_a_consumer_and_fail_now_and_then(log):
    log.extend(range(1, 201))
    done: list[int] = []

    def take():
        fails = 0
        while True:
            try:
                with consumer.receive(False) as item:
                    fails += 1
                    assert consumer.position < item
                    if fails % 3 == 0:
                        raise RuntimeError
                    done.append(item)
            except Empty:
                return
            except RuntimeError:
                # It is released, so another thread may have got and committed it.
                assert consumer.position < item or item in done

    with log.consumer("c") as consumer:
        run_threads(*[take] * 4)
        # A thread may have seen the end while another one still had an item that it has released.
        take()
        assert sorted(done) == list(range(1, 201))
        assert consumer.position == 200


def test_the_position_waits_for_the_slowest_thread(log):
    log.extend(range(1, 6))
    with log.consumer("c") as consumer:
        first, second, third = consumer.receive(), consumer.receive(), iter(consumer)
        assert [first.__enter__(), second.__enter__(), next(third)] == [1, 2, 3]
        second.__exit__(None, None, None)
        assert consumer.position == 0
        assert next(third) == 4
        assert consumer.position == 0
        first.__exit__(None, None, None)
        assert consumer.position == 3
        third.close()
        with consumer.receive() as item:
            assert item == 5
        assert consumer.position == 5


# Closing, and the lock of a consumer.


def test_a_consumer_is_open_in_one_object(open_log):
    log, other = open_log(), open_log()
    log.extend("ab")
    with log.consumer("c") as consumer:
        for each in (log, other):
            with pytest.raises(LockedError, match=r"this process .* already") as caught:
                each.consumer("c")
            assert caught.value.pid == os.getpid()
        assert consumer.get() == "a"
        consumer.close()
        consumer.close()
        with pytest.raises(ClosedError):
            consumer.get()
        with other.consumer("c") as next_one:
            assert next_one.get() == "a"


def test_a_consumer_is_open_in_one_process(log, tmp_path):
    log.extend("ab")
    with remote_log(tmp_path / "log") as remote:
        remote.start(workers.hold, "c", 1)
        assert remote.told() == ["a"]
        with pytest.raises(LockedError, match=f"process {remote.pid} ") as caught:
            log.consumer("c")
        assert caught.value.pid == remote.pid
        with pytest.raises(LockedError) as caught:
            log.forget("c")
        assert caught.value.pid == remote.pid
        assert log.consumers() == {"c": (0, 2)}
        finish = waiting(lambda: log.consumer("c", wait=True))
        assert not finish.done()
        remote.say()
        with finish() as consumer:
            assert consumer.get() == "a"
        remote.result()


def test_a_consumer_of_a_killed_process_is_free(log, tmp_path):
    log.extend("ab")
    with remote_log(tmp_path / "log") as remote:
        remote.start(workers.hold, "c", 1)
        assert remote.told() == ["a"]
        finish = waiting(lambda: log.consumer("c", wait=True))
        remote.kill()
        with finish() as consumer:
            assert drain(consumer) == ["a", "b"]


def test_a_thread_that_stands_by_ends_with_the_log(open_log):
    log, other = open_log(), open_log()
    with other.consumer("c"):
        finish = waiting(lambda: log.consumer("c", wait=True))
        log.close()
        with pytest.raises(ClosedError):
            finish()


def test_a_consumer_closed_within_its_own_loop(log):
    log.extend("abc")
    consumer = log.consumer("c")
    with pytest.raises(ClosedError):  # noqa: PT012
        for item in consumer:
            assert item == "a"
            consumer.close()
    with log.consumer("c") as consumer:
        assert consumer.position == 0
        with pytest.raises(ClosedError), consumer.receive() as item:  # noqa: PT012
            assert item == "a"
            consumer.close()
    with log.consumer("c") as consumer:
        assert (consumer.position, drain(consumer)) == (0, ["a", "b", "c"])


@pytest.mark.parametrize("closes", ["log", "consumer"])
def test_closing_wakes_waiting_threads(log, closes):
    consumer = log.consumer("c")
    calls = [
        consumer.get,
        partial(consumer.get, timeout=60),
        partial(consumer.get_many, 5),
        consumer.receive().__enter__,
        consumer.follow().__next__,
    ]
    waits = [waiting(call) for call in calls]
    until(lambda: len(log._appended._wakes) == len(calls))
    began = time.monotonic()
    (log if closes == "log" else consumer).close()
    for wait in waits:
        with pytest.raises(ClosedError):
            wait()
    assert time.monotonic() - began < 2


def test_a_dropped_consumer_frees_its_name(log):
    log.extend("ab")
    for _ in range(3):
        assert log.consumer("c").get() == "a"
    kept = log.consumer("d")
    cycle: list[Any] = [kept]
    cycle.append(cycle)
    del kept, cycle
    gc.collect()
    with log.consumer("d") as consumer:
        assert consumer.get() == "a"


def test_an_iteration_keeps_a_dropped_consumer_open(log):
    log.extend("abc")
    items = iter(log.consumer("c"))
    assert next(items) == "a"
    with pytest.raises(LockedError):
        log.consumer("c")
    assert list(items) == ["b", "c"]
    del items
    with log.consumer("c") as consumer:
        assert consumer.position == 3


def test_forget(open_log):
    log, other = open_log(), open_log()
    log.extend("ab")
    assert log.forget("c") is False
    with log.consumer("c") as consumer:
        consumer.commit(1)
        for each in (log, other):
            with pytest.raises(LockedError) as caught:
                each.forget("c")
            assert caught.value.pid == os.getpid()
    assert other.forget("c") is True
    assert log.forget("c") is False
    assert log.consumers() == other.consumers() == {}
    with log.consumer("c") as consumer:
        assert consumer.get() == "a"


NAMES = ["", "c", "C", " c", "a/b", "..", "a\0b", "\n", "\u00e9", "e\u0301", "\ud800", "x" * 10_000, "☃"]


def test_a_name_is_any_text(open_log, tmp_path):
    log = open_log()
    log.extend(range(len(NAMES) + 1))
    for number, name in enumerate(NAMES):
        with log.consumer(name) as consumer:
            assert (consumer.name, consumer.position) == (name, 0)
            consumer.commit(number)
    expected = {name: (number, len(NAMES) + 1 - number) for number, name in enumerate(NAMES)}
    assert log.consumers() == expected
    assert list(log.consumers()) == sorted(NAMES)
    log.close()
    log = open_log()
    assert log.consumers() == expected
    assert sorted(os.listdir(tmp_path)) == ["log"]
    for name in NAMES:
        assert log.forget(name)
    assert log.consumers() == {}


def test_a_subclass_of_text_is_a_name(log):
    class Name(str):
        __slots__ = ()

    with log.consumer(Name("c")) as consumer:
        assert consumer.name == "c"


def test_a_thousand_consumers(memory_path):
    with Log(memory_path / "log", durability="process") as log:
        log.extend("ab")
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for number in range(1000):
            with log.consumer(f"consumer {number}") as consumer, consumer.receive() as item:
                assert item == "a"
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert set(log.consumers().values()) == {(1, 1)}
        assert len(log.consumers()) == 1000
        assert log.trim(2) == 1
        assert not log._store._cursors  # type: ignore[attr-defined]
        assert len(threading.enumerate()) < 50


# What cannot be read.


def test_an_item_that_cannot_be_decoded_is_passed_by_a_seek(open_log):
    serializer = Picky(2, 3)
    log = open_log(serializer=serializer)
    log.extend(range(6))
    with log.consumer("c") as consumer:
        assert consumer.get_many(6) == [0, 1]
        calls = [
            consumer.get,
            partial(consumer.get_many, 3),
            consumer.receive().__enter__,
            iter(consumer).__next__,
            consumer.follow().__next__,
        ]
        for call in calls:
            with pytest.raises(DecodeError, match=r"stays in the log.*seek\(4\) goes on after it") as caught:
                call()
            assert caught.value.id == 3
            assert isinstance(caught.value.__cause__, RuntimeError)
        assert consumer.position == 0
        found = []
        for _ in range(10):
            try:
                found.append(consumer.get(False))
            except DecodeError as error:
                consumer.seek((error.id or 0) + 1)
            except Empty:
                break
        assert found == [4, 5]
        assert consumer.position == 4
        with pytest.raises(DecodeError):
            list(log)
        assert [log[2], log[5], log.read(4)] == [1, 4, [4, 5]]
        serializer.broken.clear()
        consumer.seek("first")
        assert drain(consumer) == list(range(6))


def test_an_item_that_was_released_and_cannot_be_decoded_any_more(open_log):
    serializer = Picky()
    log = open_log(serializer=serializer)
    log.extend(range(4))
    with log.consumer("c") as consumer:
        with pytest.raises(KeyError), consumer.receive():
            raise KeyError
        serializer.broken.append(0)
        for _ in range(2):
            with pytest.raises(DecodeError) as caught:
                consumer.get()
            assert caught.value.id == 1
        consumer.seek(2)
        assert drain(consumer) == [1, 2, 3]


@pytest.mark.parametrize("chunksize", [2, None])
def test_a_log_that_is_trimmed_under_a_consumer(open_log, chunksize):
    log = open_log(chunksize=chunksize)
    for number in range(1, 11):
        log.append(number)
    with log.consumer("c") as consumer:
        assert consumer.get_many(2) == [1, 2]
        assert log.trim(7) == 0
        assert log.trim(7, force=True) == 6
        for call in (
            consumer.get,
            partial(consumer.get_many, 3),
            consumer.receive().__enter__,
            iter(consumer).__next__,
        ):
            with pytest.raises(TrimmedError, match="begins at 7") as caught:
                call()
            assert caught.value.first == 7
        assert (consumer.position, consumer.lag) == (0, 4)
        consumer.commit()  # of what it got before
        consumer.seek("first")
        assert drain(consumer) == [7, 8, 9, 10]


@pytest.mark.parametrize("chunksize", [2, None])
def test_a_log_that_another_object_trims_under_a_consumer(open_log, chunksize):
    """What the consumer has read ahead it may still give. After that it raises, or goes on in order."""
    log, other = open_log(chunksize=chunksize), open_log()
    for number in range(1, 11):
        log.append(number)
    with log.consumer("c") as consumer:
        assert consumer.get_many(2) == [1, 2]
        assert other.trim(7, force=True) == 6
        found: list[int] = []
        with contextlib.suppress(Empty, TrimmedError):
            while True:
                found.append(consumer.get(False))
        assert found == list(range(3, 3 + len(found)))
        consumer.seek("first")
        assert drain(consumer) == [7, 8, 9, 10]


@pytest.mark.parametrize("chunksize", [1, None])
def test_a_commit_of_items_that_were_trimmed_and_never_got(open_log, chunksize):
    log = open_log(chunksize=chunksize)
    for number in range(1, 11):
        log.append(number)
    with log.consumer("c") as consumer:
        log.trim(8, force=True)
        consumer.commit(5)
        assert (consumer.position, consumer.lag) == (5, 3)
        with pytest.raises(TrimmedError):
            consumer.get()
    with log.consumer("c") as consumer:
        assert consumer.position == 5
        with pytest.raises(TrimmedError):
            consumer.get()
        consumer.commit(7)
        consumer.seek("first")
        assert drain(consumer) == [8, 9, 10]


def test_a_released_item_that_is_trimmed_is_told_of(log):
    log.extend(range(1, 6))
    with log.consumer("c") as consumer:
        with pytest.raises(KeyError), consumer.receive():  # noqa: PT012
            assert consumer.get() == 2
            raise KeyError
        log.trim(3, force=True)
        with pytest.raises(TrimmedError):
            consumer.get(block=False)
        consumer.seek("first")
        assert drain(consumer) == [3, 4, 5]
        consumer.commit()
        assert consumer.position == 5


# Forks.


def test_a_forked_child(log):
    log.extend("ab")
    with log.consumer("c") as consumer:
        assert consumer.get() == "a"

        def in_child():
            assert list(log) == ["a", "b"]
            assert log.append("child") == 3
            for call in (
                consumer.get,
                partial(consumer.commit, 1),
                partial(consumer.seek, "first"),
                lambda: consumer.position,
                consumer.receive().__enter__,
                iter(consumer).__next__,
                partial(log.consumer, "c"),
            ):
                with pytest.raises(LockedError):
                    call()
            with log.consumer("child's") as own:
                assert drain(own) == ["a", "b", "child"]
                own.commit()
            consumer.close()
            log.close()

        in_forked_child(in_child)
        assert drain(consumer) == ["b", "child"]
        consumer.commit()
    assert log.consumers() == {"c": (3, 0), "child's": (3, 0)}


def test_a_consumer_goes_on_in_the_child_when_the_parent_has_closed_it(log):
    log.extend("abc")
    consumer = log.consumer("c")
    assert consumer.get() == "a"
    consumer.commit()
    reading, writing = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with pytest.raises(LockedError):
                consumer.get()
            os.write(tell, b"x")
            os.read(reading, 1)
            assert drain(consumer) == ["b", "c"]
            consumer.commit()
            log.close()
            status = 0
        finally:
            os._exit(status)
    os.read(told, 1)
    consumer.close()
    os.write(writing, b"x")
    assert os.waitpid(pid, 0) == (pid, 0)
    for descriptor in (reading, writing, told, tell):
        os.close(descriptor)
    assert log.consumers() == {"c": (3, 0)}
