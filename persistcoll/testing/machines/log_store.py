"""The state machine of a log store. See :mod:`persistcoll.testing.machines`."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from persistcoll.engine.contracts import LogCursor, LogStore
from persistcoll.engine.memory.log_store import MemoryLogCursor, MemoryLogState, MemoryLogStore
from persistcoll.engine.records import Record
from persistcoll.testing._hypothesis import ExpectedError, StepMachine, outcome, st, stateful, weighted
from persistcoll.testing.children import check
from persistcoll.testing.laws.log_store_harness import LogStoreFactory

__all__ = ["LogStoreMachine"]

_payloads = st.binary(max_size=40)
# Two names differ only in the case of a letter, and one is empty.
_names = st.sampled_from(["a", "A", ""])
_places = st.integers(-1, 40)
_lists = st.lists(_payloads, max_size=6)

# Each step, how often it is chosen, and its arguments.
_STEPS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "append": (1, (_payloads, st.booleans())),
    "append_many": (2, (_lists, st.booleans())),
    "advance": (2, (st.sampled_from([0.5, 1.0, 60.0, -3.0, -100.0]),)),
    "open_cursor": (3, (_names, st.none() | _places)),
    "read": (5, (_names, st.integers(1, 7), st.integers(0, 5))),
    "commit": (4, (_names, st.integers(-6, 3))),
    "read_and_commit": (2, (_names,)),
    "seek": (2, (_names, st.none() | _places)),
    "close_cursor": (1, (_names,)),
    "forget": (1, (_names,)),
    "trim": (2, (_places, st.sampled_from([False, False, True]))),
    "find": (2, (st.integers(0, 40), st.sampled_from([-0.25, 0.0, 0.25, 1e6, -1e6]))),
    "reopen": (1, ()),
    "crash": (1, (_names,)),
}


class LogStoreMachine(StepMachine):
    """A log store compared with a ``MemoryLogStore``, for all that the contract has."""

    steps = weighted(_STEPS)

    def __init__(self) -> None:
        super().__init__()
        self.factory = self.stores()
        self.store: LogStore = self.factory.open("a")
        self.other: LogStore | None = self._opened_too()
        self.state = MemoryLogState(self.factory.now)
        self.model = MemoryLogStore(self.state)
        self.ids: list[int] = []  # of the tested store, which may leave some out; the model's begin with 1
        self.cursors: dict[str, tuple[LogCursor, MemoryLogCursor]] = {}

    def stores(self) -> LogStoreFactory:
        """Return a factory for one run; to be overridden. :meth:`teardown` may clean up after it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close the stores at the end of a run."""
        self._close()

    def _opened_too(self) -> LogStore | None:
        return self.factory.open("a") if self.factory.capabilities.handles else None

    def _close(self) -> None:
        self.store.close()
        if self.other is not None:
            self.other.close()

    @stateful.initialize(payloads=_lists)
    def begin(self, payloads: list[bytes]) -> None:
        """Append some records, or none, and open a cursor before them."""
        self.append_many(payloads, False)
        self.open_cursor("a", None)

    # The ids of the model are the numbers of the records.

    def _id(self, number: int) -> int:
        """Return the id of a record in the tested store, or so much after the last one."""
        if number <= 0:
            return number
        if number <= len(self.ids):
            return self.ids[number - 1]
        return max(self.ids, default=0) + number - len(self.ids)

    def _number(self, id: int) -> int:
        """Return how many records have had an id up to this one; one more if it is above all."""
        return bisect_right(self.ids, id) + (id > max(self.ids, default=0))

    def _place(self, place: int) -> int:
        """Return a number that is near the records there are, or were."""
        return place if place < 20 else len(self.ids) + place - 37

    # Appending.

    def _appended(self, ids: list[int], payloads: list[bytes]) -> None:
        newest = max(self.ids, default=0)
        check(ids == sorted(set(ids)) and all(id > newest for id in ids), f"ids {ids} after {newest}")
        check(len(ids) == len(payloads), f"{len(ids)} ids for {len(payloads)} records")
        self.model.append_many(payloads)
        self.ids += ids

    def append(self, payload: bytes, elsewhere: bool) -> None:
        """Append one record, by this object or by another one."""
        store = self.other if elsewhere and self.other is not None else self.store
        self._appended([store.append(payload)], [payload])

    def append_many(self, payloads: list[bytes], elsewhere: bool) -> None:
        """Append several records."""
        store = self.other if elsewhere and self.other is not None else self.store
        self._appended(list(store.append_many(payloads)), payloads)

    def advance(self, seconds: float) -> None:
        """Let time pass, or set the clock of the producers back."""
        self.factory.advance(seconds)

    # Cursors.

    def open_cursor(self, name: str, start: int | None) -> None:
        """Open a cursor, which may be new, or open already."""
        number = None if start is None else self._place(start)
        got = outcome(lambda: self.store.cursor(name, None if number is None else self._id(number)))
        wanted = outcome(lambda: self.model.cursor(name, number))
        if isinstance(got, type) or isinstance(wanted, type):
            check(got is wanted, f"cursor({name!r}, {number}) gave {got}, the model {wanted}")
        else:
            check(got.name == name, f"the cursor {name!r} has the name {got.name!r}")
            self.cursors[name] = got, wanted

    def _cursor(self, name: str) -> tuple[LogCursor, MemoryLogCursor]:
        """Return the open cursor of this name, or another open one, and the model's."""
        return self.cursors[name if name in self.cursors else next(iter(self.cursors))]

    def _seen(self, record: Record) -> tuple[int, bytes, float]:
        return self._number(record.id), record.payload, record.time

    def read(self, name: str, limit: int, bad: int) -> None:
        """Read up to ``limit`` records. In some runs ``decode`` raises at the ``bad``-th of them."""
        if not self.cursors:
            return
        cursor, model = self._cursor(name)
        used: list[int] = []
        ids: list[int] = []

        def decode(record: Record) -> tuple[int, bytes, float]:
            used.append(record.id)
            if len(used) == bad:
                raise ExpectedError
            return self._seen(record)

        def fail(record: Record) -> None:
            raise ExpectedError

        got = outcome(lambda: cursor.read(limit, decode, ids=ids))
        if isinstance(got, type):
            wanted = outcome(lambda: model.read(1, fail))
            check(got is wanted, f"read() raised {got}, the model {wanted}")
            check(got is not ExpectedError or bad == 1, "read() raised the error of a later record")
            check(not ids, f"read() raised {got}, and listed {ids}")
            return
        check(1 <= len(got) <= limit, f"{len(got)} records, of at most {limit}")
        same = outcome(lambda: model.read(len(got), lambda record: record[:3]))
        check(got == same, f"read {got}, the model {same}")
        check(ids == used[: len(got)], f"read {used[: len(got)]}, and listed {ids}")

    def commit(self, name: str, distance: int) -> None:
        """Commit up to an id before or after the last one that was read."""
        if self.cursors:
            cursor, model = self._cursor(name)
            number = model._last_read + distance
            got = outcome(lambda: cursor.commit(self._id(number)))
            wanted = outcome(lambda: model.commit(number))
            check(got is wanted, f"commit({number}) gave {got}, the model {wanted}")

    def read_and_commit(self, name: str) -> None:
        """Read one record and commit it, as most callers do."""
        if self.cursors:
            cursor, model = self._cursor(name)
            read: list[int] = []
            got = outcome(lambda: cursor.read(1, self._seen, ids=read))
            wanted = outcome(lambda: model.read(1, lambda record: record[:3]))
            check(got == wanted, f"read {got}, the model {wanted}")
            if read:
                cursor.commit(read[-1])
                model.commit(self._number(read[-1]))

    def seek(self, name: str, place: int | None) -> None:
        """Go forward or back to any id, or to the first record."""
        if self.cursors:
            number = None if place is None else self._place(place)
            cursor, model = self._cursor(name)
            got = outcome(lambda: cursor.seek(None if number is None else self._id(number)))
            wanted = outcome(lambda: model.seek(number))
            check(got is wanted, f"seek({number}) gave {got}, the model {wanted}")

    def close_cursor(self, name: str) -> None:
        """Close a cursor, which commits nothing."""
        for cursor in self.cursors.pop(name, ()):
            cursor.close()

    def forget(self, name: str) -> None:
        """Remove a cursor, unless it is open."""
        got, wanted = outcome(lambda: self.store.forget(name)), outcome(lambda: self.model.forget(name))
        check(got is wanted, f"forget({name!r}) gave {got}, the model {wanted}")

    # Trimming and finding.

    def trim(self, place: int, force: bool) -> None:
        """Trim, with force or without."""
        number = self._place(place)
        got, wanted = self.store.trim(self._id(number), force), self.model.trim(number, force)
        check(got == wanted, f"trim({number}, {force}) gave {got}, the model {wanted}")

    def find(self, index: int, seconds: float) -> None:
        """Find records by their time, and by how many come before them."""
        times = [record.time for record in self.state.records.values()] or [self.factory.now()]
        time = times[index % len(times)] + seconds
        got, wanted = self._number(self.store.find(time)), self.model.find(time)
        check(got == wanted, f"find({time}) gave {got}, the model {wanted}")
        got, wanted = self._number(self.store.nth(index)), self.model.nth(index)
        check(got == wanted, f"nth({index}) gave {got}, the model {wanted}")

    # Ends.

    def reopen(self) -> None:
        """Close the store and open it again."""
        self._close()
        self.store, self.other = self.factory.open("a"), self._opened_too()
        self.model.close()
        self.model = MemoryLogStore(self.state)
        self.cursors.clear()

    def crash(self, name: str) -> None:
        """Check that a process that died now would lose no record, and would move no cursor."""
        if not self.factory.capabilities.crashes:
            return
        left = getattr(self.factory, "crashed")("a")  # noqa: B009
        model = MemoryLogStore(self.state.copy())
        try:
            self._compare(left, model, "after a crash ")
            if name in model.cursors():
                cursor, same = left.cursor(name), model.cursor(name)
                got = outcome(lambda: cursor.read(1, self._seen))
                wanted = outcome(lambda: same.read(1, lambda record: record[:3]))
                check(got == wanted, f"after a crash the cursor {name!r} reads {got}, the model's {wanted}")
            check(left.append(b"after") > max(self.ids, default=0), "after a crash an id was given again")
        finally:
            left.close()

    def _compare(self, store: LogStore, model: MemoryLogStore, when: str = "") -> None:
        found = [self._seen(record) for record in store.records()]
        wanted: list[Any] = [record[:3] for record in model.records()]
        check(found == wanted, f"{when}records() are {found}, the model's {wanted}")
        middle = wanted[len(wanted) // 2][0] if wanted else 1
        after = [self._seen(record) for record in store.records(self._id(middle))]
        check(after == [each for each in wanted if each[0] > middle], f"{when}after {middle} came {after}")
        first, last, records = store.bounds()
        numbers = self._number(first), bisect_right(self.ids, last), records
        check(numbers == model.bounds(), f"{when}bounds() are {numbers}, the model's {model.bounds()}")
        states = {
            name: (bisect_right(self.ids, state.position), state.lag)
            for name, state in store.cursors().items()
        }
        expected = model.cursors()
        check(list(states.items()) == list(expected.items()), f"{when}cursors are {states}, not {expected}")

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal."""
        self._compare(self.store, self.model)
        if self.other is not None:
            self._compare(self.other, self.model, "in another object ")
        for name, (cursor, model) in self.cursors.items():
            got = bisect_right(self.ids, cursor.position), cursor.lag()
            wanted = model.position, model.lag()
            check(got == wanted, f"position and lag of {name!r} are {got}, the model's {wanted}")
