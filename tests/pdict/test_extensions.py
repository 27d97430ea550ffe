"""What a ``PDict`` has beyond a dict: time to live, counters, edits, ranges, transactions, buffering."""

from __future__ import annotations

import contextlib
import decimal
import fractions
import math
import threading

import pytest

from persistcoll import DecodeError, EncodeError
from persistcoll.testing.children import run_threads

# Time to live.


def test_what_has_expired_is_gone(d, kind):
    d["stays"] = 0
    d.set("short", 1, ttl=10)
    d.set("long", 2, 1000)
    d.set_many({"many": 3, "more": 4}, ttl=10.5)
    assert list(d) == ["stays", "short", "long", "many", "more"]
    d.task_done()
    kind.now += 9.9
    assert len(d) == 5
    kind.now += 0.2
    assert dict(d) == {"stays": 0, "long": 2, "many": 3, "more": 4}
    for look in (lambda: d["short"], lambda: d.pop("short"), lambda: d.__delitem__("short")):
        with pytest.raises(KeyError):
            look()
    kind.now += 1
    assert ("many" in d, d.get("more"), len(d), list(d.keys())) == (False, None, 2, ["stays", "long"])
    assert d.get_many(["stays", "more", "long"]) == {"stays": 0, "long": 2}
    assert [pair for pair in d.scan("m")] == []  # noqa: C416
    assert d.setdefault("many", "new") == "new"
    d["more"] = "new"
    assert list(d) == ["stays", "long", "many", "more"]
    kind.now += 10_000
    assert dict(d) == {"stays": 0, "many": "new", "more": "new"}


def test_which_calls_keep_the_expiry(d, kind):
    for key in ("assigned", "updated", "set again", "longer", "incr", "edit", "setdefault"):
        d.set(key, 1, ttl=10)
    d.task_done()
    d["assigned"] = 2
    d.update(updated=2)
    d.set("set again", 2)
    d.set("longer", 2, ttl=20)
    d.incr("incr")
    with d.edit("edit"):
        pass
    d.setdefault("setdefault", 2)
    d.task_done()
    kind.now += 10.5
    assert dict(d) == {"assigned": 2, "updated": 2, "set again": 2, "longer": 2}
    assert d.incr("incr") == 1
    kind.now += 10
    assert dict(d) == {"assigned": 2, "updated": 2, "set again": 2, "incr": 1}


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf])
def test_a_ttl_is_above_nothing(d, ttl):
    for call in (lambda: d.set("a", 1, ttl), lambda: d.set_many({"a": 1}, ttl)):
        with pytest.raises(ValueError, match="'ttl'"):
            call()
    assert not d


@pytest.mark.parametrize("ttl", ["1", True, [1]])
def test_a_ttl_is_a_number(d, ttl):
    with pytest.raises(TypeError, match="'ttl'"):
        d.set("a", 1, ttl)


# Counters.


def test_incr(d):
    assert [d.incr("n"), d.incr("n", 5), d.incr("n", by=-10)] == [1, 6, -4]
    assert d.incr("f", 0.5) == 0.5
    assert d.incr("d", decimal.Decimal("0.1")) == decimal.Decimal("0.1")
    assert d.incr("n", fractions.Fraction(1, 2)) == -3.5
    assert d["n"] == -3.5
    assert d.incr(True) == 1
    assert list(d) == ["n", "f", "d", True]


def test_incr_is_for_numbers(d):
    d["text"] = "a"
    d["none"] = None
    for key in d:
        with pytest.raises(TypeError, match="needs a number"):
            d.incr(key)
    for by in ("1", None, [1]):
        with pytest.raises(TypeError, match="'by'"):
            d.incr("n", by)
    with pytest.raises(TypeError):
        d.incr("f", decimal.Decimal(1)), d.incr("f", 0.5)
    assert d["text"] == "a"
    assert "n" not in d


def test_counting_from_many_threads(d):
    def count():
        for number in range(100):
            d.incr("n")
            d.incr(number % 7, 2)

    run_threads(count, count, count, count)
    assert d["n"] == 400
    assert sum(d.values()) == 400 + 800


def test_popping_from_many_threads(d):
    d.update((number, number) for number in range(300))
    got: list[list[int]] = [[], [], []]

    def pop(mine):
        for number in range(300):
            value = d.pop(number, None)
            if value is not None:
                mine.append(value)
            if number % 10 == 0:
                mine.extend([d.popitem()[1]] if d else [])

    def try_to_pop(mine):
        try:
            pop(mine)
        except KeyError:  # another thread was faster
            pass

    run_threads(*[lambda mine=mine: try_to_pop(mine) for mine in got])
    found = [*got[0], *got[1], *got[2], *d.values()]
    assert sorted(found) == list(range(300))


def test_one_default_for_all(d):
    for key in range(20):
        run_threads(
            *[
                lambda name=name, key=key: d.setdefault((key, name), d.setdefault(key, name))
                for name in range(4)
            ]
        )
        assert [d[key, name] for name in range(4)] == [d[key]] * 4


# Edits.


def test_edit(d):
    d["a"] = {"n": 1}
    with d.edit("a") as value:
        value["n"] += 1
        value["new"] = []
    assert d["a"] == {"n": 2, "new": []}
    with d.edit("b", []) as value:
        value.append(1)
    with d.edit("b", default=[]) as value:
        value.append(2)
    assert d["b"] == [1, 2]
    assert list(d) == ["a", "b"]


def test_an_edit_that_fails_changes_nothing(d):
    d["a"] = [1]
    with pytest.raises(KeyError, match="b"), d.edit("b"):
        pass
    with contextlib.suppress(ZeroDivisionError), d.edit("a") as value:
        value.append(2)
        d["c"] = 1
        raise ZeroDivisionError
    with pytest.raises(EncodeError), d.edit("a") as value:
        value.append(lambda: None)
    assert d == {"a": [1]}
    with d.edit("a") as value:
        value.append(2)
        del d["a"]
    assert d == {"a": [1, 2]}


def test_edits_from_many_threads(d):
    d["list"] = []

    def add(name):
        for number in range(30):
            with d.edit("list") as value:
                value.append((name, number))

    run_threads(*[lambda name=name: add(name) for name in range(3)])
    assert sorted(d["list"]) == [(name, number) for name in range(3) for number in range(30)]


# Ranges.


def test_scan(d):
    keys = ["a", "ab", "abc", "b", "", "ab\0", "ab\U0001f600", "\xe9", "ab\ue000", "ab\ud800"]
    d.update((key, len(key)) for key in keys)
    d.update({1: 1, b"ab": 2, ("ab",): 3, None: 4, 0.5: 5})
    ordered = sorted(keys)

    def expected(prefix="", start=None, stop=None):
        return [
            (key, len(key))
            for key in ordered
            if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
        ]

    assert list(d.scan()) == expected()
    assert list(d.scan("ab")) == list(d.scan(prefix="ab")) == expected("ab")
    assert list(d.scan("ab", reverse=True)) == expected("ab")[::-1]
    assert list(d.scan(start="ab", stop="b")) == expected(start="ab", stop="b")
    assert list(d.scan("ab", start="ab\0", stop="ab\U0001f600")) == expected("ab", "ab\0", "ab\U0001f600")
    assert list(d.scan("b", stop="a")) == []
    assert list(d.scan("zz")) == []
    assert list(d.scan(start="c", stop="b")) == []
    for bad in (b"a", 1, None):
        with pytest.raises(TypeError, match="'prefix' must be a str"):
            d.scan(bad)
    with pytest.raises(TypeError, match="'stop' must be a str"):
        d.scan(stop=1)


def test_scan_of_many(d):
    d.update((f"k{number:05}", number) for number in reversed(range(3000)))
    assert [value for _, value in d.scan("k")] == list(range(3000))
    assert [value for _, value in d.scan("k01")] == list(range(1000, 2000))
    assert [value for _, value in d.scan(start="k02990", reverse=True)] == list(range(2999, 2989, -1))


def test_scan_while_it_changes(d):
    d.update((f"k{number:05}", number) for number in range(0, 1000, 2))
    seen = []
    for key, value in d.scan("k"):
        seen.append(value)
        if value % 2 == 0:
            del d[key]
            d[f"k{value + 1:05}"] = value + 1  # before and after
            d[f"k{value - 1:05}"] = value - 1
    assert len(seen) == len(set(seen))
    assert set(range(0, 1000, 2)) <= set(seen)
    assert seen == sorted(seen)


# Transactions.


def test_a_transaction_is_whole(d):
    d.update(a=1, b=2)
    with contextlib.suppress(ZeroDivisionError), d.transaction():
        d["a"] = 10
        del d["b"]
        d["c"] = 3
        assert d == {"a": 10, "c": 3}
        assert d.popitem() == ("c", 3)
        d.clear()
        raise ZeroDivisionError
    assert d == {"a": 1, "b": 2}
    with d.transaction():
        d["a"] = 10
        with contextlib.suppress(ZeroDivisionError), d.transaction():
            d["c"] = 3
            raise ZeroDivisionError
    assert d == {"a": 10, "b": 2, "c": 3}


def test_transfers_from_many_threads(d):
    d.update((number, 100) for number in range(4))

    def transfer(first):
        for step in range(60):
            one, other = (first + step) % 4, (first + step * step + 1) % 4
            try:
                with d.transaction():
                    d[one] -= 7
                    d[other] += 7
                    if step % 5 == 0:
                        raise ZeroDivisionError
                    assert sum(d.values()) == 400
            except ZeroDivisionError:
                pass

    run_threads(*[lambda first=first: transfer(first) for first in range(3)])
    assert sum(d.values()) == 400


def test_several_collections_in_one_transaction(open_dict):
    one, other = open_dict("one"), open_dict("other")
    one["a"] = 1
    with contextlib.suppress(ZeroDivisionError), one.transaction():
        other["a"] = one.pop("a")
        raise ZeroDivisionError
    assert (dict(one), dict(other)) == ({"a": 1}, {})
    with one.transaction():
        other["a"] = one.pop("a")
    assert (dict(one), dict(other)) == ({}, {"a": 1})


# Buffered changes.


@pytest.fixture
def both(kind):
    """Give a dict that buffers its changes, and another handle on the same dict."""
    other = kind.open()
    other.update(a=1, b=2, c=3)
    return kind.open(auto_commit=False), other


def test_changes_gather_until_they_are_committed(both):
    gathering, other = both
    assert not gathering.auto_commit
    assert other.auto_commit
    gathering["a"] = 10
    del gathering["b"]
    gathering["d"] = 4
    gathering.incr("c")
    gathering.update(e=5)
    assert gathering.pop("e") == 5
    assert dict(gathering) == {"a": 10, "c": 4, "d": 4}
    assert list(gathering.scan()) == [("a", 10), ("c", 4), ("d", 4)]
    assert len(gathering) == gathering.stats().ready == 3
    assert dict(other) == {"a": 1, "b": 2, "c": 3}
    gathering.task_done()
    assert dict(other) == dict(gathering) == {"a": 10, "c": 4, "d": 4}
    gathering.task_done()
    other.task_done()


def test_others_do_not_wait_for_it(both):
    gathering, other = both
    gathering["a"] = 10
    other["b"] = 20
    other["new"] = 1
    del other["c"]
    assert dict(gathering) == {"a": 10, "b": 20, "new": 1}
    gathering.task_done()
    assert dict(other) == {"a": 10, "b": 20, "new": 1}


def test_the_last_to_commit_wins(both):
    gathering, other = both
    gathering["a"] = 10
    gathering["new"] = 10
    del gathering["b"]
    other["a"] = 20
    other["new"] = 20
    other["b"] = 20
    assert (gathering["a"], gathering["new"], "b" in gathering) == (10, 10, False)
    gathering.task_done()
    assert dict(other) == {"a": 10, "c": 3, "new": 10}


def test_clearing_what_is_gathered(both):
    gathering, other = both
    gathering["d"] = 4
    gathering.clear()
    assert not gathering
    gathering["a"] = 5
    other["late"] = 1
    assert dict(gathering) == {"a": 5}
    gathering.task_done()
    assert dict(other) == {"a": 5}


def test_removed_and_set_again_is_new(both):
    gathering, other = both
    gathering["a"] = 0
    assert gathering.pop("a") == 0
    gathering["a"] = 9
    assert list(gathering) == ["b", "c", "a"]
    gathering.task_done()
    assert list(other) == ["b", "c", "a"]


def test_closing_without_committing_drops_it(kind):
    gathering = kind.open(auto_commit=False)
    gathering["a"] = 1
    gathering.close()
    assert dict(kind.open()) == {}


def test_with_commits_what_it_gathered(kind):
    with kind.open(auto_commit=False) as gathering:
        gathering["a"] = 1
    assert dict(kind.open()) == {"a": 1}
    with contextlib.suppress(ZeroDivisionError), kind.open(auto_commit=False) as gathering:
        gathering["a"] = 2
        raise ZeroDivisionError
    assert dict(kind.open()) == {"a": 1}
    with kind.open(auto_commit=False) as gathering:
        gathering["a"] = 2
        gathering.close()
    assert dict(kind.open()) == {"a": 1}


def test_a_commit_that_fails_keeps_what_was_gathered(both, monkeypatch):
    gathering, other = both
    gathering["a"] = 10
    gathering["d"] = 4
    below = gathering._buffer._store

    def fail(*arguments):
        raise OSError("no room")

    monkeypatch.setattr(below, "set_many", fail)
    with pytest.raises(OSError, match="no room"):
        gathering.task_done()
    assert dict(other) == {"a": 1, "b": 2, "c": 3}
    assert dict(gathering) == {"a": 10, "b": 2, "c": 3, "d": 4}
    monkeypatch.undo()
    gathering.task_done()
    assert dict(other) == {"a": 10, "b": 2, "c": 3, "d": 4}


def test_gathering_from_many_threads(kind):
    gathering = kind.open(auto_commit=False)

    def work(name):
        for number in range(50):
            gathering[name, number] = number
            if number % 9 == 0:
                gathering.task_done()

    run_threads(*[lambda name=name: work(name) for name in range(3)])
    gathering.task_done()
    assert len(kind.open()) == 150


def test_what_expires_while_it_gathers(both, kind):
    gathering, other = both
    other.set("t", 1, ttl=10)
    gathering.set("a", 10, ttl=5)
    gathering.set("short", 1, ttl=5)
    gathering.set("long", 1, ttl=100)
    gathering.incr("t")
    kind.now += 6
    assert dict(gathering) == {"b": 2, "c": 3, "t": 2, "long": 1}
    assert len(gathering) == 4
    gathering.task_done()
    assert dict(other) == {"b": 2, "c": 3, "t": 2, "long": 1}
    kind.now += 6
    assert dict(other) == {"b": 2, "c": 3, "long": 1}
    other.set("t", 1, ttl=10)
    gathering.incr("t")
    kind.now += 20
    assert dict(gathering) == {"b": 2, "c": 3, "long": 1}
    assert gathering.incr("t") == 1
    kind.now += 70
    gathering.task_done()
    assert dict(other) == {"b": 2, "c": 3, "t": 1}


def test_a_transaction_of_what_is_gathered(both):
    gathering, other = both
    gathering["d"] = 4
    with contextlib.suppress(ZeroDivisionError), gathering.transaction():
        gathering.clear()
        gathering["e"] = 5
        raise ZeroDivisionError
    assert dict(gathering) == {"a": 1, "b": 2, "c": 3, "d": 4}
    with gathering.transaction():
        gathering["e"] = 5
    assert "e" not in other
    gathering.task_done()
    assert dict(other) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


# Serializers.


class Picky:
    """A serializer that cannot read the values in ``broken``."""

    name = "picky"
    executes_code = False

    def __init__(self):
        self.broken = set()

    def dumps(self, value):
        return repr(value).encode()

    def loads(self, data):
        if data in self.broken:
            raise RuntimeError(f"secret {data!r}")
        return eval(data)


def test_a_value_that_cannot_be_read_stays(kind):
    serializer = Picky()
    d = kind.open(serializer=serializer)
    d.update(a=1, b=2, c=3)
    serializer.broken.add(b"2")
    looks = [
        lambda: d["b"],
        lambda: d.get("b"),
        lambda: d.pop("b"),
        lambda: d.pop("b", None),
        lambda: d.setdefault("b", 5),
        lambda: d.incr("b"),
        lambda: d.edit("b").__enter__(),
        lambda: d.get_many(["a", "b"]),
        lambda: dict(d),
        lambda: d == {"a": 1, "b": 2, "c": 3},
        lambda: list(d.scan()),
        lambda: 3 in d.values(),
    ]
    for look in looks:
        with pytest.raises(
            DecodeError, match=r"the key 'b'.* 'picky' \(RuntimeError\).*stays stored"
        ) as caught:
            look()
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert (list(d), len(d), d["a"], d["c"], "b" in d) == (["a", "b", "c"], 3, 1, 3, True)
    for reading in (d.values(), d.items(), reversed(d.items()), d.scan()):
        each = iter(reading)
        next(each)
        with pytest.raises(DecodeError):
            next(each)
        assert len([*each]) == 1
    del d["c"]
    with pytest.raises(DecodeError):
        d.popitem()
    d["b"] = 5
    assert d == {"a": 1, "b": 5}
    serializer.broken.add(b"5")
    del d["b"]
    assert d == {"a": 1}


@pytest.mark.parametrize("name", ["pickle", "json", "msgpack", "cbor"])
def test_every_serializer(kind, name):
    d = kind.open(serializer=name)
    d["a"] = {"b": [1, None, "c"]}
    with d.edit("a") as value:
        value["b"].append(2)
    assert d.pop("a") == {"b": [1, None, "c", 2]}
    assert d.incr("n", 3) == 3


def test_waiting_for_a_transaction(kind):
    """Another thread's change comes after it."""
    d = kind.open()
    started = threading.Event()

    def other():
        started.wait(60)
        d.incr("n", 100)

    def mine():
        with d.transaction():
            d["n"] = 1
            started.set()
            for _ in range(50):
                d.incr("n")
            assert d["n"] == 51

    run_threads(mine, other)
    assert d["n"] == 151
