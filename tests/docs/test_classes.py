"""The table of the classes is true: order, processes, delivery, and the syncs, counted at the disk."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import persistcoll
from persistcoll import Empty, StorageFullError
from persistcoll.testing.faults import FaultyDisk
from tests.servers.places import CLASSES, Place

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "classes.rst"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")

_CLASS = re.compile(r"``([A-Z]\w+)``")
_OPTION = re.compile(r"``(\w+)=(\w+)``")


@dataclass(frozen=True)
class Row:
    """One row of the table, for one class."""

    name: str
    options: dict[str, bool]
    order: str
    processes: str
    delivered: str
    acked_by: str
    syncs: str
    full: str
    machines: str


def rows() -> list[Row]:
    """Return a row for each class that the table names."""
    if not PAGE.is_file():
        return []
    found = []
    for text in re.findall(r"^ {3}\* - (``.*\n(?: {5}- .*\n)+)", PAGE.read_text("utf-8"), re.MULTILINE):
        first, *others = (cell.strip() for cell in text.split("\n     - "))
        options = {option: value == "True" for option, value in _OPTION.findall(first)}
        found += [Row(name, options, *others) for name in _CLASS.findall(first) if name != "Consumer"]
    return found


ROWS = rows()
LOCAL = [row for row in ROWS if row.machines != "several"]
QUEUES = [row for row in ROWS if row.name != "PDict"]


def every(which: list[Row]) -> Any:
    """Run a test for each of these rows."""
    names = [row.name + "".join(f"-{option}" for option in row.options) for row in which]
    return pytest.mark.parametrize("row", which, ids=names)


@pytest.fixture
def opened(row, tmp_path):
    """Return a function that opens the collection of a row, on a server too."""
    places = [Place(kind) for kind, prefix in CLASSES.items() if row.name.startswith(prefix)]
    where = (
        places[0].where if places else {"target" if row.name == "MessageQueue" else "path": tmp_path / "q"}
    )
    yield lambda **options: Subject(row, {**where, **options})
    for place in places:
        place.close()


class Subject:
    """What a row is about, with the same few calls for each class."""

    def __init__(self, row: Row, options: dict[str, Any]) -> None:
        self.row = row
        self.disk = FaultyDisk()
        in_files = {"_disk": self.disk} if row.name in ("Queue", "Log") else {}
        self.container = getattr(persistcoll, row.name)(**options, **row.options, **in_files)
        self.consumer = self.container.consumer("c") if row.name == "Log" else self.container
        self._got: Any = None

    def put(self, item: str, priority: int | None = None) -> None:
        match self.row.name:
            case "Log":
                self.container.append(item)
            case "PDict":
                self.container[item] = item
            case _:
                ranked = {} if priority is None else {"priority": priority}
                self.container.put(item, **ranked)

    def get(self) -> Any:
        if self.row.name == "PDict":
            return self.container["b"]
        self._got = self.consumer.get(block=False)
        return self._got.body if self.row.name == "MessageQueue" else self._got

    def ack(self) -> None:
        """Call what the row says."""
        match self.row.acked_by:
            case "``task_done()``":
                self.container.task_done()
            case "``ack()``" if self.row.name == "MessageQueue":
                self._got.ack()
            case "``ack()``":
                self.container.ack(self._got)
            case "``commit()``":
                self.consumer.commit()
            case other:
                raise AssertionError(other)

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()


def test_every_class_has_a_row():
    kinds = {
        name for name in persistcoll.__all__ if re.search("Queue$|Queue[A-Z]|UniqueQ|AckQ|PDict|Log", name)
    }
    aliases = {"FIFOSQLiteQueue", "LIFOSQLiteQueue", "FIFOSQLiteAckQueue"}
    assert {row.name for row in ROWS} == kinds - aliases
    assert [name for name in aliases if getattr(persistcoll, name).__name__ == name] == []


ORDERS = {
    "oldest first": "bacb",
    "newest first": "bcab",
    "oldest first; no equal items": "bac",
    "lowest priority first": "abbc",
    "highest priority first": "cbba",
}


@every(QUEUES)
def test_the_order(row, opened):
    ranked = "priority" in row.order
    found = ""
    with opened() as subject:
        for item, priority in ("b", 2), ("a", 1), ("c", 3), ("b", 2):
            subject.put(item, priority if ranked else None)
        while len(found) < 5:
            try:
                found += subject.get()
            except Empty:
                break
    assert found == ORDERS[row.order]


@every([row for row in ROWS if row.name == "PDict"])
def test_the_order_of_a_dict(row, opened):
    with opened() as subject:
        for item in "bacb":
            subject.put(item)
        assert (row.order, list(subject.container)) == ("first assignment first", ["b", "a", "c"])


@every(QUEUES)
def test_the_delivery(row, opened):
    with opened() as subject:
        subject.put("b")
        assert subject.get() == "b"
    with opened() as subject:  # The first object has acked nothing.
        try:
            found = "at least once" if subject.get() == "b" else "?"
        except Empty:
            found = "at most once"
    assert (row.delivered, row.acked_by == "``get()``") == (found, found == "at most once")


CHILD = """
import sys
import persistcoll

container = getattr(persistcoll, sys.argv[1])(sys.argv[2])
try:
    consumer = container.consumer("c") if sys.argv[1] == "Log" else container
    print(consumer["b"] if sys.argv[1] == "PDict" else consumer.get(block=False))
except persistcoll.LockedError:
    print("locked")
finally:
    container.close()
"""


@every(LOCAL)
def test_the_processes(row, opened, tmp_path):
    with opened() as subject:
        for item in "abc":
            subject.put(item)
        subject.get()
        words = [sys.executable, "-c", CHILD, row.name, str(tmp_path / "q")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    found = "one at a time" if done.stdout == "locked\n" else "any number"
    assert row.processes.replace("for each consumer", "at a time") == found


@every(LOCAL)
@pytest.mark.parametrize("durability", ["power", "process"])
def test_the_syncs(row, opened, durability, monkeypatch):
    with opened(durability=durability) as subject:
        database = getattr(getattr(subject.container, "_store", None), "_database", None)
        if database is not None:
            sync = database.disk.sync
            monkeypatch.setattr(
                database.disk, "sync", lambda fd: (subject.disk.calls.update(["sync"]), sync(fd))
            )
        for item in "abcb":  # The first call of a kind may make files.
            subject.put(item)
        subject.get()
        if row.delivered == "at least once":
            subject.ack()
        found = []
        calls = [lambda: subject.put("d"), subject.get]
        for call in [*calls, subject.ack] if row.delivered == "at least once" else calls:
            subject.disk.calls.clear()
            call()
            found.append(str(subject.disk.calls["sync"]))
    assert ", ".join(found) == (row.syncs if durability == "power" else row.syncs.replace("1", "0"))


@every([row for row in LOCAL if row.name in ("Queue", "Log")])
def test_a_full_disk(row, opened):
    with opened() as subject:
        for item in "abcd":
            subject.put(item)
        subject.get()
        if row.name == "Log":
            # This one takes the first bytes of a block. The disk of this test counts them, a real one not.
            subject.container.trim(2, force=True)
        subject.disk.full(0)
        with pytest.raises(StorageFullError):
            subject.put("e")
        assert subject.get() == "b"
        if row.delivered == "at least once":
            subject.ack()
        if row.name == "Log":
            assert subject.container.trim(3) == 1
        wanted = "gets, trims, some commits" if row.name == "Log" else "gets, acks"
        assert row.full == (wanted if row.delivered == "at least once" else "gets")
        subject.disk.heal()
        subject.put("e")
