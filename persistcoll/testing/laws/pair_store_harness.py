"""The harness of the laws of pair stores: a factory, and functions that read a pair store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.testing.children import check
from persistcoll.testing.harness import Capabilities, Law, LawTime, laws_with

__all__ = [
    "Item",
    "PairStoreFactory",
    "PairStoreHarness",
    "PairStoreLaw",
    "append",
    "contents",
    "in_order",
    "items",
    "keys_of",
    "pair_store_law",
    "refuses",
    "triples",
    "whole",
]

Item = tuple[bytes, bytes]
"""A key and its value."""

_EVERYTHING = b"", b"\xff" * 8
"""The limits for ``scan``: no key of a law begins with the second one."""


class PairStoreFactory(Protocol):
    """Opens pair stores of one kind. All are empty at first, and no other factory opens them."""

    @property
    def capabilities(self) -> Capabilities:
        """What its pair stores can do."""

    def open(self, name: str) -> PairStore:
        """Open the pair store of this name, which is made if it is missing, even after ``close()``."""

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass for all of its pair stores, and for what they leave after a crash.

        Where the clock cannot be set (``capabilities.real_time``), wait.
        """

    # Where `capabilities.crashes`, it also has
    #   def crashed(self, name: str) -> PairStore
    # which opens a copy, whose changes do not touch the pair store.


class PairStoreHarness:
    """A factory, and the pair stores that a law opened, which are closed at the end."""

    def __init__(self, factory: PairStoreFactory, again: int = 0) -> None:
        self._factory = factory
        self._again = f" {again}" if again else ""
        self.time = LawTime(factory, again)
        self.seconds, self.advance = self.time.seconds, self.time.advance
        self.capabilities = factory.capabilities
        self.opened: list[PairStore] = []

    def open(self, name: str = "a") -> PairStore:
        """Open the pair store ``name``."""
        self.opened.append(self._factory.open(name + self._again))
        return self.opened[-1]

    def another(self, mapping: PairStore) -> PairStore:
        """Return another handle of the pair store ``"a"``, or ``mapping`` if only one may be open."""
        return self.open() if self.capabilities.handles else mapping

    def after_the_end(self, mapping: PairStore) -> list[Item]:
        """Return what remains after a crash, or after closing ``mapping`` if crashes cannot be tried.

        In the second case the law must not use ``mapping`` any more.
        """
        if self.capabilities.crashes:
            found: PairStore = getattr(self._factory, "crashed")("a" + self._again)  # noqa: B009
            self.opened.append(found)
        else:
            mapping.close()
            found = self.open()
        left = items(contents(found))
        found.close()
        return left


PairStoreLaw = Law[PairStoreHarness]
pair_store_law = laws_with(PairStoreHarness)


def triples(*keys: str, value: str = "") -> list[tuple[bytes, bytes, bytes]]:
    """Return arguments of ``set_many``: the keys, named by their capitals, with a value or their own."""
    return [(key.encode(), key.upper().encode(), (value or key).encode()) for key in keys]


def items(pairs: Iterable[Pair]) -> list[Item]:
    """Return the pairs' keys and values."""
    return [(pair.key, pair.value) for pair in pairs]


def append(more: bytes) -> Callable[[bytes | None], tuple[bytes, None]]:
    """Return a ``change`` that appends bytes to the value."""
    return lambda present: ((present or b"") + more, None)


def whole(pair: Pair) -> tuple[bytes, bytes, bytes]:
    """Return all of the pair, as a ``decode``."""
    return pair.key, pair.original_key, pair.value


def contents(mapping: PairStore) -> list[Pair]:
    """Return all pairs of a pair store, and check that every other way to read them agrees."""
    pairs = list(mapping.pairs())
    keys = [pair.key for pair in pairs]
    check(len(set(keys)) == len(keys), f"pairs() have a key twice: {keys}")
    _same(mapping.pairs(reverse=True), reversed(pairs), "pairs(reverse=True)")
    by_key = sorted(pairs)
    _same(mapping.scan(*_EVERYTHING), by_key, "scan()")
    _same(mapping.scan(*_EVERYTHING, reverse=True), reversed(by_key), "scan(reverse=True)")
    bare = [pair._replace(value=b"") for pair in pairs]
    _same(mapping.pairs(values=False), bare, "pairs(values=False)")
    _same(mapping.scan(*_EVERYTHING, values=False), sorted(bare), "scan(values=False)")
    counts = mapping.count(), mapping.stats().ready
    check(counts == (len(pairs),) * 2, f"count() and stats().ready are {counts}, of {len(pairs)} pairs")
    sought = [*keys, b"no such key"]
    found = mapping.get_many(sought)
    check(found == dict(items(pairs)), f"get_many() gave {found}, of {pairs}")
    for key in sought:
        seen = mapping.get(key), mapping.contains(key)
        check(seen == (found.get(key), key in found), f"get() and contains() of {key!r} gave {seen}")
    return pairs


def keys_of(mapping: PairStore) -> list[bytes]:
    """Return all keys of a pair store, in order."""
    return [pair.key for pair in contents(mapping)]


def _same(got: Iterable[Pair], wanted: Iterable[Pair], what: str) -> None:
    found, expected = list(got), list(wanted)
    check(found == expected, f"{what} gave {found}, not {expected}")


@contextlib.contextmanager
def refuses(error: BaseException, what: str, mapping: PairStore) -> Iterator[None]:
    """Check that the block raises this very error, and changes nothing."""
    before = contents(mapping)
    try:
        yield
    except BaseException as raised:
        if raised is not error:
            raise
    else:
        raise AssertionError(f"{what} did not raise {error!r}")
    after = contents(mapping)
    check(after == before, f"{what} raised {error!r} and changed {before} to {after}")


def in_order(found: Sequence[bytes], known: Sequence[bytes]) -> bool:
    """Tell whether ``found`` are some of ``known``, in that order, none of them twice."""
    rest = iter(known)
    return all(each in rest for each in found)
