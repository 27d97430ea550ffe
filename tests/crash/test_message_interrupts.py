"""An interrupt at every place of every operation on messages.

The operation happens wholly or not at all, no lock stays held, and the caller knows each claim from
``claims``, and each lock of a topic from ``locks``.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import Empty
from persistcoll.engine.message_events import MessageEvent
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy, TopicClaim
from persistcoll.engine.records import State
from persistcoll.sqlite.message_statements import STATES
from tests.crash.messages import is_consistent, opened
from tests.crash.test_sqlite_interrupts import CLOSING, Observer
from tests.interrupting import interruptions
from tests.leaks import open_below

pytestmark = [
    pytest.mark.timeout(300),
    # What a generator or a weak reference raises while it is freed with its frame reaches no caller.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

_BY_NUMBER = {number: state for state, number in STATES.items()}


class MessageObserver(Observer):
    """Sees the messages and the topics as another process does."""

    def messages(self, number: int) -> Counter[tuple[Any, ...]]:
        found = self._execute(
            f"SELECT id, state, topic, attempts, deliveries, until IS NULL, error FROM messages_{number}"
        )
        return Counter((id, _BY_NUMBER[state], *rest) for id, state, *rest in found)

    def tokens(self, number: int) -> set[MessageClaim]:
        found = self._execute(f"SELECT id, token FROM messages_{number} WHERE state = 1")
        return {MessageClaim(*row) for row in found}

    def gates(self, number: int) -> set[tuple[Any, ...]]:
        found = self._execute(
            f"SELECT topic, paused, interval, locker IS NULL, lock_until IS NULL FROM topics_{number}"
        )
        return {*found}

    def locks(self, number: int) -> set[TopicClaim]:
        found = self._execute(f"SELECT topic, lock FROM topics_{number} WHERE lock IS NOT NULL")
        return {TopicClaim(*row) for row in found}

    def keys(self, number: int) -> set[tuple[Any, ...]]:
        return {*self._execute(f"SELECT key, id, unfinished FROM keys_{number}")}

    def everything(self, number: int) -> tuple[Any, ...]:
        return self.messages(number), self.gates(number), self.keys(number)


@pytest.fixture
def place(memory_path: Path) -> Iterator[Path]:
    yield memory_path
    assert not open_below(memory_path)


class Scene:
    """A message store with messages in every state, and a topic that is locked.

    :ivar claims: what the caller knows to be claimed.
    :ivar locks: what the caller knows to be locked.
    """

    def __init__(self, place: Path, name: str, durability: Any) -> None:
        self.name = name
        policy = MessagePolicy(lease=1000.0, max_attempts=3, backoff=None, keep_done=5)
        self.store = opened(place, policy, durability, name)
        self.claims: list[MessageClaim] = []
        entries = [MessageEntry(b"%d" % number, key=b"%d" % number) for number in range(6)]
        entries += [MessageEntry(b"grouped %d" % number, group="g", priority=-1) for number in range(3)]
        entries += [MessageEntry(b"later", delay=1000.0), MessageEntry(b"other", "other", priority=-2)]
        self.store.put(entries)
        self.store.claim(4, claims=self.claims)
        self.store.fail([self.claims.pop(0)], "failed")
        self.store.ack([self.claims.pop(0)])
        self.store.claim(topics=["other"], prefetch=True, claims=self.claims)
        self.locks: list[TopicClaim] = []
        self.store.lock_topic("locked", 1000.0, locks=self.locks)
        (self.lock,) = self.locks


Operation = Callable[[Scene], object]
OPERATIONS: dict[str, Operation] = {
    "put": lambda s: s.store.put([MessageEntry(b"new", key=b"new"), MessageEntry(b"newer", group="g")]),
    "claim": lambda s: s.store.claim(claims=s.claims),
    "claim many": lambda s: s.store.claim(5, claims=s.claims, prefetch=True),
    "claim of a topic": lambda s: s.store.claim(2, ["default", "other"], claims=s.claims),
    "deliver": lambda s: s.store.deliver(s.claims[-1:]),
    "ack": lambda s: s.store.ack(s.claims[:2]),
    "nack": lambda s: s.store.nack(s.claims[:2], None, "error"),
    "nack with a delay": lambda s: s.store.nack(s.claims[:1], 100.0),
    "fail": lambda s: s.store.fail(s.claims[:2], "failed"),
    "release": lambda s: s.store.release(s.claims),
    "extend": lambda s: s.store.extend(s.claims, None),
    "redrive": lambda s: s.store.redrive(1),
    "redrive all": lambda s: s.store.redrive_all(),
    "cancel": lambda s: s.store.cancel(7),
    "purge": lambda s: s.store.purge(),
    "release_key": lambda s: s.store.release_key(b"4"),
    "lock_topic": lambda s: s.store.lock_topic("default", 1000.0, locks=s.locks),
    "lock the fullest": lambda s: s.store.lock_topic(None, None, locks=s.locks),
    "extend_lock": lambda s: s.store.extend_lock(s.lock, None),
    "unlock_topic": lambda s: s.store.unlock_topic(s.lock),
    "pause": lambda s: s.store.pause("default"),
    "set_rate": lambda s: s.store.set_rate("default", 1.0, 2),
    "find": lambda s: s.store.find(5),
    "scan": lambda s: [*s.store.scan()],
    "topics": lambda s: s.store.topics(),
    "stats": lambda s: s.store.stats(),
    "reclaim": lambda s: s.store.reclaim(),
    "close": lambda s: s.store.close(),
}
MESSAGE_CLOSING = (*CLOSING, "message_store.py", "message_life.py", "holding.py")


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_messages(place, operation, durability, steps):
    uninterrupted = Scene(place, "uninterrupted", durability)
    observer = MessageObserver(place / "data.db")
    number = observer.number("uninterrupted")
    before = observer.everything(number)
    operation(uninterrupted)
    after = observer.everything(number)
    uninterrupted.store.close()
    names = (f"interrupted {count}" for count in itertools.count())

    def prepare() -> Scene:
        scene = Scene(place, next(names), durability)
        assert observer.everything(observer.number(scene.name)) == before
        return scene

    # The object that syncs the log closes its file by itself.
    files = MESSAGE_CLOSING if operation is OPERATIONS["close"] else ()
    for scene, where in interruptions(prepare, operation, files=files, **steps):
        number = observer.number(scene.name)
        found = observer.everything(number)
        assert found in ((before, after) if where else (after,)), where
        observer.expect_nothing_held()
        if operation is not OPERATIONS["close"]:
            expect_goes_on(scene, observer, number, where)
        scene.store.close()
    observer.close()


@pytest.mark.parametrize("name", ["put", "claim many", "ack", "nack", "release", "purge", "close"])
def test_what_an_observer_is_told_was_done(place, name, steps):
    observer = MessageObserver(place / "data.db")
    told: list[MessageEvent] = []
    names = (f"interrupted {count}" for count in itertools.count())

    def prepare() -> Scene:
        scene = Scene(place, next(names), "process")
        told.clear()
        scene.store.observe(told.extend)
        before[:] = [observer.everything(observer.number(scene.name))]
        return scene

    before: list[Any] = []
    whole: list[Counter[tuple[Any, ...]]] = []
    for scene, where in interruptions(prepare, OPERATIONS[name], **steps):
        found = Counter((event.kind, event.topic, event.id, event.count) for event in told)
        is_done = observer.everything(observer.number(scene.name)) != before[0]
        whole += [found] if found not in ({}, *whole) else []
        assert is_done or not found, where
        assert found or where, "nothing was told of a call that was not interrupted"
        scene.store.observe(None)
        scene.store.close()
    assert len(whole) == 1, "a call was told in part"
    observer.close()


def expect_goes_on(scene: Scene, observer: MessageObserver, number: int, where: str) -> None:
    store = scene.store
    found = Counter(state for _, state, *_ in observer.messages(number).elements())
    stats = store.stats()
    assert {state: getattr(stats, state.value) for state in State if found[state]} == found, where
    assert observer.tokens(number) <= {*scene.claims}, f"a claim that the caller does not know: {where}"
    assert store.release(scene.claims) == found[State.CLAIMED], where
    assert store.stats().claimed == 0, where
    locks = observer.locks(number)
    assert locks <= {*scene.locks}, f"a lock that the caller does not know: {where}"
    assert {lock for lock in scene.locks if store.unlock_topic(lock)} == locks, where
    for topic in ("default", "other", "locked"):
        store.resume(topic)
        store.set_rate(topic, None)
    (last,) = store.put([MessageEntry(b"last")])
    ids = []
    while True:
        try:
            (record,) = store.claim()
        except Empty:
            break
        assert record.claim is not None
        ids.append(record.id)
        store.ack([record.claim])
    stats = store.stats()
    assert last in ids, where
    assert len({*ids}) == len(ids), where
    assert (stats.ready, stats.claimed, stats.blocked) == (0, 0, 0), where
    assert stats.delayed == found[State.DELAYED], where


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_closing_that_is_interrupted_leaves_whole_tables(place, durability, steps):
    """What another process reclaims then is what closing would have ended."""
    ends = set()

    def prepare() -> Scene:
        shutil.rmtree(place)
        place.mkdir()
        return Scene(place, "messages", durability)

    for scene, where in interruptions(prepare, OPERATIONS["close"], files=MESSAGE_CLOSING, **steps):
        scene.store.close()
        again = opened(place, MessagePolicy(lease=1000.0))
        stats = again.stats()
        assert (stats.claimed, stats.ready, stats.blocked) == (0, 6, 2), where
        assert again.lock_topic("locked", None) is not None, where
        ends.add(tuple(record.error for record in again.scan(State.READY)))
        again.close()
        is_consistent(place)
    assert ends
