"""The laws of pair stores, each as a function that tries to break it.

They are used as those in :mod:`persistcoll.testing.laws.queue_store`, with a
:class:`~persistcoll.testing.laws.pair_store_harness.PairStoreFactory`:

>>> from persistcoll.engine.memory.pair_store import MemoryPairStore, MemoryPairState
>>> from persistcoll.testing import Capabilities
>>> class InMemory:
...     capabilities = Capabilities(crashes=False, forks=False, processes=False)
...     def __init__(self):
...         self.now = 0.0
...         self.states = {}
...     def open(self, name):
...         return MemoryPairStore(self.states.setdefault(name, MemoryPairState(lambda: self.now)))
...     def advance(self, seconds):
...         self.now += seconds
>>> for law in PAIR_STORE_LAWS.values():
...     if law.applies_to(InMemory()):
...         law(InMemory())
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.errors import ClosedError
from persistcoll.testing.children import begin_in_threads, check, in_forked_child, run_threads
from persistcoll.testing.harness import only_its_task_is_in_it
from persistcoll.testing.laws.pair_store_harness import (
    PairStoreHarness,
    PairStoreLaw,
    append,
    contents,
    in_order,
    items,
    keys_of,
    pair_store_law,
    refuses,
    triples,
    whole,
)

__all__ = ["PAIR_STORE_LAWS"]


MANY = 700
"""More than any pair store is expected to read at once."""


@pair_store_law("M1")
def in_the_order_of_the_keys_coming(harness: PairStoreHarness) -> None:
    """All pairs are kept in the order in which their keys came.

    A new value keeps the place and the original key. No iteration gives a key twice, or misses one that is
    there all the while.
    """
    mapping = harness.open()
    mapping.set_many(triples("b", "c", "a", "b"))
    mapping.set_many([(b"c", b"another name", b"x"), (b"d", b"D", b"d")])
    mapping.change(b"b", b"another name", append(b"!"))
    wanted = [Pair(b"b", b"B", b"b!"), Pair(b"c", b"C", b"x"), Pair(b"a", b"A", b"a"), Pair(b"d", b"D", b"d")]
    check(contents(mapping) == wanted, f"{contents(mapping)}, not {wanted}")
    check(mapping.remove(b"c"), "remove() did not find what is there")
    check(not mapping.remove(b"c"), "remove() found what is not there")
    mapping.set_many([(b"c", b"another name", b"c")])
    popped = mapping.pop(whole), mapping.pop(whole, last=False)
    check(popped == ((b"c", b"another name", b"c"), (b"b", b"B", b"b!")), f"popped {popped}")
    with contextlib.suppress(ValueError):
        mapping.pop(lambda pair: int("no number"))
    check(keys_of(mapping) == [b"a", b"d"], f"left are {keys_of(mapping)}")
    found = [pair.key for pair in mapping.scan(b"a", b"d")]
    check(found == [b"a"], f"scan() from b'a' to before b'd' gave {found}")
    check(mapping.clear() == 2, "clear() did not count what it removed")
    check(contents(mapping) == [], "clear() left something")
    for reverse in (False, True):
        _changed_meanwhile(mapping, harness.another(mapping), reverse)
    _churned_meanwhile(mapping, harness.another(mapping))


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
        check(len(set(found)) == len(found), "a key came twice")
        missed = set(known) - set(found) - {early}
        check(not missed, f"keys that were there all the while did not come: {missed}")
        check(not of_all or b"999999" not in found, "pairs() gave a key that came after it was called")
        values = {pair.key: pair.value for pair in rest}
        check(values[late] in (late, b"changed"), f"a value that there never was: {values[late]!r}")
        if early in values:
            check(values[early] == early, f"a value that there never was: {values[early]!r}")
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
                check(len(set(found)) == len(found), "while others wrote, a key came twice")
                check(in_order(stable, found), "while others wrote, a key that stayed did not come in order")
        finally:
            stop.set()

    run_threads(churn, read)


@pair_store_law("M2")
def transactions_are_whole_and_alone(harness: PairStoreHarness) -> None:
    """Every transaction of a pair store happens wholly or not at all.

    It sees its own changes, and nothing else writes meanwhile, not even another task of the same thread.
    """
    mapping = harness.open()
    mapping.set_many(triples("a", "b", "c"))
    mapping.set_many(triples("d"), harness.seconds(100))
    before = contents(mapping)

    def change_everything() -> None:
        mapping.set_many(triples("e", "a", value="x"))
        mapping.remove(b"b")
        mapping.change(b"c", b"", append(b"!"))
        mapping.change(b"d", b"", lambda present: (None, None))
        mapping.set_many(triples("d", "f"))
        mapping.pop(whole)
        wanted = [(b"a", b"x"), (b"c", b"c!"), (b"e", b"x"), (b"d", b"d")]
        found = items(contents(mapping))
        check(found == wanted, f"a transaction sees {found}, and did {wanted}")

    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        for clear in (False, True):
            with refuses(error, "a transaction that raised", mapping), mapping.transaction():
                change_everything()
                with mapping.transaction():
                    if clear:
                        mapping.clear()
                        check(contents(mapping) == [], "after clear() a transaction sees something")
                raise error
    check(contents(harness.another(mapping)) == before, "a transaction that raised is seen elsewhere")
    with mapping.transaction():
        change_everything()
        inner = ValueError()
        with contextlib.suppress(ValueError):
            mapping.change(b"a", b"", lambda present: _raise(inner))
    after = contents(mapping)
    check(contents(harness.another(mapping)) == after, "a transaction that ended is not seen elsewhere")
    check([pair.key for pair in after] == [b"a", b"c", b"e", b"d"], f"a transaction left {after}")
    _nobody_else_writes(mapping, harness.another(mapping))
    only_its_task_is_in_it(
        mapping.transaction,
        partial(mapping.change, b"x", b"", append(b"+task")),
        {"get()": partial(mapping.get, b"x")},
    )
    found = mapping.get(b"x") or b""
    check(found.count(b"+task") == 1, f"of two tasks one wrote, and there is {found!r}")
    _no_update_is_lost(mapping, harness.another(mapping))


def _raise(error: BaseException) -> Any:
    raise error


def _nobody_else_writes(mapping: PairStore, other: PairStore) -> None:
    mapping.set_many(triples("x", value="0"))
    seen: list[bytes | None] = []
    with mapping.transaction():
        mapping.change(b"x", b"", append(b"+1"))
        end = begin_in_threads(
            lambda: other.change(b"x", b"", append(b"+other")),
            lambda: seen.append(other.get(b"x")),
            lambda: seen.extend(pair.value for pair in other.scan(b"x", b"y")),
        )
        mapping.change(b"x", b"", append(b"+2"))
    end()
    found = mapping.get(b"x")
    check(found == b"0+1+2+other", f"another thread wrote within a transaction: {found!r}")
    committed = {b"0", b"0+1+2", b"0+1+2+other"}
    check(committed.issuperset(seen), f"another thread saw what was not committed: {seen}")


def _no_update_is_lost(mapping: PairStore, other: PairStore) -> None:
    mapping.clear()
    each = 20
    pause = threading.Event()

    def one_more(present: bytes | None) -> tuple[bytes, None]:
        pause.wait(0.0005)  # other threads get a chance to write in between
        return b"%d" % (int(present or 0) + 1), None

    def count(mine: PairStore) -> None:
        for number in range(each):
            if number % 4:
                mine.change(b"n", b"", one_more)
            else:
                with mine.transaction():
                    mine.set_many([(b"n", b"", one_more(mine.get(b"n"))[0])])

    run_threads(*[lambda mine=mine: count(mine) for mine in (mapping, other, mapping)])
    check(mapping.get(b"n") == b"%d" % (3 * each), f"of {3 * each} changes {mapping.get(b'n')!r} were kept")


@pair_store_law("M3")
def what_has_expired_is_gone(harness: PairStoreHarness) -> None:
    """No expired pair is ever seen."""
    mapping = harness.open()
    mapping.set_many(triples("long"), harness.seconds(1000))
    mapping.set_many(triples("a", "b", "c", "d", "e", "kept", "changed"), harness.seconds(10))
    mapping.set_many(triples("for ever"))
    mapping.set_many(triples("kept"))
    mapping.change(b"changed", b"", append(b"!"))
    mapping.set_many(triples("b"), harness.seconds(1000))
    harness.advance(harness.time.before(10.0))
    check(len(contents(mapping)) == 9, f"before they expire there are {keys_of(mapping)}")
    reading = [mapping.pairs(), mapping.pairs(reverse=True), mapping.scan(b"a", b"z")]
    begun = [next(each).key for each in reading]
    check(begun == [b"long", b"for ever", b"a"], f"before they expire they begin with {begun}")
    harness.advance(10.1 - harness.time.before(10.0))
    gone = {b"a", b"c", b"d", b"e", b"changed"}
    for each in reading:
        check(not gone.intersection(pair.key for pair in each), "an iteration gave what has expired")
    mapping.change(b"a", b"new", append(b"new"))
    check(not mapping.remove(b"c"), "remove() found what has expired")
    wanted = [b"long", b"b", b"kept", b"for ever", b"a"]
    check(keys_of(mapping) == wanted, f"when they have expired there are {keys_of(mapping)}, not {wanted}")
    check(mapping.pop(whole) == (b"a", b"new", b"new"), "not a new key, but what has expired")
    mapping.set_many([(b"d", b"new", b"new")])
    check(mapping.pop(whole) == (b"d", b"new", b"new"), "not a new key, but what has expired")
    mapping.set_many(triples("short"), harness.seconds(5))
    if harness.capabilities.crashes:
        left = {key for key, _ in harness.after_the_end(mapping)}
        check(left == {*wanted[:-1], b"short"}, f"a dead process would leave {left}")
    harness.advance(5.5)
    check(mapping.pop(whole)[0] == b"for ever", "pop() gave what has expired")
    mapping.set_many(triples("short"), harness.seconds(5))
    with mapping.transaction():
        harness.advance(5.5)
        check(mapping.get(b"short") is None, "a transaction sees what has expired")
    check(mapping.clear() == 3, "clear() counted what has expired")
    mapping.set_many(triples(*_numbers(0, MANY)), harness.seconds(10))
    harness.advance(10.5)
    check(mapping.count() == 0, f"count() is {mapping.count()} when everything has expired")
    check(contents(harness.another(mapping)) == [], "what has expired is seen elsewhere")


@pair_store_law("S1")
def whole_or_not_at_all(harness: PairStoreHarness) -> None:
    """When an operation raised, it happened not at all."""
    mapping = harness.open()
    mapping.set_many(triples("a", "b", "c"))
    for error in (ValueError(), KeyboardInterrupt()):

        def fail(pair: object, error: BaseException = error) -> Any:
            raise error

        for key in (b"b", b"new"):
            with refuses(error, "change() whose change raised", mapping):
                mapping.change(key, b"", fail)
        for last in (True, False):
            with refuses(error, "pop() whose decode raised", mapping):
                mapping.pop(fail, last)
    mapping.set_many([])
    check(mapping.get_many([]) == {}, "get_many() of nothing gave something")
    check(len(contents(mapping)) == 3, "set_many() of nothing changed something")
    mapping.clear()
    with contextlib.suppress(KeyError):
        mapping.pop(lambda pair: pair)
        raise AssertionError("pop() of an empty mapping did not raise KeyError")


@pair_store_law("S2", "crashes")
def durable_when_returned(harness: PairStoreHarness) -> None:
    """Every change that returned survives the process."""
    mapping = harness.open()

    def left(verb: str, **expected: str) -> None:
        found = harness.after_the_end(mapping)
        wanted = [(key.encode(), value.encode()) for key, value in expected.items()]
        check(found == wanted, f"after {verb} a dead process would leave {found}, not {wanted}")

    mapping.set_many(triples("a", "b", "c", "d"))
    left("set_many()", a="a", b="b", c="c", d="d")
    mapping.set_many(triples("b", value="x"))
    left("set_many()", a="a", b="x", c="c", d="d")
    mapping.change(b"c", b"", append(b"!"))
    mapping.change(b"e", b"E", append(b"e"))
    left("change()", a="a", b="x", c="c!", d="d", e="e")
    mapping.remove(b"b")
    left("remove()", a="a", c="c!", d="d", e="e")
    mapping.change(b"d", b"", lambda present: (None, None))
    left("change() that removes", a="a", c="c!", e="e")
    mapping.pop(whole)
    left("pop()", a="a", c="c!")
    with mapping.transaction():
        mapping.remove(b"c")
        mapping.set_many(triples("f"))
        left("half a transaction", a="a", c="c!")
    left("a transaction", a="a", f="f")
    mapping.clear()
    left("clear()")


@pair_store_law("S3")
def used_once(harness: PairStoreHarness) -> None:
    """Every function given to change() or pop() is called once, with what is stored."""
    mapping = harness.open()
    mapping.set_many(triples("a", "b", "c"))
    seen: list[Any] = []

    def change(present: bytes | None) -> tuple[bytes | None, int]:
        seen.append(present)
        return (b"x", 1) if present is None else (None, 2) if present == b"b" else (present, 3)

    def decode(pair: Pair) -> int:
        seen.append(pair)
        return 4

    results = [mapping.change(key, b"D", change) for key in (b"a", b"b", b"d", b"b")]
    check(results == [3, 2, 1, 1], f"change() gave {results}")
    results = [mapping.pop(decode), mapping.pop(decode, last=False)]
    check(results == [4, 4], f"pop() gave {results}")
    wanted = [b"a", b"b", None, None, Pair(b"b", b"D", b"x"), Pair(b"a", b"A", b"a")]
    check(seen == wanted, f"they were called with {seen}, not {wanted}")
    found = contents(mapping)
    check(found == [Pair(b"c", b"C", b"c"), Pair(b"d", b"D", b"x")], f"what is left is {found}")


@pair_store_law("S7")
def strangers_by_name(harness: PairStoreHarness) -> None:
    """No two pair stores with different names see each other."""
    one, two = harness.open("a"), harness.open("b")
    one.set_many(triples("x", "y"))
    two.set_many(triples("x", value="another"))
    check(
        items(contents(two)) == [(b"x", b"another")],
        f"what was put into one is in the other: {contents(two)}",
    )
    one.remove(b"x")
    one.clear()
    check(items(contents(two)) == [(b"x", b"another")], f"clear() of one changed the other: {contents(two)}")
    one.set_many(triples("z"))
    with contextlib.suppress(ZeroDivisionError), two.transaction():
        two.clear()
        raise ZeroDivisionError
    one.close()
    check(items(contents(two)) == [(b"x", b"another")], f"closing one changed the other: {contents(two)}")


@pair_store_law("S8")
def reopening_changes_nothing(harness: PairStoreHarness) -> None:
    """No close and no opening changes a pair."""
    mapping = harness.open()
    mapping.set_many(triples("c", "a", "b", "d"))
    mapping.set_many(triples("a", value="x"))
    mapping.remove(b"b")
    mapping.set_many(triples("e"), harness.seconds(1000))
    mapping.set_many(triples("f"), harness.seconds(50))
    for _ in range(3):
        before = contents(mapping)
        mapping.close()
        mapping = harness.open()
        check(contents(mapping) == before, f"opened again: {contents(mapping)}, not {before}")
        harness.advance(20)
    check(keys_of(mapping) == [b"c", b"a", b"d", b"e"], f"opened again and again: {keys_of(mapping)}")
    mapping.set_many(triples("b"))
    check(keys_of(mapping)[-1] == b"b", "what was removed before is not the last one when it is set again")


@pair_store_law("S9")
def closed_is_closed(harness: PairStoreHarness) -> None:
    """After close() every call raises ClosedError, except close()."""
    mapping = harness.open()
    mapping.set_many(triples("a", "b", "c"))
    reading = mapping.pairs()
    next(reading)
    mapping.close()
    mapping.close()
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: mapping.get(b"a"),
        "get_many": lambda: mapping.get_many([b"a"]),
        "get_many of nothing": lambda: mapping.get_many([]),
        "contains": lambda: mapping.contains(b"a"),
        "set_many": lambda: mapping.set_many(triples("d")),
        "set_many of nothing": lambda: mapping.set_many([]),
        "change": lambda: mapping.change(b"a", b"", append(b"")),
        "remove": lambda: mapping.remove(b"a"),
        "pop": lambda: mapping.pop(whole),
        "clear": mapping.clear,
        "count": mapping.count,
        "pairs": lambda: list(mapping.pairs()),
        "scan": lambda: list(mapping.scan(b"", b"z")),
        "transaction": lambda: mapping.transaction().__enter__(),
        "change_token": mapping.change_token,
        "stats": mapping.stats,
    }
    for name, call in calls.items():
        with contextlib.suppress(ClosedError):
            call()
            raise AssertionError(f"{name}() of a closed mapping did not raise ClosedError")
    with contextlib.suppress(ClosedError):
        list(reading)  # it began before: it continues, or raises
    check(keys_of(harness.open()) == [b"a", b"b", b"c"], "calls after close() did something")


@pair_store_law("S10", "forks")
def forks_are_harmless(harness: PairStoreHarness) -> None:
    """Every forked child can use the pair store, and never disturbs its parent."""
    mapping = harness.open()
    mapping.set_many(triples("a", "b", "c"))

    def child() -> None:
        mapping.after_fork_in_child()
        check(keys_of(mapping) == [b"a", b"b", b"c"], "the child does not see what the parent stored")
        mapping.set_many(triples("of the child"))
        with mapping.transaction():
            mapping.remove(b"b")
        mapping.close()

    in_forked_child(child)
    in_forked_child(lambda: None)  # a child that ends without using it
    expected = [b"a", b"c", b"of the child"] if harness.capabilities.processes else [b"a", b"b", b"c"]
    check(keys_of(mapping) == expected, f"after the child: {keys_of(mapping)}, not {expected}")
    mapping.set_many(triples("more"))
    check(keys_of(mapping) == [*expected, b"more"], f"after the child, and one more: {keys_of(mapping)}")


PAIR_STORE_LAWS: dict[str, PairStoreLaw] = {
    each.number: each
    for each in (
        whole_or_not_at_all,
        durable_when_returned,
        used_once,
        strangers_by_name,
        reopening_changes_nothing,
        closed_is_closed,
        forks_are_harmless,
        in_the_order_of_the_keys_coming,
        transactions_are_whole_and_alone,
        what_has_expired_is_gone,
    )
}
"""Every law of pair stores, by its number."""
