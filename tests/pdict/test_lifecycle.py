"""The lifecycle of a ``PDict``: opening, closing, pickling, forking, damage, a full disk, processes."""

from __future__ import annotations

import errno
import gc
import pickle
import sqlite3
import warnings
from typing import Any

import pytest

from persistcoll import (
    ClosedError,
    CorruptionError,
    DecodeError,
    EncodeError,
    SerializerMismatchError,
    SQLiteQueue,
    StorageError,
    StorageFullError,
    StoreKindError,
)
from persistcoll.dicts import base
from persistcoll.dicts.pdict import PDict
from persistcoll.serializers import key_from_env, signed
from persistcoll.sqlite import pair_store
from persistcoll.sqlite.statements import pair_statements
from persistcoll.testing.children import in_forked_child, run_threads

# Opening.


def test_the_parameters_have_the_names_and_order_of_persist_queue(tmp_path):
    with PDict[Any, Any](str(tmp_path / "d"), "name", True, durability="process") as d:
        assert (d.path, d.name, d.multithreading, d.auto_commit) == (str(tmp_path / "d"), "name", True, True)
        d["a"] = 1
    with PDict[Any, Any](path=tmp_path / "d", name="name", multithreading=False) as d:
        assert d == {"a": 1}
        assert d.multithreading


@pytest.mark.parametrize("path", ["d", "d.db", "deep/er/d.sqlite", "d/x"])
def test_paths(open_dict, tmp_path, path):
    open_dict(path=path)["a"] = 1
    assert (tmp_path / path).is_file() == ("." in path)
    assert open_dict(path=path) == {"a": 1}


def test_the_name_of_the_file(open_dict, tmp_path):
    d = open_dict(db_file_name="other.db")
    d["a"] = 1
    assert d.db_file_name == "other.db"
    assert (tmp_path / "d" / "other.db").is_file()
    assert open_dict() == {}
    with pytest.raises(ValueError, match="'db_file_name'"):
        open_dict(db_file_name="../x.db")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"durability": "none"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"serializer": "yaml"}, ValueError),
        ({"serializer": 3}, TypeError),
        ({"name": 5}, TypeError),
    ],
    ids=repr,
)
def test_wrong_options(open_dict, tmp_path, options, error):
    with pytest.raises(error):
        open_dict(**options)
    assert not (tmp_path / "d").exists() or open_dict() == {}


def test_in_memory_each_is_its_own(open_dict):
    one, other = open_dict(path=":memory:"), open_dict(path=":memory:")
    one.update(a=1, b=2)
    with one.transaction():
        one["c"] = one.pop("a")
    assert one == {"b": 2, "c": 1}
    assert other == {}
    assert one.path == ":memory:"
    with pytest.raises(TypeError, match="in memory"):
        pickle.dumps(one)


def test_names_do_not_see_each_other(open_dict):
    names = ["a", "b", "a b", "it's", 'say "x"', "名前", "x; DROP TABLE store", "", "a\0b", "?"]
    for name in names:
        open_dict(name)["name"] = name
    for name in names:
        assert open_dict(name) == {"name": name}


def test_dicts_and_queues_share_a_file(open_dict, tmp_path):
    d = open_dict("d")
    with SQLiteQueue(tmp_path / "d", "q", durability="process") as queue:
        queue.put("item")
        d["a"] = 1
        with pytest.raises(StoreKindError, match="choose another name"):
            open_dict("q")
        with pytest.raises(StoreKindError, match="choose another name"):
            SQLiteQueue(tmp_path / "d", "d")
        with d.transaction():
            d["got"] = queue.get()
    assert d == {"a": 1, "got": "item"}


def test_another_serializer(open_dict):
    open_dict(serializer="json")["a"] = 1
    with pytest.raises(SerializerMismatchError, match="serializer='json'"):
        open_dict()
    assert open_dict(serializer="json") == {"a": 1}


# Closing.


def test_close_is_idempotent_and_final(kind):
    d = kind.open()
    d.update(a=1, b=2)
    iterators = [iter(d), iter(d.items()), d.scan()]
    keys = d.keys()
    d.close()
    d.close()
    calls = {
        "get": lambda: d.get("a"),
        "[]": lambda: d["a"],
        "[]=": lambda: d.__setitem__("a", 1),
        "del": lambda: d.__delitem__("a"),
        "in": lambda: "a" in d,
        "len": lambda: len(d),
        "bool": lambda: bool(d),
        "list": lambda: list(d),
        "reversed": lambda: list(reversed(d)),
        "keys": lambda: list(keys),
        "==": lambda: d == {"a": 1},
        "get_many": lambda: d.get_many(["a"]),
        "get_many of nothing": lambda: d.get_many([]),
        "set": lambda: d.set("a", 1, 5),
        "set_many": lambda: d.set_many({"a": 1}),
        "update": lambda: d.update(a=1),
        "pop": lambda: d.pop("a", None),
        "popitem": d.popitem,
        "setdefault": lambda: d.setdefault("a"),
        "incr": lambda: d.incr("n"),
        "edit": lambda: d.edit("a").__enter__(),
        "scan": lambda: list(d.scan()),
        "clear": d.clear,
        "copy": d.copy,
        "transaction": lambda: d.transaction().__enter__(),
        "stats": d.stats,
        **{str(each): lambda each=each: list(each) for each in iterators},
    }
    for name, call in calls.items():
        with pytest.raises(ClosedError, match="closed"):
            print(name, call())  # shown where it did not raise
    assert "closed" in repr(d)
    assert kind.open() == {"a": 1, "b": 2}


def test_a_dict_that_was_not_closed_warns(tmp_path):
    d: PDict[Any, Any] = PDict(tmp_path / "d", "it", durability="process")
    d["a"] = 1
    last = [d]
    del d
    with pytest.warns(ResourceWarning, match="unclosed <PDict 'it' in .*data.db'>"):
        forget(last)
    again: PDict[Any, Any]
    with PDict(tmp_path / "d", "it", durability="process") as again:
        assert again == {"a": 1}


def forget(last):
    last.clear()
    gc.collect()


def test_one_that_could_not_be_opened_does_not_warn(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PDict(tmp_path / "file")
    with pytest.raises(TypeError):
        PDict.fromkeys("abc")
    gc.collect()


def test_fromkeys_closes_what_it_could_not_fill(tmp_path):
    with pytest.raises(EncodeError):
        PDict.fromkeys("abc", lambda: None, tmp_path / "d")
    gc.collect()
    d: PDict[Any, Any]
    with PDict.fromkeys("abc", 0, tmp_path / "d", "name", durability="process") as d:
        assert d == {"a": 0, "b": 0, "c": 0}


# Other processes and objects.


def test_pickled_by_location(open_dict, monkeypatch):
    monkeypatch.setenv("A_KEY", "00" * 32)
    serializer = signed("pickle", key_from_env("A_KEY"))
    d = open_dict("it", serializer=serializer, auto_commit=False)
    d["a"] = {1: 2}
    data = pickle.dumps(d)
    assert len(data) < 1000
    with pickle.loads(data) as again:
        assert type(again) is PDict
        assert (again.path, again.name, again.auto_commit) == (d.path, d.name, False)
        assert again == {}  # buffered changes are not pickled
        d.task_done()
        assert again == {"a": {1: 2}}


def test_a_forked_child_uses_it(open_dict):
    d = open_dict()
    d.update(a=1, n=1)
    gathering = open_dict(auto_commit=False)
    gathering["mine"] = "the parent's"

    def child():
        assert d == {"a": 1, "n": 1}
        d["child"] = d.incr("n")
        assert "mine" not in gathering
        gathering["child's"] = 1
        gathering.task_done()

    in_forked_child(child)
    in_forked_child(lambda: None)
    d.incr("n")
    assert d == {"a": 1, "n": 3, "child": 2, "child's": 1}
    gathering.task_done()
    assert d["mine"] == "the parent's"


def test_a_child_forked_while_others_are_in_a_call(open_dict):
    d = open_dict()
    d["stop"] = False

    def busy():
        while not d["stop"]:
            d.incr("n")
            list(d.items())

    def fork():
        try:
            for _ in range(10):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork() and threads
                    in_forked_child(lambda: d.incr("children"))
        finally:
            d["stop"] = True

    run_threads(busy, busy, fork)
    assert d["children"] == 10


# Damage.


def in_the_database(d, statement, *parameters):
    """Change the file while no handle has it open."""
    path = f"{d.path}/data.db"
    d.close()
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, parameters).rowcount > 0
    connection.close()


@pytest.mark.parametrize(
    ("column", "damaged"),
    [("value", b"x"), ("value", None), ("value", "text"), ("crc", 1), ("crc", None), ("expires", 4e9)],
)
def test_a_damaged_value(open_dict, column, damaged):
    d = open_dict()
    d.update(a=1, b=2, c=3)
    in_the_database(d, f"UPDATE pairs_1 SET {column} = ? WHERE key = ?", damaged, b"sb")
    d = open_dict()
    looks = [
        lambda: d["b"],
        lambda: d.get("b"),
        lambda: d.pop("b"),
        lambda: d.setdefault("b"),
        lambda: d.incr("b"),
        lambda: d.get_many(["a", "b"]),
        lambda: dict(d),
        lambda: list(d.scan()),
    ]
    for look in looks:
        with pytest.raises(CorruptionError, match="checksum") as caught:
            look()
        assert caught.value.path == f"{d.path}/data.db"
    assert (list(d), len(d), d["a"], d["c"], "b" in d) == (["a", "b", "c"], 3, 1, 3, True)
    values = iter(d.values())
    assert next(values) == 1
    with pytest.raises(CorruptionError):
        next(values)
    assert list(values) == [3]
    d.pop("c")
    with pytest.raises(CorruptionError):
        d.popitem()
    d["b"] = 5
    assert d == {"a": 1, "b": 5}


def test_a_damaged_value_can_be_deleted(open_dict):
    d = open_dict()
    d.update(a=1, b=2)
    in_the_database(d, "UPDATE pairs_1 SET value = x'00' WHERE key = ?", b"sa")
    d = open_dict()
    del d["a"]
    assert d == {"b": 2}


def test_exchanged_values_are_noticed(open_dict):
    d = open_dict()
    d.update(a=1, b=2)
    in_the_database(
        d, "UPDATE pairs_1 SET (value, crc) = (SELECT value, crc FROM pairs_1 WHERE key = ?)", b"sa"
    )
    d = open_dict()
    assert d["a"] == 1
    with pytest.raises(CorruptionError):
        d["b"]


def test_a_damaged_name_is_noticed(open_dict):
    d = open_dict()
    d.update({"a": 1, 1.0: 2, "c": 3})
    in_the_database(d, "UPDATE pairs_1 SET name = ? WHERE key = ?", b"T", b"i1;")
    d = open_dict()
    assert repr(list(d)) == "['a', True, 'c']"  # it is equal
    in_the_database(d, "UPDATE pairs_1 SET name = ? WHERE key = ?", b"F", b"i1;")
    d = open_dict()
    keys = iter(d)
    assert next(keys) == "a"
    with pytest.raises(DecodeError, match="key"):
        next(keys)
    assert list(keys) == ["c"]
    assert d[1] == 2


def test_signed_values_cannot_be_exchanged(open_dict):
    """A program that may write the file can compute checksums, but has no key."""
    options = {"serializer": signed("json", b"a key of 16 bytes or more")}
    d = open_dict(**options)
    d.update({"a": 1, "b": 2, "c": 3, ("t", 1): 4})
    assert d[("t", True)] == 4
    assert d.incr("a", 5) == 6
    with d.edit("list", []) as value:
        value.append(1)
    assert dict(d) == {"a": 6, "b": 2, "c": 3, ("t", 1): 4, "list": [1]}
    store = d._store
    stolen = store.get(b"sa")
    store.set_many([(b"sb", b"", stolen)])
    for look in (lambda: d["b"], lambda: d.pop("b"), lambda: d.get_many(["b"]), lambda: dict(d)):
        with pytest.raises(DecodeError, match=r"'b'.*signature"):
            look()
    d["b"] = 3
    assert d["b"] == 3
    other = open_dict("other", **options)
    other._store.set_many([(b"sa", b"", stolen)])
    with pytest.raises(DecodeError, match="signature"):
        other["a"]


# Limits.


def test_a_value_that_is_too_large(open_dict, monkeypatch):
    monkeypatch.setattr(base, "_LARGEST_VALUE", 1000)
    d = open_dict(serializer="raw")
    d["a"] = b"x" * 1000
    for call in (
        lambda: d.__setitem__("a", b"x" * 1001),
        lambda: d.update(a=b"", b=b"x" * 1001),
        lambda: d.setdefault("b", b"x" * 1001),
        lambda: d.set("b", b"x" * 1001, 5),
    ):
        with pytest.raises(EncodeError, match="too large"):
            call()
    assert d == {"a": b"x" * 1000}


def test_a_full_disk(open_dict):
    d = open_dict(serializer="raw")
    d.update(a=b"a", b=b"b")
    database = d._store._database
    database.read(lambda execute: execute("PRAGMA max_page_count=40").fetchall())
    big = b"x" * 100_000
    calls = [
        lambda: d.__setitem__("a", big),
        lambda: d.__setitem__("new", big),
        lambda: d.update(a=b"1", b=big, c=b"2"),
        lambda: d.setdefault("new", big),
        lambda: d.set("a", big, 5),
    ]
    for call in calls:
        with pytest.raises(StorageFullError, match="nothing is stored") as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
        assert (dict(d), len(d)) == ({"a": b"a", "b": b"b"}, 2)
    with pytest.raises(StorageError), d.transaction():
        d["c"] = big
    assert (dict(d), len(d)) == ({"a": b"a", "b": b"b"}, 2)
    gathering = open_dict(auto_commit=False, serializer="raw")
    gathering.update(a=b"1", c=big)
    with pytest.raises(StorageFullError):
        gathering.task_done()
    assert dict(d) == {"a": b"a", "b": b"b"}
    assert gathering["c"] == big
    database.read(lambda execute: execute("PRAGMA max_page_count=4000").fetchall())
    gathering.task_done()
    assert dict(d) == {"a": b"1", "b": b"b", "c": big}


def test_iteration_holds_few_values_at_a_time(open_dict, monkeypatch):
    monkeypatch.setattr(pair_store, "_PAGE_BYTES", 50_000)
    d = open_dict(serializer="raw")
    d.update({f"{number:04}": b"x" * 9_000 for number in range(60)})
    sizes = []
    read = d._store._read_page

    def counting(*arguments):
        found = read(*arguments)
        sizes.append(len(found))
        return found

    d._store._read_page = counting
    for reading in (d.values, lambda: reversed(d.values()), d.scan, lambda: d.scan(reverse=True)):
        sizes.clear()
        assert len(list(reading())) == 60
        assert sizes == [6] * 10 + [0]
    sizes.clear()
    assert len(list(d)) == 60
    assert sizes == [60, 0]


def test_every_statement_goes_by_an_index(open_dict):
    d = open_dict()
    d["a"] = 1
    words = pair_statements(1)._asdict()
    del words["create"], words["save"]
    texts = [
        text for each in words.values() for text in (each.values() if isinstance(each, dict) else [each])
    ]
    assert len(texts) > 20

    def plans(execute):
        return {
            text: [row[3] for row in execute("EXPLAIN QUERY PLAN " + text, (1,) * text.count("?")).fetchall()]
            for text in texts
        }

    for text, plan in d._store._database.read(plans).items():
        assert not [line for line in plan if "TEMP B-TREE" in line], (text, plan)
        scans = [line for line in plan if line.startswith("SCAN")]
        # The first row in the order of the table itself.
        assert not scans or text.endswith("LIMIT 1"), (text, plan)


def test_stats(open_dict):
    d = open_dict()
    d.update(a=1, b=2)
    assert d.stats().ready == 2
    assert d.stats().bytes > 1000
    assert open_dict(path=":memory:").stats().ready == 0
