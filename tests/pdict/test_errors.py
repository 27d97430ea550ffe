"""Wrong use of a ``PDict``, and failures of machines."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from typing import Any

import pytest

from persistcoll import (
    ClosedError,
    CorruptionError,
    DecodeError,
    FormatVersionError,
    LockedError,
    StorageError,
)
from persistcoll.testing.children import in_forked_child, run_threads

# Transactions.


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_interrupts_a_transaction_undoes_it(d, interruption):
    d["a"] = 1

    def change():
        with d.transaction():
            d.update(a=2, b=3)
            raise interruption

    with pytest.raises(interruption):
        change()
    with pytest.raises(interruption), d.edit("a", 0):
        raise interruption
    assert d == {"a": 1}
    assert d.incr("a") == 2


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.IntegrityError("UNIQUE constraint failed: theirs.id"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
)
def test_an_error_of_the_callers_stays_what_it_is(d, error):
    """The database raises errors of the same type, but the caller's error says nothing about it."""

    def change():
        with d.transaction():
            d["a"] = 1
            raise error

    with pytest.raises(type(error)) as caught:
        change()
    assert caught.value is error
    with pytest.raises(type(error)) as caught, d.edit("a", 0):
        raise error
    assert caught.value is error
    assert d == {}


def test_a_transaction_in_a_generator_that_is_given_up(d):
    def change():
        with d.transaction():
            d["a"] = 1
            yield

    changing = change()
    next(changing)
    changing.close()
    assert d == {}
    d["b"] = 1
    assert d == {"b": 1}


def test_closing_within_a_transaction(open_dict):
    """The close does not hang, and the block's changes are there wholly or not at all."""
    d = open_dict()
    d.update(a=1, b=1)
    try:
        with d.transaction():
            d.update(a=2, b=2)
            d.close()
    except StorageError:
        pass
    d.close()
    assert open_dict() in ({"a": 1, "b": 1}, {"a": 2, "b": 2})


def test_making_one_within_a_transaction(open_dict):
    """A rolled-back dict takes no number of another one."""
    d = open_dict("d")
    made = []

    def make():
        with d.transaction():
            made.append(open_dict("new"))
            raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, StorageError)):
        make()
    other = open_dict("other")
    other["a"] = "precious"
    for each in made:
        with pytest.raises(StorageError):
            each.clear()
    assert other == {"a": "precious"}


def test_opening_one_within_a_transaction(open_dict):
    open_dict("other")["a"] = 1
    d = open_dict("d")
    with d.transaction():
        d["b"] = open_dict("other").pop("a")
    assert (d, open_dict("other")) == ({"b": 1}, {})


def test_a_child_forked_within_a_transaction(open_dict):
    """The child has no part in the transaction, and an error says so; the parent's continues."""
    d = open_dict()
    d["a"] = 1

    def child():
        with pytest.raises(StorageError, match="forked within a transaction"):
            d["a"] = 3
        with pytest.raises(StorageError, match="forked within a transaction"):
            len(d)

    with d.transaction():
        d["a"] = 2
        in_forked_child(child)
        d["b"] = 2
    assert d == {"a": 2, "b": 2}
    assert open_dict() == {"a": 2, "b": 2}


def test_a_forked_child_has_a_copy_of_one_in_memory(open_dict):
    d = open_dict(path=":memory:")
    d["a"] = 1

    def child():
        assert d == {"a": 1}
        d["a"] = 2
        assert d == {"a": 2}

    in_forked_child(child)
    assert d == {"a": 1}


# Serializers.


class Meddling:
    """A serializer that uses the dict which uses it."""

    name = "meddling"
    executes_code = False
    d: Any = None

    def dumps(self, value):
        if value == "dumps":
            self.d["within dumps"] = 1
        return repr(value).encode()

    def loads(self, data):
        value = eval(data)
        if value == "loads":
            self.d["within loads"] = 1
        return value


def test_a_serializer_that_uses_the_dict(open_dict):
    """It may use the dict before a transaction begins. In one it is refused, and nothing else is undone."""
    serializer = Meddling()
    d = serializer.d = open_dict(serializer=serializer)
    d["a"] = "dumps"
    assert d == {"within dumps": 1, "a": "dumps"}
    d["b"] = "loads"
    assert d["b"] == "loads"
    del d["within loads"]
    for call in (lambda: d.pop("b"), d.popitem, lambda: d.incr("b")):
        with pytest.raises(DecodeError, match="stays stored") as caught:
            call()
        assert "from within one of its own operations" in str(caught.value.__cause__)
    assert list(d) == ["within dumps", "a", "b"]
    d["c"] = 1
    assert d.popitem() == ("c", 1)


def test_update_from_itself_and_from_a_generator_over_it(d):
    d.update(a=1, b=2)
    d.update((key * 2, value) for key, value in d.items())
    d.update(d)
    d |= d
    assert d == {"a": 1, "b": 2, "aa": 1, "bb": 2}


# Files.


def test_another_program_holds_the_database(open_dict):
    d = open_dict(timeout=0.1)
    d["a"] = 1
    with closing(sqlite3.connect(f"{d.path}/data.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = (
            lambda: d.__setitem__("a", 2),
            lambda: d.pop("a"),
            lambda: d.incr("a"),
            lambda: d.transaction().__enter__(),
        )
        for call in calls:
            with pytest.raises(LockedError, match="another program"):
                call()
        assert (d["a"], len(d), list(d.items())) == (1, 1, [("a", 1)])
        other.execute("ROLLBACK")
    d["a"] = 2
    assert d == {"a": 2}


def test_a_database_that_was_lost(open_dict):
    d = open_dict()
    d["a"] = 1
    d.close()
    os.remove(f"{d.path}/data.db")
    with pytest.raises(CorruptionError, match="is empty, but it was not"):
        open_dict()


def test_a_later_version(open_dict):
    d = open_dict()
    d.close()
    with closing(sqlite3.connect(f"{d.path}/data.db")) as connection, connection:
        connection.execute("UPDATE collections SET version = 2")
    with pytest.raises(FormatVersionError, match="format version 2"):
        open_dict()


def test_a_directory_that_others_may_write(open_dict, tmp_path):
    """Pickle would run what other users write; other serializers do not."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(StorageError, match="others may write"):
        open_dict(path="shared")
    open_dict("json", path="shared", serializer="json")["a"] = 1
    open_dict("pickle", path="shared", trust_directory=True)["a"] = 1


def test_closed_while_another_thread_uses_it(open_dict):
    """A running call of the thread completes or raises, and nothing hangs."""
    d = open_dict()
    busy = threading.Event()

    def decode():
        while True:
            if d.incr("n") >= 50:
                busy.set()
            assert list(d.items())

    def use_until_it_is_closed():
        with pytest.raises(ClosedError):
            decode()

    def close():
        busy.wait(60)
        d.close()

    run_threads(use_until_it_is_closed, use_until_it_is_closed, close)
    assert open_dict()["n"] >= 50
