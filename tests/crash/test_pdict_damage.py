"""A damaged database under a dict: single bits of a row, and bits, bytes and pages of the file.

Whatever is damaged: no value differs from one that was assigned, and every call ends. SQLite's pages have no
checksums, so a damaged page may hide pairs; then SQLite's own check reports it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persistcoll import (
    CorruptionError,
    DecodeError,
    FormatVersionError,
    PDict,
    SerializerMismatchError,
    StoreKindError,
)
from persistcoll.serializers.dict_keys import key_bytes, key_from

Damaged = (CorruptionError, DecodeError)
Refused = (CorruptionError, FormatVersionError, SerializerMismatchError, StoreKindError)
OPTIONS: dict[str, Any] = {"durability": "process", "serializer": "json"}


def changed(path: Path, statement: str, *parameters: Any) -> list[Any]:
    """Change a database that no process has open; return what the statement returned."""
    with contextlib.closing(sqlite3.connect(path / "data.db")) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


def outcome(call: Callable[[], Any]) -> Any:
    """Return the result of the call, or ``Damaged``."""
    try:
        return call()
    except Damaged:
        return Damaged


# Rows.


@pytest.mark.parametrize("column", ["value", "crc", "expires", "key", "name"])
def test_each_bit_of_a_row(column, tmp_path):
    """The damage is noticed, its key is named, all others are there, and the key may be assigned again."""
    path = tmp_path / "d"
    model: dict[Any, Any] = {"a": 1, 2.0: "two", ("c", 3): [3], "d": 4}
    with PDict[Any, Any](path, **OPTIONS) as d:
        d.update(model)
        d.set("d", 4, ttl=1e6)
    for number, key in ((1, "a"), (2, 2.0), (3, ("c", 3)), (4, "d")):
        ((whole, kind, size),) = changed(
            path,
            f"SELECT {column}, typeof({column}), length({column}) FROM pairs_1 WHERE serial = ?",
            number,
        )
        for bad in damages(whole, kind, size):
            changed(path, f"UPDATE pairs_1 SET {column} = ? WHERE serial = ?", bad, number)
            with PDict[Any, Any](path, **OPTIONS) as d:
                check_row(d, model, key, column)
        changed(path, f"UPDATE pairs_1 SET {column} = ? WHERE serial = ?", whole, number)
    with PDict[Any, Any](path, **OPTIONS) as d:
        assert dict(d) == model
        for key in model:
            d[key] = "new"
        assert set(d.values()) == {"new"}


def damages(whole: Any, kind: str, size: int) -> Iterator[Any]:
    """Give the row with a flipped bit, and with values of other types."""
    if kind == "blob":
        for bit in range(8 * size):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            yield bytes(data)
        yield whole[:-1] if whole else b"x"
    elif kind == "integer":
        yield from (whole ^ 1 << bit for bit in range(40))
    elif kind == "real":
        yield from (whole + 1, -whole)
    yield from (b"\0\xff", "text", 17, 0.5)
    if kind != "null":
        yield None


def check_row(d: PDict[Any, Any], model: dict[Any, Any], key: Any, column: str) -> None:
    for other in model.keys() - {key}:
        assert d[other] == model[other]
    if column == "name":  # the name is for keys that equal an int; the value is that of its key all the same
        assert d[key] == model[key]
        assert {repr(found) for found in keys(d)} - {"1", "True"} <= {*map(repr, model), "2", "2.0"}
        return
    if column == "key":  # a lookup does not find the key, but an iteration notices it
        with pytest.raises(KeyError):
            d[key]
    else:
        with pytest.raises(CorruptionError) as caught:
            d[key]
        assert f"the key {key_from(key_bytes(key))!r} " in str(caught.value)
    reading = iter(d.items())
    found = [outcome(lambda: next(reading)) for _ in model]
    assert next(reading, None) is None
    assert found == [pair if pair[0] != key else Damaged for pair in model.items()]


def keys(d: PDict[Any, Any]) -> list[Any]:
    reading = iter(d)
    found = [outcome(lambda: next(reading, Damaged)) for _ in range(len(d))]
    return [key for key in found if key is not Damaged]


# Files.


def spoil(data: bytearray, rng: random.Random) -> None:
    """Damage a bit, a byte, or a page."""
    at = rng.randrange(len(data))
    page = slice(at & -1024, (at & -1024) + 1024)
    how = rng.randrange(6)
    if how < 3:
        data[at] ^= 1 << rng.randrange(8)
    elif how == 3:
        data[at] ^= rng.randrange(1, 256)
    elif how == 4:
        data[page] = bytes(1024)
    else:
        data[page] = rng.randbytes(1024)


def read_wrongly(d: PDict[Any, Any], model: dict[Any, Any]) -> bool:
    """Read everything; tell whether something was wrong that no error reported."""
    wrong = False
    for key, value in model.items():
        with contextlib.suppress(KeyError):
            found = outcome(lambda: d[key])  # noqa: B023
            assert found in (value, Damaged), f"{key!r} is {found!r}, not {value!r}"
            continue
        wrong = True
    for read in (lambda: iter(d.items()), d.scan, lambda: reversed(d.items())):
        reading = outcome(read)
        if reading is Damaged:
            continue
        for _ in range(2 * len(model)):
            pair = outcome(lambda: next(reading, None))  # noqa: B023
            if pair is None:
                break
            assert pair is Damaged or model.get(pair[0]) == pair[1], f"never assigned: {pair!r}"
        else:
            raise AssertionError("an iteration without end")
    return wrong or outcome(lambda: list(d)) not in (list(model), Damaged)


def empty(d: PDict[Any, Any], model: dict[Any, Any]) -> None:
    """Pop until the dict is empty, or an error says that it cannot be."""
    for _ in range(2 * len(model)):
        try:
            key, value = d.popitem()
        except (KeyError, *Damaged):
            return
        assert model.get(key) == value
    raise AssertionError("the same pair again and again")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("longest", [5, 2000])
def test_a_damaged_file(longest, rng, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "d"
    model: dict[Any, Any] = {}
    with PDict[Any, Any](whole, **OPTIONS) as d:
        for number in range(300):
            key = rng.choice([f"k{number}", number, ("t", number)])
            model[key] = f"{number:x<{rng.choice((1, 5, longest))}}"
        d.update(model)
    hidden = 0
    for _ in range(100):
        shutil.copytree(whole, path)
        data = bytearray((path / "data.db").read_bytes())
        spoil(data, rng)
        (path / "data.db").write_bytes(data)
        try:
            opened = PDict[Any, Any](path, **OPTIONS)
        except Refused:
            pass
        else:
            with opened as d:
                wrong = read_wrongly(d, model)
            if wrong:
                hidden += 1
                same = schema(path) == schema(whole)
                assert not (same and is_in_order(path)), "what is wrong is not found by SQLite either"
            with PDict[Any, Any](path, **OPTIONS) as d:
                empty(d, model)
        shutil.rmtree(path)
    assert hidden < 50, "it hides more than it shows"


def is_in_order(path: Path) -> bool:
    return bool(asked(path, "PRAGMA integrity_check") == [("ok",)])


def schema(path: Path) -> Any:
    return asked(path, "SELECT sql FROM sqlite_master")


def asked(path: Path, statement: str) -> Any:
    with contextlib.closing(sqlite3.connect(path / "data.db")) as connection:
        try:
            return connection.execute(statement).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            return error
