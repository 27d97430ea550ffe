"""The page on the tables of servers has each table, each column and each type, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import pytest

from persistcoll import MessageQueue, PDict
from persistcoll.servers.address import MYSQL
from tests.servers.places import KINDS, Place

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "server-format.rst"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the pages lie in a checkout")

_SECTION = re.compile(
    r"^(pc_\w+|A [\w ]+: pc_N)\n-+\n(.*?)(?=^(?:pc_\w+|A [\w ]+: pc_N)\n-+\n|\Z)", re.M | re.S
)
_ROW = re.compile(r"^   \* - ``(\w+)``\n     - ``([^`]+)``\n     - (?:``([^`]+)``|none)$", re.M)
# The numbers of the collections that the test makes, in the order of the page.
_NUMBERED = {"A queue: pc_N": ("pc_1", "pc_2"), "A message queue: pc_N": ("pc_3",), "A dict: pc_N": ("pc_4",)}


def described(kind):
    """Return the columns of each table and their types, as the page has them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for title, body in _SECTION.findall(PAGE.read_text("utf-8")):
        types = [(name, mysql if kind == MYSQL else postgres) for name, postgres, mysql in _ROW.findall(body)]
        columns = [(name, kind) for name, kind in types if kind]
        if columns:
            found |= dict.fromkeys(_NUMBERED.get(title, (title,)), columns)
    return found


def there(place):
    """Return the columns of each table and their types, as the server has them."""
    if place.kind == MYSQL:
        text = (
            "SELECT table_name, column_name, column_type FROM information_schema.columns"
            " WHERE table_schema = %(schema)s ORDER BY table_name, ordinal_position"
        )
    else:
        text = (
            "SELECT relname::text, attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
            " JOIN pg_class ON pg_class.oid = attrelid"
            " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE nspname = %(schema)s AND relkind = 'r' AND attnum > 0 ORDER BY relname, attnum"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    for row in place.run(text, schema=place.name):
        table, column, kind = (each.decode() if isinstance(each, bytes) else each for each in row)
        found.setdefault(table, []).append((column, re.sub(r"(int)\(\d+\)", r"\1", kind)))
    return found


@pytest.fixture(params=KINDS)
def place(request):
    place = Place(request.param)
    yield place
    place.close()


def make(place, *items):
    """Make a collection of each kind, and put these items into each."""
    for which in ("PriorityQueue", "UniqueQueue"):
        with place.class_of(which)(which, **place.where, serializer="raw") as queue:
            queue.put_many(items)
    options = {"password": place.address.password, "schema": place.schema}
    with MessageQueue(place.address.shown, "messages", serializer="raw", **options) as messages:
        for item in items:
            messages.put(item, topic="t", key="k", group="g")
    with PDict(place.address.shown, name="dict", serializer="raw", **options) as pairs:
        pairs.update((item, item) for item in items)


def test_the_page_has_the_columns_that_a_server_has(place):
    make(place)
    assert described(place.kind) == there(place)


def test_checksums_are_as_the_page_says(place):
    make(place, b"payload")
    seeds = [
        crc32(bytes(store))
        for (store,) in place.run(f"SELECT store FROM {place.name}.pc_collections ORDER BY number")
    ]

    def row(number, columns):
        (values,) = place.run(f"SELECT {columns} FROM {place.name}.pc_{number}")
        return [bytes(each) if isinstance(each, (bytes, memoryview)) else each for each in values]

    for number in (1, 2):
        mark, crc, payload = row(number, "mark, crc, payload")
        assert crc == crc32(payload, (mark & 0xFFFFFFFF) ^ seeds[number - 1])
    mark, crc, topic, key, group, headers, payload = row(
        3, "mark, crc, topic, item_key, grp, headers, payload"
    )
    parts = (topic, key, group, headers)
    lengths = b" ".join(b"%d" % len(part) for part in parts)
    assert crc == crc32(lengths + b"".join(parts) + payload, (mark & 0xFFFFFFFF) ^ seeds[2])
    key, crc, size, value = row(4, "item_key, crc, size, value")
    assert (size, crc) == (len(value), crc32(key + value, seeds[3]))
