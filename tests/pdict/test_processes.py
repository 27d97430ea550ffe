"""A ``PDict`` that several processes use at the same time."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest

from tests.concurrency.workers import Remote
from tests.pdict.subprocess_dict import RemoteDict


def count(d, key, times):
    """Increment in another process."""
    return [d.incr(key) for _ in range(times)]


def pop_all(d, key):
    got = []
    while True:
        try:
            got.append(d.popitem()[0])
        except KeyError:
            return got


def pop_each(d, keys):
    """Pop some keys by name."""
    return [key for key in range(0, keys, 3) if d.pop(key, "gone") != "gone"]


def claim(d, name, keys):
    return [key for key in range(keys) if d.setdefault(key, name) == name]


def move(d, first, times):
    for step in range(times):
        with d.transaction():
            one, other = (first + step) % 5, (first + 2 * step + 1) % 5
            d[one] -= 1
            d[other] += 1
            assert sum(d.values()) == 500


@pytest.fixture
def remotes(tmp_path):
    made = [RemoteDict(tmp_path / "d", durability="process") for _ in range(3)]
    yield made
    for each in made:
        each.close()


def all_at_once(d, remotes, function, *arguments):
    for number, each in enumerate(remotes, 1):
        each.start(function, *(argument(number) for argument in arguments))
    mine = function(d, *(argument(0) for argument in arguments))
    return [mine, *(each.result() for each in remotes)]


def append(d, name, times):
    for number in range(times):
        with d.edit("list", []) as found:
            found.append((name, number))


def test_processes_share_it(open_dict, remotes):
    """Four processes read, change and write, and none undoes another's change."""
    d = open_dict()
    counted = all_at_once(d, remotes, count, lambda name: "n", lambda name: 200)
    assert sorted(itertools.chain(*counted)) == list(range(1, 801))
    assert d["n"] == 800
    d.clear()
    d.update(dict.fromkeys(range(300)))
    popped = all_at_once(d, remotes, pop_each, lambda name: 300)
    popped += all_at_once(d, remotes, pop_all, lambda name: None)
    assert sorted(itertools.chain(*popped)) == list(range(300))
    claimed = all_at_once(d, remotes, claim, str, lambda name: 100)
    assert sorted(itertools.chain(*claimed)) == list(range(100))
    d.clear()
    all_at_once(d, remotes, append, int, lambda name: 50)
    found = d.pop("list")
    assert sorted(found) == [(name, number) for name in range(4) for number in range(50)]
    for name in range(4):
        assert [number for each, number in found if each == name] == list(range(50))
    d.update(dict.fromkeys(range(5), 100))
    all_at_once(d, remotes, move, int, lambda name: 50)
    assert sum(d.values()) == 500
    assert remotes[0].get_many(range(5)) == dict(d)
    assert len(remotes[1]) == 5


STAYING = [("stays", number) for number in range(400)]


def churn(d, tell, name):
    """Replace stable keys, and add and remove others, until the test says that it has seen enough."""
    step = 0
    tell("begins")
    while not tell.said:
        step += 1
        d[STAYING[step * 37 % 400]] = (name, step)
        d[name, step] = step
        if step > 50:
            del d[name, step - 50]
        if step % 10 == 0:
            d.update({(name, number): step for number in range(step - 5, step)})
    tell.wait()


def test_iterating_while_others_write(open_dict, remotes):
    """Each stable key comes, none comes twice, and each value was its key's."""
    d = open_dict()
    d.update(dict.fromkeys(STAYING, ("", 0)))
    for name, each in enumerate(remotes):
        Remote.start(each, churn, name)
        each.told()
    other = set()
    for _ in range(15):
        for reading in (d.items(), reversed(d.items()), ((key, d[key]) for key in STAYING)):
            pairs = list(reading)
            keys = [key for key, _ in pairs]
            assert len(set(keys)) == len(keys)
            assert set(keys) >= set(STAYING)
            assert [key for key in keys if key[0] == "stays"] in (STAYING, STAYING[::-1])
            for key, value in pairs:
                if key[0] != "stays":
                    other.add(key)
                    assert isinstance(value, int)
                else:
                    name, step = value
                    assert name == "" or STAYING[step * 37 % 400] == key
        assert len(d) >= 400
    for each in remotes:
        each.say()
        each.result()
    assert len(other) > 10, "nobody wrote meanwhile"
    assert list(d)[:400] == STAYING
    assert len(d) == len(list(d)) == len(remotes[0])


def test_what_another_process_does_is_seen(open_dict, remotes):
    d, (other, *_) = open_dict(), remotes
    reading = iter(d)
    assert len(d) == 0
    other["a"] = 1
    assert (d["a"], len(d), list(d)) == (1, 1, ["a"])
    other.update({"b": 2, "c": 3})
    del other["a"]
    assert (len(d), list(d.items())) == (2, [("b", 2), ("c", 3)])
    d["a"] = 4
    assert (len(other), list(other)) == (3, ["b", "c", "a"])
    other.clear()
    assert (len(d), bool(d), list(d)) == (0, False, [])
    assert list(reading) == []


def test_used_by_multiprocessing(open_dict):
    d = open_dict()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(count, [(d, "n", 20)] * 4)
    assert sorted(itertools.chain(*counts)) == list(range(1, 81))
    assert d["n"] == 80
