"""An interrupt at every place of every operation in a database.

The operation happens wholly or not at all, and no lock stays held.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty
from persistcoll.engine.contracts import Select
from persistcoll.engine.records import FIFO, PRIORITY, UNIQUE, ClaimPolicy, Discipline, Entry, Record, State
from persistcoll.sqlite.open import DatabaseLocation, open_record_store
from tests.interrupting import interruptions
from tests.leaks import open_below

pytestmark = [
    pytest.mark.timeout(300),
    # What a generator or a weak reference raises while it is freed with its frame reaches no caller.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOLDERS = {0: State.DELAYED, -1: State.DONE, -2: State.FAILED, -3: State.DEAD}


class Observer:
    """A connection of its own, which shares nothing with the interrupted handle."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection = sqlite3.connect(database, timeout=0, isolation_level=None)
        self._execute = self._connection.execute

    def close(self) -> None:
        self._connection.close()

    def number(self, name: str) -> int:
        (number,) = self._execute("SELECT number FROM collections WHERE name = ?", (name,)).fetchone()
        return int(number)

    def everything(self, number: int) -> Any:
        """Return what is stored in the collection of this number."""
        found = [(State.READY, row[0]) for row in self._execute(f"SELECT payload FROM ready_{number}")]
        for holder, payload in self._execute(f"SELECT holder, payload FROM held_{number}"):
            found.append((HOLDERS.get(holder, State.CLAIMED), payload))
        return Counter(found)

    def claims(self, number: int) -> set[tuple[int, int]]:
        return {*self._execute(f"SELECT id, attempts FROM held_{number} WHERE holder > 0")}

    def expect_nothing_held(self) -> None:
        """Check that another process could write at once."""
        for end in (".lock", ".turn"):
            fd = os.open(f"{self._database}{end}", os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(fd)
        self._execute("BEGIN IMMEDIATE")
        self._execute("ROLLBACK")


@pytest.fixture
def place(memory_path: Path) -> Iterator[Path]:
    yield memory_path
    assert not open_below(memory_path)


def bytes_of(record: Record) -> bytes:
    return record.payload


class Scene:
    """A record store with five records that are ready, one delayed and two claimed."""

    def __init__(
        self, place: Path, name: str, discipline: Discipline, retry: ClaimPolicy, durability: Any
    ) -> None:
        self.name = name
        self.store: Any = open_record_store(
            DatabaseLocation(place),
            name=name,
            kind="test",
            discipline=discipline,
            retry=retry,
            serializer="raw",
            executes_code=False,
            durability=durability,
        )
        self.claims: list[Any] = []
        self.store.put([Entry(b"%d" % number, number, b"%d" % number) for number in range(8)])
        self.store.fail([self.store.claim(lambda record: record.id)], "no")
        for _ in range(3):
            self.store.claim(bytes_of, claims=self.claims)
        self.ids = [id for id, _ in self.claims]
        self.store.nack(self.ids[0], 1000.0)
        del self.claims[0]


Operation = Callable[[Scene], object]
OPERATIONS: dict[str, Operation] = {
    "append": lambda s: s.store.append(b"new"),
    "put": lambda s: s.store.put([Entry(b"new", 1, b"new"), Entry(b"newer", 1, b"newer")]),
    "get": lambda s: s.store.pop(bytes_of),
    "get one": lambda s: s.store.pop(bytes_of, Select(s.ids[-1] + 2)),
    "get many": lambda s: s.store.pop_many(3, bytes_of),
    "claim": lambda s: s.store.claim(bytes_of, claims=s.claims),
    "claim many": lambda s: s.store.claim_many(3, bytes_of, claims=s.claims),
    "ack": lambda s: s.store.ack(s.ids[1:]),
    "fail": lambda s: s.store.fail(s.ids[1:2]),
    "give back": lambda s: s.store.nack(s.ids[1]),
    "give several back": lambda s: s.store.nack_many(s.ids[1:], "busy"),
    "requeue": lambda s: s.store.requeue(),
    "put for later": lambda s: s.store.put([Entry(b"new", 1, b"new", 100.0), Entry(b"newer", 1, b"newer")]),
    "give back later": lambda s: s.store.nack(s.ids[1], 100.0),
    "give back behind all": lambda s: s.store.nack(s.ids[1], to_back=True),
    "release": lambda s: s.store.release(s.claims),
    "update": lambda s: s.store.update(s.ids[-1] + 1, b"another", b"another"),
    "remove": lambda s: s.store.remove(),
    "clear": lambda s: s.store.clear(),
    "peek": lambda s: s.store.peek(bytes_of),
    "records": lambda s: [*s.store.records()],
    "scan": lambda s: [*s.store.scan()],
    "count": lambda s: s.store.count(),
    "stats": lambda s: s.store.stats(),
    "change_token": lambda s: s.store.change_token(),
    "reclaim": lambda s: s.store.reclaim(),
    "shrink": lambda s: s.store.shrink(),
    "close": lambda s: s.store.close(),
}


# The object that syncs the log closes its file by itself.
CLOSING = tuple(
    f"{name}.py"
    for name in (
        "record_store claims handle holders registry database database_file owned_lock readers watcher"
        " writer_lock"
    ).split()
)


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize(
    ("discipline", "retry"),
    [
        (FIFO, ClaimPolicy(auto_reclaim=True)),
        (UNIQUE, ClaimPolicy(lease=100.0, keep_done=5, max_attempts=3)),
        (PRIORITY, ClaimPolicy()),
    ],
    ids=["fifo", "unique", "priority"],
)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_table(place, operation, discipline, retry, durability, steps):
    make = partial(Scene, place, discipline=discipline, retry=retry, durability=durability)
    observed = partial(Observer, place / "data.db")
    if operation is OPERATIONS["close"]:
        interrupt_everywhere(make, operation, observed, files=CLOSING, **steps)
    else:
        interrupt_everywhere(make, operation, observed, expect_goes_on, **steps)


def interrupt_everywhere(
    make: Callable[[str], Any],
    operation: Callable[[Any], object],
    observe: Callable[[], Observer],
    goes_on: Callable[[Any, Any, int, str], None] | None = None,
    **places: Any,
) -> None:
    """Check at each place that the operation happens wholly or not at all, and that no lock stays held.

    :param make: opens a store of this name, with the same content each time.
    :param goes_on: checks that the interrupted store can be used.
    """
    uninterrupted = make("uninterrupted")
    observer = observe()
    number = observer.number("uninterrupted")
    before = observer.everything(number)
    operation(uninterrupted)
    after = observer.everything(number)
    uninterrupted.store.close()
    names = (f"interrupted {count}" for count in itertools.count())

    def prepare() -> Any:
        scene = make(next(names))
        assert observer.everything(observer.number(scene.name)) == before
        return scene

    for scene, where in interruptions(prepare, operation, **places):
        number = observer.number(scene.name)
        found = observer.everything(number)
        assert found in ((before, after) if where else (after,)), where
        observer.expect_nothing_held()
        if goes_on is not None:
            goes_on(scene, observer, number, where)
        scene.store.close()
    observer.close()


def expect_goes_on(scene: Scene, observer: Observer, number: int, where: str) -> None:
    store = scene.store
    found = Counter(state for state, _ in observer.everything(number).elements())
    stats = store.stats()
    assert {state: getattr(stats, state.value) for state in State if found[state]} == found, where
    # The claims that the store remembers are those in the database.
    stored = observer.claims(number)
    assert stored <= {(id, attempts) for id, (attempts, _) in scene.claims}, where
    assert {id: attempts for id, (attempts, _) in store._claims._held.items()} == dict(stored), where
    assert store.release(scene.claims) == found[State.CLAIMED], where
    ready = found[State.READY] + found[State.CLAIMED]
    assert store.count() == ready, where
    assert store.append(b"last") > 0
    drained = []
    while True:
        try:
            drained.append(store.pop(bytes_of))
        except Empty:
            break
    assert len(drained) == ready + 1, where
