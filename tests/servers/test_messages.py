"""Message queues on servers as a program meets them. What a store does there is in the laws."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import persistcoll
from persistcoll import (
    Backoff,
    DuplicateError,
    Empty,
    MessageQueue,
    OutgoingMessage,
    SerializerMismatchError,
    StaleClaimError,
    StoreKindError,
    StoreMissingError,
    Worker,
    ddl,
)
from persistcoll.engine.message_events import EventKind
from persistcoll.engine.records import State
from persistcoll.serializers import signed
from persistcoll.servers import message_store
from persistcoll.servers.address import MYSQL
from persistcoll.servers.sessions import SERVERS
from tests.servers.places import CallerConnection


@pytest.fixture
def open_messages(place, request) -> Iterator[Callable[..., MessageQueue[Any]]]:
    """Open message queues of the test's own name in the place, and close them at the end."""
    queues: list[MessageQueue[Any]] = []

    def open_one(name: str = request.node.name, **options: Any) -> MessageQueue[Any]:
        where = {"password": place.address.password, "schema": place.schema, "durability": "process"}
        queues.append(MessageQueue(place.address.shown, name, **{**where, **options}))
        return queues[-1]

    yield open_one
    for queue in queues:
        queue.close()


def test_a_message_is_put_delivered_and_acked(open_messages):
    jobs, other = open_messages(), open_messages()
    id = jobs.put({"image": 7}, topic="images", priority=2.5, headers={"trace": "7f"}, key="seven")
    assert other.put("again", key="seven") is None
    message = other.get()
    assert (message.id, message.body, message.topic, message.priority) == (id, {"image": 7}, "images", 2.5)
    assert (message.headers, message.key, message.attempts) == ({"trace": "7f"}, "seven", 1)
    assert message.leased_until > other._store.now()
    message.ack()
    assert (jobs.find(id), len(jobs), jobs.topics()) == (None, 0, {})
    assert jobs.put("again", key="seven") is not None


@pytest.mark.parametrize("kind", [persistcoll.PDict, MessageQueue])
def test_a_name_that_is_refused_leaves_no_server_in_use(place, kind):
    before = dict(SERVERS._servers)
    with pytest.raises(ValueError, match="it has a NUL"):
        kind(place.address.shown, "a\0b", password=place.address.password, schema=place.schema)
    assert SERVERS._servers == before


def test_a_batch_is_put_and_got_in_order(open_messages):
    jobs = open_messages()
    bodies = [OutgoingMessage(f"{number}", priority=number % 3, key=f"{number % 8}") for number in range(20)]
    ids = jobs.put_many(bodies)
    assert [id is None for id in ids] == [number >= 8 for number in range(20)]
    messages = jobs.get_many(20)
    assert [message.body for message in messages] == ["2", "5", "1", "4", "7", "0", "3", "6"]
    jobs.ack_many(messages)
    with pytest.raises(StaleClaimError) as raised:
        jobs.ack_many(messages)
    assert sorted(raised.value.ids) == sorted(message.id for message in messages)


def test_each_ack_of_a_batch_costs_the_same_however_many_there_are(open_messages):
    jobs = open_messages()
    jobs.put_many(range(350))

    def instructions(n: int) -> int:
        """Return how many instructions of Python the store executes to ack so many messages."""
        messages, count = jobs.get_many(n), 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            frame.f_trace_opcodes = frame.f_code.co_filename == message_store.__file__
            count += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            jobs.ack_many(messages)
        finally:
            sys.settrace(before)
        return count

    few, more, most = (instructions(n) for n in (50, 100, 200))
    assert most - more < 3 * (more - few)  # linear: 2; quadratic: nearly 4


def test_a_message_that_fails_is_delivered_again_and_dies(open_messages):
    jobs = open_messages(max_attempts=2, backoff=Backoff(base=0.02, jitter=0.0), keep_done=5)
    id = jobs.put("mail")
    with pytest.raises(RuntimeError), jobs.get() as message:
        raise RuntimeError("mailbox full")
    assert jobs.find(id).state is State.DELAYED
    message = jobs.get(timeout=30)
    assert (message.attempts, message.last_error) == (2, "RuntimeError: mailbox full")
    message.nack(error="gone")
    (dead,) = jobs.dead_letters()
    assert (dead.id, dead.body, dead.last_error, dead.state) == (id, "mail", "gone", State.DEAD)
    assert jobs.redrive() == 1
    with jobs.get() as message:
        assert message.attempts == 1
    found = jobs.find(id)
    assert found is not None
    assert found.state is State.DONE


def test_a_group_is_delivered_one_at_a_time(open_messages):
    jobs, other = open_messages(), open_messages()
    for body in ("first", "second", "third"):
        jobs.put(body, group="ann")
    jobs.put("beside", group="bob")
    first, beside = jobs.get_many(5)
    assert (first.body, beside.body) == ("first", "beside")
    with pytest.raises(Empty):
        other.get(block=False)
    first.ack()
    assert other.get().body == "second"


def test_a_waiter_wakes_for_a_message_of_another_object(open_messages):
    jobs, other = open_messages(), open_messages()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(jobs.get("a", timeout=60).body))
    thread.start()
    other.put("b", topic="b")
    other.put("a", topic="a")
    thread.join()
    assert got == ["a"]


def test_a_waiter_wakes_at_the_end_of_a_delay_and_of_a_lease(open_messages):
    jobs, other = open_messages(), open_messages()
    jobs.put("later", delay=0.1)
    message = other.get(timeout=60, lease=0.1)
    assert message.body == "later"
    again = jobs.get(timeout=60)
    assert (again.attempts, again.last_error) == (2, "lease ran out")
    with pytest.raises(StaleClaimError):
        message.ack()


def test_an_expired_message_is_gone(open_messages):
    jobs = open_messages()
    jobs.put("short", ttl=0.05)
    time.sleep(0.05)  # the ttl is a time of the server's clock
    assert (jobs.empty(), jobs.stats().expired) == (True, 1)


def test_topics_are_paused_limited_and_locked_for_all_objects(open_messages):
    jobs, other = open_messages(), open_messages()
    for topic in ("paused", "limited", "limited", "locked", "free"):
        jobs.put(topic, topic=topic)
    other.pause("paused")
    other.limit("limited", 1, per=3600)
    with other.lock_topic("locked"):
        assert sorted(message.body for message in jobs.get_many(9)) == ["free", "limited"]
        assert other.get("locked").body == "locked"
    other.resume("paused")
    other.limit("limited", None)
    assert sorted(message.body for message in jobs.get_many(9)) == ["limited", "paused"]


def test_messages_are_removed(open_messages):
    jobs = open_messages()
    ids = [jobs.put(topic, topic=topic, delay=delay) for topic, delay in (("a", 0), ("b", 3600), ("c", 0))]
    assert jobs.cancel(ids[1])
    assert jobs.purge("a") == 1
    jobs.get().fail("no")
    assert (jobs.purge(), jobs.purge(dead=True, before=time.time() + 3600)) == (0, 1)
    assert jobs.stats().puts == 3


def test_a_key_in_force_hinders_a_redrive(open_messages):
    jobs = open_messages()
    id = jobs.put("a", key="k")
    jobs.get().fail()
    jobs.put("b", key="k")
    with pytest.raises(DuplicateError):
        jobs.redrive(id)
    assert (jobs.release_key("k"), jobs.redrive(id)) == (True, 1)


def test_consume_prefetches_and_releases_at_the_shutdown(open_messages):
    jobs = open_messages()
    jobs.put_many(range(5))
    got = []
    for message in jobs.consume(prefetch=3):
        with message:
            got.append(message.body)
        if len(got) == 2:
            jobs.shutdown()
    assert got == [0, 1]
    assert (open_messages().stats().ready, open_messages().stats().claimed) == (3, 0)


def test_a_worker_handles_messages(open_messages):
    jobs = open_messages(max_attempts=2, backoff=None)
    jobs.put_many([1, 2, "bad", 3])
    got: list[Any] = []
    done = threading.Event()

    def handle(message: Any) -> None:
        if message.body == "bad":
            raise ValueError("bad")
        got.append(message.body)
        if len(got) == 3:
            done.set()

    worker = Worker(jobs, handle, concurrency=2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert done.wait(60)
    jobs.join()
    worker.stop()
    thread.join()
    assert sorted(got) == [1, 2, 3]
    assert [dead.last_error for dead in jobs.dead_letters()] == ["ValueError: bad"]


def test_events_are_told(open_messages):
    events: list[Any] = []
    jobs = open_messages(events=events.append)
    jobs.put("a", topic="t")
    jobs.get().ack()
    assert [event.kind for event in events] == [EventKind.PUT, EventKind.CLAIMED, EventKind.ACKED]
    assert {event.topic for event in events} == {"t"}


def test_a_message_is_put_and_settled_with_the_callers_rows(place, open_messages):
    jobs = open_messages()
    caller = CallerConnection(place)
    id = jobs.put("order", connection=caller.connection)
    assert len(jobs) == 0
    caller.rollback()
    id = jobs.put("order", connection=caller.connection)
    caller.commit()
    for ends, left in ((caller.rollback, 1), (caller.commit, 0)):
        message = jobs.get(connection=caller.connection)
        assert message.id == id
        message.ack(connection=caller.connection)
        ends()
        assert len(jobs) == left
    with pytest.raises(Empty):
        jobs.get(connection=caller.connection, timeout=60)
    caller.close()


def test_what_is_for_one_place_is_refused_in_the_other(place, open_messages, tmp_path):
    jobs = open_messages()
    jobs.put("a")
    for call in (jobs.transaction, jobs.vacuum, jobs.checkpoint):
        with pytest.raises(ValueError, match="server"):
            call()
    for option in ({"mode": 0o600}, {"read_only": True}, {"db_file_name": "a.db"}, {"trust_directory": True}):
        with pytest.raises(ValueError, match="is for a message queue in a file"):
            open_messages(**option)
    with pytest.raises(ValueError, match="'schema' is for a message queue on a server"):
        MessageQueue(tmp_path, schema="s")
    with pytest.raises(ValueError, match="'password' is for a message queue on a server"):
        MessageQueue(tmp_path, password="p")
    with pytest.raises(ValueError, match="looks like"):
        MessageQueue("redis://h/d")
    with pytest.raises(ValueError, match="a lease is needed"):
        jobs.put("a", lease=None)
    with pytest.raises(ValueError, match="'lease' is needed"):
        open_messages(lease=None)
    with pytest.raises(ValueError, match="a lease is needed"):
        jobs.lock_topic("t", lease=None)
    if place.kind == MYSQL:
        with pytest.raises(ValueError, match="no schemas"):
            open_messages(schema="s")


def test_a_name_belongs_to_a_kind_and_a_serializer(place, open_messages):
    open_messages("jobs", serializer="json").put({"a": 1})
    with pytest.raises(SerializerMismatchError):
        open_messages("jobs")
    with pytest.raises(StoreKindError, match="'messages'"):
        place.class_of("Queue")("jobs", serializer="json", **place.where)
    with pytest.raises(StoreMissingError, match="CREATE TABLE"):
        open_messages("others", create=False)


def test_a_queue_is_shown_without_a_password_and_opened_again(place, open_messages, monkeypatch):
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    jobs = open_messages("jobs")
    jobs.put("a")
    assert repr(jobs) == f"<MessageQueue 'jobs' in {place.address.shown}>"
    assert (jobs.target, jobs.url, jobs.schema) == (place.address.shown, place.address.shown, place.schema)
    for again in (copy.copy(jobs), pickle.loads(pickle.dumps(jobs))):
        with again:
            assert again.peek().body == "a"


def test_signed_bodies_are_checked(place, open_messages):
    serializer = signed("json", b"k" * 32)
    jobs = open_messages("jobs", serializer=serializer)
    jobs.put_many(["a", "b"])
    assert [message.body for message in jobs.get_many(2)] == ["a", "b"]


def test_the_statements_of_ddl_make_the_queue(place, open_messages):
    statements = ddl(
        MessageQueue, "jobs", place.address.shown, password=place.address.password, schema=place.schema
    )
    for text in statements.split(";\n"):
        if text.strip():
            place.run(f"USE {place.name}") if place.kind == MYSQL else None
            place.run(text)
    jobs = open_messages("jobs", create=False)
    jobs.put("a", group="g", key="k")
    assert jobs.get().body == "a"


def test_what_a_queue_holds_is_told_without_opening_it(place, open_messages, monkeypatch):
    jobs = open_messages("jobs", serializer="json", keep_done=5)
    jobs.put_many([1, 2], group="g")
    jobs.put_many([3, 4, 5, 6])
    jobs.put(7, delay=3600)
    one, three, four = jobs.get_many(3)
    three.ack()
    four.fail()
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)
    found = persistcoll.collections(place.address.shown, schema=place.schema)["jobs"]
    assert (found.kind, found.serializer) == ("messages", "json")
    counts = [getattr(found, state) for state in ("ready", "claimed", "delayed", "blocked", "done", "dead")]
    assert counts == [2, 1, 1, 1, 1, 1]
    assert found.unfinished == 5
    one.ack()
