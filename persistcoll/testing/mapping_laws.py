"""The laws of mappings, each as a function that tries to break it: as :mod:`persistcoll.testing.laws`, for a
:class:`~persistcoll.testing.mapping_bench.MappingFactory`.

>>> from persistcoll.engine.memory.pair_store import MemoryPairStore, MemoryMappingState
>>> from persistcoll.testing import Capabilities
>>> class InMemory:
...     capabilities = Capabilities(crashes=False, forks=False, processes=False)
...     def __init__(self):
...         self.now = 0.0
...         self.states = {}
...     def open(self, name):
...         return MemoryPairStore(self.states.setdefault(name, MemoryMappingState(lambda: self.now)))
...     def advance(self, seconds):
...         self.now += seconds
>>> for law in MAPPING_LAWS.values():
...     if law.applies_to(InMemory()):
...         law(InMemory())
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.testing.children import demand, together
from persistcoll.testing.mapping_bench import (
    MappingBench,
    MappingLaw,
    append,
    in_order,
    items,
    keys_of,
    look,
    mapping_law,
    refuses,
    triples,
    whole,
)
from persistcoll.testing.mapping_life_laws import MAPPING_LIFE_LAWS

__all__ = ["MAPPING_LAWS"]

MANY = 700
"""More than any mapping is expected to read at once."""


@mapping_law("M1")
def in_the_order_of_the_keys_coming(bench: MappingBench) -> None:
    """A mapping keeps its pairs in the order in which their keys came; a new value keeps the place and
    the name. No iteration gives a key twice, or misses one that is there all the while.
    """
    mapping = bench.open()
    mapping.set_many(triples("b", "c", "a", "b"))
    mapping.set_many([(b"c", b"another name", b"x"), (b"d", b"D", b"d")])
    mapping.change(b"b", b"another name", append(b"!"))
    wanted = [Pair(b"b", b"B", b"b!"), Pair(b"c", b"C", b"x"), Pair(b"a", b"A", b"a"), Pair(b"d", b"D", b"d")]
    demand(look(mapping) == wanted, f"{look(mapping)}, not {wanted}")
    demand(mapping.remove(b"c"), "remove() did not find what is there")
    demand(not mapping.remove(b"c"), "remove() found what is not there")
    mapping.set_many([(b"c", b"another name", b"c")])
    popped = mapping.pop(whole), mapping.pop(whole, last=False)
    demand(popped == ((b"c", b"another name", b"c"), (b"b", b"B", b"b!")), f"popped {popped}")
    with contextlib.suppress(ValueError):
        mapping.pop(lambda pair: int("no number"))
    demand(keys_of(mapping) == [b"a", b"d"], f"left are {keys_of(mapping)}")
    found = [pair.key for pair in mapping.scan(b"a", b"d")]
    demand(found == [b"a"], f"scan() from b'a' to before b'd' gave {found}")
    demand(mapping.clear() == 2, "clear() did not count what it removed")
    demand(look(mapping) == [], "clear() left something")
    for reverse in (False, True):
        _changed_meanwhile(mapping, bench.another(mapping), reverse)
    _churned_meanwhile(mapping, bench.another(mapping))


def _numbers(first: int, behind: int) -> list[str]:
    return [f"{number:06}" for number in range(first, behind)]


def _changed_meanwhile(mapping: PairStore, other: PairStore, reverse: bool) -> None:
    mapping.clear()
    mapping.set_many(triples(*_numbers(0, MANY)))
    for of_all in (True, False):
        known = keys_of(mapping)
        reading = mapping.pairs(reverse) if of_all else mapping.scan(b"0", b":", reverse)
        found = [next(reading).key for _ in range(5)]
        again, early, late = found[0], known[MANY // 2], known[10 if reverse else -10]
        for key in (again, early):
            other.remove(key)
        other.set_many([(again, b"", b"again"), (late, b"", b"changed"), (b"999999", b"", b"new")])
        rest = list(reading)
        found += [pair.key for pair in rest]
        demand(len(set(found)) == len(found), "a key came twice")
        missed = set(known) - set(found) - {early}
        demand(not missed, f"keys that were there all the while did not come: {missed}")
        demand(not of_all or b"999999" not in found, "pairs() gave a key that came after it was called")
        values = {pair.key: pair.value for pair in rest}
        demand(values[late] in (late, b"changed"), f"a value that there never was: {values[late]!r}")
        if early in values:
            demand(values[early] == early, f"a value that there never was: {values[early]!r}")
        other.remove(b"999999")
        other.set_many([(early, b"", early), (late, b"", late), (again, b"", again)])


def _churned_meanwhile(mapping: PairStore, other: PairStore) -> None:
    mapping.clear()
    mapping.set_many(triples(*_numbers(0, MANY)))
    stable = [key.encode() for key in _numbers(0, MANY) if int(key) % 7]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(0, MANY, 7):
                key = b"%06d" % number
                other.remove(key)
                other.set_many([(key, b"", b"again"), (b"9%06d" % number, b"", b"new")])

    def read() -> None:
        try:
            for time in range(8):
                reading = mapping.scan(b"0", b":") if time % 4 > 1 else mapping.pairs()
                found = [pair.key for pair in reading]
                demand(len(set(found)) == len(found), "while others wrote, a key came twice")
                demand(in_order(stable, found), "while others wrote, a key that stayed did not come in order")
        finally:
            stop.set()

    together(churn, read)


@mapping_law("M2")
def transactions_are_whole_and_alone(bench: MappingBench) -> None:
    """What a mapping's transaction does happens wholly or not at all, it sees what it did itself, and
    nobody else writes meanwhile.
    """
    mapping = bench.open()
    mapping.set_many(triples("a", "b", "c"))
    mapping.set_many(triples("d"), 100)
    before = look(mapping)

    def change_everything() -> None:
        mapping.set_many(triples("e", "a", value="x"))
        mapping.remove(b"b")
        mapping.change(b"c", b"", append(b"!"))
        mapping.change(b"d", b"", lambda present: (None, None))
        mapping.set_many(triples("d", "f"))
        mapping.pop(whole)
        wanted = [(b"a", b"x"), (b"c", b"c!"), (b"e", b"x"), (b"d", b"d")]
        found = items(look(mapping))
        demand(found == wanted, f"a transaction sees {found}, and did {wanted}")

    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        for clear in (False, True):
            with refuses(error, "a transaction that raised", mapping), mapping.transaction():
                change_everything()
                with mapping.transaction():
                    if clear:
                        mapping.clear()
                        demand(look(mapping) == [], "after clear() a transaction sees something")
                raise error
    demand(look(bench.another(mapping)) == before, "a transaction that raised is seen elsewhere")
    with mapping.transaction():
        change_everything()
        inner = ValueError()
        with contextlib.suppress(ValueError):
            mapping.change(b"a", b"", lambda present: _raise(inner))
    after = look(mapping)
    demand(look(bench.another(mapping)) == after, "a transaction that ended is not seen elsewhere")
    demand([pair.key for pair in after] == [b"a", b"c", b"e", b"d"], f"a transaction left {after}")
    _nobody_else_writes(mapping, bench.another(mapping))
    _no_update_is_lost(mapping, bench.another(mapping))


def _raise(error: BaseException) -> Any:
    raise error


def _nobody_else_writes(mapping: PairStore, other: PairStore) -> None:
    mapping.set_many(triples("x", value="0"))
    seen: list[bytes | None] = []
    calls = [
        lambda: other.change(b"x", b"", append(b"+other")),
        lambda: seen.append(other.get(b"x")),
        lambda: seen.extend(pair.value for pair in other.scan(b"x", b"y")),
    ]
    threads = [threading.Thread(target=call) for call in calls]
    with mapping.transaction():
        mapping.change(b"x", b"", append(b"+1"))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.05)  # it may have to wait for the end, and is given the time to get it wrong
        mapping.change(b"x", b"", append(b"+2"))
    for thread in threads:
        thread.join(60)
        demand(not thread.is_alive(), "after a transaction of another thread a call does not come to its end")
    found = mapping.get(b"x")
    demand(found == b"0+1+2+other", f"another thread wrote within a transaction: {found!r}")
    committed = {b"0", b"0+1+2", b"0+1+2+other"}
    demand(committed.issuperset(seen), f"another thread saw what was not committed: {seen}")


def _no_update_is_lost(mapping: PairStore, other: PairStore) -> None:
    mapping.clear()
    each = 20
    pause = threading.Event()

    def one_more(present: bytes | None) -> tuple[bytes, None]:
        pause.wait(0.0005)  # others get their chance to come between
        return b"%d" % (int(present or 0) + 1), None

    def count(mine: PairStore) -> None:
        for number in range(each):
            if number % 4:
                mine.change(b"n", b"", one_more)
            else:
                with mine.transaction():
                    mine.set_many([(b"n", b"", one_more(mine.get(b"n"))[0])])

    together(*[lambda mine=mine: count(mine) for mine in (mapping, other, mapping)])
    demand(mapping.get(b"n") == b"%d" % (3 * each), f"of {3 * each} changes {mapping.get(b'n')!r} were kept")


@mapping_law("M3")
def what_has_expired_is_gone(bench: MappingBench) -> None:
    """Nothing that has expired is ever seen."""
    mapping = bench.open()
    mapping.set_many(triples("long"), 1000)
    mapping.set_many(triples("a", "b", "c", "d", "e", "kept", "changed"), 10)
    mapping.set_many(triples("for ever"))
    mapping.set_many(triples("kept"))
    mapping.change(b"changed", b"", append(b"!"))
    mapping.set_many(triples("b"), 1000)
    bench.advance(9.5)
    demand(len(look(mapping)) == 9, f"before they expire there are {keys_of(mapping)}")
    reading = [mapping.pairs(), mapping.pairs(reverse=True), mapping.scan(b"a", b"z")]
    begun = [next(each).key for each in reading]
    demand(begun == [b"long", b"for ever", b"a"], f"before they expire they begin with {begun}")
    bench.advance(0.6)
    gone = {b"a", b"c", b"d", b"e", b"changed"}
    for each in reading:
        demand(not gone.intersection(pair.key for pair in each), "an iteration gave what has expired")
    mapping.change(b"a", b"new", append(b"new"))
    demand(not mapping.remove(b"c"), "remove() found what has expired")
    wanted = [b"long", b"b", b"kept", b"for ever", b"a"]
    demand(keys_of(mapping) == wanted, f"when they have expired there are {keys_of(mapping)}, not {wanted}")
    demand(mapping.pop(whole) == (b"a", b"new", b"new"), "not a new key, but what has expired")
    mapping.set_many([(b"d", b"new", b"new")])
    demand(mapping.pop(whole) == (b"d", b"new", b"new"), "not a new key, but what has expired")
    mapping.set_many(triples("short"), 5)
    if bench.capabilities.crashes:
        left = {key for key, _ in bench.after_the_end(mapping)}
        demand(left == {*wanted[:-1], b"short"}, f"a dead process would leave {left}")
    bench.advance(5.5)
    demand(mapping.pop(whole)[0] == b"for ever", "pop() gave what has expired")
    mapping.set_many(triples("short"), 5)
    with mapping.transaction():
        bench.advance(5.5)
        demand(mapping.get(b"short") is None, "a transaction sees what has expired")
    demand(mapping.clear() == 3, "clear() counted what has expired")
    mapping.set_many(triples(*_numbers(0, MANY)), 10)
    bench.advance(10.5)
    demand(mapping.count() == 0, f"count() is {mapping.count()} when everything has expired")
    demand(look(bench.another(mapping)) == [], "what has expired is seen elsewhere")


MAPPING_LAWS: dict[str, MappingLaw] = {
    each.number: each
    for each in (
        *MAPPING_LIFE_LAWS,
        in_the_order_of_the_keys_coming,
        transactions_are_whole_and_alone,
        what_has_expired_is_gone,
    )
}
"""Every law of mappings, by its number."""
