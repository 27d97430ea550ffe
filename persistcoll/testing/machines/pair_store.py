"""The state machine of a pair store. See :mod:`persistcoll.testing.machines`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from persistcoll.engine.contracts import Pair, PairStore
from persistcoll.engine.memory.pair_store import MemoryPairState, MemoryPairStore
from persistcoll.testing._hypothesis import ExpectedError, outcome, st, stateful
from persistcoll.testing.children import check
from persistcoll.testing.laws.pair_store_harness import PairStoreFactory, contents

__all__ = ["PairStoreMachine"]

# Few keys, so that most operations meet an existing one. One is empty, and one is a prefix of another.
_keys = st.sampled_from([b"", b"a", b"ab", b"ab\0", b"b", b"c", b"\xff", b"k" * 40])
_values = st.binary(max_size=20)
_ends = st.sampled_from([None, None, None, 5.0, 20.0])
_Triples = list[tuple[bytes, bytes, bytes]]
_triples = st.lists(st.tuples(_keys, st.binary(max_size=3), _values), max_size=5)
_BEHIND_ALL = b"\xff" * 8


@dataclass
class _Reading:
    """An iteration that has begun, and what is known of it."""

    pairs: Iterator[Pair]
    ordered: list[bytes]
    """The keys at its begin, in the order in which they must come."""
    stayed: dict[bytes, int]
    """Those keys that stayed since and were not inserted again, with their serials in the model."""
    given: list[bytes] = field(default_factory=list)

    def check(self, key: bytes) -> None:
        check(key not in self.given, f"{key!r} came twice, of {self.given}")
        self.given.append(key)

    def check_end(self) -> None:
        missed = self.stayed.keys() - set(self.given)
        check(not missed, f"{missed} stayed and did not come, of {self.given}")
        came = [key for key in self.given if key in self.stayed]
        wanted = [key for key in self.ordered if key in self.stayed]
        check(came == wanted, f"came as {came}, not as {wanted}")


class PairStoreMachine(stateful.RuleBasedStateMachine):
    """A pair store compared with the one in memory, for all that the contract has.

    This includes expiry, transactions, and iterations that go on while the pair store is changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factory = self.mappings()
        self.mapping: PairStore = self.factory.open("a")
        self.now = 0.0
        self.state = MemoryPairState(lambda: self.now)
        self.model = MemoryPairStore(self.state)
        self.readings: list[_Reading] = []

    def mappings(self) -> PairStoreFactory:
        """Return a factory for one run; to be overridden. :meth:`teardown` may clean up after it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close the pair store at the end of a run."""
        self.mapping.close()

    def _same(self, call: Callable[[PairStore], Any], what: str) -> Any:
        def tried(mapping: PairStore) -> Any:
            try:
                return outcome(lambda: call(mapping))
            except KeyError as error:
                return type(error)

        got, wanted = tried(self.mapping), tried(self.model)
        check(got == wanted, f"{what} gave {got}, the model {wanted}")
        return got

    @stateful.rule(triples=_triples, expires=_ends)
    def set_many(self, triples: _Triples, expires: float | None) -> None:
        """Set several pairs, some with an expiry."""
        self._same(lambda mapping: mapping.set_many(triples, expires), "set_many()")

    @stateful.rule(key=_keys, value=_values, expires=_ends)
    def set_one(self, key: bytes, value: bytes, expires: float | None) -> None:
        """Set one pair."""
        self._same(lambda mapping: mapping.set_many([(key, b"one", value)], expires), "set_many()")

    @stateful.rule(keys=st.lists(_keys, max_size=4))
    def get(self, keys: list[bytes]) -> None:
        """Get several pairs, in one call and one by one."""
        self._same(lambda mapping: mapping.get_many(keys), "get_many()")
        self._same(lambda mapping: [(mapping.get(key), mapping.contains(key)) for key in keys], "get()")

    @stateful.rule(key=_keys, how=st.sampled_from(["append", "keep", "remove", "raise"]))
    def change(self, key: bytes, how: str) -> None:
        """Change one value depending on the old one."""

        def changed(present: bytes | None) -> tuple[bytes | None, Any]:
            if how == "raise":
                raise ExpectedError
            return {"append": (present or b"") + b"+", "keep": present, "remove": None}[how], present

        self._same(lambda mapping: mapping.change(key, b"changed", changed), f"change() to {how}")

    @stateful.rule(key=_keys)
    def remove(self, key: bytes) -> None:
        """Remove several pairs."""
        self._same(lambda mapping: mapping.remove(key), "remove()")

    @stateful.rule(last=st.booleans(), well=st.booleans())
    def pop(self, last: bool, well: bool) -> None:
        """Pop the last or the first pair. In some runs ``decode`` raises."""

        def decode(pair: Pair) -> Pair:
            if not well:
                raise ExpectedError
            return pair

        self._same(lambda mapping: mapping.pop(decode, last), "pop()")

    @stateful.rule()
    def clear(self) -> None:
        """Remove all pairs."""
        self._same(lambda mapping: mapping.clear(), "clear()")

    @stateful.rule(start=_keys, stop=_keys, reverse=st.booleans(), values=st.booleans())
    def scan(self, start: bytes, stop: bytes, reverse: bool, values: bool) -> None:
        """Read a range."""
        self._same(lambda mapping: list(mapping.scan(start, stop, reverse, values)), "scan()")

    @stateful.rule(triples=_triples, key=_keys, clear=st.booleans(), well=st.booleans())
    def transaction(self, triples: _Triples, key: bytes, clear: bool, well: bool) -> None:
        """Make several changes in a transaction, with a nested one, that commits or raises."""
        seen: list[list[Pair]] = []

        def call(mapping: PairStore) -> None:
            with contextlib.suppress(ExpectedError), mapping.transaction():
                mapping.set_many(triples)
                with mapping.transaction():
                    mapping.remove(key)
                if clear:
                    mapping.clear()
                mapping.change(key, b"within", lambda present: ((present or b"") + b"!", None))
                seen.append(list(mapping.pairs()))
                if not well:
                    raise ExpectedError

        self._same(call, "a transaction")
        check(seen[0] == seen[1], f"a transaction saw {seen[0]}, in the model {seen[1]}")

    @stateful.rule(seconds=st.sampled_from([1.0, 6.0, 30.0]))
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.factory.advance(seconds)
        self.now += seconds

    @stateful.rule(reverse=st.booleans(), by_key=st.booleans(), values=st.booleans())
    def begin_reading(self, reverse: bool, by_key: bool, values: bool) -> None:
        """Begin an iteration."""
        if by_key:
            pairs, model = (
                each.scan(b"", _BEHIND_ALL, reverse, values) for each in (self.mapping, self.model)
            )
        else:
            pairs, model = (each.pairs(reverse, values) for each in (self.mapping, self.model))
        ordered = [pair.key for pair in model]
        self.readings.append(_Reading(pairs, ordered, self._serials()))
        del self.readings[:-3]

    def _serials(self) -> dict[bytes, int]:
        return {key: row.serial for key, row in self.state.rows.items()}

    @stateful.rule(pick=st.integers(0, 2), count=st.integers(1, 12))
    def go_on_reading(self, pick: int, count: int) -> None:
        """Continue an iteration that has begun, in some runs to its end."""
        if not self.readings:
            return
        reading = self.readings[pick % len(self.readings)]
        for _ in range(count):
            pair = next(reading.pairs, None)
            if pair is None:
                reading.check_end()
                self.readings.remove(reading)
                return
            reading.check(pair.key)

    @stateful.rule()
    def reopen(self) -> None:
        """Close the pair store and open it again."""
        self.readings.clear()
        self.mapping.close()
        self.mapping = self.factory.open("a")

    @stateful.precondition(lambda self: self.factory.capabilities.crashes)
    @stateful.rule()
    def crash(self) -> None:
        """Check that a process that died now would lose nothing."""
        left = getattr(self.factory, "crashed")("a")  # noqa: B009
        try:
            found, wanted = contents(left), contents(self.model)
            check(found == wanted, f"a crash left {found}, the model {wanted}")
            left.clear()
        finally:
            left.close()

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal."""
        found, wanted = contents(self.mapping), list(self.model.pairs())
        check(found == wanted, f"pairs() are {found}, the model's {wanted}")
        there = self._serials()
        for reading in self.readings:
            reading.stayed = dict(reading.stayed.items() & there.items())
