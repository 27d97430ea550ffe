"""Damage in every kind of page of a message queue's database, and in single columns of its rows.

A claim makes a message with a damaged payload dead and takes the next one. What looks at it raises an error
that names it, and ``cancel`` removes it. Whatever is damaged, no message is delivered altered.
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import struct
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persistcoll import CorruptionError, Empty
from persistcoll.engine.message_records import DAMAGED, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.sqlite.message_statements import STATES
from tests.crash.messages import is_consistent, opened
from tests.crash.test_sqlite_damage import PAGE, REGIONS, Image, Taken, damaged, lay, no_cells, regions

POLICY = MessagePolicy(lease=None, backoff=None, max_attempts=3)
COUNT = 250

pytestmark = pytest.mark.timeout(60)  # A hang is a failure too.


@pytest.fixture
def path(memory_path: Path) -> Path:
    """Give a directory in memory, because no test here depends on syncs."""
    return memory_path / "q"


def changed(path: Path, statement: str, *parameters: Any) -> None:
    """Change a row of the database by other means than the store."""
    with closing(sqlite3.connect(path / "data.db", isolation_level=None)) as connection:
        assert connection.execute(statement, parameters).rowcount == 1


# Single payloads.


@pytest.fixture
def store(path):
    with closing(opened(path, POLICY)) as store:
        yield store
    is_consistent(path)


PAYLOADS = ["x''", "x'00'", "NULL", "'text'", "17", "0.5"]


@pytest.mark.parametrize("value", PAYLOADS)
@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("topics", [None, ["t"]], ids=["any topic", "a topic"])
def test_a_claim_makes_a_damaged_message_dead_and_takes_the_next(store, path, value, limit, topics):
    store.put([MessageEntry(b"%d" % number, "t", key=b"%d" % number) for number in range(4)])
    changed(path, f"UPDATE messages_1 SET payload = {value} WHERE id = 1")
    changed(path, f"UPDATE messages_1 SET payload = {value} WHERE id = 3")
    claimed = []
    while True:
        try:
            claimed += store.claim(limit, topics)
        except Empty:
            break
    assert [record.payload for record in claimed] == [b"1", b"3"]
    assert [record.id for record in claimed] == [2, 4]
    stats = store.stats()
    assert (stats.ready, stats.claimed, stats.dead) == (0, 2, 2)
    with closing(sqlite3.connect(path / "data.db")) as connection:
        dead = connection.execute(
            "SELECT id, attempts, deliveries, error FROM messages_1 WHERE state = ?", (STATES[State.DEAD],)
        )
        assert dead.fetchall() == [(1, 0, 0, DAMAGED), (3, 0, 0, DAMAGED)]
    for id in (1, 3):
        with pytest.raises(CorruptionError) as caught:
            store.find(id)
        assert caught.value.id == id
        assert store.cancel(id) is True
        assert store.find(id) is None
    # Their keys are free again.
    assert store.put([MessageEntry(b"0", key=b"0"), MessageEntry(b"1", key=b"1")]) == [5, None]
    store.ack([record.claim for record in claimed])


def test_a_claim_that_finds_only_damaged_messages(store, path):
    """They are dead although the claim finds nothing."""
    store.put([MessageEntry(b"first"), MessageEntry(b"next", delay=1000)])
    changed(path, "UPDATE messages_1 SET payload = x'00' WHERE id = 1")
    with pytest.raises(Empty):
        store.claim()
    stats = store.stats()
    assert (stats.ready, stats.delayed, stats.dead) == (0, 1, 1)
    assert store.purge(dead=True) == 1


def test_what_looks_at_a_damaged_message_names_it(store, path):
    store.put([MessageEntry(b"first"), MessageEntry(b"next")])
    changed(path, "UPDATE messages_1 SET payload = x'00' WHERE id = 1")
    for look in (store.peek, partial(store.peek, "default"), partial(store.find, 1), lambda: [*store.scan()]):
        with pytest.raises(CorruptionError) as caught:
            look()
        assert caught.value.id == 1
        assert caught.value.path == str(path / "data.db")
    # An iteration goes on after it.
    reading = store.scan(State.READY)
    with pytest.raises(CorruptionError):
        next(reading)
    assert next(reading).payload == b"next"
    assert store.count() == 2
    assert store.cancel(1) is True
    assert store.peek().payload == b"next"
    assert [record.id for record in store.scan()] == [2]


@pytest.mark.parametrize("verb", ["ack", "nack", "release", "fail", "extend"])
def test_a_message_that_is_damaged_while_it_is_claimed(store, path, verb):
    """The claim is settled as ever, because its worker has the whole payload."""
    store.put([MessageEntry(b"first", group="g"), MessageEntry(b"next", group="g")])
    (record,) = store.claim()
    changed(path, "UPDATE messages_1 SET payload = x'00' WHERE id = 1")
    assert store.cancel(1) is False
    getattr(store, verb)([record.claim], *([None] if verb == "extend" else []))
    if verb == "extend":
        store.ack([record.claim])
    (following,) = store.claim()
    assert following.payload == b"next"
    assert store.stats().dead == (verb in ("nack", "release", "fail"))


def test_a_damaged_head_does_not_block_its_group(store, path):
    store.put([MessageEntry(b"%d" % number, group="g") for number in range(3)])
    for id in (1, 2):
        changed(path, "UPDATE messages_1 SET payload = x'00' WHERE id = ?", id)
    (record,) = store.claim()
    assert record.payload == b"2"
    assert [store.redrive(1), store.redrive(2)] == [True, True]
    store.ack([record.claim])
    with pytest.raises(Empty):  # They are still damaged, and dead again.
        store.claim()
    assert store.stats().dead == 2


def test_damaged_messages_use_up_no_rate(store, path):
    store.set_rate("default", 1000.0, 2)
    store.put([MessageEntry(b"%d" % number) for number in range(4)])
    for id in (1, 2):
        changed(path, "UPDATE messages_1 SET payload = x'00' WHERE id = ?", id)
    assert [record.payload for record in store.claim(9)] == [b"2", b"3"]
    with pytest.raises(Empty):
        store.claim()


# Single columns.

VALUES = ["NULL", "'text'", "x'00ff'", "-1", "1e300", "9223372036854775807"]
COLUMNS = [
    "payload", "crc", "state", "topic", "place", "created", "attempts", "deliveries", "until", "due",
    "finished", "key", "grp", "headers", "error", "options", "ttl", "expires", "holder", "token", "delivered",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_damaged_column(column, value, path):
    """The other messages come whole, or an error of persistcoll reports the damage."""
    with closing(opened(path, POLICY)) as store:
        store.put([MessageEntry(body, key=body) for body in (b"first", b"next", b"last")])
    changed(path, f"UPDATE messages_1 SET {column} = {value} WHERE id = 2")
    account = Account()
    account.take_all(path)
    assert {*account.got} <= {b"first", b"next", b"last"}
    assert len({*account.got}) == len(account.got)
    if not account.errors:
        assert {b"first", b"last"} <= {*account.got}
    # A message without options of its own has NULL there.
    if column in ("payload", "crc", "headers") or (column == "options" and value != "NULL"):
        assert account.errors == []
        assert account.got == [b"first", b"last"]
        assert account.dead == 1


# Single bits.

# What a put says of a message, and its checksums. The other columns change during its life and have none.
CHECKED = ["payload", "headers", "topic", "place", "created", "key", "grp", "options", "ttl", "crc"]
UNCHECKED = [
    "meta_crc", "state", "attempts", "deliveries", "until", "due", "finished", "error", "expires", "holder",
    "token", "delivered",
]  # fmt: skip
FULL = MessageEntry(
    b"the payload", "the topic", 2.5, 0, b"the key", 0, "the group", 1e6, b"the headers", lease=1e5
)


def full(path: Path) -> dict[int, tuple[Any, ...]]:
    """Put messages with a value in each column that a put sets, and return what is to be delivered of each.

    The second one is the head of a group, in which the third one is blocked. The first and the last one are
    of other groups, whose names differ from that by a bit.
    """
    with closing(opened(path, POLICY)) as store:
        groups = ("the grouq", "the group", "the group", None)
        store.put(
            [
                FULL._replace(payload=b"payload %d" % number, key=b"key %d" % number, group=group)
                for number, group in enumerate(groups, 1)
            ]
        )
        return {record.id: delivered(record) for record in store.scan()}


def delivered(record: Any) -> tuple[Any, ...]:
    """Return the fields of a message that no damage may alter."""
    return (
        record.payload,
        record.topic,
        record.priority,
        record.time,
        record.key,
        record.group,
        record.headers,
    )


def flipped(value: Any, bit: int) -> Any:
    """Return a stored value with another bit; a text as bytes, because it may be none any more."""
    if isinstance(value, float):
        (number,) = struct.unpack("<q", struct.pack("<d", value))
        (other,) = struct.unpack("<d", struct.pack("<q", number ^ 1 << bit % 63))
        return other
    if isinstance(value, int):
        return value ^ 1 << bit % 31
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(data)


def flip(path: Path, column: str, bit: int) -> None:
    """Change a bit in this column of the second message. SQLite changes the indexes, too."""
    with closing(sqlite3.connect(path / "data.db")) as connection:
        ((value,),) = connection.execute(f"SELECT {column} FROM messages_1 WHERE id = 2").fetchall()
    new = flipped(value if value is not None else 0.5, bit)
    text = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
    changed(path, f"UPDATE messages_1 SET {column} = {text} WHERE id = 2", new)


def claim_all(store: Any) -> list[Any]:
    """Claim and ack each message that can be had, one after the other."""
    records: list[Any] = []
    for _ in range(20):
        try:
            (record,) = store.claim()
        except Empty:
            return records
        records.append(record)
        store.ack([record.claim])
    raise AssertionError("it goes on without end")


def bits(request: pytest.FixtureRequest, rng: random.Random) -> list[int]:
    count = 60 if request.config.getoption("--all") else 6
    return rng.sample(range(63), count)


@pytest.mark.parametrize("column", CHECKED)
def test_no_message_with_a_flipped_bit_is_delivered(column, path, rng, request):
    """It is dead at once. The next one of its group follows, and no count and no key is left wrong."""
    for bit in bits(request, rng):
        shutil.rmtree(path, ignore_errors=True)
        wanted = full(path)
        flip(path, column, bit)
        with closing(opened(path, POLICY)) as store:
            records = claim_all(store)
            assert {record.id: delivered(record) for record in records} == {
                id: wanted[id] for id in (1, 3, 4)
            }, bit
            assert (store.stats().dead, store.has_unfinished()) == (1, False)
            with pytest.raises(CorruptionError) as caught:
                store.find(2)
            assert caught.value.id == 2
            assert store.cancel(2) is True
            assert store.topics() == {}
            # Its key is free.
            assert store.put([FULL._replace(key=b"key 2")]) == [5]
        is_consistent(path)


@pytest.mark.parametrize("column", UNCHECKED)
def test_a_flipped_bit_in_what_changes_alters_no_other_field(column, path, rng, request):
    for bit in bits(request, rng):
        shutil.rmtree(path, ignore_errors=True)
        wanted = full(path)
        flip(path, column, bit)
        account = Account()
        store = account.attempt(partial(opened, path, POLICY))
        if store is None:
            continue
        with closing(store):
            for record in account.attempt(partial(claim_all, store)) or ():
                assert delivered(record) == wanted[record.id], bit


@pytest.mark.parametrize("column", [*CHECKED, "meta_crc", "state"])
@pytest.mark.parametrize("call", ["cancel", "purge", "purge of the topic"])
def test_a_message_with_a_flipped_bit_can_be_removed(call, column, path, rng):
    """No claim has met it yet."""
    bit = rng.randrange(3, 31)  # so that the number of a state becomes none of another state
    full(path)
    flip(path, column, bit)
    with closing(opened(path, POLICY)) as store:
        if call == "cancel":
            assert store.cancel(2) is True
            assert [record.id for record in claim_all(store)] == [1, 3, 4]
        else:
            count = store.purge(None if call == "purge" else "the topic")
            left = column == "state" or (column == "topic" and call != "purge")
            assert count == 4 - left
            if left:
                assert store.cancel(2) is True
        assert store.find(2) is None
        assert store.put([FULL._replace(key=b"key 2")]) == [5]
    is_consistent(path)


@pytest.mark.parametrize("verb", ["ack", "nack", "release", "fail"])
@pytest.mark.parametrize("column", ["topic", "grp", "key"])
def test_a_bit_that_flips_while_a_message_is_claimed(column, verb, path, rng):
    """The claim is settled, the next one of the group follows, and no other group moves on."""
    full(path)
    with closing(opened(path, POLICY)) as store:
        first, second = [each for _ in range(2) for each in store.claim()]
        assert first.claim is not None
        assert (first.id, second.id) == (1, 2)
        flip(path, column, rng.randrange(63))
        getattr(store, verb)([second.claim])
        # One that comes back is damaged.
        assert [record.id for record in claim_all(store)] == [3, 4]
        store.ack([first.claim])
        assert not store.has_unfinished()
        store.cancel(2)
        assert store.put([FULL._replace(key=b"key 2")]) == [5]
    is_consistent(path)


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("column", [*CHECKED, "meta_crc"])
def test_a_bit_that_flips_while_a_message_is_dead(column, all_of_them, path, rng):
    """No redrive uses its key, its group or its ttl. One with a damaged body dies at the next claim."""
    wanted = full(path)
    with closing(opened(path, POLICY)) as store:
        first, second = [each.claim for _ in range(2) for each in store.claim()]
        assert first is not None
        assert second is not None
        store.fail([first, second])
        flip(path, column, rng.randrange(63))
        knows = column not in ("payload", "headers", "crc")
        if all_of_them:
            assert store.redrive_all() == 2 - knows
        elif knows:
            with pytest.raises(CorruptionError) as caught:
                store.redrive(2)
            assert caught.value.id == 2
        else:
            assert store.redrive(2) is True
        records = claim_all(store)
        assert {record.id: delivered(record) for record in records} == {
            id: wanted[id] for id in (1, 3, 4) if all_of_them or id != 1
        }
        assert (store.stats().dead, store.has_unfinished()) == (2 - all_of_them, False)
        assert store.cancel(2) is True
        assert store.put([FULL._replace(key=b"key 2")]) == [5]
    is_consistent(path)


def test_a_group_whose_name_became_that_of_another_one(path):
    """Neither is the other group moved on, nor does this one stand still."""
    full(path)
    changed(path, "UPDATE messages_1 SET grp = 'the grouq' WHERE id = 2")
    with closing(opened(path, POLICY)) as store:
        store.put([FULL._replace(key=b"of the other group", group="the grouq")])
        (first,) = store.claim()
        others = [record.id for record in store.claim(9)]
        assert first.claim is not None
        assert (first.id, others) == (1, [3, 4])
        assert store.stats().blocked == 1
        store.ack([first.claim])
        assert [record.id for record in store.claim(9)] == [5]
    is_consistent(path)


PUT_BY = "topic, place, created, key, grp, headers, options, ttl, meta_crc, crc, payload"


@pytest.mark.parametrize("source", ["id = 1", "number = 2"])
def test_a_row_in_the_place_of_another_one(source, path):
    """No message is delivered under the id of another one, of the same queue or of another queue."""
    with closing(opened(path, POLICY)) as store, closing(opened(path, POLICY, name="another")) as another:
        store.put([MessageEntry(b"1"), MessageEntry(b"2"), MessageEntry(b"3")])
        another.put([MessageEntry(b"-"), MessageEntry(b"foreign")])
    table = "messages_1 WHERE id = 1" if source == "id = 1" else "messages_2 WHERE id = 2"
    changed(path, f"UPDATE messages_1 SET ({PUT_BY}) = (SELECT {PUT_BY} FROM {table}) WHERE id = 2")
    with closing(opened(path, POLICY)) as store:
        assert [record.payload for record in claim_all(store)] == [b"1", b"3"]
        assert store.stats().dead == 1
    is_consistent(path)


@pytest.mark.parametrize("call", ["claim", "cancel", "purge"])
def test_a_topic_that_became_another_one(call, path):
    """Whatever meets that message first, the counts of both topics are right then, and no id comes again."""
    damaged, others = (1, (2, 3, 4)) if call == "purge" else (4, (1, 2, 3))
    with closing(opened(path, POLICY)) as store:
        for id in range(1, 5):
            store.put([MessageEntry(b"body", "b" if id in others else "a")])
        first, second, *_ = (record.time for record in store.scan())
        assert first < second
    changed(path, "UPDATE messages_1 SET topic = 'b' WHERE id = ?", damaged)
    with closing(opened(path, POLICY)) as store:
        if call == "claim":
            assert [record.id for record in store.claim(9)] == [1, 2, 3]
            assert (store.stats("a").ready, store.stats("b").claimed, store.stats("b").dead) == (0, 3, 1)
        else:
            assert (store.cancel(4) if call == "cancel" else store.purge("b", before=second)) == 1
            assert store.topics() == {"b": 3}
        assert store.put([MessageEntry(b"next", "a")]) == [5]
    is_consistent(path)


# Bits in the file, of which SQLite knows nothing.


def test_a_topic_changes_in_each_copy(path):
    """No claim of a topic gets one of another topic, and a claim that cannot kill a damaged row names it."""
    with closing(opened(path, POLICY)) as store:
        store.put([MessageEntry(b"body", topic) for topic in ("others", "the topic", "others")])
    data, lock = (path / "data.db").read_bytes(), (path / "data.db.lock").read_bytes()
    places = [found.start() for found in re.finditer(b"the topic", data)]
    assert len(places) == 3  # in the row, in an index, and in the table of the topics
    named = []
    for place in places:
        for topics in (None, ["the!topic"]):
            lay(path, data[:place] + b"the!topic" + data[place + 9 :], lock)
            with closing(opened(path, POLICY)) as store:
                try:
                    records = store.claim(9, topics)
                except (Empty, CorruptionError) as error:
                    named.append((topics, getattr(error, "id", None)))
                else:
                    assert topics is None
                    assert [record.topic for record in records] == ["others", "the topic", "others"]
    assert (None, 2) in named


@pytest.mark.parametrize("call", ["cancel", "purge"])
@pytest.mark.parametrize("name", ["topic", "grp", "key", "headers", "payload"])
def test_a_bit_flips_in_each_copy_of_a_value(name, call, path, rng, request):
    """A row and its indexes disagree then. No claim delivers it altered, and a removal makes them agree."""
    values = {"topic": b"topic of 2", "grp": b"group of 2", "key": b"key of 2"}
    values |= {"headers": b"headers of 2", "payload": b"payload of 2"}
    with closing(opened(path, POLICY)) as store:
        mine = FULL._replace(
            payload=values["payload"],
            topic="topic of 2",
            key=values["key"],
            group="group of 2",
            headers=values["headers"],
        )
        store.put(
            [FULL._replace(key=b"1"), mine, mine._replace(payload=b"next", key=b"3"), FULL._replace(key=b"4")]
        )
        wanted = {record.id: delivered(record) for record in store.scan()}
    data, lock = (path / "data.db").read_bytes(), (path / "data.db.lock").read_bytes()
    places = [found.start() for found in re.finditer(re.escape(values[name]), data)]
    assert len(places) >= (2 if name in ("topic", "grp", "key") else 1)
    for place in places:
        for bit in rng.sample(range(8), 8 if request.config.getoption("--all") else 2):
            new = bytearray(data)
            new[place + rng.randrange(len(values[name]))] ^= 1 << bit
            lay(path, bytes(new), lock)
            account = Account()
            store = opened(path, POLICY)
            for record in account.attempt(partial(claim_all, store)) or ():
                assert delivered(record) == wanted[record.id], (place, bit)
            account.attempt(store.close)  # which ends a claim that could not be acked
            with closing(opened(path, POLICY)) as store:
                for _ in range(2):  # the removal of one makes the other one's index right
                    for id in (2, 3) if call == "cancel" else ():
                        store.cancel(id)
                    if call == "purge":
                        store.purge()
                        store.purge(dead=True)
                assert (store.find(2), store.find(3)) == (None, None)
                store.put([mine._replace(key=b"new")])
                assert [record.key for record in claim_all(store)][-1] == b"new"
                assert not store.has_unfinished()
            if name == "key":
                # What has changed in the table of keys is another key, which stays active. No checksum tells.
                with closing(sqlite3.connect(path / "data.db")) as connection, connection:
                    connection.execute("DELETE FROM keys_1 WHERE id = 2")
            is_consistent(path)


# Pages.


def body(number: int) -> bytes:
    """Return a body; some are so long that they overflow to pages of their own."""
    return b"message %d " % number + (b"y" * 3000 if number % 20 == 7 else b"")


class Account(Taken):
    """What came out of a damaged queue."""

    dead = 0

    def take_all(self, place: Path, busy: bool = False) -> None:
        """Claim and ack everything that can be had.

        :param busy: put something first, on pages of the free list, too.
        """
        store = self.attempt(partial(opened, place, POLICY))
        if store is None:
            return
        try:
            self._look(store)
            if busy:
                new = [MessageEntry(b"new %d " % number + b"z" * 900) for number in range(30)]
                self.attempt(partial(store.put, new))
            self._drain(store)
            stats = self.attempt(store.stats)
            self.dead = 0 if stats is None else stats.dead
        finally:
            self.attempt(store.close)

    def _look(self, store: Any) -> None:
        looks = (store.count, store.stats, store.topics, store.peek, lambda: [*store.scan()])
        for look in (*looks, partial(store.find, 2), store.has_unfinished):
            try:
                self.attempt(look)
            except Empty:
                pass
        self.errors.clear()

    def _drain(self, store: Any) -> None:
        for _ in range(3 * COUNT):
            if self.errors:
                return
            try:
                records = self.attempt(store.claim)
            except Empty:
                return
            for record in records or ():
                self.got.append(record.payload)
                self.attempt(partial(store.ack, [record.claim]))
        raise AssertionError("it goes on without end")


def make(path: Path) -> tuple[Image, set[bytes]]:
    """Make a queue with interior pages, overflow pages, free pages that hold old rows, and all states."""
    with closing(opened(path, POLICY)) as store, closing(opened(path, POLICY, name="gone")) as gone:
        gone.put([MessageEntry(b"of another queue " * 50)] * 60)
        groups = (None, None, "one", "other")
        store.put(
            [
                MessageEntry(body(number), "ab"[number % 2], group=groups[number % 4], key=b"%d" % number)
                for number in range(COUNT)
            ]
        )
        gone.purge()
        records = store.claim(40)
        claims = [record.claim for record in records if record.claim is not None]
        store.ack(claims[:30])
        store.fail(claims[30:33])
        store.nack(claims[33:35], 3600.0)
    with closing(opened(path, POLICY)) as store:
        left = {record.payload for record in store.scan(State.READY, State.BLOCKED)}
    data, lock = (path / "data.db").read_bytes(), (path / "data.db.lock").read_bytes()
    return Image("messages", data, lock, [], regions(data)), left


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> tuple[Image, set[bytes]]:
    return make(tmp_path_factory.mktemp("image") / "q")


def try_damages(
    image: Image, left: set[bytes], region: str, rng: random.Random, path: Path, count: int
) -> int:
    """Try so many damages; return how many were noticed."""
    noticed = 0
    for number in range(count):
        lay(path, damaged(image, region, rng), image.lock)
        account = Account()
        account.take_all(path, busy=number % 2 == 0)
        got = [each for each in account.got if not each.startswith(b"new ")]
        # What was acked, dead or delayed may be ready again if its row has another state.
        assert {*got} <= {body(number) for number in range(COUNT)}, "a message that nobody put"
        noticed += bool(account.errors) or account.dead > 3
        if not account.errors and {*got} != left:
            assert account.dead > 3 or region in ("table leaf", "table interior"), "lost without a word"
    return noticed


@pytest.mark.parametrize("region", REGIONS)
def test_each_kind_of_page(image, region, rng, path):
    try_damages(image[0], image[1], region, rng, path, 8)


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("region", REGIONS)
def test_each_kind_of_page_often(image, region, rng, path):
    assert try_damages(image[0], image[1], region, rng, path, 300) or region == "free"


def test_what_is_not_damaged_comes_whole(image, path):
    """A test of the test."""
    whole, left = image
    assert all(whole.pages[region] for region in REGIONS)
    assert len(whole.data) % PAGE == 0
    for busy in (False, True):
        lay(path, whole.data, whole.lock)
        account = Account()
        account.take_all(path, busy)
        assert account.errors == []
        assert {each for each in account.got if not each.startswith(b"new ")} == left
        assert len(account.got) == len(left) + 30 * busy
        is_consistent(path)


# Indexes and tables that say that they hold nothing.


@pytest.mark.parametrize("index", ["ready_1", "ready_of_1", "due_1", "delayed_1", "blocked_1"])
def test_messages_that_are_not_found_are_not_taken_for_none(index, path):
    with closing(opened(path, POLICY)) as store:
        store.put([MessageEntry(b"%d" % number, group="g") for number in range(2)])
        ttl = 1e6 if index == "due_1" else None
        store.put([MessageEntry(b"delayed", delay=0.001, ttl=ttl), MessageEntry(b"another")])
        now = store._now() + 3600
    no_cells(path, index)
    topics = ["default"] if index == "ready_of_1" else None

    def take_all(store: Any) -> None:
        for _ in range(5):
            (record,) = store.claim(topics=topics)
            store.ack([record.claim])

    with closing(opened(path, POLICY, clock=lambda: now)) as store:
        with pytest.raises(CorruptionError):
            take_all(store)
        if index == "ready_1":
            with pytest.raises(CorruptionError):
                store.peek()
