"""The state machine of a ``PDict``."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from persistcoll.dicts.pdict import PDict
from persistcoll.testing._hypothesis import ExpectedError, st, stateful
from persistcoll.testing.children import check

__all__ = ["DictMachine", "ModelDict"]

_keys = st.sampled_from(
    ["", "a", "ab", "ab\0", "b", "\xe9", "\U0001f600", b"", b"a", None, 0, 1, True, 1.0, -0.0, 0.5, 2**70, -1]
) | st.sampled_from([(), (1,), (True,), ("a", None), ((1.0,), b"a")])
_values = st.integers(-5, 5) | st.text(max_size=4) | st.none() | st.lists(st.integers(), max_size=2)
_pairs = st.lists(st.tuples(_keys, _values), max_size=5)
_Pairs = list[tuple[Any, Any]]
_ERRORS = (KeyError, TypeError, ExpectedError)


class ModelDict(dict):
    """A dict with the methods that a ``PDict`` adds."""

    set = dict.__setitem__
    set_many = dict.update

    def popitem(self, last: bool = True) -> Any:
        """Do as ``PDict.popitem`` does."""
        if last or not self:
            return super().popitem()
        key = next(iter(self))
        return key, self.pop(key)

    def get_many(self, keys: Any) -> dict[Any, Any]:
        """Do as ``PDict.get_many`` does."""
        return {key: self[key] for key in keys if key in self}

    def incr(self, key: Any, by: Any = 1) -> Any:
        """Do as ``PDict.incr`` does."""
        value = self.get(key, 0)
        if not isinstance(value, int):
            raise TypeError("no number")
        self[key] = value + by
        return self[key]

    def scan(self, prefix: str = "", **ends: Any) -> Iterator[tuple[str, Any]]:
        """Do as ``PDict.scan`` does."""
        start, stop = ends.get("start"), ends.get("stop")
        found = [
            key
            for key in self
            if isinstance(key, str)
            and key.startswith(prefix)
            and (start is None or key >= start)
            and (stop is None or key < stop)
        ]
        return iter([(key, self[key]) for key in sorted(found, reverse=ends.get("reverse", False))])

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do as ``PDict.transaction`` does."""
        before = dict(self)
        try:
            yield
        except BaseException:
            self.clear()
            self.update(before)
            raise

    @contextlib.contextmanager
    def edit(self, key: Any) -> Iterator[Any]:
        """Do as ``PDict.edit`` does."""
        yield self[key]


class DictMachine(stateful.RuleBasedStateMachine):
    """A :class:`~persistcoll.PDict` in a file, used by several handles or processes, against a :class:`dict`.

    A subclass may set the options of the dict, or open something else.
    """

    options: ClassVar[dict[str, Any]] = {"durability": "process"}
    """Further arguments of the dict."""
    place: ClassVar[str | None] = None
    """The parent of the dicts' directories; default: the system's for temporary files."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(dir=self.place)
        self.times_opened = 0
        self.model = ModelDict()
        self.committed = ModelDict()
        self.handles = self.open_all()
        self.gathers = not self.options.get("auto_commit", True)

    @property
    def path(self) -> str:
        """The present path of the dict."""
        return os.path.join(self.directory, str(self.times_opened))

    def open_all(self) -> list[Any]:
        """Return the handles on the dict, at least one.

        A subclass may return others with the same methods.
        """
        return [PDict(self.path, **self.options)]

    def teardown(self) -> None:
        """Close the dict at the end of a run, and remove the files."""
        for each in self.handles:
            each.close()
        shutil.rmtree(self.directory)

    def _same(self, pick: int, call: Callable[[Any], Any], what: str) -> Any:
        def tried(d: Any) -> Any:
            try:
                return call(d)
            except _ERRORS as error:
                return type(error)

        got, wanted = tried(self.handles[pick % len(self.handles)]), tried(self.model)
        # The text is compared, because 1, 1.0 and True are equal, and not the same.
        check(repr(got) == repr(wanted), f"{what} gave {got!r}, the model {wanted!r}")
        if not self.gathers:
            self.task_done(pick)
        return got

    _picks = st.integers(0, 3)

    @stateful.rule(pick=_picks, key=_keys, value=_values)
    def assign(self, pick: int, key: Any, value: Any) -> None:
        """Assign: ``d[key] = value``."""
        self._same(pick, lambda d: d.__setitem__(key, value), "an assignment")

    @stateful.rule(pick=_picks, key=_keys)
    def delete(self, pick: int, key: Any) -> None:
        """Delete: ``del d[key]``."""
        self._same(pick, lambda d: d.__delitem__(key), "del")

    @stateful.rule(pick=_picks, keys=st.lists(_keys, max_size=4))
    def look_up(self, pick: int, keys: list[Any]) -> None:
        """Look up several keys."""
        self._same(pick, lambda d: [(key in d, d.get(key), d.get(key, "-")) for key in keys], "get()")
        self._same(pick, lambda d: [d[key] for key in keys], "d[key]")
        self._same(pick, lambda d: d.get_many(keys), "get_many()")

    @stateful.rule(pick=_picks, key=_keys, default=st.sampled_from([(), (None,), (7,)]))
    def pop(self, pick: int, key: Any, default: tuple[Any, ...]) -> None:
        """Pop a key, with a default or without."""
        self._same(pick, lambda d: d.pop(key, *default), "pop()")

    @stateful.rule(pick=_picks, last=st.booleans())
    def popitem(self, pick: int, last: bool) -> None:
        """Pop the last pair, or the first."""
        self._same(pick, lambda d: d.popitem(last=last), "popitem()")

    @stateful.rule(pick=_picks, key=_keys, value=_values)
    def setdefault(self, pick: int, key: Any, value: Any) -> None:
        """Set a key if it is not there."""
        self._same(pick, lambda d: d.setdefault(key, value), "setdefault()")

    @stateful.rule(pick=_picks, key=_keys, by=st.integers(-3, 3))
    def incr(self, pick: int, key: Any, by: int) -> None:
        """Increment a counter."""
        self._same(pick, lambda d: d.incr(key, by), "incr()")

    @stateful.rule(pick=_picks, pairs=_pairs, as_dict=st.booleans())
    def update(self, pick: int, pairs: _Pairs, as_dict: bool) -> None:
        """Set several keys."""
        self._same(pick, lambda d: d.update(dict(pairs) if as_dict else pairs), "update()")

    @stateful.rule(pick=_picks)
    def clear(self, pick: int) -> None:
        """Remove everything."""
        self._same(pick, lambda d: d.clear(), "clear()")

    @stateful.rule(pick=_picks, key=_keys, well=st.booleans())
    def edit(self, pick: int, key: Any, well: bool) -> None:
        """Change a value in place."""

        def call(d: Any) -> None:
            with d.edit(key) as value:
                if not well or not isinstance(value, list):
                    raise ExpectedError
                value.append(1)

        self._same(pick, call, "edit()")

    @stateful.rule(
        pick=_picks,
        prefix=st.sampled_from(["", "a", "ab", "c"]),
        start=st.sampled_from([None, "", "ab"]),
        stop=st.sampled_from([None, "ab\0", "b"]),
        reverse=st.booleans(),
    )
    def scan(self, pick: int, prefix: str, start: str | None, stop: str | None, reverse: bool) -> None:
        """Read a range."""
        ends = {"start": start, "stop": stop, "reverse": reverse}
        self._same(pick, lambda d: list(d.scan(prefix, **ends)), "scan()")

    @stateful.rule(pick=_picks, pairs=_pairs, key=_keys, well=st.booleans())
    def transaction(self, pick: int, pairs: _Pairs, key: Any, well: bool) -> None:
        """Make several changes in a transaction that commits or raises."""

        def call(d: Any) -> list[Any]:
            with d.transaction():
                d.update(pairs)
                d.pop(key, None)
                d[key] = "within"
                if not well:
                    raise ExpectedError
                return list(d.items())

        self._same(pick, call, "a transaction")

    @stateful.rule(pick=_picks)
    def task_done(self, pick: int) -> None:
        """Commit the buffered changes."""
        self.handles[pick % len(self.handles)].task_done()
        self.committed = copy.deepcopy(self.model)

    @stateful.rule()
    def reopen(self) -> None:
        """Close the dict and open it again."""
        for each in self.handles:
            each.close()
        self.model = copy.deepcopy(self.committed)
        self.handles = self.open_all()

    @stateful.rule()
    def crash(self) -> None:
        """Continue with what a process that died now would leave."""
        old, dying = self.path, self.handles
        self.times_opened += 1
        # Another process copies, because closing a database's files here would drop SQLite's locks on them.
        subprocess.run([sys.executable, "-I", "-S", "-c", _COPY, old, self.path], check=True)
        for each in dying:
            each.close()
        shutil.rmtree(old)
        self.model = copy.deepcopy(self.committed)
        self.handles = self.open_all()

    @stateful.invariant()
    def equals_the_model(self) -> None:
        """Check that everything that can be read is equal."""
        model = self.model
        for d in self.handles:
            found = repr((list(d.items()), list(d), list(d.values())))
            wanted = repr((list(model.items()), list(model), list(model.values())))
            check(found == wanted, f"items, keys and values are {found}, the model's {wanted}")
            check(list(reversed(d)) == list(reversed(model)), f"reversed: {list(reversed(d))}, of {model}")
            check((len(d), bool(d)) == (len(model), bool(model)), f"len() {len(d)}, of {model}")
            check(d == model, "not equal to the model")


_COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
