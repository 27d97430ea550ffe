"""Message stores on servers whose answers are lost, whose rows are locked or damaged, and what they leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from persistcoll.engine.message_records import DAMAGED, MessageClaim, MessageEntry, MessagePolicy
from persistcoll.engine.records import State
from persistcoll.errors import BackendUnavailableError, CorruptionError, Empty, LockedError, StaleClaimError
from persistcoll.servers import message_claiming
from persistcoll.servers.address import MYSQL
from persistcoll.servers.message_store import ServerMessageStore
from persistcoll.servers.open import open_message_store
from persistcoll.testing.children import run_threads
from tests.servers.losing import losing_connections

POLICY = MessagePolicy(lease=3600.0, max_attempts=None, backoff=None)


@pytest.fixture
def opened(place) -> Iterator[Callable[..., ServerMessageStore]]:
    """Open message stores in the place, and close them at the end."""
    stores: list[ServerMessageStore] = []

    def open_store(policy: MessagePolicy = POLICY, **options: Any) -> ServerMessageStore:
        options = {"durability": "process", "schema": place.schema, **options}
        stores.append(
            open_message_store(place.address, name="jobs", policy=policy, serializer="raw", **options)
        )
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def rows_in(place, table):
    ((count,),) = place.run(f"SELECT count(*) FROM {place.name}.{table}")
    return count


# Answers that are lost.


def test_nothing_is_lost_and_nothing_happens_twice(place, opened, seed):
    each, producers = 25, 2
    acked: list[bytes] = []
    claimed: list[tuple[str | None, bytes]] = []

    def put(number):
        for index in range(each):
            payload, group = b"%d %d" % (number, index), f"{number}"
            entries = [
                MessageEntry(payload, key=payload),
                MessageEntry(payload + b" again", key=payload),
                MessageEntry(payload + b" grouped", group=group),
            ]
            assert [id is None for id in store.put(entries)] == [False, True, False]

    def consume():
        while len(acked) < 2 * each * producers:
            with suppress(Empty):
                for record in store.claim(2):
                    claimed.append((record.group, record.payload))
                    store.ack([record.claim])
                    acked.append(record.payload)

    with losing_connections(0.02, seed):
        store = opened()
        run_threads(consume, consume, *[lambda number=number: put(number) for number in range(producers)])
    wanted = {b"%d %d%s" % (number, index, end) for number in range(producers) for index in range(each)
              for end in (b"", b" grouped")}  # fmt: skip
    assert len(acked) == len(wanted)
    assert set(acked) == wanted
    for number in range(producers):
        # No message of a group is claimed before the one before it was acked, which is after its claim.
        indexes = [int(payload.split()[1]) for group, payload in claimed if group == f"{number}"]
        assert indexes == list(range(each))
    told = store.stats()
    assert (told.puts, told.gets, told.ready, told.claimed) == (len(wanted), len(wanted), 0, 0)
    assert (rows_in(place, "pc_keys"), rows_in(place, "pc_groups")) == (0, 0)


def test_a_claim_whose_answer_was_lost_is_found_by_the_next_try(place, opened):
    last = "after commit" if place.kind == MYSQL else "after run"
    lost: list[str] = []

    def lose_once(where: str) -> bool:
        if where == last and lost == ["arm"]:
            lost.append(where)
            return True
        return False

    with losing_connections(lose_once):
        store = opened(POLICY._replace(max_attempts=1))
        store.put([MessageEntry(b"a"), MessageEntry(b"b")])
        lost.append("arm")
        (record,) = store.claim()
        assert len(lost) == 2
        assert (record.payload, record.attempts, record.deliveries) == (b"a", 1, 1)
        assert not store._holder.lost
        store.ack([record.claim])
        assert [record.payload for record in store.claim()] == [b"b"]


def test_a_claim_that_raised_is_released_before_the_next_one(place, opened):
    away: list[bool] = []

    def lose(where: str) -> bool:
        if where == ("after commit" if place.kind == MYSQL else "after run") and away == [False]:
            away.append(True)
        return len(away) > 1

    with losing_connections(lose):
        store = opened(timeout=0.1)
        store.put([MessageEntry(b"a")])
        away.append(False)
        with pytest.raises(BackendUnavailableError):
            store.claim()
        away.clear()
        assert len(store._holder.lost) == 1
        (record,) = store.claim()
        assert (record.payload, record.attempts, record.deliveries) == (b"a", 1, 2)


def test_an_interrupted_claim_is_released_at_once(opened, monkeypatch):
    store, other = opened(), opened()
    store.put([MessageEntry(b"a")])

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._rows, "delivery", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.claim()
    (record,) = other.claim()
    assert (record.payload, record.attempts, record.deliveries) == (b"a", 1, 2)


# What other transactions have locked.


def test_a_call_on_any_messages_passes_over_what_another_transaction_changes(place, opened, caller):
    store = opened(timeout=30.0)
    entries = [MessageEntry(name, topic="t") for name in (b"claimed", b"free")]
    entries += [MessageEntry(b"keyed", key=b"k"), MessageEntry(b"head", group="g")]
    entries += [MessageEntry(b"next", group="g"), MessageEntry(b"other", group="h", key=b"l")]
    store.put(entries)
    joined = store.joined(caller)
    (claimed,) = joined.claim(1, ["t"])
    assert claimed.payload == b"claimed"
    assert joined.release_key(b"k")
    joined.put([MessageEntry(b"last", group="g")])
    begin = time.monotonic()
    assert store.purge() == 2  # "free" and "other"
    assert [record.payload for record in store.scan()] == [b"claimed", b"keyed", b"head", b"next"]
    assert store.purge("t") == 0
    assert [record.payload for record in store.claim(5)] == [b"keyed", b"head"]
    with pytest.raises(Empty) as raised:
        store.claim(5)
    assert getattr(raised.value, "next_at") < time.monotonic() + 1.0  # noqa: B009  # the transaction may be rolled back
    assert time.monotonic() - begin < 15.0
    caller.rollback()
    assert store.purge("t") == 1


def test_a_call_on_one_message_is_refused_while_another_transaction_changes_it(place, opened, caller):
    store = opened(timeout=1.0)
    store.put([MessageEntry(b"head", group="g", key=b"k")])
    (record,) = store.claim()
    store.joined(caller).put([MessageEntry(b"next", group="g")])
    with pytest.raises(LockedError):
        store.ack([record.claim])
    with pytest.raises(LockedError):
        store.put([MessageEntry(b"other", group="g")])
    caller.rollback()
    store.ack([record.claim])
    store.joined(caller).put([MessageEntry(b"next", key=b"k")])
    with pytest.raises(LockedError):
        store.put([MessageEntry(b"other", key=b"k")])
    caller.commit()
    assert store.put([MessageEntry(b"other", key=b"k")]) == [None]


def test_consumers_and_cancels_of_one_group_survive_their_deadlocks(opened):
    store = opened()
    ids = store.put([MessageEntry(b"%d" % number, group="g") for number in range(40)])
    gone: list[int | None] = []

    def cancel():
        gone.extend(id for id in reversed(ids) if store.cancel(id))

    def consume():
        while store.has_unfinished():
            with suppress(Empty, StaleClaimError):
                for record in store.claim():
                    store.ack([record.claim])
                    gone.append(record.id)

    run_threads(cancel, consume, consume)
    assert sorted(filter(None, gone)) == ids


def test_a_message_that_is_due_while_it_is_locked_is_seen_afterwards(place, opened, caller):
    store = opened()
    (id,) = store.put([MessageEntry(b"a", delay=0.01)])
    time.sleep(0.02)  # a delay of the server's clock
    joined = store.joined(caller)
    assert [record.payload for record in joined.claim()] == [b"a"]
    assert store.count() == 0
    with pytest.raises(Empty) as raised:
        store.claim()
    assert getattr(raised.value, "next_at") < time.monotonic() + 1.0  # noqa: B009
    caller.rollback()
    assert [record.id for record in store.claim()] == [id]


# Damage.


def test_a_damaged_message_is_dead_and_the_next_one_delivered(place, opened):
    store = opened()
    ids = store.put([MessageEntry(name, topic="t", group="g") for name in (b"damaged", b"intact")])
    store.put([MessageEntry(b"other", topic="u")])
    table = f"{place.name}.pc_{store._number}"
    place.run(f"UPDATE {table} SET payload = %(payload)s WHERE id = {ids[0]}", payload=b"damagad")
    with pytest.raises(CorruptionError, match=rf"cancel\({ids[0]}\)"):
        store.find(ids[0])
    (record,) = store.claim(1, ["t"])
    assert (record.id, record.attempts) == (ids[1], 1)
    ((state, attempts, error),) = place.run(f"SELECT state, attempts, error FROM {table} WHERE id = {ids[0]}")
    assert (state, attempts, bytes(error).decode()) == (6, 0, DAMAGED)
    assert store.stats().dead == 1
    assert store.cancel(ids[0])


def test_a_damaged_message_uses_no_slot_of_a_rate(place, opened):
    store = opened()
    ids = store.put([MessageEntry(name) for name in (b"damaged", b"intact")])
    store.set_rate("default", 3600.0)
    place.run(f"UPDATE {place.name}.pc_{store._number} SET headers = %(h)s WHERE id = {ids[0]}", h=b"x")
    assert [record.id for record in store.claim(2)] == [ids[1]]
    with pytest.raises(Empty):
        store.claim()


# What is tidied.


def test_finished_messages_expired_numbers_and_old_keys_are_tidied(place, opened, monkeypatch):
    monkeypatch.setattr(message_claiming, "_BATCH", 4)
    store = opened(POLICY._replace(keep_done=3, keep_dead=2))
    for number in range(9):
        store.put([MessageEntry(b"a"), MessageEntry(b"b", key=b"%d" % number, key_window=0.05)])
        a, b = store.claim(2)
        store.ack([a.claim])
        store.fail([b.claim])
        store.put([MessageEntry(b"gone", ttl=1e-6)])
        assert store.is_empty()
    states = {state: len(list(store.scan(state))) for state in (State.DONE, State.DEAD)}
    assert states[State.DONE] in range(3, 7)
    assert states[State.DEAD] in range(2, 6)
    assert store.stats().expired == 9
    assert rows_in(place, "pc_expired") < 5
    time.sleep(0.1)  # a window of the server's clock
    for number in range(4):
        store.put([MessageEntry(b"b", key=b"new %d" % number, key_window=0.05)])
        store.ack([record.claim for record in store.claim()])
    assert rows_in(place, "pc_keys") < 9


def test_gates_that_decide_nothing_any_more_are_removed(place, opened):
    store = opened()
    store.put([MessageEntry(b"a")])
    store.pause("paused")
    store.set_rate("limited", 1.0)
    store.lock_topic("locked", 0.05)
    store.resume("paused")
    store.set_rate("limited", None)
    time.sleep(0.1)  # a lease of the server's clock
    assert len(store.claim()) == 1
    assert rows_in(place, "pc_topics") == 0
    store.resume("unknown")
    assert not store.unlock_topic(store.lock_topic("t", 1e-6))
    assert rows_in(place, "pc_topics") == 0


def test_a_key_that_is_too_long_is_refused(opened):
    store = opened()
    assert None not in store.put([MessageEntry(b"a", key=b"k" * 1024)])
    with pytest.raises(ValueError, match="at most 1024 bytes"):
        store.put([MessageEntry(b"a", key=b"k" * 1025)])


def test_a_claim_that_never_was_ends_nothing(opened):
    store = opened()
    (id,) = store.put([MessageEntry(b"a")])
    (record,) = store.claim()
    assert store.release([MessageClaim(id, 7)]) == 0
    with pytest.raises(StaleClaimError) as raised:
        store.ack([record.claim, MessageClaim(id, 7)])
    assert list(raised.value.ids) == [id]
    store.ack([record.claim])


def test_a_callers_transaction_keeps_nobody_waiting_who_uses_other_messages(place, opened, caller):
    """Also on MySQL, whose transactions lock gaps between rows where they read them to lock."""
    store = opened(timeout=1.0)
    store.put([MessageEntry(b"mine", topic="mine"), MessageEntry(b"theirs", topic="theirs")])
    store.put([MessageEntry(b"removed", topic="removed"), MessageEntry(b"late", topic="late", delay=0.01)])
    store.put([MessageEntry(name, topic="group", group="g") for name in (b"head", b"next")])
    time.sleep(0.02)  # a delay of the server's clock
    joined = store.joined(caller)
    assert [record.payload for record in joined.claim(1, ["mine"])] == [b"mine"]
    with pytest.raises(Empty):
        joined.claim(5, ["unknown"])
    assert joined.purge("removed") == 1
    assert joined.redrive_all() == 0
    joined.put([MessageEntry(b"new", topic="new", delay=60.0, key=b"new", group="new")])
    joined.nack([record.claim for record in joined.claim(1, ["group"])], 30.0)
    begin = time.monotonic()
    topics = ("a", "group", "mine", "new", "theirs", "unknown", "z")
    for delay, ttl in ((0.0, None), (30.0, 90.0), (90.0, None)):
        store.put([MessageEntry(b"x", topic=topic, delay=delay, ttl=ttl) for topic in topics])
        store.put([MessageEntry(b"x", topic=topic, group="other", delay=delay) for topic in topics])
        store.put([MessageEntry(b"x", topic=topic, key=f"{topic} {delay}".encode()) for topic in topics])
    records = store.claim(8, lease=45.0)
    store.nack([record.claim for record in records[:4]], 60.0)
    store.extend([record.claim for record in records[4:]], 15.0)
    store.fail([record.claim for record in records[4:]])
    assert store.redrive_all() == 4
    assert store.purge("a") == 9
    assert time.monotonic() - begin < 10.0
    caller.commit()
    found = {record.topic: record.state for record in store.scan() if record.payload not in (b"x", b"next")}
    assert found["mine"] is State.CLAIMED
    assert found["new"] is found["group"] is State.DELAYED
    assert "removed" not in found
