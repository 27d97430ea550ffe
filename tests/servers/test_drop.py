"""``drop()``: what is gone, what is refused, and that no number of a collection is used again."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from persistcoll import (
    FormatVersionError,
    LockedError,
    PDict,
    StorageError,
    StoreMissingError,
    collections,
    drop,
)
from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.servers import drop as dropping
from persistcoll.servers.address import MYSQL
from persistcoll.servers.open import open_message_store
from persistcoll.testing.children import run_threads
from tests.concurrency.workers import Remote
from tests.servers.losing import losing_connections


@pytest.fixture(autouse=True)
def _password(place, monkeypatch):
    monkeypatch.delenv("PERSISTCOLL_PASSWORD", raising=False)
    if place.address.password is not None:
        monkeypatch.setenv("PERSISTCOLL_PASSWORD", place.address.password)


def removed(place, name="jobs"):
    drop(place.address.shown, name, schema=place.schema)


def names(place) -> list[Any]:
    return list(collections(place.address.shown, schema=place.schema))


def tables(place) -> set[str]:
    found = place.run(
        "SELECT concat(table_name) FROM information_schema.tables WHERE table_schema = %(schema)s",
        schema=place.name,
    )
    return {name.decode() if isinstance(name, bytes) else name for (name,) in found}


def rows(place, table) -> int:
    ((number,),) = place.run(f"SELECT count(*) FROM {place.name}.{table}")
    return int(number)


def number_of(place, name) -> int:
    ((number,),) = place.run(
        f"SELECT number FROM {place.name}.pc_collections WHERE name = %(name)s", name=name
    )
    return int(number)


@pytest.mark.parametrize("which", ["Queue", "LIFOQueue", "PriorityQueue", "UniqueQueue", "AckQueue"])
def test_a_queue_is_gone_and_can_be_made_anew(place, open_queue, which):
    queue, other = open_queue(which, "jobs"), open_queue(which, "other")
    queue.put("x")
    other.put("y")
    queue.close()
    removed(place)
    assert names(place) == ["other"]
    assert "pc_1" not in tables(place)
    again = open_queue(which, "jobs")
    assert (len(again), again.stats().puts) == (0, 0)
    again.put("z")
    assert (again.get(), other.get()) == ("z", "y")


def test_a_dict_is_gone(place):
    where = {"password": place.address.password, "schema": place.schema, "durability": "process"}
    with PDict(place.address.shown, "d", **where) as d:
        d["a"] = 1
    removed(place, "d")
    assert (names(place), "pc_1" in tables(place)) == ([], False)


def test_a_message_queue_is_gone_with_its_keys_groups_and_topics(place):
    def opened(name):
        return open_message_store(
            place.address, name=name, policy=MessagePolicy(), serializer="raw", schema=place.schema
        )

    for name in ("messages", "kept"):
        store = opened(name)
        store.put([MessageEntry(b"x", topic="t", key=b"k", group="g")])
        store.pause("t")
        store.close()
    removed(place, "messages")
    assert names(place) == ["kept"]
    shared = ("pc_keys", "pc_groups", "pc_topics")
    assert [rows(place, table) for table in shared] == [1, 1, 1]
    store = opened("messages")
    assert store.put([MessageEntry(b"y", topic="t", key=b"k", group="g")]) != [None]
    assert [record.payload for record in store.claim()] == [b"y"]
    store.close()


def test_what_is_missing_is_said(place, open_queue):
    with pytest.raises(StoreMissingError, match="there is no 'jobs' in"):
        removed(place)
    open_queue("Queue", "jobs").close()
    with pytest.raises(StoreMissingError, match="there is no 'Jobs' in"):
        removed(place, "Jobs")
    removed(place)
    for _ in range(2):
        with pytest.raises(StoreMissingError, match="there is no 'jobs' in"):
            removed(place)


def test_arguments_are_checked(place):
    with pytest.raises(TypeError, match="'name' must be a str"):
        removed(place, 7)
    with pytest.raises(ValueError, match="'name' has 256 bytes"):
        removed(place, "x" * 256)
    if place.kind == MYSQL:
        with pytest.raises(ValueError, match="no schemas"):
            drop(place.address.shown, "jobs", schema="s")


def claim_one(queue, tell):
    item = queue.get()
    tell("has it")
    tell.wait()
    queue.ack(item)


def test_what_a_living_process_has_claimed_is_refused(place, open_queue):
    queue = open_queue("AckQueue", "jobs")
    queue.put("x")
    remote = Remote(place.class_of("AckQueue"), name="jobs", **place.where)
    remote.start(claim_one)
    assert remote.told() == "has it"
    with pytest.raises(LockedError, match=rf"claims of processes that live: pid {remote.pid} on "):
        removed(place)
    assert names(place) == ["jobs"]
    remote.say()
    remote.result()
    remote.close()
    removed(place)
    assert names(place) == []


def test_what_a_dead_process_has_claimed_is_not(place, open_queue):
    queue = open_queue("AckQueue", "jobs")
    queue.put("x")
    queue.get()
    ago = str(10**15) if place.kind == MYSQL else "now() - interval '1 hour'"
    place.run(f"UPDATE {place.name}.pc_holders SET beat = {ago}")
    removed(place)
    assert (names(place), rows(place, "pc_holders")) == ([], 0)


def test_an_open_object_never_meets_the_next_collection(place, open_queue):
    old = open_queue("AckQueue", "jobs")
    old.put("old")
    removed(place)
    new = open_queue("AckQueue", "jobs")
    new.put("new")
    for call in (lambda: old.put("x"), old.get_nowait, lambda: len(old), old.stats):
        with pytest.raises(StoreMissingError, match="pc_1"):
            call()
    assert new.get() == "new"
    new.task_done()


def test_no_number_is_used_again(place, open_queue):
    used: list[int] = []
    for name in ("a", "b", "c"):
        open_queue("Queue", name).close()
        used.append(number_of(place, name))
    for name in ("b", "c", "a", "x", "x", "x"):
        if name == "x":
            open_queue("Queue", name).close()
            used.append(number_of(place, name))
        removed(place, name)
    assert used == [1, 2, 3, 4, 5, 6]
    assert rows(place, "pc_dropped") <= 3
    open_queue("Queue", "y").close()
    assert number_of(place, "y") == 7


def test_many_may_drop_and_make_at_once(place, open_queue):
    outcomes: Counter[str] = Counter()

    def work(number):
        for _ in range(4):
            try:
                # Another thread may drop it between its creation and the first look for dead holders.
                open_queue("Queue", "jobs", timeout=20.0 + number).close()
                removed(place)
                outcomes["dropped"] += 1
            except StoreMissingError:
                outcomes["missing"] += 1

    run_threads(*[lambda number=number: work(number) for number in range(3)])
    assert outcomes["dropped"] + outcomes["missing"] == 12
    open_queue("Queue", "jobs").put("x")
    assert names(place) == ["jobs"]


@pytest.mark.parametrize("lost", ["before commit", "after commit", "before run", "after run"])
def test_a_lost_answer_changes_nothing_of_the_outcome(place, open_queue, lost):
    """Each statement in turn loses its answer, and so does the commit."""
    counts: Counter[str] = Counter()
    target = 0

    def lose(where):
        counts[where] += 1
        return where == lost and counts[where] == target

    while True:
        open_queue("Queue", "jobs").close()
        counts.clear()
        target += 1
        with losing_connections(lose):
            removed(place)
        assert names(place) == []
        assert not {name for name in tables(place) if name.removeprefix("pc_").isdigit()}
        if counts[lost] < target:
            break
    assert target > 1


def test_what_is_left_of_a_drop_that_was_cut_short_goes_with_the_next_one(place, open_queue, monkeypatch):
    for name in ("jobs", "more", "kept"):
        open_queue("Queue", name).close()

    def fail(*arguments, **options):
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(dropping, "_remove", fail)
        for name in ("jobs", "more"):
            with pytest.raises(StorageError, match=r"pc_1 .* not registered any more"):
                removed(place, name)
    assert names(place) == ["kept"]
    assert {"pc_1", "pc_2"} <= tables(place)
    removed(place)  # it is not registered, and its table is there
    assert {"pc_1", "pc_2"}.isdisjoint(tables(place))
    with pytest.raises(StoreMissingError):
        removed(place)
    assert names(place) == ["kept"]


def test_a_transaction_that_uses_it_is_waited_for(place, open_queue, monkeypatch):
    from persistcoll.servers import open as opening

    monkeypatch.setattr(opening, "TIMEOUT", 1.0)
    queue = open_queue("Queue", "jobs")
    queue.put("x")
    with queue.receive() as item:
        with pytest.raises(LockedError):
            removed(place)
        assert item == "x"
    assert "pc_1" in tables(place)
    # MySQL has forgotten it by then, and PostgreSQL has not.
    assert names(place) == ([] if place.kind == MYSQL else ["jobs"])
    removed(place)
    assert (names(place), "pc_1" in tables(place)) == ([], False)


@pytest.mark.skipif(sys.platform == "win32", reason="no timers on Windows")
def test_an_interrupt_while_it_waits_comes_at_once(place, caller):
    """The session that waits for an answer is asked nothing more, not even to unlock."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with PDict(place.address.shown, "jobs", schema=place.schema) as d:
        d["a"] = 1
    with PDict(place.address.shown, "jobs", connection=caller.connection, schema=place.schema) as d:
        d["a"] = 2
    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            removed(place)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5.0
    caller.rollback()
    assert names(place) == ["jobs"]
    removed(place)


def test_a_table_that_somebody_dropped_is_no_obstacle(place, open_queue):
    open_queue("Queue", "jobs").close()
    place.run(f"DROP TABLE {place.name}.pc_1")
    removed(place)
    assert names(place) == []


def test_a_later_format_is_refused(place, open_queue):
    open_queue("Queue", "jobs").close()
    place.run(f"UPDATE {place.name}.pc_collections SET version = 99")
    with pytest.raises(FormatVersionError, match="99"):
        removed(place)
    assert "pc_1" in tables(place)


def test_a_user_without_the_right_changes_nothing_or_is_told(place, open_queue):
    open_queue("Queue", "jobs").close()
    name = f"dropper_{place.name[8:16]}"
    url = replace(place.address, user=name, password=None).shown.replace("@", ":hidden@")
    if place.kind == MYSQL:
        with place.mysql_user(name, "hidden", "SELECT"), pytest.raises(StorageError) as raised:
            drop(url, "jobs")
    else:
        place.run(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden'")
        place.run(f"GRANT USAGE ON SCHEMA {place.name} TO {name}")
        place.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {place.name} TO {name}")
        with pytest.raises(StorageError) as raised:
            drop(url, "jobs", schema=place.schema)
        place.run(f"DROP OWNED BY {name}")
        place.run(f"DROP ROLE {name}")
    assert "hidden" not in str(raised.value)
    assert names(place) == ["jobs"]
