"""The laws S1 to S10, as far as they are about mappings. See :mod:`persistcoll.testing.mapping_laws`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from persistcoll.engine.contracts import Pair
from persistcoll.errors import ClosedError
from persistcoll.testing.children import demand, in_forked_child
from persistcoll.testing.mapping_bench import (
    MappingBench,
    MappingLaw,
    append,
    items,
    keys_of,
    look,
    mapping_law,
    refuses,
    triples,
    whole,
)

__all__ = ["MAPPING_LIFE_LAWS"]


@mapping_law("S1")
def whole_or_not_at_all(bench: MappingBench) -> None:
    """An operation that raised happened not at all."""
    mapping = bench.open()
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
    demand(mapping.get_many([]) == {}, "get_many() of nothing gave something")
    demand(len(look(mapping)) == 3, "set_many() of nothing changed something")
    mapping.clear()
    with contextlib.suppress(KeyError):
        mapping.pop(lambda pair: pair)
        raise AssertionError("pop() of an empty mapping did not raise KeyError")


@mapping_law("S2", "crashes")
def durable_when_returned(bench: MappingBench) -> None:
    """What returned survives the process."""
    mapping = bench.open()

    def left(verb: str, **expected: str) -> None:
        found = bench.after_the_end(mapping)
        wanted = [(key.encode(), value.encode()) for key, value in expected.items()]
        demand(found == wanted, f"after {verb} a dead process would leave {found}, not {wanted}")

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


@mapping_law("S3")
def used_once(bench: MappingBench) -> None:
    """What is given to change() and pop() is called once, with what is stored."""
    mapping = bench.open()
    mapping.set_many(triples("a", "b", "c"))
    seen: list[Any] = []

    def change(present: bytes | None) -> tuple[bytes | None, int]:
        seen.append(present)
        return (b"x", 1) if present is None else (None, 2) if present == b"b" else (present, 3)

    def decode(pair: Pair) -> int:
        seen.append(pair)
        return 4

    results = [mapping.change(key, b"D", change) for key in (b"a", b"b", b"d", b"b")]
    demand(results == [3, 2, 1, 1], f"change() gave {results}")
    results = [mapping.pop(decode), mapping.pop(decode, last=False)]
    demand(results == [4, 4], f"pop() gave {results}")
    wanted = [b"a", b"b", None, None, Pair(b"b", b"D", b"x"), Pair(b"a", b"A", b"a")]
    demand(seen == wanted, f"they were called with {seen}, not {wanted}")
    found = look(mapping)
    demand(found == [Pair(b"c", b"C", b"c"), Pair(b"d", b"D", b"x")], f"what is left is {found}")


@mapping_law("S7")
def strangers_by_name(bench: MappingBench) -> None:
    """Mappings with different names do not see each other."""
    one, two = bench.open("a"), bench.open("b")
    one.set_many(triples("x", "y"))
    two.set_many(triples("x", value="another"))
    demand(items(look(two)) == [(b"x", b"another")], f"what was put into one is in the other: {look(two)}")
    one.remove(b"x")
    one.clear()
    demand(items(look(two)) == [(b"x", b"another")], f"clear() of one changed the other: {look(two)}")
    one.set_many(triples("z"))
    with contextlib.suppress(ZeroDivisionError), two.transaction():
        two.clear()
        raise ZeroDivisionError
    one.close()
    demand(items(look(two)) == [(b"x", b"another")], f"closing one changed the other: {look(two)}")


@mapping_law("S8")
def reopening_changes_nothing(bench: MappingBench) -> None:
    """Closing and opening again changes nothing."""
    mapping = bench.open()
    mapping.set_many(triples("c", "a", "b", "d"))
    mapping.set_many(triples("a", value="x"))
    mapping.remove(b"b")
    mapping.set_many(triples("e"), 1000)
    mapping.set_many(triples("f"), 50)
    for _ in range(3):
        before = look(mapping)
        mapping.close()
        mapping = bench.open()
        demand(look(mapping) == before, f"opened again: {look(mapping)}, not {before}")
        bench.advance(20)
    demand(keys_of(mapping) == [b"c", b"a", b"d", b"e"], f"opened again and again: {keys_of(mapping)}")
    mapping.set_many(triples("b"))
    demand(keys_of(mapping)[-1] == b"b", "what was removed before is not the last one when it is set again")


@mapping_law("S9")
def closed_is_closed(bench: MappingBench) -> None:
    """After close() every call raises ClosedError, except close()."""
    mapping = bench.open()
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
        list(reading)  # begun before: goes on or says so
    demand(keys_of(bench.open()) == [b"a", b"b", b"c"], "calls after close() did something")


@mapping_law("S10", "forks")
def forks_are_harmless(bench: MappingBench) -> None:
    """A forked child can use the mapping, and never disturbs its parent."""
    mapping = bench.open()
    mapping.set_many(triples("a", "b", "c"))

    def child() -> None:
        mapping.after_fork_in_child()
        demand(keys_of(mapping) == [b"a", b"b", b"c"], "the child does not see what the parent stored")
        mapping.set_many(triples("of the child"))
        with mapping.transaction():
            mapping.remove(b"b")
        mapping.close()

    in_forked_child(child)
    in_forked_child(lambda: None)  # one that ends without having touched it
    expected = [b"a", b"c", b"of the child"] if bench.capabilities.processes else [b"a", b"b", b"c"]
    demand(keys_of(mapping) == expected, f"after the child: {keys_of(mapping)}, not {expected}")
    mapping.set_many(triples("more"))
    demand(keys_of(mapping) == [*expected, b"more"], f"after the child, and one more: {keys_of(mapping)}")


MAPPING_LIFE_LAWS: tuple[MappingLaw, ...] = (
    whole_or_not_at_all,
    durable_when_returned,
    used_once,
    strangers_by_name,
    reopening_changes_nothing,
    closed_is_closed,
    forks_are_harmless,
)
"""By number."""
