"""Damage in every kind of page of a queue's database, in its log, and in single columns of its rows.

Whatever is damaged: each item comes once and as it was put, or an error of persistcoll reports the damage.
SQLite has no checksums of its pages, so persistcoll relies on those of its rows and on counts of what must be
there.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from persistcoll import (
    ClaimError,
    CorruptionError,
    Empty,
    PersistcollError,
    PriorityQueue,
    SerializerMismatchError,
    SQLiteAckQueue,
    SQLiteQueue,
    StorageError,
    UniqueQ,
    collections,
)
from persistcoll.testing.children import in_forked_child
from tests.stateful.test_machines import PLACE

PAGE = 1024
COUNT = 250
KINDS: dict[str, type[Any]] = {
    "fifo": SQLiteQueue,
    "ack": SQLiteAckQueue,
    "unique": UniqueQ,
    "priority": PriorityQueue,
}
REGIONS = [
    "header", "schema", "table interior", "table leaf", "index interior", "index leaf", "free list", "free",
    "overflow",
]  # fmt: skip
_TYPES = {2: "index interior", 5: "table interior", 10: "index leaf", 13: "table leaf", 0: "overflow"}
# Pages that refer to other pages. With one of them damaged, a page may be read twice before the damage is
# noticed.
_MAPS = ("table interior", "index interior")

pytestmark = pytest.mark.timeout(60)  # A hang is a failure too.


def opened(kind: str, path: Any) -> Any:
    return KINDS[kind](path, serializer="json", durability="process")


def item(number: int) -> str:
    """Return an item; some are so long that they overflow to pages of their own."""
    return f"item {number} " + ("y" * 3000 if number % 20 == 7 else "")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a directory in memory, because no test here depends on syncs."""
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        yield Path(directory)


class Image(NamedTuple):
    """A database and what is in it."""

    kind: str
    data: bytes
    lock: bytes
    items: list[str]
    """The ready items, in order."""
    pages: dict[str, list[int]]
    """The pages of each region."""


def make(kind: str, path: Path) -> Image:
    """Make a queue with interior pages, overflow pages, free pages that hold old rows, and all states."""
    with (
        opened(kind, path) as queue,
        SQLiteQueue(path, name="gone", serializer="json", durability="process") as gone,
    ):
        gone.put_many(["of another queue " * 50] * 60)
        if kind == "priority":
            for number in range(COUNT):
                queue.put(item(number), priority=number % 3)
        else:
            queue.put_many([item(number) for number in range(COUNT)])
        gone.clear()
        if kind == "ack":
            for each in queue.get_many(80)[:60]:
                queue.ack(each)
            queue.ack_failed(queue.get())
            queue.nack(queue.get(), delay=3600)
        queue.get(id=queue.put("gone"))  # so that the counters are written, which a put does not do
        queue.task_done()
    with opened(kind, path) as queue:
        items = queue.get_many(COUNT) if kind == "ack" else list(queue.items())
    data, lock = (path / "data.db").read_bytes(), (path / "data.db.lock").read_bytes()
    return Image(kind, data, lock, items, regions(data))


def regions(data: bytes) -> dict[str, list[int]]:
    """Return the numbers of the pages of each kind, by the file format of SQLite."""
    found: dict[str, list[int]] = defaultdict(list, header=[0], schema=[0])
    free: set[int] = set()
    (trunk,) = struct.unpack_from(">I", data, 32)
    while trunk:
        found["free list"].append(trunk - 1)
        at = (trunk - 1) * PAGE
        trunk, count = struct.unpack_from(">II", data, at)
        free.update(number - 1 for number in struct.unpack_from(f">{count}I", data, at + 8))
    found["free"] = sorted(free)
    for number in range(1, len(data) // PAGE):
        if number not in free and number not in found["free list"]:
            found[_TYPES[data[number * PAGE]]].append(number)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Image]:
    return {kind: make(kind, tmp_path_factory.mktemp("images") / kind) for kind in KINDS}


def somewhere(data: bytes, region: str, number: int, rng: random.Random) -> int:
    """Return a place in this page: in its head, its pointers, or what they point to."""
    at = number * PAGE
    if region == "header":
        return rng.randrange(100)
    if region in ("free", "free list", "overflow"):
        return at + rng.choice((rng.randrange(8), rng.randrange(PAGE)))
    head = at + (100 if region == "schema" else 0)
    size = 12 if data[head] in (2, 5) else 8
    cells, content = struct.unpack_from(">HH", data, head + 3)
    places = [range(head, head + size), range(head + size, head + size + 2 * cells)]
    places.append(range(at + content, at + PAGE))
    return rng.choice(rng.choice([place for place in places if place]))


def damaged(image: Image, region: str, rng: random.Random) -> bytes:
    """Return its data with one damage in that region."""
    data = bytearray(image.data)
    pages = image.pages[region]
    number = rng.choice(pages)
    at = somewhere(image.data, region, number, rng)
    how = rng.choice(["bit"] * 5 + ["byte", "zeros", "noise", "page of zeros", "page of noise", "exchanged"])
    if how == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        data[at] = rng.choice((0, 255, rng.randrange(256)))
    elif how in ("zeros", "noise"):
        end = min(at + 8, len(data))
        data[at:end] = bytes(end - at) if how == "zeros" else rng.randbytes(end - at)
    else:
        page, other = slice(number * PAGE, (number + 1) * PAGE), rng.choice(pages) * PAGE
        if how == "exchanged":
            data[page], data[other : other + PAGE] = data[other : other + PAGE], data[page]
        else:
            data[page] = bytes(PAGE) if how == "page of zeros" else rng.randbytes(PAGE)
    return bytes(data)


def lay(place: Path, data: bytes, lock: bytes, log: bytes | None = None) -> None:
    """Store these files as the only ones."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    (place / "data.db").write_bytes(data)
    (place / "data.db.lock").write_bytes(lock)
    if log is not None:
        (place / "data.db-wal").write_bytes(log)


class Taken:
    """What came out of a damaged collection, and the errors."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.errors: list[PersistcollError] = []

    def attempt(self, call: Callable[[], Any]) -> Any:
        """Return the result, or ``None`` for an error about damage; any other error fails the test.

        The damaged name of a serializer may be a name, too.
        """
        try:
            return call()
        except (StorageError, ClaimError, SerializerMismatchError) as error:
            self.errors.append(error)
            return None


class Account(Taken):
    """What came out of a damaged queue."""

    skipped = 0

    def take_all(self, kind: str, place: Path, busy: bool = False) -> None:
        """Get everything that can be had.

        :param busy: put something first, on pages of the free list, too.
        """
        try:
            queue = opened(kind, place)
        except PersistcollError as error:  # a damaged registry may name another serializer, or kind
            self.errors.append(error)
            return
        try:
            self._look(queue)
            if busy:
                self.attempt(partial(queue.put_many, [f"new {number} " + "z" * 900 for number in range(30)]))
            self._drain(kind, queue)
        finally:
            self.attempt(queue.close)

    def _look(self, queue: Any) -> None:
        for look in (queue.qsize, queue.stats, queue.peek, lambda: list(queue.items()), queue.queue):
            with suppress(Empty):
                self.attempt(look)
        self.errors.clear()

    def _drain(self, kind: str, queue: Any) -> None:
        for _ in range(3 * COUNT):
            if self.errors:
                return
            wrong = None
            try:
                self.got.append(queue.get_nowait())
            except Empty:
                return
            except StorageError as error:
                wrong = getattr(error, "id", None)
                if wrong is None:
                    self.errors.append(error)
            if wrong is not None:
                skipped = self.attempt(partial(queue.skip, wrong))
                assert self.errors or skipped == wrong, f"skip({wrong}) did not remove it"
                self.skipped += skipped is not None
            elif kind == "ack" and not self.errors:
                self.attempt(partial(queue.ack, self.got[-1]))
        raise AssertionError("it goes on without end")

    def check(self, image: Image, region: str) -> None:
        """Check that each item came once and as it was put, or an error; and never a wrong one."""
        got = [each for each in self.got if not each.startswith("new ")]
        assert set(got) <= set(image.items), "an item that nobody put"
        if self.errors and region in _MAPS:
            return
        # A page's list of its rows may name one row twice, in the place of another one.
        again = len(got) - len(set(got))
        assert again <= (region == "table leaf"), "an item twice"
        if again:
            return
        if image.kind != "priority":
            assert got == [each for each in image.items if each in set(got)], "not in order"
        if not self.errors:
            assert len(got) + self.skipped >= len(image.items), "an item was lost without a word"


def try_damages(image: Image, region: str, rng: random.Random, place: Path, count: int) -> int:
    """Try so many damages; return how many were noticed."""
    noticed = 0
    for number in range(count):
        lay(place, damaged(image, region, rng), image.lock)
        account = Account()
        account.take_all(image.kind, place, busy=number % 2 == 0)
        account.check(image, region)
        noticed += bool(account.errors or account.skipped)
    return noticed


CASES = [
    (kind, region) for kind in KINDS for region in REGIONS if (kind, region) != ("fifo", "index interior")
]


@pytest.mark.parametrize(("kind", "region"), CASES)
def test_each_kind_of_page(images, kind, region, rng, tmp_path):
    noticed = try_damages(images[kind], region, rng, tmp_path / "q", 10)
    assert noticed or region in ("free", "free list", "index leaf", "index interior", "header")


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "region"), CASES)
def test_each_kind_of_page_often(images, kind, region, rng, tmp_path):
    assert try_damages(images[kind], region, rng, tmp_path / "q", 500) or region == "free"


def test_what_is_not_damaged_comes_whole(images, tmp_path):
    """A test of the test."""
    for image in images.values():
        assert all(image.pages[region] for region in REGIONS if (image.kind, region) in CASES)
        for busy in (False, True):
            lay(tmp_path / "q", image.data, image.lock)
            account = Account()
            account.take_all(image.kind, tmp_path / "q", busy)
            account.check(image, "none")
            assert (account.errors, account.skipped) == ([], 0)
            assert len(account.got) == len(image.items) + 30 * busy


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_that_is_cut(images, kind, rng, tmp_path):
    image = images[kind]
    pages = len(image.data) // PAGE
    for size in [
        0,
        1,
        99,
        100,
        PAGE,
        *(rng.randrange(pages) * PAGE + rng.choice((0, 0, 1, 700)) for _ in range(9)),
    ]:
        lay(tmp_path / "q", image.data[:size], image.lock)
        account = Account()
        account.take_all(kind, tmp_path / "q")
        account.check(image, "table interior")
        # The last page may hold nothing: then every item is there. A cut row is skipped by its id.
        told = len(account.got) + account.skipped
        assert account.errors or told == len(image.items), f"cut to {size} of {len(image.data)}"


def test_each_byte_of_the_lock_file(images, rng, tmp_path):
    """It records whose turn it is and which database it belongs to, and nothing of the items."""
    image = images["fifo"]
    for at in range(len(image.lock)):
        lock = bytearray(image.lock)
        lock[at] ^= 1 << rng.randrange(8)
        lay(tmp_path / "q", image.data, bytes(lock))
        account = Account()
        account.take_all("fifo", tmp_path / "q")
        account.check(image, "none")
        assert bool(account.errors) == (at < 8), "its magic is checked"


# Cases that the random trials above once found.


def root(path: Path, name: str) -> int:
    """Return the offset of the root page of this table or index in the file."""
    with closing(sqlite3.connect(path / "data.db")) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return int((connection.execute(query, (name,)).fetchone()[0] - 1) * PAGE)


def patch(path: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of the closed database."""
    with open(path / "data.db", "r+b") as file:
        file.seek(at)
        file.write(data)


def no_cells(path: Path, name: str) -> None:
    """Make the root page, a leaf, say that it holds nothing."""
    patch(path, root(path, name) + 3, b"\0\0")


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_are_not_found_are_not_taken_for_none(kind, tmp_path):
    with opened(kind, tmp_path) as queue:
        queue.put_many(["a", "b", "c"])
        queue.skip(2)
    no_cells(tmp_path, "order_1" if kind == "priority" else "ready_1")
    with opened(kind, tmp_path) as queue:
        for call in (queue.get, queue.get_nowait, lambda: queue.get_many(5), queue.peek):
            with pytest.raises(CorruptionError, match=r"clear\(\) begins anew"):
                call()
        assert queue.clear() == 2
        with pytest.raises(Empty):
            queue.get_nowait()
        assert (queue.qsize(), queue.unfinished_tasks, queue.put("d")) == (0, 0, 4)


def test_a_queue_that_the_registry_does_not_find_is_not_begun_anew(tmp_path):
    with opened("fifo", tmp_path) as queue:
        queue.put("a")
    no_cells(tmp_path, "sqlite_autoindex_collections_1")
    with pytest.raises(CorruptionError, match="registry of names"):
        opened("fifo", tmp_path)


def test_what_is_due_and_not_there_is_not_looked_for_without_end(tmp_path):
    with opened("ack", tmp_path) as queue:
        queue.put("a")
        queue.nack(queue.get(), delay=3600)
        due = queue._store._counters.next_due_at
    no_cells(tmp_path, "held_1")
    assert due is not None
    queue = opened("ack", tmp_path)
    queue._store._clock = lambda: due + 1
    for call in (queue.qsize, queue.get, lambda: queue.put("b")):
        with pytest.raises(CorruptionError):
            call()
    queue.close()


def test_rows_that_do_not_come_by_their_ids_are_not_gone_through_without_end(tmp_path):
    with opened("fifo", tmp_path) as queue:
        queue.put_many(range(2000))
    data = (tmp_path / "data.db").read_bytes()
    at = root(tmp_path, "ready_1")
    first, last = (data[at + 12 + 2 * cell : at + 14 + 2 * cell] for cell in (0, 20))
    patch(tmp_path, at + 12, last)  # exchange two children of the root
    patch(tmp_path, at + 12 + 40, first)
    with opened("fifo", tmp_path) as queue, pytest.raises(CorruptionError):
        list(queue.items())


def test_the_rows_of_another_queue_are_none_of_this_ones(tmp_path):
    """They have the same ids, and their checksums are right."""
    with opened("fifo", tmp_path) as queue, SQLiteQueue(tmp_path, name="other", serializer="json") as other:
        queue.put_many(["mine"] * 3)
        other.put_many(["not mine"] * 3)
    page = root(tmp_path, "ready_2")
    patch(tmp_path, root(tmp_path, "ready_1"), (tmp_path / "data.db").read_bytes()[page : page + PAGE])
    with opened("fifo", tmp_path) as queue:
        for id in (1, 2, 3):
            with pytest.raises(CorruptionError) as caught:
                queue.get()
            assert caught.value.id == id
            assert queue.skip(id) == id


# The log.


def history(path: str) -> list[list[str]]:
    """Return what is ready after each of some puts and gets."""
    states: list[list[str]] = [[]]
    for number in range(40):
        states.append([*states[-1], item(number)])
        if number % 4 == 3:
            states.append(states[-1][1:])
    return states


def live(path: Path) -> None:
    """Do the same in a process that ends without closing."""

    kept: list[Any] = []  # no destructor closes the queue

    def child() -> None:
        queue = opened("fifo", path)
        kept.append(queue)
        for number in range(40):
            queue.put(item(number))
            if number % 4 == 3:
                queue.get()

    in_forked_child(child)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> list[tuple[bytes, bytes, bytes]]:
    """Return the files of two queues with this history."""
    found = []
    for number in range(2):
        path = tmp_path_factory.mktemp("logs") / str(number)
        live(path)
        names = ("data.db", "data.db.lock", "data.db-wal")
        found.append(tuple((path / name).read_bytes() for name in names))
    return found


def left(place: Path) -> list[str] | None:
    """Return what is ready there; ``None`` if that cannot be said."""
    try:
        with opened("fifo", place) as queue:
            return list(queue.items())
    except StorageError:
        return None


@pytest.mark.parametrize("how", ["bit", "zeros", "noise", "cut", "frames exchanged"])
def test_a_damaged_log_ends_there(logs, how, rng, tmp_path):
    """The log has checksums: everything up to some moment is there, and nothing else."""
    (data, lock, log), states = logs[0], history("")
    frame, head = PAGE + 24, 32
    lay(tmp_path / "q", data, lock, log)
    assert left(tmp_path / "q") == states[-1]
    shorter = 0
    for _ in range(25):
        new = bytearray(log)
        at = rng.choice(
            (rng.randrange(len(log)), rng.randrange(head), rng.randrange(head, len(log)) // frame * frame)
        )
        if how == "bit":
            new[at] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del new[at:]
        elif how == "frames exchanged":
            one, other = (head + frame * rng.randrange(len(log) // frame - 1) for _ in range(2))
            new[one : one + frame], new[other : other + frame] = (
                log[other : other + frame],
                log[one : one + frame],
            )
        else:
            end = min(at + 16, len(log))
            new[at:end] = bytes(end - at) if how == "zeros" else rng.randbytes(end - at)
        lay(tmp_path / "q", data, lock, bytes(new))
        found = left(tmp_path / "q")
        assert found is None or found in states, "never so"
        shorter += found != states[-1]
    assert shorter


def test_the_log_of_another_database(logs, tmp_path):
    """SQLite takes it for this database's log, but the rows say that they are not."""
    (data, lock, _), (_, _, log) = logs
    lay(tmp_path / "q", data, lock, log)
    account = Account()
    account.take_all("fifo", tmp_path / "q")
    assert set(account.got) <= {item(number) for number in range(40)}


def test_the_index_of_the_log_is_made_anew(logs, rng, tmp_path):
    data, lock, log = logs[0]
    lay(tmp_path / "q", data, lock, log)
    (tmp_path / "q" / "data.db-shm").write_bytes(rng.randbytes(32768))
    assert left(tmp_path / "q") == history("")[-1]


# Single columns.


@pytest.mark.parametrize("value", ["NULL", "'text'", "x'00ff'", "-1", "1e300", "9223372036854775807"])
@pytest.mark.parametrize("column", ["payload", "crc", "attempts", "time", "priority", "key"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_column(kind, column, value, tmp_path):
    """An error names the row, and ``skip()`` removes it; or the item is as it was put."""
    with opened(kind, tmp_path) as queue:
        queue.put_many(["first", "next", "last"])
    with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as database:
        database.execute(f"UPDATE ready_1 SET {column} = {value} WHERE id = 2")
    account = Account()
    account.take_all(kind, tmp_path)
    assert account.errors == []
    if account.skipped:
        assert account.got == ["first", "last"]
    else:
        assert sorted(account.got) == ["first", "last", "next"]
    assert bool(account.skipped) >= (column in ("payload", "crc"))
    with opened(kind, tmp_path) as queue:
        assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)
        assert queue.put("one more") == 4


@pytest.mark.parametrize("value", ["NULL", "'text'", "x'00ff'"])
@pytest.mark.parametrize("kind", KINDS)
def test_stats_of_an_item_whose_time_is_damaged(kind, value, tmp_path):
    with opened(kind, tmp_path) as queue:
        queue.put("first")
        with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as database:
            database.execute(f"UPDATE ready_1 SET time = {value}")
        with pytest.raises(CorruptionError, match="a time"):
            queue.stats()
        assert queue.get() == "first"


@pytest.mark.parametrize("id", [0, -1, -(1 << 63), (1 << 63) - 1])
def test_an_id_that_no_item_can_have_is_skipped_as_the_error_names_it(id, tmp_path):
    with opened("fifo", tmp_path) as queue:
        queue.put_many(["first", "next"])
        with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as database:
            database.execute("UPDATE ready_1 SET id = ? WHERE id = 1", (id,))
        if id > 0:
            assert queue.get() == "next"
        with pytest.raises(CorruptionError) as caught:
            queue.get()
        assert caught.value.id == id
        assert queue.skip(caught.value.id) == id
        assert queue.qsize() == (0 if id > 0 else 1)


def test_a_damaged_name_that_no_text_can_quote(tmp_path):
    """SQLite's message quotes it, so `sqlite3` cannot decode the message, for an open queue or a new one."""
    with opened("fifo", tmp_path) as queue:
        queue.put("first")
        with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as database:
            database.execute("PRAGMA writable_schema=ON")
            database.execute(
                "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT), sql = 'CREATE' WHERE name = 'ready_1'"
            )
            database.execute("PRAGMA schema_version=1000")  # so that SQLite reads the schema again
        for call in (
            queue.get_nowait,
            queue.peek,
            partial(queue.put, "next"),
            partial(opened, "ack", tmp_path),
        ):
            with pytest.raises(CorruptionError, match="schema"):
                call()
    with pytest.raises(CorruptionError, match="schema"):
        opened("fifo", tmp_path)


def test_a_row_that_is_damaged_while_it_is_held(tmp_path):
    with opened("ack", tmp_path) as queue:
        queue.put_many(["first", "next"])
        first = queue.get()
        with closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as database:
            database.execute("UPDATE held_1 SET payload = x'00'")
        with pytest.raises(CorruptionError, match="ack_failed"):
            queue.nack(first, to_back=True)
        assert queue.nack(first) == 1
        with pytest.raises(CorruptionError) as caught:
            queue.get()
        assert caught.value.id == 1
        assert queue.skip(1) == 1
        assert queue.ack(queue.get()) == 2
        assert queue.active_size() == 0
        assert os.listdir(tmp_path)


@pytest.mark.parametrize("column", ["name", "kind", "serializer"])
def test_damaged_characters_in_the_registry_are_damage(column, tmp_path):
    """They do not make it another kind, or a collection of another serializer."""
    with SQLiteQueue(tmp_path, "\ufffd", durability="process", serializer="json") as queue:
        queue.put(1)
    assert [*collections(tmp_path)] == ["\ufffd"]
    with SQLiteQueue(tmp_path, "\ufffd", durability="process", serializer="json") as queue:
        assert queue.get_nowait() == 1
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection, connection:
        connection.execute(f"UPDATE collections SET {column} = CAST(x'ff6f' AS TEXT)")
    with pytest.raises(CorruptionError):
        collections(tmp_path)
    if column != "name":  # Otherwise there is none of that name.
        with pytest.raises(CorruptionError):
            SQLiteQueue(tmp_path, "\ufffd", durability="process", serializer="json")
