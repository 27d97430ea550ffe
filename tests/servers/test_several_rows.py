"""Several rows in one statement: their ids, how many statements they are, and claims that end together."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from persistcoll.engine.records import ClaimPolicy, Entry
from persistcoll.errors import StaleClaimError
from persistcoll.servers.address import MYSQL, POSTGRESQL
from persistcoll.servers.mysql.texts import around_values, packets

THREADS, BATCHES, EACH = 6, 15, 40


def words(trips):
    """Return the first words of the statements."""
    return [text.split()[0] for trip in trips for text in trip]


def payload(record):
    return record.id, record.payload


def test_each_row_has_the_id_that_its_put_has_returned_while_others_put(opened):
    store = opened()
    returned: list[tuple[int, bytes]] = []

    def put(thread: int) -> None:
        for batch in range(BATCHES):
            payloads = [b"%d %d %d" % (thread, batch, number) for number in range(EACH)]
            returned.extend(zip(store.append_many(payloads), payloads, strict=True))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.pop_many(THREADS * BATCHES * EACH + 1, payload)) == sorted(returned)


def test_the_ids_follow_the_step_of_the_server(place, opened):
    if place.kind != MYSQL:
        pytest.skip("PostgreSQL returns the ids")
    store = opened()

    def set_step(session):
        session.run("SET SESSION auto_increment_increment = 3")
        session.connection._id_step = 3

    store._server.repeat(set_step)  # on the session that the put uses, too
    ids = store.append_many([b"a", b"b", b"c"])
    assert [high - low for low, high in pairwise(ids)] == [3, 3]
    assert store.pop_many(3, payload) == list(zip(ids, [b"a", b"b", b"c"], strict=True))


def test_rows_that_one_packet_does_not_hold_are_several_statements(place, opened, trips, monkeypatch):
    store = opened()
    store.append(b"a session is there now")
    store.pop(payload)
    trips.clear()
    payloads = [b"%d" % number * 400 for number in range(30)]
    if place.kind == MYSQL:
        for session in store._server._idle:
            monkeypatch.setattr(session.connection, "max_payload", 9_000)
    ids = store.append_many(payloads)
    # At least 400 bytes a row, and the note of the call.
    inserts = words(trips).count("INSERT")
    assert inserts == 2 if place.kind == POSTGRESQL else inserts > 3
    assert store.pop_many(31, payload) == list(zip(ids, payloads, strict=True))


@pytest.mark.parametrize("most", [1, 9, 10, 29, 1_000])
def test_texts_are_joined_as_many_as_fit(most):
    texts = ["a" * 4, "é" * 2, "b" * 30, "c"]
    found = list(packets(texts, ", ", most))
    assert ", ".join(text for text, _ in found) == ", ".join(texts)
    assert sum(count for _, count in found) == len(texts)
    assert all(len(text.encode()) <= most or count == 1 for text, count in found)


def test_what_is_around_the_values_of_an_insert():
    text = "INSERT INTO `a%%b` (x) VALUES (%(x)s, f(%(y)s)) ON DUPLICATE KEY UPDATE x = VALUES(x)"
    before, values, after = around_values(text)
    assert before == "INSERT INTO `a%b` (x) VALUES "
    assert values == "(%(x)s, f(%(y)s))"
    assert after == " ON DUPLICATE KEY UPDATE x = VALUES(x)"


@pytest.mark.parametrize("keep_done", [0, 100])
def test_claims_that_were_made_together_end_by_one_statement(opened, trips, keep_done):
    store = opened(retry=ClaimPolicy(keep_done=keep_done))
    store.put([Entry(b"x") for _ in range(20)])
    ids = store.claim_many(10, lambda record: record.id)
    others = store.claim_many(10, lambda record: record.id)
    trips.clear()
    store.ack(ids)
    first = [word for word in words(trips) if word in ("DELETE", "UPDATE")]
    trips.clear()
    store.nack_many(others)
    assert (len(first), words(trips).count("UPDATE")) == (1, 1)
    assert store.stats().ready == 10


def test_of_claims_that_end_together_all_end_or_none(place, opened):
    store = opened(retry=ClaimPolicy(keep_done=0))
    store.put([Entry(b"x") for _ in range(10)])
    ids = store.claim_many(10, lambda record: record.id)
    gone, late = ids[3], ids[7]
    place.run(f"DELETE FROM {place.name}.pc_1 WHERE id = {gone}")
    place.run(f"UPDATE {place.name}.pc_1 SET fence = fence + 1 WHERE id = {late}")
    with pytest.raises(StaleClaimError) as caught:
        store.ack(ids)
    assert sorted(caught.value.ids) == [gone, late]
    assert store.claimed() == 9
    store.ack([id for id in ids if id not in (gone, late)])
    assert store.claimed() == 1


def test_what_cannot_be_decoded_ends_a_batch_and_stays(opened):
    store = opened(retry=ClaimPolicy(keep_done=0))
    store.put([Entry(b"%d" % number) for number in range(6)])

    def refuse(record):
        if record.payload == b"4":
            raise ZeroDivisionError
        return record.payload

    assert store.pop_many(10, refuse) == [b"0", b"1", b"2", b"3"]
    with pytest.raises(ZeroDivisionError):
        store.pop_many(10, refuse)
    assert store.pop_many(10, lambda record: record.payload) == [b"4", b"5"]
