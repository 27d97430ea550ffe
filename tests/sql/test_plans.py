"""No statement visits more rows than it concerns, and none sorts: by the plans of SQLite itself."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from persistcoll.engine.message_records import MessageEntry, MessagePolicy
from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE, State
from persistcoll.errors import Empty
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.message_statements import STATES, message_statements
from persistcoll.sqlite.statements import record_statements
from tests.conformance.message_stores import SQLiteMessageStores

DISCIPLINES = [FIFO, LIFO, PRIORITY, UNIQUE]
# These statements read or remove a whole state, or the first rows in the order of the table or an index.
HEADS = {"select_ready", "claim_first", "delete_first"}
WHOLE = {"select_in_state", "delete_all", "delete_ready_keys", *HEADS}
KEYS = {"insert_key", "select_key", "delete_key", "delete_ready_keys", "requeue_keys"}


def texts(sql) -> Iterator[tuple[str, str]]:
    """Give every statement with its name, without those that make the tables."""
    for name, text in sql._asdict().items():
        if isinstance(text, str):
            yield name, text
        elif isinstance(text, Mapping):
            for each in text.values():
                yield from ((name, one) for one in flat(each))


def flat(texts) -> Iterator[str]:
    """Give the texts of nested tuples."""
    if isinstance(texts, str):
        yield texts
    else:
        for each in texts:
            yield from flat(each)


@pytest.fixture(params=DISCIPLINES, ids=lambda discipline: discipline.name)
def table(request):
    """Give the statements of a record store, and its database."""
    connection = driver.connect(":memory:", 1)
    schema.create(connection.execute)
    sql = record_statements(1, request.param)
    for text in sql.create:
        connection.execute(text)
    yield request.param, sql, connection
    driver.close(connection)


def plan(connection, text: str) -> list[str]:
    """Return SQLite's plan for this statement."""
    rows = connection.execute("EXPLAIN QUERY PLAN " + text, (None,) * text.count("?")).fetchall()
    return [row[3] for row in rows]


def test_every_statement_is_served_by_an_index(table):
    discipline, sql, connection = table
    seen = 0
    for name, text in texts(sql):
        if name in KEYS and not discipline.unique:
            continue
        seen += 1
        steps = plan(connection, text)
        assert not [step for step in steps if "TEMP B-TREE" in step], f"{name} sorts: {steps}"
        if name not in WHOLE:
            scans = [step for step in steps if step.startswith("SCAN") and "CONSTANT ROW" not in step]
            assert scans == [], f"{name} goes through a table: {steps}"
    assert seen > 25


def test_the_heads_come_in_the_order_of_the_table_or_of_an_index(table):
    discipline, sql, connection = table
    for name in HEADS:
        text = getattr(sql, name)
        assert text.rstrip(")").endswith((" LIMIT ?", " LIMIT 1 OFFSET ? - 1"))
        (step,) = (step for step in plan(connection, text) if step.startswith("SCAN"))
        assert step.endswith("INDEX order_1") if discipline.by_priority else step == "SCAN ready_1"


@pytest.mark.parametrize(
    "text",
    ["SELECT * FROM ready_1 ORDER BY time", "SELECT * FROM ready_1 WHERE crc = 1"],
    ids=["sorts", "scans"],
)
def test_a_bad_plan_is_seen(table, text):
    *_, connection = table
    steps = plan(connection, text)
    assert any("TEMP B-TREE" in step or step.startswith("SCAN") for step in steps)


# Messages.

# These go through an index, which holds the rows of one state or those that wait for a time.
FIRST_OF_AN_INDEX = {"select_ready", "delete_oldest"}
LISTINGS = {
    "pages": "list a state; for the delayed ones they also meet what has a lease or a ttl",
    "pages_of": "list a state of which the other topics' messages are left out",
    "select_gated": "lists the topics that are gated",
}
# This one goes through a table: it lists all topics, of which every row belongs to a message or a gate.
ALL_TOPICS = "select_topics"
# This one goes through the keys: a damaged message does not say which is its own.
ALL_KEYS = "delete_keys_of"
TABLE = re.compile(r"SCAN (messages|topics|keys|groups|counters)_?\d*( USING (COVERING )?INDEX \w+)?")


@pytest.fixture(params=["never analyzed", "analyzed empty", "analyzed full"])
def messages(request):
    """Give the statements of a message store, and its database with what SQLite knows of the tables."""
    connection = driver.connect(":memory:", 1)
    schema.create(connection.execute)
    sql = message_statements(1)
    for text in sql.create:
        connection.execute(text)
    if request.param == "analyzed full":
        fill(sql, connection)
    if request.param != "never analyzed":
        connection.execute("ANALYZE")
        analyzed = connection.execute("SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'messages_1'")
        assert (analyzed.fetchone() == (0,)) == (request.param == "analyzed empty")
    yield sql, connection
    driver.close(connection)


def fill(sql, connection) -> None:
    """Add messages in every state, most of them done, and topics, keys and groups."""
    pick = random.Random(7)
    for id in range(1, 3001):
        state = pick.choice([*STATES.values(), *[STATES[State.DONE]] * 6])
        topic, group = f"topic {id % 50}", f"group {id % 20}" if id % 3 else None
        due, expires = (pick.random() if state < 4 else None), (1.0 if id % 7 == 0 else None)
        key = b"key %d" % id if id % 2 else None
        row = (
            id, state, topic, -float(id % 3), 1.0, 0, 0, None, None, key, group, b"", None, None, expires,
            expires, 1, 1, b"payload", due,
        )  # fmt: skip
        connection.execute(sql.insert, row)
        if group is not None:
            connection.execute(sql.enter_group, (topic, group)).fetchall()
        if key is not None:
            connection.execute(sql.save_key, (key, id, 1.0, id % 2))
    for number in range(500):
        gate = (0, None, 1, 0.0, None, None, None)
        connection.execute(sql.save_topic, (f"topic {number}", *[1] * 6, *gate, int(number < 4)))
    connection.execute("UPDATE messages_1 SET holder = id % 5 WHERE state = 1")


def bad_steps(name: str, steps: list[str]) -> list[str]:
    """Return the steps that sort, or that go through rows which do not concern a statement of messages."""
    found = [step for step in steps if "TEMP B-TREE" in step]
    for step in steps:
        scan = TABLE.match(step)
        through_index = scan is not None and scan[2] is not None
        if scan is None or (through_index and name in FIRST_OF_AN_INDEX | LISTINGS.keys()):
            continue
        if (name, scan[1]) not in ((ALL_TOPICS, "topics"), (ALL_KEYS, "keys")):
            found.append(step)
    return found


def test_every_statement_of_messages_is_served_by_an_index(messages):
    sql, connection = messages
    bad = [(name, bad_steps(name, plan(connection, text))) for name, text in texts(sql)]
    assert len(bad) > 45
    assert [(name, steps) for name, steps in bad if steps] == []


def test_the_heads_of_messages_come_in_the_order_of_an_index(messages):
    sql, connection = messages
    assert plan(connection, sql.select_ready) == ["SCAN messages_1 USING INDEX ready_1"]
    assert plan(connection, sql.select_ready_of) == ["SEARCH messages_1 USING INDEX ready_of_1 (topic=?)"]
    assert plan(connection, sql.select_due) == ["SEARCH messages_1 USING INDEX due_1 (due>? AND due<?)"]
    assert plan(connection, sql.promote)[-1] == "SEARCH messages_1 USING INDEX delayed_1 (due<?)"
    for state in (State.DONE, State.DEAD):
        assert (
            plan(connection, sql.delete_oldest[state])[-1] == f"SCAN messages_1 USING INDEX {state.value}_1"
        )
    for text in (sql.end_leases, sql.end_ttls, sql.end_delays):
        by_id, _, slice_of_due = plan(connection, text)
        assert by_id == "SEARCH messages_1 USING INTEGER PRIMARY KEY (rowid=?)"
        assert slice_of_due == "SEARCH messages_1 USING INDEX due_1 (due>? AND due<?)"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id FROM messages_1 WHERE state = 0 ORDER BY created",
        "SELECT id FROM messages_1 WHERE state = ?",
        "SELECT created FROM messages_1 WHERE state = 0 ORDER BY id LIMIT 1",
        "SELECT sum(ready) FROM topics_1",
    ],
    ids=["sorts", "has no index for every state", "goes through what is done", "counts the topics"],
)
def test_a_bad_plan_for_messages_is_seen(messages, text):
    _, connection = messages
    assert bad_steps("select", plan(connection, text))


@pytest.mark.parametrize("gate", [None, "pause", "rate", "lock"])
@pytest.mark.parametrize("topics", [None, ["b"], ["a", "b", "c"]], ids=["any", "one", "several"])
def test_the_statements_of_a_claim(tmp_path: Path, gate: str | None, topics: list[str] | None, monkeypatch):
    """Those that really run, with whatever keeps a topic from being delivered."""
    seen: list[str] = []
    connect = driver.connect

    def watched(path: str, timeout: float) -> driver.Connection:
        connection = connect(path, timeout)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(driver, "connect", watched)
    stores = SQLiteMessageStores(tmp_path)
    store = stores.open("messages", MessagePolicy())
    store.put([MessageEntry(b"x", topic=topic) for topic in "abcd"])
    other = stores.open("messages", MessagePolicy())
    if gate == "pause":
        other.pause("a")
    elif gate == "rate":
        other.set_rate("a", 10.0)
    elif gate == "lock":
        other.lock_topic("a", None)
    seen.clear()
    for _ in range(5):
        with suppress(Empty):
            store.claim(topics=topics)
    connection = connect(str(tmp_path / "messages.db"), 1)
    claims = [text for text in set(seen) if "messages_1" in text or "topics_1" in text]
    assert len(claims) >= 4
    for text in claims:
        name = "select_ready" if "ready_1" in text and "LIMIT" in text else ""
        name = ALL_TOPICS if "ready + claimed" in text else name
        steps = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + text).fetchall()]
        assert bad_steps(name, steps) == [], text
    driver.close(connection)
    store.close()
    other.close()
