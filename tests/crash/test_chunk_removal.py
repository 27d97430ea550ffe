"""A chunk is removed when all of it is acked, and only after the cursor on the device says so."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistcoll import CorruptionError, Empty, Queue, StorageFullError
from persistcoll.testing.faults import FaultyDisk
from tests.crash.accounts import memory_directory, quick_disk


def chunks(path):
    return sorted(file.name for file in path.iterdir() if file.name.startswith("q0") and file.suffix == "")


def rest(path):
    """Return what a new consumer gets, and check that nothing is reported as damaged."""
    items = []
    with Queue(path) as queue:
        assert queue.qsize() == len(list(queue.items()))
        try:
            while True:
                items.append(queue.get(block=False))
        except Empty:
            return items


@pytest.mark.parametrize("call", ["open", "write", "sync", "replace"])
@pytest.mark.parametrize("position_fits", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_chunk_finished_out_of_order_without_a_new_cursor(call, position_fits, number, tmp_path):
    disk = FaultyDisk()
    with Queue(tmp_path / "q", chunksize=3, _disk=disk) as queue:
        queue.put_many(range(1, 4))
        queue.put_many(range(4, 7))
        queue.put_many(range(7, 10))
        for _ in range(5):
            queue.get()
        with queue.receive() as six:
            assert six == 6
        for _ in range(2):
            queue.task_done()
        fault = disk.fail(call, error=number, times="forever", path="cursor.tmp")
        if not position_fits:
            disk.fail("pwrite", at=2, error=number, path="cursor")
        queue.task_done()  # item 3: the first chunk is finished
        assert fault.fired
        kept = [] if position_fits else ["q00000"]
        assert chunks(tmp_path / "q") == [*kept, "q00001", "q00002"]
        disk.heal()
    assert rest(tmp_path / "q") == [4, 5, 7, 8, 9]


def test_skipped_item_far_ahead_does_not_lead_back_into_a_chunk_that_is_gone(tmp_path):
    with Queue(tmp_path / "q", chunksize=3, autosave=True) as queue:
        for number in range(1, 13):
            queue.put(number)
        queue.get()
        assert queue.skip(11) == 11
        assert [queue.get() for _ in range(9)] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert rest(tmp_path / "q") == [12]


def sizes(path):
    return {name: (path / name).stat().st_size for name in chunks(path)}


def take(queue):
    """Claim a record and return its id."""
    return queue._core.store.claim(lambda record: record.id)


EMPTIED = 140  # bytes: more than a header and a frame, less than one with an item


@pytest.mark.parametrize("durability", ["power", "process"])
def test_what_is_acked_beside_one_in_flight_keeps_no_data(durability, tmp_path):
    path = tmp_path / "q"
    with Queue(path, chunksize=50, serializer="raw", durability=durability) as queue:
        queue.put(bytes(100))
        first = take(queue)
        for _ in range(1000):
            queue.put(bytes(100))
            queue._core.store.ack([take(queue)])
        kept = {name for name, size in sizes(path).items() if size > EMPTIED}
        assert kept == {"q00000", "q00020"}
        assert (queue.qsize(), queue.unfinished_tasks) == (0, 1)
        queue._core.store.ack([first])
        assert chunks(path) == ["q00020"]
    assert rest_of(path) == []


def rest_of(path):
    """Return what a new consumer gets, and check that every way to read agrees."""
    items = []
    with Queue(path, serializer="raw") as queue, Queue(path, serializer="raw") as observer:
        seen = list(observer.items())
        assert (queue.qsize(), observer.qsize()) == (len(seen), len(seen))
        try:
            while True:
                items.append(queue.get(block=False))
                queue.task_done()
        except Empty:
            pass
        assert items == seen
        assert (queue.qsize(), observer.qsize(), list(observer.items())) == (0, 0, [])
        assert queue.stats().dead == 0
        assert queue.stats().gets == queue.stats().puts
    return items


def test_chunk_is_emptied_at_once_and_not_while_its_last_item_is_in_flight(tmp_path):
    path = tmp_path / "q"
    with Queue(path, chunksize=3, serializer="raw") as queue:
        for number in range(12):
            queue.put(b"%3d" % number + bytes(100))
        ids = [take(queue) for _ in range(11)]
        store = queue._core.store
        for id in (ids[5], ids[3]):
            store.ack([id])
        assert all(size > EMPTIED for size in sizes(path).values())
        store.ack([ids[4]])
        assert [size > EMPTIED for size in sizes(path).values()] == [True, False, True, True]
        store.ack(ids[6:9])
        assert [size > EMPTIED for size in sizes(path).values()] == [True, False, False, True]
        store.ack(ids[:3])
        assert chunks(path) == ["q00003"]
    assert [item[:3] for item in rest_of(path)] == [b"  9", b" 10", b" 11"]


@pytest.mark.parametrize("autosave", [False, True])
def test_closing_removes_a_chunk_whose_end_was_read_after_its_last_acknowledgement(autosave, tmp_path):
    path = tmp_path / "q"
    disk = FaultyDisk()
    with Queue(path, chunksize=3, serializer="raw", autosave=autosave, _disk=disk) as queue:
        for _ in range(3):
            queue.put(b"item")
        for _ in range(3):
            queue.get()
            queue.task_done()
        disk.fail("write", error=errno.ENOSPC, path="q00001")  # a new chunk, with nothing in it
        with pytest.raises(StorageFullError):
            queue.put(b"item")
        with pytest.raises(Empty):
            queue.get(block=False)
        assert chunks(path) == ["q00000", "q00001"]
    assert chunks(path) == ["q00001"]
    assert rest_of(path) == []


@pytest.mark.parametrize("how", ["lost", "header", "first", "last"])
def test_what_an_emptied_chunk_held_is_acknowledged_whatever_became_of_the_cursor(how, tmp_path):
    path, cursor = tmp_path / "q", tmp_path / "q" / "cursor"
    with Queue(path, chunksize=3, serializer="raw") as queue:
        for number in range(12):
            queue.put(b"%3d" % number)
        ids = [take(queue) for _ in range(11)]
        queue._core.store.ack(ids[3:9])
    if how == "lost":
        cursor.unlink()
    else:
        data = bytearray(cursor.read_bytes())
        data[{"header": 9, "first": 40, "last": len(data.rstrip(b"\0")) - 9}[how]] ^= 1
        cursor.write_bytes(data)
    assert rest_of(path) == [b"%3d" % number for number in (0, 1, 2, 9, 10, 11)]


def test_clear_beside_an_item_in_flight_frees_what_was_not_read(tmp_path):
    path = tmp_path / "q"
    with Queue(path, chunksize=3, serializer="raw") as queue:
        for _ in range(12):
            queue.put(bytes(100))
        first = take(queue)
        assert queue.clear() == 11
        assert [size > EMPTIED for size in sizes(path).values()] == [True, False, False, True]
        queue._core.store.ack([first])
        assert chunks(path) == ["q00003"]
    assert rest_of(path) == []


@pytest.mark.parametrize("call", ["open", "write", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_clear_without_room_for_an_emptied_chunk_removes_it_first(call, number, tmp_path):
    path = tmp_path / "q"
    disk = FaultyDisk()
    with Queue(path, chunksize=3, serializer="raw", _disk=disk) as queue:
        for _ in range(12):
            queue.put(bytes(100))
        first = take(queue)
        fault = disk.fail(call, error=number, path="q00001.tmp")
        assert queue.clear() == 11
        assert fault.fired
        assert [size > EMPTIED for size in sizes(path).values()] == [True, False, False, True]
        queue._core.store.ack([first])
        assert chunks(path) == ["q00003"]
    assert rest_of(path) == []


@pytest.mark.parametrize("lost", [False, True])
def test_without_any_room_the_cursor_alone_says_what_a_removed_chunk_held(lost, tmp_path):
    path = tmp_path / "q"
    disk = FaultyDisk()
    with (
        Queue(path, chunksize=3, serializer="raw", _disk=disk) as queue,
        Queue(path, serializer="raw") as observer,
    ):
        for number in range(12):
            queue.put(b"%3d" % number)
        looking = observer.items()
        assert next(looking) == b"  0"
        ids = [take(queue) for _ in range(11)]
        disk.fail("write", error=errno.ENOSPC, times="forever", path="q?????.tmp")
        queue._core.store.ack(ids[3:9])
        assert chunks(path) == ["q00000", "q00003"]
        assert list(looking) == [b"%3d" % number for number in (1, 2, 9, 10, 11)]
        assert queue.qsize() == observer.qsize() == 1
    if lost:
        (path / "cursor").unlink()
        with Queue(path, serializer="raw") as queue:
            assert queue.get_many(4) == [b"  0", b"  1", b"  2"]
            with pytest.raises(CorruptionError, match="missing"):
                queue.get(block=False)
        return
    with Queue(path, serializer="raw", chunksize=3) as queue:
        queue.put(b" 12")
        first = take(queue)
        assert [take(queue) for _ in range(5)] == [2, 3, 10, 11, 12]
        queue._core.store.ack([2, 3])
        assert chunks(path) == ["q00000", "q00003", "q00004"]
        queue._core.store.ack([first])
        assert chunks(path) == ["q00003", "q00004"]
    assert rest_of(path) == [b"  9", b" 10", b" 11", b" 12"]


STEPS = ["take", "take", "take", "done", "done", "back", "reopen", "lose"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_of_acknowledging(data):
    """A chunk keeps its data exactly as long as one of its items is not acked.

    Items are claimed, acked, nacked and lost in any order, and the queue is reopened. A chunk that the reader
    has not passed yet may keep its data longer.
    """
    chunksize = data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, 14))
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        path = Path(directory) / "q"
        left, held = set(range(1, count + 1)), []
        queue = Queue(path, chunksize=chunksize, serializer="raw", _disk=quick_disk())
        try:
            for number in range(1, count + 1):
                queue.put(b"%3d" % number + bytes(100))
            for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=30)):
                store: Any = queue._core.store
                if step == "take" and queue.qsize():
                    held.append(take(queue))
                elif step == "done" and held:
                    some = data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True))
                    store.ack(some)
                    left -= set(some)
                    held = [id for id in held if id not in some]
                    read = store._consumer._reader.number
                    data_of = {int(name[1:]) for name, size in sizes(path).items() if size > EMPTIED}
                    wanted = {(id - 1) // chunksize for id in left} & data_of
                    assert {number for number in data_of - wanted if number < read} == set()
                elif step == "back" and held:
                    store.nack(held.pop(data.draw(st.integers(0, len(held) - 1))))
                elif step in ("reopen", "lose"):
                    queue.close()
                    held = []
                    if step == "lose":
                        (path / "cursor").unlink()
                    queue = Queue(path, chunksize=chunksize, serializer="raw", _disk=quick_disk())
                    if step == "lose":  # a lost cursor costs redelivery
                        left = {int(item[:3]) for item in queue.items()} | left
                assert queue.qsize() == len(left) - len(held)
                assert [int(item[:3]) for item in queue.items()] == sorted(left - set(held))
        finally:
            queue.close()
        assert [int(item[:3]) for item in rest_of(path)] == sorted(left)
