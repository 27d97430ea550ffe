"""A store whose directory or files are removed, renamed, replaced or restored while it is open."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty, Queue, StoreReplacedError
from persistcoll.disk.calls import UNSEEN_CALLS, Disk
from persistcoll.journal.frames import ITEM, encode

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file")
DURABILITIES = ["process", "power"]


def drain(queue: Queue) -> list:
    items = []
    with contextlib.suppress(Empty):
        while True:
            items.append(queue.get(block=False))
            queue.task_done()
    return items


def tree(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}


def until_refused(act, most: int = 50) -> int:
    """Return how often the call succeeded before it was refused."""
    for count in range(most):
        try:
            act(count)
        except StoreReplacedError:
            with pytest.raises(StoreReplacedError, match="open what is there now"):
                act(count)
            return count
    raise AssertionError("never refused")


@pytest.fixture(params=DURABILITIES)
def durability(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q"


def remove(path: Path) -> None:
    shutil.rmtree(path)


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def exchange(path: Path) -> None:
    """Put another queue in its place."""
    rename(path)
    another(path)


def replace(path: Path) -> None:
    remove(path)
    another(path)


def another(path: Path) -> None:
    with Queue(path, chunksize=3) as other:
        other.put_many(["new 1", "new 2"])
        other.put_many(["new 3", "new 4"])
        other.get()
        other.task_done()


@pytest.mark.parametrize("change", [remove, rename, exchange, replace])
def test_producer(change, path, durability):
    with Queue(path, chunksize=5, durability=durability) as queue:
        queue.put("old")
        change(path)
        before = tree(path) if path.exists() else None
        put = until_refused(queue.put)
    assert (tree(path) if path.exists() else None) == before  # closing changes nothing, either
    if change in (remove, replace):
        # A lost write is not reported as stored; at "process" up to so many are, before the handle notices.
        assert put <= (0 if durability == "power" else UNSEEN_CALLS)
    else:
        with Queue(path.with_name("elsewhere")) as queue:
            assert drain(queue) == ["old", *range(put)]
    with Queue(path) as queue:
        queue.put("again")
        assert drain(queue)[-1] == "again"


@pytest.mark.parametrize("change", [remove, exchange, replace])
def test_consumer(change, path, durability):
    with Queue(path, chunksize=3, durability=durability) as queue:
        for number in range(20):
            queue.put(number)
        assert queue.get() == 0
        change(path)
        before = tree(path) if path.exists() else None
        got = [0]

        def step(_):
            queue.task_done()
            got.append(queue.get(block=False))

        if change is exchange:
            with contextlib.suppress(StoreReplacedError, Empty):
                for _ in range(30):
                    step(_)
        else:
            with pytest.raises(StoreReplacedError):
                step(0)
    assert (tree(path) if path.exists() else None) == before
    if change is exchange:
        with Queue(path.with_name("elsewhere")) as old:
            rest = drain(old)
        assert got[-1] + 1 - len(rest) <= 20
        assert [*got, *rest][-1] == 19


def test_symbolic_link_is_switched(tmp_path, durability):
    link = tmp_path / "current"
    (tmp_path / "one").mkdir(0o700)
    link.symlink_to(tmp_path / "one")
    with Queue(link, chunksize=5, durability=durability) as queue:
        queue.put("old")
        another(tmp_path / "two")
        link.unlink()
        link.symlink_to(tmp_path / "two")
        before = tree(tmp_path / "two")
        put = until_refused(queue.put)
    assert tree(tmp_path / "two") == before
    with Queue(tmp_path / "one") as queue:
        assert drain(queue) == ["old", *range(put)]


@pytest.mark.parametrize("how", ["copied over", "renamed over"])
def test_backup_is_restored(how, tmp_path, path, durability):
    backup = tmp_path / "backup"
    with Queue(path, chunksize=50, durability=durability) as queue:
        queue.put("first")
        shutil.copytree(path, backup)
        queue.put("second")
        assert queue.get() == "first"
        queue.task_done()
        for name in os.listdir(backup):
            if how == "copied over":
                shutil.copyfile(backup / name, path / name)
            else:
                shutil.copy(backup / name, path / (name + ".new"))
                os.replace(path / (name + ".new"), path / name)
        before = tree(path)
        noticed_at_once = how == "copied over" or durability == "power"
        assert until_refused(queue.put) <= (0 if noticed_at_once else UNSEEN_CALLS)
    assert how == "copied over" or tree(path) == before
    with Queue(path) as queue:
        assert drain(queue) in (["first"], [])  # the second one, if the cursor was not overwritten afterwards
        queue.put("fourth")
        assert drain(queue) == ["fourth"]


OTHER = """
import sys
from persistcoll import Queue
with Queue(sys.argv[1], durability=sys.argv[2]) as queue:
    queue.put("other")
    if sys.argv[3] == "get":
        print(queue.get())
        queue.task_done()
"""


def other_process(path: Path, durability: str, what: str) -> str:
    program = [sys.executable, "-c", OTHER, str(path), durability, what]
    return subprocess.run(program, check=True, timeout=60, capture_output=True, text=True).stdout


def test_producer_lock_is_removed_by_a_cleaner(path, durability):
    with Queue(path, durability=durability) as queue:
        queue.put("one")
        (path / "producer.lock").unlink()
        other_process(path, durability, "put")  # it locks another file
        with pytest.raises(StoreReplacedError, match=r"producer\.lock"):
            queue.put("two")
    with Queue(path) as queue:
        assert drain(queue) == ["one", "other"]


def test_consumer_lock_is_removed_by_a_cleaner(path, durability):
    with Queue(path, durability=durability) as queue:
        queue.put_many(["one", "two"])
        assert queue.get() == "one"
        (path / "consumer.lock").unlink()
        assert other_process(path, durability, "get") == "one\n"
        with pytest.raises(StoreReplacedError):
            queue.task_done()
    with Queue(path) as queue:
        assert drain(queue) == ["two", "other"]


def test_cursor_is_removed(path, durability):
    with Queue(path, durability=durability) as queue:
        queue.put_many([1, 2, 3])
        queue.get()
        (path / "cursor").unlink()
        for _ in range(2):
            with pytest.raises(StoreReplacedError, match="cursor"):
                queue.task_done()
        queue.put(4)
    with Queue(path) as queue:
        assert drain(queue) == [1, 2, 3, 4]


def test_hard_links_are_no_replacement(tmp_path, path, durability):
    """``cp -al`` and ``rsync --link-dest`` make snapshots of hard links."""
    with Queue(path, chunksize=5, durability=durability) as queue:
        queue.put(1)
        (tmp_path / "snapshot").mkdir()
        for name in os.listdir(path):
            os.link(path / name, tmp_path / "snapshot" / name)
        for number in range(2, 20):
            queue.put(number)
        assert drain(queue) == list(range(1, 20))


def test_looking_at_a_chunk_that_others_have_finished_and_removed(path, durability):
    with Queue(path, chunksize=2, durability=durability) as queue, Queue(path, chunksize=2) as other:
        for number in range(9):
            other.put(number)
        assert drain(other) == list(range(9))
        assert queue.qsize() == 0
        queue.put(9)
        assert drain(other) == [9]


def test_a_record_that_comes_after_the_end_under_a_removed_lock(path, durability, monkeypatch):
    """Another process finishes the chunk, so no reader would find the record.

    That process locks the new file of the lock, between the first producer's check of its chunk and its
    write.
    """
    with Queue(path, durability=durability) as queue:
        queue.put("first")
        store: Any = queue._core.store
        write = store._journal._tail._write

        def write_late(fd, data):
            monkeypatch.undo()
            (path / "producer.lock").unlink()
            other_process(path, durability, "put")
            return write(fd, data)

        monkeypatch.setattr(store._journal._tail, "_write", write_late)
        with pytest.raises(StoreReplacedError):
            queue.put("late")
    with Queue(path, durability=durability) as queue:
        assert drain(queue) == ["first", "other"]


def test_the_end_that_comes_after_a_record_under_a_removed_lock(path, durability):
    """The process with the new lock's file finds the record after its own check of the chunk."""
    with Queue(path, durability=durability) as queue:
        queue.put("first")
        store: Any = queue._core.store
        old = store._journal._tail
        (path / "producer.lock").unlink()

        class Late(Disk):
            """Lets the holder of the old lock append a record before its own first write to the chunk."""

            def __init__(self):
                super().__init__()
                self.write = self.late

            def late(self, fd, data):
                if os.path.sameopenfile(fd, old.fd):
                    self.write = os.write
                    id = old.last_id + 1
                    old.append(encode(old.salt, ITEM, id, 1.0, 0, pickle.dumps("late")), id)
                return os.write(fd, data)

        with Queue(path, durability=durability, _disk=Late()) as other:
            other.put("other")
    with Queue(path, durability=durability) as queue:
        assert drain(queue) == ["first", "late", "other"]


def test_another_store_is_not_taken_for_damage(path, durability):
    with Queue(path, chunksize=3, durability=durability) as queue:
        queue.put_many(range(3))
        consumer = queue
        assert drain(consumer) == [0, 1, 2]
        rename(path)
        with Queue(path.with_name("elsewhere"), chunksize=3) as fresh:
            fresh.put_many(range(3, 9))
        another(path)
        before = tree(path)
        with contextlib.suppress(Empty, StoreReplacedError):
            for _ in range(9):
                consumer.get(block=False)
    assert tree(path) == before
