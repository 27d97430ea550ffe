"""No statement visits more rows than it concerns, and none sorts: by the plans of SQLite itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from persistcoll.engine.records import FIFO, LIFO, PRIORITY, UNIQUE
from persistcoll.sqlite import driver, schema
from persistcoll.sqlite.statements import record_statements

DISCIPLINES = [FIFO, LIFO, PRIORITY, UNIQUE]
# These statements read or remove a whole state, or the first rows in the order of the table or an index.
HEADS = {"select_ready", "claim_first", "delete_first"}
WHOLE = {"select_in_state", "delete_all", "delete_ready_keys", *HEADS}
KEYS = {"insert_key", "select_key", "delete_key", "delete_ready_keys"}


def texts(sql) -> Iterator[tuple[str, str]]:
    """Give every statement with its name, without those that make the tables."""
    for name, text in sql._asdict().items():
        if isinstance(text, Mapping):
            yield from ((name, each) for each in text.values())
        elif name != "create":
            yield name, text


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
