"""What the pictures say is so: files, transitions, numbers."""

from __future__ import annotations

import copy
import inspect
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from xml.etree import ElementTree

import pytest

from tests.api.tree import PROJECT

if not (PROJECT / "docs" / "pictures").is_dir():
    pytest.skip("docs/ lies in a checkout only", allow_module_level=True)

from docs.pictures import PICTURES, log_consumers, plots, queue_files, wake_up
from docs.pictures.message_life import TRANSITIONS, Place, Transition
from persistcoll import Log, MessageQueue, PDict, PostgresAckQueue, Queue, SQLiteAckQueue
from persistcoll.engine.contracts import MAX_POLL_INTERVAL
from persistcoll.engine.event_count import MIN_POLL_INTERVAL
from persistcoll.engine.memory.message_store import MemoryMessageState, MemoryMessageStore
from persistcoll.engine.message_records import MessageClaim, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.errors import Empty
from persistcoll.sqlite.record_store import SQLiteRecordStore
from persistcoll.testing.crash.disk import CrashDisk


def words(name: str) -> list[str]:
    picture = ElementTree.fromstring(PICTURES[name]().svg())
    return [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_the_files_are_those_of_the_page_of_the_format():
    made = queue_files.make()
    assert sorted(made.in_use) == ["consumer.lock", "cursor", "info", "producer.lock", "q00001", "q00002"]
    assert made.opened.keys() - made.cut.keys() == {"q00002.torn-159"}
    assert made.cut["q00002"] == made.opened["q00002"] + made.opened["q00002.torn-159"]
    assert made.opened["q00002"] == made.in_use["q00002"]
    assert made.ready == [6, 7, 8, 9, 10]
    found = words("queue_files")
    assert made.in_use.keys() | made.opened.keys() < set(found)
    assert "get() returns 6, 7, 8, 9 and 10" in found
    page = (PROJECT / "docs" / "reference" / "file-format.rst").read_text("utf-8")
    for name in (*made.in_use.keys() - {"q00002"}, "q00000.torn-OFFSET"):
        assert f"``{name}``" in page


def test_a_torn_frame_is_no_frame():
    chunk = queue_files.make().cut["q00002"]
    assert [frame.id for frame in queue_files.frames(chunk)] == [9, 10]
    assert [frame.id for frame in queue_files.frames(chunk[:150])] == [9]


def test_an_item_of_a_killed_consumer_is_delivered_again(tmp_path):
    """This is what ``redelivery`` shows."""
    code = (
        "import os, sys; from persistcoll import Queue; q = Queue(sys.argv[1]); "
        "print(q.get(), flush=True); os.kill(os.getpid(), 9)"
    )
    with Queue(tmp_path / "q") as q:
        q.put("job")
    first = subprocess.run([sys.executable, "-c", code, str(tmp_path / "q")], capture_output=True, text=True)
    assert (first.stdout, first.returncode) == ("job\n", -signal.SIGKILL)
    with Queue(tmp_path / "q") as q:
        assert q.get() == "job"
        q.task_done()
    with Queue(tmp_path / "q") as q:
        assert q.qsize() == 0


def test_a_consumer_that_is_killed_in_a_transaction_leaves_nothing_of_it(tmp_path):
    """This is what ``transaction`` shows."""
    code = (
        "import os, sys; from persistcoll import PDict, SQLiteAckQueue\n"
        "orders, sold = SQLiteAckQueue(sys.argv[1], name='orders'), PDict(sys.argv[1], name='sold')\n"
        "order = orders.get(); print(order, flush=True)\n"
        "with orders.transaction(): sold.incr(order); orders.ack(order); os.kill(os.getpid(), 9)"
    )
    shop = tmp_path / "shop.db"
    with SQLiteAckQueue(shop, name="orders") as orders, PDict(shop, name="sold") as sold:
        orders.put("lamp")
        first = subprocess.run([sys.executable, "-c", code, str(shop)], capture_output=True, text=True)
        assert (first.stdout, first.returncode) == ("lamp\n", -signal.SIGKILL)
        assert (dict(sold), orders.acked_count()) == ({}, 0)
        order = orders.get(timeout=30)
        with orders.transaction():
            sold.incr(order)
            orders.ack(order)
        assert (dict(sold), orders.acked_count(), orders.unack_count()) == ({"lamp": 1}, 1, 0)


def test_a_group_keeps_its_order_with_two_workers(tmp_path):
    """This is what ``ordered_group`` shows."""
    path = tmp_path / "bank.db"
    with MessageQueue(path) as first, MessageQueue(path) as second:
        for group, event in (("ann", "open"), ("ann", "deposit"), ("bob", "open")):
            first.put(event, group=group)
        assert (first.stats().ready, first.stats().blocked) == (2, 1)
        held = first.get()
        other = second.get()
        assert [(each.group, each.body) for each in (held, other)] == [("ann", "open"), ("bob", "open")]
        with pytest.raises(Empty):
            second.get(timeout=0)
        held.ack()
        last = second.get()
        assert (last.group, last.body) == ("ann", "deposit")


def test_a_row_and_the_message_about_it_commit_together(tmp_path):
    """This is what ``outbox`` shows."""
    with MessageQueue(tmp_path / "shop.db") as queue:
        with queue.transaction() as connection:
            connection.execute("CREATE TABLE orders (number)")
            connection.execute("CREATE TABLE invoices (number)")
        with queue.transaction() as connection:
            connection.execute("INSERT INTO orders VALUES (1)")
            queue.put(1)
        with suppress(ZeroDivisionError), queue.transaction() as connection:
            connection.execute("INSERT INTO orders VALUES (2)")
            queue.put(2)
            raise ZeroDivisionError
        message = queue.get()
        with queue.transaction() as connection:
            connection.execute("INSERT INTO invoices VALUES (?)", (message.body,))
            message.ack()
        with queue.transaction() as connection:
            rows = connection.execute("SELECT * FROM orders, invoices").fetchall()
        assert (rows, queue.qsize(), queue.stats().claimed) == ([(1, 1)], 0, 0)


def test_each_consumer_of_a_log_has_a_position(tmp_path):
    """This is what ``log_consumers`` shows."""
    with Log(tmp_path / "log") as log:
        assert log.extend(range(1, log_consumers.COUNT + 1))[-1] == log_consumers.COUNT
        for name, committed in log_consumers.COMMITTED.items():
            read = log_consumers.READ[name]
            with log.consumer(name) as consumer:
                for position in range(1, read + 1):
                    assert consumer.get() == position
                    if position == committed:
                        consumer.commit()
                assert consumer.get() == read + 1
            with log.consumer(name) as consumer:  # as after a crash, because closing commits nothing
                assert consumer.get() == committed + 1
            assert any(f"get gives {read + 1}" in text for text in words("log_consumers"))
        assert len(log) == log_consumers.COUNT
        assert f"after a crash {committed + 1} again" in " ".join(words("log_consumers"))


@pytest.mark.parametrize(("durability", "synced"), [("process", False), ("power", True)])
def test_a_put_returns_after_the_write_or_after_the_sync(tmp_path, durability, synced):
    """This is what ``durability`` shows."""
    disk = CrashDisk(str(tmp_path / "q"))
    with Queue(tmp_path / "q", durability=durability, _disk=disk) as q:
        q.put("first")
        before = len(disk.trace)
        q.put("item")
        kinds = [operation.kind for operation in disk.trace[before:]]
    assert kinds == ["write", "sync"] if synced else ["write"]
    assert f'durability="{durability}"' in words("durability")


# The life of a message. The laws of the stores make the others do what the one in memory does.


class World:
    """A store with a clock that a test sets, and a second store, which claims."""

    def __init__(self, **policy: int) -> None:
        self.clock = 0.0
        state = MemoryMessageState(lambda: self.clock)
        rules = MessagePolicy(lease=60, backoff=None, **{"max_attempts": 2, "keep_done": 1, **policy})
        self.store, self.holder = (MemoryMessageStore(rules, state) for _ in range(2))
        self.claims: dict[int, MessageClaim] = {}

    def put(self, group: str | None = None, delay: float = 0) -> int:
        [id] = self.store.put([MessageEntry(b"", group=group, delay=delay, ttl=100)])
        assert id is not None
        return id

    def claim(self) -> int:
        [record] = self.holder.claim()
        assert record.claim is not None
        self.claims[record.id] = record.claim
        return record.id

    def settle(self, verb: Callable[[list[MessageClaim]], object], id: int) -> None:
        verb([self.claims.pop(id)])

    def finish(self) -> int:
        """Claim the first message, and ack it."""
        id = self.claim()
        self.settle(self.store.ack, id)
        return id

    def fail(self) -> int:
        """Claim the first message, and fail it."""
        id = self.claim()
        self.settle(self.store.fail, id)
        return id

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds

    def place(self, id: int) -> Place:
        found = self.store.find(id)
        return None if found is None else found.state

    def bring(self, source: Place, why: str) -> int:
        """Return the id of a message in a state; of none yet if there is none."""
        if source is None:
            if "group" in why:
                self.put("group")
            return 0
        if source is State.BLOCKED:
            self.put("group")
            return self.put("group", 30 if "delay" in why else 0)
        id = self.put("group" if "group" in why else None, 30 if source is State.DELAYED else 0)
        if source in (State.READY, State.DELAYED):
            return id
        return {State.CLAIMED: self.claim, State.DONE: self.finish, State.DEAD: self.fail}[source]()

    def act(self, why: str, id: int) -> int:
        """Do to a message what the picture says, and return its id."""
        store = self.store
        acts: dict[str, Callable[[], object]] = {
            "put": self.put,
            "put with a delay": lambda: self.put(delay=30),
            "put into a busy group": lambda: self.put("group"),
            "delay over": lambda: self.pass_time(30),
            "head finished": self.finish,
            "head finished, delay not over": self.finish,
            "get": self.claim,
            "release": lambda: self.settle(store.release, id),
            "nack without a delay": lambda: self.settle(store.nack, id),
            "nack with a delay": lambda: self.settle(lambda claims: store.nack(claims, 5), id),
            "nack at the last attempt": lambda: self.settle(store.nack, id),
            "lease over": lambda: self.pass_time(60),
            "lease over at the last attempt": lambda: self.pass_time(60),
            "holder dead": self.holder.close,
            "holder dead at the last attempt": self.holder.close,
            "ack": lambda: self.settle(store.ack, id),
            "ack that keeps nothing": lambda: self.settle(store.ack, id),
            "return after the ttl": lambda: self.pass_time(100),
            "fail": lambda: self.settle(store.fail, id),
            "redrive": lambda: store.redrive(id),
            "redrive into a busy group": lambda: (self.put("group"), store.redrive(id)),
            "cancel": lambda: store.cancel(id),
            "purge": store.purge,
            "purge of the dead": lambda: store.purge(dead=True),
            "ttl over": lambda: self.pass_time(100),
            "beyond keep_done": lambda: (self.put(), self.finish()),
            "beyond keep_dead": lambda: (self.put(), self.fail()),
        }
        result = acts[why]()
        return result if not id and isinstance(result, int) else id


POLICIES = {
    "ack that keeps nothing": {"keep_done": 0},
    "beyond keep_dead": {"keep_dead": 1},
    **{each.why: {"max_attempts": 1} for each in TRANSITIONS if "last attempt" in each.why},
}


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda each: f"{each.source}-{each.why}")
def test_a_transition_is_what_the_store_does(transition: Transition):
    world = World(**POLICIES.get(transition.why, {}))
    id = world.bring(transition.source, transition.why)
    assert world.place(id) is transition.source
    assert world.place(world.act(transition.why, id)) is transition.target


def walk(rng: random.Random, keep_done: int) -> set[tuple[Place, Place]]:
    """Return what became of which message in a walk of random steps."""
    world = World(keep_done=keep_done, keep_dead=2)
    seen: set[tuple[Place, Place]] = set()
    ids: list[int] = []
    for _ in range(60):
        before = {id: world.place(id) for id in ids}
        id = rng.choice([0, *ids])
        claimed = [each for each in ids if before[each] is State.CLAIMED]
        held = rng.choice(claimed) if claimed else 0
        step = rng.randrange(10)
        if step < 3:
            id = world.put(rng.choice([None, "group"]), rng.choice([0, 0, 30]))
            before[id] = None
            ids.append(id)
        elif step < 5:
            with suppress(Empty):
                world.claim()
        elif step < 8 and held:
            store = world.store
            verbs: list[Callable[[list[MessageClaim]], object]]
            verbs = [store.ack, store.fail, store.release, store.nack, partial(store.nack, delay=5.0)]
            world.settle(rng.choice(verbs), held)
        elif step == 8:
            rng.choice([world.store.redrive, world.store.cancel])(id)
        elif step == 9:
            world.pass_time(rng.choice([1, 30, 60]))
        seen |= {(place, world.place(id)) for id, place in before.items()}
    return seen


def test_no_transition_is_missing():
    rng = random.Random(1)
    seen = set().union(*(walk(rng, keep_done) for keep_done in (0, 2) for _ in range(30)))
    changes = {(source, target) for source, target in seen if source is not target}
    assert changes == {(each.source, each.target) for each in TRANSITIONS}


def test_the_picture_of_the_life_says_each_reason():
    text = " ".join(words("message_life"))
    assert [each.why for each in TRANSITIONS if each.why not in text] == []


# Times.


def test_the_polls_of_a_wait_are_those_of_the_event_count():
    found = wake_up.intervals(MAX_POLL_INTERVAL)
    assert (found[0], found[-1]) == (MIN_POLL_INTERVAL, MAX_POLL_INTERVAL)
    assert found == sorted(found)
    slower = wake_up.intervals(SQLiteRecordStore.max_poll_interval)
    assert slower[: len(found) - 1] == found[:-1]
    text = " ".join(words("wake_up")).replace("\u00a0", " ")
    description = PICTURES["wake_up"]().description.replace("\u00a0", " ")
    assert f"{MAX_POLL_INTERVAL * 1000:g} ms for files and" in description
    assert f"every {MAX_POLL_INTERVAL * 1000:g} ms" in text
    assert f"of SQLite every {SQLiteRecordStore.max_poll_interval * 1000:g} ms" in text


def test_the_patience_of_the_servers_is_that_of_the_classes():
    patience = inspect.signature(PostgresAckQueue).parameters["patience"].default
    text = " ".join(words("servers")).replace("\u00a0", " ")
    for told in text, PICTURES["servers"]().description.replace("\u00a0", " "):
        assert f"{patience:g} s without a heartbeat" in told
        assert f"heartbeat every {patience / 3:g} s" in told
    page = (PROJECT / "docs" / "how-to" / "servers.rst").read_text("utf-8")
    asks = re.search(r"asks at least every (\d+ ms)", text)
    assert asks is not None
    assert f"down to every {asks[1]} on\n  MySQL" in page


# Plots.


@pytest.mark.parametrize(
    ("name", "scenario", "number", "shown"),
    [
        ("speed", "single", "ours: in turn", "321"),
        ("speed", "single", "persist-queue Queue: in turn", "321"),
        ("speed", "power", "append + fdatasync: put", "321"),
        ("neighbours", "neighbours", "litequeue, power: all", "321"),
        ("batches", "batches", "queuelib: get", "321"),
        ("backlog", "backlog", "10,000,000 waiting: qsize", "321"),
        ("backlog", "sql_backlog", "SQLiteAckQueue, 1,000,000: ack", "321"),
        ("threads", "power", "ours, 32 threads: put", "3,115"),
    ],
)
def test_a_plot_shows_what_is_stored(monkeypatch, name, scenario, number, shown):
    path = plots.NEIGHBOURS if name == "neighbours" else plots.RESULTS
    other = copy.deepcopy(plots.results(path))
    found = other["scenarios"][scenario]["numbers"][number]
    found.update(median=321.0, lower_quartile=320.0, upper_quartile=322.0)
    before = Counter(words(name))
    assert shown not in before
    monkeypatch.setattr(plots, "results", lambda path: other)
    assert Counter(words(name))[shown] == 1


def test_a_number_at_another_durability_is_refused():
    with pytest.raises(ValueError, match="survives process, not power"):
        plots.measured("single", "ours", "put", "power")
